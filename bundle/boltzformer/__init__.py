"""BoltzFormer: text-prompted segmentation of small objects in CT and MR volumes, as a MONAI bundle.

from boltzformer import Segmenter
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boltzformer.inference.api import Segmentation, Segmenter

__all__ = ["Segmentation", "Segmenter"]


def __getattr__(name: str) -> Any:
    # on first use: torch and MONAI take seconds to import, and a config or `--help` may not need them
    if name in __all__:
        from boltzformer.inference import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
