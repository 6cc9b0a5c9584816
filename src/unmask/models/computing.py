"""What computes the products of quantised weights on a device."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from . import onednn

_LOG = logging.getLogger(__name__)


def int8_runs(device: torch.device) -> str:
    """What computes products of 8 bits on a device: ``"onednn"``, ``"triton"``, ``"int_mm"`` (torch's), or ``"dense"``:
    as floating point numbers, where there is nothing for integers.
    """
    if device.type == "cuda":
        return "triton" if uses_triton(device) else "int_mm"
    return "onednn" if device.type == "cpu" and onednn.works(torch.float32) else "dense"


def uses_triton(device: torch.device) -> bool:
    """Whether :mod:`unmask.models.fused` computes on a device: on CUDA, where Triton is found and right."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        from . import fused
    except ImportError as error:
        _LOG.warning("products of few bits run without Triton: %s", error)
        return False
    return fused.works(device if device.index is not None else torch.device("cuda", torch.cuda.current_device()))


def described(kind: str | None, device: torch.device) -> str:
    """What computes the products of the layers, in words."""
    if kind == "int4":
        by = " by Triton" if uses_triton(device) else ""
        return f"weights in 4 bits by groups, made floating point numbers{by} as they are used"
    if kind != "int8":
        return "floating point numbers"
    how = {
        "onednn": f"oneDNN ({_instructions()})",
        "triton": "Triton",
        "int_mm": "torch._int_mm",
        "dense": "floating point numbers, for there is no product of integers here",
    }
    return f"weights and activations in 8 bits, computed by {how[int8_runs(device)]}"


def _instructions() -> str:
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    named = {"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"}
    return next((name for flag, name in named.items() if has.get(flag)), torch.backends.cpu.get_cpu_capability())
