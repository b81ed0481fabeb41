from __future__ import annotations

import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.data import slice_cache
from boltzformer.data.cached_volume import open_cached_volume
from boltzformer.data.cases import load_cases
from boltzformer.data.slice_cache import build_cache
from boltzformer.errors import InputError
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd


def _rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _affine(axes: str, spacing=(0.8, 1.1, 2.5), turn: float = 0.0) -> np.ndarray:
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(axes):
        row, sign = letters[letter]
        matrix[row, column] = sign * spacing[column]
    affine = np.eye(4)
    affine[:3, :3] = _rotation(turn) @ matrix
    affine[:3, 3] = (-7, 20, 300)
    return affine


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "affine",
    [_affine("RAS"), _affine("LPS"), _affine("PLI"), _affine("SRA"), _affine("LAI"), _affine("LPS", turn=17)],
    ids=["RAS", "LPS", "PLI", "SRA", "LAI", "oblique"],
)
def test_a_point_in_the_world_lands_where_it_should(make_case, tmp_path, affine, axis):
    label = np.zeros((9, 8, 7), dtype=np.uint8)
    voxel = (6, 2, 5)
    label[voxel] = 1
    image = np.random.default_rng(0).integers(-1000, 1000, label.shape).astype(np.int16)
    case = make_case(image=image, label=label, affine=affine)
    (volume,) = build_cache([case], tmp_path / "cache", axis, progress=False)

    stack = np.stack([volume.label(i) for i in range(volume.shape[0])])
    position, row, column = np.argwhere(stack)[0]
    ras = np.insert([row, column], axis, position)  # slice axis back to its place among right, anterior, superior
    world = nib.affines.apply_affine(affine, voxel)
    np.testing.assert_allclose(nib.affines.apply_affine(volume.affine, ras), world, atol=1e-4)
    assert volume.image(position, position + 1)[0, row, column] == image[voxel]

    transform = Compose(
        [LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", axcodes="RAS", labels=None)]
    )
    oriented = transform({"image": case["image"]})["image"]
    np.testing.assert_array_equal(np.moveaxis(oriented[0].numpy(), axis, 0), volume.image(0, volume.shape[0]))
    spacing = np.delete(np.asarray(oriented.pixdim), axis)
    np.testing.assert_allclose(volume.spacing[1:], spacing, rtol=1e-5)
    np.testing.assert_allclose(volume.affine, np.asarray(oriented.affine), atol=1e-4)


def test_an_image_that_does_not_say_its_sides_is_told_of_once(make_case, tmp_path, caplog):
    case = make_case()
    build_cache([case], tmp_path / "cache", progress=False)
    assert not caplog.text
    for key in ("image", "label"):
        file = nib.load(case[key])
        header = file.header.copy()
        header["qform_code"] = header["sform_code"] = 0
        data = np.asanyarray(file.dataobj)
        blank = nib.Nifti1Image(data, None, header)
        nib.save(blank, case[key])
    build_cache([case, {**case, "objects": dict(case["objects"])}], tmp_path / "cache", progress=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"{case['image']}: the header says no orientation (qform and sform code 0); its axes are taken as running "
        "left, anterior, superior, so left and right may be wrong"
    ]


def test_areas_equal_a_plain_count(make_case, tmp_path):
    label = np.random.default_rng(2).choice(np.array([0, 1, 3], np.uint8), (12, 10, 6), p=[0.9, 0.06, 0.04])
    (volume,) = build_cache([make_case(label=label, affine=np.eye(4))], tmp_path / "c", progress=False)
    assert volume.values == (1, 3)
    for row, value in enumerate(volume.values):
        assert volume.areas[row].tolist() == [int((label[:, :, z] == value).sum()) for z in range(6)]


@pytest.mark.parametrize(
    ("image", "stored"),
    [
        (np.arange(-40, 80).reshape(6, 5, 4).astype(np.int16), "int16"),
        (np.arange(-40, 80).reshape(6, 5, 4).astype(np.float64), "int16"),
        (np.arange(120).reshape(6, 5, 4).astype(np.uint16), "int16"),
        (np.arange(120).reshape(6, 5, 4).astype(np.int32) * 1000, "float32"),
        (np.arange(120).reshape(6, 5, 4).astype(np.float32) / 7, "float32"),
    ],
)
def test_intensities_are_stored_exactly(make_case, tmp_path, image, stored):
    label = np.zeros((6, 5, 4), np.int16)
    label[2, 2, 2] = 300
    case = make_case(image=image, label=label, affine=np.eye(4), objects={300: "far"})
    (volume,) = build_cache([case], tmp_path / "cache", progress=False)
    assert (volume.image_dtype, volume.label_dtype) == (stored, "uint16")
    np.testing.assert_array_equal(np.moveaxis(volume.image(0, 4), 0, -1), image.astype(np.float32))
    assert volume.label(2)[2, 2] == 300


def test_reuse_opens_no_volume_again(make_case, tmp_path, monkeypatch):
    case = make_case()
    first = build_cache([case], tmp_path / "cache", progress=False)[0]

    def refuse(*_, **__):
        raise AssertionError("a volume was opened again")

    monkeypatch.setattr(nib, "load", refuse)
    monkeypatch.setattr(slice_cache, "read_volume", refuse)
    second = build_cache([case], tmp_path / "cache", progress=False)[0]
    np.testing.assert_array_equal(first.image(0, 6), second.image(0, 6))
    np.testing.assert_array_equal(first.label(2), second.label(2))
    assert second.areas.sum() == first.areas.sum() > 0


def test_a_changed_file_another_axis_or_a_damaged_cache_is_built_anew(make_case, tmp_path):
    case = make_case()
    first = build_cache([case], tmp_path / "cache", progress=False)[0]
    assert build_cache([case], tmp_path / "cache", axis=0, progress=False)[0].folder != first.folder
    stat = os.stat(case["image"])
    os.utime(case["image"], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert build_cache([case], tmp_path / "cache", progress=False)[0].folder != first.folder
    os.utime(case["image"], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = build_cache([case], tmp_path / "cache", progress=False)[0]  # the time of the last change is another one
    assert again.folder != first.folder
    image = again.folder / "image.npy"
    image.write_bytes(image.read_bytes()[:-10])
    with pytest.raises(InputError, match="cut short"):
        again.image(5, 6)
    repaired = build_cache([case], tmp_path / "cache", progress=False)[0]
    assert repaired.folder == again.folder
    assert repaired.image(5, 6).shape == (1, 12, 10)


def test_several_builders_share_one_cache(make_case, tmp_path):
    cases = [make_case(f"v{i}") for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: build_cache(cases, tmp_path / "cache", progress=False), range(3)))
    assert len({volume.folder for volumes in results for volume in volumes}) == 6
    for volumes in results:
        for case, volume in zip(cases, volumes, strict=True):
            expected = nib.as_closest_canonical(nib.load(case["image"])).get_fdata()
            np.testing.assert_array_equal(np.moveaxis(volume.image(0, 6), 0, -1), expected)
    left = [path.name for path in (tmp_path / "cache").iterdir() if ".tmp-" in path.name]
    assert left == []


def _bad_cases(make_case) -> dict[str, dict]:
    label = np.zeros((12, 10, 6), np.uint8)
    label[4, 4, 4] = 1
    unknown = label.copy()
    unknown[1, 1, 1] = 9
    nan = np.zeros(label.shape, np.float32)
    nan[3, 3, 3] = np.nan
    cases = {
        "missing": make_case("missing"),
        "truncated": make_case("truncated"),
        "geometry": make_case("geometry"),
        "unknown": make_case("unknown", label=unknown),
        "nan": make_case("nan", image=nan),
        "huge": make_case("huge", image=np.where(np.arange(label.size).reshape(label.shape) == 7, 1e300, 0.5)),
        "fraction": make_case("fraction", label=label * np.float32(0.5)),
        "scaled": make_case("scaled", label=label * np.float32(0.9999999)),
        "negative": make_case("negative", label=-label.astype(np.int16)),
    }
    os.remove(cases["missing"]["image"])
    path = Path(cases["truncated"]["label"])
    path.write_bytes(path.read_bytes()[:-30])
    other = nib.Nifti1Image(label, np.diag([2.0, -2.0, 3.0, 1.0]))
    nib.save(other, cases["geometry"]["label"])
    return cases


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("missing", "image", "no such file"),
        ("truncated", "label", "truncated"),
        ("geometry", "label", "mm away"),
        ("unknown", "label", "9 not listed"),
        ("nan", "image", "NaN"),
        ("huge", "image", "1 of 720 voxels are NaN or infinite"),
        ("fraction", "label", "whole numbers in 0 ... 65535, found 0.5"),
        ("scaled", "label", "whole numbers in 0 ... 65535, found 0.9999999"),
        ("negative", "label", "whole numbers in 0 ... 65535, found -"),
    ],
)
def test_each_kind_of_bad_file_is_named(make_case, tmp_path, kind, key, message):
    case = _bad_cases(make_case)[kind]
    with pytest.raises(InputError, match=message) as error:
        build_cache([case], tmp_path / "cache", progress=False)
    assert case[key] in str(error.value)


