"""A slice network on a whole volume, for one prompt or many."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from boltzformer.data.canvas import check_pixel_sizes
from boltzformer.data.prompts import Prompt, check_prompt, parse_prompts
from boltzformer.data.windows import limits_of
from boltzformer.errors import InputError
from boltzformer.inference.agreement import Agreement
from boltzformer.inference.canvas import SeenThrough, on_canvas
from boltzformer.inference.coarse import CoarsePass, after_looks, first_looks
from boltzformer.inference.existence import (
    AGREEMENT_KEY,
    COARSE_KEY,
    EXISTENCE_ALONE_KEY,
    EXISTENCE_AXIS_KEY,
    EXISTENCE_KEY,
    IMPROBABLE,
    ExistenceGate,
)
from boltzformer.inference.memory import measure_peak
from boltzformer.inference.precision import Precision, check_precision, computation_of, hurried
from boltzformer.inference.slice_progress import SliceProgress
from boltzformer.inference.slices import Found, Part, Slices, blocks_of
from boltzformer.inference.workers import Workers, number_of_workers
from boltzformer.networks.hurried import HurriedNetwork
from boltzformer.volumes.spacing import spacing_of, uneven_places

logger = logging.getLogger(__name__)

LARGEST_BATCH = 64
PROMPT_KEY = "prompt"
"""Entry of a volume's metadata with the prompts of this volume alone, as `parse_prompts` takes them."""


