"""What an attention rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ...definition import DEFINED_CLASSES, as_data


class AttentionRule(ABC):
    """Says which patches each query keeps in a layer.

    A rule is a dataclass whose fields are numbers or text, so that a checkpoint can say which rule it was trained with.

    Attributes:
        needs_noise: whether `keep` is given random noise.
        keeps_all: every patch is kept without looking: the logits are not computed, nor `keep` called.
    """

    needs_noise: ClassVar[bool] = False
    keeps_all: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        known = DEFINED_CLASSES.setdefault(cls.__name__, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{known.__module__} has a {cls.__name__} already: give the rule another name")
        DEFINED_CLASSES[cls.__name__] = cls

    @property
    def definition(self) -> dict[str, Any]:
        """What the rule was built with, as a checkpoint's recipe holds it."""
        values = {field.name: as_data(getattr(self, field.name)) for field in fields(cast(Any, self))}
        return {"type": type(self).__name__, **values}

    @abstractmethod
    def keep(self, logits: Tensor, layer: int, noise: Tensor | None) -> Tensor | None:
        """The attention sets of a layer; called without gradients.

        Args:
            logits: mask logits mu^T S at the layer's patches, (B, 1, m, patches); their sigmoid is the confidence U.
            layer: l, from 0.
            noise: standard exponential variates, (1 or B, sets a query, m, patches), where the rule needs them.

        Returns:
            True where a query keeps a patch, (B, 1 or sets a query, m, patches); no set is empty (`fill_empty`).
            None keeps all.
        """

    def sets_per_query(self, num_heads: int) -> int:
        """Sets that a query has: 1, which its heads share, or one for each head."""
        return 1


def fill_empty(kept: Tensor) -> Tensor:
    """Let a query whose set is empty attend to every patch."""
    looks = kept.device.type == "cpu" and not torch.compiler.is_compiling()
    # sets are hardly ever empty; a maximum of bytes takes a thirtieth of the time of `any` over the last axis
    if looks and bool(kept.view(torch.uint8).amax(-1).all()):
        return kept
    return kept | ~kept.any(dim=-1, keepdim=True)
