"""Which number formats a device calculates in."""

from __future__ import annotations

import torch


def native(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """``dtype``, or float32 where a CPU does not calculate in it (16-bit formats without hardware for them)."""
    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not cpu_has_bfloat16())
    return torch.float32 if slow and device.type == "cpu" else dtype


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in probes)
