"""`boltzformer export`: the tensor-only core (image, text embedding, noise -> logits) as .pt2 or .onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from boltzformer.apps.bundle_config import read_bundle
from boltzformer.apps.console import one_line_errors, plain_console, print_error
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.networks.export import TensorCore, example_inputs, export_program
from boltzformer.weights import load_weights

TOLERANCE = 1e-4


def export(network: BoltzFormer, output: Path, prompt: str = "lesion", channels: int = 1) -> float:
    """Write the file, run it, and return its largest difference from the eager core, relative to the largest logit.

    Args:
        network: whose core is written.
        output: the file.
        prompt: a prompt to trace with.
        channels: of the slices that the file shall take, 1, or 3 for a network that sees a slice's neighbours.

    Raises:
        InputError: the network is none of BoltzFormer's, or the file's ending is neither .pt2 nor .onnx.
    """
    if not isinstance(network, BoltzFormer):
        raise InputError(f"a {type(network).__name__} has no such core: export is for BoltzFormer's networks.")
    if output.suffix not in (".pt2", ".onnx"):
        raise InputError(f"{output}: the ending must be .pt2 (torch.export) or .onnx.")
    output.parent.mkdir(parents=True, exist_ok=True)
    program = export_program(network, prompt, channels)
    inputs = example_inputs(network, f"another, longer prompt for the {prompt}", channels)
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
        raise InputError("ONNX export needs onnx, onnxscript and onnxruntime: pip install '.[export]'.") from error
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
    console = plain_console()
    with one_line_errors():
        settings = {"device": torch.device("cpu"), **({"checkpoint": checkpoint} if checkpoint else {})}
        parser = read_bundle(bundle_folder(), overlay or [], settings)
        network = parser.get_parsed_content("network_def").eval()
        load_weights(network, parser.get_parsed_content("checkpoint"))
        error = export(network, output, channels=2 * parser.get_parsed_content("recipe").num_adjacent + 1)
    console.print(f"{output}: differs from the eager network by {error:.1e} of the largest logit")
    if not error < TOLERANCE:
        print_error(f"That is more than {TOLERANCE:.0e}: do not use the file.")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
