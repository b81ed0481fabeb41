"""Output formats: each reads back as the same masks, none touches the input."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import matplotlib.image
import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from boltzformer.errors import InputError
from boltzformer.inference import formats
from boltzformer.inference.contact_sheet import MOST_TILES, contact_sheet
from boltzformer.inference.formats import output_formats, png, save_as
from boltzformer.volumes.grids import turn_to_ras
from boltzformer.volumes.segmented import Algorithm, Segment, SegmentedVolume, color_of
from boltzformer.volumes.volume import Volume
from boltzformer.volumes.write import Grid, is_ours

from tests.support import body
from tests.volumes.small_series import random_masks, segmented, straight, write_small_series

OBLIQUE = nib.affines.from_matvec([[-0.8, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 3.0]], [10.0, -20.0, 30.0])


def result(masks: np.ndarray, prompts: list[str], affine: np.ndarray = OBLIQUE) -> SegmentedVolume:
    segments = tuple(Segment(f"s{k}", prompt) for k, prompt in enumerate(prompts))
    volume = Volume(body(masks.shape[1:]), affine, "ct.nii.gz", Path("ct.nii.gz"), modality="CT")
    findings = tuple({"name": s.name, "voxels": int(m.sum())} for s, m in zip(segments, masks, strict=True))
    return SegmentedVolume(
        "case", volume, masks, segments, Algorithm("BoltzFormer", "0.1.0", "ab" * 32), findings=findings
    )


def apart() -> np.ndarray:
    masks = np.zeros((3, 20, 24, 6), np.uint8)
    masks[0, 2:6, 3:9, 1:3], masks[1, 10:14, 3:9, 2:4] = 1, 1
    return masks


def test_every_module_of_the_package_is_a_format():
    assert {"dicom-seg", "json", "nifti", "png", "rtstruct", "seg.nrrd"} <= set(output_formats())


def test_a_new_format_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "voxel_count.py").write_text(
        "from boltzformer.inference.formats.output_format import OutputFormat\n"
        "from boltzformer.output_files import write_bytes\n"
        "def write(volume, folder):\n"
        "    return [write_bytes(folder / 'n.txt', b'%d' % volume.masks.sum())]\n"
        "FORMAT = OutputFormat('count', 'voxels', write)\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    output_formats.cache_clear()
    try:
        assert [path.read_text() for path in save_as(result(apart(), ["a", "b", "c"]), "count", tmp_path)] == ["96"]
    finally:
        output_formats.cache_clear()


@pytest.mark.parametrize("overlapping", [False, True])
def test_seg_nrrd_holds_masks_names_colours_and_grid(tmp_path, overlapping):
    masks = random_masks((3, 20, 24, 6)) if overlapping else apart()
    prompts = ["left kidney", "Läsion", "肺结节"]
    (path,) = save_as(result(masks, prompts), "seg.nrrd", tmp_path)
    data, header = nrrd.read(str(path))
    data = data if overlapping else data[None]
    for k, plain in enumerate(["left kidney", "Lasion", "s2"]):
        assert header[f"Segment{k}_Name"] == plain
        layer, value = int(header[f"Segment{k}_Layer"]), int(header[f"Segment{k}_LabelValue"])
        assert np.array_equal(data[layer] == value, masks[k])
        assert np.allclose([float(c) * 255 for c in header[f"Segment{k}_Color"].split()], color_of(k), atol=0.01)
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in header["Segment0_Tags"]
    directions = header["space directions"][-3:]
    assert np.allclose(directions, (np.diag([-1, -1, 1]) @ OBLIQUE[:3, :3]).T)
    if not overlapping:
        image = sitk.ReadImage(str(path))
        point = np.array(image.TransformIndexToPhysicalPoint((3, 4, 5))) * [-1, -1, 1]
        assert np.allclose(point, (OBLIQUE @ [3, 4, 5, 1])[:3], atol=1e-3)


def test_the_png_shows_the_slice_with_most_of_each_object_in_its_colour(tmp_path):
    made = result(apart(), ["a $\\frac$ nodule", "肺结节", "nothing"], np.diag([1.0, 1, 3, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # letters that the font lacks, and `$`, are no one's trouble
        (path,) = save_as(made, "png", tmp_path)
    assert path.name == "case.png"
    assert is_ours(path)
    picture = matplotlib.image.imread(path)[..., :3] * 255

    def outline(index: int) -> np.ndarray:
        """Places of a colour below the captions, which have it too."""
        return np.argwhere(np.abs(picture - color_of(index)).max(axis=-1) < 12)

    drawn = [outline(k) for k in range(3)]
    assert min(len(drawn[0]), len(drawn[1])) > 50
    assert len(drawn[2]) == 0
    # a row of two tiles: each object in its own
    middle = picture.shape[1] / 2
    assert drawn[0][:, 1].max() < middle < drawn[1][:, 1].min()


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 3, 1]), np.diag([-1.0, -1, 3, 1]), OBLIQUE])
def test_the_png_shows_the_patients_right_on_the_left(affine):
    mask = np.zeros((40, 30, 4), np.uint8)
    mask[slice(0, 10) if affine[0, 0] < 0 else slice(30, 40), 10:20, 2] = 1  # on the patient's right
    image, turned = turn_to_ras(body(mask.shape), affine)
    mask = turn_to_ras(mask, affine)[0]
    figure = contact_sheet(image, [mask], nib.affines.voxel_sizes(turned), (0, 100), ["object"], "case", float)
    (axes,) = figure.axes
    (edges,) = axes.collections
    x = np.concatenate(edges.get_segments())[:, 0]
    shown = axes.transData.transform(np.stack([x, np.zeros_like(x)], axis=1))[:, 0]
    box = axes.get_window_extent()
    assert shown.mean() < (box.x0 + box.x1) / 2
    assert "slice 3 of 4" in figure.texts[-1].get_text()


def test_the_png_shows_a_small_object_closer_and_says_what_it_leaves_out():
    masks = np.zeros((MOST_TILES + 3, 60, 60, 3), np.uint8)
    masks[-1, 20:24, 30:34, 1] = 1
    prompts = [f"object {k}" for k in range(len(masks))]
    size = Grid(masks.shape[1:], np.diag([2.0, 2.0, 3.0, 1.0]), "case").millilitres
    figure = contact_sheet(np.full((60, 60, 3), 50.0), list(masks), (2.0, 2.0, 3.0), (0, 100), prompts, "case", size)
    assert len(figure.axes) == MOST_TILES  # the found one is the last prompt, and has a tile
    texts = [text.get_text() for text in figure.texts]
    assert any(f"object {MOST_TILES + 2}\n0.192 ml, slice 2 of 3" in text for text in texts)
    assert "and 3 prompts more" in texts[0]
    assert sum(len(axes.child_axes) for axes in figure.axes) == 1
    (inset,) = next(axes.child_axes for axes in figure.axes if axes.child_axes)
    assert sorted(inset.get_xlim()) == [28.0, 60.0]  # the object's 8 mm with 12 mm around


@pytest.mark.parametrize(("known", "told"), [(True, "0.048 ml, slice"), (False, "48 voxels, slice")])
def test_the_png_counts_a_sheared_voxel_as_the_notes_do_and_one_without_size_not_at_all(
    tmp_path, monkeypatch, known, told
):
    drawn = []
    monkeypatch.setattr(png, "write_contact_sheet", lambda figure, *_: drawn.append(figure))
    tilted = np.diag([1.0, 1.0, 1.0, 1.0])
    tilted[1, 2] = np.tan(np.radians(30))  # of the gantry: the slices are 1 mm apart, their centres 1.15 mm
    made = result(apart(), ["a", "b", "c"], tilted)
    save_as(replace(made, volume=replace(made.volume, spacing_known=known)), "png", tmp_path)
    assert sum(told in text.get_text() for text in drawn[0].texts) == 2


def test_summary_tells_findings_and_no_folder(tmp_path):
    made = result(apart(), ["a", "b", "c"])
    made = replace(made, volume=replace(made.volume, path=Path("/hospital/Doe_Jane/ct.nii.gz")))
    (path,) = save_as(made, "json", tmp_path)
    content = json.loads(path.read_text())
    assert [finding["voxels"] for finding in content["findings"]] == [48, 48, 0]
    assert content["algorithm"]["weights_sha256"] == "ab" * 32
    assert "Doe" not in path.read_text()


def test_dicom_formats_write_dicom_and_ask_for_a_series(tmp_path):
    files = write_small_series(tmp_path / "series", straight(4))
    made = segmented(files, random_masks((2, 20, 24, 4)), ["liver", "nodule"])
    (seg,) = save_as(made, "dicom-seg", tmp_path / "out")
    (structures,) = save_as(made, "rtstruct", tmp_path / "out")
    assert len(hd.seg.segread(seg).SegmentSequence) == 2
    assert pydicom.dcmread(structures).Modality == "RTSTRUCT"
    for name in ("dicom-seg", "rtstruct"):
        with pytest.raises(InputError, match="no DICOM series"):
            save_as(result(apart(), ["a", "b", "c"]), name, tmp_path / "out")


def test_an_unknown_format_and_an_input_as_target_are_refused(tmp_path):
    made = result(apart(), ["a", "b", "c"])
    with pytest.raises(InputError, match="choose among"):
        save_as(made, "bmp", tmp_path)
    source = tmp_path / "case.seg.nrrd"
    nrrd.write(str(source), made.volume.voxels)
    before = source.read_bytes()
    with pytest.raises(InputError, match="is an input"):
        save_as(replace(made, volume=replace(made.volume, path=source)), "seg.nrrd", tmp_path)
    assert source.read_bytes() == before
