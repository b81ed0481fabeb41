"""Which precision a CPU is fast in."""

from __future__ import annotations

import platform

import torch


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX on x86, BF16 on Arm).

    Elsewhere PyTorch emulates them, which is slower than float32. oneDNN's own answer counts an x86 CPU that emulates,
    so it is asked on Arm alone.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
