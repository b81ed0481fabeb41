"""Folders of NIfTI predictions: layouts, numbers on known masks, and every kind of bad input."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.errors import InputError
from boltzformer.metrics.evaluation import evaluate_folder, told_apart
from boltzformer.metrics.measures.cases import EvaluationSettings, LabelledCase
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.show.report import write_report
from boltzformer.volumes.checks import read_volume

OBJECTS = {1: "liver lesion", 2: "left kidney"}


def cases(folder: Path, **extra) -> list[LabelledCase]:
    return [LabelledCase(p, OBJECTS, "set", p.name[:6], **extra) for p in sorted(folder.glob("*.nii.gz"))]


def run(labels: Path, predictions: Path, workers: int = 1, **settings) -> Evaluation:
    return evaluate_folder(
        cases(labels), PredictionFolder(predictions), read_volume, EvaluationSettings(**settings), workers
    )


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_exact_predictions_are_perfect(labels_dir, exact_predictions, tmp_path):
    found = run(labels_dir, exact_predictions)
    assert found.failures == []
    summary = found.summary
    assert summary["slices"]["overall"]["mean_dice"] == 1
    assert summary["volumes"]["overall"]["n"] == 6
    assert summary["volumes"]["overall"]["surface_dice_1mm"] == 1
    assert summary["volumes"]["overall"]["hd95_mm"]["mean"] == 0
    assert summary["lesions"]["overall"]["lesions"] == 9
    assert summary["lesions"]["overall"]["f1"] == summary["lesions"]["overall"]["panoptic_quality"] == 1
    assert summary["calibration"] is None
    assert summary["intervals"]["overall"]["slice_dice"] == {"value": 1, "low": 1, "high": 1, "clusters": 3}
    found.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["cases"] == 3
    with (tmp_path / "out" / "slices.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 3 * 2 * 12


def test_three_layouts_give_the_same_numbers(labels_dir, tmp_path, make_volume):
    for path in labels_dir.glob("*.nii.gz"):
        case, pred = path.name.split(".")[0], np.roll(load(path), 1, 0)
        make_volume(tmp_path / "a" / path.name, pred)
        for value, name in OBJECTS.items():
            mask = (pred == value).astype(np.uint8)
            make_volume(tmp_path / "b" / f"{case}_{name.replace(' ', '_')}.nii.gz", mask)
            make_volume(tmp_path / "c" / case / f"{name.replace(' ', '-').upper()}.nii", mask)
    results = [run(labels_dir, tmp_path / name) for name in "abc"]
    assert all(r.failures == [] for r in results)
    assert results[0].summary == results[1].summary == results[2].summary
    assert 0.3 < results[0].summary["slices"]["overall"]["mean_dice"] < 1


def test_a_prediction_in_another_orientation_of_the_same_grid_is_right(labels_dir, tmp_path):
    for path in labels_dir.glob("*.nii.gz"):
        (tmp_path / "ras").mkdir(exist_ok=True)
        nib.save(nib.as_closest_canonical(nib.load(path)), tmp_path / "ras" / path.name)
    found = run(labels_dir, tmp_path / "ras")
    assert found.failures == []
    assert found.summary["volumes"]["overall"]["mean_dice"] == 1


def test_aliases_name_the_files_of_other_tools(labels_dir, tmp_path, make_volume):
    for path in labels_dir.glob("*.nii.gz"):
        case, label = path.name.split(".")[0], load(path)
        make_volume(tmp_path / "p" / case / "kidney_left.nii.gz", (label == 2).astype(np.uint8))
        make_volume(tmp_path / "p" / case / "liver_lesion.nii.gz", (label == 1).astype(np.uint8))
    folder = PredictionFolder(tmp_path / "p", {"left kidney": "kidney_left"})
    found = evaluate_folder(cases(labels_dir), folder, read_volume)
    assert found.failures == []


def test_absent_objects_are_left_out_or_negatives(labels_dir, exact_predictions, make_volume):
    label = load(labels_dir / "case_0.nii.gz")
    make_volume(labels_dir / "case_0.nii.gz", np.where(label == 2, 0, label).astype(np.uint8))
    unknown = run(labels_dir, exact_predictions)
    assert unknown.left_out == {"left kidney": 1}
    assert unknown.summary["volumes"]["overall"]["negatives"]["n"] == 0
    negative = run(labels_dir, exact_predictions, absent_is_negative=True)
    described = negative.summary["volumes"]["overall"]["negatives"]
    assert described["n"] == described["with_false_positives"] == 1
    assert described["mean_false_positive_mm3"] == pytest.approx(12 * 6 * 6 * 9.0)
    assert negative.summary["volumes"]["overall"]["n"] == 5  # and no Dice of it anywhere
    assert negative.summary["volumes"]["overall"]["mean_dice"] == 1
    annotated = evaluate_folder(
        cases(labels_dir, annotated=frozenset({2})), PredictionFolder(exact_predictions), read_volume
    )
    assert annotated.summary["volumes"]["overall"]["negatives"]["n"] == 1


def test_probabilities_give_scores_froc_and_calibration(labels_dir, tmp_path, make_volume):
    for path in labels_dir.glob("*.nii.gz"):
        case, label = path.name.split(".")[0], load(path)
        mask = label == 1
        mask[20:23, 1, 1] = True  # a false positive, less sure
        probability = np.where(mask, 0.9, 0.05).astype(np.float32)
        probability[20:23, 1, 1] = 0.6
        make_volume(tmp_path / "p" / f"{case}_liver_lesion.nii.gz", mask.astype(np.uint8))
        make_volume(tmp_path / "p" / f"{case}_liver_lesion_prob.nii.gz", probability)
        make_volume(tmp_path / "p" / f"{case}_left_kidney.nii.gz", (label == 2).astype(np.uint8))
    found = run(labels_dir, tmp_path / "p")
    assert found.failures == []
    lesion = [row for row in found.lesions if row["object"] == "liver lesion"]
    assert sorted({round(row["score"], 6) for row in lesion}) == [0.6, 0.9]
    assert found.summary["lesions"]["score_auroc"] == {"true": 6, "false": 3, "auroc": 1.0}
    curve = found.summary["lesions"]["froc"]
    assert curve["objects"] == ["set / liver lesion"]  # the kidney's predictions carry no score
    assert curve["at"]["0.125"] == curve["score"] == 1.0  # all lesions before the first false positive
    assert curve["false_positives_per_scan"][-1] == 1.0
    calibration = found.summary["calibration"]["objects"]["set / liver lesion"]
    assert calibration["voxels"] > 0
    assert 0.03 < calibration["before"]["ece"] < 0.06  # 0.05 too much in the background, which is most voxels


def test_an_object_that_is_never_found_lowers_the_froc(labels_dir, tmp_path, make_volume):
    for path in labels_dir.glob("*.nii.gz"):
        case, mask = path.name.split(".")[0], load(path) == 1
        make_volume(tmp_path / "p" / f"{case}_liver_lesion.nii.gz", mask.astype(np.uint8))
        make_volume(tmp_path / "p" / f"{case}_left_kidney.nii.gz", np.zeros_like(mask, np.uint8))
        for name in ("liver_lesion", "left_kidney"):
            make_volume(tmp_path / "p" / f"{case}_{name}_prob.nii.gz", np.full(mask.shape, 0.4, np.float32))
    lesions = run(labels_dir, tmp_path / "p").summary["lesions"]
    assert lesions["froc"]["objects"] == ["set / left kidney", "set / liver lesion"]
    assert lesions["froc"]["at"]["8"] == lesions["overall"]["sensitivity"] == 6 / 9


def test_nothing_is_measured_in_mm_where_the_voxel_size_is_not_known(labels_dir, tmp_path, make_volume):
    """Cases 0 and 1 of unknown voxel size, the second missed; case 2 shifted by a voxel of 1.5 mm."""
    for i, path in enumerate(sorted(labels_dir.glob("*.nii.gz"))):
        label = load(path)
        make_volume(tmp_path / "p" / path.name, [label, label * (label == 1), np.roll(label, 1, 1)][i])
    three = [replace(case, spacing_known=i == 2) for i, case in enumerate(cases(labels_dir))]
    three[0] = replace(three[0], objects={**OBJECTS, 3: "spleen"}, annotated=frozenset({3}))
    found = evaluate_folder(three, PredictionFolder(tmp_path / "p"), read_volume)
    assert found.failures == []
    unknown = [row for row in [*found.slices, *found.volumes, *found.lesions] if row["case"] != "case_2"]
    sizes = {key: row[key] for row in unknown for key in row if key.rsplit("_", 1)[-1] in ("mm", "mm2", "mm3", "2mm")}
    assert len(sizes) > 8
    assert not any(row.get(key) for row in unknown for key in sizes)  # 0 mm3 of nothing is known
    volumes = found.summary["volumes"]["objects"]
    kidney = volumes["set / left kidney"]
    assert (kidney["n"], kidney["hd95_mm"]) == (3, {"n": 1, "mean": 1.5, "median": 1.5, "undefined": 1})
    assert volumes["set / spleen"]["negatives"]["specificity"] == volumes["set / spleen"]["negatives"]["n"] == 1
    lesions = found.summary["lesions"]
    assert lesions["overall"]["lesions"] == 9
    assert sum(bucket["lesions"] for bucket in lesions["buckets_mm"].values()) == 3
    write_report(tmp_path / "report.html", found, three, PredictionFolder(tmp_path / "p"), read_volume)
    assert LabelledCase.from_dict({"label": "l.nii", "objects": {}, "dataset": "d", "patient": "p"}).spacing_known


def test_workers_give_the_same_result(labels_dir, exact_predictions):
    assert run(labels_dir, exact_predictions, workers=2).summary == run(labels_dir, exact_predictions).summary


BAD = {
    "missing": (None, "no prediction of"),
    "other grid": ("shape", "another grid"),
    "moved": ("affine", "another grid"),
    "not binary": ("values", "values 0 and 1"),
    "soft": ("soft", "threshold"),
    "truncated": ("truncated", "truncated"),
    "nan": ("nan", "NaN"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_prediction_is_named_and_the_others_go_on(kind, labels_dir, tmp_path, make_volume):
    how, message = BAD[kind]
    for path in labels_dir.glob("*.nii.gz"):
        case, label = path.name.split(".")[0], load(path)
        for value, name in OBJECTS.items():
            file = tmp_path / "p" / f"{case}_{name.replace(' ', '_')}.nii.gz"
            mask = (label == value).astype(np.uint8)
            make_volume(file, mask)
            if (case, value) != ("case_1", 1):
                continue
            affine = nib.load(path).affine.copy()
            if how is None:
                file.unlink()
            elif how == "shape":
                make_volume(file, mask[:-1])
            elif how == "affine":
                affine[0, 3] += 1
                make_volume(file, mask, affine)
            elif how == "values":
                make_volume(file, mask * 3)
            elif how == "soft":
                make_volume(file, mask * np.float32(0.7))
            elif how == "nan":
                make_volume(file, np.where(mask, np.nan, 0).astype(np.float32))
            elif how == "truncated":
                file.write_bytes(file.read_bytes()[:-40])
    found = run(labels_dir, tmp_path / "p")
    (failure,) = found.failures
    assert (failure["case"], failure["object"]) == ("case_1", "liver lesion")
    assert message in failure["error"]
    assert "case_1" in failure["error"]
    assert len(found.volumes) == 5


def test_bad_labels_are_named_and_the_others_go_on(labels_dir, exact_predictions, make_volume):
    label = load(labels_dir / "case_0.nii.gz")
    label[0, 0, 0] = 9
    make_volume(labels_dir / "case_0.nii.gz", label)
    (labels_dir / "case_1.nii.gz").write_bytes(b"")
    found = run(labels_dir, exact_predictions)
    errors = {failure["case"]: failure["error"] for failure in found.failures}
    assert set(errors) == {"case_0", "case_1"}
    assert "[9]" in errors["case_0"]
    assert "case_1.nii.gz" in errors["case_1"]
    assert {row["case"] for row in found.volumes} == {"case_2"}


def test_prediction_map_with_an_unknown_value(labels_dir, exact_predictions, make_volume):
    pred = load(exact_predictions / "case_2.nii.gz")
    pred[0, 0, 0] = 5
    make_volume(exact_predictions / "case_2.nii.gz", pred)
    found = run(labels_dir, exact_predictions)
    assert len(found.failures) == 2  # both objects of that map
    assert all("[5] stand for no object" in failure["error"] for failure in found.failures)


def end_process(path):
    os._exit(9)


def test_a_process_that_is_killed_is_one_clear_error(labels_dir, exact_predictions):
    with pytest.raises(InputError, match="give fewer --workers"):
        evaluate_folder(cases(labels_dir), PredictionFolder(exact_predictions), end_process, workers=2)


def test_prediction_without_a_label(labels_dir, exact_predictions):
    (labels_dir / "case_2.nii.gz").unlink()
    found = run(labels_dir, exact_predictions)
    (failure,) = found.failures
    assert "case_2.nii.gz" in failure["error"]


def test_nothing_to_do_is_an_error(labels_dir, exact_predictions, tmp_path):
    with pytest.raises(InputError, match="no labelled case"):
        evaluate_folder([], PredictionFolder(exact_predictions), read_volume)
    with pytest.raises(InputError, match="not a folder"):
        PredictionFolder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no prediction"):
        PredictionFolder(tmp_path / "empty")
    twice = cases(labels_dir) + cases(labels_dir)
    with pytest.raises(InputError, match="share the name"):
        evaluate_folder(twice, PredictionFolder(exact_predictions), read_volume)


def test_label_map_beside_a_case_folder_is_not_mistaken_for_the_labels_values(labels_dir, tmp_path, make_volume):
    """The bundle's inference writes a folder of masks and a map that numbers the prompts as they came."""
    for path in labels_dir.glob("*.nii.gz"):
        case, label = path.name.split(".")[0], load(path)
        make_volume(tmp_path / "p" / case / "left_kidney.nii.gz", (label == 2).astype(np.uint8))
        make_volume(tmp_path / "p" / f"{case}.nii.gz", (label == 2).astype(np.uint8))  # the kidney is value 1 here
    found = run(labels_dir, tmp_path / "p")
    assert [failure["object"] for failure in found.failures] == ["liver lesion"] * 3
    assert found.summary["volumes"]["overall"]["mean_dice"] == 1


