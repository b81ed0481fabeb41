"""Damaged files of volumes: how each is made; the commands, the readers and the service take the same."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from tests.fuzz import mutations as m
from tests.fuzz.tools import itk_file, label_map, nifti, series, zipped

NAMES = ["a.nii.gz", "A b.NII.GZ", "ä\u0301.nii.gz", "$x.nii.gz", "-a.nii.gz", "n" * 240 + ".nii.gz", "a\nb.nii.gz"]
NAMES += ["..a.nii.gz", "manifest.nii.gz", "record.nii.gz", "%s{}.nii.gz", "=1+1.nii.gz", "a.nii.nii.gz", "con.nii.gz"]
PROMPTS = [{"name": "one", "prompt": "liver in abdominal CT"}, {"name": "two", "prompt": "lung nodule"}]


def damaged_nifti(folder: Path, draw: m.Draw) -> Path:
    """A NIfTI file with damaged header fields, bytes, compression or voxels, or of an odd kind."""
    dtype = m.pick(draw, ["int16", "float32", "uint8", "float64", "int32", "uint16"])
    content = nifti(dtype, bool(draw.random() < 0.2), bool(draw.random() < 0.2), int(draw.random() < 0.2))
    way = draw.random()
    if way < 0.55:
        content = m.damage_nifti_header(content, draw)
    elif way < 0.75:
        content = m.damage_bytes(content, draw)
    elif way < 0.8 and dtype.startswith("float"):
        voxels = np.frombuffer(content[-400:], dtype).copy()
        voxels[int(draw.integers(len(voxels)))] = m.pick(draw, [*m.NUMBERS[-5:], 1e300 if dtype == "float64" else 1e38])
        content = content[:-400] + voxels.tobytes()
    packed = draw.random() < 0.6
    content = zipped(content) if packed else content
    if way >= 0.8:
        content = m.damage_bytes(content, draw)
    name = m.pick(draw, NAMES) if draw.random() < 0.2 else "a.nii.gz" if packed else "a.nii"
    if draw.random() < 0.05:
        name = m.pick(draw, ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a", "a.img", "a.dcm"])
    path = folder / name
    path.write_bytes(content)
    return path


def damaged_itk(folder: Path, draw: m.Draw, work: Path) -> Path:
    """An NRRD or MetaImage file with a damaged header or damaged bytes; `work` is for whole files."""
    suffix = m.pick(draw, [".nrrd", ".mha"])
    content = itk_file(suffix, bool(draw.random() < 0.5), work)
    content = m.damage_header_text(content, draw) if draw.random() < 0.7 else m.damage_bytes(content, draw)
    path = folder / f"a{suffix}"
    path.write_bytes(content)
    return path


def damaged_series(given: Path, draw: m.Draw, work: Path) -> Path:
    """The folder of a DICOM series: attributes, bytes, files lost, doubled or strange; `work` is for whole files."""
    folder = given / "series"
    folder.mkdir()
    files = []
    for k, content in enumerate(series(work)):
        files.append(folder / f"I{k:03d}{m.pick(draw, ['', '', '.dcm'])}")
        files[-1].write_bytes(content)
    chosen = files if draw.random() < 0.3 else [m.pick(draw, files)]
    way, state = draw.random(), copy.deepcopy(draw)
    for file in chosen:
        if way < 0.6:
            header = pydicom.dcmread(file)
            m.damage_dicom(header, copy.deepcopy(state))  # the same in all
            try:
                header.save_as(file)
            except Exception:
                file.write_bytes(m.damage_bytes(file.read_bytes(), draw))
        elif way < 0.8:
            file.write_bytes(m.damage_bytes(file.read_bytes(), draw))
        elif way < 0.87:
            file.unlink()
        elif way < 0.94:
            (folder / f"copy_of_{file.name}").write_bytes(file.read_bytes())
        else:
            (folder / m.pick(draw, ["notes.txt", "DICOMDIR", "I009", "x.dcm"])).write_bytes(draw.bytes(300))
    return folder


def odd_path(given: Path, draw: m.Draw) -> Path:
    """A path that is no plain file: a pipe, a device behind a link, a loop, a folder of the name."""
    path = given / m.pick(draw, ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.dcm", "a"])
    source = m.pick(draw, [path, given])
    way = int(draw.integers(6))
    if way == 0:
        os.mkfifo(path)
    elif way < 3:
        path.symlink_to(m.pick(draw, ["/dev/zero", "/dev/null", "/dev/stdin", path, given, "/nowhere"]))
    elif way == 3:
        path.mkdir()
        if draw.random() < 0.5:
            (path / "b.nii.gz").write_bytes(zipped(nifti()))
            source = path if draw.random() < 0.5 else source
    elif way == 4:
        path.write_bytes(zipped(nifti()))
        os.link(path, given / "linked.nii.gz")
    else:
        path.write_bytes(m.pick(draw, [b"", b"\0" * 1000, b"\x1f\x8b", b"text", nifti()[:348], zipped(b"")]))
    return source


def dataset(given: Path, draw: m.Draw) -> dict[str, Any]:
    """Two cases in Decathlon layout, and predictions of the first."""
    for folder in ("imagesTr", "labelsTr", "predictions"):
        (given / folder).mkdir()
    (given / "predictions" / "c1.nii").write_bytes(label_map(3))
    for k in range(2):
        (given / "imagesTr" / f"c{k}.nii").write_bytes(nifti())
        (given / "labelsTr" / f"c{k}.nii").write_bytes(label_map(k))
    items = [{"image": f"imagesTr/c{k}.nii", "label": f"labelsTr/c{k}.nii", "patient": f"p{k}"} for k in range(2)]
    names = {"0": "background", "1": "liver", "2": "left kidney"}
    content = {"name": "Task03_Liver", "modality": {"0": "CT"}, "labels": names, "training": items[:1]}
    content |= {"validation": items[1:], "test": ["imagesTr/c0.nii"]}
    if draw.random() < 0.5:
        content |= {"prompts": {"liver": ["liver tumor in CT"]}, "annotated": "all", "body_part": "liver"}
        content |= {"window": [-100, 200], "description": "two cases"}
    return content


def damaged_prompts(folder: Path, draw: m.Draw) -> Path:
    """A prompt list, JSON or CSV."""
    if draw.random() < 0.5:
        forms = [PROMPTS, {"prompts": PROMPTS}, {"liver": "liver in CT"}, ["liver"]]
        content, suffix = m.json_bytes(m.pick(draw, forms), draw), ".json"
    else:
        rows = [["prompt", "name"], ["liver in abdominal CT", "one"], ['"nodule, lung"', "two"]]
        content, suffix = m.table_bytes(rows, draw), ".csv"
    path = folder / f"prompts{suffix}"
    path.write_bytes(content)
    return path
