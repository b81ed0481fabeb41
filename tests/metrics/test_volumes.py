"""Volumetric and surface numbers against DeepMind's surface-distance, SimpleITK, brute force and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import surface_distance
import torch
from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.surfaces import SurfaceDistances, bounding_box, hausdorff95
from boltzformer.metrics.measures.volumes import VolumeMasks, other_side_of, overlap_dice, wrong_side_percent
from boltzformer.metrics.measures.volumes import volume_row as row_of_masks
from boltzformer.metrics.summary.volumes import summarise_volumes
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.metrics.meandice import compute_dice
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

PLACE = {"dataset": "d", "case": "c", "patient": "p", "object": "o"}
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 3.0), (4.0, 4.5, 2.5)]


def blobs(seed: int, shape: tuple[int, int, int] = (22, 25, 18)) -> tuple[np.ndarray, np.ndarray]:
    """A label of some blobs and a shifted, cut and speckled prediction; both touch the border."""
    random = np.random.default_rng(seed)
    field = gaussian_filter(random.random(shape), 2)
    label = field > np.quantile(field, 0.9)
    pred = np.roll(label, (1, 2, 0), (0, 1, 2))
    pred[:, :4] = False
    pred[-1, -1, -1] = True
    return pred, label


def volume_row(pred: np.ndarray, label: np.ndarray, spacing, tolerances_mm=(1.0, 2.0, 3.0)) -> dict:
    return row_of_masks(PLACE, VolumeMasks(pred, label, spacing), Catalogue(tolerances_mm).volumes)


def surface_dice(pred: np.ndarray, label: np.ndarray, spacing, tolerances_mm) -> list[float]:
    distances = SurfaceDistances(pred, label, spacing)
    return [distances.share_within(limit) for limit in tolerances_mm]


def surface_points(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    return np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_surface_dice_equals_deepmind(seed, spacing):
    pred, label = blobs(seed)
    tolerances = [0.5, 1.0, 2.0, 5.0]
    distances = surface_distance.compute_surface_distances(label, pred, spacing)
    expected = [surface_distance.compute_surface_dice_at_tolerance(distances, t) for t in tolerances]
    np.testing.assert_allclose(surface_dice(pred, label, spacing, tolerances), expected, atol=1e-6)
    monai = compute_surface_dice(
        torch.tensor(pred)[None, None].float(),
        torch.tensor(label)[None, None].float(),
        [2.0],
        include_background=True,
        spacing=spacing,
        use_subvoxels=True,
    )
    assert float(monai) == pytest.approx(expected[2], abs=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_hd95_equals_brute_force(seed, spacing):
    pred, label = blobs(seed)
    between = cdist(surface_points(pred, spacing), surface_points(label, spacing))
    expected = max(np.percentile(between.min(1), 95), np.percentile(between.min(0), 95))
    assert hausdorff95(pred, label, spacing) == pytest.approx(expected, rel=1e-9)
    monai = compute_hausdorff_distance(
        torch.tensor(pred)[None, None], torch.tensor(label)[None, None], True, percentile=95, spacing=spacing
    )
    assert float(monai) == pytest.approx(expected, rel=1e-5)


def test_surfaces_in_far_corners_of_a_long_volume():
    """Longer than a slab, with objects on both ends and nothing between."""
    pred, label = np.zeros((2, 70, 9, 8), bool)
    label[:2, :2, :2] = label[60:, 3:6, 3:6] = pred[1:3, :2, :2] = pred[59:69, 3:6, 3:6] = True
    distances = surface_distance.compute_surface_distances(label, pred, (1.0, 2.0, 3.0))
    expected = [surface_distance.compute_surface_dice_at_tolerance(distances, t) for t in (0.5, 1.0)]
    assert surface_dice(pred, label, (1.0, 2.0, 3.0), [0.5, 1.0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacing_order_agrees_with_simpleitk(spacing):
    """Two boxes: every directed distance lies on one axis, so HD95 and SimpleITK's maximum coincide."""
    label = np.zeros((20, 20, 20), bool)
    label[2:5, 2:5, 2:5] = True
    for axis in range(3):
        pred = np.roll(label, 7, axis)
        images = [sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0)) for mask in (pred, label)]
        for image in images:
            image.SetSpacing([float(s) for s in spacing])
        hausdorff = sitk.HausdorffDistanceImageFilter()
        hausdorff.Execute(*images)
        assert hausdorff.GetHausdorffDistance() == pytest.approx(7 * spacing[axis])
        assert hausdorff95(pred, label, spacing) == pytest.approx(7 * spacing[axis], rel=1e-5)


