"""Reading what a stranger sent: in a process of its own, with bounded memory and time.

A damaged or hostile file may make a decoder crash, fill the memory or run for hours; the service lives on.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from pydicom.filereader import read_file_meta_info

import boltzformer
from boltzformer.apps.heard import heard
from boltzformer.apps.service.limits import Limits
from boltzformer.errors import InputError
from boltzformer.volumes.checks import check_volume
from boltzformer.volumes.dicom import UnevenSlices
from boltzformer.volumes.dicom_headers import survey_folder
from boltzformer.volumes.paths import checked, open_path
from boltzformer.volumes.volume import Volume

DEFLATED = "1.2.840.10008.1.2.1.99"
BYTES_PER_VOXEL = 32
"""What a reader may use for each voxel that is allowed: decoded, converted and checked."""
SPARE_BYTES = 1 << 30
_NAME = "the upload"
logger = logging.getLogger("boltzformer.volumes")  # its messages, which quote files: not the service's own lines


def read_volume(path: Path, modality: str, body_part: str, limits: Limits) -> Volume:
    """Read and check an uploaded volume; what its reader warned of is warned of here.

    Args:
        path: a NIfTI file or the folder of a DICOM series.
        modality: see `boltzformer.volumes.paths.checked`.
        body_part: see `boltzformer.volumes.paths.checked`.
        limits: voxels and seconds.

    Returns:
        the volume.

    Raises:
        InputError: it cannot be used, is too large, or takes too long to read.
    """
    answer = path.parent / "read"
    voxels = answer.with_suffix(".npy")
    asked = json.dumps([str(path), str(answer), modality, body_part, asdict(limits)])
    places = [str(Path(boltzformer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    try:
        subprocess.run(
            [sys.executable, "-m", __name__],
            input=asked.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # decoders' warnings quote what a file says of its patient
            env=environment,
            timeout=limits.read_seconds,
            check=False,
        )
        if not answer.exists():  # it crashed, or was killed for its memory
            raise InputError(f"{_NAME}: is damaged in a way that stops its reader; export it again.")
        found, warned = pickle.loads(answer.read_bytes())
        for message in warned:
            logger.warning("%s", message)
        if isinstance(found, str):
            raise InputError(found)
        return replace(found, voxels=np.load(voxels))
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{_NAME}: reading it takes longer than {limits.read_seconds:g} s; give a smaller volume."
        ) from None
    finally:
        answer.unlink(missing_ok=True)
        voxels.unlink(missing_ok=True)


def main() -> None:
    """Runs in the reader: leaves in a file what `read_here` found, a volume without its voxels, and warned of."""
    path, answer, modality, body_part, bounds = json.loads(sys.stdin.read())
    limits = Limits(**bounds)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    _bound_memory(limits.voxels * BYTES_PER_VOXEL + SPARE_BYTES)
    with heard() as warned:
        found = read_here(Path(path), modality, body_part, limits)
    if isinstance(found, Volume):
        np.save(f"{answer}.npy", found.voxels)
        found = replace(found, voxels=np.empty(0))
    Path(f"{answer}.part").write_bytes(pickle.dumps((found, warned)))
    os.replace(f"{answer}.part", answer)


def read_here(path: Path, modality: str, body_part: str, limits: Limits) -> Volume | str:
    """Read and check an uploaded volume in this process; arguments as of `read_volume`.

    Returns:
        the volume, or one line that says why it cannot be used.
    """
    try:
        _check_size(path, limits)
        return checked(open_path(path), modality, body_part)
    except UnevenSlices as error:
        return error.without_choice  # the service has no such setting
    except InputError as error:
        return str(error)
    except MemoryError:
        return f"{_NAME}: reading it needs more memory than the service allows."
    except Exception as error:  # a reader met bytes that nobody thought of: the client's file is at fault
        return f"{_NAME}: cannot be read ({type(error).__name__}); export it again."


def _bound_memory(more: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _check_size(path: Path, limits: Limits) -> None:
    """Refuse from headers alone what is too large, before anything is unpacked."""
    if path.is_file():
        count = int(np.prod(check_volume(path).shape, dtype=np.float64))
    else:
        for file in path.iterdir():
            _refuse_deflated(file)
        headers = survey_folder(path).images.values()
        count = sum(int(header.Rows or 0) * int(header.Columns or 0) for header in headers)
    if count > limits.voxels:
        raise InputError(
            f"{_NAME}: has {count / 1e6:.0f} million voxels; the service takes {limits.voxels / 1e6:.0f} million at "
            "most. Crop or resample it."
        )


def _refuse_deflated(file: Path) -> None:
    try:
        syntax = str(read_file_meta_info(file).get("TransferSyntaxUID", ""))
    except Exception:  # no DICOM file, or a damaged one: the survey says which
        return
    if syntax == DEFLATED:  # pydicom unpacks such a file whole, however large it becomes
        raise InputError(f"{file}: is in the deflated transfer syntax; export it in another one.")


if __name__ == "__main__":
    main()
