"""What the kinds share: a small network with its checkpoint, whole files to damage, commands run in this process."""

from __future__ import annotations

import gzip
import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
import typer.main
import typer.testing
from boltzformer.apps import cli
from boltzformer.apps import segment as segment_command
from boltzformer.apps.service import reading
from boltzformer.apps.service import work as service_work
from boltzformer.apps.service.app import make_app
from boltzformer.apps.service.limits import Limits
from boltzformer.error_report import find_input_error
from boltzformer.errors import InputError, PartialFailure
from boltzformer.inference.api import Segmenter
from boltzformer.recipe_network import record_definition
from boltzformer.volumes.segmented import Algorithm
from boltzformer.volumes.volume import Volume
from boltzformer.weights import save_atomically
from fastapi.testclient import TestClient
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner

from tests.fuzz.sandbox import Sandbox
from tests.support import BUNDLE, body, small_network
from tests.volumes.small_series import straight, write_small_series

SHAPE = (20, 16, 3)
# the fuzzer is after readers, commands and the service; each input would wait for a larger network
SMALLEST = {"network_def#image_size": 32, "network_def#num_layers": 1, "network_def#num_queries": 2}
SERVICE_LIMITS = Limits(upload_mb=1.0, files=20, voxels=200_000, prompts=3, waiting=1, read_seconds=60)
AFFINE = np.array([[-1.5, 0, 0, 30.0], [0, 1.5, 0, -20.0], [0, 0, 4.0, 5.0], [0, 0, 0, 1]])


@dataclass
class Finished:
    """How a command ended.

    Attributes:
        code: its exit code.
        output: what the user sees.
        problems: what a user must never see.
    """

    code: int
    output: str
    problems: list[str] = field(default_factory=list)

    def judge(self, allowed: tuple[int, ...] = (0, 1, 2)) -> Finished:
        """Add what is wrong with code and text."""
        if self.code not in allowed:
            self.problems.append(f"exit code {self.code}")
        if "Traceback (most recent" in self.output:
            self.problems.append("a traceback reached the user")
        if self.code != 0 and not self.output.strip():
            self.problems.append(f"code {self.code} without a word")
        return self