def test_dice_equals_monai_and_simpleitk():
    pred, label = blobs(3)
    row = volume_row(pred, label, (1, 2, 3))
    monai = compute_dice(torch.tensor(pred)[None, None].float(), torch.tensor(label)[None, None].float())
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (label, pred)))
    assert row["dice"] == pytest.approx(float(monai), abs=1e-6)
    assert row["dice"] == pytest.approx(overlap.GetDiceCoefficient(1))
    assert row["label_mm3"] == label.sum() * 6
    assert row["predicted_mm3"] == pred.sum() * 6


def test_plates_have_a_known_surface_dice():
    """Two faces of a 1-voxel plate, shifted by one voxel of 3 mm: no face within 2.9 mm but one pair; all at 3 mm."""
    label = np.zeros((40, 40, 9), bool)
    label[:, :, 4] = True
    pred = np.roll(label, 1, 2)
    at_2, at_3 = surface_dice(pred, label, (1.0, 1.0, 3.0), [2.9, 3.0])
    assert at_3 == 1.0
    assert 0.45 < at_2 < 0.55  # the inner pair of faces coincides, the outer pair is 3 mm off


def test_one_voxel_lesion():
    label = np.zeros((9, 9, 9), bool)
    label[4, 4, 4] = True
    pred = np.roll(label, 2, 2)
    row = volume_row(pred, label, (1.0, 1.0, 2.5), (2.0, 5.0))
    assert row["dice"] == 0
    assert row["hd95_mm"] == pytest.approx(5.0)
    assert row["surface_dice_5mm"] == 1.0
    assert volume_row(label, label, (1.0, 1.0, 2.5))["hd95_mm"] == 0


def test_empty_prediction_empty_label_and_both():
    empty = np.zeros((8, 8, 8), bool)
    label = empty.copy()
    label[2:4, 2:4, 2:4] = True
    missed = volume_row(empty, label, (1, 1, 1))
    assert (missed["positive"], missed["dice"], missed["surface_dice_2mm"]) == (1, 0.0, 0.0)
    assert missed["hd95_mm"] is None
    assert missed["false_positive_mm3"] is None
    false = volume_row(label, empty, (1, 2, 3))
    assert (false["positive"], false["dice"], false["surface_dice_2mm"], false["hd95_mm"]) == (0, None, None, None)
    assert false["false_positive_mm3"] == 48
    right = volume_row(empty, empty, (1, 2, 3))
    assert right["dice"] is None
    assert right["false_positive_mm3"] == 0


def test_summary_counts_undefined_distances_and_keeps_negatives_apart():
    label = np.zeros((8, 8, 8), bool)
    label[2:4, 2:4, 2:4] = True
    empty = np.zeros_like(label)
    pairs = [(label, label), (empty, label), (empty, label), (label, empty), (empty, empty)]
    rows = [volume_row(p, t, (1, 1, 1)) for p, t in pairs]
    overall = summarise_volumes(rows)["overall"]
    assert overall["n"] == 3
    assert overall["mean_dice"] == pytest.approx(1 / 3)
    assert overall["missed"] == 2
    assert overall["surface_dice_2mm"] == pytest.approx(1 / 3)
    assert overall["hd95_mm"] == {"n": 1, "undefined": 2, "mean": 0.0, "median": None}
    assert overall["negatives"] == {
        "n": 2,
        "with_false_positives": 1,
        "specificity": 0.5,
        "mean_false_positive_mm3": 4.0,
    }


def test_bounding_box():
    mask = np.zeros((5, 6, 7), bool)
    assert bounding_box(mask) is None
    mask[0, 2:4, 6] = True
    assert mask[bounding_box(mask)].shape == (1, 2, 1)
    assert mask[bounding_box(mask, margin=1)].shape == (2, 4, 2)
    assert math.isnan(overlap_dice(mask & False, mask & False))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, math.nan)])
def test_bad_spacing(spacing):
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(ValueError, match="spacing"):
        volume_row(mask, mask, spacing)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        volume_row(np.ones((3, 3, 3), bool), np.ones((3, 3, 4), bool), (1, 1, 1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("left kidney", 2), ("Left Kidney", 2), ("kidney_left", 4), ("bright spot", None), ("left or right lung", None)],
)
def test_the_twin_of_a_lateral_organ(name, expected):
    objects = {1: "left kidney", 2: "right kidney", 3: "kidney_left", 4: "kidney_right", 5: "bleft spot"}
    assert other_side_of(name, objects) == expected


def test_wrong_side_is_undefined_without_three_masks():
    mask = np.zeros((6, 2, 2), bool)
    one, two = mask.copy(), mask.copy()
    one[0], two[5] = True, True
    assert wrong_side_percent(one, one, two) == 0
    assert wrong_side_percent(two, one, two) == 100
    assert wrong_side_percent(two, one, None) is None
    assert wrong_side_percent(mask, one, two) is None
    assert wrong_side_percent(one, mask, two) is None
    assert wrong_side_percent(one, one, one) is None
