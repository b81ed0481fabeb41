"""`boltzformer dynunet`: nnU-Net's network in MONAI, trained on one dataset for a given time and scored like others."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from monai.utils import set_determinism

from boltzformer.apps.console import OUTPUT_DIR, one_line_errors
from boltzformer.apps.evaluate_predictions import find_cases
from boltzformer.apps.scoring import end, score
from boltzformer.cpu import cpu_has_bfloat16
from boltzformer.data.cases import load_cases
from boltzformer.errors import InputError
from boltzformer.metrics.files import write_json
from boltzformer.metrics.measures.cases import EvaluationSettings
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.training.closed_set import predict_cases, train_for
from boltzformer.training.closed_set_plan import make_network, make_plan
from boltzformer.volumes.names import case_name, check_names
from boltzformer.weights import save_atomically


def main(
    dataset: Annotated[Path, typer.Argument(help="Folder in Decathlon layout; all its objects are learned at once.")],
    output_dir: Annotated[Path, typer.Option(*OUTPUT_DIR, help="Folder for weights, predictions and the evaluation.")],
    minutes: Annotated[float, typer.Option(help="Of training; reading the volumes comes before.")] = 60.0,
    section: Annotated[str, typer.Option(help="List that is scored: validation or test.")] = "validation",
    patch: Annotated[tuple[int, int, int], typer.Option(help="Voxels of a patch along x, y, z.")] = (96, 96, 48),
    filters: Annotated[int, typer.Option(min=2, help="At full resolution; 32 in nnU-Net.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="At the start.")] = 1e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, patches and augmentation.")] = 0,
    processor_time: Annotated[
        bool, typer.Option("--processor-time", help="Minutes of the processor, all threads, in place of the clock's.")
    ] = False,
) -> None:
    """Train a DynUNet without text on one dataset, segment a list, and score it as every other network here.

    `OUTPUT_DIR/slices.csv` goes into a table as the row's `scores`; `training.json` has the plan and the budget.
    """
    with one_line_errors():
        failures = train_and_score(
            dataset,
            output_dir,
            minutes,
            section,
            patch,
            filters,
            batch_size,
            learning_rate,
            device,
            seed,
            processor_time,
        )
    end(failures)


def train_and_score(
    dataset: Path,
    output_dir: Path,
    minutes: float,
    section: str = "validation",
    patch: tuple[int, int, int] = (96, 96, 48),
    filters: int = 32,
    batch_size: int = 2,
    learning_rate: float = 1e-3,
    device: str = "cpu",
    seed: int = 0,
    processor_time: bool = False,
) -> list[dict[str, str]]:
    """What the command does; its options are described there.

    Returns:
        what could not be scored.

    Raises:
        InputError: a setting out of its range, a dataset that cannot be read, or images of one name to segment.
    """
    if minutes <= 0:
        raise InputError(f"--minutes is {minutes}; give more than 0.")
    training, held_out = load_cases(dataset, "training"), load_cases(dataset, section)
    check_names((case_name(image), image) for image in dict.fromkeys(case["image"] for case in held_out))
    set_determinism(seed=seed)
    plan = make_plan(training, patch)
    network = make_network(plan, filters)
    place = torch.device(device)
    clock = time.process_time if processor_time else time.monotonic
    half = place.type == "cpu" and cpu_has_bfloat16()
    losses = train_for(
        training,
        plan,
        network,
        60 * minutes,
        place,
        batch_size,
        learning_rate,
        seed,
        clock=clock,
        bfloat16=half,
        say=lambda line: print(line, flush=True),
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    save_atomically(network.state_dict(), output_dir / "model.pt")
    weights = sum(parameter.numel() for parameter in network.parameters())
    ends = {"first": float(np.mean(losses[:10])), "last": float(np.mean(losses[-10:]))}
    facts = {
        "minutes": minutes,
        "clock": clock.__name__,
        "device": device,
        "cpu_bfloat16": half,
        "steps": len(losses),
        "weights": weights,
        "loss": ends,
        "plan": asdict(plan),
    }
    write_json(output_dir / "training.json", facts)
    print(f"{len(losses)} steps in {minutes:g} minutes, loss {ends['first']:.3f} -> {ends['last']:.3f}", flush=True)
    predict_cases(held_out, plan, network, place, output_dir / "predictions")
    folder = PredictionFolder(output_dir / "predictions")
    settings = EvaluationSettings()
    found = score(
        find_cases(dataset, section, {}), folder, settings, 1, output_dir, None, 6, f"DynUNet, {dataset.name}"
    )
    return found.failures


if __name__ == "__main__":
    typer.run(main)
