"""The Python API: a bundle's network on volumes, in a few lines.

segmenter = Segmenter.from_bundle("bundle")
result = segmenter.segment("scan.nii.gz", ["liver tumor in abdominal CT"], modality="CT")
mask = result.masks["liver_tumor_in_abdominal_ct"]
result.save("masks")
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import nn

from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.prompts import Prompt, make_prompts
from boltzformer.error_report import find_input_error, reason_of
from boltzformer.errors import InputError
from boltzformer.inference.known_terms import KnownTerms, known_terms_of
from boltzformer.inference.load import LoadVolumed
from boltzformer.inference.masks import check_prompt_count
from boltzformer.inference.segmentation import Segmentation
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.settings import check_keys
from boltzformer.volumes.names import case_name
from boltzformer.volumes.sources import has_affine, open_volume
from boltzformer.volumes.spacing import SPACING_KNOWN
from boltzformer.weights import load_weights

BUNDLE_DIR = bundle_folder()


class Segmenter:
    """A network with the pre- and postprocessing of its bundle.

    Args:
        network: with its weights, on its device.
        preprocessing: item with `image` (path or array) -> item with `image` (1, X, Y, Z) in [0, 1].
        inferer: volume and prompts -> logits.
        postprocessing: item with `image` and `pred` -> item with masks and logits on the input's grid.
        known: what the network was trained to find; None where its checkpoint does not say.
        made_with: facts for the notes beside masks, such as the weights' checksum.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Compose,
        inferer: PromptedSliceInferer,
        postprocessing: Compose,
        known: KnownTerms | None = None,
        made_with: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.known = known
        self.made_with = dict(made_with or {})

    @classmethod
    def load(
        cls, weights: str | os.PathLike[str] | None = None, device: str | torch.device | None = None, **settings: Any
    ) -> Segmenter:
        """The shipped network, ready to use; it stays in memory.

        Args:
            weights: another checkpoint; the bundle's `models/model.pt` by default.
            device: where to compute; CUDA where there is one by default.
            settings: see `from_bundle`.

        Raises:
            InputError: there are no weights, or they cannot be used.
        """
        return cls.from_bundle(BUNDLE_DIR, weights, device=device, **settings)

    @classmethod
    def from_bundle(
        cls,
        bundle_dir: str | os.PathLike[str] = BUNDLE_DIR,
        weights: str | os.PathLike[str] | None = None,
        overlays: Sequence[str | os.PathLike[str]] = (),
        device: str | torch.device | None = None,
        progress: bool = True,
        **overrides: Any,
    ) -> Segmenter:
        """Build from `configs/inference.json`.

        Args:
            bundle_dir: the bundle's folder.
            weights: a checkpoint, `models/model.pt` of the bundle by default.
            overlays: config files on top, for example the network overlay that the weights were trained with; relative
                ones lie in the bundle.
            device: where to compute; CUDA where there is one by default.
            progress: draw a bar of the slices on a terminal; a line each half minute elsewhere.
            overrides: values of the config's keys, for example `window="lung"` or `memory_gb=8`. `keep_logits=False`
                saves memory where no probabilities are asked for.

        Raises:
            InputError: a file is missing, a key is not known (the nearest is named), or the weights belong to another
                network.
        """
        root = Path(bundle_dir)
        files = [root / "configs" / "inference.json", *(root / overlay for overlay in overlays)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{missing[0]}: no such file; give the bundle's folder and overlays inside it.")
        for name, value in overrides.items():
            _check_plain(value, name)
        parser = ConfigParser()
        parser.read_config([str(file) for file in files])
        check_keys(parser.get(), overrides)
        parser["bundle_root"] = str(root)
        parser.update({"keep_logits": True, **overrides})
        if device is not None:
            parser["device"] = torch.device(device)
        # a Path, not text: the parser would evaluate some texts
        checkpoint = Path(weights) if weights is not None else root / "models" / "model.pt"
        parser["checkpoint"] = checkpoint
        try:
            network = parser.get_parsed_content("network")
            load_weights(network, checkpoint)
            preprocessing, inferer, postprocessing = (
                parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing")
            )
            made_with = _facts(parser)
        except RuntimeError as error:  # MONAI wraps whatever a component raises
            raise find_input_error(error) or error from None
        inferer.progress = progress
        known = known_terms_of(parser.get_parsed_content("recipe"), network)
        return cls(network, preprocessing, inferer, postprocessing, known, made_with)

    def segment(
        self,
        image: Any,
        prompts: str | Prompt | Sequence[str | Prompt],
        affine: np.ndarray | None = None,
        modality: str | None = "",
        body_part: str = "",
        window: str | Sequence[float] | None = None,
        spacing_known: bool = True,
    ) -> Segmentation:
        """Segment a volume.

        Args:
            image: a NIfTI, NRRD or MetaImage file, a folder with a DICOM series, an array or tensor (X, Y, Z) in the
                modality's units (HU in CT), a MetaTensor, an image of nibabel or SimpleITK, or a `Volume`.
            prompts: one or several, as sentences or as `Prompt`s with names for the results.
            affine: of an array or plain tensor, (4, 4), voxel index to RAS+ in mm; without one the axes are taken as
                RAS.
            modality: "CT", "MR" or another spelling of them, for the intensity window "auto".
            body_part: for the window "auto".
            window: of this volume, such as [0, 255] for 8-bit images; where the segmenter's own is "auto".
            spacing_known: False where the voxel size in the file means nothing; an array without `affine` has none.

        Returns:
            masks on the image's own grid.

        Raises:
            InputError: a file or prompt that cannot be used; the message names it and the cure.
        """
        wanted = _as_prompts(prompts)
        volume = open_volume(image, affine, modality, body_part, self._uneven_spacing)
        known = spacing_known and volume.spacing_known and (affine is not None or has_affine(image))
        volume = replace(volume, spacing_known=known)
        item: dict[str, Any] = {"image": volume, "modality": volume.modality, "body_part": volume.body_part}
        item |= {"window": window, SPACING_KNOWN: known}
        try:
            item = dict(self.preprocessing(item))
        except RuntimeError as error:  # MONAI's Compose wraps whatever a transform raises
            raise find_input_error(error) or InputError(f"{volume.name}: {reason_of(error)}") from error
        item["pred"] = self.inferer(item["image"][None], self.network, prompts=wanted)[0]
        case = "volume" if volume.path is None else case_name(volume.path)
        near = None if self.known is None else self.known.tell(wanted)
        done = self.finish(item)
        made_with = dict(self.made_with)
        if window is not None:
            made_with["window"] = window if isinstance(window, str) else list(window)
        computation = self.inferer.computation(self.network)
        return Segmentation(wanted, done, case, volume, image, near, computation, made_with)

    def finish(self, item: dict[str, Any]) -> dict[str, Any]:
        """Postprocess what was found in a volume, with as little of it in memory at once as can be.

        Args:
            item: `image` as it was preprocessed and `pred`, logits (P, X, Y, Z); both are taken out of it.

        Returns:
            the postprocessed item; its `image` has no voxels left, which nothing asks for any more.
        """
        image = item.pop("image")
        emptied = MetaTensor(torch.empty(0), meta=image.meta, applied_operations=image.applied_operations)
        rest = {**item, "image": emptied}
        del image, item["pred"]
        for step in range(len(self.postprocessing.transforms)):
            rest = dict(self.postprocessing(rest, start=step, end=step + 1))
        return rest

    @property
    def _uneven_spacing(self) -> str:
        loaders = (step for step in self.preprocessing.transforms if isinstance(step, LoadVolumed))
        return next((loader.uneven_spacing for loader in loaders), "refuse")


def _facts(parser: ConfigParser) -> dict[str, Any]:
    """What the config writes beside masks, but for what differs from volume to volume."""
    savers = (number for number, one in enumerate(parser["handlers"]) if one["_target_"].endswith(".SaveMasks"))
    place = f"handlers#{next(savers)}#about"
    keys = [key for key in parser[place] if key not in ("computation", "nearest_known")]
    return {key: parser.get_parsed_content(f"{place}#{key}") for key in keys}


def _as_prompts(prompts: str | Prompt | Sequence[str | Prompt]) -> list[Prompt]:
    if isinstance(prompts, Mapping) or not isinstance(prompts, str | Prompt | Iterable):  # not a mapping's keys alone
        raise InputError(f"prompts: expected text or a list of texts, found {prompts!r}.")
    listed = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
    check_prompt_count(len(listed))
    return make_prompts([(p.text, p.name) if isinstance(p, Prompt) else (p, None) for p in listed])


def _check_plain(value: Any, name: str) -> None:
    """Refuse text that the config parser would evaluate: an option is a value, not a program."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_plain(entry, f"{name}#{key}")
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_plain(entry, name)
    elif isinstance(value, str) and (value.lstrip().startswith("$") or "@" in value or "%" in value):
        raise InputError(f"{name}: {value!r} would be evaluated by the config ($, @, %); give the value itself.")
