"""Which precision a CPU is fast in."""

import platform

import pytest
import torch
from boltzformer.cpu import cpu_has_bfloat16


@pytest.mark.parametrize(
    ("machine", "amx", "avx512", "onednn", "expected"),
    [
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),
        ("x86_64", False, False, True, False),  # AVX-512 without bfloat16: oneDNN says yes, and emulates
        ("aarch64", False, False, True, True),
        ("arm64", False, False, False, False),
    ],
)
def test_hardware_counts_and_emulation_does_not(monkeypatch, machine, amx, avx512, onednn, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert cpu_has_bfloat16() is expected
