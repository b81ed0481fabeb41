"""The network in a hurry: the same function in fewer and larger steps, for inference.

The plain path (`BoltzFormer.predict`) computes slices and prompts one by one. Here

* slices are encoded, and decoded for one prompt after another, in groups of a fixed size. The last group is filled up.
  On a CPU a group is encoded in parts of a fixed size.
  What a group computes is the same whatever else is asked for, so a mask's bits depend neither on other prompts, nor on
  the slices beside it, nor on the memory;
* of TinyViT the batch norms are folded into the convolutions, on a CPU GELU is computed by the product before it, and
  the position biases get the shape that PyTorch's fused attention takes;
* in bfloat16, where that is asked for, backbone, pixel decoder and semantic map have their weights converted once.
  Decoder, PiGMA and existence head stay as they are: they are a small part, and draw the attention sets.

In float32 results differ from the plain path's by rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import timm.layers
import torch
import torch.nn.functional as F
from timm.models import tiny_vit
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .attention.patches import Patches
from .boltzformer import BoltzFormer, Prediction
from .features import ImageFeatures
from .semantic_map import semantic_map_of
from .text_encoder import TextFeatures

Worth = Callable[[Tensor], Tensor]
"""Existence logits of any shape -> bool: whether anybody will look at the mask."""

LARGEST_GROUP = 8
# Pixels of the working size. More of them, beside another group, leave a core's cache while they are encoded; decoding
# reads far less of each, and its many small operations cost as much for one slice as for eight.
CPU_ENCODED_PIXELS = 9 * 256 * 128
CPU_DECODED_PIXELS = 4 * 512 * 512
# (class, layer, activation): the activation follows the layer at once and nothing else reads what is between
GELU_AFTER: tuple[tuple[type[nn.Module], str, str], ...] = (
    (tiny_vit.PatchEmbed, "conv1", "act"),
    (tiny_vit.MBConv, "conv1", "act1"),
    (tiny_vit.MBConv, "conv2", "act2"),
    (tiny_vit.PatchMerging, "conv1", "act1"),
    (tiny_vit.PatchMerging, "conv2", "act2"),
    (tiny_vit.NormMlp, "fc1", "act"),
    (timm.layers.Mlp, "fc1", "act"),
)


class HurriedNetwork(nn.Module):
    """A BoltzFormer for inference on volumes.

    Part of its weights are copies: load weights before, not after.

    Args:
        network: in evaluation mode, with its weights, on its device.
        dtype: of the image encoder: `torch.float32` or `torch.bfloat16`.
    """

    def __init__(self, network: BoltzFormer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.default_prompt, self.seed = network.default_prompt, network.seed
        on_cpu = network.image_encoder.mean.device.type == "cpu"
        self.image_encoder = copy.copy(network.image_encoder)
        self.image_encoder._modules = {
            **network.image_encoder._modules,
            "backbone": _frozen(fuse_backbone(network.image_encoder.backbone, gelu=on_cpu), dtype),
        }
        plain = dtype == torch.float32
        self.pixel_decoder = network.pixel_decoder if plain else _frozen(network.pixel_decoder, dtype)
        self.mask_features = network.mask_features if plain else _frozen(network.mask_features, dtype)
        self.group, self.encoded = group_of(network), encoded_at_once(network)

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Of the network."""
        return self.network.encode_text(prompts)

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """As `BoltzFormer.encode_image`, all slices at once; features are float32."""
        plain = self.network
        size = (int(image.shape[-2]), int(image.shape[-1]))
        image = plain._working_image(image)
        scales, finest = self.pixel_decoder(self.image_encoder(image.to(self.dtype)))
        map_size = (int(finest.shape[-2]), int(finest.shape[-1]))
        form = plain.map_form(finest)
        # a folded map is never computed: queries are folded into the kernel, in float32
        maps, projection = (finest.float(), plain.mask_features) if form == "folded" else (finest, self._semantic_map)
        semantic_map = semantic_map_of(maps, cast(nn.Conv2d, projection), plain.attention_grids(), form)
        from_image = None if plain.pigma is None else plain.pigma.image_share(image, map_size)
        return ImageFeatures(tuple(Patches.of(v.float()) for v in scales), semantic_map, from_image, size)

    def decode(self, features: ImageFeatures, text: TextFeatures, **settings: Any) -> Any:
        """As `BoltzFormer.decode`."""
        return self.network.decode(features, text, **settings)

    def predict(
        self,
        image: Tensor,
        prompts: Sequence[str] | TextFeatures,
        seed: int | None = None,
        asked: Tensor | None = None,
        worth: Worth | None = None,
    ) -> Prediction:
        """As `BoltzFormer.predict`, in groups of slices.

        Args:
            image: (B, C, H, W) in [0, 1].
            prompts: P sentences, or their encoding.
            seed: of the draw, instead of the network's.
            asked: which prompt is asked for in which slice, bool (B, P); None asks for all. What is not asked for may
                be 0 in the result.
            worth: spares the masks that it finds not worth it, where the network scores existence: they may be 0.
        """
        text = prompts if isinstance(prompts, TextFeatures) else self.encode_text(prompts)
        if asked is None:
            asked = torch.ones(len(image), len(text), dtype=torch.bool)
        groups = zip(image.split(self.group), asked.split(self.group), strict=True)
        parts = [self._predict_group(group, text, seed, some, worth) for group, some in groups]
        existence = [part.existence for part in parts if part.existence is not None]
        return Prediction(torch.cat([part.logits for part in parts]), torch.cat(existence) if existence else None)

    def segment(self, image: Tensor, prompts: Sequence[str] | TextFeatures, seed: int | None = None) -> Tensor:
        """The mask logits of `predict`, (B, P, H, W), float32."""
        return self.predict(image, prompts, seed).logits

    def _predict_group(
        self, image: Tensor, text: TextFeatures, seed: int | None, asked: Tensor, worth: Worth | None
    ) -> Prediction:
        count = len(image)
        size = (count, len(text), int(image.shape[-2]), int(image.shape[-1]))
        logits = torch.zeros(size, device=image.device)
        existence = torch.zeros(size[:2], device=image.device) if self.network.scores_existence else None
        features = self._encode_group(image)
        for p in asked.any(0).nonzero()[:, 0].tolist():
            repeated = _repeated(text[p : p + 1], self.group)
            found = self.network._decode(features, repeated, None, seed, keep_masks=False, keep_sets=False)
            masks, wanted = found.logits[:count].float(), asked[:, p]
            if existence is not None and found.existence is not None:
                existence[:, p] = found.existence[:count]
                if worth is not None and image.device.type == "cpu":  # a GPU would have to wait for the answer
                    wanted = wanted & worth(existence[:, p])
            if bool(wanted.any()):
                made = F.interpolate(masks[wanted], size=size[2:], mode="bilinear", align_corners=False)
                logits[wanted, p] = made[:, 0]
        return Prediction(logits, existence)

    def _encode_group(self, image: Tensor) -> ImageFeatures:
        """Features of a whole group, filled up with those of slices that are there."""
        missing = -len(image) % self.encoded
        image = torch.cat((image, image[-1:].expand(missing, -1, -1, -1))) if missing else image
        parts = [self.encode_image(part) for part in image.split(self.encoded)]
        parts += parts[-1:] * (self.group // self.encoded - len(parts))
        return ImageFeatures.concatenate(parts)

    def _semantic_map(self, finest: Tensor) -> Tensor:
        return self.mask_features(finest).float()


def group_of(network: BoltzFormer) -> int:
    """Slices of a group, a power of two: as many as share out the cost of an operation, or as keep a GPU busy."""
    return _fitting(network, CPU_DECODED_PIXELS)


def encoded_at_once(network: BoltzFormer) -> int:
    """Slices of a group that are encoded at once, a power of two: as many as a CPU's caches hold between two layers."""
    return _fitting(network, CPU_ENCODED_PIXELS)


def _fitting(network: BoltzFormer, pixels: int) -> int:
    if network.image_encoder.mean.device.type != "cpu":
        return LARGEST_GROUP
    height, width = network.image_size
    fit = max(1, min(LARGEST_GROUP, pixels // (height * width)))
    return 1 << (fit.bit_length() - 1)


def _repeated(text: TextFeatures, times: int) -> TextFeatures:
    """One prompt, as often as a group has slices."""
    return TextFeatures(text.tokens.expand(times, -1, -1), text.mask.expand(times, -1), text.lengths * times)


def _frozen(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in a type, without gradients, with the channels last."""
    made = copy.deepcopy(module).eval().requires_grad_(False).to(dtype)
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fuse_backbone(backbone: nn.Module, gelu: bool = True) -> nn.Module:
    """A copy of a timm backbone with norms folded, GELU fused and attention biases in the shape for fused attention.

    What is of another kind than timm's TinyViT or `Mlp` stays as it is.

    Args:
        backbone: in evaluation mode.
        gelu: fuse GELU by oneDNN, on a CPU; without oneDNN it stays.
    """
    made = copy.deepcopy(backbone).eval()
    modules = list(made.modules())
    for module in modules:
        if isinstance(module, tiny_vit.ConvNorm):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()  # type: ignore[assignment]
    gelu = gelu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    for module in modules:
        for kind, layer, activation in GELU_AFTER:
            if gelu and isinstance(module, kind) and _is_exact_gelu(getattr(module, activation)):
                setattr(module, layer, _WithGelu(getattr(module, layer)))
                setattr(module, activation, nn.Identity())
        if isinstance(module, tiny_vit.Attention):
            module.get_attention_biases = _BatchedBiases(module)  # type: ignore[method-assign]
    return made


def _is_exact_gelu(module: nn.Module) -> bool:
    return isinstance(module, nn.GELU | timm.layers.GELU) and getattr(module, "approximate", "none") == "none"


class _WithGelu(nn.Module):
    """A linear layer or convolution with GELU, computed by oneDNN in one pass over the result."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer.conv if isinstance(layer, tiny_vit.ConvNorm) else layer

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        weight, bias = layer.weight, layer.bias
        if torch.is_autocast_enabled("cpu"):  # which does this for PyTorch's own layers, and passes over oneDNN's
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if isinstance(layer, nn.Linear):
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, layer.padding, layer.stride, layer.dilation, layer.groups, "gelu", [], "none"
        )


class _BatchedBiases:
    """TinyViT's position biases as (1, H, N, N): PyTorch's fused attention on a CPU refuses (H, N, N)."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self.made: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _BatchedBiases:
        return _BatchedBiases(copy.deepcopy(self.attention, memo))

    def __call__(self, device: torch.device) -> Tensor:
        weights = self.attention.attention_biases
        if self.made is None or self.made.dtype != weights.dtype or self.made.device != weights.device:
            self.made = weights[:, self.attention.attention_bias_idxs][None].contiguous()
        return self.made
