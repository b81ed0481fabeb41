"""`boltzformer trace`: pictures and numbers of the sampled patches per layer, for slices of a dataset."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from boltzformer.apps.bundle_config import network_and_slices, read_bundle
from boltzformer.apps.console import OUTPUT_DIR, one_line_errors, plain_console
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.errors import InputError
from boltzformer.inference.sampling_trace import save_figure, trace_figure, trace_slice
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.output_files import write_bytes

console = plain_console()


def choose_examples(dataset: SliceDataset, case: str | None, name: str | None, count: int) -> list[int]:
    """Choose slices, the objects in turn: of each the slice with the median area first, then those nearest to it.

    Args:
        dataset: with the slices' labels.
        case: only this case, or None for all.
        name: only this object, or None for all.
        count: how many; fewer where there are no more.

    Returns:
        indices into the dataset, ascending.

    Raises:
        InputError: no slice of this case and object.
    """
    sizes: dict[str, list[tuple[float, int]]] = {}
    for index in range(len(dataset.examples)):
        item = dataset[index]
        if case in (None, item["case"]) and name in (None, item["object"]):
            sizes.setdefault(item["object"], []).append((float(item["label"].sum()), index))
    if not sizes:
        raise InputError(f"No slice of case {case!r} with object {name!r}; objects are {sorted(dataset.counts())}.")
    ranked = [_from_the_middle([index for _, index in sorted(found)]) for found in sizes.values()]
    in_turn = [index for ranks in zip_longest(*ranked) for index in ranks if index is not None]
    return sorted(in_turn[:count])


def _from_the_middle(indices: list[int]) -> list[int]:
    middle = len(indices) // 2
    return sorted(indices, key=lambda index: abs(indices.index(index) - middle))


def main(
    overlay: Annotated[
        list[str] | None, typer.Option(help="config on top of evaluate.json, such as configs/demo.json")
    ] = None,
    dataset_dir: Annotated[str | None, typer.Option(help="dataset; the one of the config by default")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="weights; models/model.pt by default")] = None,
    case: Annotated[str | None, typer.Option(help="only this case")] = None,
    name: Annotated[str | None, typer.Option("--object", help="only this object")] = None,
    count: Annotated[int, typer.Option(help="slices at most")] = 4,
    output_dir: Annotated[Path, typer.Option(*OUTPUT_DIR, help="folder for trace.png and trace.json")] = Path(
        "runs/trace"
    ),
) -> None:
    """Draw slice, truth, prediction and the sampled patches; print the share of patches kept and of the object hit."""
    overrides = {key: value for key, value in (("dataset_dir", dataset_dir), ("checkpoint", checkpoint)) if value}
    with one_line_errors():
        parser = read_bundle(bundle_folder(), overlay or [], overrides)
        network, dataset = network_and_slices(parser)
        if not isinstance(network, BoltzFormer):
            raise InputError(f"a {type(network).__name__} samples no patches: trace is for BoltzFormer's networks.")
        chosen = [dataset[index] for index in choose_examples(dataset, case, name, count)]
    traces = [trace_slice(network, item["image"], item["text"], item["label"]) for item in chosen]
    save_figure(trace_figure(traces), output_dir / "trace.png")
    table = Table(
        "layer", "temperature", "grid", "patches kept", "of the object's patches", title="Mean over the slices"
    )
    rows = [trace.numbers() for trace in traces]
    for layer in zip(*rows, strict=True):
        kept, hit = (np.mean([row[key] for row in layer]) for key in ("share_kept", "object_share_kept"))
        first = layer[0]
        grid = f"{first['grid_height']} x {first['grid_width']}"
        table.add_row(str(first["layer"]), f"{first['temperature']:.3f}", grid, f"{kept:.1%}", f"{hit:.1%}")
    console.print(table)
    slices = [
        {
            "case": item["case"],
            "object": item["object"],
            "slice": int(item["slice"]),
            "prompt": item["text"],
            "layers": row,
        }
        for item, row in zip(chosen, rows, strict=True)
    ]
    write_bytes(output_dir / "trace.json", (json.dumps(slices, indent=4) + "\n").encode())
    console.print(f"Written to {output_dir / 'trace.png'} and {output_dir / 'trace.json'}")


if __name__ == "__main__":
    typer.run(main)
