"""Side and orientation: the mask of a re-oriented scan is the re-oriented mask, and left stays left."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.data.windows import apply_window, limits_of
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from tests.support import BUNDLE, body, in_orientation, save_nifti

SIDES = ("RL", "AP", "SI")
ALL_48 = ["".join(codes) for axes in itertools.permutations(SIDES) for codes in itertools.product(*axes)]
STRAIGHT = np.array([[0.8, 0, 0, -30], [0, 0.9, 0, -20], [0, 0, 3.0, 10], [0, 0, 0, 1]])
VOLUME = body((24, 20, 4))


def _oblique() -> np.ndarray:
    affine = STRAIGHT.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", [14, -20, 25], degrees=True).as_matrix() @ affine[:3, :3]
    return affine


@pytest.fixture(scope="module")
def logits(segmenter):
    """Of the scan in RAS, by the network: (1, X, Y, Z)."""
    volume = segmenter.preprocessing({"image": VOLUME, "affine": STRAIGHT})["image"]
    found = segmenter.inferer(volume[None], segmenter.network, prompts="liver in abdominal CT")[0].as_tensor()
    mask = (found >= 0).numpy()
    assert 0 < mask.sum() < mask.size
    assert not np.array_equal(mask, mask[:, ::-1])  # a comparison that notices a change of sides
    return found


def test_there_are_48():
    assert len(set(ALL_48)) == 48


@pytest.mark.parametrize("affine", [STRAIGHT, _oblique()], ids=["straight", "oblique"])
def test_mask_of_the_reoriented_scan_is_the_reoriented_mask(segmenter, logits, affine):
    """The network sees the same voxels, so it says the same; what it says comes back to the scan's own grid."""
    seen = segmenter.preprocessing({"image": VOLUME, "affine": affine})["image"]
    for axcodes in ALL_48:
        scan, stored = in_orientation(VOLUME, affine, axcodes)
        assert nib.aff2axcodes(stored) == tuple(axcodes)
        item = segmenter.preprocessing({"image": scan, "affine": stored})
        assert np.array_equal(item["image"].numpy(), seen.numpy()), axcodes
        item["pred"] = MetaTensor(logits, meta=item["image"].meta)
        mask = segmenter.postprocessing(item)["pred"]
        expected, _ = in_orientation((logits[0] >= 0).numpy().astype(np.uint8), affine, axcodes)
        assert np.array_equal(mask[0].numpy(), expected), axcodes
        np.testing.assert_allclose(mask.affine.numpy(), stored, atol=1e-6)


def test_left_stays_left(segmenter, tmp_path):
    """Voxels of the patient's left half (x < 0 in RAS+) lie at the same world places in every saved mask."""
    for axcodes in ("RAS", "LPS", "SAR"):
        scan, stored = in_orientation(VOLUME, STRAIGHT, axcodes)
        path = save_nifti(tmp_path / f"{axcodes}.nii.gz", scan, stored)
        segmenter.segment(path, "liver in abdominal CT").save(tmp_path / "out")
    places = set()
    for file in sorted((tmp_path / "out").glob("*.nii.gz")):
        saved = nib.load(file)
        voxels = np.argwhere(np.asarray(saved.dataobj))
        world = nib.affines.apply_affine(saved.affine, voxels)
        places.add((round(float(world[:, 0].mean()), 3), int((world[:, 0] < 0).sum())))
    assert len(places) == 1


def test_inference_sees_what_training_saw(tmp_path, segmenter):
    """A preprocessed slice of inference.json equals the training dataset's item of the same file."""
    array, affine = in_orientation(VOLUME, STRAIGHT, "LPS")
    image = save_nifti(tmp_path / "image.nii.gz", array, affine)
    label = save_nifti(tmp_path / "label.nii.gz", np.ones(array.shape, np.uint8), affine)
    case = {"image": str(image), "label": str(label), "modality": "CT", "objects": {1: "body"}}
    dataset = SliceDataset([case], tmp_path / "cache", window="soft_tissue", training=False)
    volume = segmenter.preprocessing({"image": str(image)})["image"]
    volume = apply_window(volume, *limits_of(volume))
    assert len(dataset) == VOLUME.shape[2]
    for k in range(len(dataset)):
        item = dataset[k]
        assert np.array_equal(np.asarray(item["image"])[0], np.asarray(volume[0, :, :, int(item["slice"])]))


def test_orientation_of_the_config_is_ras():
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    assert parser["orientation"] == "RAS"
