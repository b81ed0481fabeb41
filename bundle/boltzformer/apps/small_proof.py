"""`boltzformer small-proof`: the whole chain of the paper's tables on a part of two datasets, in minutes a run.

It shows that tables, figures and baselines come out of one command. What the numbers say about a method is nothing:
the page that it writes says so at its head.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from boltzformer.apps.console import one_line_errors, print_error
from boltzformer.apps.dynunet import train_and_score
from boltzformer.apps.experiment import run_table
from boltzformer.apps.experiment_definition import COSTS, read_table
from boltzformer.apps.experiment_plan import plan_runs
from boltzformer.apps.experiment_runs import RESULT, Launcher, launch, launch_warm
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.prepare.shipped import PARTS, shipped_content
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.metrics.files import write_json, write_text

OVERLAYS = ("configs/network/shipped.json", "configs/train_shipped.json", "configs/tables/small/budget.json")
SMALL = ("small/comparison", "small/table1", "small/table2")
TABLES = tuple(f"table{number}" for number in range(3, 9))
FIGURES = ("sampled_patches", "attention_rules", "decoders", "failures")
COLUMNS = ("small", "large", "missed", *COSTS)
"""Of every table, behind its own."""
CASES = {"openkbp": (40, 4), "lidc_crops": (120, 16)}
"""Folder to the numbers of training and validation cases that are used."""


def main(
    data: Annotated[Path, typer.Argument(help="Folder with `openkbp` and `lidc_crops`, in Decathlon layout.")],
    out: Annotated[Path, typer.Option(help="Folder of runs, tables, figures and the page.")] = Path("small_proof"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    backbone_weights: Annotated[Path | None, typer.Option(help="Of tiny_vit_5m_224; random without.")] = None,
    budget: Annotated[Path | None, typer.Option(help="Overlay on top of tables/small/budget.json.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row: seeds 0, 1, ...; DynUNet has one.")] = 1,
    dynunet_minutes: Annotated[
        float | None, typer.Option(min=0, help="Of each dataset's DynUNet; by default BoltzFormer's; 0 leaves it out.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Table or figure, such as table3; repeat it.")] = None,
    render_only: Annotated[bool, typer.Option(help="Run nothing; make the page of what is finished.")] = False,
) -> None:
    """Run tables 1 to 8 and the figures with a tiny budget; started again, it goes on."""
    with one_line_errors():
        failures = prove(
            data, out, device, backbone_weights, budget, dynunet_minutes, only or (), seeds, launch_warm, render_only
        )
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
    dynunet_minutes: float | None = None,
    only: Sequence[str] = (),
    seeds: int = 1,
    launcher: Launcher = launch,
    render_only: bool = False,
) -> list[str]:
    """What the command does; its options are described there.

    Args:
        data: folder with the two datasets.
        out: folder of everything that is written.
        device: where the networks are run.
        backbone_weights: of `tiny_vit_5m_224`; None starts at random.
        budget: overlay on top of `configs/tables/small/budget.json`.
        dynunet_minutes: of each dataset's DynUNet, on a CPU minutes of the processor; None gives each what
            BoltzFormer's training took, 0 leaves it out.
        only: tables and figures; all by default.
        seeds: of each row.
        launcher: runs one step of a run.
        render_only: run nothing; make the page of what is finished.

    Returns:
        a line for each run that failed.

    Raises:
        InputError: a dataset is missing, or `only` names no table and no figure.
    """
    configs = bundle_folder() / "configs"
    tables = [configs / "tables" / f"{name}.json" for name in (SMALL[0], *TABLES, *SMALL[1:])]
    figures = [configs / "figures" / f"{name}.json" for name in FIGURES]
    if unknown := set(only) - {path.stem for path in (*tables, *figures)}:
        raise InputError(f"--only: there is no table or figure {sorted(unknown)[0]!r}.")
    out = out.resolve()
    for part in PARTS:
        write_part(shipped_content(data / part.name, part), out / "data" / part.name, *CASES[part.name])
    own = write_json(out / "own.json", _own(budget, backbone_weights))
    settings: dict[str, Any] = {"data": out / "data", "out": out, "device": device, "seeds": seeds}
    settings |= {"datasets": list(CASES), "section": "validation", "launcher": launcher}
    settings["render_only"] = render_only
    failures: list[str] = []
    tables, figures = ([path for path in some if not only or path.stem in only] for some in (tables, figures))
    for path in tables:
        failures += run_table(path, overlays=_overlays(path, own), columns=COLUMNS, **settings)
    if tables and dynunet_minutes != 0 and not render_only:
        _train_dynunets(out, device, own, dynunet_minutes)
        for path in tables:
            run_table(path, overlays=_overlays(path, own), columns=COLUMNS, **{**settings, "render_only": True})
    for path in figures:
        failures += run_table(path, overlays=_overlays(path, own), **settings)
    keys = {key for path in (*tables, *figures) for key in _keys(path, own, out, device, seeds)}
    _write_page(out, [out / f"{path.stem}.md" for path in (*tables, *figures)], own, device, seeds, keys)
    return failures


def _keys(path: Path, own: Path, out: Path, device: str, seeds: int) -> set[str]:
    """Of the runs of a table or figure: beside them may lie those of another budget."""
    table = read_table(path, list(CASES), "validation")
    planned = plan_runs(table, out / "data", bundle_folder(), _overlays(path, own), range(seeds), device)
    return {run.key for runs in planned.values() for run in runs}


def _overlays(path: Path, own: Path) -> list[str]:
    """Overlays below every row: the small tables name theirs, those of the paper get them."""
    return [str(own)] if path.parent.name == "small" else [*OVERLAYS, str(own)]


def _train_dynunets(out: Path, device: str, own: Path, minutes: float | None) -> None:
    """A DynUNet for each dataset that has none of this time, which is what BoltzFormer's training took on both."""
    processor_time = torch.device(device).type == "cpu"
    for name in CASES:
        target = out / "data" / "dynunet" / name
        if minutes is None:
            path = bundle_folder() / "configs" / "tables" / f"{SMALL[0]}.json"
            table = read_table(path, list(CASES), "validation")
            run = next(iter(plan_runs(table, out / "data", bundle_folder(), [str(own)], device=device).values()))[0]
            effort = read_json(out / "runs" / run.key / RESULT, "result of BoltzFormer's run")["effort"]
            minutes = effort["cpu_seconds" if processor_time else "seconds"] / 60
        if _trained_for(target) == minutes:
            continue
        (target / "slices.csv").unlink(missing_ok=True)  # of another time
        train_and_score(
            out / "data" / name,
            target,
            minutes,
            patch=(64, 64, 32),
            filters=16,
            device=device,
            processor_time=processor_time,
        )


