"""After a power cut each file is whole or absent, and what was written is there: every kind of writer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.apps.record import BatchRecord
from boltzformer.data.phantom import write_phantoms
from boltzformer.data.prepare.build import build_dataset
from boltzformer.data.prepare.msd import plan_msd
from boltzformer.data.prepare.source import open_source
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.manifest import Manifest
from boltzformer.metrics.files import write_csv
from boltzformer.volumes.sources import open_volume
from boltzformer.volumes.write import Grid, write_notes
from boltzformer.weights import keep_previous, save_atomically

from tests.data.prepare.conftest import write_task
from tests.disk import Disk
from tests.support import body, save_nifti

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are read from /proc")
STATE = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


def _checkpoint(out: Path, source: Path) -> None:
    for _ in range(2):
        save_atomically(STATE, out / "last.pt", {"epoch": 1})
        save_atomically(STATE, out / "model.safetensors", {"epoch": 1})


def _kept_weights(out: Path, source: Path) -> None:
    path = source / "model.pt"
    save_atomically(STATE, path)
    keep_previous(path, out)
    save_atomically(STATE, path)


def _mask(out: Path, source: Path) -> None:
    volume = open_volume(source / "ct.nii.gz", modality="CT")
    Grid.of_volume(volume).write(np.ones(volume.voxels.shape, np.uint8), out / "liver.nii.gz")
    write_notes({"boltzformer": 1}, out / "liver.json")


def _account(out: Path, source: Path) -> None:
    for _ in range(2):  # the first one is kept under a number
        Manifest("inference", out).write()


def _table(out: Path, source: Path) -> None:
    write_csv(out / "slices.csv", [{"case": "a", "dice": 0.5}])


def _record(out: Path, source: Path) -> None:
    draft = out / ".draft"
    volume = open_volume(source / "ct.nii.gz", modality="CT")
    Grid.of_volume(volume).write(np.ones(volume.voxels.shape, np.uint8), draft / "ct" / "liver.nii.gz")
    BatchRecord(out).settle("request", {"case": "ct", "files": ["ct/liver.nii.gz"]}, draft, [])


def _prepared(out: Path, source: Path) -> None:
    (plan,) = plan_msd(open_source(write_task(source, cases=4)))
    build_dataset(plan, out)


def _phantoms(out: Path, source: Path) -> None:
    write_phantoms(out / "set", num_training=1, num_validation=1, size=(32, 32, 8))


def _slice_cache(out: Path, source: Path) -> None:
    label = np.zeros((24, 20, 4), np.uint8)
    label[5:9, 5:9, 1:3] = 1
    case = {"image": str(source / "ct.nii.gz"), "patient": "p", "dataset": "d", "modality": "CT", "body_part": "chest"}
    case |= {"label": str(save_nifti(source / "label.nii.gz", label, np.eye(4))), "objects": {1: "block"}}
    SliceDataset([case], out, progress=False, num_workers=1)


WRITERS = [_checkpoint, _kept_weights, _mask, _account, _table, _record, _prepared, _phantoms, _slice_cache]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__[1:])
def test_nothing_is_named_before_it_is_on_the_disk(write: Callable[[Path, Path], None], tmp_path):
    out, source = tmp_path / "out", tmp_path / "in"
    out.mkdir()
    save_nifti(source / "ct.nii.gz", body((24, 20, 4)), np.eye(4))
    disk = Disk(out)
    with disk.watched():
        write(out, source)
    assert any(path.is_file() for path in out.rglob("*"))
    assert disk.lost() == []


def test_what_would_be_lost_is_noticed(tmp_path):
    disk = Disk(tmp_path)
    with disk.watched():
        (tmp_path / "draft").mkdir()
        (tmp_path / "draft" / "a.json").write_text(json.dumps({}))
        (tmp_path / "draft").rename(tmp_path / "set")
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    assert len(disk.problems) == 2  # the folder's entry and its file
    lost = {Path(path).name for path in disk.lost()[2:]}
    assert lost == {tmp_path.name, "set", "a.json", "mask.nii"}
