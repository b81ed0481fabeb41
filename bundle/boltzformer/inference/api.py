"""The Python API: a bundle's network on volumes, in a few lines.

segmenter = Segmenter.from_bundle("bundle")
result = segmenter.segment("scan.nii.gz", ["liver tumor in abdominal CT"], modality="CT")
mask = result.masks["liver_tumor_in_abdominal_ct"]
result.save("masks")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import nn

from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.prompts import Prompt, make_prompts
from boltzformer.error_report import find_input_error
from boltzformer.errors import InputError
from boltzformer.inference.inputs import case_name
from boltzformer.inference.masks import LOGITS_KEY, SaveMasks, combine_masks
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.weights import load_weights

BUNDLE_DIR = bundle_folder()


@dataclass(frozen=True)
class Segmentation:
    """What was found in one volume, on the volume's own grid.

    Attributes:
        prompts: what was asked for, in order.
        item: the postprocessed item: `image`, `pred` (P, X, Y, Z) uint8 and `logits` (P, X, Y, Z) float16.
        case: name for files.
    """

    prompts: list[Prompt]
    item: Mapping[str, Any]
    case: str

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Prompt's name -> mask of 0 and 1, (X, Y, Z) uint8."""
        return {prompt.name: self.item["pred"][i].cpu().numpy() for i, prompt in enumerate(self.prompts)}

    @property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Prompt's name -> probability in [0, 1], (X, Y, Z) float32."""
        logits = self.item[LOGITS_KEY]
        return {
            prompt.name: torch.sigmoid(logits[i].as_tensor().float()).cpu().numpy()
            for i, prompt in enumerate(self.prompts)
        }

    @property
    def label_map(self) -> np.ndarray:
        """One map of all prompts, (X, Y, Z) uint8: i + 1 where prompt i is the surest, else 0."""
        return combine_masks(self.item[LOGITS_KEY].as_tensor()).cpu().numpy()

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to RAS+ coordinates in mm, (4, 4)."""
        return np.asarray(self.item["pred"].affine, dtype=np.float64)

    def save(self, output_dir: str | os.PathLike[str], probability: bool = False) -> None:
        """Write masks, label map and JSON as `SaveMasks` does.

        Raises:
            InputError: if a file cannot be written.
        """
        SaveMasks(output_dir, self.prompts, probability).save({**self.item, "case": self.case}, self.item)


class Segmenter:
    """A network with the pre- and postprocessing of its bundle.

    Args:
        network: with its weights, on its device.
        preprocessing: item with `image` (path or array) -> item with `image` (1, X, Y, Z) in [0, 1].
        inferer: volume and prompts -> logits.
        postprocessing: item with `image` and `pred` -> item with masks and logits on the input's grid.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Compose, inferer: PromptedSliceInferer, postprocessing: Compose
    ) -> None:
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.postprocessing = postprocessing

    @classmethod
    def from_bundle(
        cls,
        bundle_dir: str | os.PathLike[str] = BUNDLE_DIR,
        weights: str | os.PathLike[str] | None = None,
        overlays: Sequence[str | os.PathLike[str]] = (),
        device: str | torch.device | None = None,
        **overrides: Any,
    ) -> Segmenter:
        """Build from `configs/inference.json`.

        Args:
            bundle_dir: the bundle's folder.
            weights: a checkpoint, `models/model.pt` of the bundle by default.
            overlays: config files on top, for example the network overlay that the weights were trained with; relative
                ones lie in the bundle.
            device: where to compute; CUDA where there is one by default.
            overrides: values of the config's keys, for example `window="lung"` or `memory_gb=8`.

        Raises:
            InputError: a file is missing, or the weights belong to another network.
        """
        root = Path(bundle_dir)
        files = [root / "configs" / "inference.json", *(root / overlay for overlay in overlays)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{missing[0]}: no such file; give the bundle's folder and overlays inside it.")
        parser = ConfigParser()
        parser.read_config([str(file) for file in files])
        parser["bundle_root"] = str(root)
        parser.update(overrides)
        if device is not None:
            parser["device"] = torch.device(device)
        # a Path, not text: the parser would evaluate some texts
        checkpoint = Path(weights) if weights is not None else root / "models" / "model.pt"
        parser["checkpoint"] = checkpoint
        network = parser.get_parsed_content("network")
        load_weights(network, checkpoint)
        preprocessing, inferer, postprocessing = (
            parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing")
        )
        return cls(network, preprocessing, inferer, postprocessing)

    def segment(
        self,
        image: str | os.PathLike[str] | np.ndarray,
        prompts: str | Prompt | Sequence[str | Prompt],
        affine: np.ndarray | None = None,
        modality: str = "",
        body_part: str = "",
    ) -> Segmentation:
        """Segment a volume.

        Args:
            image: a NIfTI file, a folder with a DICOM series, or an array (X, Y, Z) in the modality's units (HU in CT).
            prompts: one or several, as sentences or as `Prompt`s with names for the results.
            affine: of an array, (4, 4), voxel index to RAS+ in mm; without one the axes are taken as RAS.
            modality: "CT" or "MR", for the intensity window "auto".
            body_part: for the window "auto".

        Returns:
            masks on the image's own grid.

        Raises:
            InputError: a file or prompt that cannot be used; the message names it and the cure.
        """
        wanted = _as_prompts(prompts)
        is_array = isinstance(image, np.ndarray)
        item: dict[str, Any] = {
            "image": image if is_array else str(image),
            "modality": modality,
            "body_part": body_part,
        }
        if affine is not None:
            item["affine"] = np.asarray(affine, dtype=np.float64)
        try:
            item = dict(self.preprocessing(item))
        except RuntimeError as error:  # MONAI's Compose wraps whatever a transform raises
            raise find_input_error(error) or error from None
        logits = self.inferer(item["image"][None], self.network, prompts=wanted)
        item["pred"] = logits[0]
        case = "volume" if isinstance(image, np.ndarray) else case_name(Path(image))
        return Segmentation(wanted, dict(self.postprocessing(item)), case)


def _as_prompts(prompts: str | Prompt | Sequence[str | Prompt]) -> list[Prompt]:
    listed = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
    return make_prompts([(p.text, p.name) if isinstance(p, Prompt) else (p, None) for p in listed])