def _trained_for(target: Path) -> float | None:
    """Minutes of a DynUNet that is trained and scored; None where there is none."""
    if not (target / "slices.csv").is_file():
        return None
    return float(read_json(target / "training.json", "account of DynUNet's training")["minutes"])


def write_part(content: Mapping[str, Any], target: Path, training: int, validation: int) -> Path:
    """A dataset that lists cases of another, spread over its lists; their files stay where they are.

    Args:
        content: of a `dataset.json` with both lists and absolute paths.
        target: folder of the new `dataset.json`.
        training: number of cases.
        validation: number of cases.
    """
    lists = {}
    for section, count in (("training", training), ("validation", validation)):
        cases = content[section]
        lists[section] = cases[:: max(1, len(cases) // count)][:count]
    write_json(target / "dataset.json", {**content, "test": [], **lists})
    return target


def _own(budget: Path | None, backbone_weights: Path | None) -> dict[str, Any]:
    if budget is not None and not budget.is_file():
        raise InputError(f"--budget: {budget} does not exist.")
    content: dict[str, Any] = {} if budget is None else json.loads(budget.read_text(encoding="utf-8"))
    if backbone_weights is None:
        return {"pretrained": False, **content}
    if not backbone_weights.is_file():
        raise InputError(f"--backbone-weights: {backbone_weights} does not exist.")
    return {"backbone_weights": str(backbone_weights.resolve()), "pretrained": False, **content}


def _write_page(out: Path, made: Sequence[Path], own: Path, device: str, seeds: int, keys: Collection[str]) -> None:
    settings = json.loads((bundle_folder() / OVERLAYS[-1]).read_text(encoding="utf-8"))
    settings.update(json.loads(own.read_text(encoding="utf-8")))
    start = "a pretrained backbone" if settings.get("backbone_weights") else "a random start"
    slices = settings["samples_per_epoch"] * settings["max_epochs"]
    cases = ", ".join(f"{training} + {validation} cases of {name}" for name, (training, validation) in CASES.items())
    files = [file for file in sorted((out / "runs").glob(f"*/{RESULT}")) if file.parent.name in keys]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    hours = sum(result["effort"]["cpu_seconds"] for result in results) / 3600
    prompts, size = settings["prompts_per_slice"], settings["network_def#image_size"]
    head = f"""# A small proof of the chain

**These are not the paper's experiments, and no results about the method.** Each row was trained on {slices} slices with
{prompts} prompts each, from {start} and a random decoder, with the small network (TinyViT, {size} px;
sentence encoder frozen); the paper trained for up to 40 epochs on 32 GPUs.
{cases} (training + validation) were used, and rows
are scored on the validation cases. What the page shows: every table and figure comes out of one command, and what a
row's training cost stands beside it.

Made on {datetime.now(UTC):%Y-%m-%d} with {_machine(device)}: {len(results)} runs, {hours:.2f} processor hours of
training, {seeds} seed(s). Pairs are equal in all rows; CPU s is the processor time of a row's training. Each DynUNet
had the processor time of the first row for its own dataset alone.
"""
    texts = [path.read_text(encoding="utf-8") for path in made if path.is_file()]
    print(f"Written: {write_text(out / 'experiments_small.md', head + chr(10) + _said_once(texts))}")


def _said_once(texts: Sequence[str]) -> str:
    """Several tables and figures on one page; a note that stands under several of them stands once, at the end."""
    lines = [text.splitlines() for text in texts]
    counts = Counter(line for text in lines for line in set(text) if line.startswith("- "))
    common = [line for line, count in counts.items() if count > 1]
    parts = ["\n".join(line for line in text if line not in common).strip() for text in lines]
    return "\n\n".join([*parts, "### Of all that stands above", "\n".join(common)]) + "\n"


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{torch.get_num_threads()} thread(s) of {models[0] if models else platform.processor() or 'a CPU'}"


if __name__ == "__main__":
    typer.run(main)
