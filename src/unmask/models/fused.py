"""Products of weights in few bits on a GPU, in Triton: torch's operations read and write memory many times for one.

Triton comes with torch on Linux. ``TRITON_INTERPRET=1`` runs these on a CPU, for tests.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

Tile = tuple[int, int, int, int, int]  # rows, outputs and inputs computed at once; warps, stages

_MOST4 = 64  # rows up to which int4 weights are made floating point numbers inside the product, not before it
_SHORTEST = 16  # sums that Triton makes products of
_ENOUGH = 768  # pieces of a product at a time
_NEAREST = tl.constexpr(12582912.0)  # 1.5 x 2 ** 23: adding and subtracting it rounds a float32 to the nearest integer
_TIES = 0.01  # share of integers that may be the neighbour: half way between two, the last bit of a scale decides
_fit: dict[Any, int] = {}  # stages of kernels that need more memory of a multiprocessor than there is
_LOG = logging.getLogger(__name__)


def _launch(kernel: Any, grid: tuple[int, ...], *given: Any, warps: int, stages: int, **more: Any) -> None:
    """Run a kernel on the device of what it is given, with as many stages as fit."""
    device = next((x.device for x in given if isinstance(x, Tensor) and x.is_cuda), None)
    key = kernel.fn.__name__, device, *(x for x in given if isinstance(x, int)), warps
    for count in range(min(stages, _fit.get(key, stages)), 0, -1):
        try:
            with nullcontext() if device is None else torch.cuda.device(device):
                kernel[grid](*given, num_warps=warps, num_stages=count, **more)
            return
        except triton.runtime.errors.OutOfResources:
            if count == 1:
                raise
            _fit[key] = count - 1


@triton.jit
def _round_row(x, values, sizes, inputs: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    most, broken = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for begin in range(0, inputs, BLOCK):
        wide = tl.load(x + row * inputs + begin + at, mask=begin + at < inputs, other=0.0).to(tl.float32)
        most, broken = tl.maximum(most, tl.abs(wide)), broken + wide * 0.0  # maxima leave out what is no number
    size = tl.div_rn(tl.max(most, 0) + tl.sum(broken, 0), MOST)
    size = tl.where(size < LEAST, LEAST, size).to(sizes.dtype.element_ty)
    tl.store(sizes + row, size)
    inverse = tl.div_rn(1.0, size.to(tl.float32))
    for begin in range(0, inputs, BLOCK):
        wide = tl.load(x + row * inputs + begin + at, mask=begin + at < inputs, other=0.0).to(tl.float32) * inverse
        tl.store(values + row * inputs + begin + at, (wide + _NEAREST - _NEAREST).to(tl.int8), mask=begin + at < inputs)


def rounded(x: Tensor, most: float, least: float) -> tuple[Tensor, Tensor]:
    """Integers and scales of ``x [M, K]``; see :func:`unmask.models.quantised.per_token`."""
    x = x.contiguous()
    values = torch.empty_like(x, dtype=torch.int8)
    sizes = x.new_empty(len(x), 1, dtype=x.dtype if x.dtype == torch.bfloat16 else torch.float32)
    if len(x):
        block = min(4096, triton.next_power_of_2(x.shape[1]))
        given, warps = (x, values, sizes, x.shape[1], most, least, block), max(4, block // 512)
        # a product added to a number in one step would be rounded once, where it must be twice
        _launch(_round_row, (len(x),), *given, warps=warps, stages=1, enable_fp_fusion=False)
    return values, sizes


@triton.jit
def _product8(
    values, sizes, weight, scale, bias, out, rows, outputs: tl.constexpr, inputs: tl.constexpr,
    BIASED: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    at = tl.arange(0, INPUTS)
    left = values + row[:, None].to(tl.int64) * inputs + at[None, :]
    right = weight + output[None, :].to(tl.int64) * inputs + at[:, None]
    total = tl.zeros([ROWS, OUTPUTS], tl.int32)
    for begin in range(0, inputs, INPUTS):
        a = tl.load(left + begin, mask=(row[:, None] < rows) & (begin + at[None, :] < inputs), other=0)
        b = tl.load(right + begin, mask=(output[None, :] < outputs) & (begin + at[:, None] < inputs), other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    kind = sizes.dtype.element_ty
    by_output = tl.load(scale + output, mask=output < outputs, other=0.0)[None, :]
    by_row = tl.load(sizes + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    found = (total.to(tl.float32) * by_output).to(kind).to(tl.float32) * by_row
    if BIASED:
        found += tl.load(bias + output, mask=output < outputs, other=0.0).to(kind).to(tl.float32)[None, :]
    place = row[:, None].to(tl.int64) * outputs + output[None, :]
    shown = (row[:, None] < rows) & (output[None, :] < outputs)
    tl.store(out + place, found.to(kind).to(out.dtype.element_ty), mask=shown)


def product8(
    values: Tensor, sizes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``values [M, K]`` times ``weight [N, K]``, both int8, times the scales ``[M, 1]`` and ``[N]``, plus a bias
    ``[N]``: ``[M, N]``.
    """
    out = values.new_empty(len(values), len(weight), dtype=dtype)
    rows, outputs, inputs, warps, stages = _tile8(len(values), len(weight))
    if len(values):
        tensors = values, sizes, weight, scale, scale if bias is None else bias, out
        given = *tensors, len(values), *weight.shape, bias is not None, rows, outputs, inputs
        grid = triton.cdiv(len(weight), outputs), triton.cdiv(len(values), rows)
        _launch(_product8, grid, *given, warps=warps, stages=stages)
    return out


