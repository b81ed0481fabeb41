"""Several seeded draws of the attention sets: a mean probability, and how unsure the network is.

The network samples which patches a query attends to. K seeds give K masks of one slice, at the cost of K decodings and
one image encoding; where they disagree, the mask depends on the draw.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Workflow
from torch import Tensor, nn

from boltzformer.data.prompts import Prompt
from boltzformer.errors import InputError
from boltzformer.inference.masks import LOGITS_KEY, check_distinct
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.networks.boltzformer import Prediction
from boltzformer.volumes.write import Grid

# Of a mean probability of exactly 0 or 1 the logit is infinite; beyond this float32 tells no more apart.
LOGIT_LIMIT = 16.0


class SeededDecodings(nn.Module):
    """A network whose `predict` is the mean over K seeded decodings of each slice.

    Args:
        network: a BoltzFormer in evaluation mode.
        decodings: K.
    """

    def __init__(self, network: Any, decodings: int) -> None:
        super().__init__()
        self.network = network
        self.decodings = decodings
        self.default_prompt = getattr(network, "default_prompt", None)

    def encode_text(self, prompts: Sequence[str]) -> Any:
        """Of the network."""
        return self.network.encode_text(prompts)

    def predict(self, image: Tensor, text: Any, seed: int | None = None) -> Prediction:
        """Logit of the mean probability, and the mean of the existence logits.

        Args:
            image: (B, C, H, W) in [0, 1].
            text: P encoded prompts.
            seed: of the first decoding; the others take the numbers after it. None begins at the network's.

        Returns:
            Logits (B, P, H, W) float32, within +-16.
        """
        first = self.network.seed if seed is None else seed
        features = self.network.encode_image(image)
        slices, scores = [], []
        for b in range(len(features)):
            one = features[b : b + 1]
            total = torch.zeros((), device=image.device)
            for k in range(self.decodings):
                decoded = self.network.decode(one, text, seed=first + k)
                total = total + decoded.logits.sigmoid()
                scores.append(decoded.existence)
            slices.append((total / self.decodings).transpose(0, 1))
        logits = torch.logit(torch.cat(slices)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        if any(score is None for score in scores):
            return Prediction(logits, None)
        existence = torch.stack(scores).unflatten(0, (len(features), self.decodings)).mean(1)
        return Prediction(logits, existence)


class EnsembleSliceInferer(PromptedSliceInferer):
    """Like its parent, with the mean of several decodings in place of one.

    Args:
        decodings: K, at least 1; 1 is the parent's result.
        kwargs: the parent's arguments; `seed` is that of the first decoding.
    """

    def __init__(self, *args: Any, decodings: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if decodings < 1:
            raise InputError(f"decodings is {decodings}: give how many times each slice is decoded, 1 or more.")
        self.decodings = decodings
        self._several: SeededDecodings | None = None

    def __call__(
        self,
        inputs: Tensor,
        network: nn.Module | Callable[..., Any],
        *args: Any,
        prompts: str | Prompt | Sequence[str | Prompt] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Segment a volume; logits of the mean probability, (1, P, H, W, D) float16."""
        if self._several is None or self._several.network is not network:
            self._several = SeededDecodings(network, self.decodings)  # kept: the memory of a slice is known by it
        return super().__call__(inputs, self._several, *args, prompts=prompts, **kwargs)


def entropy_of_logits(logits: Tensor) -> np.ndarray:
    """Entropy in bits at each voxel: 0 where certain, 1 at probability one half.

    Args:
        logits: any shape.

    Returns:
        float32, the same shape.
    """
    x = logits.float()
    # -p log p - q log q with q = sigmoid(-x), log p = -softplus(-x): exact also where p is nearly 0 or 1.
    softplus = torch.nn.functional.softplus
    nats = x.sigmoid() * softplus(-x) + (-x).sigmoid() * softplus(x)
    return (nats / math.log(2)).cpu().numpy()


class SaveEntropy:
    """Ignite handler: writes `<output_dir>/<case>/<name>_entropy.nii.gz`, float32 in bits, on the volume's own grid.

    Args:
        output_dir: where to write; made if needed.
        prompts: what was segmented, in the order of the channels.

    Raises:
        InputError: on a call, if a file cannot be written.
    """

    def __init__(self, output_dir: str | os.PathLike[str], prompts: Sequence[Prompt]) -> None:
        self.output_dir = Path(output_dir)
        self.prompts = list(prompts)
        check_distinct(self.planned_files("case"))

    def attach(self, engine: Workflow) -> None:
        """Save after each volume of `engine`, a MONAI evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Save the volume that was just segmented."""
        for source, output in zip(engine.state.batch, engine.state.output, strict=True):
            grid = Grid.of_path(str(source["image"].meta["filename_or_obj"]), str(source.get("series_uid", "")))
            self.save(output, grid, str(source["case"]))

    def planned_files(self, case: str) -> list[Path]:
        """Every file that is written for a volume."""
        return [self.output_dir / case / f"{prompt.name}_entropy.nii.gz" for prompt in self.prompts]

    def save(self, output: Mapping[Any, Any], grid: Grid, case: str) -> None:
        """Write one volume's maps; arguments as in `SaveMasks.save`."""
        logits = output[LOGITS_KEY]
        grid.check(logits.shape[1:], np.asarray(output["pred"].affine, dtype=np.float64))
        for index, path in enumerate(self.planned_files(case)):
            plain = logits[index].as_tensor() if hasattr(logits, "as_tensor") else logits[index]
            grid.write(entropy_of_logits(plain), path)
