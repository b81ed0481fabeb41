"""What tests of several rooms build on: a small real network, and volumes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.error_report import find_input_error
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from monai.bundle import ConfigParser, ConfigWorkflow

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"

SMALL_NETWORK: dict[str, Any] = {
    "initial_weights": None,
    "prompts_per_slice": 1,
    "negative_share": 0.0,
    "existence_weight": 0.0,
    "cpu_bfloat16": False,
    "network_def#image_encoder#name": "test_resnet",
    "network_def#image_encoder#freeze_batch_norm": False,
    "network_def#image_encoder#window_sizes": None,
    "network_def#image_encoder#add_position": False,
    "network_def#existence": False,
    "network_def#image_size": 64,
    "network_def#dim": 32,
    "network_def#num_queries": 4,
    "network_def#num_layers": 3,
    "network_def#num_heads": 4,
    "network_def#feedforward_dim": 64,
    "network_def#encoder_layers": 1,
    "network_def#text_encoder": {
        "_target_": "boltzformer.networks.text_encoder.ClipTextEncoder",
        "layers": 1,
        "width": 32,
        "heads": 4,
    },
    "pretrained": False,
}
"""An overlay: every part of the network, each as small as it goes (timm's `test_resnet` has 0.4 M weights)."""

SMALL_PARTS = {key: value for key, value in SMALL_NETWORK.items() if key.startswith("network_def#")}
"""Of these, what inference.json has too."""


@contextmanager
def raises_input_error(match: str) -> Iterator[None]:
    """As `pytest.raises(InputError, match=...)`, for an error that MONAI's config parser has wrapped."""
    with pytest.raises((InputError, RuntimeError)) as caught:
        yield
    mistake = find_input_error(caught.value)
    assert mistake is not None, caught.value
    assert re.search(match, str(mistake)), str(mistake)


def run_inference(overlay: Path, weights: Path, dataset_dir: Path, output_dir: Path, **settings: Any) -> None:
    """Run inference.json with an overlay in this process, as `python -m monai.bundle run inference` does."""
    workflow = ConfigWorkflow(
        [str(BUNDLE / "configs" / "inference.json"), str(overlay)],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        checkpoint=str(weights),
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        **{"window": "soft_tissue", "device": "cpu", **settings},
    )
    workflow.initialize()
    workflow.run()


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def small_network(seed: int = 6, **changes: Any) -> torch.nn.Module:
    """The network of train.json with `SMALL_NETWORK`; with this seed its masks are neither full nor empty."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser.update({**SMALL_NETWORK, **changes})
    torch.manual_seed(seed)
    return parser.get_parsed_content("network_def").eval()


def body(shape: tuple[int, int, int] = (40, 36, 6), seed: int = 0) -> np.ndarray:
    """A CT-like volume in RAS order: air, an off-centre trunk, a few bright spots; int16 HU, no symmetry."""
    draw = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    array = np.full(shape, -1000.0)
    array[(x - 0.1) ** 2 / 0.6 + (y + 0.15) ** 2 / 0.4 < 1] = 30
    for _ in range(5):
        centre = draw.uniform(-0.5, 0.5, 3)
        array[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 / 4 < 0.03] = 180
    return np.clip(array + draw.normal(0, 15, shape), -1024, 3071).astype(np.int16)


def in_orientation(array: np.ndarray, affine: np.ndarray, axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same volume, stored along other axes: array and affine."""
    now = nib.orientations.io_orientation(affine)
    wanted = nib.orientations.axcodes2ornt(axcodes)
    change = nib.orientations.ornt_transform(now, wanted)
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(array, change))
    return turned, affine @ nib.orientations.inv_ornt_aff(change, array.shape)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray, qform: int = 1, sform: int = 1) -> Path:
    """Write a volume with the given form codes."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def noted_spacing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What every call of `Segmenter.segment` from now on is told of the voxel size; the volumes are segmented."""
    told: list[bool] = []
    whole = Segmenter.segment

    def noting(self: Segmenter, *arguments: Any, **settings: Any) -> Any:
        told.append(settings["spacing_known"])
        return whole(self, *arguments, **settings)

    monkeypatch.setattr(Segmenter, "segment", noting)
    return told
