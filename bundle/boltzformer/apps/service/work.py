"""One request: read, segment, measure, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from boltzformer.apps.heard import heard
from boltzformer.apps.results import as_segmented
from boltzformer.apps.service.jobs import Job
from boltzformer.apps.service.limits import Limits
from boltzformer.apps.service.reading import read_volume
from boltzformer.apps.service.uploads import CASE
from boltzformer.data.windows import IntensityWindow
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmentation, Segmenter
from boltzformer.inference.formats import save_as
from boltzformer.volumes.grids import stored_axis
from boltzformer.volumes.segmented import Algorithm, SegmentedVolume, color_of
from boltzformer.volumes.volume import Volume
from boltzformer.volumes.write import Grid

PLANES = ("sagittal", "coronal", "axial")


class Work:
    """What the worker does with each job.

    Args:
        segmenter: the one network in memory; used by one thread only.
        algorithm: what makes the masks.
        limits: of a volume.
    """

    def __init__(self, segmenter: Segmenter, algorithm: Algorithm, limits: Limits) -> None:
        self.segmenter, self.algorithm, self.limits = segmenter, algorithm, limits

    def __call__(self, job: Job) -> None:
        """Do a job.

        Raises:
            InputError: the volume or a prompt cannot be used, or the job ran out of time.
        """
        with heard() as warned:  # the client does not see the log
            result = self._segment(job)
        volume, axis = result.source, self.segmenter.inferer.spatial_dim
        made, findings = as_segmented(result, CASE, self.algorithm)
        notes = [job.upload.for_client(message) for message in warned] + self._write(made, job)
        existence, step = result.existence, -1 if stored_axis(volume.affine, axis)[1] else 1  # as `areas` are listed
        job.told = {
            **job.told,
            "findings": [
                {
                    **finding.as_dict(),
                    "color": "#{:02x}{:02x}{:02x}".format(*color_of(index)),
                    "square_millimetres": areas(made.masks[index], volume.affine, axis),
                    "existence": None if existence is None else [round(float(p), 4) for p in existence[index][::step]],
                }
                for index, finding in enumerate(findings)
            ],
            "notes": notes,
        }

    def _segment(self, job: Job) -> Segmentation:
        """Read the volume, tell of it, and segment it."""
        volume = read_volume(job.upload.volume, job.modality, job.body_part, self.limits)
        job.check()
        axis = self.segmenter.inferer.spatial_dim
        if volume.series is not None:  # a page shows NIfTI
            path = Grid.of_volume(volume).write(_plain(volume.voxels), job.folder / "image.nii.gz")
            job.files = {path.name: path}
        job.told = describe(volume, axis)

        def one_more(slices: int) -> None:
            job.check()
            job.slices_done = min(job.slices_done + slices, job.told["slices"])  # the last group is filled up

        with each_slice(self.segmenter.network, one_more):
            return self.segmenter.segment(volume, job.prompts)

    def _write(self, made: SegmentedVolume, job: Job) -> list[str]:
        """Every format that fits; gives a line for each that does not."""
        folder = job.folder / "results"
        formats = ["nifti", "seg.nrrd", "json", *(["dicom-seg"] if made.series else [])]
        notes = []
        for name in formats:
            if name == "dicom-seg" and find_spec("highdicom") is None:
                notes.append("DICOM SEG is not installed on this service (extra `dicom`).")
                continue
            try:
                written = save_as(made, name, folder)
            except InputError as error:  # the masks are there all the same
                notes.append(f"{name}: {job.upload.for_client(str(error))}")
                continue
            job.files = {**job.files, **{path.relative_to(folder).as_posix(): path for path in written}}
        return notes


@contextmanager
def each_slice(network: Any, call: Callable[[int], None]) -> Iterator[None]:
    """Call a function before a network encodes slices; what it raises ends the segmentation.

    The image encoder's hooks are entered however the inferer groups the slices.

    Args:
        network: a BoltzFormer.
        call: gets the number of slices.
    """
    handle = network.image_encoder.register_forward_pre_hook(lambda module, inputs: call(len(inputs[0])))
    try:
        yield
    finally:
        handle.remove()


def describe(volume: Volume, axis: int) -> dict[str, Any]:
    """What a client needs to show a volume.

    Args:
        volume: as read.
        axis: of the slices, in RAS orientation.
    """
    known = volume.modality.upper() in ("CT", "MR")
    window = IntensityWindow("auto" if known else "percentiles")
    return {
        "shape": [int(n) for n in volume.voxels.shape],
        "spacing": [round(size, 4) for size in volume.spacing],
        "modality": volume.modality,
        "window": [float(limit) for limit in window.limits(volume.modality, volume.body_part, volume.voxels)],
        "plane": PLANES[axis],
        "slices": int(volume.voxels.shape[stored_axis(volume.affine, axis)[0]]),
    }


def areas(mask: np.ndarray, affine: np.ndarray, axis: int) -> list[float]:
    """Marked area of each slice in mm², from left to right, back to front or bottom to top.

    Args:
        mask: (X, Y, Z) of 0 and 1.
        affine: (4, 4), voxel index to RAS+ in mm.
        axis: of the slices, in RAS orientation.
    """
    stored, turned = stored_axis(affine, axis)
    others = [k for k in range(3) if k != stored]
    pixel = float(np.linalg.norm(np.cross(affine[:3, others[0]], affine[:3, others[1]])))
    counts = mask.sum(axis=tuple(others), dtype=np.int64)
    return [round(float(count) * pixel, 3) for count in (counts[::-1] if turned else counts)]


def _plain(voxels: np.ndarray) -> np.ndarray:
    """In a type that every viewer reads."""
    return voxels if voxels.dtype in (np.int16, np.uint8) else voxels.astype(np.float32)
