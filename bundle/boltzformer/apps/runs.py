"""`boltzformer train`, `finetune` and `evaluate`: the bundle's configs, started from a shell."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from monai.bundle import run

from boltzformer.apps.console import OUTPUT_DIR, one_line_errors
from boltzformer.apps.release import shipped_weights
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.settings import check_run

_EVALUATED = ("$", "@", "%")

Dataset = Annotated[Path, typer.Argument(help="Folder in Decathlon layout, or a datalist JSON.")]
Output = Annotated[Path, typer.Option(*OUTPUT_DIR, help="Folder of the run: checkpoints, log, curves.")]
Overlay = Annotated[list[str] | None, typer.Option(help="Config on top, such as network/tiny.json; repeatable.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the config, such as max_epochs=5; repeatable.")
]


def train(dataset: Dataset, output: Output, overlay: Overlay = None, setting: Setting = None) -> None:
    """Train a network; its best weights become OUTPUT/model.pt."""
    with one_line_errors():
        start("training", ["train.json"], dataset, overlay, setting, trained(output))


def finetune(
    dataset: Dataset,
    output: Output,
    weights: Annotated[Path | None, typer.Option(help="To start from; the bundle's by default.")] = None,
    keep_known: Annotated[
        bool, typer.Option("--keep-known", help="Also teach what the weights know, by their own masks made before.")
    ] = False,
    overlay: Overlay = None,
    setting: Setting = None,
) -> None:
    """Go on training from weights, with the network and the settings that they were trained with."""
    with one_line_errors():
        first = weights or shipped_weights()
        if not first.is_file():
            raise InputError(f"no weights at {first}: name a checkpoint with --weights.")
        given = {**trained(output), "initial_weights": plain_path(first)}
        configs = ["train.json", "fine_tune.json"]
        if not keep_known:
            start("training", configs, dataset, overlay, setting, given)
            return
        from boltzformer.apps.known_labels import DATALIST, label_known  # needs the network

        def label(values: dict[str, Any]) -> None:
            same = {key: values[key] for key in ("validation_share", "seed", "device") if key in values}
            label_known(dataset, output / "known", first, **same)

        given["dataset_dir"] = [plain_path(dataset), plain_path(output / "known" / DATALIST)]
        given["validate#dataset#data#dataset"] = plain_path(dataset)  # what is new chooses the best epoch
        start("training", configs, dataset, overlay, setting, given, label)


def evaluate(
    dataset: Dataset,
    output: Output,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint; the bundle's by default.")] = None,
    overlay: Overlay = None,
    setting: Setting = None,
) -> None:
    """Score weights on labelled volumes: tables by object size, a report."""
    with one_line_errors():
        file = weights or shipped_weights()
        if not file.is_file():
            raise InputError(f"no weights at {file}: name a checkpoint with --weights.")
        given = {"output_dir": plain_path(output), "checkpoint": plain_path(file)}
        start("evaluating", ["evaluate.json"], dataset, overlay, setting, given)


def start(
    run_id: str,
    configs: list[str],
    dataset: Path,
    overlays: list[str] | None,
    settings: list[str] | None,
    given: dict[str, Any],
    before: Callable[[dict[str, Any]], None] = lambda values: None,
) -> None:
    """Run a config of the bundle.

    Args:
        run_id: key of the config that is run.
        configs: names in `configs/`.
        dataset: becomes `dataset_dir`.
        overlays: names in `configs/`, or paths.
        settings: `key=value` texts.
        given: values of further keys.
        before: gets all values, once they were checked and before the run.

    Raises:
        InputError: a file is missing, a setting is no plain value, or a key is not known.
    """
    files = run_files(configs, overlays, dataset)
    values = {"bundle_root": plain_path(bundle_folder()), "dataset_dir": plain_path(dataset), **given}
    values.update(parse_setting(text) for text in settings or [])
    check_run(files, values, "--set ")
    before(values)
    run(run_id=run_id, config_file=[str(file) for file in files], **values)


def run_files(configs: Sequence[str], overlays: Sequence[str] | None, dataset: Path) -> list[Path]:
    """The config files of a run, each on top of those before.

    Args:
        configs: names in `configs/`.
        overlays: names in `configs/`, or paths.
        dataset: that the run is for; looked for with them.

    Raises:
        InputError: one of them is missing.
    """
    folder = bundle_folder() / "configs"
    files = [folder / name for name in configs]
    for overlay in overlays or []:
        files.append(folder / overlay if (folder / overlay).is_file() else Path(overlay))
    for file in [*files, dataset]:
        if not file.exists():
            raise InputError(f"{file}: no such file or folder.")
    return files


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is JSON where it can be, else text.

    Args:
        text: as it was typed.

    Returns:
        the key and the value.

    Raises:
        InputError: there is no `=`, or the value is text that the config would evaluate.
    """
    key, equals, written = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r}: expected key=value.")
    try:
        value = json.loads(written)
    except ValueError:
        value = written
    for entry in _texts(value):
        if entry.lstrip().startswith(_EVALUATED) or "#" in entry:
            raise InputError(
                f"--set {key}: {entry!r} would be evaluated by the config; a value is data here. Put an expression "
                "into an overlay, or start `python -m monai.bundle run`."
            )
    return key.strip(), value


def plain_path(path: Path) -> str:
    """An absolute path as the config takes it.

    Raises:
        InputError: a `#` in it, which the config would replace.
    """
    text = str(path.expanduser().resolve())
    if "#" in text:
        raise InputError(f"{text}: MONAI's configs take no path with a `#` in it; rename the folder.")
    return text


def trained(output: Path) -> dict[str, Any]:
    """Where a training writes, as values of the config."""
    return {"output_dir": plain_path(output), "checkpoint": plain_path(output / "model.pt")}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for entry in value for text in _texts(entry)] if isinstance(value, list) else []
