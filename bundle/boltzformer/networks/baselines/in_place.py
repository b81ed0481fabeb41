"""A baseline where a config describes BoltzFormer: same arguments, so that every network overlay fits both.

A baseline's overlay is one line, `network_def#_target_`, and works on top of any other.
"""

from __future__ import annotations

from typing import Any

from boltzformer.errors import InputError

from .sam import TextPromptedSam, TextPromptedSam2

OF_BOLTZFORMER_ALONE = frozenset(
    {
        "num_queries",
        "num_layers",
        "attention",
        "text_conditioned_prior",
        "use_pigma",
        "pigma_channels",
        "fold_semantic_map",
        "plain",
    }
)
"""Arguments that no other decoder has a use for."""


def sam(existence: bool = False, **settings: Any) -> TextPromptedSam:
    """SAM's decoder in place of BoltzFormer's.

    Args:
        existence: must be False: SAM's decoder has no such head.
        settings: arguments of `BoltzFormer`, those of its decoder ignored, or of `TextPromptedSam`.

    Raises:
        InputError: an existence head is asked for.
    """
    if existence:
        raise InputError("existence: SAM's decoder has no existence head; take configs/baseline/sam2.json.")
    return TextPromptedSam(**_shared(settings))


def sam2(**settings: Any) -> TextPromptedSam2:
    """SAM 2's decoder in place of BoltzFormer's.

    Args:
        settings: arguments of `BoltzFormer`, those of its decoder ignored, or of `TextPromptedSam2`.
    """
    return TextPromptedSam2(**_shared(settings))


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in OF_BOLTZFORMER_ALONE}