class Unexplained(logging.Handler):
    """Collects failures that were caught without an `InputError` behind them: nobody foresaw them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and find_input_error(error) is None:
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            where = "" if last is None else f" at {last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
            self.found.append(f"caught without an InputError: {type(error).__name__}: {str(error)[:300]}{where}")


class Tools:
    """Made once for each process.

    Args:
        folder: for the checkpoint and the overlay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "model.pt"
        self.safetensors = folder / "model.safetensors"
        self.network = small_network(**SMALLEST)
        recipe = {
            "network": record_definition(self.network, BUNDLE / "models"),
            "input": {"window": "soft_tissue", "axis": 2, "num_adjacent": 0, "pixel_size_mm": None},
            "trained_on": {"modalities": ["CT"], "objects": {"liver": ["liver in abdominal CT"]}},
        }
        save_atomically(self.network.state_dict(), self.checkpoint, recipe)
        save_atomically(self.network.state_dict(), self.safetensors, recipe)
        self._make_segmenter = segment_command._make_segmenter
        self._open = ExitStack()
        # typer would build all commands anew for each input, which takes longer than most inputs do
        self._open.enter_context(mock.patch.object(typer.testing, "_get_command", cache(typer.main.get_command)))
        self.box: Sandbox | None = None
        self.real_reader = False
        self.unexplained = Unexplained()
        logger = logging.getLogger("boltzformer")
        logger.addHandler(self.unexplained)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False

    @cached_property
    def segmenter(self) -> Segmenter:
        """Built once; each build would take longer than a volume."""
        return Segmenter.from_bundle(BUNDLE, self.checkpoint, device="cpu")

    @cached_property
    def service(self) -> TestClient:
        """The HTTP service, started once; its worker reads in this process where `real_reader` is not set."""
        with mock.patch.object(tempfile, "tempdir", str(self.folder)):
            app = make_app(self.segmenter, Algorithm("BoltzFormer", "0", "ab" * 32), SERVICE_LIMITS)
            client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
            client.__enter__()
        self._open.callback(client.__exit__, None, None, None)
        self._open.enter_context(mock.patch.object(service_work, "read_volume", self._read_upload))
        return client

    def _read_upload(self, path: Path, *arguments: Any) -> Volume:
        if self.real_reader:  # a new process for each upload, as the service has it
            return reading.read_volume(path, *arguments)
        found = reading.read_here(path, *arguments)
        if isinstance(found, str):
            raise InputError(found)
        return found

    def close(self) -> None:
        """Stop the service."""
        self._open.close()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Around a command: nothing outside the output folder may change."""
        self.unexplained.found.clear()
        before = None if self.box is None else self.box.state()
        try:
            yield
        finally:
            if self.box is not None and before is not None:
                self.box.compare(before)

    def shell(self, *arguments: object) -> Finished:
        """`boltzformer ...`, in this process."""
        with self._watched():
            done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        finished = Finished(done.exit_code, done.output)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            finished.problems.append(_told(done.exception))
        finished.problems += self.unexplained.found
        return finished.judge()

    def segment(
        self,
        source: Path,
        out: Path,
        *options: object,
        prompts: tuple[str, ...] = ("liver",),
        fresh_network: bool = False,
    ) -> Finished:
        """`boltzformer segment` with the small network, the one in memory unless `fresh_network`."""
        segment_command._make_segmenter = self._make_segmenter if fresh_network else lambda *_: self.segmenter
        if "--weights" not in options:
            options = (*options, "--weights", self.checkpoint)
        try:
            return self.shell("segment", "-o", out, "--device", "cpu", *options, "--", source, *prompts)
        finally:
            segment_command._make_segmenter = self._make_segmenter

    def infer(self, source: Path, out: Path, prompt_list: Path) -> Finished:
        """configs/inference.json, with the network in memory."""
        with self._watched():
            code, output, problems = self._infer(source, out, prompt_list)
        return Finished(code, output, problems + self.unexplained.found).judge()

    def _infer(self, source: Path, out: Path, prompt_list: Path) -> tuple[int, str, list[str]]:
        try:
            workflow = ConfigWorkflow(
                str(BUNDLE / "configs" / "inference.json"),
                meta_file=str(BUNDLE / "configs" / "metadata.json"),
                logging_file=False,
                workflow_type="infer",
                bundle_root=str(BUNDLE),
                checkpoint=self.checkpoint,
                dataset_dir=source,
                output_dir=out,
                prompt_list=prompt_list,
                device=torch.device("cpu"),
                network=self.network,
            )
            workflow.initialize()
            workflow.run()
        except Exception as error:
            mistake = find_input_error(error)
            code = 1 if isinstance(mistake, PartialFailure) else 2
            return code, str(mistake), [_told(error)] if mistake is None else []
        return 0, "", []

    def call(self, work: Any, *arguments: Any) -> Finished:
        """A function of the package, an `InputError` counted as code 2."""
        try:
            with self._watched():
                work(*arguments)
        except InputError as error:
            return Finished(2, str(error)).judge()
        except Exception as error:
            return Finished(1, "raised", [_told(error)])
        return Finished(0, "")


def _told(error: BaseException) -> str:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else f" at {last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
    return f"raised {type(error).__name__}: {str(error)[:300]}{where}"


@cache
def nifti(dtype: str = "int16", two: bool = False, scaled: bool = False, trailing: int = 0) -> bytes:
    """A whole, uncompressed NIfTI file."""
    array = body(SHAPE).astype(dtype) if dtype != "uint8" else (body(SHAPE) > 100).astype(np.uint8)
    array = array.reshape(array.shape + (1,) * trailing)
    image = (nib.Nifti2Image if two else nib.Nifti1Image)(array, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    if scaled:
        header = np.frombuffer(bytes(content[:348]), nib.Nifti1Header.template_dtype).copy()
        header["scl_slope"], header["scl_inter"] = 2.0, -10.0
        content[:348] = header.tobytes()
    return bytes(content)


def label_map(seed: int = 0) -> bytes:
    """A whole NIfTI label map with the values 0, 1 and 2."""
    draw = np.random.default_rng(seed)
    array = np.zeros(SHAPE, np.uint8)
    array[4:9, 5 + int(draw.integers(3)) : 11, 1] = 1
    array[12:15, 3:8, 0:2] = 2
    image = nib.Nifti1Image(array, AFFINE)
    return image.to_bytes()


def zipped(content: bytes) -> bytes:
    """As .nii.gz holds it."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=1) as file:
        file.write(content)
    return buffer.getvalue()


@cache
def itk_file(suffix: str, compressed: bool, folder: Path) -> bytes:
    """A whole NRRD or MetaImage file."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(body(SHAPE).transpose(2, 1, 0)))
    image.SetSpacing((1.5, 1.5, 4.0))
    image.SetOrigin((3.0, -20.0, 5.0))
    path = folder / f"whole{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    return path.read_bytes()


@cache
def series(folder: Path) -> tuple[bytes, ...]:
    """The files of a whole CT series, slices of 12 x 10."""
    files = write_small_series(folder / "series", straight(3), shape=(12, 10))
    return tuple(file.read_bytes() for file in files)
