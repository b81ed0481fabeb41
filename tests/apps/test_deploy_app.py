"""The bundle inside MONAI Deploy's operators, as plain Python. Run by `make test-deploy`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from tests.apps.label_server import shipped_network_weights
from tests.support import BUNDLE, body
from tests.volumes.small_series import straight, write_small_series

pytest.importorskip("monai.deploy", reason="MONAI Deploy has an environment of its own: make test-deploy")
hd = pytest.importorskip("highdicom")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with random weights of the shipped architecture."""
    target = tmp_path_factory.mktemp("deploy") / "bundle"
    unwanted = shutil.ignore_patterns("model.pt", "runs", "cache", "__pycache__")
    shutil.copytree(BUNDLE, target, ignore=unwanted)
    shipped_network_weights(target / "models" / "model.pt")
    return target


def run(bundle: Path, folder: Path, module: str, *arguments: object) -> str:
    """Run a command of the bundle's copy in a folder that is not the bundle's; gives what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def write_series(folder: Path) -> Path:
    """A small series that shows something."""
    voxels = body((40, 36, 5))
    for index, file in enumerate(write_small_series(folder, straight(5), shape=(40, 36))):
        image = pydicom.dcmread(file)
        image.PixelData = (voxels[:, :, index].T + 1024).astype("uint16").tobytes()
        image.save_as(file)
    return folder


def segments(path: Path) -> dict[tuple[str, str], bytes]:
    """Pixels of each frame that holds any, by segment label and source image."""
    found = hd.seg.segread(path)
    labels = {item.SegmentNumber: item.SegmentLabel for item in found.SegmentSequence}
    shared = found.SharedFunctionalGroupsSequence[0]  # holds what all frames have in common, as a single segment
    frames = {}
    for frame, pixels in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True):
        identified = frame if "SegmentIdentificationSequence" in frame else shared
        label = labels[identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        if pixels.any():
            frames[label, str(source)] = pixels.tobytes()
    return frames


@pytest.mark.parametrize("which", ["small", "real"])
def test_the_masks_are_the_command_lines_voxel_for_voxel(bundle, which, tmp_path, request):
    if which == "small":
        series = write_series(tmp_path / "series")
    else:
        series = request.getfixturevalue("real_data_dir") / "dicom_ct"
    prompts = ["lung nodule in chest CT"]
    deploy = "boltzformer.apps.deploy_app"
    said = run(bundle, tmp_path / "a", deploy, series, tmp_path / "deploy", *prompts, "--bundle", bundle)
    assert f"prompt '{prompts[0]}' is far" in said
    warn = ["--uneven-spacing", "warn", "--device", "cpu", "-f", "dicom-seg", "-o", tmp_path / "ours"]
    said = run(bundle, tmp_path / "a", "boltzformer", "segment", series, *prompts, *warn)
    assert f"prompt '{prompts[0]}' is far" in said
    (theirs,) = (tmp_path / "deploy").glob("*.dcm")
    (ours,) = (tmp_path / "ours").glob("*.seg.dcm")
    assert segments(theirs) == segments(ours)
    assert segments(ours)


def test_the_operator_takes_the_bundle_as_it_is(bundle, tmp_path):
    """Without prompts it is Deploy's own operator, which reads the bundle's list; P prompts come as one channel."""
    series = write_series(tmp_path / "series")
    run(bundle, tmp_path / "a", "boltzformer.apps.deploy_app", series, tmp_path / "out", "--bundle", bundle)
    (made,) = (tmp_path / "out").glob("*.dcm")
    assert segments(made)
    assert len(hd.seg.segread(made).SegmentSequence) == 3
