"""Which parameters learn, and how fast."""

from __future__ import annotations

from typing import Any

from torch import nn

from boltzformer.errors import InputError


def parameter_groups(network: Any, encoder_learning_rate: float, only: str | None = None) -> list[dict[str, Any]]:
    """Groups for an optimizer: the image encoder with a rate of its own, all else with the optimizer's.

    Args:
        network: a BoltzFormer, not its DDP wrapper.
        encoder_learning_rate: of the image encoder.
        only: part of the network that learns alone, such as "existence"; the others are frozen, batch statistics of the
            image encoder too. None trains all.

    Raises:
        InputError: the network has no such part.
    """
    if only is not None:
        if not isinstance(getattr(network, only, None), nn.Module):
            raise InputError(f"train_only: the network has no part {only!r}.")
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name.startswith(f"{only}."))
        if only != "image_encoder":  # running statistics follow each batch, learning or not, and change the masks
            network.image_encoder.freeze_batch_norm = True
    encoder = [p for p in network.image_encoder.parameters() if p.requires_grad]
    apart = {id(p) for p in encoder}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [{"params": rest}]
    return [*groups, {"params": encoder, "lr": encoder_learning_rate}] if encoder else groups
