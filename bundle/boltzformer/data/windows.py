"""Intensity windows: Hounsfield units or MR intensities to [0, 1]."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from boltzformer.errors import InputError
from boltzformer.volumes.modality import normal_modality

logger = logging.getLogger(__name__)

WINDOW_LIMITS = "window_limits"
"""Key of a volume's metadata: (low, high) of a window that is still to be applied."""

# Lower and upper limit in Hounsfield units, from the window width W and level L that radiologists read with.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),  # W 1500, L -600
    "soft_tissue": (-160.0, 240.0),  # W 400, L 40
    "bone": (-500.0, 1300.0),  # W 1800, L 400
    "brain": (0.0, 80.0),  # W 80, L 40
    "liver": (-45.0, 105.0),  # W 150, L 30
}
# Window of `auto` for a CT of a body part; any other part takes soft tissue. A chest holds lungs, heart, vessels and
# nodes, of which only the first need the lung window: "chest" and "thorax" take soft tissue, "lung" takes lung.
_CT_BY_BODY_PART = {
    **dict.fromkeys(("lung", "lungs", "pulmonary"), "lung"),
    **dict.fromkeys(("brain", "cerebral", "cerebrum"), "brain"),
    **dict.fromkeys(("liver", "hepatic"), "liver"),
    **dict.fromkeys(("spine", "vertebra", "vertebrae", "bone", "skeleton"), "bone"),
    **dict.fromkeys(("cervical spine", "thoracic spine", "lumbar spine", "cspine", "tspine", "lspine"), "bone"),
}
_LUNG_NEARBY = {"chest", "thorax", "thoracic"}
AIR_BELOW_HU = -200.0
MR_PERCENTILES = (0.5, 99.5)
QUANTILE_LEVELS = np.linspace(0.0, 1.0, 1001)


def intensity_quantiles(volume: np.ndarray | torch.Tensor) -> np.ndarray:
    """Quantiles of a volume's foreground, the voxels above its minimum (MR background is one constant).

    Integers are counted in a histogram and floats sorted, so the result does not depend on the volume's
    orientation.

    Args:
        volume: finite intensities, any shape.

    Returns:
        (1001,) float64, the quantiles 0, 0.001 ... 1; a constant volume gives its value throughout.
    """
    array = np.asarray(volume.detach().cpu() if isinstance(volume, torch.Tensor) else volume)
    flat = array.reshape(-1)
    low = flat.min()
    if array.dtype.kind in "iu" and int(flat.max()) - int(low) < 1 << 17:
        counts = np.zeros(int(flat.max()) - int(low) + 1, dtype=np.int64)
        for start in range(0, flat.size, 1 << 22):
            counts += np.bincount(flat[start : start + (1 << 22)].astype(np.int64) - int(low), minlength=counts.size)
        counts[0] = 0
        return _histogram_quantiles(counts, int(low))
    foreground = flat[flat > low]
    if not foreground.size:
        return np.full(QUANTILE_LEVELS.shape, float(low))
    foreground.sort()
    positions = QUANTILE_LEVELS * (foreground.size - 1)
    return foreground[np.rint(positions).astype(np.int64)].astype(np.float64)


def _histogram_quantiles(counts: np.ndarray, low: int) -> np.ndarray:
    """Quantiles (nearest rank) of integers given how often `low`, `low + 1`, ... occur."""
    total = int(counts.sum())
    if not total:
        return np.full(QUANTILE_LEVELS.shape, float(low))
    ranks = np.rint(QUANTILE_LEVELS * (total - 1))
    return np.searchsorted(np.cumsum(counts), ranks, side="right").astype(np.float64) + low


