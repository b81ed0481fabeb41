"""`boltzformer small-proof`: the whole chain of the paper's tables on a part of two datasets, in minutes a run.

It shows that tables, figures and baselines come out of one command. What the numbers say about a method is nothing:
the page that it writes says so at its head.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from boltzformer.apps.console import one_line_errors, print_error
from boltzformer.apps.dynunet import train_and_score
from boltzformer.apps.experiment import run_table
from boltzformer.apps.experiment_runs import Launcher, launch
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.cases import load_cases
from boltzformer.errors import InputError
from boltzformer.metrics.files import write_json, write_text

OVERLAYS = ("configs/network/shipped.json", "configs/train_shipped.json", "configs/tables/small/budget.json")
SMALL = ("small/table1", "small/table2")
TABLES = tuple(f"table{number}" for number in range(3, 9))
FIGURES = ("sampled_patches", "attention_rules", "decoders", "failures")
DATASETS = {"openkbp": (24, 4), "lidc_crops": (60, 20)}
"""Folder to the numbers of training and validation cases that are used."""


def main(
    data: Annotated[Path, typer.Argument(help="Folder with `openkbp` and `lidc_crops`, in Decathlon layout.")],
    out: Annotated[Path, typer.Option(help="Folder of runs, tables, figures and the page.")] = Path("small_proof"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    backbone_weights: Annotated[Path | None, typer.Option(help="Of tiny_vit_5m_224; random without.")] = None,
    budget: Annotated[Path | None, typer.Option(help="Overlay in place of tables/small/budget.json.")] = None,
    dynunet_minutes: Annotated[float, typer.Option(min=0, help="Of each dataset's DynUNet; 0 leaves it out.")] = 2.0,
    only: Annotated[list[str] | None, typer.Option(help="Table or figure, such as table3; repeat it.")] = None,
) -> None:
    """Run tables 1 to 8 and the figures with a tiny budget; started again, it goes on."""
    with one_line_errors():
        failures = prove(data, out, device, backbone_weights, budget, dynunet_minutes, only or ())
    for failure in failures:
        print_error(failure)
    if failures:
        raise typer.Exit(1)


def prove(
    data: Path,
    out: Path,
    device: str = "cpu",
    backbone_weights: Path | None = None,
    budget: Path | None = None,
    dynunet_minutes: float = 2.0,
    only: Sequence[str] = (),
    launcher: Launcher = launch,
) -> list[str]:
    """What the command does; its options are described there.

    Args:
        data: folder with the two datasets.
        out: folder of everything that is written.
        device: where the networks are run.
        backbone_weights: of `tiny_vit_5m_224`; None starts at random.
        budget: overlay in place of `configs/tables/small/budget.json`.
        dynunet_minutes: of each dataset's DynUNet; 0 leaves it out.
        only: tables and figures; all by default.
        launcher: runs one step of a run.

    Returns:
        a line for each run that failed.

    Raises:
        InputError: a dataset is missing, or `only` names no table and no figure.
    """
    configs = bundle_folder() / "configs"
    tables = [*(configs / "tables" / f"{name}.json" for name in (*SMALL, *TABLES))]
    figures = [configs / "figures" / f"{name}.json" for name in FIGURES]
    if unknown := set(only) - {path.stem for path in (*tables, *figures)}:
        raise InputError(f"--only: there is no table or figure {sorted(unknown)[0]!r}.")
    begun = time.monotonic()
    out = out.resolve()
    parts = {name: write_part(data / name, out / "data" / name, *counts) for name, counts in DATASETS.items()}
    own = write_json(out / "own.json", _own(budget, backbone_weights))
    overlays = [*OVERLAYS, str(own)]
    for name, folder in parts.items():
        target = out / "data" / "dynunet" / name
        if dynunet_minutes and not (target / "slices.csv").is_file():
            train_and_score(folder, target, dynunet_minutes, patch=(64, 64, 32), filters=16, device=device)
    failures: list[str] = []
    made = []
    for path in (*tables, *figures):
        if only and path.stem not in only:
            continue
        given = [str(own)] if path.parent.name == "small" else overlays
        failures += run_table(path, out / "data", out, device, 1, list(parts), "validation", given, launcher=launcher)
        made.append(out / f"{path.stem}.md")
    minutes = (time.monotonic() - begun) / 60
    _write_page(out, made, parts, own, dynunet_minutes, minutes)
    return failures


def write_part(source: Path, target: Path, training: int, validation: int) -> Path:
    """A dataset that lists the first cases of another, whose files stay where they are.

    Args:
        source: folder in Decathlon layout with both lists.
        target: folder of the new `dataset.json`.
        training: number of cases.
        validation: number of cases.

    Raises:
        InputError: the dataset cannot be read.
    """
    lists = {}
    for section, count in (("training", training), ("validation", validation)):
        cases = load_cases(source, section)
        step = max(1, len(cases) // count)
        lists[section] = [_listed(case) for case in cases[::step][:count]]
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    write_json(target / "dataset.json", {**content, "test": [], **lists})
    return target


def _listed(case: dict[str, Any]) -> dict[str, Any]:
    return {key: case[key] for key in ("image", "label", "patient")}


def _own(budget: Path | None, backbone_weights: Path | None) -> dict[str, Any]:
    if budget is not None and not budget.is_file():
        raise InputError(f"--budget: {budget} does not exist.")
    content: dict[str, Any] = {} if budget is None else json.loads(budget.read_text(encoding="utf-8"))
    if backbone_weights is None:
        return {"pretrained": False, **content}
    if not backbone_weights.is_file():
        raise InputError(f"--backbone-weights: {backbone_weights} does not exist.")
    return {"backbone_weights": str(backbone_weights.resolve()), "pretrained": False, **content}


def _write_page(
    out: Path, made: Sequence[Path], parts: dict[str, Path], own: Path, dynunet_minutes: float, minutes: float
) -> None:
    settings = json.loads((bundle_folder() / OVERLAYS[-1]).read_text(encoding="utf-8"))
    settings.update(json.loads(own.read_text(encoding="utf-8")))
    start = "a pretrained backbone" if settings.get("backbone_weights") else "a random start"
    pairs = settings["samples_per_epoch"] * settings["max_epochs"]
    cases = ", ".join(f"{n} + {m} cases of {name}" for name, (n, m) in DATASETS.items() if name in parts)
    head = (
        "# A small proof of the chain\n\n"
        f"**These are not the paper's experiments.** Each row was trained on {pairs} slices from {start}, with the "
        f"small network (TinyViT, 256 px) on a CPU; the paper trained for up to 40 epochs on 32 GPUs. {cases} "
        f"(training + validation) were used, and rows are scored on the validation cases. DynUNet had "
        f"{dynunet_minutes:g} minutes a dataset. Differences between rows are noise of so short a training. What the "
        f"page shows: every table and figure comes out of one command. This start of it took {minutes:.0f} minutes.\n"
    )
    texts = [path.read_text(encoding="utf-8") for path in made if path.is_file()]
    print(f"Written: {write_text(out / 'experiments_small.md', head + chr(10) + chr(10).join(texts))}")


if __name__ == "__main__":
    typer.run(main)
