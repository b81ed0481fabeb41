"""One patient or one image under two names."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.apps.prepare import app
from boltzformer.data.prepare.leaks import find_leaks
from boltzformer.data.prepare.split import Split
from boltzformer.data.prepare.verify import image_fingerprint
from boltzformer.errors import InputError
from typer.testing import CliRunner

from tests.data.prepare.conftest import AFFINE, labels, save, volume, write_task
from tests.support import in_orientation


def _prepared(tmp_path: Path, task: str, seed: int) -> Path:
    root = write_task(tmp_path / f"in{seed}", task, seed=seed)
    result = CliRunner().invoke(app, ["msd", str(root), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    return tmp_path / "out"


def _datalist(folder: Path, **cases: tuple[np.ndarray, np.ndarray]) -> Path:
    items = []
    for name, (array, affine) in cases.items():
        save(folder / f"{name}.nii.gz", array, affine)
        save(folder / f"{name}_label.nii.gz", labels([1], array.shape), affine)
        items.append({"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz", "patient": name})
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "nodule"}, "test": items, "training": []}))
    return folder


def test_datasets_without_a_common_image_pass(tmp_path):
    _prepared(tmp_path, "Task06_Lung", 0)
    _prepared(tmp_path, "Task10_Colon", 50)
    assert find_leaks([tmp_path / "out"]) == []
    result = CliRunner().invoke(app, ["leaks", str(tmp_path / "out")])
    assert (result.exit_code, result.output.strip()) == (0, "No patient and no image is shared.")


def test_one_image_under_two_names_is_found(tmp_path):
    _prepared(tmp_path, "Task06_Lung", 0)
    _prepared(tmp_path, "Task10_Colon", 5)  # its first volume is the lung task's last
    found = find_leaks([tmp_path / "out"])
    assert [(leak.what, leak.first.case, leak.second.case) for leak in found] == [("image", "colon_000", "lung_005")]
    result = CliRunner().invoke(app, ["leaks", str(tmp_path / "out" / "MSD_Lung"), str(tmp_path / "out" / "MSD_Colon")])
    assert result.exit_code == 1
    assert "same image: MSD_Lung/lung_005" in result.output
    assert "MSD_Colon/colon_000" in result.output


def test_storage_order_and_number_type_do_not_hide_an_image(tmp_path):
    out = _prepared(tmp_path, "Task06_Lung", 0)
    turned, affine = in_orientation(volume(2).astype(np.float32), AFFINE, "PIR")
    other = _datalist(tmp_path / "other", luna=(turned, affine), fresh=(volume(77), AFFINE))
    found = find_leaks([out / "MSD_Lung", other])
    assert [(leak.what, leak.first.case, leak.second.case) for leak in found] == [("image", "lung_002", "luna")]
    assert image_fingerprint(turned, affine) == image_fingerprint(volume(2), AFFINE)
    changed = volume(2)
    changed[3, 3, 3] += 1
    assert image_fingerprint(changed, AFFINE) != image_fingerprint(volume(2), AFFINE)


def test_patients_and_series_are_found_by_their_names(tmp_path):
    out = _prepared(tmp_path, "Task06_Lung", 0)
    manifest = out / "MSD_Lung" / "manifest.json"
    content = json.loads(manifest.read_text())
    uid = "1.3.6.1.4.1.14519.5.2.1"
    content["cases"]["lung_001"]["origin"]["series_uid"] = uid
    content["cases"]["lung_003"]["patient"] = "LIDC-IDRI-0001"
    manifest.write_text(json.dumps(content))
    other = _datalist(tmp_path / "LUNA16", **{uid: (volume(70), AFFINE), "LIDC-IDRI-0001": (volume(71), AFFINE)})
    found = find_leaks([out / "MSD_Lung", other])
    assert [(leak.what, leak.first.case, leak.second.case) for leak in found] == [
        ("series or study", "lung_001", uid),
        ("patient", "lung_003", "LIDC-IDRI-0001"),
    ]


def test_a_patient_in_two_lists_of_one_dataset_is_found(tmp_path):
    out = _prepared(tmp_path, "Task06_Lung", 0)
    manifest = out / "MSD_Lung" / "manifest.json"
    content = json.loads(manifest.read_text())
    by_section = {record["section"]: record for record in content["cases"].values()}
    by_section["training"]["patient"] = by_section["test"]["patient"]
    manifest.write_text(json.dumps(content))
    (leak,) = find_leaks([out])
    assert (leak.what, {leak.first.section, leak.second.section}) == ("patient", {"training", "test"})


def test_folders_without_a_dataset_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no dataset"):
        find_leaks([tmp_path])
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a manifest"):
        find_leaks([tmp_path])


def test_the_real_crops_share_no_patient(real_data_dir, tmp_path):
    source = real_data_dir / "lidc_crops"
    content = json.loads((source / "dataset.json").read_text())
    few = {key: content[key][:12] for key in ("training", "validation")}
    for items in few.values():
        for item in items:
            item.update({key: str(source / item[key]) for key in ("image", "label")})
    (tmp_path / "dataset.json").write_text(json.dumps({**content, **few}))
    assert find_leaks([tmp_path]) == []
    # the same crop once more under another name
    extra = {**few["training"][0], "patient": "someone else"}
    copy = nib.load(extra["image"])
    nib.save(nib.Nifti1Image(np.asarray(copy.dataobj), copy.affine), tmp_path / "renamed.nii.gz")
    few["validation"].append({**extra, "image": "renamed.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps({**content, **few}))
    (leak,) = find_leaks([tmp_path])
    assert leak.second.case == "renamed"


def test_split_is_by_patient_and_by_seed():
    patients = {f"p{i}": "" for i in range(50)}
    sections = Split(0.2, 0.25, 3).sections(patients)
    assert [list(sections.values()).count(name) for name in ("training", "validation", "test")] == [30, 10, 10]
    assert sections == Split(0.2, 0.25, 3).sections(dict(reversed(patients.items())))
    assert sections != Split(0.2, 0.25, 4).sections(patients)
    own = Split(0.2, 0.25, 3).sections({**patients, "p0": "test"})
    assert [name for name, section in own.items() if section == "test"] == ["p0"]
    with pytest.raises(InputError, match="cannot be split"):
        Split().sections({"a": "", "b": ""})
    with pytest.raises(InputError, match="test_share"):
        Split(test_share=1.0).sections(patients)
    assert set(Split(0, 0).sections(patients).values()) == {"training"}
