"""RTSTRUCT: contours that hold the same pixels."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from boltzformer.volumes.rtstruct import make_rtstruct, outlines
from scipy.spatial.transform import Rotation
from skimage.measure import points_in_poly

from tests.volumes.small_series import SPACING, random_masks, segmented, straight, write_small_series

PROMPTS = ["left kidney", "lung nodule", "never found"]


def filled(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre is inside, by the even-odd rule."""
    centres = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 2)
    inside = np.zeros(len(centres), bool)
    for polygon in polygons:
        inside ^= points_in_poly(centres, polygon)
    return inside.reshape(shape)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.7])
def test_outlines_hold_exactly_the_masks_pixels(share):
    for seed in range(5):
        mask = np.random.default_rng(seed).random((17, 23)) < share  # holes, islands in holes, diagonal neighbours
        assert np.array_equal(filled(outlines(mask.astype(np.uint8)), mask.shape), mask)


def test_contours_lie_on_their_slices_and_read_back(tmp_path):
    rotation = Rotation.from_euler("xyz", [20, -10, 30], degrees=True).as_matrix()
    positions = straight(6)
    positions[3:, 2] += 4.5
    positions = positions @ rotation.T
    files = write_small_series(tmp_path / "series", positions, rotation)
    masks = random_masks((3, 20, 24, 6))
    masks[2] = 0
    make_rtstruct(segmented(files, masks, PROMPTS)).save_as(tmp_path / "rt.dcm", enforce_file_format=True)
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in read.StructureSetROISequence] == PROMPTS
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    found = np.zeros_like(masks)
    for p, region in enumerate(read.ROIContourSequence):
        polygons: dict[int, list[np.ndarray]] = {}
        for contour in region.get("ContourSequence", []):
            k = uids.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
            points = (np.array(contour.ContourData, float).reshape(-1, 3) - positions[k]) @ rotation
            assert np.abs(points[:, 2]).max() < 1e-3
            polygons.setdefault(k, []).append(points[:, 1::-1] / [SPACING[0], SPACING[1]])
        for k, listed in polygons.items():
            found[p, :, :, k] = filled(listed, (24, 20)).T
    assert np.array_equal(found, masks)
    assert b"SECRET" not in (tmp_path / "rt.dcm").read_bytes()


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(tmp_path):
    files = write_small_series(tmp_path / "series", straight(5), without=["PatientBirthDate"], SpecificCharacterSet="")
    masks = random_masks((3, 20, 24, 5))
    masks[2] = 0
    make_rtstruct(segmented(files, masks, PROMPTS)).save_as(tmp_path / "rt.dcm", enforce_file_format=True)
    told = subprocess.run(["dciodvfy", tmp_path / "rt.dcm"], capture_output=True, text=True, check=False)
    assert "RTStructureSet" in told.stderr + told.stdout
    assert "Error" not in told.stderr + told.stdout, told.stderr
