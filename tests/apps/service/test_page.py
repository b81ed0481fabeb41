"""The page in a real browser: a scan and a prompt go in, the mask is seen, the files come out.

Run by `make test-page`; skips where Chromium is not installed.
"""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from tests.apps.service.conftest import TOKEN
from tests.support import body, save_nifti
from tests.volumes.small_series import straight, write_small_series

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox")
PROMPTS = ["lung nodule in chest CT", "liver"]
SECONDS = 240_000
AFFINE = np.array([[-3, 0, 0, 60], [0, -3, 0, 50], [0, 0, 5, -20], [0, 0, 0, 1]], float)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian package chromium, or set CHROMIUM)")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_WEBGL)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(weights: Path, overlay: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "boltzformer", "serve", "--port", str(port), "--device", "cpu"]
    command += ["--weights", str(weights), "--overlay", str(overlay), "--window", "soft_tissue"]
    service = subprocess.Popen(command, env={**os.environ, "BOLTZFORMER_TOKEN": TOKEN})
    try:
        until = time.monotonic() + SECONDS / 1000
        while True:
            assert service.poll() is None, "the service ended"
            assert time.monotonic() < until, "the service did not start"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1)
                break
            except OSError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        service.terminate()
        service.wait(60)


def expected(text: str) -> bool:
    """Lines of the console that these tests bring about: the missing token, and a file that is no scan."""
    no_scan = ("That file does not appear to be NIFTI", "Failed to parse NIfTI file broken.nii")
    return "401" in text or any(words in text for words in no_scan)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page with its token given; nothing may go wrong on its console, nor be asked of another place."""
    opened = browser.new_page(viewport={"width": 1280, "height": 820})
    opened.set_default_timeout(SECONDS)
    wrong: list[str] = []
    opened.on("console", lambda said: said.type == "error" and not expected(said.text) and wrong.append(said.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    local = (address, "blob:", "data:")
    opened.on("request", lambda asked: asked.url.startswith(local) or wrong.append(asked.url))
    opened.goto(address)
    opened.fill("#token", TOKEN)
    opened.press("#token", "Enter")
    opened.locator("#about", has_text="CPU").wait_for()  # no script is evaluated: the page's policy forbids it
    yield opened
    opened.close()
    assert wrong == []


def colored(page: Any, tmp_path: Path) -> int:
    """Pixels of the viewer that are no grey."""
    page.wait_for_timeout(500)
    page.locator("#canvas").screenshot(path=tmp_path / "canvas.png")
    pixels = matplotlib.image.imread(tmp_path / "canvas.png")[60:, :, :3]
    return int((np.ptp(pixels, axis=2) > 0.25).sum())


def ask(page: Any, *prompts: str) -> None:
    page.fill("#prompts", "\n".join(prompts))
    page.click("#go")
    page.wait_for_selector("#results:not([hidden]), #status.bad")


def test_a_nifti_file_by_keyboard_and_mouse(page, segmenter, tmp_path):
    scan = save_nifti(tmp_path / "ct.nii.gz", body((40, 36, 8)), AFFINE)
    result = segmenter.segment(scan, PROMPTS, modality="CT")
    page.click("#go")
    assert "Give a scan first" in page.inner_text("#status")
    page.set_input_files("#file", scan)
    page.wait_for_selector("#slice:enabled")
    assert "ct.nii.gz" in page.inner_text("#chosen")
    assert page.inner_text("#place") == "4 / 8" or page.inner_text("#place") == "5 / 8"
    page.select_option("#modality", "CT")
    grey = colored(page, tmp_path)
    ask(page, *PROMPTS)
    assert "Done in" in page.inner_text("#status"), page.inner_text("#status")
    # numbers
    told = page.locator("#findings .told").all_inner_texts()
    for text, mask in zip(told, result.masks.values(), strict=True):
        millilitres = mask.sum() * 45 / 1000
        shown = f"{millilitres:.0f} ml" if millilitres >= 100 else f"{float(f'{millilitres:.3g}'):g} ml"
        assert shown in text or (not mask.any() and "not found" in text)
        assert "probability" not in text  # this network has no existence head
    assert page.locator("#chart .existence").count() == 0
    assert page.locator("#chart path").count() == 2 + len(PROMPTS)
    # the mask is seen, and goes when its box is emptied
    assert any(mask.any() for mask in result.masks.values())
    assert colored(page, tmp_path) > grey + 200
    for index in range(len(PROMPTS)):
        page.uncheck(f"#finding-{index}")
    assert colored(page, tmp_path) <= grey + 50
    # the keyboard goes through slices
    page.focus("#slice")
    page.keyboard.press("Home")
    assert page.inner_text("#place").startswith("1 / 8")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#place").startswith("2 / 8")
    # the file that is saved is the Python API's, bit for bit
    with page.expect_download() as saving:
        page.click("text=Masks (NIfTI)")
    saved = gzip.decompress(Path(saving.value.path()).read_bytes())
    assert np.array_equal(np.asarray(nib.Nifti1Image.from_bytes(saved).dataobj), result.label_map)


def test_a_dicom_folder(page, tmp_path):
    write_small_series(tmp_path / "series", straight(6), shape=(40, 32))
    page.set_input_files("#folder", tmp_path / "series")
    assert "6 files" in page.inner_text("#chosen")
    ask(page, *PROMPTS)
    assert "Done in" in page.inner_text("#status"), page.inner_text("#status")
    assert page.inner_text("#place").endswith("/ 6")
    with page.expect_download() as saving:
        page.click("text=DICOM SEG")
    assert saving.value.suggested_filename == "scan.seg.dcm"
    assert Path(saving.value.path()).read_bytes()[128:132] == b"DICM"


def test_what_goes_wrong_is_said_in_one_line(page, tmp_path):
    (tmp_path / "broken.nii").write_bytes(bytes(1000))
    page.set_input_files("#file", tmp_path / "broken.nii")
    page.select_option("#modality", "CT")
    ask(page, "<img src=x onerror=alert(1)> nodule")
    said = page.inner_text("#status")
    assert "broken.nii" in said
    assert "/tmp" not in said
