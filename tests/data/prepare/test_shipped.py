"""The datalists of the shipped training, from folders in Decathlon layout."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from boltzformer.apps.cli import app
from boltzformer.data.cases import load_cases
from boltzformer.data.prepare import shipped
from boltzformer.data.prepare.shipped import LIDC_CROPS, OPENKBP, write_shipped_data
from boltzformer.errors import InputError
from typer.testing import CliRunner

from tests.support import save_nifti, write_json


def _folder(root: Path, objects: list[str], training: int = 2, validation: int = 9) -> Path:
    lists: dict[str, list] = {}
    for section, count in (("training", training), ("validation", validation)):
        lists[section] = []
        for number in range(count):
            names = {key: f"{key}s/{section}_{number}.nii.gz" for key in ("image", "label")}
            for name in names.values():
                save_nifti(root / name, np.full((4, 4, 2), number, np.uint8), np.eye(4))
            lists[section].append({**names, "patient": f"{section} {number}"})
    labels = {"0": "background", **{str(i + 1): name for i, name in enumerate(objects)}}
    write_json(root / "dataset.json", {"name": root.name, "modality": {"0": "CT"}, "labels": labels, **lists})
    return root


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    return _folder(tmp_path / "kbp", sorted(OPENKBP.objects)), _folder(tmp_path / "crops", ["lung nodule"])


def test_lists_say_what_the_folders_do_not(folders, tmp_path):
    done = CliRunner().invoke(app, ["prepare", "shipped", *map(str, folders), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    crops = load_cases(tmp_path / "out" / "lidc_crops_short.json", "validation")
    assert [Path(case["image"]).name for case in crops] == ["validation_0.nii.gz", "validation_8.nii.gz"]
    assert crops[0]["window"] == [0, 255]
    assert crops[0]["spacing_known"] is False
    assert crops[0]["body_part"] == "lung"
    scans = load_cases(tmp_path / "out" / "openkbp.json", "validation")
    assert len(scans) == 9
    assert scans[0]["body_part"] == "head and neck"
    assert scans[0]["modality"] == "CT"
    assert len(load_cases(tmp_path / "out" / "openkbp_short.json", "validation")) == 3
    assert len(load_cases(tmp_path / "out" / "openkbp_short.json", "training")) == 2


def test_the_manifest_has_the_checksum_of_every_file(folders, tmp_path):
    write_shipped_data(*folders, tmp_path / "out")
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert list(split) == ["openkbp", "lidc_crops"]
    for folder, part in zip(folders, split.values(), strict=True):
        assert len(part["training"]) == 4
        assert len(part["validation"]) == 18
        for name, digest in (part["training"] | part["validation"]).items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_folders_cannot_be_confused(folders, tmp_path):
    with pytest.raises(InputError, match="is not the openkbp folder"):
        write_shipped_data(folders[1], folders[0], tmp_path / "out")


def test_a_folder_without_a_split_is_refused(folders, tmp_path):
    path = folders[1] / "dataset.json"
    content = json.loads(path.read_text())
    write_json(path, {**content, "validation": []})
    with pytest.raises(InputError, match="`validation` list"):
        write_shipped_data(*folders, tmp_path / "out")


def test_the_real_folders_give_the_cases_of_the_shipped_network(real_data_dir, tmp_path):
    write_shipped_data(real_data_dir / "openkbp", real_data_dir / "lidc_crops", tmp_path)
    counts = {
        path.stem: [len(load_cases(path, section)) for section in ("training", "validation")]
        for path in sorted(tmp_path.glob("*.json"))
        if path.stem != "split"
    }
    assert counts == {
        "lidc_crops": [480, 85],
        "lidc_crops_short": [480, 11],
        "openkbp": [170, 33],
        "openkbp_short": [170, 9],
        "openkbp_sound": [170, 30],
    }
    assert LIDC_CROPS.added["window"] == [0, 255]


def test_cases_with_wrong_labels_are_left_out_of_a_list_of_its_own(folders, tmp_path, monkeypatch):
    part = dataclasses.replace(OPENKBP, wrong=frozenset({"validation_1", "validation_4"}))
    monkeypatch.setattr(shipped, "OPENKBP", part)
    write_shipped_data(*folders, tmp_path / "out")
    sound = load_cases(tmp_path / "out" / "openkbp_sound.json", "validation")
    names = [Path(case["image"]).name.removesuffix(".nii.gz") for case in sound]
    assert names == [f"validation_{k}" for k in range(9) if k not in (1, 4)]
    assert len(load_cases(tmp_path / "out" / "openkbp.json", "validation")) == 9
    assert not (tmp_path / "out" / "lidc_crops_sound.json").exists()
