"""`boltzformer calibrate` and `boltzformer publish`: numbers of validation and half precision, into the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import typer
from boltzformer.apps.calibrate import (
    calibrate,
    coarse_distances,
    coarse_mm,
    main,
    of_known_spacing,
    settings_of,
    spacings,
)
from boltzformer.apps.publish import main as publish
from boltzformer.errors import InputError
from boltzformer.inference.existence import IMPROBABLE
from boltzformer.metrics.files import write_csv, write_json
from boltzformer.recipe import read_recipe
from boltzformer.recipe_network import record_definition
from boltzformer.weights import load_weights, read_checkpoint, save_atomically

from tests.support import BUNDLE, save_nifti, small_network


def _rows(temperature: float, n: int = 4000) -> list[dict]:
    """Slices whose true probability is sigmoid(logit), scored by sigmoid(logit * temperature)."""
    draw = np.random.default_rng(0)
    logit = draw.normal(0, 3, n)
    present = draw.random(n) < 1 / (1 + np.exp(-logit))
    score = 1 / (1 + np.exp(-logit * temperature))
    return [
        {
            "dataset": "d", "case": f"c{i % 20}", "patient": f"c{i % 20}", "object": "o", "slice": i // 20,
            "dice": 0.9 if there else None, "existence": float(p),
            "label_pixels": 100 if there else 0, "predicted_pixels": 100, "overlap_pixels": 90 if there else 0,
        }
        for i, (there, p) in enumerate(zip(present, score, strict=True))
    ]  # fmt: skip


def test_the_temperature_undoes_overconfidence():
    numbers, _ = calibrate(_rows(2.5))
    assert numbers["temperature"] == pytest.approx(2.5, rel=0.1)
    assert numbers["ece"] < 0.02 < numbers["ece_before"]
    assert 0.8 < numbers["auroc"] < 1


def test_the_threshold_serves_whole_volumes():
    numbers, _ = calibrate(_rows(1.0))
    assert numbers["specificity_ungated"] == 0  # every slice has a mask in these rows
    assert numbers["specificity"] > 0.6
    assert numbers["volume_dice_gated"] > numbers["volume_dice_all_slices"]
    assert numbers["volume_dice_gated"] < numbers["volume_dice_positive_slices"]


def test_the_threshold_leaves_as_many_slices_empty_as_is_asked():
    (free, _), (bound, scored) = calibrate(_rows(1.0)), calibrate(_rows(1.0), least_specificity=0.97)
    assert all(row["shown"] == (row["existence"] >= bound["threshold"]) for row in scored)
    assert bound["threshold"] > free["threshold"]
    assert bound["specificity"] >= 0.97 > free["specificity"]
    assert bound["volume_dice_gated"] < free["volume_dice_gated"]
    with pytest.raises(InputError, match=r"99.99 % of the slices.*--specificity"):
        calibrate(_rows(1.0), least_specificity=0.9999)


def test_slices_of_one_kind_are_no_calibration():
    with pytest.raises(InputError, match="slices without"):
        calibrate([row for row in _rows(1.0) if row["label_pixels"]])


@pytest.fixture
def checkpoint(tmp_path):
    network = small_network(**{"network_def#existence": True})
    recipe = {
        "network": record_definition(network, BUNDLE / "models"),
        "input": {"window": "auto", "axis": 2, "num_adjacent": 0},
    }
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    return tmp_path / "model.pt"


def test_numbers_go_into_the_recipe(tmp_path, checkpoint, capsys):
    write_csv(tmp_path / "slices.csv", _rows(1.5))
    for told in ({}, {"existence_threshold": 0.4, "existence_temperature": 1.0}):
        write_json(tmp_path / "manifest.json", {"settings": told})
        with pytest.raises(InputError, match="gate at 0.4" if told else "evaluate once more"):
            settings_of(tmp_path)
    write_json(
        tmp_path / "manifest.json",
        {"settings": {"existence_threshold": 0.0, "existence_temperature": 2.0, "agreement_mm": 1.5}},
    )
    with pytest.raises(typer.Exit):  # one line: the predictions say how far the slices lie apart
        main(tmp_path, checkpoint, None, specificity=0.5)
    (tmp_path / "predictions").mkdir()
    for k in range(20):
        save_nifti(tmp_path / "predictions" / f"c{k}.nii.gz", np.zeros((4, 4, 200), np.uint8), np.eye(4))
    with pytest.raises(typer.Exit):
        main(tmp_path, checkpoint, None, specificity=0.5)
    assert "before neighbouring slices were averaged" in capsys.readouterr().err
    for k in range(20):
        labels = [{"name": "o", "slice_probability_alone": [row["existence"] for row in _rows(1.5)[k::20]]}]
        write_json(tmp_path / "predictions" / f"c{k}.json", {"slice_axis": 2, "labels": labels})
    main(tmp_path, checkpoint, None, specificity=0.5)
    assert read_recipe(checkpoint)["coarse"] == {"mm": 0.0, "objects": ["o"]}  # objects come and go at random here
    thresholds = read_recipe(checkpoint)["thresholds"]
    assert thresholds["existence_temperature"] == pytest.approx(3.0, rel=0.1)  # of scores made with 2
    assert 0 < thresholds["existence"] < 1
    assert read_recipe(checkpoint)["agreement"] == {"mm": 1.5, "objects": ["o"]}
    others = {"existence_threshold": 0.0, "existence_temperature": 2.0, "network_sha256": "0" * 64}
    write_json(tmp_path / "manifest.json", {"settings": others})
    before = checkpoint.read_bytes()
    with pytest.raises(typer.Exit):
        main(tmp_path, checkpoint, None, specificity=0.5)
    assert "was made with other weights" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
    told["network_sha256"] = read_recipe(checkpoint)["sha256"]
    write_json(tmp_path / "manifest.json", {"settings": {**told, "existence_threshold": 0.0, "agreement_mm": None}})
    main(tmp_path, checkpoint, None, specificity=0.5)
    assert read_recipe(checkpoint)["agreement"] == {"mm": 1.5, "objects": ["o"]}, "the checkpoint's own stays"


def test_a_distance_in_mm_is_measured_where_mm_are_known(tmp_path, checkpoint):
    """Case k is of object k; the slices of the first have no size in mm, and it has no prediction's grid to read."""
    rows = [{**row, "case": f"c{k}", "object": f"o{k}"} for k in (0, 1) for row in _rows(1.5, 400)]
    for known, objects in ((("c1",), ["o1"]), ((), ["o0", "o1"])):
        sized = [{**row, "diameter_mm": 5.0 if row["case"] in known and row["dice"] else None} for row in rows]
        write_csv(tmp_path / "slices.csv", sized)
        told = {"existence_threshold": 0.0, "existence_temperature": 1.0, "agreement_mm": 1.5}
        write_json(tmp_path / "manifest.json", {"settings": told})
        (tmp_path / "predictions").mkdir(exist_ok=True)
        save_nifti(tmp_path / "predictions" / "c1.nii.gz", np.zeros((4, 4, 400), np.uint8), np.diag([1, 1, 30, 1]))
        main(tmp_path, checkpoint, None, specificity=0.5)
        assert read_recipe(checkpoint)["coarse"] == {"mm": 12.0 if known else 0.0, "objects": objects}
        assert read_recipe(checkpoint)["agreement"]["objects"] == ["o1"]


