"""gzip by ISA-L and by Python's own module: the same content either way, and damage is noticed."""

from __future__ import annotations

import gzip
import io
import logging

import nibabel as nib
import numpy as np
import pytest
from boltzformer.errors import InputError
from boltzformer.volumes import deflate
from boltzformer.volumes.nifti_files import read_nibabel

CONTENT = np.random.default_rng(0).integers(0, 9, 200_000).astype(np.uint8).tobytes()


@pytest.fixture(params=["isal", "gzip"])
def library(request, monkeypatch):
    """Each of the two; the choice is made again."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(deflate, "igzip", None)
    deflate._library.cache_clear()
    yield request.param
    deflate._library.cache_clear()


def packed() -> bytes:
    stream = io.BytesIO()
    with deflate.pack(stream) as file:
        file.write(CONTENT)
    return stream.getvalue()


def test_there_and_back(library, tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(packed())
    with deflate.open_gzip(path) as file:
        assert file.read() == CONTENT
    assert gzip.decompress(packed()) == CONTENT
    assert packed() == packed()  # no time and no name inside
    assert len(packed()) < 0.7 * len(CONTENT)


@pytest.mark.parametrize("damage", ["cut", "checksum", "inside"])
def test_damage_is_one_error(library, tmp_path, damage):
    voxels = np.random.default_rng(0).integers(0, 500, (30, 30, 30)).astype(np.int16)
    path = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    assert np.array_equal(read_nibabel(path), voxels)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "checksum":
        content[-8] ^= 1
    else:
        content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_nibabel(path)


def test_one_line_where_it_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(deflate, "igzip", None)
    deflate._library.cache_clear()
    with caplog.at_level(logging.INFO):
        assert gzip.decompress(packed()) == gzip.decompress(packed()) == CONTENT
    deflate._library.cache_clear()
    assert len([line for line in caplog.messages if "isal" in line]) == 1
