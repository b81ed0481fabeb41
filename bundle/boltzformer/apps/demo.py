"""`boltzformer demo`: train, evaluate and infer a small network on phantoms by the bundle's own commands; draw it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.rule import Rule

from boltzformer.apps.bundle_config import read_bundle
from boltzformer.apps.console import OUTPUT_DIR, one_line_errors, print_error
from boltzformer.apps.trace import choose_examples
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.inference.sampling_trace import save_figure, trace_figure, trace_slice
from boltzformer.metrics.show.terminal import print_slice_summary
from boltzformer.weights import load_weights

SAMPLE = bundle_folder() / "samples" / "head_neck_ct.nii.gz"
SAMPLE_PROMPTS = (
    "brainstem in head and neck CT",
    "spinal cord",
    "left parotid gland",
    "right parotid gland",
    "larynx",
    "lower jaw",
)
MARK = ".boltzformer_demo"
console = Console()


def run_bundle(run_id: str, config: str, folders: dict[str, str]) -> float:
    """Run `python -m monai.bundle run` in the bundle, its output shown as it comes; seconds that it took."""
    files = f"['configs/{config}.json','configs/demo.json']"
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", files]
    command += [part for key, value in folders.items() for part in (f"--{key}", value)]
    return _run(run_id, command, f"cd {bundle_folder()} && python {' '.join(command[1:])}")


def segment_sample(folder: Path) -> float:
    """Run `boltzformer segment` with the shipped weights on a real CT; seconds that it took."""
    command = [sys.executable, "-m", "boltzformer", "segment", str(SAMPLE), *SAMPLE_PROMPTS, "--modality", "CT"]
    command += ["--body-part", "head and neck", "-o", str(folder), "-f", "nifti", "-f", "png", "-f", "json"]
    return _run("segment", command, f"boltzformer {shlex.join(command[3:])}")


def _run(name: str, command: list[str], shown: str) -> float:
    """Run a command in the bundle, ending the demo with its exit code where it fails; seconds that it took."""
    console.print(f"[bold]$ {shown}[/bold]", highlight=False)
    start = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    finished = subprocess.run(command, cwd=bundle_folder(), env=environment, check=False)
    if finished.returncode:
        print_error(f"{name} ended with exit code {finished.returncode}; the lines above say why.")
        raise typer.Exit(finished.returncode)
    return time.monotonic() - start


def empty_folder(folder: Path) -> None:
    """Make the demo's folder; what an earlier demo left there is removed, anything else is not.

    Raises:
        InputError: the folder holds something that no demo wrote.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise InputError(f"{folder}: is not empty and was not written by a demo; choose another folder.")
        console.print(f"Removing {folder}, the output of an earlier demo")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def draw(folder: Path, folders: dict[str, Any]) -> Path:
    """Picture of slice, truth, prediction and sampled patches at three layers, two rows for each object at most."""
    parser = read_bundle(bundle_folder(), ["configs/demo.json"], folders)
    network = parser.get_parsed_content("network").eval()
    load_weights(network, parser.get_parsed_content("checkpoint"))
    dataset = parser.get_parsed_content("dataset")
    items = [dataset[index] for index in choose_examples(dataset, None, None, count=4)]
    traces = [trace_slice(network, item["image"], item["text"], item["label"]) for item in items]
    layers = network.decoder.num_layers
    path = folder / "sampled_patches.png"
    save_figure(trace_figure(traces, (0, layers // 2, layers - 1)), path)
    return path


def main(
    output_dir: Annotated[
        Path,
        typer.Option(*OUTPUT_DIR, help="Folder of data, weights, masks and report; an earlier demo there is replaced."),
    ] = Path("demo_output"),
) -> None:
    """Segment a real CT with the shipped weights; then train a small network on phantoms: minutes on a CPU."""
    folder = output_dir.resolve()
    runs = {"runs_dir": str(folder)}
    cached = {**runs, "cache_dir": str(folder / "cache")}
    with one_line_errors():
        empty_folder(folder)
        console.print(Rule("The shipped network on a real head and neck CT"))
        seconds = {"Shipped network on the real CT": segment_sample(folder / "real_ct")}
        for title, run_id, config, folders in (
            ("Training", "training", "train", cached),
            ("Evaluation on the held-out phantoms", "evaluating", "evaluate", cached),
            ("Inference on the held-out phantoms", "inference", "inference", runs),
        ):
            console.print(Rule(title))
            seconds[title] = run_bundle(run_id, config, folders)
        console.print(Rule("Picture"))
        picture = draw(folder, cached)
    summary = json.loads((folder / "evaluate" / "summary.json").read_text())
    console.print(Rule("Done"))
    print_slice_summary(summary, console)
    for title, taken in seconds.items():
        console.print(f"{title}: {taken:.0f} s")
    console.print(f"Real CT:       {folder / 'real_ct'} (masks, and a picture of them)")
    console.print(f"Masks:         {folder / 'inference'}")
    console.print(f"Dice by size:  {folder / 'evaluate'} (summary.json, and one row a slice in a CSV)")
    console.print(f"Picture:       {picture}")
    console.print(f"Mean Dice of {summary['overall']['n']} held-out slices: {summary['overall']['mean_dice']:.3f}")
    console.print(
        "In slices without a nodule the phantoms' network marks something else, such as the liver: after minutes of "
        "training it cannot tell yet that an object is absent. The shipped weights can."
    )


if __name__ == "__main__":
    typer.run(main)