def test_predictions_may_be_named_after_the_image(labels_dir, exact_predictions, tmp_path):
    for path in exact_predictions.glob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    named = [
        LabelledCase(p, OBJECTS, "set", p.name[:6], tmp_path / p.name.replace(".nii", "_0000.nii"))
        for p in sorted(labels_dir.glob("*.nii.gz"))
    ]
    found = evaluate_folder(named, PredictionFolder(exact_predictions), read_volume)
    assert found.failures == []
    assert found.summary["volumes"]["overall"]["mean_dice"] == 1


def test_two_files_for_one_mask_are_a_failure_that_names_both(labels_dir, exact_predictions, make_volume):
    make_volume(exact_predictions / "case_1.nii", load(labels_dir / "case_1.nii.gz"))
    found = run(labels_dir, exact_predictions)
    assert {failure["case"] for failure in found.failures} == {"case_1"}
    for failure in found.failures:
        assert "case_1.nii and" in failure["error"]
        assert "case_1.nii.gz have one name" in failure["error"]
    assert len(found.volumes) == 4


def test_drafts_and_hidden_companions_are_no_predictions(labels_dir, exact_predictions):
    (exact_predictions / "._case_0.nii.gz").write_bytes(b"AppleDouble")
    (exact_predictions / ".case_9.123.nii.gz").write_bytes(b"a draft")
    (exact_predictions / ".cache").mkdir()
    (exact_predictions / ".cache" / "case_8.nii.gz").write_bytes(b"")
    assert run(labels_dir, exact_predictions).failures == []


