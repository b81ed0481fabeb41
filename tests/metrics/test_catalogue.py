"""A new metric is one entry: it reaches the CSV, summary, intervals, comparison, terminal and page by itself."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
from boltzformer.metrics.evaluation import evaluate_folder
from boltzformer.metrics.files import read_csv, write_csv
from boltzformer.metrics.measures import catalogue
from boltzformer.metrics.measures.cases import LabelledCase
from boltzformer.metrics.measures.measure import Measure, mean_of
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.show.report import write_report
from boltzformer.metrics.show.terminal import print_comparison, print_evaluation
from boltzformer.metrics.summary.comparison import compare_with
from boltzformer.volumes.checks import read_volume
from rich.console import Console

OBJECTS = {1: "liver lesion", 2: "left kidney"}


def jaccard(counts) -> float | None:
    union = counts.label + counts.predicted - counts.overlap
    return counts.overlap / union if counts.present else None


def extent(masks) -> float | None:
    return masks.predicted_mm3 / masks.label_mm3 if masks.positive else None


NEW_OF_SLICES = Measure(
    "mean_jaccard", "Jaccard index", "jaccard", jaccard, mean_of("jaccard"), key="jaccard", headline="Jaccard per slice"
)
NEW_OF_VOLUMES = Measure("mean_extent", "relative extent", "extent", extent, mean_of("extent"), key="extent")


@pytest.fixture
def shifted(labels_dir, tmp_path, make_volume) -> PredictionFolder:
    for path in labels_dir.glob("*"):
        make_volume(tmp_path / "shifted" / path.name, np.roll(np.asarray(nib.load(path).dataobj), 1, 0))
    return PredictionFolder(tmp_path / "shifted")


def test_one_entry_is_enough(labels_dir, exact_predictions, shifted, tmp_path, monkeypatch):
    slices, volumes = catalogue.slice_measures, catalogue.volume_measures
    monkeypatch.setattr(catalogue, "slice_measures", lambda *settings: (*slices(*settings), NEW_OF_SLICES))
    monkeypatch.setattr(catalogue, "volume_measures", lambda *settings: (*volumes(*settings), NEW_OF_VOLUMES))
    cases = [LabelledCase(path, OBJECTS, "set", path.name[:6]) for path in sorted(labels_dir.glob("*"))]
    first = evaluate_folder(cases, shifted, read_volume)
    first.write(tmp_path / "first")
    dice = [row["dice"] for row in first.slices if row["dice"] is not None]
    expected = np.mean([d / (2 - d) for d in dice])  # Jaccard follows from Dice
    with (tmp_path / "first" / "slices.csv").open() as stream:
        column = [float(row["jaccard"]) for row in csv.DictReader(stream) if row["jaccard"]]
    assert np.mean(column) == pytest.approx(expected)
    assert first.summary["slices"]["overall"]["mean_jaccard"] == pytest.approx(expected)
    assert first.summary["slices"]["overall"]["small"]["mean_jaccard"] is not None
    interval = first.summary["intervals"]["overall"]["jaccard"]
    assert interval["value"] == pytest.approx(expected)
    assert interval["clusters"] == 3
    assert interval["low"] == pytest.approx(expected)  # the three patients are alike
    assert first.summary["volumes"]["objects"]["set / left kidney"]["mean_extent"] == 1
    second = evaluate_folder(cases, PredictionFolder(exact_predictions), read_volume)
    comparison = compare_with(second, tmp_path / "first")
    assert comparison["slices"]["jaccard"]["difference"] == pytest.approx(1 - expected)
    assert comparison["volumes"]["extent"]["n"] == 6
    console = Console(record=True, width=200)
    print_evaluation(first.summary, console)
    print_comparison(comparison, console)
    printed = console.export_text()
    assert "Jaccard index" in printed
    assert "relative extent" in printed
    assert f"{expected:.3f}" in printed
    page = write_report(tmp_path / "report.html", first, comparison=comparison).read_text()
    assert "Jaccard per slice" in page  # at its head
    assert page.count("Jaccard index</th>") == 3  # by share, by diameter, by object
    assert "relative extent</th>" in page
    assert "<td>Jaccard index</td>" in page  # of the comparison


def test_every_entry_is_complete():
    found = catalogue.Catalogue()
    for measures in (found.slices, found.volumes, found.lesions):
        names = [measure.name for measure in measures]
        assert len(set(names)) == len(names)
        assert all(measure.title for measure in measures)
        for measure in measures:
            assert measure.key or not measure.headline, f"{measure.name}: its headline needs an interval"
            assert bool(measure.column) == (measure.compute is not None)
    keys = [m.key for m in (*found.slices, *found.volumes, *found.lesions) if m.key]
    assert len(set(keys)) == len(keys)


def test_an_entry_without_a_way_to_average_is_refused():
    with pytest.raises(ValueError, match="either `part` or `total`"):
        Measure("x", "x")
    with pytest.raises(ValueError, match="no `part` to give its interval"):
        Measure("x", "x", total=len, key="x")


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "\ta", "'=1+1", "plain", "'plain"])
def test_no_name_is_a_formula_in_a_csv_and_all_come_back(name, tmp_path):
    path = write_csv(tmp_path / "t.csv", [{"object": name, "dice": -0.5}])
    with path.open(newline="") as stream:
        cell = list(csv.reader(stream))[1]
    assert cell[0][0] not in "=+-@\t"
    assert cell[1] == "-0.5"
    assert read_csv(path)[0]["object"] == name