def _tile8(rows: int, outputs: int) -> Tile:
    """The fastest of those tried on an H200, at the shapes of LLaDA-8B."""
    if rows <= 32:
        return 16 if rows <= 16 else 32, 64 if outputs > 16384 else 32, 256, 4, 4
    if rows <= 128:
        return 64 if rows <= 64 or outputs <= 8192 else 128, 64, 128, 4, 4
    return 128, 128, 128, 8, 3


@triton.jit
def _dense4(packed, scale, least, out, stride, outputs, HALF: tl.constexpr, OUTPUTS: tl.constexpr):
    group, at = tl.program_id(1).to(tl.int64), tl.arange(0, HALF)[:, None]
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)[None, :]
    shown = output < outputs
    both = tl.load(packed + (group * HALF + at) * stride + output, mask=shown, other=0)
    by = tl.load(scale + group * stride + output, mask=shown, other=0.0).to(tl.float32)
    low = tl.load(least + group * stride + output, mask=shown, other=0.0).to(tl.float32)
    first, second = (both & 15).to(tl.float32) * by + low, (both >> 4).to(tl.float32) * by + low
    place = out + (2 * group * HALF + at) * outputs + output
    tl.store(place, first.to(out.dtype.element_ty), mask=shown)
    tl.store(place + HALF * outputs, second.to(out.dtype.element_ty), mask=shown)


