"""The bundle's configs as the commands read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.data.slice_transforms import ResizeSliced
from boltzformer.errors import InputError
from boltzformer.weights import load_weights


def file_list(files: Iterable[str | Path]) -> str:
    """Config files as `--config_file` of MONAI's command line takes several."""
    return "[" + ",".join(f"'{file}'" for file in files) + "]"


def read_bundle(bundle: Path, overlays: list[str], overrides: dict[str, Any], config: str = "evaluate") -> ConfigParser:
    """A config of a bundle, with overlays (relative to the bundle) and values on top."""
    parser = ConfigParser()
    files = [bundle / "configs" / f"{config}.json", *(bundle / overlay for overlay in overlays)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{missing[0]} not found; overlays are named relative to {bundle}.")
    parser.read_config([str(file) for file in files])
    parser.update({"bundle_root": str(bundle), **overrides})
    return parser


def network_and_slices(parser: ConfigParser) -> tuple[Any, SliceDataset]:
    """What evaluation would score, to be looked at: the network with its weights, and the slices as it sees them.

    Args:
        parser: of `evaluate.json` (`read_bundle`).

    Returns:
        the network in evaluation mode, and the examples; with a body's view in the recipe, through that.
    """
    network = parser.get_parsed_content("network").eval()
    load_weights(network, parser.get_parsed_content("checkpoint"))
    dataset, recipe = parser.get_parsed_content("dataset"), parser.get_parsed_content("recipe")
    if recipe.body_view:
        size = parser.get_parsed_content("network_def").image_size
        dataset.transform = ResizeSliced(size, pixel_size_mm=recipe.pixel_size_mm, body_view=True)
    return network, dataset
