"""`boltzformer train`, `finetune`, `evaluate`, `info` and `doctor`."""

from __future__ import annotations

import json

import pytest
from boltzformer.apps import doctor, runs
from boltzformer.errors import InputError

from tests.support import BUNDLE


@pytest.fixture
def started(monkeypatch):
    """What would have been run; the configs themselves run in tests/configs."""
    calls = []
    monkeypatch.setattr(runs, "run", lambda **given: calls.append(given))
    return calls


def test_train_and_finetune_drive_the_bundles_configs(shell, started, tmp_path, weights):
    arguments = ["--overlay", "network/tiny.json", "--set", "max_epochs=3", "--set", "window=lung"]
    assert shell("train", tmp_path, "-o", tmp_path / "run", *arguments).exit_code == 0
    assert shell("finetune", tmp_path, "-o", tmp_path / "run", "--weights", weights).exit_code == 0
    first, second = started
    assert first["config_file"] == [str(BUNDLE / "configs" / name) for name in ("train.json", "network/tiny.json")]
    assert (first["run_id"], first["max_epochs"], first["window"]) == ("training", 3, "lung")
    assert first["checkpoint"] == str(tmp_path / "run" / "model.pt")
    assert second["config_file"][1].endswith("fine_tune.json")
    assert second["initial_weights"] == str(weights)


def test_evaluate_runs_and_its_keys_are_keys_of_the_configs(shell, started, tmp_path, weights):
    assert shell("evaluate", tmp_path, "-o", tmp_path / "run", "--weights", weights).exit_code == 0
    assert shell("train", tmp_path, "-o", tmp_path / "run").exit_code == 0
    for given in started:
        known = json.loads((BUNDLE / "configs" / given["config_file"][0].rsplit("/", 1)[1]).read_text())
        assert given["run_id"] in known
        assert set(given) - {"run_id", "config_file"} <= set(known)


@pytest.mark.parametrize("setting", ["a=$print(1)", 'a=["$1"]', "a=@network", "a=%x#y", "a", 'a={"$b": 1}', "a=x#y"])
def test_a_setting_that_would_be_evaluated_is_refused(shell, started, tmp_path, setting):
    done = shell("train", tmp_path, "-o", tmp_path / "run", "--set", setting)
    assert done.exit_code == 2
    assert "--set" in done.output
    assert not started


def test_a_setting_is_json_or_text():
    assert runs.parse_setting("a#b=[1, 2]") == ("a#b", [1, 2])
    assert runs.parse_setting("resume=true") == ("resume", True)
    assert runs.parse_setting("x=lung=1") == ("x", "lung=1")


def test_a_path_that_the_config_would_change_is_refused(tmp_path):
    with pytest.raises(InputError, match="#"):
        runs.plain_path(tmp_path / "a#b")


def test_info_tells_weights_and_formats(shell, weights):
    told = json.loads(shell("info", "--json", "--weights", weights).stdout)
    assert len(told["weights"]["sha256"]) == 64
    assert {"nifti", "dicom-seg"} <= set(told["formats"])
    assert "liver" in told["coded_terms"]
    assert shell("info", "--weights", "none.pt").exit_code == 2
    assert "seg.nrrd" in shell("info").output


def test_doctor_finds_this_installation_sound(shell):
    done = shell("doctor", "--json")
    told = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.exit_code == 0, done.output
    assert told["torch"]["state"] == "ok"
    assert told["self-test, masks and files"]["state"] == "ok"
    assert told["self-test, network"]["state"] == "ok"


def test_doctors_self_tests_notice_a_fault(shell, monkeypatch, segmenter):
    assert "bit for bit" in doctor.network_test(segmenter)
    usual = segmenter.segment
    draws = iter(range(10))

    def drifting(*arguments, **named):
        result = usual(*arguments, **named)
        result.item["logits"] += next(draws)
        return result

    with monkeypatch.context() as context:
        context.setattr(segmenter, "segment", drifting)
        with pytest.raises(ArithmeticError, match="other results"):
            doctor.network_test(segmenter)

    def empty(*arguments, **named):
        result = usual(*arguments, **named)
        result.item["logits"].fill_(-16)
        return result

    with monkeypatch.context() as context:
        context.setattr(segmenter, "segment", empty)
        with pytest.raises(ArithmeticError, match="one value everywhere"):
            doctor.network_test(segmenter)
    monkeypatch.setattr(doctor, "CUBE", 9)
    done = shell("doctor")
    assert done.exit_code == 1
    assert "bad" in done.output