def dense4(packed: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    """The weight ``[K, N]`` of ``packed [K / G, G / 2, N]`` with ``scale`` and ``least`` ``[K / G, 1, N]``: the low
    halves of a group's bytes come before the high ones. All three may be the same columns of wider ones.
    """
    groups, half, outputs = packed.shape
    out = scale.new_empty(2 * half * groups, outputs)
    given = packed, scale, least, out, packed.stride(1), outputs, half, 256
    _launch(_dense4, (triton.cdiv(outputs, 256), groups), *given, warps=4, stages=1)
    return out


@triton.jit
def _product4(
    x, packed, scale, least, out, rows, stride, outputs, groups: tl.constexpr, parts: tl.constexpr,
    HALF: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    at, shown, start = tl.arange(0, HALF), output < outputs, tl.program_id(2) * (groups // parts)
    left = x + row[:, None].to(tl.int64) * groups * 2 * HALF + at[None, :] + start * 2 * HALF
    right = packed + (start * HALF + at[:, None]).to(tl.int64) * stride + output[None, :]
    by, low = scale + start * stride + output, least + start * stride + output
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    kind = x.dtype.element_ty
    for _ in range(0, groups // parts):
        both = tl.load(right, mask=shown[None, :], other=0)
        times = tl.load(by, mask=shown, other=0.0).to(tl.float32)[None, :]
        plus = tl.load(low, mask=shown, other=0.0).to(tl.float32)[None, :]
        a = tl.load(left, mask=row[:, None] < rows, other=0.0)
        b = tl.load(left + HALF, mask=row[:, None] < rows, other=0.0)
        first, second = (both & 15).to(tl.float32) * times + plus, (both >> 4).to(tl.float32) * times + plus
        total = tl.dot(a, first.to(kind), total, input_precision="ieee")
        total = tl.dot(b, second.to(kind), total, input_precision="ieee")
        left, right, by, low = left + 2 * HALF, right + HALF * stride, by + stride, low + stride
    place = (tl.program_id(2) * rows + row[:, None]).to(tl.int64) * outputs + output[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(row[:, None] < rows) & shown[None, :])


def product4(x: Tensor, packed: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    """``x [M, K]`` times the weight of :func:`dense4`, ``[M, N]``."""
    groups, half, outputs = packed.shape
    if len(x) > _MOST4 or half < _SHORTEST:
        return x @ dense4(packed, scale, least)
    columns, rows = 64, 16 if len(x) <= 16 else 32 if len(x) <= 32 else 64
    parts = _parts(triton.cdiv(outputs, columns), groups)
    sums = x.new_empty(parts, len(x), outputs, dtype=x.dtype if parts == 1 else torch.float32)
    if len(x):
        given = x.contiguous(), packed, scale, least, sums, len(x), packed.stride(1), outputs, groups, parts
        grid = triton.cdiv(outputs, columns), triton.cdiv(len(x), rows), parts
        _launch(_product4, grid, *given, half, rows, columns, warps=4, stages=5)
    return sums[0] if parts == 1 else sums.sum(0).to(x.dtype)


def _parts(columns: int, groups: int) -> int:
    """Parts of the inputs that are summed apart, for work for all multiprocessors; as many for any number of rows."""
    return next((n for n in (8, 4, 2) if columns * n <= _ENOUGH and groups % n == 0), 1)


@lru_cache(maxsize=8)
def works(device: torch.device) -> bool:
    """Whether these products are right on a device: what Triton makes for it is not known beforehand. Warns if not."""
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 128, generator=draw).to(device) for n in (40, 48))
    try:
        wrong = _wrong(x, weight)
    except Exception as error:  # whatever Triton, its compiler or the driver raise
        wrong = f"{type(error).__name__}: {str(error)[:200]}"
    if wrong:
        _LOG.warning("products of few bits run without Triton on %s: %s", device, wrong)
    return not wrong


def _wrong(x: Tensor, weight: Tensor) -> str:
    """Which of the kernels gives something else than torch, in words; "": none."""
    from .quantised import _LEAST, _TOKEN, Int4, Int4Linear, Int8, Room, per_token

    rows, sizes = rounded(x, _TOKEN, _LEAST)
    values, expected = (t.to(x.device) for t in per_token(x.cpu()))
    apart = (rows.int() - values.int()).abs().float()
    if not torch.allclose(sizes, expected, atol=0) or apart.max() > 1 or apart.mean() > _TIES:
        return "inputs are rounded wrongly"
    eight, four = Int8.of(weight), Int4Linear(Int4.of(weight.cpu()), None, x.dtype, torch.device("cpu"))
    found = product8(rows, torch.ones_like(sizes), eight.values, torch.ones_like(eight.scale), None, x.dtype)
    if not torch.equal(found, F.linear(rows.float(), eight.values.float())):
        return "a product of integers is wrong"
    dense = Room(four).dense(0).to(x.device)
    stored = [t[0].to(x.device) for t in (four.packed, four.scale, four.least)]
    if not torch.allclose(dense4(*stored), dense, atol=1e-5):
        return "weights of four bits are unpacked wrongly"
    if not torch.allclose(product4(x, *stored), x @ dense, rtol=1e-3, atol=1e-2):
        return "a product of weights of four bits is wrong"
    return ""