class IntensityWindow:
    """Map intensities linearly to [0, 1] and clip.

    Args:
        window: one of
            - a name: "lung", "soft_tissue" (or "soft tissue"), "bone", "brain", "liver" in Hounsfield units;
            - "percentiles": the volume's own foreground percentiles, for MR;
            - two numbers (low, high) in the volume's units;
            - "auto": percentiles for MR and other non-CT volumes; for CT the window of the body part (lung,
              brain, liver, spine, and other words for them), otherwise soft tissue; so also for "chest".
        percentiles: the pair of percentiles, each in [0, 100], for "percentiles" and "auto".

    Raises:
        InputError: an unknown name, or limits that are not two increasing finite numbers.
    """

    def __init__(self, window: str | Sequence[float] = "auto", percentiles: Sequence[float] = MR_PERCENTILES) -> None:
        self.percentiles = _pair(percentiles, "percentiles")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise InputError(f"percentiles: expected two increasing numbers in [0, 100], found {percentiles}.")
        self.window: str | tuple[float, float]
        if isinstance(window, str):
            self.window = window.strip().lower().replace(" ", "_").replace("-", "_")
            if self.window not in {"auto", "percentiles", *CT_WINDOWS}:
                names = ", ".join(["auto", "percentiles", *CT_WINDOWS])
                raise InputError(f"window '{window}' is not known; use one of {names}, or two numbers [low, high].")
        else:
            self.window = _pair(window, "window")

    def __repr__(self) -> str:
        return f"IntensityWindow({self.window!r}, percentiles={self.percentiles!r})"

    def resolve(self, modality: str = "", body_part: str = "") -> str | tuple[float, float]:
        """Give "percentiles" or the two limits that stand for this window on a modality and body part.

        Args:
            modality: "CT", "MR" or another; needed by "auto" only.
            body_part: as in the dataset, for example "head and neck".

        Returns:
            "percentiles", or (low, high).

        Raises:
            InputError: the window is "auto" and the modality is not known.
        """
        if not isinstance(self.window, str):
            return self.window
        if self.window == "percentiles":
            return "percentiles"
        if self.window in CT_WINDOWS:
            return CT_WINDOWS[self.window]
        if not normal_modality(modality):
            raise InputError("window 'auto' needs the modality; set `modality` to CT or MR, or name a window.")
        if normal_modality(modality) != "CT":
            return "percentiles"
        return CT_WINDOWS[_CT_BY_BODY_PART.get(_plain_words(body_part), "soft_tissue")]

    def limits(
        self,
        modality: str = "",
        body_part: str = "",
        volume: np.ndarray | torch.Tensor | None = None,
        quantiles: np.ndarray | None = None,
    ) -> tuple[float, float]:
        """Find the two intensities that become 0 and 1.

        Compute them once a volume and pass them to `apply_window`.

        Args:
            modality: see `resolve`.
            body_part: see `resolve`.
            volume: the whole volume, read only where the window is by percentiles.
            quantiles: result of `intensity_quantiles`, in place of `volume`.

        Returns:
            (low, high), low <= high.

        Raises:
            InputError: see `resolve`.
            ValueError: a window by percentiles with neither volume nor quantiles.
        """
        resolved = self.resolve(modality, body_part)
        if not isinstance(resolved, str):
            return resolved
        if quantiles is None:
            if volume is None:
                raise ValueError("a window by percentiles needs the volume or its quantiles")
            quantiles = intensity_quantiles(volume)
        low, high = np.interp(np.asarray(self.percentiles) / 100, QUANTILE_LEVELS, quantiles)
        return float(low), float(high)

    def __call__(self, image: Any, modality: str = "", body_part: str = "") -> Any:
        """Window a whole volume.

        Args:
            image: numpy array or tensor of intensities, any shape.
            modality: see `resolve`.
            body_part: see `resolve`.

        Returns:
            float32 in [0, 1] of the same kind and shape; a constant volume under percentiles gives 0.

        Raises:
            InputError: see `resolve`.
        """
        return apply_window(image, *self.limits(modality, body_part, volume=image))


def apply_window(image: Any, low: float, high: float) -> Any:
    """Compute clip((image − low) / (high − low), 0, 1) in float32, with no temporary beyond the result.

    Args:
        image: numpy array or tensor, any shape and number type; not changed.
        low: intensity that becomes 0.
        high: intensity that becomes 1; where it equals `low`, everything becomes 0.

    Returns:
        float32 of the same kind (array, tensor, MetaTensor with its metadata) and shape.
    """
    scale = 1.0 / (high - low) if high > low else 0.0
    if isinstance(image, torch.Tensor):
        source = image.as_tensor() if hasattr(image, "as_tensor") else image
        result = source.to(torch.float32, copy=True).sub_(low).mul_(scale).clamp_(0.0, 1.0)
        return (
            result
            if result.__class__ is image.__class__
            else convert_to_dst_type(result, image, dtype=torch.float32)[0]
        )
    array = np.subtract(image, np.float32(low), dtype=np.float32)
    array *= np.float32(scale)
    return np.clip(array, 0.0, 1.0, out=array)