def test_bad_cases_come_in_one_error(make_case, tmp_path):
    cases = _bad_cases(make_case)
    headers = [cases["truncated"], cases["geometry"], make_case("good")]
    with pytest.raises(InputError, match="2 of 3 cases") as error:
        build_cache(headers, tmp_path / "cache", progress=False)
    assert "truncated.nii.gz" in str(error.value)
    assert "geometry.nii.gz" in str(error.value)
    assert not (tmp_path / "cache").exists()  # headers are checked before any work
    voxels = [cases["nan"], make_case("good"), cases["fraction"]]
    with pytest.raises(InputError, match="2 of 3 cases"):
        build_cache(voxels, tmp_path / "cache", progress=False)


def test_bad_arguments_and_a_full_disk(make_case, tmp_path, monkeypatch):
    case = make_case()
    with pytest.raises(InputError, match="axis"):
        build_cache([case], tmp_path / "c", axis=3, progress=False)
    with pytest.raises(InputError, match="empty"):
        build_cache([], tmp_path / "c", progress=False)
    with pytest.raises(InputError, match="no label"):
        build_cache([{"image": case["image"]}], tmp_path / "c", progress=False)
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(slice_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="GB are free"):
        build_cache([case], tmp_path / "c", progress=False)
    monkeypatch.undo()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", no_space)
    with pytest.raises(InputError, match="disk is full"):
        build_cache([case], tmp_path / "c", progress=False)
    monkeypatch.undo()
    assert build_cache([case], tmp_path / "c", progress=False)[0].shape == (6, 12, 10)


