"""A place for one input: what lies in it before and after a command, and whether the result is what it must be."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from boltzformer.volumes.names import NIFTI_SUFFIXES, case_name, volume_suffix


@dataclass
class Sandbox:
    """Folders of one input: `given` is read, `out` may be written, nothing else may change.

    Attributes:
        root: holds the folders.
        problems: violations that were found.
    """

    root: Path
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in (self.given, self.cwd, self.temporary):
            folder.mkdir(parents=True)

    @property
    def given(self) -> Path:
        return self.root / "in"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def cwd(self) -> Path:
        return self.root / "cwd"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def state(self) -> dict[str, Any]:
        """Every path outside `out` with its kind, length, time and checksum."""
        found: dict[str, Any] = {}
        for folder, names, files in os.walk(self.root):
            if Path(folder) == self.root:
                names[:] = [name for name in names if name != "out"]
            for name in [*names, *files]:
                path = os.path.join(folder, name)
                entry = os.lstat(path)
                content = ""
                if stat.S_ISREG(entry.st_mode):
                    with open(path, "rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                times = entry.st_mtime_ns if stat.S_ISREG(entry.st_mode) else 0
                found[path] = (stat.S_IFMT(entry.st_mode), entry.st_size if content else 0, times, content)
        return found

    def compare(self, before: dict[str, Any]) -> None:
        """Note what changed outside `out`."""
        after = self.state()
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) != after.get(path):
                what = "is gone" if path not in after else "is new" if path not in before else "changed"
                self.problems.append(f"outside the output folder: {path} {what}")

    def check_whole(self, allowed: set[str]) -> None:
        """Note files in `out` that do not belong there, drafts above all."""
        for path in self.written():
            if path not in allowed and not path.rsplit("/", 1)[-1].endswith(".lock"):
                self.problems.append(f"left in the output folder: {path}")

    def written(self) -> list[str]:
        """Files in `out`, relative."""
        return sorted(str(path.relative_to(self.out)) for path in self.out.rglob("*") if not path.is_dir())


def check_record(sandbox: Sandbox, exit_code: int, source: Path) -> None:
    """After `boltzformer segment`: the record's files are all there as written, and nothing else."""
    file = sandbox.out / "record.json"
    cases = json.loads(file.read_text())["cases"] if file.exists() else {}
    listed = {name: digest for entry in cases.values() for name, digest in entry["files"].items()}
    for name, digest in listed.items():
        path = sandbox.out / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            sandbox.problems.append(f"{name} is not what the record says")
        elif name.endswith(".nii.gz"):
            check_grid(sandbox, path, _source_of(path, sandbox.out, source))
    if exit_code == 0 and not listed:
        sandbox.problems.append("code 0 and no result")
    check_account(sandbox, exit_code)
    sandbox.check_whole({"record.json", "manifest.json", *listed})


def check_account(sandbox: Sandbox, exit_code: int) -> None:
    """The account of a run that started adds up, and its failures are the exit code's."""
    file = sandbox.out / "manifest.json"
    if not file.exists():
        if exit_code != 2:
            sandbox.problems.append(f"code {exit_code} and no account of the run")
        return
    content = json.loads(file.read_text())
    if content["asked"] != content["done"] + content["failed"] + content["skipped"]:
        sandbox.problems.append("the account does not add up")
    if (content["failed"] > 0) != (exit_code == 1):
        sandbox.problems.append(f"code {exit_code} where {content['failed']} failed")


def check_again(sandbox: Sandbox, exit_code: int, source: Path, before: dict[str, bytes]) -> None:
    """After a second `boltzformer segment` in the folder: the case is whole, or all is as it was before."""
    if exit_code != 0:
        kept = {name: content for name, content in before.items() if name != "manifest.json"}
        changed = [name for name, content in kept.items() if (sandbox.out / name).read_bytes() != content]
        sandbox.problems += [f"{name} changed though the run failed" for name in changed]
        sandbox.check_whole({*before, "manifest.1.json"})
        return
    # a byte order mark before it is no damage
    files = json.loads((sandbox.out / "record.json").read_text("utf-8-sig"))["cases"]["a"]["files"]
    for name, digest in files.items():
        if hashlib.sha256((sandbox.out / name).read_bytes()).hexdigest() != digest:
            sandbox.problems.append(f"{name} is not what the record says")
        elif name.endswith(".nii.gz"):
            check_grid(sandbox, sandbox.out / name, source)
    if not files:
        sandbox.problems.append("code 0 and no result")
    sandbox.check_whole({*before, *files, "manifest.1.json"})


