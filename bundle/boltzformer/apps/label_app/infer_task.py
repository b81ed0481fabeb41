"""Inference as MONAI Label calls it: an image and a request in, a label map and the names of its values out."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import Writer

from boltzformer.apps.findings import measure
from boltzformer.apps.heard import heard
from boltzformer.apps.label_app.requests import FREE_TEXT, KNOWN, InferRequest, label_names, read_request
from boltzformer.apps.label_app.requests import suggested_prompts as suggest
from boltzformer.data.prompts import Prompt
from boltzformer.inference.api import Segmentation, Segmenter
from boltzformer.volumes.names import volume_suffix
from boltzformer.volumes.sources import open_volume
from boltzformer.volumes.write import Grid

logger = logging.getLogger(__name__)


class PromptTask(InferTask):
    """Segments what the request's prompts name.

    Args:
        shipped: the weights to begin with.
        trained: where training writes; taken where it is there, and read again when it changes.
        description: shown by viewers.
        device: where to compute; CUDA where there is one by default.
    """

    def __init__(self, shipped: Path, trained: Path, description: str, device: torch.device | None = None) -> None:
        self._shipped, self._trained, self._device = shipped, trained, device
        self._loaded: tuple[tuple[Path, int], Segmenter] | None = None
        self._lock = threading.Lock()
        self.prompts: list[Prompt] = suggest(self.weights)
        super().__init__(InferType.SEGMENTATION, self._known_labels(), 3, description)

    @property
    def weights(self) -> Path:
        """The weights that the next request is answered with."""
        return self._trained if self._trained.is_file() else self._shipped

    def is_valid(self) -> bool:
        """Whether there are weights."""
        return self.weights.is_file()

    def info(self) -> dict[str, Any]:
        """What a viewer shows; after a training, with its objects."""
        self.prompts = suggest(self.weights)
        self.labels = self._known_labels()
        return dict(super().info())

    def config(self) -> dict[str, Any]:
        """The options of a request: text fields, and a list to choose from."""
        known = ["", *(prompt.text for prompt in self.prompts)]
        return {FREE_TEXT: "", KNOWN: known, "modality": "", "body_part": ""}

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[str, dict[str, Any]]:
        """Segment one image.

        Args:
            request: `image` (a path) and what `read_request` reads.
            callbacks: of MONAI Label's pipelines; not used.

        Returns:
            the label map's file, which MONAI Label sends and removes; and what is told about it.

        Raises:
            InputError: an image or a request that cannot be used.
        """
        began = time.perf_counter()
        wanted = read_request(request, self.prompts)
        with heard() as warned:  # the viewer does not show the server's log
            volume = open_volume(str(request["image"]), modality=wanted.modality, body_part=wanted.body_part)
            with self._lock:  # one network, one request at a time
                result = self._segmenter().segment(volume, list(wanted.prompts))
        grid = Grid.of_volume(volume)
        file = _write(result, grid, wanted)
        measured = measure(result.mask_array, wanted.prompts, grid, result.existence, result.nearest_known)
        findings = [one.as_dict() for one in measured]
        told = {
            "label_names": label_names(result.label_map, wanted.prompts),
            "findings": findings,
            "not_found": [one["prompt"] for one in findings if not one["found"]],
            "warnings": list(warned),
            "latencies": {"total": round(time.perf_counter() - began, 2)},
            "centroids": {},  # OHIF asks for the key
        }
        return str(file), told

    def _segmenter(self) -> Segmenter:
        state = (self.weights, self.weights.stat().st_mtime_ns)
        if self._loaded is None or self._loaded[0] != state:
            logger.info("weights: %s", state[0])
            segmenter = Segmenter.load(state[0], self._device, progress=False, keep_logits=False)
            self._loaded = (state, segmenter)
        return self._loaded[1]

    def _known_labels(self) -> dict[str, int]:
        return {prompt.text: value for value, prompt in enumerate(self.prompts, start=1)}


def _write(result: Segmentation, grid: Grid, wanted: InferRequest) -> Path:
    """The label map as a file on the image's own grid."""
    label_map = result.label_map
    extension = wanted.extension or volume_suffix(grid.name) or ".nii.gz"
    if extension == ".nii.gz" and wanted.dtype == "uint8":  # keeps the header of a NIfTI image bit by bit
        handle, name = tempfile.mkstemp(suffix=extension)
        os.close(handle)
        return grid.write(label_map, Path(name), replace_foreign=True)  # the empty file is no result
    data = {
        "image_path": grid.name,
        "pred": np.ascontiguousarray(label_map),
        "pred_meta_dict": {"affine": grid.affine},
        "result_extension": extension,
        "result_dtype": wanted.dtype,
        "result_compress": wanted.compress,
    }
    return Path(Writer(label="pred", json="result")(data)[0])
