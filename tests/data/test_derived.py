"""Datasets made from a dataset: what is changed, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.data.cases import load_cases
from boltzformer.data.derived import (
    Scan,
    back_on_grid,
    field_of_view,
    mirrored,
    other_side,
    read_scan,
    resampled,
    shifted,
    softened,
    unchanged,
    write_datalist,
    write_derived,
)
from boltzformer.errors import InputError

from tests.support import in_orientation, save_nifti, write_json

OBJECTS = {1: "left kidney", 2: "right kidney", 3: "spine"}
AFFINE = np.array([[4.0, 0, 0, -50], [0, 4.0, 0, -30], [0, 0, 3.0, 10], [0, 0, 0, 1]])


def _scan() -> Scan:
    draw = np.random.default_rng(0)
    label = np.zeros((32, 28, 5), np.uint8)
    label[5:9, 12:16, 1:4] = 1  # low x is the patient's left in no world, but a mirror does not mind
    label[22:27, 11:16, 1:4] = 2
    label[15:18, 8:11, :] = 3
    image = (draw.normal(0, 10, label.shape) + 100 * (label > 0)).astype(np.int16)
    return Scan(image, label, AFFINE, OBJECTS)


def test_the_mirror_exchanges_sides_in_picture_and_names():
    scan, made = _scan(), mirrored(_scan(), 0)
    assert np.array_equal(made.image, scan.image[::-1])
    assert np.array_equal(made.label == 1, (scan.label == 2)[::-1])
    assert np.array_equal(made.label == 2, (scan.label == 1)[::-1])
    assert np.array_equal(made.label == 3, (scan.label == 3)[::-1])
    again = mirrored(made, 0)
    assert np.array_equal(again.label, scan.label)
    assert other_side("Right kidney") == "left kidney"
    assert other_side("spine") == "spine"


@pytest.mark.parametrize("mm", [1.0, 2.0, 3.0, 8.0])
def test_resampling_keeps_the_outer_edges(mm):
    scan, made = _scan(), resampled(mm)(_scan(), 0)
    assert made.image.shape == made.label.shape
    for corner in (0, 1):
        ends = [s.affine @ [*(corner * np.array(s.image.shape) - 0.5), 1] for s in (scan, made)]
        assert np.allclose(*ends)
    volumes = [[(s.label == v).sum() * abs(np.linalg.det(s.affine)) for v in OBJECTS] for s in (scan, made)]
    if mm in (1.0, 2.0):
        assert np.allclose(*volumes)  # each pixel becomes a whole number of them
    assert abs(float(made.image.mean()) - float(scan.image.mean())) < 2


def test_a_field_of_view_holds_the_organs_at_their_place():
    scan, made = _scan(), field_of_view(100.0, 2.0)(_scan(), 0)
    assert made.image.shape == (50, 50, 5)
    place = np.argwhere(made.label == 1).mean(axis=0)
    world = made.affine @ [*place, 1]
    assert np.allclose(world, scan.affine @ [*np.argwhere(scan.label == 1).mean(axis=0), 1])


@pytest.mark.parametrize("change", [resampled(1.0), resampled(1.3), resampled(8.0), field_of_view(100.0, 2.0)])
def test_masks_come_back_on_the_pixels_of_the_scan(change):
    """What was drawn on the scan's pixels comes back whole from finer ones, nearly so from coarser ones."""
    scan = _scan()
    made = change(scan, 0)
    for value in OBJECTS:
        label = scan.label == value
        back = back_on_grid(made.label == value, made.affine, scan)
        assert back.shape == label.shape
        if made.spacing[0] < scan.spacing[0]:
            assert np.array_equal(back, label)
        else:
            assert (back & label).sum() > 0.5 * label.sum()


def test_softening_takes_what_finer_pixels_lose_and_stays_on_the_grid():
    scan = _scan()
    fine, soft = resampled(2.0)(scan, 0), softened(2.0)(scan, 0)
    assert np.array_equal(soft.label, scan.label)
    assert np.array_equal(soft.affine, scan.affine)
    assert soft.image.dtype == scan.image.dtype
    blocks = fine.image.reshape(scan.image.shape[0], 2, scan.image.shape[1], 2, -1).mean(axis=(1, 3))
    assert np.allclose(soft.image, blocks, atol=0.5)
    contrast = [np.abs(np.diff(one.image.astype(float), axis=0)).max() for one in (scan, soft)]
    assert contrast[1] < 0.95 * contrast[0]


