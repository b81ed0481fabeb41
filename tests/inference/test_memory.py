"""Peak memory of a large volume, measured on the whole process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from tests.support import BUNDLE, write_json

LIMIT_GB = 6.0


@pytest.mark.slow
def test_a_volume_of_a_thousand_slices_stays_under_6_gb(weights, overlay, tmp_path):
    noise = np.random.default_rng(0).integers(-1000, 400, (512, 512), dtype=np.int16)
    volume = np.empty((512, 512, 1000), np.int16)
    for k in range(volume.shape[2]):
        volume[:, :, k] = np.roll(noise, k, axis=0)
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(nib.Nifti1Image(volume, np.diag([-0.8, -0.8, 1.0, 1.0])), scans / "big.nii.gz")
    os.link(scans / "big.nii.gz", scans / "second.nii.gz")  # the first must be gone when the second is read
    prompts = write_json(tmp_path / "prompts.json", ["nodule in lung CT"])
    files = f"['configs/inference.json','{overlay}']"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--window", "lung"]
    command += ["--dataset_dir", str(scans), "--prompt_list", str(prompts)]
    command += ["--checkpoint", str(weights), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    subprocess.run(command, cwd=BUNDLE, check=True, capture_output=True)
    # of the largest child so far, in kB; the parser, the network and the volume's pipeline together
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    assert nib.load(tmp_path / "out" / "second.nii.gz").shape == (512, 512, 1000)
    assert peak < LIMIT_GB, f"{peak:.2f} GB"
