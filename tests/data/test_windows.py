from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.data.windows import (
    CT_WINDOWS,
    IntensityWindow,
    IntensityWindowd,
    apply_window,
    intensity_quantiles,
)
from boltzformer.errors import InputError
from monai.data import MetaTensor

CT = np.random.default_rng(0).integers(-1100, 1900, (9, 8, 7)).astype(np.int16)


def _plain(image, low, high):
    return np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)


@pytest.mark.parametrize("name", sorted(CT_WINDOWS))
def test_named_windows_equal_the_plain_formula(name):
    result = IntensityWindow(name)(CT)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, _plain(CT, *CT_WINDOWS[name]), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_tensors_and_metatensors_keep_their_kind_and_the_source(dtype):
    source = torch.as_tensor(CT).to(dtype)
    before = source.clone()
    result = IntensityWindow([-100, 300])(source)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), _plain(CT, -100, 300), atol=1e-6)
    assert torch.equal(source, before)
    meta = MetaTensor(source, affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    windowed = IntensityWindow("soft tissue")(meta)
    assert isinstance(windowed, MetaTensor)
    assert torch.equal(windowed.affine, meta.affine)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.int64])
def test_quantiles_leave_the_background_out_and_equal_numpy(dtype):
    rng = np.random.default_rng(1)
    foreground = rng.integers(1, 120, 5000)
    volume = np.concatenate([np.zeros(9000), foreground]).astype(dtype)
    rng.shuffle(volume)
    expected = np.quantile(foreground, np.linspace(0, 1, 1001), method="closest_observation")
    quantiles = intensity_quantiles(volume)
    # two definitions of the nearest rank differ by one rank at most, hence by one of these dense integers
    assert np.abs(quantiles - expected).max() <= 1
    assert (quantiles[0], quantiles[-1]) == (foreground.min(), foreground.max())
    np.testing.assert_array_equal(quantiles, intensity_quantiles(volume.reshape(100, 140).T[::-1]))


def test_quantiles_of_extreme_integers_and_of_a_constant():
    extreme = np.array([-32768, 32767, 5, 6], dtype=np.int16)
    assert intensity_quantiles(extreme)[[0, -1]].tolist() == [5, 32767]
    assert set(intensity_quantiles(np.full(10, 3.5, np.float32))) == {3.5}
    assert not IntensityWindow("percentiles")(np.full(10, 7, np.int16)).any()


def test_percentiles_of_mr():
    volume = np.concatenate([np.zeros(500), np.arange(1, 1001)]).astype(np.float32)
    low, high = IntensityWindow("percentiles", percentiles=(1, 99)).limits(volume=volume)
    np.testing.assert_allclose((low, high), np.percentile(np.arange(1, 1001), (1, 99)), atol=1)
    assert IntensityWindow("percentiles", (1, 99)).limits(quantiles=intensity_quantiles(volume)) == (
        low,
        high,
    )


@pytest.mark.parametrize(
    ("modality", "part", "expected"),
    [
        ("CT", "lung", CT_WINDOWS["lung"]),
        ("CT", "head and neck", CT_WINDOWS["soft_tissue"]),
        ("CT", "", CT_WINDOWS["soft_tissue"]),
        ("CT", "Brain", CT_WINDOWS["brain"]),
        ("CT", "spine", CT_WINDOWS["bone"]),
        ("MR", "liver", "percentiles"),
        ("PET", "", "percentiles"),
    ],
)
def test_auto_follows_modality_and_body_part(modality, part, expected):
    assert IntensityWindow("auto").resolve(modality, part) == expected


@pytest.mark.parametrize(
    "window", ["lungs", [1], [3, 3], [5, 2], [0, float("nan")], [0, float("inf")], ["a", "b"], 7, None]
)
def test_bad_windows(window):
    with pytest.raises(InputError, match="window"):
        IntensityWindow(window)


def test_bad_percentiles_and_auto_without_modality():
    with pytest.raises(InputError, match="percentiles"):
        IntensityWindow("percentiles", percentiles=(1, 101))
    with pytest.raises(InputError, match="modality"):
        IntensityWindow("auto")(CT)