def test_images_of_one_name_leave_the_cases_apart(labels_dir, exact_predictions, tmp_path):
    named = [
        LabelledCase(path, OBJECTS, "set", path.name[:6], tmp_path / path.name[:6] / "ct.nii.gz")
        for path in sorted(labels_dir.glob("*.nii.gz"))
    ]
    found = evaluate_folder(named, PredictionFolder(exact_predictions), read_volume)
    assert found.failures == []
    assert {row["case"] for row in found.volumes} == {"case_0", "case_1", "case_2"}
    assert {row["patient"] for row in found.volumes} == {"case_0", "case_1", "case_2"}
    by_name = [replace(case, patient="ct") for case in named]  # as a datalist that names no patient has it
    found = evaluate_folder(by_name, PredictionFolder(exact_predictions), read_volume)
    assert found.summary["patients"] == found.summary["intervals"]["overall"]["volume_dice"]["clusters"] == 3


def test_sequences_that_share_a_label_map_have_predictions_of_their_own(labels_dir, tmp_path, make_volume):
    """The label map is named after the first sequence; nothing was found in the second."""
    path = labels_dir / "case_0.nii.gz"
    for value, name in OBJECTS.items():
        for case, found in (("case_0", 1), ("case_0_t2", 0)):
            mask = (load(path) == value).astype(np.uint8) * found
            make_volume(tmp_path / "p" / case / f"{name.replace(' ', '_')}.nii.gz", mask)
    two = [LabelledCase(path, OBJECTS, "set", "a", tmp_path / f"{name}.nii.gz") for name in ("case_0", "Case-0_T2")]
    found = evaluate_folder(two, PredictionFolder(tmp_path / "p"), read_volume)
    assert found.failures == []
    assert {(row["case"], row["dice"]) for row in found.volumes} == {("case_0", 1), ("Case-0_T2", 0)}
    write_report(tmp_path / "report.html", found, told_apart(two), PredictionFolder(tmp_path / "p"), read_volume)
    (tmp_path / "p" / "case_0_t2").rename(tmp_path / "elsewhere")
    found = evaluate_folder(two, PredictionFolder(tmp_path / "p"), read_volume)
    assert [failure["case"] for failure in found.failures] == ["Case-0_T2", "Case-0_T2"]


