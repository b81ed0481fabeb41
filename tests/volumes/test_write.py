"""Results on the grid of their volume: geometry, origin, size, and what viewers can read."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from boltzformer.errors import InputError
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.sources import open_volume
from boltzformer.volumes.write import Grid, is_ours, write_notes
from scipy.spatial.transform import Rotation

from tests.support import body, save_nifti
from tests.volumes.test_dicom import write_series

ARRAY = body((20, 24, 5))
MASK = (ARRAY > 100).astype(np.uint8)


def test_dicom_masks_have_both_forms_and_millimetres(tmp_path):
    rotation = Rotation.from_euler("xyz", [20, -10, 30], degrees=True).as_matrix()
    write_series(tmp_path / "s", ARRAY, rotation, offsets={3: 0.05})
    grid = Grid.of_volume(open_volume(tmp_path / "s"))
    grid.write(MASK, tmp_path / "m.nii.gz")
    saved = nib.load(tmp_path / "m.nii.gz")
    assert (saved.header["qform_code"], saved.header["sform_code"]) == (1, 1)
    assert saved.header.get_xyzt_units()[0] == "mm"
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_allclose(saved.affine, grid.affine, atol=1e-5)
    assert np.array_equal(np.asarray(saved.dataobj), MASK)
    image = sitk.ReadImage(str(tmp_path / "m.nii.gz"))  # what viewers read with
    for index in [(0, 0, 0), (19, 3, 4)]:
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert np.linalg.norm(place - (grid.affine @ [*index, 1])[:3]) < 0.08


def test_a_sheared_grid_gives_viewers_a_map_of_their_own(tmp_path):
    affine = np.diag([-0.8, -0.9, 3.0, 1.0])
    affine[1, 2] = 1.3  # a tilted gantry
    label = np.zeros((20, 24, 5), np.uint8)
    label[5:12, 8:14, 1:4] = 2
    grid = Grid(label.shape, affine, "scan")
    assert grid.sheared
    grid.write(label, tmp_path / "m.nii.gz")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj), label)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "m.nii.gz"))

    grid.write_orthogonal(label, tmp_path / "v.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "v.nii.gz"))
    saved = nib.load(tmp_path / "v.nii.gz")
    assert not Grid(saved.shape, saved.affine, "v").sheared
    found = np.argwhere(np.asarray(saved.dataobj) == 2)
    assert len(found) == np.count_nonzero(label)  # whole pixels: no voxel is lost or made
    truth = nib.affines.apply_affine(affine, np.argwhere(label))
    places = np.array([image.TransformIndexToPhysicalPoint(tuple(map(int, index))) for index in found]) * [-1, -1, 1]
    assert np.abs(places.mean(axis=0) - truth.mean(axis=0)).max() < 0.45
    distance = np.linalg.norm(places[:, None] - truth[None], axis=2).min(axis=1)
    assert distance.max() <= 0.46  # half a pixel


def test_tiny_shear_of_real_series_is_none():
    affine = np.diag([-0.8, -0.9, 3.0, 1.0])
    affine[0, 2] = 0.003
    assert not Grid((20, 24, 5), affine, "scan").sheared


def test_size_counts_units_and_keeps_small_objects(tmp_path):
    image = nib.Nifti1Image(ARRAY, np.diag([1e-3, 1e-3, 2e-3, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    grid = Grid.of_path(tmp_path / "a.nii")
    assert grid.millilitres(3) == pytest.approx(0.006)
    grid.write(MASK, tmp_path / "m.nii.gz")
    saved = nib.load(tmp_path / "m.nii.gz")
    assert saved.header.get_xyzt_units()[0] == "meter"
    assert np.array_equal(saved.affine, nib.load(tmp_path / "a.nii").affine)
    fine = Grid((4, 4, 4), np.diag([0.01, 0.01, 0.01, 1]), "a")
    assert fine.millilitres(2) == pytest.approx(2e-9)
    assert replace(fine, spacing_known=False).millilitres(2) is None


def test_an_input_and_a_users_file_stay(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", ARRAY, np.eye(4))
    before = path.read_bytes()
    grid = Grid.of_path(path)
    with pytest.raises(InputError, match="is an input"):
        grid.write(MASK, path)
    other = save_nifti(tmp_path / "b.nii.gz", ARRAY, np.eye(4))
    with pytest.raises(InputError, match="not written by this program"):
        grid.write(MASK, other)
    (tmp_path / "a.json").write_text('{"EchoTime": 1}')
    with pytest.raises(InputError, match="not written by this program"):
        write_notes({}, tmp_path / "a.json")
    assert path.read_bytes() == before
    for _ in range(2):  # one's own results may be replaced
        assert is_ours(grid.write(MASK, tmp_path / "m.nii.gz"))
        assert is_ours(write_notes({"x": 1}, tmp_path / "m.json"))


def test_the_same_mask_gives_the_same_bytes(tmp_path):
    grid = Grid(MASK.shape, np.eye(4), "scan")
    first, second = (grid.write(MASK, tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second


def test_a_result_on_another_grid_is_refused(tmp_path):
    grid = Grid((20, 24, 5), np.eye(4), "scan")
    grid.check((20, 24, 5), np.eye(4))
    for shape, affine in (((20, 24, 4), np.eye(4)), ((20, 24, 5), np.diag([1, 1, 1.2, 1]))):
        with pytest.raises(InputError, match="scan: the result's grid"):
            grid.check(shape, affine)


def test_the_series_travels_with_the_volume(tmp_path):
    write_series(tmp_path / "s", ARRAY, BodyPartExamined="LIVER")
    volume = open_volume(tmp_path / "s")
    assert volume.series.files == volume.files == find_series(tmp_path / "s").files
    assert (volume.modality, volume.body_part) == ("CT", "LIVER")
    assert Grid.of_path(tmp_path / "s").shape == ARRAY.shape


def test_an_axis_longer_than_nifti_1_holds(tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    Grid((2, 40_000, 1), affine, "the array").write(np.zeros((2, 40_000, 1), np.uint8), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.shape == (2, 40_000, 1)
    assert np.allclose(image.affine, affine)
