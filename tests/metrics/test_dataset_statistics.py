"""Dataset statistics against numbers counted directly, and the command on real data."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from boltzformer.apps.statistics import main
from boltzformer.metrics.measures.cases import LabelledCase
from boltzformer.metrics.summary.dataset_statistics import dataset_statistics
from boltzformer.volumes.checks import read_volume
from typer.testing import CliRunner

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "dataset_statistics.py"
OBJECTS = {1: "liver lesion", 2: "left kidney", 3: "spleen"}


def test_numbers_equal_a_direct_count(labels_dir):
    cases = [LabelledCase(p, OBJECTS, "set", p.name[:6]) for p in sorted(labels_dir.glob("*"))]
    found = dataset_statistics(cases, read_volume)
    stacks = [np.asarray(nib.load(case.label).dataobj) for case in cases]
    for value, name in OBJECTS.items():
        areas = np.concatenate([100 * (s == value).sum((0, 1)) / (24 * 20) for s in stacks])
        areas = areas[areas > 0]
        row = next(r for r in found["objects"] if r["object"] == name)
        assert row["slices"] == len(areas)
        if name == "spleen":
            assert row["mean_percent"] is None
            assert row["volumes"] == 0
            continue
        for what in ("mean", "median", "min", "max"):
            assert row[f"{what}_percent"] == pytest.approx(getattr(np, what)(areas))
        assert row["volumes"] == row["patients"] == 3
        assert row["median_volume_mm3"] == pytest.approx(np.median([(s == value).sum() * 9.0 for s in stacks]))
        assert sum(row["buckets"].values()) == len(areas)
    lesion = next(r for r in found["objects"] if r["object"] == "liver lesion")
    assert lesion["slices"] == 3 * 3
    assert lesion["min_percent"] == pytest.approx(100 / 480)  # the one-voxel lesion


def test_sizes_in_mm_leave_out_unknown_voxel_sizes(labels_dir):
    cases = [LabelledCase(p, OBJECTS, "set", p.name[:6]) for p in sorted(labels_dir.glob("*"))]
    known = dataset_statistics(cases[:1], read_volume)["objects"]
    found = dataset_statistics([cases[0], replace(cases[1], spacing_known=False)], read_volume)["objects"]
    for row, alone in zip(found, known, strict=True):
        assert row["volumes"] == 2 * alone["volumes"]
        assert row["median_diameter_mm"] == alone["median_diameter_mm"]
        assert row["median_volume_mm3"] == alone["median_volume_mm3"]


def test_empty_label_maps_are_named(labels_dir, make_volume):
    make_volume(labels_dir / "case_2.nii.gz", np.zeros((24, 20, 12), np.uint8))
    cases = [LabelledCase(p, OBJECTS, "set", p.name[:6]) for p in sorted(labels_dir.glob("*"))]
    assert dataset_statistics(cases, read_volume)["without_object"] == ["case_2"]


def test_unreadable_label_is_listed(labels_dir):
    (labels_dir / "case_1.nii.gz").write_bytes(b"no volume")
    cases = [LabelledCase(p, OBJECTS, "set", p.name[:6]) for p in sorted(labels_dir.glob("*"))]
    found = dataset_statistics(cases, read_volume)
    assert [failure["case"] for failure in found["failures"]] == ["case_1"]
    assert found["objects"][0]["volumes"] == 2


@pytest.fixture
def decathlon(labels_dir: Path) -> Path:
    """The labels as a Decathlon folder; a copy of each label map serves as its image."""
    shutil.copytree(labels_dir, labels_dir.parent / "images")
    items = [{"image": f"images/{p.name}", "label": f"labels/{p.name}"} for p in sorted(labels_dir.glob("*"))]
    labels = {"0": "background", **{str(k): v for k, v in OBJECTS.items()}}
    content = {"name": "set", "labels": labels, "training": items[:2], "validation": items[2:]}
    (labels_dir.parent / "dataset.json").write_text(json.dumps(content))
    return labels_dir.parent


def test_command(decathlon, tmp_path):
    command = [sys.executable, str(SCRIPT), str(decathlon), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "liver lesion" in done.stdout
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert [row["slices"] for row in written["objects"]] == [18, 9, 0]


def test_command_puts_published_figures_beside(decathlon, tmp_path):
    app = typer.Typer()
    app.command()(main)
    file = tmp_path / "published.json"
    file.write_text(json.dumps({"set": {"liver lesion": {"mean_percent": 0.77, "slices": 1234}}, "other": {"x": {}}}))
    options = ["--published", str(file), "--output-dir", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [str(decathlon), *options], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    line = next(line for line in done.output.splitlines() if "liver lesion" in line)
    assert "(0.77)" in line
    assert "(1234)" in line
    rows = list(csv.DictReader((tmp_path / "out" / "statistics.csv").open()))
    assert [row["published_slices"] for row in rows if row["object"] == "liver lesion"] == ["1234"]
    for content, message in (
        ({"set": {"nothing": {"slices": 1}}}, "has no object 'nothing'"),
        ({"set": {"liver lesion": {"mean": 1}}}, "'mean' is none of"),
        ({"set": {"liver lesion": 1}}, "expected numbers"),
    ):
        file.write_text(json.dumps(content))
        done = CliRunner().invoke(app, [str(decathlon), "--published", str(file)])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())


def test_command_counts_a_labelled_test_list(decathlon):
    app = typer.Typer()
    app.command()(main)
    file = decathlon / "dataset.json"
    content = json.loads(file.read_text())

    def slices() -> str:
        done = CliRunner().invoke(app, [str(decathlon)])
        assert done.exit_code == 0, done.output
        return done.output

    whole = slices()
    content["test"] = content["validation"]
    content["validation"] = content["training"][1:]
    content["training"] = content["training"][:1]
    file.write_text(json.dumps(content))
    assert slices() == whole
    content["test"] = [item["image"] for item in content["test"]]
    file.write_text(json.dumps(content))
    assert slices() != whole


@pytest.mark.parametrize("lists", [("training",), ("validation",), ("test",)])
def test_command_needs_no_split(decathlon, lists):
    app = typer.Typer()
    app.command()(main)
    file = decathlon / "dataset.json"
    content = json.loads(file.read_text())
    item = content["training"][0]
    file.write_text(
        json.dumps({**{key: content[key] for key in ("name", "labels")}, **{name: [item] for name in lists}})
    )
    done = CliRunner().invoke(app, [str(decathlon)])
    assert done.exit_code == 0, done.output
    assert "liver lesion" in done.output
    assert "split" not in done.output


def test_command_with_bad_input(decathlon, tmp_path):
    app = typer.Typer()
    app.command()(main)
    (decathlon / "labels" / "case_1.nii.gz").write_bytes(b"no volume")
    done = CliRunner().invoke(app, [str(decathlon)])
    assert done.exit_code == 1
    assert "case_1.nii.gz" in done.stderr
    done = CliRunner().invoke(app, [str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert "nowhere" in done.stderr


@pytest.mark.slow
def test_openkbp_has_the_sizes_its_readme_states(real_data_dir):
    from boltzformer.data.cases import load_cases

    cases = [LabelledCase.from_dict(case) for case in load_cases(real_data_dir / "openkbp", "training")]
    found = dataset_statistics(cases, read_volume)
    means = {row["object"]: row["mean_percent"] for row in found["objects"]}
    stated = {"spinal cord": 0.06, "brainstem": 0.16, "esophagus": 0.06, "larynx": 0.25, "mandible": 0.3}
    for name, value in stated.items():
        assert means[name] == pytest.approx(value, rel=0.2)
