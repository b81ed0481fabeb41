"""The HTML report: complete, self-contained, and truthful where there is nothing to show."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.errors import InputError
from boltzformer.metrics.evaluation import evaluate_folder
from boltzformer.metrics.measures.cases import EvaluationSettings, LabelledCase
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.show.figures import interval_plot
from boltzformer.metrics.show.pictures import case_picture, worst_volumes
from boltzformer.metrics.show.report import write_report
from boltzformer.metrics.summary.comparison import compare_with
from boltzformer.metrics.summary.evaluation import summarise
from boltzformer.volumes.checks import read_volume
from PIL import Image

OBJECTS = {1: "liver lesion", 2: "left kidney <b>"}


class Page(HTMLParser):
    """Collects what a page refers to, its text, and tags that were never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def evaluated(labels_dir, tmp_path, make_volume):
    for path in labels_dir.glob("*.nii.gz"):
        case, label = path.name.split(".")[0], np.asarray(nib.load(path).dataobj)
        shifted = np.roll(label, 1, 0)
        probability = np.where(shifted == 1, 0.8, 0.1).astype(np.float32)
        for value, name in ((1, "liver_lesion"), (2, "left_kidney_<b>")):
            make_volume(tmp_path / "p" / f"{case}_{name}.nii.gz", (shifted == value).astype(np.uint8))
        make_volume(tmp_path / "p" / f"{case}_liver_lesion_prob.nii.gz", probability)
        make_volume(tmp_path / "images" / path.name, np.random.default_rng(0).normal(size=label.shape))
    cases = [
        LabelledCase(p, OBJECTS, "set", p.name[:6], tmp_path / "images" / p.name)
        for p in sorted(labels_dir.glob("*.nii.gz"))
    ]
    folder = PredictionFolder(tmp_path / "p")
    return evaluate_folder(cases, folder, read_volume), cases, folder


def test_report_has_every_part_and_needs_no_network(evaluated, tmp_path):
    found, cases, folder = evaluated
    found.write(tmp_path / "first")
    comparison = compare_with(found, tmp_path / "first")
    path = write_report(tmp_path / "r" / "report.html", found, cases, folder, read_volume, comparison)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert all(link.startswith("data:image/") for link in page.links)
    assert len(page.links) == 8 + 6  # charts and the six (case, object) pairs
    assert "http" not in path.read_text().replace("http://www.w3.org", "")
    text = " ".join(page.text)
    for part in ("By size", "By volume", "By lesion", "Can the score", "absent", "earlier evaluation", "Worst"):
        assert part in text
    assert "left kidney <b>" in text  # escaped in the source, not a tag
    assert f"{found.summary['volumes']['overall']['mean_dice']:.3f}" in text
    for link in page.links:
        kind, data = link.split(";base64,")
        content = base64.b64decode(data)
        if kind == "data:image/png":
            assert Image.open(io.BytesIO(content)).size[0] > 300
        else:
            assert content.startswith(b"<?xml")
            assert b'xlink:href="http' not in content


def test_same_rows_give_the_same_page(evaluated, tmp_path):
    found = evaluated[0]
    one, two = (write_report(tmp_path / name, found).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_slices_alone_make_a_report_without_the_other_parts(evaluated, tmp_path):
    whole = evaluated[0]
    found = Evaluation(EvaluationSettings(), 3, slices=whole.slices)
    found.summary = summarise(found)
    text = write_report(tmp_path / "slices.html", found).read_text()
    assert "By size" in text
    for part in ("By volume", "By lesion", "Can the score", "Worst"):
        assert part not in text


def test_nothing_positive_and_failures_are_said(evaluated, tmp_path):
    found = Evaluation(EvaluationSettings(), 1)
    found.failures = [{"case": f"c{i}", "object": "o", "error": f"file{i}.nii.gz is <broken>"} for i in range(60)]
    found.summary = summarise(found)
    text = write_report(tmp_path / "none.html", found).read_text()
    assert "60 could not be scored" in text
    assert "file0.nii.gz is &lt;broken&gt;" in text
    assert "and 10 more" in text


def test_missing_image_is_noted_and_the_picture_still_drawn(evaluated, tmp_path):
    found, cases, folder = evaluated
    for case in cases:
        case.image.unlink()
    text = write_report(tmp_path / "r.html", found, cases, folder, read_volume).read_text()
    assert "without the image" in text
    assert text.count("data:image/png") == 6


def test_unwritable_folder(evaluated, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", evaluated[0])


def test_worst_volumes_show_misses_and_poor_ones():
    rows = [
        {"positive": 1, "dice": d, "label_mm3": size, "predicted_mm3": p, "case": i}
        for i, (d, size, p) in enumerate([(0, 5, 0), (0, 9, 0), (0, 7, 0), (0.2, 1, 1), (0.1, 1, 1), (0.9, 1, 1)])
    ]
    assert [row["case"] for row in worst_volumes([*rows, {"positive": 0}], 4)] == [1, 2, 4, 3]
    assert [row["case"] for row in worst_volumes(rows[:3], 4)] == [1, 2, 0]
    assert [row["case"] for row in worst_volumes(rows[3:], 2)] == [4, 3]
    assert worst_volumes(rows, 0) == []


def test_picture_shows_the_label_where_it_is():
    """The patient's right is on the left of the picture, and anterior is up."""
    label = np.zeros((40, 40, 5), bool)
    label[30:36, 30:36, 2] = True  # right, anterior
    png, index = case_picture(label, np.zeros_like(label), (1.0, 1.0, 5.0))
    assert index == 2
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    whole = pixels[:, : pixels.shape[1] // 2]
    green = (whole[..., 1] > 150) & (whole[..., 0] < 100)
    rows, columns = np.nonzero(green)
    assert columns.mean() < whole.shape[1] / 2
    assert rows.mean() < whole.shape[0] / 2


def test_comparison_reads_the_files_that_were_written(evaluated, labels_dir, exact_predictions, tmp_path):
    found, cases, _ = evaluated
    found.write(tmp_path / "first")
    better = evaluate_folder(cases, PredictionFolder(exact_predictions), read_volume)
    comparison = compare_with(better, tmp_path / "first")
    assert comparison["overall"]["second"] == 1
    first = found.summary["slices"]["overall"]["mean_dice"]
    assert comparison["overall"]["first"] == pytest.approx(first)
    assert comparison["overall"]["difference"] == pytest.approx(1 - first)
    assert comparison["volumes"]["dice"]["n"] == 6
    assert comparison["volumes"]["hd95_mm"]["difference"] < 0
    assert sum(b["share_of_difference"] for b in comparison["buckets_percent"].values()) == pytest.approx(1)
    with pytest.raises(InputError, match="nowhere"):
        compare_with(better, Path("nowhere"))


def test_picture_is_of_the_slice_with_the_most_wrong_voxels():
    label, pred = np.zeros((2, 30, 30, 6), bool)
    label[5:15, 5:15, 1] = pred[5:15, 5:15, 1] = True
    assert case_picture(label, pred, (1.0, 1.0, 1.0))[1] == 1
    pred[20:22, 20:22, 4] = True
    assert case_picture(label, pred, (1.0, 1.0, 1.0))[1] == 4


def test_a_name_is_no_formula():
    line = {"value": 0.5, "low": None, "high": None}
    assert interval_plot({r"lesion $\frac$": line, "a $ b": line}, "mean Dice").startswith("<?xml")