class PromptedSliceInferer(SliceInferer):
    """MONAI inferer: every slice of a volume through `network.predict`, all prompts sharing the slice's encoding.

    Slices are computed in groups (`HurriedNetwork`). With the plain precision they are computed one by one, and batched
    as far as `memory_gb` allows. Logits are kept in float16, whose sign is that of the float32 value, so thresholding
    at 0 loses nothing.

    Unlike its parent it neither windows in-plane nor averages overlaps (a slice is segmented whole), so it needs no
    weight map, and it does pass prompts on.

    Args:
        prompt: what to segment: a sentence, several, or prompts from a prompt list; None takes the network's default.
        spatial_dim: axis of the slices, 2 for axial ones of a volume in RAS orientation.
        num_adjacent: neighbouring slices on each side that go in as channels, as in training; the border slice stands
            in for those beyond the volume. 0 or 1.
        memory_gb: memory for the tensors of one batch, or of the groups that are computed at once, in GB (1e9 bytes),
            beside the volume and the result. A group has a fixed size; one that needs more than this brings a warning.
        seed: of the draw of attention sets, instead of the network's.
        autocast: lower precision for the network, such as `torch.bfloat16`; None computes in float32.
        existence: what the network's existence score does to a slice; None, and for a network without such a score,
            nothing.
        precision: see `boltzformer.inference.precision`.
        skip_blank: do not compute slices in which every pixel is 0, at or below the window's lower limit, neighbours
            that go in as channels included: nothing can be seen there, and their masks are empty by rule.
        progress: draw a bar of the slices on a terminal, and log a line each half minute elsewhere.
        pixel_size_mm: sizes of the network's pixels that training covered, see `boltzformer.data.canvas`; None takes
            every slice whole.
        coarse: a first look every few millimetres (`boltzformer.inference.coarse`), where `existence` empties slices
            and slices are computed in groups; None looks at every slice.
        keep_logits: give back logits; False gives `ranks_of` them, from which `MasksFromLogitsd` makes the same masks
            and label map: one byte a voxel and prompt, of which empty slices take none on a CPU.
        body_view: look at each slice through the box of its body, as near as `pixel_size_mm` allows. What lies outside
            has an empty mask: it is air.
        resolution_mm: size of the training's pixels, in mm; slices with smaller ones are averaged to about as large
            ones, before the window (`blocks_of`), and masks are interpolated to the slices' own pixels. None averages
            nothing.
        agreement: averages a prompt's scores and masks over neighbouring slices (`boltzformer.inference.agreement`);
            None leaves every slice to itself, as is done where the spacing is not known.
    """

    def __init__(
        self,
        prompt: str | Prompt | Sequence[str | Prompt] | None = None,
        spatial_dim: int = 2,
        num_adjacent: int = 0,
        memory_gb: float = 2.0,
        seed: int | None = None,
        autocast: torch.dtype | None = None,
        existence: ExistenceGate | None = None,
        precision: Precision = "float32",
        skip_blank: bool = True,
        progress: bool = True,
        pixel_size_mm: float | Sequence[float] | None = None,
        coarse: CoarsePass | None = None,
        keep_logits: bool = True,
        body_view: bool = False,
        resolution_mm: float | None = None,
        agreement: Agreement | None = None,
    ) -> None:
        super().__init__(spatial_dim=spatial_dim, roi_size=(-1, -1), progress=progress)
        if num_adjacent not in (0, 1):
            raise InputError(f"num_adjacent is {num_adjacent}: the network takes 1 or 3 slices, so give 0 or 1.")
        if memory_gb <= 0:
            raise InputError(f"memory_gb is {memory_gb}: give the gigabytes that a batch of slices may use.")
        if spatial_dim not in (0, 1, 2):
            raise InputError(f"spatial_dim is {spatial_dim}: expected 0, 1 or 2.")
        self.prompt = prompt
        self.num_adjacent = num_adjacent
        self.memory_gb = memory_gb
        self.seed = seed
        self.autocast = autocast
        self.existence = existence or ExistenceGate()
        self.coarse = coarse or CoarsePass()
        self.pixel_size_mm = None if pixel_size_mm is None else check_pixel_sizes(pixel_size_mm)
        self.keep_logits = keep_logits
        self.body_view = body_view
        if resolution_mm is not None and not resolution_mm > 0:
            raise InputError(f"resolution_mm is {resolution_mm}: give the size of the training's pixels, or null.")
        self.resolution_mm = resolution_mm
        self.agreement = agreement or Agreement()
        self.precision = check_precision(precision)
        self.skip_blank = skip_blank
        self._on_canvas: SeenThrough | None = None
        self._hurried: tuple[Any, HurriedNetwork] | None = None
        self._bytes_per_slice: dict[tuple[Any, ...], int] = {}

    def __call__(
        self,
        inputs: Tensor,
        network: nn.Module | Callable[..., Any],
        *args: Any,
        prompts: str | Prompt | Sequence[str | Prompt] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Segment a volume.

        Args:
            inputs: (1, 1, H, W, D) in [0, 1], or as a deferred `IntensityWindowd` left it; a `prompt` in its metadata
                goes before `self.prompt`.
            network: a BoltzFormer.
            args: ignored, for MONAI's engines.
            prompts: in place of `self.prompt` for this call.
            kwargs: ignored, for MONAI's engines.

        Returns:
            Logits (1, P, H, W, D), float16, or their ranks in uint8, on the device of `inputs`; with the input's
            metadata, and under `existence` in it the probability that each object is in each slice, (1, P, slices)
            float32, where the network scores it; under `existence_alone` the same as each slice gave it, where
            `existence` has means over the slices around; under `coarse_mm` and `agreement_mm`, (1, P), what was done
            for each prompt, in mm, 0 where it was not.

        Raises:
            InputError: a volume of another shape or outside [0, 1], or a prompt that is empty or no text.
        """
        if inputs.dim() != 5 or inputs.shape[:2] != (1, 1):
            raise InputError(f"expected one volume of one channel (1, 1, H, W, D), found {tuple(inputs.shape)}.")
        if prompts is None:
            prompts = parse_prompts(getattr(inputs, "meta", {}).get(PROMPT_KEY)) or self.prompt
        sentences = prompt_sentences(prompts, getattr(network, "default_prompt", None))
        inside = list(spacing_of(inputs))
        places = uneven_places(inputs, self.spatial_dim)
        along = inside.pop(self.spatial_dim)
        if places is not None:  # no one distance holds, and an object may lie in a gap between two looks
            along = math.nan
        neighbours = self.agreement.neighbours(sentences, along, places)
        blocks = blocks_of(inside, self.resolution_mm)
        volume = Slices(_plain(inputs)[0, 0].movedim(self.spatial_dim, 0), limits_of(inputs), blocks)
        spacing = (inside[0] * blocks[0], inside[1] * blocks[1])
        network = self._fitted(self.computing(network), volume.size, spacing)
        found = Found.nothing(volume, len(sentences), self.keep_logits, neighbours)
        device = next(cast(Any, network).parameters()).device
        with Workers.of(groups_at_once(network)) as workers, self._computing_on(device):
            text = cast(Any, network).encode_text(sentences)
            slices = self._slices_to_compute(volume)
            steps = self._steps(network, sentences, along)
            for asked in self._passes(slices, steps, found):
                for chosen, part in self._batches(found, network, text, asked, workers):
                    found.take(chosen, asked[chosen], part)
            with torch.autocast(device.type, enabled=False):  # means are float32, of logits that are kept in float16
                found.agree(self.existence, workers)
        result = found.logits.movedim(0, self.spatial_dim + 1)[None]
        # with the input's metadata, which `Invertd` asks for
        result = convert_to_dst_type(result, inputs, dtype=result.dtype)[0]
        if isinstance(result, MetaTensor):
            near = torch.zeros(len(sentences)) if neighbours is None else neighbours.near.float()
            result.meta[AGREEMENT_KEY] = self.agreement.sigma_mm * near[None]
            result.meta[COARSE_KEY] = self.coarse.distance_mm * (torch.tensor([steps]) > 1).float()
        if found.scored and isinstance(result, MetaTensor):
            for name, logits in ((EXISTENCE_KEY, found.existence), (EXISTENCE_ALONE_KEY, found.alone)):
                if logits is not None:  # a batch of one: an engine takes it apart
                    result.meta[name] = self.existence.probability(logits).T[None].contiguous()
            result.meta[EXISTENCE_AXIS_KEY] = self.spatial_dim
        return result

    def computing(self, network: Any) -> Any:
        """The network that computes: the given one, or its hurried form."""
        # made again for another network, and for weights that were changed in place or moved
        key = (id(network), [(weight._version, weight.device) for weight in network.parameters()])
        if self._hurried is None or self._hurried[0] != key:
            self._hurried = (key, hurried(network, self.precision))
        return self._hurried[1]

    @contextmanager
    def _computing_on(self, device: torch.device) -> Iterator[None]:
        """PyTorch's modes of this thread, for inference."""
        with torch.no_grad(), torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            yield

    def _fitted(self, network: Any, size: tuple[int, int], spacing: tuple[float, float]) -> Any:
        """The network, on a canvas where the volume's field of view or the body's box asks for one."""
        fitted = on_canvas(network, size, spacing, self.pixel_size_mm, self.body_view, self._on_canvas)
        if isinstance(fitted, SeenThrough) and fitted is not self._on_canvas:
            self._on_canvas = fitted
            self._bytes_per_slice.clear()  # a network of before may be gone, and another one may have its id
        return fitted

    def computation(self, network: Any) -> str:
        """How masks are computed, for the notes beside them."""
        return computation_of(network, self.precision, self.autocast)

    def _steps(self, network: Any, sentences: Sequence[str], spacing_mm: float) -> list[int]:
        """Slices from one first look to the next, for each prompt."""
        inner = _without_canvas(network)
        gated = (self.existence.threshold or 0) >= IMPROBABLE  # what is skipped, the gate would have emptied
        if not gated or not isinstance(inner, HurriedNetwork) or not inner.network.scores_existence:
            return [1] * len(sentences)
        return self.coarse.steps(sentences, spacing_mm)

    def _passes(self, slices: Tensor, steps: Sequence[int], found: Found) -> Iterator[Tensor]:
        """Which prompt is asked for in which slice, bool (D, P): the first looks, then what they leave to search.

        Goes on only after the caller has put what the first pass found into `found`, from which the second follows.
        """
        depth, prompts = found.existence.shape
        looks = first_looks(slices, steps, depth)
        yield looks[:, None].expand(depth, prompts)
        if bool(looks[slices].all()):
            return
        scores = self.existence.probability(found.existence)
        more = after_looks(slices, looks, scores, steps)
        pairs, done = len(slices) * prompts, int(looks.sum()) * prompts + int(more.sum())
        logger.info("%d of %d pairs of slice and prompt are computed; first looks rule the others out", done, pairs)
        if bool(more.any()):
            yield more

    def _batches(
        self, found: Found, network: Any, text: Any, asked: Tensor, workers: Workers
    ) -> Iterator[tuple[Tensor, Part]]:
        """Pairs of the indices of some slices and what was found in them."""
        volume = found.volume
        device = next(network.parameters()).device
        wanted = asked.any(1).nonzero()[:, 0]
        if not len(wanted):
            return
        group = getattr(_without_canvas(network), "group", 0)

        def predict(chosen: Tensor) -> Part:
            return self._part(found, network, text, chosen, asked[chosen])

        key = (id(network), device, tuple(volume.voxels.shape[1:]), volume.blocks, len(text))
        # the first batch of a kind tells how much memory one takes, so how many may be computed at once
        cost = self._bytes_per_slice.get(key)  # kept here: another thread's volume may clear the table
        first = wanted[: group or 1] if cost is None else wanted[:0]
        if cost is None:
            measured = workers.results(lambda one: measure_peak(lambda: predict(one), device), [first])
            part, cost = next(measured)
            self._bytes_per_slice[key] = cost
            self._warn_if_large(cost, group)
            yield first, part
        fit = max(1, int(self.memory_gb * 1e9 / max(cost, 1)))  # slices or groups
        size = group or min(LARGEST_BATCH, fit)
        batches = [wanted[start : start + size] for start in range(len(first), len(wanted), size)]
        with SliceProgress(len(wanted), len(first), self.progress) as progress:
            for chosen, part in zip(batches, workers.results(predict, batches, fit), strict=True):
                yield chosen, part
                progress.done(len(chosen))

    def _part(self, found: Found, network: Any, text: Any, chosen: Tensor, asked: Tensor) -> Part:
        """What the network finds in some slices, in a worker's thread."""
        more: dict[str, Any] = {}
        # slices around it may yet raise a score, so masks are kept that the gate alone would not let through
        keeps = self.existence.keeps if found.neighbours is None else self.existence.may_keep
        if isinstance(_without_canvas(network), HurriedNetwork):
            more = {"asked": asked, "worth": keeps if self.existence.threshold else None}
        device = next(network.parameters()).device
        with self._computing_on(device):
            made = network.predict(self._stack(found.volume, chosen).to(device), text, seed=self.seed, **more)
            kept = asked if made.existence is None else keeps(made.existence).cpu() & asked
            return found.part(made.logits, kept, made.existence)

    def _slices_to_compute(self, volume: Slices) -> Tensor:
        """Indices of the slices that are not blank."""
        seen = volume.check_and_see()
        if not self.skip_blank:
            return torch.arange(len(volume))
        if not bool(seen.all()):
            near = seen.clone()
            for _ in range(self.num_adjacent):
                near[1:] |= seen[:-1]
                near[:-1] |= seen[1:]
            seen = near
            blank = int((~seen).sum())
            logger.info("%d of %d slices hold nothing above the window and get empty masks", blank, len(seen))
        return seen.nonzero()[:, 0]

    def _warn_if_large(self, cost: int, group: int) -> None:
        """Say that the first batch, of one slice or a group, took more bytes than it may."""
        if cost > self.memory_gb * 1e9:
            logger.warning(
                "%s needs %.2f GB, more than memory_gb = %.2f allows%s",
                f"a group of {group} slices" if group else "one slice",
                *(cost / 1e9, self.memory_gb, '; precision "plain" takes one slice at a time' if group else ""),
            )

    def _stack(self, volume: Slices, chosen: Tensor) -> Tensor:
        """Slices with their neighbours as channels, (B, 1 or 3, *volume.size) float32 in [0, 1]."""
        if self.num_adjacent == 0:
            return volume.windowed(chosen[:, None])
        offsets = range(-self.num_adjacent, self.num_adjacent + 1)
        near = torch.stack([(chosen + offset).clamp(0, len(volume) - 1) for offset in offsets], dim=1)
        return volume.windowed(near)


def groups_at_once(network: Any) -> int:
    """How many groups of slices are computed at once; 1 for a network that does not compute in groups.

    Args:
        network: that computes, see `PromptedSliceInferer.computing`.
    """
    in_groups = isinstance(_without_canvas(network), HurriedNetwork)
    return number_of_workers(next(network.parameters()).device) if in_groups else 1


def prompt_sentences(prompt: str | Prompt | Sequence[str | Prompt] | None, default: str | None = None) -> list[str]:
    """Checked sentences of whatever a caller gave as prompts.

    Args:
        prompt: one or several, as sentences or `Prompt`s; None takes `default`.
        default: the network's default prompt.

    Raises:
        InputError: nothing given, or a prompt that is empty or no text.
    """
    given = default if prompt is None else prompt
    if given is None:
        raise InputError("no prompt was given; name the object to segment, for example 'liver tumor in abdominal CT'.")
    listed = [given] if isinstance(given, str | Prompt) else list(given)
    if not listed:
        raise InputError("the list of prompts is empty; name at least one object to segment.")
    return [entry.text if isinstance(entry, Prompt) else check_prompt(entry) for entry in listed]


def _without_canvas(network: Any) -> Any:
    return network.network if isinstance(network, SeenThrough) else network


def _plain(tensor: Tensor) -> Tensor:
    """Without MONAI's metadata, whose bookkeeping costs time on every slice."""
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
