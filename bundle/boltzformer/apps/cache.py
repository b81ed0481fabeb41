"""`boltzformer cache`: build the slice cache of a dataset, show what is in it, and measure the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from monai.transforms import Compose
from rich.table import Table
from torch.utils.data import DataLoader

from boltzformer.apps.console import one_line_errors, plain_console
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.augmentation import RandSliceAffined
from boltzformer.data.cases import load_cases
from boltzformer.data.samplers import EpochSampler
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.data.slice_transforms import ResizeSliced
from boltzformer.data.throughput import measure_loader


def main(
    dataset: Annotated[Path, typer.Argument(help="Folder in Decathlon layout, or a datalist JSON.")],
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of the slice cache; the bundle's by default.")] = None,
    window: Annotated[str, typer.Option(help="auto, percentiles, lung, soft_tissue, bone, brain or liver.")] = "auto",
    axis: Annotated[int, typer.Option(help="0 sagittal, 1 coronal, 2 axial.")] = 2,
    spatial_size: Annotated[int, typer.Option(help="Pixels of a side of a training slice.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Slices in a batch.")] = 8,
    workers: Annotated[int, typer.Option(help="Worker processes of the loader.")] = 2,
    seconds: Annotated[float, typer.Option(help="Time to measure the loader for; 0 leaves it out.")] = 5.0,
) -> None:
    """Build the slice cache, count the examples of each object, and print how fast the loader is."""
    console = plain_console()
    with one_line_errors():
        datasets = {
            section: SliceDataset(
                load_cases(dataset, section),
                cache_dir or bundle_folder() / "cache",
                window,
                axis,
                training=section == "training",
                transform=_pipeline(spatial_size, section == "training"),
            )
            for section in ("training", "validation")
        }
    console.print(_table(datasets))
    if seconds > 0:
        training = datasets["training"]
        loader = DataLoader(
            training,
            batch_size,
            sampler=EpochSampler(training),
            num_workers=workers,
            drop_last=len(training) > batch_size,
        )
        rate = measure_loader(loader, seconds)
        console.print(
            f"Loader: {rate.pairs_per_second:.0f} pairs/s at {spatial_size} px with {workers} workers "
            f"({rate.pairs} slices in {rate.seconds:.1f} s; first batch after "
            f"{rate.first_batch_seconds:.1f} s)"
        )


def _pipeline(spatial_size: int, training: bool) -> Compose:
    """The transforms of `configs/train.json` in its order; validation is only resized, so that it collates."""
    resize = ResizeSliced(spatial_size)
    return Compose([RandSliceAffined(), resize] if training else [resize])


def _table(datasets: dict[str, SliceDataset]) -> Table:
    """Positive slices of each object and their mean share of the slice, a pair of columns for each section."""
    table = Table(title="Positive slices")
    table.add_column("object")
    for section, dataset in datasets.items():
        table.add_column(f"{section} ({len(dataset.data)} cases)", justify="right")
        table.add_column("mean share of the slice", justify="right")
    counts = {section: dataset.counts() for section, dataset in datasets.items()}
    shares = {section: dataset.mean_shares() for section, dataset in datasets.items()}
    for name in sorted({name for count in counts.values() for name in count}):
        cells = []
        for section in datasets:
            share = shares[section].get(name)
            cells += [str(counts[section].get(name, 0)), "–" if share is None else f"{100 * share:.3f} %"]
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    typer.run(main)
