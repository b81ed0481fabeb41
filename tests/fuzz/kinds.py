"""The kinds of input: how each is made and damaged, what reads it, and what must hold afterwards."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from boltzformer.data.cases import load_cases
from boltzformer.data.wordings import WordingBook
from boltzformer.recipe import read_recipe
from boltzformer.weights import save_atomically

from tests.fuzz import mutations as m
from tests.fuzz.sandbox import Sandbox, check_manifest, check_record
from tests.fuzz.tools import Finished, Tools, itk_file, label_map, nifti, series, zipped
from tests.training.conftest import build_run

Kind = Callable[[Sandbox, m.Draw, Tools], Finished]
NAMES = ["a.nii.gz", "A b.NII.GZ", "ä\u0301.nii.gz", "$x.nii.gz", "-a.nii.gz", "n" * 240 + ".nii.gz", "a\nb.nii.gz"]
NAMES += ["..a.nii.gz", "manifest.nii.gz", "record.nii.gz", "%s{}.nii.gz", "=1+1.nii.gz", "a.nii.nii.gz", "con.nii.gz"]
PROMPTS = [{"name": "one", "prompt": "liver in abdominal CT"}, {"name": "two", "prompt": "lung nodule"}]


def _prompt_list(sandbox: Sandbox) -> Path:
    path = sandbox.given / "prompts" / "list.json"
    path.parent.mkdir()
    path.write_text(json.dumps(PROMPTS))
    return path


def _segmented(sandbox: Sandbox, draw: m.Draw, tools: Tools, source: Path) -> Finished:
    """Either door: the command, or the bundle's config."""
    if draw.random() < 0.75:
        done = tools.segment(source, sandbox.out)
        check_record(sandbox, done.code, source)
    else:
        done = tools.infer(source, sandbox.out, _prompt_list(sandbox))
        check_manifest(sandbox, done.code, source)
    return done


