"""`boltzformer segment`: volumes and prompts in, masks out."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from boltzformer.apps.batch import FAILED, SKIPPED, CaseResult, Request, run_batch
from boltzformer.apps.console import OUTPUT_DIR, one_line_errors, plain_console, print_error
from boltzformer.apps.findings import Finding
from boltzformer.apps.release import NAME, bundle_version, shipped_weights, weights_checksum
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.prompts import Prompt, make_prompts, read_prompt_list
from boltzformer.data.windows import IntensityWindow
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.inference.formats import output_formats
from boltzformer.inference.inputs import FoundVolumes, survey_volumes
from boltzformer.inference.precision import check_precision
from boltzformer.json_file import read_text
from boltzformer.manifest import STOPPED_BEFORE, Entry, Manifest
from boltzformer.settings import usable_device
from boltzformer.volumes.segmented import Algorithm
from boltzformer.volumes.write import size_text

SOME_FAILED = 1
DEFAULT_FORMATS = ("nifti", "png")


def main(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="NIfTI, NRRD or MetaImage file, DICOM folder (any nesting), a folder of these, or a datalist JSON.",
        ),
    ],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help='What to look for: "left parotid gland".')
    ] = None,
    output: Annotated[Path, typer.Option(*OUTPUT_DIR, help="Folder of the results.")] = Path("segmentation"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", "-f", help="nifti, seg.nrrd, dicom-seg, rtstruct, png, json; repeatable; else nifti and png."
        ),
    ] = None,
    prompt_list: Annotated[Path | None, typer.Option(help="JSON or CSV with prompts, in place of PROMPT...")] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint; the bundle's models/model.pt by default.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option(help="Config on top of inference.json; repeatable.")] = None,
    modality: Annotated[str, typer.Option(help="CT or MR, where the files do not say it.")] = "",
    body_part: Annotated[str, typer.Option(help="For the intensity window, for example lung or brain.")] = "",
    window: Annotated[
        str | None, typer.Option(help='Name of an intensity window or "lower,upper"; the recipe\'s by default.')
    ] = None,
    uneven_spacing: Annotated[
        str, typer.Option(help="refuse or warn: DICOM slices that are not evenly spaced.")
    ] = "refuse",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; CUDA where there is one by default.")] = None,
    memory_gb: Annotated[float, typer.Option(min=0.01, help="For the tensors of a batch of slices.")] = 2.0,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 (default); bfloat16: faster, borders may move; plain: slice by slice."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished cases again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a case on standard output.")] = False,
) -> None:
    """Mark what the prompts name, in every volume, on the volume's own grid.

    A line for each case and prompt tells whether it was found, its millilitres and parts. Finished cases are skipped
    when the command is started again. Ends with code 0, 1 where some cases failed, or 2 where nothing could start.
    """
    with one_line_errors():
        wanted = _wanted(prompts or [], prompt_list)
        chosen = _chosen_formats(formats)
        limits = None if window is None else window_of(window)
        place = None if device is None else usable_device(device)
        if uneven_spacing not in ("refuse", "warn"):
            raise InputError(f"--uneven-spacing is {uneven_spacing!r}: expected refuse or warn.")
        file = weights or shipped_weights()
        algorithm = Algorithm(NAME, bundle_version(), weights_checksum(file))
        found = survey_volumes(source, modality, body_part)
        for path, reason in found.skipped.items():
            print(f"left out: {path}: {reason}", file=sys.stderr)
        overlays = [path.resolve() for path in overlay or []]
        decisive = {"window": limits, "overlays": [read_text(path, "overlay") for path in overlays]}
        settings: dict[str, Any] = {
            "memory_gb": memory_gb,
            "keep_logits": False,
            **({} if limits is None else {"window": limits}),
        }
        settings |= {} if precision is None else {"precision": check_precision(precision)}
        settings |= {"uneven_spacing": uneven_spacing, "progress": not as_json}
        make_segmenter = partial(_make_segmenter, file, overlays, place, settings)
        decisive |= {"device": str(place), "precision": precision}
        request = Request(tuple(wanted), chosen, algorithm, uneven_spacing, decisive)
        show = _print_json if as_json else _print_lines
        told = {"source": source, "prompts": [prompt.text for prompt in wanted], "formats": chosen, **decisive}
        account = Manifest("segmentation", output, file, told)
        results: list[CaseResult] = []

        def keep(result: CaseResult) -> None:
            results.append(result)
            show(result)

        try:
            run_batch(found.cases, request, make_segmenter, output, overwrite, keep)
        except KeyboardInterrupt:
            _account_for(account, found, results, output)
            raise
        _account_for(account, found, results, output)
    _finish(results)


def _make_segmenter(
    weights: Path, overlays: list[Path], device: torch.device | None, settings: dict[str, Any]
) -> Segmenter:
    return Segmenter.from_bundle(bundle_folder(), weights, overlays, device, **settings)


def _wanted(prompts: list[str], prompt_list: Path | None) -> list[Prompt]:
    if prompts and prompt_list:
        raise InputError("give prompts or --prompt-list, not both.")
    if prompt_list:
        return read_prompt_list(prompt_list)
    if not prompts:
        raise InputError('no prompt was given; name what to look for, for example "lung nodule in chest CT".')
    return make_prompts([(prompt, None) for prompt in prompts])


def _chosen_formats(names: list[str] | None) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(names or DEFAULT_FORMATS))
    for name in chosen:
        if name not in output_formats():
            raise InputError(f"--format {name}: is not known; choose among {', '.join(output_formats())}.")
    return chosen


def window_of(text: str) -> str | list[float]:
    """A window's name or two numbers; nothing else passes on to the config, which would evaluate some texts.

    Raises:
        InputError: it is neither.
    """
    if "," in text:
        try:
            lower, upper = (float(part) for part in text.split(","))
        except ValueError:
            raise InputError(f'--window {text!r}: expected two numbers such as "-160,240".') from None
        IntensityWindow([lower, upper])
        return [lower, upper]
    IntensityWindow(text)
    return text


def _print_lines(result: CaseResult) -> None:
    console = plain_console()
    if result.status == FAILED:
        print_error(f"{result.case}: {result.reason}")
        return
    note = "finished earlier" if result.status == SKIPPED else f"{result.seconds:.1f} s"
    for finding in result.findings:
        console.print(f"{result.case}: {finding.prompt}: {_told(finding)}, {note}")


def _told(finding: Finding) -> str:
    sure = "" if finding.probability is None else f" (probability {finding.probability:.2f})"
    near = finding.nearest_known or {}
    far = f" [never trained; the nearest known term is {near['term']}]" if near.get("far") else ""
    if not far and near.get("earlier_only"):
        far = " [not in the last training; perhaps forgotten]"
    if not finding.found:
        return f"not found{sure}{far}"
    parts = "1 part" if finding.parts == 1 else f"{finding.parts} parts"
    return f"found{sure}, {size_text(finding.voxels, finding.millilitres)}, {parts}{far}"


def _print_json(result: CaseResult) -> None:
    print(json.dumps(result.as_dict(), ensure_ascii=False), flush=True)


def _account_for(account: Manifest, found: FoundVolumes, results: list[CaseResult], output: Path) -> None:
    """Write the account: an entry for each volume, also those not reached after Ctrl-C, and each file left out."""
    left = [CaseResult(str(case["case"]), SKIPPED, reason=STOPPED_BEFORE) for case in found.cases[len(results) :]]
    for case, result in zip(found.cases, [*results, *left], strict=True):
        reason = result.reason or ("finished by an earlier start" if result.status == SKIPPED else "")
        written = tuple(output / name for name in result.files)
        entry = Entry(result.case, str(case["image"]), result.status, reason, result.inputs, written, result.seconds)
        account.add(entry)
    for path, reason in found.skipped.items():
        account.add(Entry(Path(path).name, path, SKIPPED, reason))
    account.write()


def _finish(results: list[CaseResult]) -> None:
    failed = [result for result in results if result.status == FAILED]
    if failed:
        names = ", ".join(result.case for result in failed)
        print_error(f"{len(failed)} of {len(results)} cases failed: {names}")
        raise typer.Exit(SOME_FAILED)
