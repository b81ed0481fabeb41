"""`boltzformer proof`: a small real network on two small scans with a left and a right organ."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.apps.cli import app
from boltzformer.apps.proof import opposite_shares, other_terms
from boltzformer.data.cases import load_cases
from boltzformer.data.derived import mirrored, write_derived
from boltzformer.errors import InputError
from boltzformer.recipe import recipe_for
from boltzformer.recipe_network import record_definition
from boltzformer.weights import save_atomically
from typer.testing import CliRunner

from tests.support import BUNDLE, body, save_nifti, small_network, write_json

OBJECTS = {"1": "left kidney", "2": "right kidney"}
BOOK = {"left kidney": ["kidney on the left"], "right kidney": ["kidney on the right", "R kidney"]}
AFFINE = np.diag([4.0, 4.0, 3.0, 1.0])


@pytest.fixture(autouse=True)
def logging_as_before():
    """A run of the bundle in this process adds a handler for the standard output of the moment."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    network = small_network()
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    wordings = {name: [f"{name} in abdominal CT", name] for name in OBJECTS.values()}
    recipe = {
        "network": record_definition(network, BUNDLE / "models"),
        "input": {"window": "soft_tissue", "axis": 2, "num_adjacent": 0, "pixel_size_mm": [2.0, 3.0]},
        "trained_on": {"modalities": ["CT"], "objects": wordings},
        "prompts": {"templates": ["{object}"], "entries": wordings, "mode": "replace"},
    }
    save_atomically(network.state_dict(), path, recipe)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    items = []
    for seed in (0, 1):
        label = np.zeros((40, 36, 3), np.uint8)
        label[6:12, 14:20, :2] = 1
        label[26:33, 14 + seed : 21, 1:] = 2
        save_nifti(root / f"image_{seed}.nii.gz", body(label.shape, seed), AFFINE)
        save_nifti(root / f"label_{seed}.nii.gz", label, AFFINE)
        items.append({"image": f"image_{seed}.nii.gz", "label": f"label_{seed}.nii.gz"})
    content = {"name": "kidneys", "modality": "CT", "body_part": "abdominal", "labels": OBJECTS}
    return write_json(root / "dataset.json", {**content, "validation": items})


def _run(*words: object) -> None:
    done = CliRunner().invoke(app, ["proof", *(str(word) for word in words)])
    assert done.exit_code == 0, (done.output, done.exception)


def _rows(folder: Path) -> list[dict]:
    content = json.loads((folder / "proof.json").read_text())
    assert len(content["sha256"]) == 64
    return content["rows"]


def test_wordings(dataset, checkpoint, tmp_path):
    book = write_json(tmp_path / "book.json", BOOK)
    _run("wordings", dataset, "-o", tmp_path, "--weights", checkpoint, "--wordings", book, "--set", "num_workers=0")
    rows = _rows(tmp_path)
    assert [row["wording"] for row in rows] == ["trained"] * 3 + ["unseen 1"] * 3 + ["unseen 2"] * 3
    assert all(row["difference"] == 0 for row in rows[:3])
    assert [row["difference"] for row in rows[3:]] != [0] * 6
    assert rows[4] == {**rows[7], "wording": "unseen 1"}  # the left kidney has one unseen wording
    texts = (tmp_path / "unseen_2" / "slices.csv").read_text()
    assert "R kidney" in texts
    assert "kidney on the left" in texts
    assert "left kidney in abdominal CT" in (tmp_path / "trained" / "slices.csv").read_text()


def test_sides(dataset, checkpoint, tmp_path):
    _run("sides", dataset, "-o", tmp_path, "--weights", checkpoint)
    rows = _rows(tmp_path)
    assert [row["scans"] for row in rows] == ["as they are"] * 2 + ["mirrored"] * 2
    assert all(0 <= row["in_opposite_organ"] <= 1 for row in rows if row["predicted_voxels"])
    assert any(row["predicted_voxels"] for row in rows)


def test_what_lies_in_the_opposite_organ_is_counted(dataset, tmp_path):
    """Masks that know nothing of sides: of each mask the part in the twin is its share."""
    cases = load_cases(dataset, "validation")
    data = write_derived(cases, mirrored, tmp_path / "data")
    right = []
    for seed in (0, 1):
        # of 100 voxels for the "left kidney" 10 lie in the right one, all those of the right one are right
        label = np.zeros((40, 36, 3), np.uint8)
        label[0:9, 0:10, 0] = 1
        mirror = np.asarray(_label(data, seed))
        places = np.argwhere(mirror == 2)[:10]
        label[tuple(places.T)] = 1
        right.append(int((mirror == 2).sum()))
        case = tmp_path / "predictions" / f"image_{seed}"
        save_nifti(case / "left_kidney.nii.gz", label, AFFINE)
        save_nifti(case / "right_kidney.nii.gz", (mirror == 2).astype(np.uint8), AFFINE)
    found = opposite_shares(data, tmp_path / "predictions")
    assert found["kidneys / left kidney"] == {"n": 2, "predicted_voxels": 200, "in_opposite_organ": 0.1}
    assert found["kidneys / right kidney"] == {"n": 2, "predicted_voxels": sum(right), "in_opposite_organ": 0}


