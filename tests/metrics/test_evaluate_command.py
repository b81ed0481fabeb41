"""`boltzformer evaluate-predictions`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from boltzformer.apps.evaluate_predictions import main
from boltzformer.data.cases import load_cases
from boltzformer.errors import InputError
from typer.testing import CliRunner, Result

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate_predictions.py"


def run(*arguments) -> Result:
    """In this process: starting a new one takes seconds. One test below starts the real command."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def dataset(labels_dir) -> Path:
    items = [{"image": f"images/{p.name}", "label": f"labels/{p.name}"} for p in sorted(labels_dir.glob("*"))]
    labels = {"0": "background", "1": "liver lesion", "2": "left kidney"}
    content = {"name": "set", "labels": labels, "training": items[:1], "validation": items}
    (labels_dir.parent / "dataset.json").write_text(json.dumps(content))
    return labels_dir.parent


def test_decathlon_folder_and_comparison(dataset, exact_predictions, tmp_path):
    done = run(exact_predictions, dataset, "--output-dir", tmp_path / "one")
    assert done.exit_code == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        *("lesions.csv", "manifest.json", "report.html", "slices.csv", "summary.json", "volumes.csv"),
    ]
    account = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert (account["asked"], account["done"], account["failed"], account["skipped"]) == (3, 3, 0, 0)
    assert {file["path"] for file in account["outputs"]} == {
        *("lesions.csv", "report.html", "slices.csv", "summary.json", "volumes.csv"),
    }
    assert [file["path"] for file in account["entries"][0]["inputs"]] == ["../labels/case_0.nii.gz"]  # it has no image
    done = run(exact_predictions, dataset, "--output-dir", tmp_path / "two", "--compare-to", tmp_path / "one")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "two" / "comparison.json").read_text())["overall"]["difference"] == 0


def test_failures_are_listed_last_and_the_code_is_1(dataset, exact_predictions, tmp_path):
    (dataset / "labels" / "case_0.nii.gz").unlink()
    (exact_predictions / "case_1.nii.gz").write_bytes(b"no volume")
    done = run(exact_predictions, dataset, "--output-dir", tmp_path / "out")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "case_0.nii.gz" in done.stderr
    assert "case_1.nii.gz" in done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["volumes"]["overall"]["n"] == 2  # case_2's two objects
    assert len(summary["failures"]) == 3
    assert "3 could not be scored" in (tmp_path / "out" / "report.html").read_text()
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {entry["name"]: entry["status"] for entry in account["entries"]} == {
        "case_0": "failed",
        "case_1": "failed",
        "case_2": "done",
    }
    assert "liver lesion: " in account["entries"][1]["reason"]
    assert (account["asked"], account["done"], account["failed"], account["skipped"]) == (3, 1, 2, 0)


def test_the_command_itself(dataset, exact_predictions, tmp_path):
    (dataset / "labels" / "case_0.nii.gz").write_bytes(b"")
    command = [sys.executable, str(SCRIPT), str(exact_predictions), str(dataset), "--output-dir", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "case_0.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr
    assert "report.html" in done.stdout


def test_images_of_one_name_have_a_report_too(dataset, exact_predictions, tmp_path):
    content = json.loads((dataset / "dataset.json").read_text())
    content["validation"] = [{**item, "image": f"pt_{i}/ct.nii.gz"} for i, item in enumerate(content["validation"])]
    (dataset / "dataset.json").write_text(json.dumps(content))
    done = run(exact_predictions, dataset, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png") == 6
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [(entry["name"], entry["status"]) for entry in account["entries"]] == [
        (f"case_{i}", "done") for i in range(3)
    ]


def test_a_comparison_that_cannot_be_made_takes_nothing_else(dataset, exact_predictions, tmp_path):
    out = tmp_path / "out"
    done = run(exact_predictions, dataset, "--output-dir", out, "--compare-to", tmp_path / "typo")
    assert done.exit_code == 2
    assert "typo/slices.csv" in done.stderr
    assert not out.exists()  # said before any work
    assert run(exact_predictions, dataset, "--output-dir", tmp_path / "one").exit_code == 0
    assert run(exact_predictions, dataset, "--output-dir", out, "--compare-to", tmp_path / "one").exit_code == 0
    content = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**content, "name": "other"}))
    (exact_predictions / "case_1.nii.gz").write_bytes(b"no volume")
    done = run(exact_predictions, dataset, "--output-dir", out, "--compare-to", tmp_path / "one")
    assert done.exit_code == 2
    assert "no scored row in common" in done.stderr
    assert "case_1.nii.gz" in done.stderr
    assert not (out / "comparison.json").exists()  # that of the run before
    assert "other" in json.loads((out / "summary.json").read_text())["slices"]["datasets"]
    assert "other / liver lesion" in (out / "report.html").read_text()
    assert json.loads((out / "manifest.json").read_text())["failed"] == 1


