"""`boltzformer convert`: a checkpoint of the BoltzFormer authors' code becomes one that this network loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file

from boltzformer.apps.bundle_config import read_bundle
from boltzformer.apps.console import one_line_errors, plain_console
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.networks.authors_checkpoint import convert_checkpoint
from boltzformer.recipe import versions
from boltzformer.recipe_network import record_definition
from boltzformer.weights import check_fit, save_atomically


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict of a .safetensors or torch file; a dict below "model" or "state_dict" is taken out.

    Raises:
        InputError: the file is absent or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"{path} not found.")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each format has its own exceptions
        raise InputError(f"{path} cannot be read as a checkpoint ({error}).") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no state dict of tensors.")
    return loaded


def main(
    checkpoint: Annotated[Path, typer.Argument(help="the authors' checkpoint: .pt, .pth or .safetensors")],
    output: Annotated[Path, typer.Argument(help="where to write the weights (.pt)")],
    overlay: Annotated[
        list[str] | None, typer.Option(help="network config, relative to the bundle; configs/network/authors.json")
    ] = None,
    backbone_weights: Annotated[str | None, typer.Option(help="local file for the image encoder")] = None,
    text_weights: Annotated[str | None, typer.Option(help="local file for the language encoder")] = None,
) -> None:
    """Write weights that the bundle loads: decoder, pixel decoder, semantic map and PiGMA from the checkpoint.

    The encoders come from files of their own, or start at random, and the command says which.
    """
    console = plain_console()
    files = {"backbone_weights": backbone_weights, "text_weights": text_weights}
    with one_line_errors():
        weights = read_weights(checkpoint)
        converted, left = convert_checkpoint(weights)
        if not converted:
            raise InputError(f"{checkpoint} holds none of the authors' decoder keys, such as query_feat.weight.")
        overlays = overlay or ["configs/network/authors.json"]
        settings = {"pretrained": False, **files}
        network = read_bundle(bundle_folder(), overlays, settings, "train").get_parsed_content("network_def")
        state = network.state_dict()
        check_fit(network, {**state, **converted}, checkpoint)
        recipe = {"network": record_definition(network, bundle_folder() / "models"), "versions": versions()}
        save_atomically({**state, **converted}, output, recipe)
    absent = sorted({key.split(".")[0] for key in state if key not in converted})
    console.print(f"{len(converted)} tensors converted, {len(left)} left out; written to {output}.")
    console.print(
        f"Not from the checkpoint: {', '.join(absent)} (from local files: {[k for k, v in files.items() if v]})."
    )


if __name__ == "__main__":
    typer.run(main)
