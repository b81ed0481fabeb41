"""From training to evaluation, inference and fine-tuning: nobody has to remember the settings."""

from __future__ import annotations

import json

import pytest
from boltzformer.recipe import read_recipe
from monai.bundle import ConfigWorkflow

from tests.support import BUNDLE, raises_input_error


@pytest.fixture
def start(trained, tmp_path):
    """Prepares a run in this process, with the checkpoint and without any of the training's settings."""

    def prepare(*configs, **settings):
        files = [str(BUNDLE / "configs" / f"{name}.json") for name in configs]
        folder = {name: str(tmp_path / name) for name in ("runs_dir", "cache_dir", "output_dir")}
        settings = {"dataset_dir": str(trained.dataset), "device": "cpu", "bundle_root": str(BUNDLE), **settings}
        if configs[0] == "train":
            settings = {"checkpoint": str(tmp_path / "tuned.pt"), "initial_weights": str(trained.weights), **settings}
        else:
            settings = {"checkpoint": str(trained.weights), **settings}
        workflow = ConfigWorkflow(files, logging_file=False, **folder, **settings)
        workflow.initialize()
        return workflow

    return prepare


def test_recipe_of_a_training(trained):
    recipe = read_recipe(trained.weights)
    assert recipe["input"]["window"] == "lung"
    assert recipe["network"]["image_size"] == 64
    assert recipe["network"]["image_encoder"] == {
        "type": "ImageEncoder",
        "name": "test_resnet",
        "freeze_batch_norm": False,
        "window_sizes": None,
        "add_position": False,
    }
    assert recipe["trained_on"]["modalities"] == ["CT"]
    assert recipe["trained_on"]["body_parts"] == ["chest"]
    assert "liver in chest CT" in recipe["trained_on"]["objects"]["liver"]
    assert read_recipe(trained.folder / "out" / "last.pt")["input"] == recipe["input"]
    assert str(trained.folder) not in json.dumps(recipe)


def test_evaluation_without_any_setting_gives_the_dice_of_the_training(trained, start, tmp_path):
    start("evaluate").run()
    found = json.loads((tmp_path / "output_dir" / "summary.json").read_text())["overall"]["mean_dice"]
    assert found == pytest.approx(read_recipe(trained.weights)["result"]["val_dice"], abs=1e-6)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ("evaluate", {"window": "bone"}, "window is 'bone' here, but .* with 'lung'"),
        ("inference", {"axis": 0}, "axis is 0 here, but .* with 2"),
        ("evaluate", {"network_def#image_size": 96}, "network_def#image_size is 96 here, but .* with 64"),
    ],
)
def test_a_conflict_is_refused(start, config, settings, message):
    with raises_input_error(message):
        start(config, **settings).run()


def test_a_conflict_asked_for_twice(start):
    workflow = start("inference", window="bone", override_recipe=["window"])
    assert workflow.parser.get_parsed_content("preprocessing").transforms[2].window.window == "bone"


def test_inference_writes_which_weights(trained, start, tmp_path):
    start("inference").run()
    note = tmp_path / "output_dir" / "phantom_validation_000.json"
    content = json.loads(note.read_text())
    assert content["sha256"] == read_recipe(trained.weights)["sha256"]
    assert content["window"] == "lung"


def test_fine_tuning_takes_network_and_window_from_the_checkpoint(trained, start, tmp_path):
    start("train", "fine_tune", max_epochs=1, batch_size=4, samples_per_epoch=8).run()
    before, after = read_recipe(trained.weights), read_recipe(tmp_path / "tuned.pt")
    assert after["input"] == before["input"]
    assert after["network"] == before["network"]


def test_fine_tuning_with_another_window_is_refused(start):
    with raises_input_error("window is 'bone' here"):
        start("train", "fine_tune", window="bone").run()
