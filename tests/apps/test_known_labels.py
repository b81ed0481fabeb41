"""`--keep-known`: the network's own masks of what it knows become labels, and a training takes them up."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.apps import known_labels, runs
from boltzformer.apps.known_labels import label_known
from boltzformer.data.cases import load_cases
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.recipe_network import record_definition
from boltzformer.weights import save_atomically

from tests.support import BUNDLE, body, save_nifti, write_json

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


@pytest.fixture
def checkpoint(tmp_path, network) -> Path:
    recipe = {
        "network": record_definition(network, BUNDLE / "models"),
        "input": {"window": "soft_tissue", "axis": 2, "num_adjacent": 0},
        "trained_on": {
            "modalities": ["CT"],
            "objects": {"larynx": ["larynx in neck CT", "voice box"], "cyst": ["a cyst"], "liver": ["liver in CT"]},
        },
    }
    save_atomically(network.state_dict(), tmp_path / "start.pt", recipe)
    return tmp_path / "start.pt"


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Cysts in four scans of one name, each in a folder of its own; one scan has its cysts in two label maps."""
    items = []
    cyst = (body((24, 20, 4)) > 40).astype(np.uint8)
    for number in range(4):
        image = save_nifti(tmp_path / f"pt_{number}" / "ct.nii.gz", body((24, 20, 4), number), AFFINE)
        label = save_nifti(tmp_path / f"pt_{number}" / "cyst.nii.gz", cyst, AFFINE)
        items.append({"image": str(image), "label": str(label), "patient": str(number)})
    again = save_nifti(tmp_path / "pt_0" / "other.nii.gz", cyst, AFFINE)
    items.insert(1, {**items[0], "label": str(again), "labels": {"1": "polyp"}})
    content = {"name": "cysts", "modality": "CT", "body_part": "neck", "labels": {"1": "Cyst"}}
    return write_json(tmp_path / "own.json", {**content, "training": items[:-1], "validation": items[-1:]})


def test_masks_of_the_known_objects_become_labels(tmp_path, dataset, checkpoint, segmenter):
    lines: list[str] = []
    made = label_known(dataset, tmp_path / "known", checkpoint, say=lines.append)
    content = json.loads(made.read_text())
    assert content["labels"] == {"1": "larynx", "2": "liver"}, "what the dataset labels is its own matter"
    assert len(lines) == 4, "a scan with two label maps is segmented once"
    own, known = (load_cases(file, "all") for file in (dataset, made))
    assert {case["image"] for case in own} == {case["image"] for case in known}
    assert {case["patient"] for case in known} == set("0123")
    assert {(case["modality"], case["body_part"]) for case in known} == {("CT", "neck")}
    for case in known:
        label = np.asarray(nib.load(case["label"]).dataobj)
        found = segmenter.segment(case["image"], ["larynx in neck CT", "liver in CT"], modality="CT")
        assert np.array_equal(label, found.label_map)
    assert any(np.asarray(nib.load(case["label"]).dataobj).any() for case in known)


def test_started_again_it_goes_on(tmp_path, dataset, checkpoint, monkeypatch):
    label_known(dataset, tmp_path / "known", checkpoint)
    monkeypatch.setattr(Segmenter, "segment", lambda *_, **__: pytest.fail("was segmented before"))
    label_known(dataset, tmp_path / "known", checkpoint)


def test_a_scan_that_cannot_be_segmented_is_named(tmp_path, dataset, checkpoint):
    (tmp_path / "pt_2" / "ct.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InputError, match=r"1 of 4 images could not be segmented:\n  training_002_ct"):
        label_known(dataset, tmp_path / "known", checkpoint)
    assert not (tmp_path / "known" / "known.json").exists()


def test_objects_are_chosen_by_name_by_measure_or_all(tmp_path, checkpoint):
    recipe = known_labels.recipe_for(checkpoint, BUNDLE)
    chosen = known_labels.kept_objects
    assert chosen(recipe, (), {"cyst"}, checkpoint) == ["larynx", "liver"]
    assert chosen(recipe, ["LIVER"], set(), checkpoint) == ["liver"]
    recipe.content["trained_on"]["earlier_only"] = ["liver"]
    assert chosen(recipe, (), {"cyst"}, checkpoint) == ["larynx"], "masks of what may be forgotten are not to be taught"
    assert chosen(recipe, ["LIVER"], set(), checkpoint) == ["liver"]
    recipe.content["coarse"] = {"mm": 12.0, "objects": ["liver"]}
    assert chosen(recipe, (), {"cyst"}, checkpoint) == ["liver"]
    with pytest.raises(InputError, match="does not know 'lyver'; did you mean 'liver'"):
        chosen(recipe, ["lyver"], set(), checkpoint)
    with pytest.raises(InputError, match="nothing that the dataset does not label itself"):
        chosen(recipe, ["liver"], {"liver"}, checkpoint)


def test_where_nothing_was_found_nothing_is_taught(tmp_path, dataset, checkpoint):
    air = np.full((24, 20, 4), -1000, np.int16)  # empty by rule
    for number in (2, 3):
        save_nifti(tmp_path / f"pt_{number}" / "ct.nii.gz", air, AFFINE)
    content = json.loads(label_known(dataset, tmp_path / "known", checkpoint).read_text())
    assert [item["patient"] for item in content["training"]] == ["0", "1"]
    assert [item["patient"] for item in content["validation"]] == ["3"], "or training would set others apart"
    for number in (0, 1):
        save_nifti(tmp_path / f"pt_{number}" / "ct.nii.gz", air, AFFINE)
    with pytest.raises(InputError, match="finds none of larynx, liver in its training images"):
        label_known(dataset, tmp_path / "known", checkpoint)


def test_finetune_trains_on_both_and_chooses_by_its_own(tmp_path, dataset, checkpoint, shell, monkeypatch):
    started: list[dict] = []
    monkeypatch.setattr(runs, "run", lambda **given: started.append(given))
    run = tmp_path / "run"
    done = shell("finetune", dataset, "-o", run, "--weights", checkpoint, "--keep-known", "--set", "seed=3")
    assert done.exit_code == 0, done.output
    (given,) = started
    assert given["dataset_dir"] == [str(dataset), str(run / "known" / "known.json")]
    assert given["validate#dataset#data#dataset"] == str(dataset)
    assert given["seed"] == 3
    shell("finetune", dataset, "-o", run, "--weights", checkpoint)
    assert started[1]["dataset_dir"] == str(dataset)


def test_the_labels_are_made_on_the_device_of_the_training(tmp_path, dataset, checkpoint, shell, monkeypatch):
    monkeypatch.setattr(runs, "run", lambda **_: pytest.fail("trained"))
    arguments = ["-o", tmp_path / "run", "--weights", checkpoint, "--keep-known", "--set", "device=cuda:77"]
    done = shell("finetune", dataset, *arguments)
    assert done.exit_code == 2
    assert "cuda:77" in done.output


def test_a_misspelt_setting_is_told_before_anything_is_segmented(tmp_path, dataset, checkpoint, shell, monkeypatch):
    monkeypatch.setattr(known_labels, "run_batch", lambda *_, **__: pytest.fail("segmented before"))
    arguments = ["-o", tmp_path / "run", "--weights", checkpoint, "--keep-known", "--set", "max_epoch=3"]
    done = shell("finetune", dataset, *arguments)
    assert done.exit_code == 2
    assert "max_epochs" in done.output
