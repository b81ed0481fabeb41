"""The network's tensor-only core, for torch.export and ONNX: strings and random draws stay outside.

The text encoder runs in front (any prompt, once), and the draw's noise is an input, so an exported file repeats itself
exactly and gives the masks of the eager network.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .boltzformer import BoltzFormer


class TensorCore(nn.Module):
    """Image, text embedding and noise -> logits.

    Args:
        network: in evaluation mode.
    """

    def __init__(self, network: BoltzFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, text_embedding: Tensor, noise: Tensor) -> Tensor:
        """Segment one object in one slice.

        Args:
            image: (1, C, H, W) in [0, 1] at the network's working size, C = 1 or 3.
            text_embedding: the prompt's tokens without padding, (1, N_T, width), from `encode_text`.
            noise: standard exponential variates of all layers side by side, (1, sets a query, m, all patches); see
                `core_noise`. Unused, but present, where the attention rule draws nothing.

        Returns:
            Mask logits (1, 1, H / 2, W / 2).
        """
        network = self.network
        patches = network.decoder.patches_per_layer(network.attention_grids())
        features = network.encode_image(image)
        return network.core(features, text_embedding, None, noise.split(patches, dim=-1)).logits


def core_noise(network: BoltzFormer, seed: int | None = None) -> Tensor:
    """The noise that the eager network uses in evaluation, as `TensorCore` takes it.

    Args:
        network: whose sizes are taken.
        seed: of the draw; the network's own by default.
    """
    decoder = network.decoder
    patches = decoder.patches_per_layer(network.attention_grids())
    seed = network.seed if seed is None else seed
    device = next(network.parameters()).device
    layers = network._seeded_noise(seed, decoder.sets_per_query, decoder.num_queries, patches, device)
    return torch.cat(list(layers), dim=-1)


def example_inputs(network: BoltzFormer, prompt: str, channels: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of `TensorCore`: a random slice of 1 or 3 channels, a prompt's embedding, the seeded noise."""
    device = next(network.parameters()).device
    image = torch.rand(1, channels, *network.image_size, device=device)
    return image, network.encode_text([prompt]).tokens, core_noise(network)


def export_program(network: BoltzFormer, prompt: str = "lesion", channels: int = 1) -> torch.export.ExportedProgram:
    """torch.export of the core; the number of text tokens stays free (2 to 77), all other sizes are fixed."""
    core = TensorCore(copy.deepcopy(network).eval()).requires_grad_(False)
    tokens = torch.export.Dim("tokens", min=2, max=77)
    inputs = example_inputs(network, prompt, channels)
    with torch.no_grad():  # else what switches gradients off in the network becomes a part of the graph
        return torch.export.export(core, inputs, dynamic_shapes=(None, {1: tokens}, None))