def test_sequences_of_one_label_map_are_one_patients(labels_dir, exact_predictions, tmp_path):
    """By their names they were two, and the interval drew them apart; so do others of either's volumes belong to it."""
    shared, other = labels_dir / "case_0.nii.gz", labels_dir / "case_1.nii.gz"
    listed = [
        LabelledCase(label, OBJECTS, "set", patient, tmp_path / f"{name}.nii.gz")
        for label, patient, name in ((shared, "t1", "t1"), (other, "t2", "later"), (shared, "t2", "t2"))
    ]
    (exact_predictions / "case_2.nii.gz").unlink()
    found = evaluate_folder(listed, PredictionFolder(exact_predictions), read_volume)
    assert found.failures == []
    assert {row["patient"] for row in [*found.slices, *found.volumes, *found.lesions]} == {"t1"}
    assert found.summary["patients"] == found.summary["intervals"]["overall"]["volume_dice"]["clusters"] == 1


def test_an_image_with_a_label_map_for_each_object_has_one_prediction(labels_dir, tmp_path, make_volume):
    label = load(labels_dir / "case_0.nii.gz")
    pairs = []
    for value, name in OBJECTS.items():
        own = make_volume(tmp_path / "each" / f"map_{value}.nii.gz", ((label == value) * value).astype(np.uint8))
        pairs.append(LabelledCase(own, {value: name}, "set", "a", tmp_path / "images" / "pt.nii.gz"))
        make_volume(tmp_path / "p" / "pt" / f"{name}.nii.gz", (label == value).astype(np.uint8))
    found = evaluate_folder(pairs, PredictionFolder(tmp_path / "p"), read_volume)
    assert found.failures == []
    assert [row["dice"] for row in found.volumes] == [1, 1]
    # of two images of one name it could be either's
    apart = [replace(case, image=tmp_path / case.label.stem / "pt.nii.gz") for case in pairs]
    found = evaluate_folder(apart, PredictionFolder(tmp_path / "p"), read_volume)
    assert [failure["case"] for failure in found.failures[:2]] == ["map_1", "map_2"]


