"""Train, evaluate and infer a small network on phantoms with the bundle's own commands, then draw what it did."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bundle")]

OUTPUT = ROOT / "demo_output"
console = Console()


def run_bundle(run_id: str, *configs: str, **values: Any) -> float:
    """Run `python -m monai.bundle run` in the bundle, its output shown as it comes; seconds that it took."""
    files = "[" + ",".join(f"'configs/{name}.json'" for name in configs) + "]"
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", files]
    command += [part for key, value in values.items() for part in (f"--{key}", str(value))]
    console.print(f"[bold]$ cd bundle && python {' '.join(command[1:])}[/bold]", highlight=False)
    start = time.monotonic()
    finished = subprocess.run(command, cwd=ROOT / "bundle", env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False)
    if finished.returncode:
        console.print(f"[red]{run_id} ended with exit code {finished.returncode}; the lines above say why.[/red]")
        raise SystemExit(finished.returncode)
    return time.monotonic() - start


def draw() -> Path:
    """Picture of slice, truth, prediction and sampled patches at three layers, one row for each object."""
    from boltzformer.inference.sampling_trace import save_figure, trace_figure, trace_slice
    from boltzformer.weights import load_weights

    from scripts.bundle_config import read_bundle
    from scripts.sampling_trace import choose_examples

    parser = read_bundle(ROOT / "bundle", ["configs/demo.json"], {})
    network = parser.get_parsed_content("network").eval()
    load_weights(network, parser.get_parsed_content("checkpoint"))
    dataset = parser.get_parsed_content("dataset")
    items = [dataset[index] for index in choose_examples(dataset, None, None, count=4)]
    traces = [trace_slice(network, item["image"], item["text"], item["label"]) for item in items]
    layers = network.decoder.num_layers
    path = OUTPUT / "sampled_patches.png"
    save_figure(trace_figure(traces, (0, layers // 2, layers - 1)), path)
    return path


def main() -> None:
    """Run the demo from start to end."""
    from boltzformer.metrics.tables import print_slice_summary

    if OUTPUT.exists():
        console.print(f"Removing {OUTPUT}, the output of an earlier demo")
        shutil.rmtree(OUTPUT)
    steps = {
        "Training": lambda: run_bundle("training", "train", "demo"),
        "Evaluation on the held-out phantoms": lambda: run_bundle("evaluating", "evaluate", "demo"),
        "Inference on the held-out phantoms": lambda: run_bundle("inference", "inference", "demo"),
    }
    seconds = {}
    for title, step in steps.items():
        console.print(Rule(title))
        seconds[title] = step()
    console.print(Rule("Picture"))
    picture = draw()
    summary = json.loads((OUTPUT / "evaluate" / "summary.json").read_text())
    console.print(Rule("Done"))
    print_slice_summary(summary, console)
    for title, taken in seconds.items():
        console.print(f"{title}: {taken:.0f} s")
    console.print(f"Masks:         {OUTPUT / 'inference'}")
    console.print(f"Dice by size:  {OUTPUT / 'evaluate'} (summary.json, and one row a slice in a CSV)")
    console.print(f"Picture:       {picture}")
    console.print(f"Mean Dice of {summary['overall']['n']} held-out slices: {summary['overall']['mean_dice']:.3f}")


if __name__ == "__main__":
    main()
