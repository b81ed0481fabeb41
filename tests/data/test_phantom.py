from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.data.cases import load_cases
from boltzformer.data.phantom import dataset_or_phantoms, write_phantoms
from boltzformer.data.phantom_anatomy import LABELS, make_phantom
from boltzformer.errors import InputError
from boltzformer.volumes.checks import check_pair, read_volume

TINY = {"num_training": 1, "num_validation": 1, "size": (32, 32, 8)}


def test_sizes_span_the_stated_range_at_the_default_size():
    shares: dict[int, np.ndarray] = {}
    for seed in range(3):
        _, label, _ = make_phantom(seed=seed)
        assert label.shape == (256, 256, 32)
        for value in (1, 2, 3):
            areas = (label == value).sum(axis=(0, 1)) / label[:, :, 0].size
            shares[value] = np.concatenate([shares.get(value, np.zeros(0)), areas[areas > 0]])
    everything = np.concatenate(list(shares.values()))
    assert everything.min() <= 0.00007
    assert 0.042 <= everything.max() <= 0.0501
    assert 0.003 <= shares[1].max() <= 0.007  # the largest nodule: a disc of 4 % of the width as radius is 0.5 %
    assert shares[2].min() > 0.0005
    # every bucket of the evaluation has examples
    assert np.histogram(everything, [0, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2])[0].min() > 0


def test_a_seed_gives_one_phantom():
    first, second, other = (make_phantom((48, 40, 10), seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).mean() > 0.5
    assert first[0].dtype == np.int16
    assert first[1].dtype == np.uint8
    assert set(np.unique(first[1])) == {0, 1, 2, 3}


def test_intensities_are_those_of_a_chest_and_no_threshold_finds_an_object():
    image, label, affine = make_phantom((128, 128, 24), 1)
    assert np.median(image[:4, :4]) == pytest.approx(-1000, abs=25)
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    ras = nib.as_closest_canonical(nib.Nifti1Image(label, affine)).get_fdata()
    right = np.argwhere(ras == 3)[:, 0].mean()
    assert right > 70  # the liver lies at the patient's right, the aorta left of the middle
    assert np.argwhere(ras == 2)[:, 0].mean() < 62
    for value in (1, 2, 3):
        inside = image[label == value]
        low, high = np.percentile(inside, [5, 95])
        others = np.count_nonzero((image >= low) & (image <= high) & (label != value))
        assert others > 0.3 * len(inside)


def test_set_is_in_decathlon_layout_and_reused(tmp_path):
    folder = tmp_path / "set"
    assert write_phantoms(folder, 2, 1, (32, 32, 8), seed=4)
    for section, number in (("training", 2), ("validation", 1)):
        cases = load_cases(folder, section)
        assert len(cases) == number
        assert cases[0]["objects"] == {value: name for value, name in LABELS.items() if value}
        assert (cases[0]["modality"], cases[0]["body_part"], cases[0]["annotated"]) == (
            "CT",
            "chest",
            [1, 2, 3],
        )
        for case in cases:
            check_pair(case["image"], case["label"])
    first = read_volume(load_cases(folder)[0]["image"])[0]
    np.testing.assert_array_equal(first, make_phantom((32, 32, 8), (4, 0, 0))[0])
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert not write_phantoms(folder, 2, 1, (32, 32, 8), seed=4)
    assert (folder / "dataset.json").stat().st_mtime_ns == before


def test_other_parameters_or_a_missing_file_replace_the_set(tmp_path):
    folder = tmp_path / "set"
    write_phantoms(folder, **TINY)
    assert write_phantoms(folder, **{**TINY, "num_training": 2})
    assert len(load_cases(folder)) == 2
    os.remove(load_cases(folder)[0]["label"])
    assert write_phantoms(folder, **{**TINY, "num_training": 2})
    assert len(load_cases(folder)) == 2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".set.tmp")] == []


def test_a_killed_generation_leaves_no_half_set(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    real_save, saved = nib.save, []

    def save_then_die(image, path):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path)
        real_save(image, path)

    monkeypatch.setattr(nib, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(folder, **TINY)
    assert not folder.exists()
    monkeypatch.undo()
    # what a killed process could not clean up goes with the next run
    (tmp_path / ".set.tmp-dead" / "new").mkdir(parents=True)
    assert write_phantoms(folder, **TINY)
    assert not (tmp_path / ".set.tmp-dead").exists()


def test_a_folder_with_other_data_is_left_alone(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"training": []}))
    with pytest.raises(InputError, match="holds no phantoms"):
        write_phantoms(tmp_path, **TINY)
    assert (tmp_path / "dataset.json").exists()


def test_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", no_space)
    with pytest.raises(InputError, match="disk is full"):
        write_phantoms(tmp_path / "set", **TINY)
    assert not (tmp_path / "set").exists()


def test_bad_parameters(tmp_path):
    with pytest.raises(InputError, match="size"):
        make_phantom((16, 64, 64))
    with pytest.raises(InputError, match="at least 1"):
        write_phantoms(tmp_path / "set", 0, 1)


def test_default_data_only_where_none_is_given(tmp_path, capsys):
    assert dataset_or_phantoms("/somewhere", tmp_path / "set", **TINY) == "/somewhere"
    assert not (tmp_path / "set").exists()
    assert dataset_or_phantoms(None, tmp_path / "set", **TINY) == str(tmp_path / "set")
    assert str(tmp_path / "set") in capsys.readouterr().out
    assert dataset_or_phantoms("", tmp_path / "set", **TINY) == str(tmp_path / "set")
    assert "using the" in capsys.readouterr().out  # never in silence: a forgotten option would look like a result
    assert Path(load_cases(tmp_path / "set")[0]["image"]).is_file()