def test_the_false_positive_volume_is_a_mean_over_known_voxel_sizes(labels_dir, tmp_path, make_volume):
    """A spleen that is nowhere, of which the second prediction has some; the voxel size of neither is known."""
    listed = cases(labels_dir)[:2]
    for i, case in enumerate(listed):
        label = load(case.label)
        make_volume(tmp_path / "p" / f"{case.name}.nii.gz", np.where(label, label, 3 * i).astype(np.uint8))
    objects = {**OBJECTS, 3: "spleen"}
    listed = [replace(case, objects=objects, annotated=frozenset({3}), spacing_known=False) for case in listed]
    found = evaluate_folder(listed, PredictionFolder(tmp_path / "p"), read_volume)
    negatives = found.summary["volumes"]["overall"]["negatives"]
    assert (negatives["n"], negatives["with_false_positives"]) == (2, 1)
    assert negatives["mean_false_positive_mm3"] is None  # not 0, the mean over the empty one


def test_intervals_and_calibration_folds_go_by_patient_not_by_case(labels_dir, tmp_path, make_volume):
    """Three cases of two patients: two clusters; and the voxels of one patient lie in one fold, whatever their case."""
    for path in sorted(labels_dir.glob("*")):
        case, mask = path.name[:6], load(path) == 1
        make_volume(tmp_path / "p" / f"{case}_liver_lesion.nii.gz", mask.astype(np.uint8))
        make_volume(tmp_path / "p" / f"{case}_liver_lesion_prob.nii.gz", np.where(mask, 0.8, 0.1).astype(np.float32))

    def evaluate(patients: list[str]) -> Evaluation:
        listed = [
            LabelledCase(path, {1: "liver lesion"}, "set", patient)
            for patient, path in zip(patients, sorted(labels_dir.glob("*")), strict=True)
        ]
        for path in labels_dir.glob("*"):
            make_volume(path, (load(path) == 1).astype(np.uint8))
        return evaluate_folder(listed, PredictionFolder(tmp_path / "p"), read_volume)

    one = evaluate(["p0"] * 3)
    assert one.summary["intervals"]["overall"]["slice_dice"] == {"value": 1, "low": None, "high": None, "clusters": 1}
    assert one.summary["calibration"]["overall"]["after_is"] == "fitted to the same voxels"
    (collected,) = one.calibration.values()
    assert (collected.counts.sum(axis=(1, 2)) > 0).sum() == 1
    two = evaluate(["p0", "p0", "p1"])
    assert two.summary["intervals"]["overall"]["volume_dice"]["clusters"] == 2
    assert two.summary["intervals"]["overall"]["lesion_f1"]["clusters"] == 2
    assert two.summary["patients"] == 2


