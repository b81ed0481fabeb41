"""`boltzformer nnunet`: nnU-Net v2 in an environment of its own, on the same split, scored by the same evaluator."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from boltzformer.apps.console import OUTPUT_DIR, one_line_errors
from boltzformer.apps.evaluate_predictions import find_cases
from boltzformer.apps.scoring import end, score
from boltzformer.data.nnunet_export import ENDING, export_dataset, number_back, read_back
from boltzformer.errors import InputError
from boltzformer.metrics.measures.cases import EvaluationSettings
from boltzformer.metrics.measures.prediction_files import PredictionFolder

app = typer.Typer(
    name="nnunet",
    help="nnU-Net v2 on the same split: convert, plan, train, predict, score. It lives in an environment of its own.",
    no_args_is_help=True,
    add_completion=False,
)

Work = Annotated[Path, typer.Argument(metavar="WORK", help="Folder of nnU-Net's raw, preprocessed and results.")]
Number = Annotated[int, typer.Option(min=1, max=999, help="Of nnU-Net's dataset.")]
Environment = Annotated[
    Path,
    typer.Option("--environment", envvar="NNUNET_ENVIRONMENT", help="Virtual environment with nnunetv2."),
]
Configuration = Annotated[str, typer.Option(help="2d, 3d_fullres, 3d_lowres.")]
Trainer = Annotated[str, typer.Option(help="Such as nnUNetTrainer, nnUNetTrainer_1epoch, nnUNetTrainer_100epochs.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Section = Annotated[str, typer.Option(help="validation or test.")]


@app.command()
def convert(
    dataset: Annotated[Path, typer.Argument(help="Folder in Decathlon layout, as `boltzformer prepare` writes it.")],
    work: Work,
    number: Number = 1,
) -> None:
    """Write the dataset for nnU-Net, with this dataset's training and validation lists as fold 0."""
    with one_line_errors():
        print(f"Written: {export_dataset(dataset, work / 'raw', number)}")


@app.command()
def plan(
    work: Work,
    environment: Environment,
    number: Number = 1,
    configuration: Configuration = "3d_fullres",
    processes: Annotated[int, typer.Option(min=1, help="For preprocessing.")] = 2,
) -> None:
    """Let nnU-Net choose its patch, spacing and network, preprocess, and take over the split."""
    with one_line_errors():
        raw = raw_dataset(work, number)
        run(environment, work, plan_arguments(number, configuration, processes))
        shutil.copy(raw / "splits_final.json", work / "preprocessed" / raw.name / "splits_final.json")


@app.command()
def train(
    work: Work,
    environment: Environment,
    number: Number = 1,
    configuration: Configuration = "3d_fullres",
    trainer: Trainer = "nnUNetTrainer",
    device: Device = "cuda",
    resume: Annotated[bool, typer.Option(help="Go on from nnU-Net's own last checkpoint.")] = False,
) -> None:
    """Train fold 0, which is this dataset's own split."""
    with one_line_errors():
        raw = raw_dataset(work, number)
        if not (work / "preprocessed" / raw.name / "splits_final.json").is_file():
            raise InputError(f"{work / 'preprocessed' / raw.name}: has no split; run `boltzformer nnunet plan` first.")
        run(environment, work, train_arguments(number, configuration, trainer, device, resume))


@app.command()
def predict(
    work: Work,
    environment: Environment,
    number: Number = 1,
    section: Section = "test",
    configuration: Configuration = "3d_fullres",
    trainer: Trainer = "nnUNetTrainer",
    device: Device = "cuda",
) -> None:
    """Segment a list; the label maps come to WORK/predictions/SECTION with the dataset's own values."""
    with one_line_errors():
        raw = raw_dataset(work, number)
        target = predictions(work, number, section)
        images = raw / f"images_{section}"
        if not images.is_dir():
            raise InputError(f"{raw}: has no {section} list; the dataset it came from has none.")
        shutil.rmtree(target, ignore_errors=True)
        run(environment, work, predict_arguments(images, target, number, configuration, trainer, device))
        number_back(target, raw)
        expected = {file.name.removesuffix(f"_0000{ENDING}") for file in images.iterdir()}
        if lacking := sorted(expected - {file.name.removesuffix(ENDING) for file in target.iterdir()}):
            raise InputError(f"{target}: nnU-Net left no prediction of {', '.join(lacking)}.")
        print(f"Written: {target}")


@app.command("score")
def score_command(
    work: Work,
    output_dir: Annotated[
        Path, typer.Option(*OUTPUT_DIR, help="Folder for report.html, summary.json and the CSV files.")
    ],
    number: Number = 1,
    section: Section = "test",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Score the predictions as `boltzformer evaluate-predictions` does; tables take slices.csv as a row's `scores`."""
    with one_line_errors():
        source = Path(read_back(raw_dataset(work, number))["dataset"])
        folder = PredictionFolder(predictions(work, number, section))
        cases = find_cases(source, section, {})
        found = score(cases, folder, EvaluationSettings(), workers, output_dir, None, 6, f"nnU-Net v2, {source.name}")
    end(found.failures)


def raw_dataset(work: Path, number: int) -> Path:
    """The raw dataset of a number.

    Raises:
        InputError: there is none, or there are two.
    """
    found = sorted((work / "raw").glob(f"Dataset{number:03d}_*"))
    if len(found) != 1:
        raise InputError(
            f"{work / 'raw'}: has {len(found)} datasets number {number}; `boltzformer nnunet convert` makes one."
        )
    return found[0]


def predictions(work: Path, number: int, section: str) -> Path:
    """Where the label maps of a section lie."""
    return work / "predictions" / f"{number:03d}_{section}"


def plan_arguments(number: int, configuration: str, processes: int) -> list[str]:
    """nnU-Net's command for planning and preprocessing."""
    workers = [str(processes)]
    checked = ["--verify_dataset_integrity", "-npfp", *workers, "-np", *workers]
    return ["nnUNetv2_plan_and_preprocess", "-d", str(number), "-c", configuration, *checked]


def train_arguments(number: int, configuration: str, trainer: str, device: str, resume: bool) -> list[str]:
    """nnU-Net's command for training fold 0."""
    command = ["nnUNetv2_train", str(number), configuration, "0", "-tr", trainer, "-device", device]
    return [*command, "--c"] if resume else command


def predict_arguments(
    images: Path, target: Path, number: int, configuration: str, trainer: str, device: str
) -> list[str]:
    """nnU-Net's command for predicting with the last weights of fold 0, as its papers do."""
    places = ["-i", str(images), "-o", str(target)]
    which = ["-d", str(number), "-c", configuration, "-f", "0", "-tr", trainer, "-device", device]
    return ["nnUNetv2_predict", *places, *which, "-npp", "1", "-nps", "1"]


def run(environment: Path, work: Path, arguments: Sequence[str]) -> None:
    """Run one of nnU-Net's commands in its own environment.

    Raises:
        InputError: the environment lacks it, or the command failed.
    """
    program = environment / "bin" / arguments[0]
    if not program.is_file():
        raise InputError(
            f"{program}: no such command; make an environment with `python -m venv {environment}` and "
            f"`{environment}/bin/pip install 'nnunetv2>=2.6,<3'`."
        )
    folders = {f"nnUNet_{name}": str((work / name).resolve()) for name in ("raw", "preprocessed", "results")}
    # its own packages alone: a PYTHONPATH of this environment would mix the two
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(program), *arguments[1:]], env={**clean, **folders}, check=False)
    if done.returncode:
        raise InputError(f"{arguments[0]} ended with code {done.returncode}; its own messages are above.")


if __name__ == "__main__":
    app()
