"""`boltzformer prepare`: what was downloaded in, datasets in Decathlon layout out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from boltzformer.apps.console import one_line_errors, print_error
from boltzformer.apps.release import shipped_weights
from boltzformer.data.prepare.amos import plan_amos
from boltzformer.data.prepare.build import PreparationError, build_dataset
from boltzformer.data.prepare.leaks import find_leaks
from boltzformer.data.prepare.lidc import plan_lidc
from boltzformer.data.prepare.msd import plan_msd
from boltzformer.data.prepare.nnunet import plan_nnunet
from boltzformer.data.prepare.plan import DatasetPlan
from boltzformer.data.prepare.shipped import write_shipped_data
from boltzformer.data.prepare.source import Source, open_source
from boltzformer.data.prepare.split import Split
from boltzformer.errors import InputError
from boltzformer.manifest import DONE, FAILED, SKIPPED, Entry, Manifest
from boltzformer.output_files import check_folder

app = typer.Typer(
    name="prepare",
    help="Bring public datasets into Decathlon layout: split by patient, with wordings and checksums.",
    no_args_is_help=True,
    add_completion=False,
)

SourceArgument = Annotated[Path, typer.Argument(metavar="ARCHIVE_OR_FOLDER", help="The download, or its folder.")]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of all datasets; each gets one of its own.")]
TestShare = Annotated[float, typer.Option(help="Share of patients for the test list, where the archive has none.")]
ValidationShare = Annotated[float, typer.Option(help="Share of the other patients for the validation list.")]
Seed = Annotated[int, typer.Option(help="Of the split.")]
LeaveOut = Annotated[list[str] | None, typer.Option(help="Name of a case to leave out; may be repeated.")]
Workers = Annotated[int, typer.Option(min=1, help="Cases read and checked at once.")]


@app.command()
def msd(
    source: SourceArgument,
    out: OutArgument,
    test_share: TestShare = 0.2,
    validation_share: ValidationShare = 0.2,
    seed: Seed = 0,
    leave_out: LeaveOut = None,
    workers: Workers = 2,
) -> None:
    """Decathlon tasks 06 Lung, 07 Pancreas, 08 HepaticVessel and 10 Colon: the task's tar, or its folder."""
    prepare(source, out, plan_msd, Split(test_share, validation_share, seed), leave_out or [], workers)


@app.command()
def amos(
    source: SourceArgument,
    out: OutArgument,
    validation_share: ValidationShare = 0.2,
    seed: Seed = 0,
    leave_out: LeaveOut = None,
    workers: Workers = 2,
) -> None:
    """AMOS22, as one dataset of CT and one of MRI; the challenge's validation cases are the test lists."""
    prepare(source, out, plan_amos, Split(0.0, validation_share, seed), leave_out or [], workers)


@app.command()
def nnunet(
    source: SourceArgument,
    out: OutArgument,
    channel: Annotated[int, typer.Option(min=0, help="Channel that becomes the image.")] = 0,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression that finds the patient in a case's name.")
    ] = None,
    body_part: Annotated[str | None, typer.Option(help="For the wordings; guessed from the name by default.")] = None,
    modality: Annotated[str | None, typer.Option(help="CT, MR ...; what the channel is called by default.")] = None,
    test_share: TestShare = 0.2,
    validation_share: ValidationShare = 0.2,
    seed: Seed = 0,
    leave_out: LeaveOut = None,
    workers: Workers = 2,
) -> None:
    """Any raw dataset of nnU-Net (version 1 or 2)."""

    def plan(opened: Source) -> list[DatasetPlan]:
        return plan_nnunet(opened, channel, patient_pattern, body_part, modality)

    prepare(source, out, plan, Split(test_share, validation_share, seed), leave_out or [], workers)


@app.command()
def lidc(
    source: SourceArgument,
    out: OutArgument,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder or zip of the readers' XML files, where they are not beside the images.")
    ] = None,
    min_readers: Annotated[int, typer.Option(min=1, max=4, help="Readers who must have drawn a voxel.")] = 2,
    uneven_spacing: Annotated[str, typer.Option(help="refuse or warn: series whose slices are not evenly spaced.")] = (
        "refuse"
    ),
    test_share: TestShare = 0.2,
    validation_share: ValidationShare = 0.2,
    seed: Seed = 0,
    leave_out: LeaveOut = None,
    workers: Workers = 2,
) -> None:
    """LIDC-IDRI: DICOM series and the readers' XML; masks are what at least 2 of the 4 readers drew."""
    with one_line_errors():
        readings = open_source(annotations) if annotations else None

    def plan(opened: Source) -> list[DatasetPlan]:
        return plan_lidc(opened, readings, min_readers, uneven_spacing)

    prepare(source, out, plan, Split(test_share, validation_share, seed), leave_out or [], workers)


