"""The loss of a training step, and the inferer that gives it what it looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn

from boltzformer.errors import InputError


class DecodedLoss(nn.Module):
    """Mask loss of the (slice, prompt) pairs; optionally of the layers' masks, and of the existence score.

    With an existence term the mask terms see only pairs whose object is there: an empty mask is then the score's
    business. Without one they see all pairs, as in the paper.

    Args:
        mask_loss: (logits (B, 1, H, W), masks (B, 1, H, W)) -> scalar; Dice and cross-entropy in the paper.
        layer_loss_weight: of the mean over the layers of `mask_loss` between the mean of the queries' masks at the
            layer's patch grid and the share of each patch that the object covers; 0 is the paper's.
        existence_weight: of the cross-entropy between the existence score and whether the mask holds any pixel.

    Raises:
        InputError: a weight below 0; on a call, an existence term for a network without existence head.
    """

    def __init__(
        self,
        mask_loss: Callable[[Tensor, Tensor], Tensor],
        layer_loss_weight: float = 0.0,
        existence_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if layer_loss_weight < 0 or existence_weight < 0:
            raise InputError("layer_loss_weight and existence_weight must be 0 or more.")
        self.mask_loss = mask_loss
        self.layer_loss_weight, self.existence_weight = layer_loss_weight, existence_weight

    @property
    def needs_everything(self) -> bool:
        """Whether logits alone are not enough."""
        return self.layer_loss_weight > 0 or self.existence_weight > 0

    def counted(self, label: Tensor) -> int:
        """How many of B pairs with masks (B, 1, H, W) the mask loss is the mean over."""
        return int(_present(label).sum()) if self.existence_weight else len(label)

    def forward(self, found: Any, label: Tensor) -> Tensor:
        """Loss of B pairs.

        Args:
            found: mask logits (B, 1, H, W), whose loss is that of the masks alone, or all that the network found
                (`networks.boltzformer.Decoded`).
            label: masks (B, 1, H, W) of 0 and 1.
        """
        present = _present(label)
        # multiplied instead of chosen: a choice would make the host wait for the device
        seen = present if self.existence_weight else torch.ones_like(present)
        if isinstance(found, Tensor):
            return self._masked(found, label, seen)
        loss = self._masked(found.logits, label, seen)
        if self.layer_loss_weight:
            if found.layer_masks is None:
                raise InputError("layer_loss_weight is above 0, but this network's layers have no masks: set it to 0.")
            terms = []
            for masks in found.layer_masks:
                coverage = F.adaptive_avg_pool2d(label, tuple(masks.shape[-2:]))
                terms.append(self._masked(masks.mean(1, keepdim=True), coverage, seen))
            loss = loss + self.layer_loss_weight * torch.stack(terms).mean()
        if self.existence_weight:
            if found.existence is None:
                raise InputError("existence_weight is above 0, but the network has no existence head: set `existence`.")
            score = F.binary_cross_entropy_with_logits(found.existence, present.to(found.existence.dtype))
            loss = loss + self.existence_weight * score
        return loss

    def _masked(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """The mask loss over the pairs that are seen; pair by pair only where some are not."""
        if not self.existence_weight:
            return self.mask_loss(logits.float(), label)
        # one launch for all pairs: a loop would spend a GPU's time on starting some thousand small kernels
        each = torch.vmap(lambda x, y: self.mask_loss(x[None], y[None]))(logits.float(), label)
        return (each * seen).sum() / seen.sum().clamp(min=1)


def _present(label: Tensor) -> Tensor:
    """Which masks (B, 1, H, W) hold a pixel: (B,) bool."""
    return label.flatten(1).any(1)


class TrainingInferer(Inferer):
    """MONAI inferer: asks the network for all that a loss needs, and no more.

    Args:
        loss: the run's loss.
        cpu_bfloat16: compute the network under autocast to bfloat16 where the slices are on a CPU. MONAI's own `amp`
            is for CUDA. The weights, the loss and the draw stay float32.
    """

    def __init__(self, loss: DecodedLoss, cpu_bfloat16: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self.cpu_bfloat16 = cpu_bfloat16

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Logits, or with a loss on more than masks the network's `Decoded`."""
        if self.loss.needs_everything:
            kwargs["everything"] = True
        with torch.autocast("cpu", torch.bfloat16, enabled=self.cpu_bfloat16 and inputs.device.type == "cpu"):
            return network(inputs, *args, **kwargs)