def volume_nifti(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
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
    path = sandbox.given / name
    path.write_bytes(content)
    return _segmented(sandbox, draw, tools, path)


def volume_itk(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """An NRRD or MetaImage file with a damaged header or damaged bytes."""
    suffix = m.pick(draw, [".nrrd", ".mha"])
    content = itk_file(suffix, bool(draw.random() < 0.5), tools.folder)
    content = m.damage_header_text(content, draw) if draw.random() < 0.7 else m.damage_bytes(content, draw)
    path = sandbox.given / f"a{suffix}"
    path.write_bytes(content)
    return _segmented(sandbox, draw, tools, path)


def volume_dicom(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A DICOM series: attributes, bytes, files lost, doubled or strange."""
    folder = sandbox.given / "series"
    folder.mkdir()
    files = []
    for k, content in enumerate(series(tools.folder)):
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
    if draw.random() < 0.3 and any(folder.iterdir()):
        done = tools.segment(folder, sandbox.out, "-f", m.pick(draw, ["dicom-seg", "rtstruct", "seg.nrrd"]))
        check_record(sandbox, done.code, folder)
        return done
    return _segmented(sandbox, draw, tools, folder)


def special_file(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A path that is no plain file: a pipe, a device behind a link, a loop, a folder of the name."""
    path = sandbox.given / m.pick(draw, ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.dcm", "a"])
    source = m.pick(draw, [path, sandbox.given])
    way = int(draw.integers(6))
    if way == 0:
        os.mkfifo(path)
    elif way < 3:
        path.symlink_to(m.pick(draw, ["/dev/zero", "/dev/null", "/dev/stdin", path, sandbox.given, "/nowhere"]))
    elif way == 3:
        path.mkdir()
        if draw.random() < 0.5:
            (path / "b.nii.gz").write_bytes(zipped(nifti()))
            source = path if draw.random() < 0.5 else source
    elif way == 4:
        path.write_bytes(zipped(nifti()))
        os.link(path, sandbox.given / "linked.nii.gz")
    else:
        path.write_bytes(m.pick(draw, [b"", b"\0" * 1000, b"\x1f\x8b", b"text", nifti()[:348], zipped(b"")]))
    return _segmented(sandbox, draw, tools, source)


def prompt_list(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A prompt list, JSON or CSV."""
    scan = sandbox.given / "a.nii"
    scan.write_bytes(nifti())
    if draw.random() < 0.5:
        forms = [PROMPTS, {"prompts": PROMPTS}, {"liver": "liver in CT"}, ["liver"]]
        content, suffix = m.json_bytes(m.pick(draw, forms), draw), ".json"
    else:
        rows = [["prompt", "name"], ["liver in abdominal CT", "one"], ['"nodule, lung"', "two"]]
        content, suffix = m.table_bytes(rows, draw), ".csv"
    path = sandbox.given / f"prompts{suffix}"
    path.write_bytes(content)
    done = tools.segment(scan, sandbox.out, "--prompt-list", path, prompts=())
    check_record(sandbox, done.code, scan)
    return done


def _dataset(sandbox: Sandbox, draw: m.Draw) -> dict[str, Any]:
    """Two cases in Decathlon layout, and predictions of the first."""
    for folder in ("imagesTr", "labelsTr", "predictions"):
        (sandbox.given / folder).mkdir()
    (sandbox.given / "predictions" / "c1.nii").write_bytes(label_map(3))
    for k in range(2):
        (sandbox.given / "imagesTr" / f"c{k}.nii").write_bytes(nifti())
        (sandbox.given / "labelsTr" / f"c{k}.nii").write_bytes(label_map(k))
    items = [{"image": f"imagesTr/c{k}.nii", "label": f"labelsTr/c{k}.nii", "patient": f"p{k}"} for k in range(2)]
    names = {"0": "background", "1": "liver", "2": "left kidney"}
    content = {"name": "Task03_Liver", "modality": {"0": "CT"}, "labels": names, "training": items[:1]}
    content |= {"validation": items[1:], "test": ["imagesTr/c0.nii"]}
    if draw.random() < 0.5:
        content |= {"prompts": {"liver": ["liver tumor in CT"]}, "annotated": "all", "body_part": "liver"}
        content |= {"window": [-100, 200], "description": "two cases"}
    return content


def _dataset_command(sandbox: Sandbox, draw: m.Draw, tools: Tools, source: Path) -> Finished:
    way = int(draw.integers(4))
    if way == 0:
        return tools.shell("statistics", source, "--output-dir", sandbox.out)
    if way == 1:
        return tools.shell("cache", source, "--cache-dir", sandbox.out, "--seconds", 0)
    if way == 2:
        done = tools.segment(source, sandbox.out)
        if done.code == 0 and not any(name.endswith(".nii.gz") for name in sandbox.written()):
            done.problems.append("code 0 and no result")
        return done
    predictions = sandbox.given / "predictions"
    return tools.shell("evaluate-predictions", predictions, source, "--output-dir", sandbox.out, "--pictures", 0)


def dataset_json(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A dataset.json or datalist, damaged, through every command that reads one."""
    content: Any = _dataset(sandbox, draw)
    if draw.random() < 0.2:
        content = [{**item, "labels": content["labels"]} for item in content["training"] + content["validation"]]
    name = m.pick(draw, ["dataset.json", "list.json"])
    (sandbox.given / name).write_bytes(m.json_bytes(content, draw))
    return _dataset_command(sandbox, draw, tools, sandbox.given if name == "dataset.json" else sandbox.given / name)


def label_file(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A damaged label map or prediction in a whole dataset."""
    (sandbox.given / "dataset.json").write_text(json.dumps(_dataset(sandbox, draw)))
    path = sandbox.given / m.pick(draw, ["labelsTr", "labelsTr", "imagesTr", "predictions"]) / "c1.nii"
    damage = m.damage_nifti_header if draw.random() < 0.6 else m.damage_bytes
    path.write_bytes(damage(path.read_bytes(), draw))
    return _dataset_command(sandbox, draw, tools, sandbox.given)


def earlier_results(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """An earlier evaluation's CSV and JSON to compare with, and the names' JSON."""
    (sandbox.given / "dataset.json").write_text(json.dumps(_dataset(sandbox, draw)))
    predictions, earlier = sandbox.given / "predictions", sandbox.given / "earlier"
    arguments = ["evaluate-predictions", predictions, sandbox.given, "--pictures", 0, "--output-dir"]
    first = tools.shell(*arguments, sandbox.out)
    shutil.move(sandbox.out, earlier)
    path = m.pick(draw, sorted(earlier.glob("*.csv")) + sorted(earlier.glob("*.json")))
    if path.suffix == ".csv":
        rows = [line.split(",") for line in path.read_text().splitlines()]
        path.write_bytes(m.table_bytes(rows, draw))
    else:
        path.write_bytes(m.json_bytes(json.loads(path.read_text()), draw))
    names = sandbox.given / "names.json"
    names.write_bytes(m.json_bytes({"liver": "liver", "left kidney": "kidney"}, draw))
    extra = ["--aliases", names] if draw.random() < 0.3 else []
    done = tools.shell(*arguments, sandbox.out, "--compare-to", earlier, *extra)
    done.problems += first.problems
    return done


def wording_book(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A wording book."""
    path = sandbox.given / "wordings.json"
    content = {"liver": ["{object} in {body_part} {modality}", "the liver"], "*": ["segment the {object}"]}
    path.write_bytes(m.json_bytes(content, draw))

    def read() -> None:
        book = WordingBook(file=path, file_mode=m.pick(draw, ["extend", "replace"]))
        book.wordings("liver", "CT", "abdominal")
        book.wordings("left kidney", "MR")

    return tools.call(read)


def weights(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A checkpoint with damaged bytes, or a whole file of another content."""
    scan = sandbox.given / "a.nii"
    scan.write_bytes(nifti())
    source = tools.checkpoint if draw.random() < 0.6 else tools.safetensors
    path = sandbox.given / source.name
    if draw.random() < 0.7:
        path.write_bytes(m.damage_bytes(source.read_bytes(), draw))
    else:
        state: dict[str, Any] = dict(tools.network.state_dict())
        key = m.pick(draw, state)
        value = m.pick(draw, [None, torch.zeros(3), state[key] * float("nan"), state[key].half(), 5, "text"])
        state[key] = value
        if value is None:
            del state[key]
        if path.suffix == ".safetensors" and not isinstance(value, torch.Tensor | None):
            del state[key]
        record = json.loads(json.dumps(m.damage_json(_recipe(tools), draw))) if draw.random() < 0.5 else _recipe(tools)
        save_atomically(state, path, record if isinstance(record, dict) else {})
    done = tools.segment(scan, sandbox.out, "--weights", path, fresh_network=True)
    check_record(sandbox, done.code, scan)
    return done


def _recipe(tools: Tools) -> dict[str, Any]:
    recipe = dict(read_recipe(tools.checkpoint) or {})
    return {key: value for key, value in recipe.items() if key not in ("format", "sha256")}


def run_state(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A run's `last.pt`, whole by its checksum but of another content, or with damaged bytes; training resumes."""
    whole = tools.folder / "run" / "last.pt"
    if not whole.exists():
        build_run(whole.parent, max_epochs=1, num_examples=4).trainer.run()
    sandbox.out.mkdir()
    path = sandbox.out / "last.pt"
    if draw.random() < 0.4:
        path.write_bytes(m.damage_bytes(whole.read_bytes(), draw))
    else:
        content = torch.load(whole, weights_only=True)
        places = [place for place in m._places(content) if place]
        place = m.pick(draw, [place for place in places if len(place) <= int(draw.integers(1, 5))])
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        if draw.random() < 0.4:
            del parent[place[-1]]
        else:
            parent[place[-1]] = m.pick(draw, [None, 0, -1, 10**9, "text", [], {}, torch.zeros(2), 1.5])
        save_atomically(content, path)

    def resume() -> None:
        build_run(sandbox.out, max_epochs=2, num_examples=4, resume=True).trainer.run()

    return tools.call(resume)


def listed_cases(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A dataset.json, read alone: many in little time."""
    content = _dataset(sandbox, draw)
    (sandbox.given / "dataset.json").write_bytes(m.json_bytes(content, draw))

    def read() -> None:
        for section in ("training", "validation", "test"):
            for case in load_cases(sandbox.given, section, validation_share=0.5):
                for value in case["objects"]:
                    WordingBook().for_case(case, value)

    return tools.call(read)


KINDS: dict[str, tuple[int, Kind]] = {
    "nifti": (30, volume_nifti),
    "nrrd_mha": (13, volume_itk),
    "dicom": (16, volume_dicom),
    "special_file": (4, special_file),
    "prompt_list": (11, prompt_list),
    "dataset_json": (10, dataset_json),
    "cases": (10, listed_cases),
    "label": (6, label_file),
    "earlier_results": (2, earlier_results),
    "wording_book": (6, wording_book),
    "weights": (4, weights),
    "run_state": (4, run_state),
}
"""Kind -> its weight in the draw, and what makes and judges one input."""