@app.command()
def shipped(
    openkbp: Annotated[Path, typer.Argument(help="OpenKBP's head and neck CT in Decathlon layout.")],
    lidc_crops: Annotated[Path, typer.Argument(help="8-bit crops around LIDC-IDRI's nodules in Decathlon layout.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the datalists.")],
) -> None:
    """Datalists for the training of the shipped network, and its split with the SHA-256 of every file."""
    with one_line_errors():
        write_shipped_data(openkbp, lidc_crops, out, print)


@app.command()
def known(
    dataset: Annotated[Path, typer.Argument(help="With labels of something else: Decathlon layout, or a datalist.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the label maps and of known.json.")],
    weights: Annotated[Path | None, typer.Option(help="That will be fine-tuned; the bundle's by default.")] = None,
    name: Annotated[
        list[str] | None, typer.Option("--object", help="That the weights know; may be repeated. Else all measured.")
    ] = None,
    validation_share: ValidationShare = 0.2,
    seed: Seed = 0,
) -> None:
    """What weights know already, labelled by themselves: to train beside new objects, so that it is not forgotten."""
    with one_line_errors():
        from boltzformer.apps.known_labels import label_known  # needs the network

        first = weights or shipped_weights()
        made = label_known(dataset, out, first, name or (), validation_share, seed)
        print(f"Train on both: --dataset_dir \"['{dataset}','{made}']\"")


@app.command()
def leaks(
    datasets: Annotated[list[Path], typer.Argument(help="Prepared datasets, or folders of them.")],
) -> None:
    """Look for one patient or one image under two names, in all lists of all datasets. Ends with code 1 if any."""
    with one_line_errors():
        found = find_leaks(datasets)
    for leak in found:
        print(leak)
    print(f"{len(found)} found" if found else "No patient and no image is shared.")
    if found:
        raise typer.Exit(1)


def prepare(
    source: Path,
    out: Path,
    make_plans: Callable[[Source], list[DatasetPlan]],
    split: Split,
    leave_out: list[str],
    workers: int,
) -> None:
    """Plan and build all datasets of a download; the next one is begun even if one fails.

    Raises:
        typer.Exit: with code 2 where nothing could be begun, and 1 where cases failed.
    """
    with one_line_errors():
        opened = open_source(source)
        plans = make_plans(opened)
        known = {case.name for plan in plans for case in plan.cases}
        if unknown := sorted(set(leave_out) - known):
            raise InputError(f"--leave-out: {source} has no case named '{unknown[0]}'.")
    failures: list[str] = []
    told = {"source": source, "datasets": [plan.name for plan in plans], "split": vars(split), "leave_out": leave_out}
    with one_line_errors():
        manifest = Manifest("preparation", check_folder(out), None, told)
        for plan in plans:
            left_out = [name for name in leave_out if any(case.name == name for case in plan.cases)]
            there = (out / plan.name).exists()
            problem: InputError | None = None
            try:
                build_dataset(plan, out, split, left_out, workers, say=lambda line: print(line, flush=True))
            except PreparationError as error:
                failures += [*error.failures, str(error)]
                problem = error
            except InputError as error:
                account_for(manifest, plan, out, left_out, there, error)
                manifest.write()
                raise
            account_for(manifest, plan, out, left_out, there, problem)
        print(f"Account of the run: {manifest.write()}")
    opened.close()
    for failure in failures:
        print_error(failure)
    if failures:
        raise typer.Exit(1)


def account_for(
    manifest: Manifest, plan: DatasetPlan, out: Path, left_out: list[str], there: bool, problem: InputError | None
) -> None:
    """An entry for each case of a plan: done, failed and why, or left out.

    Args:
        manifest: gets the entries.
        plan: of the dataset.
        out: folder of the datasets.
        left_out: names of cases that the user left out.
        there: whether the dataset was prepared before.
        problem: what ended its preparation.
    """
    folder = out / plan.name
    failures = problem.failures if isinstance(problem, PreparationError) else []
    for case in plan.cases:
        own = next((text for text in failures if text.startswith(f"{case.name}: ")), "")
        files = [folder / kind / f"{case.name}.nii.gz" for kind in ("imagesTr", "labelsTr")]
        status, reason = DONE, ""
        if case.name in left_out:
            status, reason = SKIPPED, "left out by the user"
        elif own or (problem is not None and not failures):
            status, reason = FAILED, own or str(problem)
        elif problem is not None:
            status, reason = SKIPPED, "is ready; the dataset appears when every case is"
        elif there:
            status, reason = SKIPPED, "was prepared before"
        outputs = tuple(files) if status == DONE else ()
        manifest.add(Entry(f"{plan.name}/{case.name}", str(folder), status, reason, outputs=outputs))


if __name__ == "__main__":
    app()