def test_calibration_looks_10_mm_around_label_and_prediction(tmp_path, make_volume):
    """Voxels of 2 x 1.5 x 3 mm: 10 mm are 5, 7 and 4 voxels. One voxel in the middle of a large volume."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[20, 20, 20] = 1
    make_volume(tmp_path / "l" / "a.nii.gz", label)
    make_volume(tmp_path / "p" / "a_o.nii.gz", label)
    make_volume(tmp_path / "p" / "a_o_prob.nii.gz", label * np.float32(0.5))
    case = LabelledCase(tmp_path / "l" / "a.nii.gz", {1: "o"}, "set", "a")
    found = evaluate_folder([case], PredictionFolder(tmp_path / "p"), read_volume)
    assert found.summary["calibration"]["overall"]["voxels"] == 11 * 15 * 9


def test_an_empty_negative_is_no_false_positive(labels_dir, tmp_path, make_volume):
    """Area 0 on a slice, and volume 0, are what a negative should have."""
    make_volume(tmp_path / "p" / "case_0.nii.gz", np.zeros((24, 20, 12), np.uint8))
    make_volume(tmp_path / "l" / "case_0.nii.gz", np.zeros((24, 20, 12), np.uint8))
    found = run(tmp_path / "l", tmp_path / "p", absent_is_negative=True)
    for level in ("slices", "volumes"):
        negatives = found.summary[level]["overall"]["negatives"]
        assert negatives["with_false_positives"] == 0
        assert negatives["specificity"] == 1
    assert found.summary["slices"]["overall"]["negatives"]["n"] == 24
    assert found.summary["volumes"]["overall"]["negatives"]["n"] == 2
    assert found.summary["intervals"]["overall"]["slice_specificity"]["value"] == 1


def test_lateral_organs_say_how_much_lies_on_the_other_side(tmp_path, make_volume):
    label = np.zeros((20, 8, 8), np.uint8)
    label[2:5, 2:6, 2:6], label[15:18, 2:6, 2:6] = 1, 2
    pred = label.copy()
    pred[15, 2:6, 2:4] = 1  # 8 of 56 voxels called left lie on the right
    make_volume(tmp_path / "l" / "a.nii.gz", label)
    make_volume(tmp_path / "p" / "a.nii.gz", pred)
    case = LabelledCase(tmp_path / "l" / "a.nii.gz", {1: "left kidney", 2: "kidney Right", 3: "spleen"}, "set", "a")
    other = LabelledCase(tmp_path / "l" / "a.nii.gz", {1: "left kidney", 2: "right kidney"}, "set", "a")
    unpaired = evaluate_folder([case], PredictionFolder(tmp_path / "p"), read_volume)
    assert all(row["wrong_side_percent"] is None for row in unpaired.volumes)
    found = evaluate_folder([other], PredictionFolder(tmp_path / "p"), read_volume)
    left, right = found.volumes
    assert left["wrong_side_percent"] == pytest.approx(100 * 8 / 56)
    assert right["wrong_side_percent"] == 0
    assert found.summary["volumes"]["overall"]["wrong_side_share"] == pytest.approx(8 / (56 + 40))