def test_two_real_volumes(real_data_dir, tmp_path):
    cases = load_cases(real_data_dir / "openkbp")[:2]
    for case, volume in zip(cases, build_cache(cases, tmp_path / "cache", progress=False), strict=True):
        image, label = (nib.as_closest_canonical(nib.load(case[key])) for key in ("image", "label"))
        np.testing.assert_array_equal(np.moveaxis(volume.image(0, 128), 0, -1), np.asarray(image.dataobj))
        array = np.asarray(label.dataobj)
        assert list(volume.values) == [value for value in np.unique(array) if value]
        right, left = (np.argwhere(array == value)[:, 0].mean() for value in (3, 4))
        assert right > left  # the right parotid gland at higher indices of the axis to the right


def test_a_label_of_the_same_size_and_time_is_read_anew(make_case, tmp_path):
    case = make_case()
    before = build_cache([case], tmp_path / "cache", progress=False)[0].areas.sum()
    stat = os.stat(case["label"])
    image = nib.load(case["label"])
    empty = nib.Nifti1Image(np.zeros(image.shape, image.get_data_dtype()), image.affine, image.header).to_bytes()
    label = Path(case["label"])
    label.write_bytes(gzip.compress(empty) if label.suffix == ".gz" else empty)
    with open(label, "ab") as file:  # to the byte as long as before
        file.truncate(stat.st_size)
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (os.stat(label).st_size, os.stat(label).st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert before > 0
    assert build_cache([case], tmp_path / "cache", progress=False)[0].areas.sum() == 0


def test_changed_bytes_of_the_cache_are_noticed(make_case, tmp_path):
    volume = build_cache([make_case()], tmp_path / "cache", progress=False)[0]
    for name, read in (("image.npy", lambda: volume.image(0, 6)), ("label.npy", lambda: volume.label(5))):
        file = volume.folder / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-20] + bytes(byte ^ 1 for byte in whole[-20:]))
        with pytest.raises(InputError, match=rf"{name}: was changed; delete the folder"):
            read()
        file.write_bytes(whole)
        read()


@pytest.mark.parametrize("name", ["areas.npy", "checksums.npy", "image.npy", "label.npy", "index.json"])
def test_damage_beside_the_slices_is_noticed(make_case, tmp_path, name):
    """A file cut anywhere, as a full disk leaves it, and a bit changed anywhere but in the slices' voxels."""
    (volume,) = build_cache([make_case()], tmp_path / "cache", progress=False)
    file = volume.folder / name
    whole = file.read_bytes()
    end = 128 if name in ("image.npy", "label.npy") else len(whole)
    damaged = [whole[:n] for n in (0, 4, 60, len(whole) - 1)]
    for place in range(0, end, 11):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
    for content in damaged:
        file.write_bytes(content)
        opened = open_cached_volume(volume.folder)
        if opened is not None:  # a bit of a header's blanks
            assert len(content) == len(whole)
            assert (opened.areas.tolist(), opened.spacing, opened.affine) == (
                volume.areas.tolist(),
                volume.spacing,
                volume.affine,
            )
            assert np.array_equal(opened.image(0, 6), volume.image(0, 6))
        file.write_bytes(whole)


def test_a_very_long_name_fits_and_no_path_stands_in_the_index(make_case, tmp_path):
    case = make_case()
    long = Path(case["image"]).with_name("n" * 240 + "".join(Path(case["image"]).suffixes))
    os.rename(case["image"], long)
    volume = build_cache([{**case, "image": str(long)}], tmp_path / "cache", progress=False)[0]
    assert str(tmp_path) not in (volume.folder / "index.json").read_text()
