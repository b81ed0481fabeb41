"""`boltzformer doctor`: what is installed, which weights and device, and a self-test whose answer is known."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
import torch
import typer

from boltzformer.apps.console import plain_console
from boltzformer.apps.findings import measure
from boltzformer.apps.release import bundle_version, shipped_weights
from boltzformer.data.prompts import Prompt
from boltzformer.error_report import find_input_error
from boltzformer.inference.api import Segmenter
from boltzformer.inference.existence import ExistenceGate
from boltzformer.inference.formats import save_as
from boltzformer.volumes.segmented import Algorithm, Segment, SegmentedVolume
from boltzformer.volumes.sources import open_volume
from boltzformer.volumes.write import Grid

OK, NOTE, BAD = "ok", "note", "bad"
REQUIRED = ("torch", "monai", "timm", "open_clip_torch", "nibabel", "SimpleITK", "pydicom", "numpy", "scipy")
EXTRAS = {
    "numba": "attention on the CPU is slower without it: pip install 'boltzformer[fast]'",
    "isal": "compressed files are read and written more slowly without it: pip install 'boltzformer[fast]'",
    "highdicom": "DICOM SEG and RTSTRUCT need it: pip install 'boltzformer[dicom]'",
}
CUBE = 10


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: "ok", "note" (works, but something is missing) or "bad".
        told: what was found.
    """

    name: str
    state: str
    told: str


def main(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Look at the installation and run a self-test; ends with code 1 where something is bad."""
    checks = [*installed(), device(), _attempt("self-test, masks and files", files_test), *weights()]
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=4))
    else:
        console = plain_console()
        for check in checks:
            console.print(f"{check.state:5} {check.name}: {check.told}")
    if any(check.state == BAD for check in checks):
        raise typer.Exit(1)


def installed() -> list[Check]:
    """Versions of this release and of the packages it stands on."""
    checks = [Check("boltzformer", OK, f"{bundle_version()}, Python {platform.python_version()}")]
    for package in REQUIRED:
        try:
            checks.append(Check(package, OK, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(package, BAD, "is not installed: pip install boltzformer"))
    for package, why in EXTRAS.items():
        there = importlib.util.find_spec(package) is not None
        told = importlib.metadata.version(package) if there else f"is not installed; {why}"
        checks.append(Check(package, OK if there else NOTE, told))
    if not shutil.which("dciodvfy"):
        checks.append(Check("dciodvfy", NOTE, "is not installed; it validates DICOM (Debian package dicom3tools)"))
    return checks


def device() -> Check:
    """Where the network would run."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Check("device", OK, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    return Check("device", NOTE, f"no GPU that torch can use; CPU with {torch.get_num_threads()} threads")


def weights() -> list[Check]:
    """Whether the shipped weights are there, whole, fit their network, and give the same masks twice."""
    path = shipped_weights()
    if not path.is_file():
        return [Check("weights", NOTE, f"none at {path}; name a checkpoint with --weights, or train one")]
    try:
        segmenter = Segmenter.load(device="cpu")
    except Exception as error:
        return [Check("weights", BAD, str(find_input_error(error) or error))]
    found = Check("weights", OK, f"{path}, {path.stat().st_size / 1e6:.0f} MB, whole, fit their network")
    return [found, _attempt("self-test, network", lambda: network_test(segmenter))]


def network_test(segmenter: Segmenter) -> str:
    """Slices in one batch and one after the other, by one seed, are the same to the last bit.

    Raises:
        ArithmeticError: they are not.
    """
    voxels = np.random.default_rng(0).integers(-1000, 1000, (64, 64, 4)).astype(np.int16)
    term = "lesion" if segmenter.known is None else segmenter.known.wordings[0][0]
    inferer = segmenter.inferer
    usual, gate, inferer.progress = inferer.memory_gb, inferer.existence, False
    inferer.existence = ExistenceGate()  # no object is in noise: empty masks would be the same whatever was computed
    results = []
    for memory_gb in (usual, usual, 1e-9):  # the last leaves room for one slice at a time
        inferer.memory_gb = memory_gb
        results.append(segmenter.segment(voxels, term, np.eye(4), modality="CT").item["logits"])
    inferer.memory_gb, inferer.existence = usual, gate
    if not torch.isfinite(results[0]).all() or bool((results[0] == results[0].flatten()[0]).all()):
        raise ArithmeticError("the network gives values that are no numbers, or one value everywhere")
    if not all(torch.equal(results[0], other) for other in results[1:]):
        raise ArithmeticError("a slice gives other results in another batch, or the second time")
    return "a slice gives the same result twice and in any batch, bit for bit"


def _attempt(name: str, test: Callable[[], str]) -> Check:
    try:
        return Check(name, OK, test())
    except Exception as error:
        return Check(name, BAD, f"{type(error).__name__}: {error}")


def files_test() -> str:
    """A cube of 10 x 10 x 10 voxels of 1 x 1 x 2 mm is 2 ml in one piece, also after it was written and read."""
    mask = np.zeros((1, 30, 32, 20), np.uint8)
    mask[0, 5 : 5 + CUBE, 7 : 7 + CUBE, 4 : 4 + CUBE] = 1
    affine = nib.affines.from_matvec(np.diag([-1.0, -1.0, 2.0]), [12.0, -7.0, 40.0])
    volume = open_volume(mask[0].astype(np.int16), affine, modality="CT")
    (finding,) = measure(mask, [Prompt("cube", "cube")], Grid.of_volume(volume))
    if (finding.millilitres, finding.parts) != (2.0, 1):
        raise ArithmeticError(f"a cube of 2 ml was measured as {finding.millilitres} ml in {finding.parts} parts")
    made = SegmentedVolume("cube", volume, mask, (Segment("cube", "cube"),), Algorithm("self-test", "1"), mask[0])
    with tempfile.TemporaryDirectory() as folder:
        read = open_volume(save_as(made, "nifti", Path(folder))[0])
        same = np.array_equal(read.voxels, mask[0]) and np.allclose(read.affine, affine)
    if not same:
        raise ArithmeticError("a mask that was written as NIfTI reads back as another")
    return "a cube of 2 ml is measured as 2 ml, written and read back the same"