def test_dictionary_transform_uses_the_items_own_modality():
    windowed = IntensityWindowd("image", "auto")({"image": CT, "modality": "CT", "body_part": "liver", "other": 1})
    np.testing.assert_allclose(windowed["image"], _plain(CT, *CT_WINDOWS["liver"]), atol=1e-6)
    assert windowed["other"] == 1
    fixed = IntensityWindowd("image", "auto", modality="MR")({"image": CT, "modality": "CT"})["image"]
    np.testing.assert_array_equal(fixed, IntensityWindow("percentiles")(CT))


def test_apply_window_of_equal_limits_is_zero():
    assert not apply_window(CT, 5.0, 5.0).any()


def test_limits_in_hounsfield_units_are_these():
    assert CT_WINDOWS == {
        "lung": (-1350.0, 150.0),
        "soft_tissue": (-160.0, 240.0),
        "bone": (-500.0, 1300.0),
        "brain": (0.0, 80.0),
        "liver": (-45.0, 105.0),
    }


def test_percentiles_of_mr_are_these():
    volume = np.arange(1001, dtype=np.int16)  # the foreground is 1 ... 1000
    assert IntensityWindow("percentiles").limits(volume=volume) == (6.0, 995.0)
    windowed = IntensityWindowd("image", "auto")({"image": volume, "modality": "MR"})["image"]
    assert ((windowed == 0).sum(), (windowed == 1).sum()) == (7, 6)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("Lungs", "lung"), ("pulmonary", "lung"), ("hepatic", "liver"), ("T_SPINE", "soft_tissue")),
        *(("lumbar-spine", "bone"), ("LSPINE", "bone"), ("chest", "soft_tissue"), ("THORAX", "soft_tissue")),
    ],
)
def test_other_words_for_a_body_part(part, name):
    assert IntensityWindow("auto").resolve("CTA", part) == CT_WINDOWS[name]


@pytest.mark.parametrize(
    ("said", "trained", "warned"), [("MR", ["CT"], True), ("CT", ["CT"], False), ("MR", [], False)]
)
def test_a_modality_that_the_network_has_not_seen_is_told(said, trained, warned, caplog):
    IntensityWindowd("image", "auto", trained_modalities=trained)({"image": CT, "modality": said})
    assert ("trained on CT alone" in caplog.text) == warned


def test_config_then_item_then_metadata_give_modality_and_body_part():
    volume = MetaTensor(torch.as_tensor(CT), meta={"modality": "CT", "body_part": "LIVER"})
    liver = IntensityWindowd("image", "auto")({"image": volume})["image"]
    np.testing.assert_allclose(liver.numpy(), _plain(CT, *CT_WINDOWS["liver"]), atol=1e-6)
    lung = IntensityWindowd("image", "auto")({"image": volume, "body_part": "lung"})["image"]
    np.testing.assert_allclose(lung.numpy(), _plain(CT, *CT_WINDOWS["lung"]), atol=1e-6)
    brain = IntensityWindowd("image", "auto", "ct", "brain")({"image": volume, "body_part": "lung", "modality": "MR"})
    np.testing.assert_allclose(brain["image"].numpy(), _plain(CT, *CT_WINDOWS["brain"]), atol=1e-6)


def test_the_window_that_was_taken_is_said(caplog):
    with caplog.at_level("INFO"):
        IntensityWindowd("image", "auto")({"image": CT, "modality": "CT", "body_part": "chest"})
    assert "window auto, -160 to 240 (CT, chest)" in caplog.text
    assert "set `window` to lung" in caplog.text
    assert "Hounsfield" not in caplog.text
    with caplog.at_level("INFO"):
        IntensityWindowd("image", "lung")({"image": CT.clip(-200, 255), "modality": "CT"})
    assert "no value below -200" in caplog.text
    caplog.clear()
    IntensityWindowd("image", [0, 255])({"image": CT.clip(-200, 255), "modality": "CT"})  # what the warning asks for
    assert "no value below" not in caplog.text


def test_a_modality_that_nothing_says_is_the_default_with_a_warning(caplog):
    window = IntensityWindowd("image", "auto", default_modality="CT")
    assert np.array_equal(window({"image": CT})["image"], window({"image": CT, "modality": "CT"})["image"])
    assert caplog.text.count("says no modality, taken as CT") == 1
    assert not np.array_equal(window({"image": CT})["image"], window({"image": CT, "modality": "MR"})["image"])
