"""What a table of the paper asks to be run: rows x seeds, each with a key of its own.

A run's key is a hash of everything that decides its result: the merged configs, the datasets' `dataset.json`, the seed
and the kind of device. Two rows that come to the same configs, in one table or in several, are one run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from boltzformer.apps.experiment_definition import Table
from boltzformer.errors import InputError
from boltzformer.json_file import read_json

_MULTI = {"train": "configs/multi_gpu_train.json", "evaluate": "configs/multi_gpu_evaluate.json"}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        key: hash of what decides the result.
        label: the first row that asks for it.
        overlays: all files, in order, relative to the bundle.
        settings: all config values on top.
        datasets: folders, or datalists.
        section: the list that is evaluated.
        seed: of everything.
    """

    key: str
    label: str
    overlays: tuple[str, ...]
    settings: Mapping[str, Any]
    datasets: tuple[Path, ...]
    section: str
    seed: int


def plan_runs(
    table: Table,
    data: Path,
    bundle: Path,
    overlays: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    processes: int = 1,
) -> dict[str, list[Run]]:
    """The runs of each row.

    Args:
        table: what to run.
        data: folder of the datasets, see `dataset_path`.
        bundle: the bundle's root.
        overlays: the user's own, between the table's and the row's (a small network, a small budget).
        seeds: each row is run once for each.
        device: "cpu" or "cuda"; the kind decides the result (batch size, mixed precision).
        processes: above 1, the multi-GPU overlays come first.

    Returns:
        row label to its runs, one a seed; empty for rows with published numbers alone.

    Raises:
        InputError: a dataset or one of its lists, or an overlay, is missing; two datasets have one name.
    """
    paths = tuple(_dataset(data, name, table.section) for name in table.datasets)
    _check_names_apart(paths)
    stamps = [hashlib.sha256(datalist_of(path).read_bytes()).hexdigest() for path in paths]
    planned: dict[str, list[Run]] = {}
    for row in table.rows:
        planned[row.label] = []
        if row.overlays is None:
            continue
        files = (*table.overlays, *overlays, *row.overlays)
        settings = {**table.settings, **row.settings}
        recipe = {
            "configs": {kind: _merged(bundle, kind, files, settings, processes) for kind in ("train", "evaluate")},
            "datasets": stamps,
            "section": table.section,
            "device": device.split(":")[0],
            "processes": processes,
        }
        for seed in seeds:
            text = json.dumps({**recipe, "seed": seed}, sort_keys=True, default=str)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            planned[row.label].append(Run(key, row.label, files, settings, paths, table.section, seed))
    return planned


def config_files(bundle: Path, kind: str, overlays: Sequence[str], processes: int = 1) -> list[Path]:
    """The config files of a run in the order in which they are merged.

    Args:
        bundle: the bundle's root.
        kind: "train" or "evaluate".
        overlays: relative to the bundle, or absolute.
        processes: above 1, the multi-GPU overlay comes right after the base.

    Raises:
        InputError: an overlay does not exist.
    """
    names = [f"configs/{kind}.json", *([_MULTI[kind]] if processes > 1 else []), *overlays]
    files = [bundle / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"{missing[0]}: no such overlay; name them relative to {bundle}, or absolute.")
    return files


def evaluation_settings(bundle: Path, overlays: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What overlays and settings say about evaluation: keys of evaluate.json but the network.

    The checkpoint brings the network, and what belongs to training alone has no place in evaluate.json.

    Args:
        bundle: the bundle's root.
        overlays: relative to the bundle, or absolute; a later one wins.
        settings: on top of them.

    Returns:
        config keys and values.
    """
    found: dict[str, Any] = {}
    for name in overlays:
        found.update(read_json(bundle / name, "overlay"))
    found.update(settings)
    known = set(read_json(bundle / "configs" / "evaluate.json", "config")) - {"network_def"}
    return {key: value for key, value in found.items() if key.lstrip("+").split("#")[0] in known}


def _merged(bundle: Path, kind: str, overlays: Sequence[str], settings: Mapping[str, Any], processes: int) -> Any:
    parser = ConfigParser()
    if kind == "evaluate":
        parser.read_config([str(file) for file in config_files(bundle, kind, (), processes)])
        return [parser.get(), evaluation_settings(bundle, overlays, settings)]
    parser.read_config([str(file) for file in config_files(bundle, kind, overlays, processes)])
    parser.update(dict(settings))
    return parser.get()


def dataset_path(data: Path, name: str) -> Path:
    """A dataset of a table: the folder `data/name`, or, where there is none, the datalist `data/name.json`."""
    folder, listed = data / name, data / f"{name}.json"
    return listed if listed.is_file() and not folder.is_dir() else folder


def _dataset(data: Path, name: str, section: str) -> Path:
    path = dataset_path(data, name)
    file = datalist_of(path)
    if not file.is_file():
        raise InputError(f"{path}: no such dataset; `boltzformer prepare` makes it (docs/experiments.md).")
    content = read_json(file, "dataset.json")
    for needed in dict.fromkeys(("training", "validation", section)):
        if not isinstance(content, dict) or not content.get(needed):
            raise InputError(
                f"{file}: has no `{needed}` list, so a split would be drawn anew for each seed; prepare the "
                "dataset, or choose another --section."
            )
    return path.resolve()


def own_name(dataset: Path) -> str:
    """The name by which the cases of a folder or datalist call their dataset, in scored slices too."""
    return str(read_json(datalist_of(dataset), "datalist").get("name") or column_of(dataset))


def _check_names_apart(datasets: Sequence[Path]) -> None:
    named: dict[str, Path] = {}
    for dataset in datasets:
        name = own_name(dataset)
        if named.setdefault(name, dataset) != dataset:
            raise InputError(
                f"{named[name]} and {dataset} have one `name`, {name!r}, and their slices would stand in one column: "
                "give one another `name` in its JSON."
            )


def datalist_of(dataset: Path) -> Path:
    """The JSON that lists a dataset's cases, see `dataset_path`."""
    return dataset if dataset.suffix == ".json" else dataset / "dataset.json"


def column_of(dataset: Path) -> str:
    """The name by which tables and results call a dataset: its folder's, or its datalist's without the ending."""
    return dataset.name.removesuffix(".json")