class IntensityWindowd(MapTransform):
    """Dictionary transform that windows whole volumes to float32 in [0, 1], and logs the window that was taken.

    Modality and body part come from the arguments, else from the item, else from the volume's own metadata (DICOM).
    With "auto", an item's own `window` goes first, as in training.

    Deferred, the voxels stay as they are, in their own type, and whoever takes slices of the volume windows them
    (`limits_of`, `apply_window`): a volume of integers then needs no copy in float32, two or four times as large.

    Args:
        keys: volumes to window.
        window: see `IntensityWindow`.
        modality: of all volumes; may be empty.
        body_part: of all volumes; may be empty.
        percentiles: see `IntensityWindow`.
        allow_missing_keys: see `monai.transforms.MapTransform`.
        deferred: leave the voxels and write the limits into the volume's metadata, under `WINDOW_LIMITS`.
        default_modality: taken, with a warning, where nothing says a modality and the window needs one; empty refuses.
        trained_modalities: those that the network has seen; a volume of another one brings a warning. Empty: not known.

    Raises:
        InputError: see `IntensityWindow`; on a call, "auto" with no modality.
    """

    def __init__(
        self,
        keys: KeysCollection,
        window: str | Sequence[float] = "auto",
        modality: str = "",
        body_part: str = "",
        percentiles: Sequence[float] = MR_PERCENTILES,
        allow_missing_keys: bool = False,
        default_modality: str = "",
        deferred: bool = False,
        trained_modalities: Sequence[str] = (),
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.trained_modalities = {normal_modality(one) for one in trained_modalities}
        self.deferred = deferred
        self.window = IntensityWindow(window, percentiles)
        self.modality = normal_modality(modality)
        self.default_modality = normal_modality(default_modality)
        self.body_part = body_part

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Window the volumes of one item; the other entries pass unchanged."""
        item = dict(data)
        for key in self.key_iterator(item):
            meta = getattr(item[key], "meta", {})
            modality = self.modality or normal_modality(item.get("modality") or meta.get("modality"))
            part = self.body_part or str(item.get("body_part") or meta.get("body_part") or "")
            name = str(meta.get("filename_or_obj", key))
            window = self._window_of(item)
            if not modality and self.default_modality and window.window == "auto":
                modality = self.default_modality
                logger.warning("%s: says no modality, taken as %s, which the network was trained on", name, modality)
            if modality and self.trained_modalities and modality not in self.trained_modalities:
                seen = " and ".join(sorted(self.trained_modalities))
                logger.warning(
                    "%s: is %s, but the network was trained on %s alone: expect no useful mask", name, modality, seen
                )
            low, high = window.limits(modality, part, volume=item[key])
            self._tell(item[key], name, modality, part, (low, high), window)
            item[key] = _noted(item[key], low, high) if self.deferred else apply_window(item[key], low, high)
        return item

    def _window_of(self, item: Mapping[Hashable, Any]) -> IntensityWindow:
        own = item.get("window")
        return IntensityWindow(own, self.window.percentiles) if own and self.window.window == "auto" else self.window

    def _tell(
        self, image: Any, name: str, modality: str, part: str, limits: tuple[float, float], window: IntensityWindow
    ) -> None:
        known = ", ".join(word for word in (modality, part) if word) or "modality not known"
        logger.info("%s: window %s, %g to %g (%s)", name, window.window, *limits, known)
        if modality != "CT" or window is not self.window or not isinstance(window.window, str):
            return  # two numbers are meant as they are
        if window.window == "auto" and _plain_words(part) in _LUNG_NEARBY:
            logger.warning("%s: %r takes soft tissue; set `window` to lung for what lies inside the lungs", name, part)
        lowest = float(np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image).min())  # torch's is slow
        if lowest >= AIR_BELOW_HU:
            logger.warning(
                "%s: the CT has no value below %g (its lowest is %g), so it may not be in Hounsfield units; give its "
                "own `window` [low, high] then",
                *(name, AIR_BELOW_HU, lowest),
            )


def _noted(image: Any, low: float, high: float) -> MetaTensor:
    """The same voxels with the limits in their metadata."""
    plain: Any = convert_to_tensor(image, track_meta=True)
    meta = {**plain.meta, WINDOW_LIMITS: (low, high)}
    return MetaTensor(plain.as_tensor(), meta=meta, applied_operations=plain.applied_operations)


def limits_of(image: Any) -> tuple[float, float] | None:
    """The limits that a deferred `IntensityWindowd` left, also after MONAI's collating; None where there are none."""
    limits = getattr(image, "meta", {}).get(WINDOW_LIMITS)
    if limits is None:
        return None
    low, high = (float(torch.as_tensor(limit).flatten()[0]) for limit in limits)
    return low, high


def _plain_words(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def _pair(numbers: Sequence[float], what: str) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in numbers)
    except (TypeError, ValueError):
        raise InputError(f"{what}: expected two numbers [low, high], found {numbers!r}.") from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"{what}: expected two increasing numbers [low, high], found {numbers!r}.")
    return low, high
