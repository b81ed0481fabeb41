"""Which volumes a path means."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from boltzformer.data.phantom import write_phantoms
from boltzformer.errors import InputError
from boltzformer.inference.inputs import find_volumes, survey_volumes
from boltzformer.inference.load import LoadVolumed
from boltzformer.volumes.names import case_name
from boltzformer.volumes.spacing import spacing_of

from tests.support import body, save_nifti, write_json
from tests.volumes.test_dicom import write_series


def _names(path, **kwargs):
    return [case["case"] for case in find_volumes(path, **kwargs)]


def test_file_and_folder(tmp_path):
    for name in ("b.nii.gz", "a.nii", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).write_text("")
    assert _names(tmp_path) == ["a", "b"]
    assert find_volumes(tmp_path / "b.nii.gz", modality="CT", body_part="lung") == [
        {"image": str(tmp_path / "b.nii.gz"), "case": "b", "modality": "CT", "body_part": "lung"}
    ]


def test_series_and_folder_of_series(tmp_path):
    for name in ("first", "second"):
        write_series(tmp_path / name, body((8, 8, 2)))
    assert _names(tmp_path / "first") == ["first"]
    assert _names(tmp_path) == ["first", "second"]


def test_a_studys_localizers_are_named_and_no_case(tmp_path):
    write_series(tmp_path / "study" / "axial", body((8, 8, 2)))
    write_series(tmp_path / "study" / "scout", body((8, 8, 1)), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = survey_volumes(tmp_path / "study")
    assert [case["case"] for case in found.cases] == ["axial"]
    assert list(found.skipped.values()) == ["is a localizer (a scout), no slice of a volume"]
    with pytest.raises(InputError, match=r"no DICOM series.*is a localizer"):
        survey_volumes(tmp_path / "study" / "scout")


def test_what_lies_beside_volume_files_is_named(tmp_path):
    for folder in ("series", "deep/er", "notes"):
        (tmp_path / folder).mkdir(parents=True)
    save_nifti(tmp_path / "a.nii.gz", body(), np.eye(4))
    save_nifti(tmp_path / "deep" / "er" / "b.nii.gz", body(), np.eye(4))
    write_series(tmp_path / "series", body((8, 8, 2)))
    shutil.copy(next((tmp_path / "series").iterdir()), tmp_path / "IM0001")
    (tmp_path / "notes" / "text.txt").write_text("no volume")
    (tmp_path / "text").write_text("no volume")
    found = survey_volumes(tmp_path)
    assert [case["case"] for case in found.cases] == ["a"]
    told = {Path(path).name: reason.split(",")[0] for path, reason in found.skipped.items()}
    folder = "is a folder beside volume files"
    assert told == {"IM0001": "is a DICOM file beside volume files", "deep": folder, "series": folder}


def test_a_link_to_a_series_is_named(tmp_path):
    write_series(tmp_path / "far" / "second", body((8, 8, 2)))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "second").symlink_to(tmp_path / "far" / "second")
    with pytest.raises(InputError, match="second: is a link to a folder"):
        survey_volumes(tmp_path / "study")
    write_series(tmp_path / "study" / "first", body((8, 8, 2)))
    found = survey_volumes(tmp_path / "study")
    assert [case["case"] for case in found.cases] == ["first"]
    assert list(found.skipped) == [str(tmp_path / "study" / "second")]


def test_dataset_gives_its_held_out_images(tmp_path):
    write_phantoms(tmp_path / "set", num_training=1, num_validation=2, size=(48, 48, 12))
    cases = find_volumes(tmp_path / "set")
    assert [case["case"] for case in cases] == ["phantom_validation_000", "phantom_validation_001"]
    assert {case["modality"] for case in cases} == {"CT"}


def test_a_voxel_size_that_means_nothing_is_not_known(tmp_path):
    scan = str(save_nifti(tmp_path / "a.nii.gz", body(), np.diag([1.0, 2.0, 3.0, 1.0])))
    listed = write_json(tmp_path / "list.json", {"test": [{"image": scan, "spacing": "unknown"}]})
    unknown, known = (LoadVolumed("image")(find_volumes(source)[0])["image"] for source in (listed, scan))
    assert spacing_of(known) == (1.0, 2.0, 3.0)
    assert np.isnan(spacing_of(unknown)).all()


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        find_volumes(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no NIfTI file"):
        find_volumes(tmp_path)


def test_two_volumes_of_one_name(tmp_path):
    for name in ("Scan.nii", "scan.nii.gz"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=r"Scan\.nii and .*scan\.nii\.gz would be written to one file"):
        find_volumes(tmp_path)


@pytest.mark.parametrize(("name", "expected"), [("a.b.nii.gz", "a.b"), ("c.NII.GZ", "c"), ("d.nii", "d")])
def test_case_name(tmp_path, name, expected):
    assert case_name(tmp_path / name) == expected
