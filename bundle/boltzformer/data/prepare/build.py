"""From a plan to a dataset in Decathlon layout: complete or absent, and resumable.

A dataset grows in a hidden draft beside its place (`.NAME.draft`). Each finished case leaves a record there, so that a
killed preparation goes on where it was; the draft takes the dataset's name when every case is in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from boltzformer.data.folders import explained_os_errors, folder_lock
from boltzformer.data.prepare.plan import DatasetPlan, PlannedCase
from boltzformer.data.prepare.split import Split
from boltzformer.data.prepare.verify import file_sha256, verify_pair
from boltzformer.errors import InputError
from boltzformer.json_file import write_json
from boltzformer.output_files import sync_folder, sync_tree, write_bytes

FORMAT = 1
MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
_RECORDS = "records"
Say = Callable[[str], None]


class PreparationError(InputError):
    """Cases of a dataset failed; `failures` has one line for each."""

    def __init__(self, message: str, failures: Sequence[str]) -> None:
        super().__init__(message)
        self.failures = list(failures)


def build_dataset(
    plan: DatasetPlan,
    out_dir: str | Path,
    split: Split | None = None,
    leave_out: Sequence[str] = (),
    workers: int = 1,
    say: Say = lambda line: None,
) -> Path:
    """Write a dataset below a folder.

    The dataset has `dataset.json` (with `training`, `validation` and a labelled `test` list, modality, body part and
    the wordings of every object), `imagesTr`, `labelsTr`, `manifest.json` (origin, fingerprint and grid of every case)
    and `SHA256SUMS`, which `sha256sum -c` checks.

    Args:
        plan: what to write.
        out_dir: folder of the datasets; this one becomes `out_dir/plan.name`.
        split: shares of patients, `Split()` by default.
        leave_out: names of cases to leave out; `dataset.json` says so.
        workers: threads that read and check cases.
        say: gets a line at a time about disk need and progress.

    Returns:
        the dataset's folder.

    Raises:
        PreparationError: cases are damaged or do not fit; the others are kept in the draft, and no dataset appears.
        InputError: the place is taken by something else, the disk has too little room or may not be written, or the
            patients cannot be split.
    """
    split = split or Split()
    unknown = sorted(set(leave_out) - {case.name for case in plan.cases})
    if unknown:
        raise InputError(f"leave out: {plan.name} has no case named {unknown[0]!r}.")
    cases = [case for case in plan.cases if case.name not in set(leave_out)]
    if not cases:
        raise InputError(f"{plan.name}: no case is left to prepare.")
    sections = split.sections(_patients(cases))
    target = Path(out_dir) / plan.name
    parameters = _parameters(plan, split, leave_out)
    with folder_lock(target), explained_os_errors(target):
        if target.exists():
            return _already_there(target, parameters, say)
        draft = _open_draft(target, parameters)
        todo = [case for case in cases if not _is_done(draft, case)]
        _check_disk(target, todo, len(cases), say)
        for note in plan.notes:
            say(f"{plan.name}: {note}")
        failures = _write_cases(draft, todo, plan, workers, say)
        if failures:
            raise PreparationError(
                f"{target}: {len(failures)} of {len(cases)} cases failed, so the dataset is not there yet. Mend "
                "them, or leave them out by name, and start again: the finished cases are kept.",
                failures,
            )
        _finish(draft, plan, cases, sections, parameters, leave_out)
        sync_tree(draft)
        draft.rename(target)
        sync_folder(target.parent)
    say(f"{target}: {len(cases)} cases of {len(sections)} patients ({_counted(cases, sections)})")
    return target


def _patients(cases: Sequence[PlannedCase]) -> dict[str, str]:
    """Patients and the section that the archive gives them; one volume in `test` takes the patient there."""
    patients: dict[str, str] = {}
    for case in cases:
        patients[case.patient] = patients.get(case.patient, "") or case.section
    return patients


def _parameters(plan: DatasetPlan, split: Split, leave_out: Sequence[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": plan.name,
        "split": {"test_share": split.test_share, "validation_share": split.validation_share, "seed": split.seed},
        "leave_out": sorted(leave_out),
        **plan.parameters,
    }


def _already_there(target: Path, parameters: Mapping[str, Any], say: Say) -> Path:
    try:
        found = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{target}: exists and was not prepared by this command; choose another folder.") from None
    if found != json.loads(json.dumps(parameters)):
        raise InputError(f"{target}: was prepared with other settings ({found}); remove it or choose another folder.")
    say(f"{target}: already there")
    return target


def _open_draft(target: Path, parameters: Mapping[str, Any]) -> Path:
    """The draft folder, emptied where it was begun with other parameters (the split does not touch the cases)."""
    draft = target.with_name(f".{target.name}.draft")
    begun = draft / "begun.json"
    text = json.dumps({key: value for key, value in parameters.items() if key not in {"split", "leave_out"}})
    if draft.exists() and (not begun.is_file() or begun.read_text(encoding="utf-8") != text):
        shutil.rmtree(draft)
    for folder in ("imagesTr", "labelsTr", _RECORDS):
        (draft / folder).mkdir(parents=True, exist_ok=True)
    write_bytes(begun, text.encode())
    return draft


def _files(draft: Path, case: PlannedCase) -> tuple[Path, Path]:
    return draft / "imagesTr" / f"{case.name}.nii.gz", draft / "labelsTr" / f"{case.name}.nii.gz"


def _is_done(draft: Path, case: PlannedCase) -> bool:
    try:
        record = json.loads((draft / _RECORDS / f"{case.name}.json").read_text(encoding="utf-8"))
        return all(file.stat().st_size == record["bytes"][i] for i, file in enumerate(_files(draft, case)))
    except (OSError, ValueError, KeyError):
        return False


def _check_disk(target: Path, todo: Sequence[PlannedCase], total: int, say: Say) -> None:
    need, free = sum(case.num_bytes for case in todo), shutil.disk_usage(target.parent).free
    kept = f" ({total - len(todo)} cases are there from an earlier start)" if len(todo) < total else ""
    say(f"{target.name}: {len(todo)} cases, up to {_size(need)} of disk; {_size(free)} are free{kept}")
    if need > free:
        raise InputError(
            f"{target}: needs up to {_size(need)} of disk and {_size(free)} are free; choose another disk."
        )


def _write_cases(draft: Path, todo: Sequence[PlannedCase], plan: DatasetPlan, workers: int, say: Say) -> list[str]:
    def attempt(case: PlannedCase) -> str | None:
        try:
            _write_case(draft, case, plan)
        except InputError as error:
            # the draft's hidden path says nothing to the user, the case's name does
            return f"{case.name}: {str(error).replace(f'{draft}/', '')}"
        return None

    failures = []
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for number, (case, failure) in enumerate(zip(todo, pool.map(attempt, todo), strict=True), start=1):
            if failure:
                failures.append(failure)
            say(f"[{number}/{len(todo)}] {case.name}{': failed' if failure else ''}")
    return failures


def _write_case(draft: Path, case: PlannedCase, plan: DatasetPlan) -> None:
    image, label = _files(draft, case)
    origin = case.write(image, label)
    record = {
        "image": f"imagesTr/{image.name}",
        "label": f"labelsTr/{label.name}",
        "patient": case.patient,
        **verify_pair(image, label, plan.structures),
        "origin": origin,
        "bytes": [image.stat().st_size, label.stat().st_size],
        "sha256": [file_sha256(image), file_sha256(label)],
    }
    for file in (image, label):
        sync_tree(file)  # the record says that they are there
    write_bytes(draft / _RECORDS / f"{case.name}.json", json.dumps(record).encode())


def _finish(
    draft: Path,
    plan: DatasetPlan,
    cases: Sequence[PlannedCase],
    sections: Mapping[str, str],
    parameters: Mapping[str, Any],
    leave_out: Sequence[str],
) -> None:
    records = {c.name: json.loads((draft / _RECORDS / f"{c.name}.json").read_text(encoding="utf-8")) for c in cases}
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for case in cases:
        item = {"image": f"./imagesTr/{case.name}.nii.gz", "label": f"./labelsTr/{case.name}.nii.gz"}
        lists[sections[case.patient]].append({**item, "patient": case.patient})
    dataset = {
        "name": plan.name,
        "description": plan.description,
        "reference": plan.reference,
        "licence": plan.licence,
        "tensorImageSize": "3D",
        "modality": {"0": plan.modality},
        "body_part": plan.body_part,
        "annotated": "all",
        "labels": {"0": "background", **{str(value): s.name for value, s in plan.structures.items()}},
        "prompts": {str(v): s.wordings(plan.body_part, plan.modality) for v, s in plan.structures.items()},
        "numTraining": len(lists["training"]),
        "numTest": len(lists["test"]),
        "notes": [*plan.notes, *(f"left out by the user: {name}" for name in leave_out)],
        **lists,
    }
    write_json(draft / "dataset.json", dataset)
    manifest = {
        "parameters": parameters,
        "cases": {n: {**r, "section": sections[r["patient"]]} for n, r in records.items()},
    }
    write_json(draft / MANIFEST, manifest)
    lines = [
        (sha, record[key])
        for record in records.values()
        for key, sha in zip(("image", "label"), record["sha256"], strict=True)
    ]
    lines += [(file_sha256(draft / name), name) for name in ("dataset.json", MANIFEST)]
    write_bytes(draft / CHECKSUMS, "".join(f"{sha}  {name}\n" for sha, name in lines).encode())
    _remove_all_but(draft, {name for _, name in lines} | {CHECKSUMS})


def _remove_all_but(draft: Path, names: set[str]) -> None:
    """Records, and files of cases that an earlier start wrote and this one leaves out."""
    shutil.rmtree(draft / _RECORDS)
    for file in list(draft.rglob("*")):
        if file.is_file() and file.relative_to(draft).as_posix() not in names:
            file.unlink()


def _counted(cases: Sequence[PlannedCase], sections: Mapping[str, str]) -> str:
    found = [sections[case.patient] for case in cases]
    return ", ".join(f"{found.count(name)} {name}" for name in ("training", "validation", "test"))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