def check_manifest(sandbox: Sandbox, exit_code: int, source: Path) -> None:
    """After inference.json: the account adds up, its outputs are there, nothing else is."""
    file = sandbox.out / "manifest.json"
    check_account(sandbox, exit_code)
    if not file.exists():
        sandbox.check_whole(set())
        return
    content = json.loads(file.read_text())
    listed = {entry["path"]: entry for one in content["entries"] for entry in one["outputs"]}
    for name, entry in listed.items():
        path = sandbox.out / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            sandbox.problems.append(f"{name} is not what the account says")
        elif name.endswith(".nii.gz") and "orthogonal" not in name:
            check_grid(sandbox, path, _source_of(path, sandbox.out, source))
    done = [one for one in content["entries"] if one["status"] == "done"]
    if any(not one["outputs"] for one in done):
        sandbox.problems.append("done and no result")
    if not done:
        sandbox.check_whole({"manifest.json"})
    else:
        sandbox.check_whole({"manifest.json", *listed})


def _source_of(result: Path, out: Path, source: Path) -> Path:
    """The file in a folder of volumes that a result belongs to."""
    case = case_name(out / result.relative_to(out).parts[0])
    files = [path for path in source.iterdir() if volume_suffix(path.name)] if source.is_dir() else []
    return next((path for path in files if path.name[: -len(volume_suffix(path.name))] == case), source)


def check_grid(sandbox: Sandbox, result: Path, source: Path) -> None:
    """The result's shape and geometry are the source's, as another reader sees it; its values are a mask's."""
    image = nib.load(result)
    of_series = source.is_dir() and source.name not in (result.parent.name, result.name.split(".")[0])
    voxels = np.asarray(image.dataobj)
    if voxels.dtype != np.uint8 or voxels.max(initial=0) > 8:
        sandbox.problems.append(f"{result.name}: {voxels.dtype} up to {voxels.max(initial=0)} is no mask")
    if not of_series:  # one of several series, which the folder alone does not tell apart
        compare_grids(sandbox, Path(result.name), source, image.shape, image.affine, in_mm=False)


def compare_grids(
    sandbox: Sandbox, name: Path, source: Path, shape: Sequence[int], affine: np.ndarray, in_mm: bool = True
) -> None:
    """Note where a grid is not the source's, as another reader sees it; results keep the unit of a NIfTI's header."""
    try:
        expected, place = plain_grid(source, in_mm)
    except Exception as error:
        sandbox.problems.append(f"{source}: was read, but another reader says {type(error).__name__}: {error}")
        return
    if tuple(shape) != tuple(expected):
        sandbox.problems.append(f"{name}: shape {tuple(shape)}, the source has {tuple(expected)}")
    corners = np.array([[0, 0, 0, 1], *(np.r_[np.eye(3)[k] * (expected[k] - 1), 1] for k in range(3))]).T
    apart = np.abs(affine @ corners - place @ corners).max()
    if not apart <= 0.05 * np.abs(place[:3, :3]).max() + 1e-5 * np.abs(place).max():
        sandbox.problems.append(f"{name}: lies {apart:g} mm away from its source")


def plain_grid(source: Path, in_mm: bool = True) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine by nibabel, SimpleITK, or the DICOM standard's formula; a NIfTI's own unit if not `in_mm`."""
    if source.is_dir():
        return _dicom_grid(source)
    if volume_suffix(source.name) in NIFTI_SUFFIXES or not volume_suffix(source.name):
        image = nib.load(source)
        unit = int(image.header["xyzt_units"]) & 7 if isinstance(image, nib.Nifti1Image) else 0
        scale = {1: 1000.0, 3: 0.001}.get(unit, 1.0) if in_mm else 1.0
        return tuple(image.shape[:3]), np.diag([scale, scale, scale, 1.0]) @ np.asarray(image.affine)
    read = sitk.ReadImage(str(source))
    size = read.GetSize()[:3]
    points = np.array(
        [read.TransformIndexToPhysicalPoint([0] * len(read.GetSize()))[:3]]
        + [read.TransformIndexToPhysicalPoint([int(i == k) for i in range(len(read.GetSize()))])[:3] for k in range(3)]
    )
    affine = np.eye(4)
    affine[:3, :3] = (points[1:] - points[0]).T
    affine[:3, 3] = points[0]
    return size, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _dicom_grid(folder: Path) -> tuple[tuple[int, ...], np.ndarray]:
    headers = []
    for file in sorted(folder.iterdir()):
        try:
            header = pydicom.dcmread(file)
        except Exception:
            continue
        if "Rows" in header:
            headers.append(header)
    rows = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
    places = np.array([np.array(header.ImagePositionPatient, float) for header in headers])
    places = places[np.argsort(places @ np.cross(*rows))]
    affine = np.eye(4)
    affine[:3, 0] = rows[0] * float(headers[0].PixelSpacing[1])
    affine[:3, 1] = rows[1] * float(headers[0].PixelSpacing[0])
    affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else np.cross(*rows)
    affine[:3, 3] = places[0]
    shape = (int(headers[0].Columns), int(headers[0].Rows), len(headers))
    return shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
