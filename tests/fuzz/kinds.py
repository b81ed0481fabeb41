"""The kinds of input: how each is made and damaged, what reads it, and what must hold afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from boltzformer.recipe import read_recipe
from boltzformer.weights import save_atomically

from tests.fuzz import mutations as m
from tests.fuzz import readers, service
from tests.fuzz.files import PROMPTS, damaged_itk, damaged_nifti, damaged_prompts, damaged_series, dataset, odd_path
from tests.fuzz.sandbox import Sandbox, check_again, check_manifest, check_record
from tests.fuzz.tools import Finished, Tools, nifti
from tests.training.conftest import build_run

Kind = Callable[[Sandbox, m.Draw, Tools], Finished]


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
    """A damaged NIfTI file."""
    return _segmented(sandbox, draw, tools, damaged_nifti(sandbox.given, draw))


def volume_itk(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A damaged NRRD or MetaImage file."""
    return _segmented(sandbox, draw, tools, damaged_itk(sandbox.given, draw, tools.folder))


def volume_dicom(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A damaged DICOM series."""
    folder = damaged_series(sandbox.given, draw, tools.folder)
    if draw.random() < 0.3 and any(folder.iterdir()):
        done = tools.segment(folder, sandbox.out, "-f", m.pick(draw, ["dicom-seg", "rtstruct", "seg.nrrd"]))
        check_record(sandbox, done.code, folder)
        return done
    return _segmented(sandbox, draw, tools, folder)


def special_file(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A path that is no plain file."""
    return _segmented(sandbox, draw, tools, odd_path(sandbox.given, draw))


def prompt_list(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A prompt list, JSON or CSV."""
    scan = sandbox.given / "a.nii"
    scan.write_bytes(nifti())
    path = damaged_prompts(sandbox.given, draw)
    done = tools.segment(scan, sandbox.out, "--prompt-list", path, prompts=())
    check_record(sandbox, done.code, scan)
    return done


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
    content: Any = dataset(sandbox.given, draw)
    if draw.random() < 0.2:
        content = [{**item, "labels": content["labels"]} for item in content["training"] + content["validation"]]
    name = m.pick(draw, ["dataset.json", "list.json"])
    (sandbox.given / name).write_bytes(m.json_bytes(content, draw))
    return _dataset_command(sandbox, draw, tools, sandbox.given if name == "dataset.json" else sandbox.given / name)


def label_file(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A damaged label map or prediction in a whole dataset."""
    (sandbox.given / "dataset.json").write_text(json.dumps(dataset(sandbox.given, draw)))
    path = sandbox.given / m.pick(draw, ["labelsTr", "labelsTr", "imagesTr", "predictions"]) / "c1.nii"
    damage = m.damage_nifti_header if draw.random() < 0.6 else m.damage_bytes
    path.write_bytes(damage(path.read_bytes(), draw))
    return _dataset_command(sandbox, draw, tools, sandbox.given)


def earlier_record(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """The record of an earlier run in the output folder, damaged; the same run again, which goes on from it."""
    scan = sandbox.given / "a.nii"
    scan.write_bytes(nifti())
    first = tools.segment(scan, sandbox.out)
    record = sandbox.out / "record.json"
    if draw.random() < 0.8:
        record.write_bytes(m.json_bytes(json.loads(record.read_text()), draw))
    else:
        name = m.pick(draw, sandbox.written())
        (sandbox.out / name).write_bytes(m.damage_bytes((sandbox.out / name).read_bytes(), draw))
    before = {name: (sandbox.out / name).read_bytes() for name in sandbox.written()}
    done = tools.segment(scan, sandbox.out)
    done.problems += first.problems
    check_again(sandbox, done.code, scan, before)
    return done


def earlier_results(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """An earlier evaluation's CSV and JSON to compare with, and the names' JSON."""
    (sandbox.given / "dataset.json").write_text(json.dumps(dataset(sandbox.given, draw)))
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


KINDS: dict[str, tuple[float, Kind]] = {
    "nifti": (2.4, volume_nifti),
    "nrrd_mha": (1.2, volume_itk),
    "dicom": (1.2, volume_dicom),
    "special_file": (0.6, special_file),
    "prompt_list": (1, prompt_list),
    "dataset_json": (1, dataset_json),
    "label": (0.8, label_file),
    "earlier_record": (0.4, earlier_record),
    "earlier_results": (0.1, earlier_results),
    "weights": (0.5, weights),
    "run_state": (0.8, run_state),
    "read_nifti": (22, readers.nifti_file),
    "read_nrrd_mha": (12, readers.itk_image),
    "read_dicom": (11, readers.dicom_series),
    "read_special": (4, readers.special_path),
    "read_prompts": (10, readers.prompt_list),
    "read_cases": (7, readers.listed_cases),
    "read_wordings": (6, readers.wording_book),
    "read_weights": (3, readers.checkpoint),
    "http_form": (9, service.form),
    "http_request": (6, service.request),
}
"""Kind -> its weight in the draw, and what makes and judges one input.

`read_...` are readers without a network, `http_...` the service, the others whole commands, each of which takes the
time of ten readings.
"""
