"""What a layer computes beside attention, eager or compiled by ``torch.compile``."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ModelError


@dataclass(frozen=True)
class Kernels:
    """The two functions of a block; both are given the block first, and read nothing but its weights and sizes.

    Attributes:
        project: of ``hidden [B, Q, C]`` and ``rotary [B or 1, Q, 2, D]``: rotated queries and keys, and values,
            ``[B, Q, heads, D]``.
        feed: of ``hidden``: normalised, through SwiGLU, ``[B, Q, C]``.
        compiled: whether they are.
    """

    project: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    feed: Callable[[Any, Tensor], Tensor]
    compiled: bool = False


def compiled(plain: Kernels, device: str, backend: str = "inductor", rounds: bool = False) -> Kernels:
    """The same, compiled; each when it is first called, which takes tens of seconds.

    Once for all layers and for any number of rows and slots, and once more where there is one row, one slot, or rotary
    rows that differ by row. On a CPU ``feed`` stays as it is: nearly all of it is products, and up to some hundred
    positions calling compiled code costs more than a fused activation saves. Where weights are in 8 bits it is compiled
    there too: products are short, and rounding their inputs is fused with what stands before them.

    Args:
        plain: the functions.
        device: "cpu", "cuda", ...
        backend: of ``torch.compile``.
        rounds: inputs of products are rounded to 8 bits.

    Raises:
        ModelError: there is nothing here to compile with.
    """
    if backend == "inductor" and (lacking := _lacking(device)):
        raise ModelError(f"compile: {lacking}")
    make: Any = torch.compile
    project = make(plain.project, dynamic=True, backend=backend)
    feed = plain.feed if device == "cpu" and not rounds else make(plain.feed, dynamic=True, backend=backend)
    return Kernels(project, feed, compiled=True)


def _lacking(device: str) -> str | None:
    """What inductor does not find here, in words."""
    if device == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++", "cl"))):
        return "no C++ compiler found; torch.compile needs g++ or clang++ on the path"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "no triton found; torch.compile needs this package on a GPU"
    return None
