"""`boltzformer evaluate-bundle`: a small real network on a small dataset, from volumes to the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from boltzformer.apps.evaluate_bundle import gate_of, main
from boltzformer.inference.existence import ExistenceGate
from boltzformer.metrics.evaluation import evaluate_folder
from boltzformer.metrics.files import read_csv
from boltzformer.metrics.measures.cases import LabelledCase
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.volumes.checks import read_volume
from typer.testing import CliRunner, Result

from tests.support import SMALL_NETWORK, noted_spacing, small_network, write_json

OBJECTS = {"1": "liver lesion", "2": "left kidney"}


def run(*arguments) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def dataset(labels_dir, make_volume) -> Path:
    root = labels_dir.parent
    for path in labels_dir.glob("*.nii.gz"):
        label = np.asarray(nib.load(path).dataobj)
        image = np.random.default_rng(0).normal(0, 20, label.shape) + 200.0 * label
        make_volume(root / "images" / path.name, image.astype(np.int16))
    names = sorted(path.name for path in labels_dir.glob("*.nii.gz"))
    items = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    content = {"name": "set", "modality": {"0": "CT"}, "labels": OBJECTS}
    write_json(root / "dataset.json", {**content, "training": items[:1], "validation": items[1:]})
    return root


@pytest.fixture
def options(tmp_path, dataset) -> list:
    torch.save(small_network().state_dict(), tmp_path / "model.pt")
    overlay = write_json(tmp_path / "small.json", {**SMALL_NETWORK, "device": "$torch.device('cpu')"})
    return ["--dataset-dir", dataset, "--overlay", overlay, "--checkpoint", tmp_path / "model.pt"]


def test_volumes_to_report(options, dataset, tmp_path):
    done = run(*options, "--output-dir", tmp_path / "out", "--decodings", 2, "--set", "agreement_mm=1.5")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["volumes"]["overall"]["n"] == 4
    assert written["calibration"]["overall"]["voxels"] > 0
    assert (tmp_path / "out" / "predictions" / "case_1" / "left_kidney_entropy.nii.gz").is_file()
    assert "Worst volumes" in (tmp_path / "out" / "report.html").read_text()
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (account["existence_threshold"], account["existence_temperature"]) == (None, None)  # for `calibrate`
    assert account["agreement_mm"] == 1.5
    # the same numbers from its files, by hand
    names = {int(value): name for value, name in OBJECTS.items()}
    cases = [LabelledCase(dataset / "labels" / f"case_{i}.nii.gz", names, "set", f"case_{i}") for i in (1, 2)]
    again = evaluate_folder(cases, PredictionFolder(tmp_path / "out" / "predictions"), read_volume)
    assert json.loads(json.dumps(again.summary["volumes"])) == written["volumes"]


def test_a_broken_image_costs_its_own_case(options, dataset, tmp_path):
    (dataset / "images" / "case_1.nii.gz").write_bytes(b"no volume")
    done = run(*options, "--output-dir", tmp_path / "out")
    assert done.exit_code == 1
    assert "case_1.nii.gz" in done.stderr
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["volumes"]["overall"]["n"] == 2
    assert [failure["case"] for failure in written["failures"]] == ["case_1.nii.gz"]
    assert "1 could not be scored" in (tmp_path / "out" / "report.html").read_text()


def test_masks_of_an_earlier_run_are_no_failures(options, tmp_path):
    for more in ([], ["--limit", 1]):
        done = run(*options, "--output-dir", tmp_path / "out", *more)
        assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out" / "predictions").glob("*.nii.gz"))) == 2
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (written["cases"], written["failures"]) == (1, [])


def test_a_mask_of_an_earlier_run_is_not_taken_for_that_of_another_sequence(options, dataset, tmp_path):
    """Both sequences share the label map case_1, and the second is called so."""
    content = json.loads((dataset / "dataset.json").read_text())
    (dataset / "images" / "case_2.nii.gz").rename(dataset / "images" / "case_1_t2.nii.gz")
    items = [{"image": f"images/{name}.nii.gz", "label": "labels/case_1.nii.gz"} for name in ("case_1_t2", "case_1")]
    write_json(dataset / "dataset.json", {**content, "training": [], "validation": items})
    predictions = tmp_path / "out" / "predictions"
    assert run(*options, "--output-dir", tmp_path / "out").exit_code == 0
    for path in (predictions / "case_1").glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    scores = [{"name": "left_kidney", "slice_probability": [0.5] * 12}]
    write_json(predictions / "case_1.json", {"slice_axis": 2, "labels": scores})
    done = run(*options, "--output-dir", tmp_path / "out", "--limit", 1)
    assert done.exit_code == 0, done.output
    rows = read_csv(tmp_path / "out" / "volumes.csv")
    for row in rows:
        own = nib.load(predictions / "case_1_t2" / f"{row['object'].replace(' ', '_')}.nii.gz").get_fdata()
        assert float(row["predicted_mm3"]) == pytest.approx(9 * own.sum())
    assert sum(float(row["predicted_mm3"]) for row in rows) > 0
    assert {row["existence"] for row in read_csv(tmp_path / "out" / "slices.csv")} == {""}  # this network scores none


def test_a_dataset_says_that_voxel_sizes_mean_nothing(options, dataset, tmp_path, monkeypatch):
    told = noted_spacing(monkeypatch)
    content = json.loads((dataset / "dataset.json").read_text())
    for entry in ({"spacing": "unknown"}, {}):
        write_json(dataset / "dataset.json", {**content, **entry})
        assert run(*options, "--output-dir", tmp_path / f"out{len(entry)}", "--limit", 1).exit_code == 0
        volumes = read_csv(tmp_path / f"out{len(entry)}" / "volumes.csv")
        assert any(row["surface_dice_2mm"] for row in volumes) is not bool(entry)
    assert told == [False, True]


def test_a_key_of_the_config_can_be_set(options, tmp_path):
    done = run(
        *options, "--output-dir", tmp_path / "out", "--limit", 1, "--set", "axis=1", "--set", "window=[-200, 300]"
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["axis"] == 1


def test_gated_numbers_are_those_of_the_gate_in_use():
    chosen = SimpleNamespace(threshold={"existence": 0.76}.get)
    assert gate_of(ExistenceGate(0.3), chosen) == 0.3
    assert gate_of(ExistenceGate(0), chosen) == 0.76  # masks as `calibrate` asks for them
    assert gate_of(ExistenceGate(), SimpleNamespace(threshold={}.get)) == 0.5


def test_the_gate_stands_in_the_summary(options, tmp_path):
    done = run(*options, "--output-dir", tmp_path / "out", "--limit", 1, "--set", "existence_threshold=0.3")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["slices"]["settings"]["existence_threshold"] == 0.3


def test_a_misspelt_key_names_the_nearest(options, tmp_path):
    done = run(*options, "--output-dir", tmp_path / "out", "--set", "windw=lung")
    assert done.exit_code == 2
    assert "no key 'windw'; did you mean 'window'?" in done.stderr
    done = run(*options, "--output-dir", tmp_path / "out", "--set", "window")
    assert "key=value" in done.stderr


def test_wrong_weights_are_one_line(options, tmp_path):
    done = run(*options[:4], "--checkpoint", tmp_path / "nowhere.pt", "--output-dir", tmp_path / "out")
    assert done.exit_code == 2
    assert "nowhere.pt" in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_images_of_one_name_are_told_apart_by_their_labels(options, dataset, tmp_path):
    items = []
    for number in (1, 2):
        (dataset / f"p{number}").mkdir()
        image = (dataset / "images" / f"case_{number}.nii.gz").rename(dataset / f"p{number}" / "ct.nii.gz")
        items.append({"image": str(image), "label": f"labels/case_{number}.nii.gz", "patient": f"p{number}"})
    content = {"name": "set", "modality": "CT", "labels": OBJECTS}
    write_json(dataset / "dataset.json", {**content, "validation": items})
    done = run(*options, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    written = sorted(path.name for path in (tmp_path / "out" / "predictions").glob("*.nii.gz"))
    assert written == ["case_1.nii.gz", "case_2.nii.gz"]
    for item in items:  # labels of one name too: nothing is segmented before that is said
        label = (dataset / item["label"]).rename(Path(item["image"]).with_name("label.nii.gz"))
        item["label"] = str(label)
    write_json(dataset / "dataset.json", {**content, "validation": items})
    done = run(*options, "--output-dir", tmp_path / "other")
    assert done.exit_code == 2
    assert "share the name ct" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_list_without_labels_cannot_be_scored(options, dataset, tmp_path):
    content = {"name": "set", "modality": "CT", "labels": OBJECTS, "test": ["images/case_1.nii.gz"]}
    write_json(dataset / "dataset.json", content)
    done = run(*options, "--output-dir", tmp_path / "out", "--section", "test")
    assert done.exit_code == 2
    assert "case_1.nii.gz: is listed without a label" in done.stderr


def test_the_results_to_compare_with_are_not_written_over(options, tmp_path):
    done = run(*options, "--output-dir", tmp_path / "out", "--compare-to", tmp_path / "out")
    assert done.exit_code == 2
    assert "holds the results to compare with" in done.stderr
    assert not (tmp_path / "out").exists()