def test_a_distance_is_for_objects_that_were_found(tmp_path, checkpoint):
    """The second object is in no scan, so nothing of it could be lost."""
    absent = {"dice": None, "label_pixels": 0, "overlap_pixels": 0, "object": "never there"}
    rows = [{**row, "case": "c0"} for row in _rows(1.5, 400)]
    write_csv(tmp_path / "slices.csv", [*rows, *({**row, **absent} for row in rows)])
    told = {"existence_threshold": 0.0, "existence_temperature": 1.0, "agreement_mm": 0.0}
    write_json(tmp_path / "manifest.json", {"settings": told})
    save_nifti(tmp_path / "predictions" / "c0.nii.gz", np.zeros((4, 4, 400), np.uint8), np.eye(4))
    main(tmp_path, checkpoint, None, specificity=0.2)
    assert read_recipe(checkpoint)["coarse"]["objects"] == ["o"]


def test_a_case_without_the_object_is_measured_in_mm_too():
    """Its slices have no diameter, but an area that was marked wrongly: 0 mm2 where nothing was."""
    rows = [
        {"case": case, "diameter_mm": diameter, "false_positive_mm2": area}
        for case, diameter, area in (("ill", "5.0", ""), ("healthy", "", "0.0"), ("unknown", "", ""))
    ]
    assert of_known_spacing(rows) == rows[:2]
    assert of_known_spacing([{"case": "of old"}]) == [{"case": "of old"}]


def _organ(first: int, last: int, slices: int = 60) -> list[dict]:
    """An object in some slices, of whose score one slice on either side knows too."""
    return [
        {
            "case": "c", "object": "o", "slice": k, "overlap_pixels": 10 if first <= k < last else 0,
            "existence": 0.9 if first - 1 <= k < last + 1 else 0.01, "shown": first - 1 <= k < last + 1,
        }
        for k in range(slices)
    ]  # fmt: skip


