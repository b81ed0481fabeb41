"""Kinds of input that are only read, by the package's functions and without a network: many in little time."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from boltzformer.data.cases import load_cases
from boltzformer.data.prompts import read_prompt_list
from boltzformer.data.wordings import WordingBook
from boltzformer.recipe import read_recipe
from boltzformer.volumes.checks import check_volume
from boltzformer.volumes.paths import checked, open_path
from boltzformer.volumes.volume import Volume
from boltzformer.weights import read_checkpoint

from tests.fuzz import mutations as m
from tests.fuzz.files import damaged_itk, damaged_nifti, damaged_prompts, damaged_series, dataset, odd_path
from tests.fuzz.sandbox import Sandbox, compare_grids
from tests.fuzz.tools import Finished, Tools

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def nifti_file(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A damaged NIfTI file."""
    return _read(sandbox, damaged_nifti(sandbox.given, draw), tools)


def itk_image(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A damaged NRRD or MetaImage file."""
    return _read(sandbox, damaged_itk(sandbox.given, draw, tools.folder), tools)


def dicom_series(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A damaged DICOM series."""
    return _read(sandbox, damaged_series(sandbox.given, draw, tools.folder), tools)


def special_path(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A path that is no plain file."""
    return _read(sandbox, odd_path(sandbox.given, draw), tools)


def _read(sandbox: Sandbox, source: Path, tools: Tools) -> Finished:
    """Read a volume; its voxels are numbers, and lie where another reader sees them."""
    found: list[Volume] = []

    def read() -> None:
        if source.is_file():
            check_volume(source)
        found.append(checked(open_path(source)))

    done = tools.call(read)
    if found:
        (volume,) = found
        if not np.isfinite(volume.voxels).all():
            done.problems.append("voxels that are no numbers")
        compare_grids(sandbox, source, source, volume.voxels.shape, volume.affine)
    return done


def prompt_list(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A prompt list, JSON or CSV; what is taken has words and names that fit file names, none twice."""
    path = damaged_prompts(sandbox.given, draw)
    found: list[Any] = []
    done = tools.call(lambda: found.extend(read_prompt_list(path)))
    names = [prompt.name.lower() for prompt in found]
    if len(set(names)) < len(names) or not all(map(PLAIN_NAME.fullmatch, names)):
        done.problems.append(f"names that cannot be files: {names}")
    if not all(prompt.text.strip() and prompt.text.isprintable() for prompt in found):
        done.problems.append(f"prompts that are no words: {[prompt.text for prompt in found]}")
    return done


def listed_cases(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A dataset.json and its three sections; no patient is in two of them."""
    content = dataset(sandbox.given, draw)
    (sandbox.given / "dataset.json").write_bytes(m.json_bytes(content, draw))
    patients: dict[str, set[str]] = {}

    def read() -> None:
        for section in ("training", "validation", "test"):
            cases = load_cases(sandbox.given, section, validation_share=0.5)
            patients[section] = {case["patient"] for case in cases}
            for case in cases:
                for value in case["objects"]:
                    WordingBook().for_case(case, value)

    done = tools.call(read)
    shared = patients.get("training", set()) & patients.get("validation", set())
    if shared:
        done.problems.append(f"patients of both training and validation: {shared}")
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


def checkpoint(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A checkpoint with damaged bytes: refused, or read as it was written, to the bit."""
    source = m.pick(draw, [tools.checkpoint, tools.safetensors])
    path = sandbox.given / source.name
    content = source.read_bytes()
    damaged = m.damage_bytes(content, draw)
    path.write_bytes(damaged)
    found: list[Any] = []

    def read() -> None:
        read_recipe(path)
        found.append(read_checkpoint(path))

    done = tools.call(read)
    if found and _digest(found[0]) != _digest(read_checkpoint(source)):
        done.problems.append("other weights were read than were written")
    return done


def _digest(state: dict[str, Any]) -> str:
    """Of names, shapes, types and bits, by other means than the package's own checksum."""
    total = hashlib.md5(usedforsecurity=False)
    for name in sorted(state):
        value = state[name]
        total.update(repr((name, tuple(value.shape), value.dtype)).encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