def _label(data: Path, seed: int) -> np.ndarray:
    return nib.load(data / "labels" / f"image_{seed}.nii.gz").dataobj


def test_sides_need_a_lateral_organ(dataset, checkpoint, tmp_path):
    content = json.loads(dataset.read_text())
    call = ["-o", str(tmp_path), "--weights", str(checkpoint)]
    for name in ("spine", "left kidney"):  # a kidney without the other has no opposite organ either
        other = write_json(dataset.with_name("other.json"), {**content, "labels": {"1": name, "2": "liver"}})
        done = CliRunner().invoke(app, ["proof", "sides", str(other), *call])
        assert done.exit_code == 2
        assert "names no lateral organ" in done.stderr
    for item in content["validation"]:  # both are named, and one alone is there
        label = np.asarray(nib.load(dataset.with_name(item["label"])).dataobj)
        save_nifti(dataset.with_name(f"one_{item['label']}"), label * (label == 1), AFFINE)
        item["label"] = f"one_{item['label']}"
    other = write_json(dataset.with_name("other.json"), {**content, "validation": content["validation"][:1]})
    done = CliRunner().invoke(app, ["proof", "sides", str(other), *call])
    assert done.exit_code == 2
    assert "no label map holds a lateral organ and its twin" in done.stderr


def test_spacing(dataset, checkpoint, tmp_path):
    sizes = ["--pixel-mm", 2.0, "--field-mm", 128.0]
    _run("spacing", dataset, "-o", tmp_path, "--weights", checkpoint, "--limit", 1, *sizes)
    rows = _rows(tmp_path)
    fine = ["pixels of 2 mm", "as they are, as soft as these"]
    assert [row["scans"] for row in rows[::3]] == ["as they are", *fine, "field of view of 128 mm"]
    assert all(row["n"] == (2 if row["object"] == "all" else 1) for row in rows)
    first = {row["object"]: row["volume_dice"] for row in rows[:3]}
    assert all(row["difference"] == pytest.approx(row["volume_dice"] - first[row["object"]]) for row in rows)
    assert all(row["on_own_pixels"] == pytest.approx(row["volume_dice"]) for row in rows[:3])
    assert all(0 < row["on_own_pixels"] < 1 for row in rows if row["object"] == "all")


def test_crops(dataset, checkpoint, tmp_path):
    _run("crops", dataset, "-o", tmp_path, "--weights", checkpoint, "--limit", 1)
    rows = _rows(tmp_path)
    assert [row["crops"] for row in rows] == ["as they are", "shifted"]
    assert all(0 <= row["sensitivity_at_1_fp"] <= row["sensitivity"] for row in rows)


def test_the_threshold_of_far_prompts_is_written(checkpoint, tmp_path):
    copy = tmp_path / "model.pt"
    copy.write_bytes(checkpoint.read_bytes())
    book = write_json(tmp_path / "book.json", BOOK)
    terms = write_json(tmp_path / "terms.json", {"organs": ["liver", "bicycle"]})
    _run("prompts", "-o", tmp_path, "--weights", copy, "--unseen", book, "--others", terms, "--write")
    rows = _rows(tmp_path)
    assert rows[1]["n"] == 3
    threshold = recipe_for(copy, BUNDLE).threshold("far_prompt")
    assert threshold is not None
    assert recipe_for(checkpoint, BUNDLE).threshold("far_prompt") is None
    for row in rows:
        assert row["smallest"] <= row["median"] <= row["largest"]
        assert row["warned"] in (0, 1) or row["smallest"] <= threshold <= row["largest"]


def test_the_shipped_list_of_other_terms_names_nothing_that_the_shipped_network_knows():
    terms = other_terms(BUNDLE / "configs" / "other_terms.json")
    assert len(terms) == len({term.lower() for term in terms}) >= 60
    book = json.loads((BUNDLE / "configs" / "wordings.json").read_text())
    known = {text.lower() for name, texts in book.items() for text in (name, *texts)}
    assert not known & {term.lower() for term in terms}


def test_a_list_of_terms_that_is_none(tmp_path):
    with pytest.raises(InputError, match="expected an object"):
        other_terms(write_json(tmp_path / "terms.json", {"organs": "liver"}))
