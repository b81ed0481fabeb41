"""Several seeded decodings: their mean, their entropy, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.inference.api import Segmenter
from boltzformer.inference.ensemble import EnsembleSliceInferer, entropy_of_logits
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from scipy.stats import entropy

from tests.support import BUNDLE, body, raises_input_error

PROMPTS = ["liver", "lung nodule"]


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    return entropy(np.stack([probability, 1 - probability]), base=2)


@pytest.fixture
def volume() -> torch.Tensor:
    array = np.clip((body() + 160) / 400.0, 0, 1).astype(np.float32)
    return torch.from_numpy(array)[None, None]


def single(network: torch.nn.Module, volume: torch.Tensor, seed: int) -> np.ndarray:
    logits = PromptedSliceInferer(PROMPTS, seed=seed, progress=False)(volume, network)
    return logits.float().sigmoid().numpy()


def test_mean_of_the_single_decodings(network, volume):
    several = EnsembleSliceInferer(PROMPTS, seed=3, progress=False, decodings=4)(volume, network)
    maps = [single(network, volume, seed) for seed in range(3, 7)]
    assert max(np.abs(a - maps[0]).max() for a in maps[1:]) > 1e-3  # the seeds do differ
    mean = np.mean(maps, axis=0)
    np.testing.assert_allclose(several.float().sigmoid().numpy(), mean, atol=2e-3)
    np.testing.assert_allclose(entropy_of_logits(several), binary_entropy(mean), atol=5e-3)


def test_one_decoding_is_the_plain_inferer(network, volume):
    one = EnsembleSliceInferer(PROMPTS, progress=False, decodings=1)(volume, network)
    plain = PromptedSliceInferer(PROMPTS, progress=False)(volume, network)
    np.testing.assert_allclose(one.float().numpy(), plain.float().numpy(), atol=2e-2)
    assert torch.equal(one >= 0, plain >= 0)


def test_each_slice_is_encoded_once(network, volume, monkeypatch):
    counted, encode = [], type(network).encode_image

    def count(self, image):
        counted.append(len(image))
        return encode(self, image)

    monkeypatch.setattr(type(network), "encode_image", count)
    EnsembleSliceInferer(PROMPTS, progress=False, decodings=5)(volume, network)
    assert sum(counted) == volume.shape[-1]


def test_entropy_of_logits_equals_scipy_also_at_the_ends():
    logits = torch.linspace(-16, 16, 65)
    p = logits.double().sigmoid().numpy()
    np.testing.assert_allclose(entropy_of_logits(logits), binary_entropy(p), atol=1e-6)


def test_no_decoding_is_refused():
    with raises_input_error("decodings is 0"):
        EnsembleSliceInferer(decodings=0)


def test_overlay_writes_probability_and_entropy(weights, overlay, tmp_path):
    from monai.bundle import run

    nib.save(nib.Nifti1Image(body(), np.diag([-1.0, 1, 2, 1])), tmp_path / "scan.nii.gz")
    (tmp_path / "prompts.json").write_text(json.dumps({"nodule": "lung nodule in chest CT"}))
    configs = [BUNDLE / "configs" / name for name in ("inference.json", "uncertainty.json")]
    run(
        config_file=[str(path) for path in [*configs, overlay]],
        **{"bundle_root": str(BUNDLE), "dataset_dir": None, "checkpoint": str(weights), "decodings": 3},
        **{"found#path": str(tmp_path / "scan.nii.gz"), "prompt_list": str(tmp_path / "prompts.json")},
        **{"output_dir": str(tmp_path / "out"), "window": "soft_tissue", "device": "$torch.device('cpu')"},
    )
    folder = tmp_path / "out" / "scan"
    probability, found = (nib.load(folder / f"nodule_{kind}.nii.gz") for kind in ("probability", "entropy"))
    assert found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(found.affine, np.diag([-1.0, 1, 2, 1]))
    np.testing.assert_allclose(found.get_fdata(), binary_entropy(probability.get_fdata()), atol=1e-5)
    segmenter = Segmenter.from_bundle(
        BUNDLE, weights, [overlay, "configs/uncertainty.json"], device="cpu", window="soft_tissue", decodings=3
    )
    result = segmenter.segment(Path(tmp_path / "scan.nii.gz"), "lung nodule in chest CT")
    np.testing.assert_allclose(next(iter(result.probabilities.values())), probability.get_fdata(), atol=1e-6)
