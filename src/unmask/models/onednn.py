"""Products of integers by oneDNN, which torch's CPU builds bring along: on weights packed once, scales included."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_ZERO = 128  # what oneDNN is given for an activation of 0
_SLOW = 30  # times a product in float32: no kernel for integers, but what oneDNN has for want of one


def prepacked(values: Tensor) -> Tensor:
    """A weight ``[N, K]`` int8 in the order in which oneDNN multiplies; only oneDNN reads it."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(values.contiguous(), None)
    return packed


def product(values: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The integers ``values [M, K]`` times a packed weight and its scales, ``[M, N]``.

    Inputs are given without signs, as 128 more, which the product takes off again: for signed ones oneDNN has kernels
    with AMX alone.
    """
    zeros, unsigned = torch.zeros(len(scale), dtype=torch.int64), values.view(torch.uint8) ^ _ZERO
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, _ZERO, weight, scale, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return out


@lru_cache(maxsize=2)
def works(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies integers to this dtype here: the builds of torch and the processors differ.

    Rightly: without VNNI its sums saturate. And by a kernel that is made for it: where none fits, oneDNN has one that
    takes a thousand times as long and says nothing.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-127, 128, shape, generator=draw, dtype=torch.int8) for shape in ((8, 256), (64, 256)))
    wide_x, wide_weight = x.float(), weight.float()
    try:
        packed, ones = prepacked(weight), torch.ones(len(weight))
        found = product(x, packed, ones, dtype)
        took, usual = _seconds(lambda: product(x, packed, ones, dtype)), _seconds(lambda: F.linear(wide_x, wide_weight))
    except (RuntimeError, AttributeError, TypeError):
        return False
    return torch.equal(found, F.linear(wide_x, wide_weight).to(dtype)) and took < _SLOW * usual


def _seconds(call: Callable[[], Tensor]) -> float:
    """The least of some calls: other work on the machine makes them longer."""
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)
