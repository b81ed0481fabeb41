"""Export the tensor-only core (image, text embedding, noise -> logits) to torch.export (.pt2) or ONNX (.onnx)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bundle")]

from boltzformer.errors import InputError
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.networks.export import TensorCore, example_inputs, export_program
from boltzformer.weights import load_weights

from scripts.bundle_config import read_bundle

TOLERANCE = 1e-4


def export(network: BoltzFormer, output: Path, prompt: str = "lesion") -> float:
    """Write the file, run it, and return its largest difference from the eager core, relative to the largest logit.

    Raises:
        InputError: the file's ending is neither .pt2 nor .onnx.
    """
    if output.suffix not in (".pt2", ".onnx"):
        raise InputError(f"{output}: the ending must be .pt2 (torch.export) or .onnx.")
    output.parent.mkdir(parents=True, exist_ok=True)
    program = export_program(network, prompt)
    inputs = example_inputs(network, f"another, longer prompt for the {prompt}")
    if output.suffix == ".pt2":
        torch.export.save(program, output)
        result = torch.export.load(output).module()(*inputs)
    else:
        result = _through_onnx(program, output, inputs)
    expected = TensorCore(network)(*inputs)
    return float((result - expected).abs().max() / expected.abs().max())


def _through_onnx(program: torch.export.ExportedProgram, output: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    try:
        import onnxruntime  # only this command needs it
    except ImportError as error:
        raise InputError("ONNX export needs onnx, onnxscript and onnxruntime: see requirements-dev.txt.") from error
    names = ["image", "text_embedding", "noise"]
    torch.onnx.export(program, (), str(output), input_names=names, output_names=["logits"], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy(force=True) for name, tensor in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def main(
    output: Annotated[Path, typer.Argument(help="file to write, .pt2 or .onnx")],
    overlay: Annotated[list[str] | None, typer.Option(help="network config, such as configs/network/tiny.json")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="weights; models/model.pt by default")] = None,
) -> None:
    """Export the network of the bundle with its weights, and compare the file's output with the network's own."""
    console = Console()
    try:
        settings = {"device": torch.device("cpu"), **({"checkpoint": checkpoint} if checkpoint else {})}
        parser = read_bundle(ROOT / "bundle", overlay or [], settings)
        network = parser.get_parsed_content("network_def").eval()
        load_weights(network, parser.get_parsed_content("checkpoint"))
        error = export(network, output)
    except InputError as failure:
        console.print(f"[red]{failure}[/red]")
        raise typer.Exit(1) from failure
    console.print(f"{output}: differs from the eager network by {error:.1e} of the largest logit")
    if not error < TOLERANCE:
        console.print(f"[red]That is more than {TOLERANCE:.0e}: do not use the file.[/red]")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
