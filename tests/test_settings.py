"""A misspelt setting ends a run before it begins, and what is spelt right passes."""

from __future__ import annotations

import json

import pytest
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.settings import check_command_line, check_keys, check_run, check_seed_and_device
from monai.bundle import ConfigWorkflow

from tests.support import BUNDLE, SMALL_NETWORK, raises_input_error, write_json

CONFIGS = BUNDLE / "configs"
MONAI = "/somewhere/monai/bundle/__main__.py"


def _train() -> dict:
    return json.loads((CONFIGS / "train.json").read_text())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("learning_rat", "no key 'learning_rat'; did you mean 'learning_rate'?"),
        ("network_def#num_querys", "'network_def' has no key 'num_querys'; did you mean 'num_queries'?"),
        (
            "network_def::attention::sample_ration",
            "'attention' has no key 'sample_ration'; did you mean 'sample_ratio'",
        ),
        ("train#preprocessing#transforms#99", "entries, and no '99'"),
        ("trian#handlers", "did you mean 'train'?"),
        ("+validate#handler", "did you mean 'handlers'?"),
    ],
)
def test_the_nearest_name_is_given(key, message):
    with pytest.raises(InputError) as error:
        check_keys(_train(), [key], "--")
    assert message in str(error.value)
    assert str(error.value).startswith(f"--{key}: ")


@pytest.mark.parametrize(
    "key",
    [
        "window",
        "schedule#final_share",  # an argument that the config leaves at its default
        "train#trainer#amp_kwargs",
        "train#trainer#key_train_metric",  # MONAI's own component
        "train#handlers#0#_disabled_",
        "network_def#image_size",
        "validate#key_metric#anything",
        "total_steps#0",  # behind an expression
    ],
)
def test_what_is_there_or_cannot_be_seen_passes(key):
    config = {**_train(), "key_metric": "@x"}
    config["validate"]["key_metric"] = "@metric"
    check_keys(config, [key])


@pytest.mark.parametrize(
    ("base", "overlays"),
    [
        ("train", ["demo", "fine_tune", "train_shipped", "resident", "multi_gpu_train", "network/*", "ablation/*"]),
        ("evaluate", ["demo", "network/tiny", "network/hiera_*", "multi_gpu_evaluate"]),
        ("inference", ["demo", "network/tiny", "uncertainty"]),
    ],
)
def test_the_overlays_of_the_bundle_pass(base, overlays):
    files = [file for pattern in overlays for file in sorted(CONFIGS.glob(f"{pattern}.json"))]
    assert len(files) >= len(overlays)
    for file in files:
        check_run([CONFIGS / f"{base}.json", file], [])


def test_an_overlay_may_add_what_it_refers_to(tmp_path):
    own = write_json(tmp_path / "own.json", {**SMALL_NETWORK, "share": 0.3, "negative_share": "@share"})
    check_run([CONFIGS / "train.json", own], ["share"])
    lost = write_json(tmp_path / "lost.json", {"negativ_share": 0.3})
    with pytest.raises(InputError, match=r"lost.json: negativ_share: .*did you mean 'negative_share'"):
        check_run([CONFIGS / "train.json", lost], [])


def test_an_overlay_may_exchange_a_component_and_set_the_new_ones_arguments(tmp_path):
    rule = "network_def#attention"
    own = {f"{rule}#_target_": "boltzformer.networks.attention.rules.Threshold", f"{rule}#value": 0.6}
    check_run([CONFIGS / "train.json", write_json(tmp_path / "own.json", own)], [f"{rule}#value"])
    lost = write_json(tmp_path / "lost.json", {**own, f"{rule}#valeu": 0.6})
    with pytest.raises(InputError, match=r"lost.json: network_def#attention#valeu: .*did you mean 'value'"):
        check_run([CONFIGS / "train.json", lost], [])


def test_the_command_line_of_monai(tmp_path):
    overlay = write_json(tmp_path / "small.json", SMALL_NETWORK)
    files = ["--config_file", f"['{CONFIGS / 'train.json'}','{overlay}']"]
    line = [MONAI, "run", "training", *files, "--meta_file", "m.json", "--window", "[-100,200]", "--max_epochs=3"]
    check_command_line(line)
    for wrong in (
        ["--max_epoch", "3"],
        ["--max-epoch=3"],
        ["--args_file", str(write_json(tmp_path / "a.json", {"max_epoch": 3}))],
    ):
        with pytest.raises(InputError, match="'max_epoch'; did you mean 'max_epochs'"):
            check_command_line([*line, *wrong])
    check_command_line(["/usr/bin/pytest", "run", "training", "--max_epoch", "3"])  # not MONAI's
    single = [MONAI, "run", "inference", f"--config_file={CONFIGS / 'inference.json'}"]
    check_command_line([*single, "--memory_gb", "4"])
    with pytest.raises(InputError, match="'memory_gbs'"):
        check_command_line([*single, "--memory_gbs", "4"])


def test_the_configs_check_their_command_line_first():
    for name in ("train", "evaluate", "inference"):
        steps = json.loads((CONFIGS / f"{name}.json").read_text())["run"]
        targets = [step["_target_"] for step in steps if isinstance(step, dict)]
        assert targets[:2] == [
            "boltzformer.error_report.report_input_errors_briefly",
            "boltzformer.settings.check_command_line",
        ]


def test_the_api_refuses_unknown_arguments():
    with pytest.raises(InputError, match="no key 'windows'; did you mean 'window'"):
        Segmenter.from_bundle(BUNDLE, windows="lung")


@pytest.mark.parametrize("seed", ["abc", -1, 2**32, 1.5, None, True])
def test_a_seed_that_is_none_is_one_line(seed):
    with pytest.raises(InputError, match=r"--seed .*: expected a whole number from 0"):
        check_seed_and_device(seed, "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:x", None])
def test_a_device_that_is_not_there_is_one_line(device):
    with pytest.raises(InputError, match=r"--device .* cannot be used \(.+\)"):
        check_seed_and_device(0, device)


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
@pytest.mark.parametrize("given", [{"seed": "abc"}, {"device": "cuda:99"}])
def test_every_config_says_so_before_it_builds_a_network(name, given, tmp_path):
    """Through MONAI's own entry, whose `initialize` sees the seed first."""
    place = {"bundle_root": str(BUNDLE), "runs_dir": str(tmp_path), "cache_dir": str(tmp_path)}
    workflow = ConfigWorkflow(str(CONFIGS / f"{name}.json"), logging_file=False, **place, **given)
    workflow.initialize()
    with raises_input_error(f"--{next(iter(given))} "):
        workflow.run()
    assert list(tmp_path.iterdir()) == []
