"""Checkpoint files: whole or not at all, and one clear error when they do not fit."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.weights import keep_previous, load_weights, read_checkpoint, save_atomically
from safetensors.torch import save_file
from torch import nn


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """The system refuses writes beyond this size, as a full disk does, in the middle of the file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    save_atomically({"a": torch.arange(5)}, tmp_path / "new" / "x.pt")
    assert torch.equal(read_checkpoint(tmp_path / "new" / "x.pt")["a"], torch.arange(5))
    assert _files(tmp_path / "new") == ["x.pt"]


def test_disk_full_leaves_the_good_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    save_atomically({"weight": torch.ones(10)}, path)
    with _largest_file(20_000), pytest.raises(InputError, match=r"cannot write .*model\.pt.*untouched"):
        save_atomically({"weight": torch.zeros(100_000)}, path)
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(10))
    assert _files(tmp_path) == ["model.pt"]


def test_disk_full_at_the_last_moment(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_atomically({"weight": torch.ones(10)}, path)

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match=r"No space left on device.*MB free.*--resume true"):
        save_atomically({"weight": torch.zeros(10)}, path)
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(10))
    assert _files(tmp_path) == ["model.pt"]


def test_disk_full_on_the_first_save(tmp_path):
    with _largest_file(20_000), pytest.raises(InputError, match="no file was left behind"):
        save_atomically({"weight": torch.zeros(100_000)}, tmp_path / "model.pt")
    assert _files(tmp_path) == []


def test_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write checkpoint"):
        save_atomically({}, tmp_path / "runs" / "model.pt")


@pytest.mark.parametrize("kind", ["plain", "training", "safetensors"])
def test_loads_each_kind(tmp_path, kind):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        state = source.state_dict()
        save_atomically(state if kind == "plain" else {"network": state, "format": 1}, path)
    load_weights(target, path)
    assert torch.equal(source.weight, target.weight)


def test_another_architecture_names_keys_shapes_and_cure(tmp_path):
    save_atomically(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    network = nn.Linear(3, 4)
    before = network.weight.clone()
    with pytest.raises(InputError) as caught:
        load_weights(network, tmp_path / "model.pt")
    message = str(caught.value)
    assert str(tmp_path / "model.pt") in message
    assert "weight: (4, 3) here, (2, 3) in the file" in message
    assert "overlay it was trained with" in message
    assert torch.equal(network.weight, before)


def test_no_file_leaves_the_network_as_it_is():
    network = nn.Linear(1, 1)
    before = network.weight.clone()
    load_weights(network, None)
    assert torch.equal(network.weight, before)


def test_missing_weights(tmp_path):
    with pytest.raises(InputError, match="train a network first"):
        load_weights(nn.Linear(1, 1), tmp_path / "model.pt")


def test_a_run_from_elsewhere_takes_the_bundles_weights(tmp_path, monkeypatch):
    """The configs say `./models/model.pt`, and the recipe comes from the same file."""
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_atomically(source.state_dict(), tmp_path / "bundle" / "models" / "model.pt")
    (tmp_path / "bundle" / "configs").mkdir()
    (tmp_path / "bundle" / "configs" / "inference.json").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("boltzformer.bundle_folder._PACKAGE", tmp_path / "bundle" / "boltzformer")
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_weights(target, "./models/model.pt")
    assert torch.equal(source.weight, target.weight)


@pytest.mark.parametrize("cut", [0, 100, -200])
def test_truncated_file(tmp_path, cut):
    path = tmp_path / "model.pt"
    save_atomically(nn.Linear(30, 30).state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"model\.pt cannot be read as a checkpoint"):
        read_checkpoint(path)


def test_file_with_code_is_refused(tmp_path):
    torch.save({"network": nn.Linear(1, 1)}, tmp_path / "whole_object.pt")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "whole_object.pt")


def test_a_bare_tensor_is_no_state_dict(tmp_path):
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="not a state dict"):
        read_checkpoint(tmp_path / "tensor.pt")


def test_keep_previous(tmp_path):
    assert keep_previous(tmp_path / "absent.pt") is None
    (tmp_path / "model.pt").write_text("old")
    kept = keep_previous(tmp_path / "model.pt", tmp_path / "run")
    assert kept == tmp_path / "run" / "previous_001_model.pt"
    assert kept.read_text() == "old"
    assert not (tmp_path / "model.pt").exists()
    (tmp_path / "model.pt").write_text("newer")
    assert keep_previous(tmp_path / "model.pt", tmp_path / "run") == tmp_path / "run" / "previous_002_model.pt"
    assert kept.read_text() == "old"


def test_a_checkpoint_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        true = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, true=true, name=name: (calls.append(name), true(*args))[1])
    for name in ("model.pt", "model.safetensors"):
        calls.clear()
        save_atomically({"weight": torch.ones(2)}, tmp_path / name)
        assert calls == ["fsync", "replace", "fsync"], name


def test_drafts_of_a_killed_run_go_with_the_next_save(tmp_path):
    code = """
        import os, sys, torch
        from boltzformer import weights
        weights._append_record = lambda file, record: (file.flush(), os.kill(os.getpid(), 9))
        weights.save_atomically({"weight": torch.ones(2)}, sys.argv[1])
    """
    path = tmp_path / "model.pt"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1  # half a file, under no name of ours
    assert not path.exists()
    save_atomically({"weight": torch.ones(2)}, path)
    assert _files(tmp_path) == ["model.pt"]


def test_a_folder_in_the_place_of_a_checkpoint_is_told_as_that(tmp_path):
    with pytest.raises(InputError, match="is a folder where a file is to be written") as told:
        save_atomically({"a": torch.zeros(1)}, tmp_path)
    assert "Free some space" not in str(told.value)
