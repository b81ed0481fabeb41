"""Which precision a machine is fast in."""

from __future__ import annotations

import torch


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX on x86, BF16 on Arm).

    Elsewhere PyTorch emulates them, which is slower than float32.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
