"""slices.csv of an evaluator and of a folder evaluation name their rows alike, so that the two can be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from boltzformer.data.cases import load_cases
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.errors import InputError
from boltzformer.manifest import Manifest
from boltzformer.metrics.evaluation import evaluate_folder
from boltzformer.metrics.files import read_csv
from boltzformer.metrics.handlers import SizeBucketDiceHandler
from boltzformer.metrics.handlers.account import EvaluationAccount
from boltzformer.metrics.measures.cases import LabelledCase
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.measures.rows import SLICE_KEY, key_of
from boltzformer.metrics.show.terminal import print_comparison
from boltzformer.metrics.summary.comparison import compare_with
from boltzformer.volumes.checks import read_volume
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from rich.console import Console

from tests.support import write_json

OBJECTS = {"1": "liver lesion", "2": "left kidney"}


@pytest.fixture
def dataset(labels_dir: Path, make_volume) -> Path:
    """Images and labels that are named differently, as in many public datasets."""
    items = []
    for path in sorted(labels_dir.glob("*.nii.gz")):
        label = np.asarray(nib.load(path).dataobj)
        make_volume(labels_dir.parent / "images" / f"ct_{path.name}", (100 * label).astype(np.int16))
        items.append({"image": f"images/ct_{path.name}", "label": f"labels/{path.name}", "patient": path.name[:6]})
    content = {"name": "set", "modality": "CT", "labels": OBJECTS, "training": items[:1], "validation": items[1:]}
    return write_json(labels_dir.parent / "dataset.json", content).parent


def score_slices(dataset: Path, output_dir: Path) -> list[dict[str, str]]:
    """An evaluator as in training; what it predicts is any bright pixel."""

    class Bright(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image > image.amin()).float()

    data = SliceDataset(load_cases(dataset, "validation"), output_dir / "cache", progress=False)
    handler = SizeBucketDiceHandler(str(output_dir), print_table=False)
    loader = DataLoader(data, batch_size=4)
    network = Bright()
    device = torch.device("cpu")
    SupervisedEvaluator(device, loader, network, key_val_metric={"val_dice": handler}).run()
    return read_csv(output_dir / "slices.csv")


def test_a_comparison_of_the_two_finds_every_slice(dataset, exact_predictions, tmp_path, capsys):
    first = score_slices(dataset, tmp_path / "training")
    (exact_predictions / "case_0.nii.gz").unlink()  # of the training section
    cases = [LabelledCase.from_dict(case) for case in load_cases(dataset, "validation")]
    second = evaluate_folder(cases, PredictionFolder(exact_predictions), read_volume)
    assert second.failures == []
    positive = {key_of(row, SLICE_KEY) for row in second.slices if row["dice"] is not None}
    assert {key_of(row) for row in first} == positive
    assert list(first[0]) == list(second.slices[0])  # one producer: the same columns in the same order
    comparison = compare_with(second, tmp_path / "training")
    assert comparison["overall"]["n"] == len(positive)
    assert comparison["overall"]["first"] == pytest.approx(np.mean([float(row["dice"]) for row in first]))
    assert comparison["overall"]["second"] == 1
    assert comparison["volumes"] == {}  # training scores slices only
    assert (comparison["only_first"], comparison["only_second"]) == (0, 0)
    fewer = [row for row in second.slices if row["case"] != "ct_case_1"]
    gone = len({key for key in positive if key[1] == "ct_case_1"})
    comparison = compare_with(replace(second, slices=fewer), tmp_path / "training")
    assert (comparison["only_first"], comparison["only_second"]) == (gone, 0)
    print_comparison(comparison, Console(width=200))
    assert (
        f"Left out of the comparison: {gone} slices scored in the earlier evaluation alone" in capsys.readouterr().out
    )


def test_formats_other_than_nifti_name_a_case_alike(dataset, tmp_path):
    for path in sorted(dataset.glob("*/*.nii.gz")):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image, str(path.with_name(path.name.replace(".nii.gz", ".nrrd"))))
    content = (dataset / "dataset.json").read_text()
    (dataset / "dataset.json").write_text(content.replace(".nii.gz", ".nrrd"))
    cases = load_cases(dataset, "validation")
    named = {LabelledCase.from_dict(case).name for case in cases}
    assert {row["case"] for row in score_slices(dataset, tmp_path / "training")} == named
    scored = SizeBucketDiceHandler()
    scored.rows = [{"dataset": "set", "case": name} for name in named]
    manifest = Manifest("evaluation", tmp_path, None, {})
    EvaluationAccount(cases, scored, manifest)._write(None)
    assert [entry.status for entry in manifest.entries] == ["done", "done"]


def garbage(folder: Path, text: str | bytes) -> Path:
    folder.mkdir()
    (folder / "slices.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


HEAD = "dataset,case,patient,object,slice,text,dice,area_percent"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "slices.csv has no column dataset"),
        (f"{HEAD}\nset,c,p,o,1,t,good,0.2\n", "line 2, column dice: expected a number or nothing, found 'good'"),
        (f"{HEAD}\nset,c,p,o\n", "line 2: the line ends before its column slice"),
        (b"\xff\xfe\x00\x01", "cannot read"),
        ("", "is empty"),
        (f"{HEAD}\n", "no scored row in common"),
    ],
)
def test_a_damaged_earlier_result_is_one_clear_error(text, message, labels_dir, exact_predictions, tmp_path):
    names = {int(value): name for value, name in OBJECTS.items()}
    cases = [LabelledCase(path, names, "set", path.name[:6]) for path in sorted(labels_dir.glob("*"))]
    found = evaluate_folder(cases, PredictionFolder(exact_predictions), read_volume)
    with pytest.raises(InputError, match=message):
        compare_with(found, garbage(tmp_path / "earlier", text))