def test_half_of_a_pixel_is_enough():
    scan = _scan()
    made = resampled(2.0)(scan, 0)
    mask = np.zeros(made.label.shape, dtype=bool)
    mask[20:22, 10, 0] = True  # two of the four fine pixels of (10, 5), on one side
    mask[30, 20, 1] = True  # one of four of (15, 10)
    assert np.argwhere(back_on_grid(mask, made.affine, scan)).tolist() == [[10, 5, 0]]


def test_shifts_reach_the_border_and_lose_nothing():
    scan = _scan()
    starts = []
    for number in range(40):
        made = shifted(3)(scan, number)
        assert (made.label > 0).sum() == (scan.label > 0).sum()
        assert np.array_equal(made.image[made.label > 0], scan.image[scan.label > 0])
        starts.append(np.argwhere(made.label > 0).min(axis=0)[0])
    assert np.array_equal(shifted(3)(scan, 7).image, shifted(3)(scan, 7).image)
    assert min(starts) == 0
    assert max(starts) == 32 - 22
    assert (made.image == 0).any()


@pytest.fixture
def dataset(tmp_path) -> Path:
    scan = _scan()
    for name, array in (("image", scan.image), ("label", scan.label)):
        save_nifti(tmp_path / f"{name}s" / "a.nii.gz", *in_orientation(array, AFFINE, "LPS"))
    item = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "patient": "p1"}
    content = {"name": "two kidneys", "modality": "CT", "labels": OBJECTS, "window": [0, 255], "spacing": "unknown"}
    return write_json(tmp_path / "dataset.json", {**content, "validation": [item]})


def test_written_and_read_again(dataset, tmp_path):
    cases = load_cases(dataset, "validation")
    assert cases[0]["spacing_known"] is False
    folder = write_derived(cases, unchanged, tmp_path / "derived")
    write_derived(cases, unchanged, tmp_path / "derived")  # again: its own place
    (case,) = load_cases(folder, "validation")
    scan = read_scan(case)
    assert np.array_equal(scan.label, _scan().label)
    assert np.allclose(scan.affine, AFFINE)
    assert nib.aff2axcodes(nib.load(case["image"]).affine) == ("R", "A", "S")
    for key in ("patient", "window", "modality", "dataset", "spacing_known"):
        assert case[key] == cases[0][key]
    (listed,) = load_cases(write_datalist(cases, tmp_path / "list.json"), "validation")
    assert listed == cases[0]


def test_a_folder_of_another_origin_is_left_alone(dataset):
    with pytest.raises(InputError, match="holds no derived dataset"):
        write_derived(load_cases(dataset, "validation"), unchanged, dataset.parent)


def test_a_spacing_that_is_a_number_is_refused(dataset, tmp_path):
    item = {"image": "a", "label": "b", "labels": OBJECTS, "spacing": 2}
    write_json(tmp_path / "bad.json", {"training": [item]})
    with pytest.raises(InputError, match='`spacing` may only be "unknown"'):
        load_cases(tmp_path / "bad.json", "training", validation_share=0)


def test_numbers_between_0_and_1_outlast_resampling():
    scan = _scan()
    share = ((scan.image - scan.image.min()) / np.ptp(scan.image)).astype(np.float32)
    made = resampled(2.0)(Scan(share, scan.label, scan.affine, scan.objects), 0)
    assert abs(float(made.image.mean()) - float(share.mean())) < 0.01
    large = Scan((scan.image.astype(np.int32) + 40000).astype(np.uint16), scan.label, scan.affine, scan.objects)
    assert resampled(2.0)(large, 0).image.min() > 39000


def test_derived_scans_take_each_others_place_nowhere(tmp_path):
    items = []
    for number in (1, 2):
        scan = _scan()
        (tmp_path / f"p{number}").mkdir()
        for key, array in (("image", scan.image.astype(np.int64)), ("label", scan.label)):
            nib.save(nib.Nifti1Image(array, AFFINE, dtype=array.dtype), tmp_path / f"p{number}" / f"{key}.nii.gz")
        items.append({key: f"p{number}/{key}.nii.gz" for key in ("image", "label")} | {"patient": f"p{number}"})
    content = {"name": "set", "modality": "CT", "labels": {str(v): n for v, n in OBJECTS.items()}}
    cases = load_cases(write_json(tmp_path / "cases.json", {**content, "validation": items}), "validation")
    with pytest.raises(InputError, match=r"p1/image.nii.gz and .*p2/image.nii.gz would be written to one file"):
        write_derived(cases, unchanged, tmp_path / "both")
    (made,) = load_cases(write_derived(cases[:1], unchanged, tmp_path / "one"), "validation")
    assert np.array_equal(read_scan(made).image, _scan().image)
