"""What a training run says of itself in its checkpoints."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from boltzformer.data.cases import load_cases
from boltzformer.data.phantom import write_phantoms
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.data.wordings import WordingBook
from boltzformer.recipe import DEFAULTS, Recipe, lasting_objects
from boltzformer.training.recipe_of_run import recipe_of_run

from tests.support import BUNDLE, small_network


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, Any]]:
    write_phantoms(tmp_path / "phantoms", num_training=2, num_validation=1, size=(48, 48, 8))
    return load_cases(tmp_path / "phantoms")


def _pixel_mm(cases: list[dict[str, Any]], cache: Path, earlier: dict[str, Any]) -> float | None:
    data = SliceDataset(cases, cache, training=True, progress=False, num_workers=1)
    begun = Recipe({"input": dict(DEFAULTS), "trained_on": earlier}, None, (), BUNDLE)
    return recipe_of_run(small_network(), begun, data, WordingBook())["trained_on"].get("pixel_mm")


def test_the_size_of_the_training_s_pixels_is_kept(cases, tmp_path):
    data = SliceDataset(cases, tmp_path, progress=False, num_workers=1)
    own = statistics.median(volume.spacing[1] for volume in data.volumes)
    assert _pixel_mm(cases, tmp_path, {}) == pytest.approx(own, abs=1e-3)
    # of two trainings the finer: what it saw must not be averaged away
    assert _pixel_mm(cases, tmp_path, {"pixel_mm": 9.0}) == pytest.approx(own, abs=1e-3)
    assert _pixel_mm(cases, tmp_path, {"pixel_mm": 0.01}) == 0.01
    unknown = [{**case, "spacing_known": False} for case in cases]
    assert _pixel_mm(unknown, tmp_path, {}) is None
    assert _pixel_mm(unknown, tmp_path, {"pixel_mm": 3.0}) == 3.0


def test_what_an_earlier_training_alone_had_is_marked_and_no_wording_is_lost(cases, tmp_path):
    data = SliceDataset(cases, tmp_path, training=True, progress=False, num_workers=1)
    own, *others = sorted({name for case in cases for name in case["objects"].values()})
    earlier = {"objects": {own.upper(): ["a former name"], "larynx": ["voice box"], others[0]: ["worded otherwise"]}}
    begun = Recipe({"input": dict(DEFAULTS), "trained_on": {**earlier, "earlier_only": [others[0]]}}, None, (), BUNDLE)
    content = recipe_of_run(small_network(), begun, data, WordingBook())
    made = content["trained_on"]
    assert made["earlier_only"] == ["larynx"], "one that is taught again is not forgotten"
    assert made["objects"]["larynx"] == ["voice box"]
    assert made["objects"][others[0]][-1] == "worded otherwise"
    assert made["objects"][others[0]][0] != "worded otherwise"
    assert "larynx" not in lasting_objects(content)
    assert {own, *others} <= set(lasting_objects(content))
    listed = [{**case, "objects": {**case["objects"], 99: "larynx"}} for case in cases]
    declared = SliceDataset(listed, tmp_path, training=True, progress=False, num_workers=1)
    assert recipe_of_run(small_network(), begun, declared, WordingBook())["trained_on"]["earlier_only"] == ["larynx"]
    first = Recipe({"input": dict(DEFAULTS)}, None, (), BUNDLE)
    assert "earlier_only" not in recipe_of_run(small_network(), first, data, WordingBook())["trained_on"]