def test_looks_are_as_near_as_half_of_what_loses_nothing():
    lost = coarse_distances(_organ(21, 33), {"c": 1.0})  # seen in 14 slices: every look up to 14 mm meets it
    assert [lost[mm] for mm in (4.0, 6.0, 8.0, 10.0, 12.0)] == [0] * 5
    assert coarse_mm(lost) >= 6.0
    small = coarse_distances(_organ(26, 27), {"c": 1.0})  # in three slices, 25 to 27, and a look at 24 and 28
    assert small[4.0] == 10
    assert coarse_mm(small) == 0.0
    assert coarse_distances(_organ(26, 27), {"c": 4.0})[4.0] == 0  # every slice is looked at
    assert coarse_mm({4.0: 0, 6.0: 0, 8.0: 3, 10.0: 0}) == 3.0
    emptied = [{**row, "shown": False} for row in _organ(26, 27)]
    assert coarse_distances(emptied, {"c": 1.0})[4.0] == 0, "the gate has emptied what a coarse pass skips"


def test_looks_decide_by_a_slices_own_score():
    """Averaged along z, an object of three slices is known of two slices farther away."""
    alone = {24: 0.1, 25: 0.3, 26: 0.9, 27: 0.3, 28: 0.1}
    averaged = {24: 0.25, 25: 0.5, 26: 0.6, 27: 0.5, 28: 0.25}
    rows = [
        {**row, "existence": averaged.get(row["slice"], 0.01), "shown": row["slice"] in averaged}
        for row in _organ(26, 27)
    ]
    assert coarse_distances(rows, {"c": 1.0})[4.0] == 0
    assert coarse_distances([{**row, "alone": alone.get(row["slice"], 0.01)} for row in rows], {"c": 1.0})[4.0] == 10


def test_the_gate_knows_that_a_slice_may_rule_an_object_out():
    rows = _rows(1.0)
    own = [{**row, "alone": row["existence"] * (0.1 if row["label_pixels"] == 0 else 1)} for row in rows]
    (numbers, _), (with_own, scored) = calibrate(rows), calibrate(own)
    assert with_own["temperature"] == numbers["temperature"]
    assert with_own["auroc"] == numbers["auroc"]
    assert with_own["specificity"] > numbers["specificity"]
    assert with_own["volume_dice_gated"] > numbers["volume_dice_gated"]
    for row in scored:
        least = min(with_own["threshold"], IMPROBABLE)
        assert row["shown"] == (row["existence"] >= with_own["threshold"] and row["alone"] >= least)


def test_the_distance_of_slices_is_that_of_their_axis(tmp_path):
    (tmp_path / "predictions").mkdir()
    affine = np.array([[0.0, -2, 0, 0], [0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 1]])  # stored as Z, X, Y
    save_nifti(tmp_path / "predictions" / "c.nii.gz", np.zeros((2, 3, 4), np.uint8), affine)
    assert [spacings(tmp_path, [{"case": "c"}], axis) for axis in range(3)] == [{"c": 2.0}, {"c": 3.0}, {"c": 5.0}]


def test_published_weights_are_half_as_large_and_load_again(tmp_path, checkpoint):
    publish(checkpoint, tmp_path / "small.pt")
    assert (tmp_path / "small.pt").stat().st_size < 0.62 * checkpoint.stat().st_size
    assert read_recipe(tmp_path / "small.pt")["network"] == read_recipe(checkpoint)["network"]
    whole = read_checkpoint(checkpoint)
    for name, value in read_checkpoint(tmp_path / "small.pt").items():
        assert value.dtype == (torch.float16 if value.dim() > 1 and value.is_floating_point() else value.dtype)
        assert torch.allclose(value.float(), whole[name].float(), rtol=1e-3, atol=1e-6)
    again = small_network(seed=3, **{"network_def#existence": True})
    load_weights(again, tmp_path / "small.pt")
    assert next(again.parameters()).dtype == torch.float32


def test_of_a_trainings_state_the_network_is_published(tmp_path, checkpoint):
    state = {"network": read_checkpoint(checkpoint), "epoch": 3}
    save_atomically(state, tmp_path / "last.pt", read_recipe(checkpoint))
    publish(tmp_path / "last.pt", tmp_path / "small.pt")
    load_weights(small_network(**{"network_def#existence": True}), tmp_path / "small.pt")


def test_a_new_part_may_be_absent_and_nothing_else(tmp_path):
    plain = small_network()
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    scoring = small_network(seed=2, **{"network_def#existence": True})
    head = {name: value.clone() for name, value in scoring.existence.state_dict().items()}
    with pytest.raises(InputError, match="existence"):
        load_weights(scoring, tmp_path / "plain.pt")
    load_weights(scoring, tmp_path / "plain.pt", new_part="existence")
    assert all(torch.equal(value, head[name]) for name, value in scoring.existence.state_dict().items())
    assert torch.equal(scoring.mask_features.weight, plain.mask_features.weight)