def test_plain_folder_needs_names(labels_dir, exact_predictions, tmp_path):
    done = run(exact_predictions, labels_dir, "--output-dir", tmp_path / "out")
    assert done.exit_code == 2
    assert "--objects" in done.stderr
    names = tmp_path / "objects.json"
    names.write_text(json.dumps({"1": "liver lesion", "2": "left kidney"}))
    done = run(exact_predictions, labels_dir, "--output-dir", tmp_path / "out", "--objects", names)
    assert done.exit_code == 0, done.stderr
    names.write_text(json.dumps({"1": "lesion", "2": "Lesion"}))  # numbered one by one
    done = run(exact_predictions, labels_dir, "--output-dir", tmp_path / "out", "--objects", names)
    assert done.exit_code == 2
    assert "two label values have the same name" in done.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--min-iou", "0.9"], "min_iou"), (["--connectivity", "7"], "connectivity"), (["--tolerance-mm", "-1"], "mm")],
)
def test_bad_settings_are_one_line(dataset, exact_predictions, tmp_path, extra, message):
    done = run(exact_predictions, dataset, "--output-dir", tmp_path / "out", *extra)
    assert done.exit_code == 2
    assert message in done.stderr
    assert isinstance(done.exception, SystemExit)


def write_lists(dataset: Path, **lists: int) -> None:
    """Rewrite dataset.json with its three cases dealt out to the named lists."""
    content = json.loads((dataset / "dataset.json").read_text())
    items = content.pop("validation")
    content.pop("training")
    for name, count in lists.items():
        content[name], items = items[:count], items[count:]
    (dataset / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def with_images(dataset, labels_dir, make_volume) -> Path:
    for path in labels_dir.glob("*"):
        (dataset / "images").mkdir(exist_ok=True)
        (dataset / "images" / path.name).write_bytes(path.read_bytes())
    return dataset


def test_a_split_list_is_said_and_all_takes_everything(with_images, exact_predictions, tmp_path, caplog):
    write_lists(with_images, training=3)
    done = run(exact_predictions, with_images, "--output-dir", tmp_path / "split")
    assert "1 of 3 cases (1 of 3 patients, 20 % split)" in caplog.text
    assert json.loads((tmp_path / "split" / "summary.json").read_text())["cases"] == 1
    done = run(exact_predictions, with_images, "--output-dir", tmp_path / "all", "--section", "all")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["cases"] == 3


def test_a_held_out_list_may_be_alone(with_images, exact_predictions, tmp_path):
    write_lists(with_images, validation=3)
    assert len(load_cases(with_images, "validation")) == 3
    with pytest.raises(InputError, match="no `training` list"):
        load_cases(with_images, "training")
    done = run(exact_predictions, with_images, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.stderr


def test_cases_with_an_empty_label_map_are_named(dataset, exact_predictions, tmp_path, make_volume):
    make_volume(dataset / "labels" / "case_1.nii.gz", np.zeros((24, 20, 12), np.uint8))
    done = run(exact_predictions, dataset, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "1 of 3 cases are in no number" in " ".join(done.stdout.split())
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["without_rows"] == ["case_1"]
    assert "1 of 3 cases are in no number" in (tmp_path / "out" / "report.html").read_text()
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["status"] for entry in account["entries"]] == ["done", "skipped", "done"]


def test_hidden_files_are_no_labels(labels_dir, exact_predictions, tmp_path):
    (labels_dir / "._case_0.nii.gz").write_bytes(b"AppleDouble")
    names = tmp_path / "objects.json"
    names.write_text(json.dumps({"1": "liver lesion", "2": "left kidney"}))
    done = run(exact_predictions, labels_dir, "--output-dir", tmp_path / "out", "--objects", names)
    assert done.exit_code == 0, done.stderr


def test_odd_lists_and_the_earlier_results_folder_are_one_line(dataset, exact_predictions, tmp_path):
    first = tmp_path / "one"
    assert run(exact_predictions, dataset, "--output-dir", first).exit_code == 0
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    done = run(exact_predictions, dataset, "--output-dir", first, "--compare-to", first)
    assert done.exit_code == 2
    assert "holds the results to compare with" in done.stderr
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    content = json.loads((dataset / "dataset.json").read_text())
    for text in (json.dumps({**content, "validation": 5}), "[" * 100_000):
        (dataset / "dataset.json").write_text(text)
        done = run(exact_predictions, dataset, "--output-dir", tmp_path / "two")
        assert done.exit_code == 2
        assert isinstance(done.exception, SystemExit)
        assert "dataset.json" in done.stderr
