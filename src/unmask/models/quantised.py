"""Weights in 8 or 4 bits: how they are stored, and the layers that compute with them.

``int8``: a weight is an integer from -127 to 127 times the scale of its output channel. The inputs of a product are
rounded in the same way, with a scale for each token that is found as it arrives (dynamic), so that the product is one
of integers: exact, and the same for a token alone and in a batch.

``int4``: a weight is an integer from 0 to 15 times the scale of its group of 64 (or 32, 16) inputs, plus the least
weight of that group. Inputs stay as they are, and weights are made floating point numbers again some at a time, as a
product needs them: this saves memory, not time.

On a GPU both are computed by :mod:`unmask.models.fused`, where Triton is found and right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ModelError
from . import onednn
from .computing import int8_runs, uses_triton
from .experts import Groups, Stack
from .transformer import Linear

_MOST = 127  # of an int8 weight
_TOKEN = 127  # of an activation; a scale rounded to bfloat16 makes that 127.498 at most, which is 127
_LEAST = 2.0**-120  # scale of a token, so that it has an inverse
_LEVELS = 15  # of an int4 weight
_GROUPS = (64, 32, 16)  # inputs that share a scale: the first that divides the inputs
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # ranges that are tried for a group; the one of least error is taken
_WORDS = 4  # columns unpacked at once, as one integer
_AT_ONCE = 1 << 20  # int4 weights that are floating point numbers at any time: more fall out of a core's cache
_ROUNDED_AT_ONCE = 1 << 17  # activations of a CPU that are rounded at any time, for the same reason
_CUDA_LEAST, _CUDA_MULTIPLE = 17, 8  # torch._int_mm on CUDA: rows at least, and what its sizes are multiples of


@dataclass(frozen=True)
class Int8:
    """A weight ``[N, K]`` in 8 bits: ``values [N, K]`` int8 times ``scale [N]`` float32."""

    values: Tensor
    scale: Tensor
    name: ClassVar[str] = "int8"
    extra: ClassVar[tuple[str, ...]] = ("scale",)

    @staticmethod
    def of(weight: Tensor) -> Int8:
        """Round a weight to the nearest, one scale for each output."""
        wide = weight.float()
        scale = wide.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _MOST
        return Int8((wide / scale[:, None]).round_().clamp_(-_MOST, _MOST).to(torch.int8), scale)

    @staticmethod
    def joined(parts: Sequence[Int8]) -> Int8:
        """The parts of a stacked layer, one after the other."""
        return Int8(torch.cat([p.values for p in parts]), torch.cat([p.scale for p in parts]))

    def apart(self, count: int) -> list[Int8]:
        """So many equal parts, one below the other."""
        return [Int8(*parts) for parts in zip(*(t.chunk(count) for t in (self.values, self.scale)), strict=True)]

    def dense(self) -> Tensor:
        """The weight that is meant, ``[N, K]`` float32."""
        return self.values.float() * self.scale[:, None]

    def layer(self, bias: nn.Parameter | None, dtype: torch.dtype, device: torch.device) -> Linear:
        """A product with this weight."""
        return Int8Linear(self, bias, device)


@dataclass(frozen=True)
class Int4:
    """A weight ``[N, K]`` in 4 bits, ``values [N, K / 2]`` uint8 (the even inputs in the low halves): each times its
    group's ``scale`` plus its group's ``least``, both ``[N, K / G]`` bfloat16.
    """

    values: Tensor
    scale: Tensor
    least: Tensor
    name: ClassVar[str] = "int4"
    extra: ClassVar[tuple[str, ...]] = ("scale", "least")

    @staticmethod
    def of(weight: Tensor) -> Int4:
        """Round a weight, a scale and a least value for each group; of some ranges the one of least squared error.

        Raises:
            ModelError: the inputs cannot be divided into groups.
        """
        inputs = weight.shape[1]
        size = next((g for g in _GROUPS if inputs % g == 0), None)
        if size is None:
            raise ModelError(
                f"int4 needs a number of inputs that {_GROUPS[-1]} divides; a layer of {inputs} inputs has none"
            )
        rows = max(1, _AT_ONCE // inputs)
        return Int4.joined([_rounded(piece, size) for piece in torch.split(weight, rows)])

    @staticmethod
    def joined(parts: Sequence[Int4]) -> Int4:
        """The parts of a stacked layer, one after the other."""
        return Int4(*(torch.cat([getattr(p, name) for p in parts]) for name in ("values", "scale", "least")))

    def apart(self, count: int) -> list[Int4]:
        """So many equal parts, one below the other."""
        fields = self.values, self.scale, self.least
        return [Int4(*parts) for parts in zip(*(t.chunk(count) for t in fields), strict=True)]

    @property
    def whole(self) -> Tensor:
        """The integers, ``[N, K]`` uint8."""
        return torch.stack([self.values & 15, self.values >> 4], -1).flatten(1)

    def dense(self) -> Tensor:
        """The weight that is meant, ``[N, K]`` float32."""
        outputs, groups = self.scale.shape
        wide = self.whole.view(outputs, groups, -1).float()
        return wide.mul_(self.scale.float()[..., None]).add_(self.least.float()[..., None]).flatten(1)

    def layer(self, bias: nn.Parameter | None, dtype: torch.dtype, device: torch.device) -> Linear:
        """A product with this weight."""
        return Int4Linear(self, bias, dtype, device)


def _rounded(weight: Tensor, size: int) -> Int4:
    """Some outputs of a weight, by groups of ``size`` inputs."""
    groups = weight.float().view(len(weight), -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    best: tuple[Tensor, ...] | None = None
    for shrink in _SHRINK:
        centre, half = (high + low) / 2, (high - low) / 2 * shrink
        scale = (2 * half / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
        least = (centre - half).bfloat16()
        wide_scale, wide_least = scale.float()[..., None], least.float()[..., None]
        rounded = ((groups - wide_least) / wide_scale).round_().clamp_(0, _LEVELS)
        error = (rounded * wide_scale).add_(wide_least).sub_(groups).square_().sum(-1)
        if best is None:
            best = rounded, scale, least, error
            continue
        wins, found = error < best[3], (rounded, scale, least, error)
        masks = (wins[..., None], wins, wins, wins)
        best = tuple(torch.where(mask, new, old) for mask, new, old in zip(masks, found, best, strict=True))
    assert best is not None
    flat = best[0].to(torch.uint8).view(len(weight), -1)
    return Int4(flat[:, ::2] | flat[:, 1::2] << 4, best[1], best[2])


Packed = Int8 | Int4
KINDS: dict[str, type[Packed]] = {"int8": Int8, "int4": Int4}


class Quantised(Linear):
    """A product with a weight ``[N, K]`` that is stored in few bits."""

    def __init__(self, outputs: int, inputs: int, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)  # that of Linear would make a weight
        self.out_features, self.in_features = outputs, inputs
        self.register_parameter("bias", bias)

    def _hold(self, name: str, tensor: Tensor) -> None:
        """A tensor that is not trained."""
        self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def part(self, x: Tensor, begin: int) -> Tensor:
        """The outputs from number ``begin`` on, alone."""
        raise NotImplementedError


class Int8Linear(Quantised):
    """A product of integers: inputs are rounded to 8 bits as they arrive, with a scale for each token."""

    scale: Tensor

    def __init__(self, weight: Int8, bias: nn.Parameter | None, device: torch.device) -> None:
        """Take over a weight, ``[N, K]``."""
        outputs, inputs = weight.values.shape
        super().__init__(outputs, inputs, bias)
        self.runs = int8_runs(device)
        values = weight.values.to(device).contiguous()
        self._hold("weight", onednn.prepacked(values) if self.runs == "onednn" else values)
        self._hold("scale", weight.scale.to(device))
        self._tails: dict[int, Int8Linear] = {}

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the same dtype."""
        if self.runs == "triton":
            return self.fused(x)
        values, size = per_token(x.reshape(-1, self.in_features))
        out = self.product(values, size.dtype)
        out = out.mul_(size) if self.bias is None else torch.addcmul(self.bias.to(size.dtype), out, size)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def fused(self, x: Tensor) -> Tensor:
        """The same, in two kernels."""
        from . import fused

        values, size = fused.rounded(x.reshape(-1, self.in_features), _TOKEN, _LEAST)
        out = fused.product8(values, size, self.weight, self.scale, self.bias, x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def product(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The integers ``values [M, K]`` times the weight and its scales, ``[M, N]`` bfloat16 or float32."""
        if self.runs == "onednn":
            into = dtype if onednn.works(dtype) else torch.float32
            return onednn.product(values, self.weight, self.scale, into).to(dtype)
        if self.runs == "int_mm" and self.in_features % _CUDA_MULTIPLE == 0 == self.out_features % _CUDA_MULTIPLE:
            lacking = max(0, _CUDA_LEAST - len(values))
            sums = torch._int_mm(F.pad(values, (0, 0, 0, lacking)) if lacking else values, self.weight.t())
            return (sums[: len(values)] * self.scale).to(dtype)
        wide = self.weight.to(torch.float32)  # whose sums are exact up to 2 ** 24
        return (F.linear(values.to(torch.float32), wide) * self.scale).to(dtype)

    def part(self, x: Tensor, begin: int) -> Tensor:
        """The outputs from number ``begin`` on, alone; the first call keeps a second copy of these weights."""
        if begin not in self._tails:
            values = self.plain()
            bias = None if self.bias is None else nn.Parameter(self.bias[begin:], requires_grad=False)
            tail = Int8(values[begin:].contiguous(), self.scale[begin:])
            self._tails[begin] = Int8Linear(tail, bias, self.scale.device)
        out: Tensor = self._tails[begin](x)
        return out

    def plain(self) -> Tensor:
        """The integers ``[N, K]``, as they are stored."""
        return self.weight.to_dense().t().contiguous() if self.weight.is_mkldnn else self.weight.data

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Linear:
        """A copy with memory of its own: torch copies no packed weights."""
        bias = None if self.bias is None else nn.Parameter(self.bias.clone(), requires_grad=False)
        return Int8Linear(Int8(self.plain().clone(), self.scale.data.clone()), bias, self.scale.device)


def left_to_itself() -> None:
    """Let ``torch.compile`` call what it cannot look into as it is: packed weights, and kernels that are ready.

    No decorator, which would import the compiler with this module.
    """
    for kind, name in ((Int8Linear, "product"), (Int8Linear, "fused"), (Int4Linear, "fused")):
        if not hasattr(getattr(kind, name), "_torchdynamo_disable"):
            setattr(kind, name, torch.compiler.disable(getattr(kind, name)))  # type: ignore[no-untyped-call]


class Int4Linear(Quantised):
    """A product whose weights are made floating point numbers some outputs at a time."""

    packed: Tensor
    scale: Tensor
    least: Tensor

    def __init__(self, weight: Int4, bias: nn.Parameter | None, dtype: torch.dtype, device: torch.device) -> None:
        """Take over a weight, ``[N, K]``; ``dtype``: of the inputs."""
        outputs, groups = weight.scale.shape
        super().__init__(outputs, 2 * weight.values.shape[1], bias)
        most = outputs if device.type == "cuda" else max(32, _AT_ONCE // self.in_features // 32 * 32)
        self.count = -(-min(outputs, most) // _WORDS) * _WORDS  # outputs of a piece
        self.pieces = -(-outputs // self.count)
        self.fuses = dtype != torch.float64 and uses_triton(device)
        lacking = self.pieces * self.count - outputs

        def laid(x: Tensor) -> Tensor:
            """``[N, K or K / G]`` as ``[pieces, K or K / G, count]``: what is scaled alike lies side by side."""
            filled = F.pad(x, (0, 0, 0, lacking))
            return filled.view(self.pieces, self.count, -1).transpose(1, 2).contiguous()

        whole = laid(weight.whole.to(device)).view(self.pieces, groups, 2, -1, self.count)
        self._hold("packed", whole[:, :, 0] | whole[:, :, 1] << 4)  # [pieces, groups, G / 2, count]
        self._hold("scale", laid(weight.scale.to(device)).to(dtype)[:, :, None])
        self._hold("least", laid(weight.least.to(device)).to(dtype)[:, :, None])

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the same dtype."""
        return self._outputs(x, 0)

    def part(self, x: Tensor, begin: int) -> Tensor:
        """The outputs from number ``begin`` on, alone."""
        return self._outputs(x, begin)

    def fused(self, x: Tensor, begin: int) -> Tensor:
        """The outputs from number ``begin`` on of ``x [M, K]``, without the bias; all weights are one piece."""
        from . import fused

        stored = (t[0, ..., begin : self.out_features] for t in (self.packed, self.scale, self.least))
        return fused.product4(x, *stored)

    def _outputs(self, x: Tensor, begin: int) -> Tensor:
        flat = x.reshape(-1, self.in_features)
        out = self.fused(flat, begin) if self.fuses else self._unpacked(flat, begin)
        out = out if self.bias is None else out + self.bias[begin:]
        return out.reshape(*x.shape[:-1], self.out_features - begin)

    def _unpacked(self, flat: Tensor, begin: int) -> Tensor:
        first = begin // self.count
        out = flat.new_empty(self.pieces - first, len(flat), self.count)
        room = Room(self)
        for index in range(first, self.pieces):
            torch.mm(flat, room.dense(index), out=out[index - first])
        skipped = begin - first * self.count
        return out.transpose(0, 1).flatten(1)[:, skipped : skipped + self.out_features - begin]


class QuantisedStack(Stack):
    """The weights of all experts in few bits, a product for each expert that has rows."""

    def __init__(self, count: int, weight: Packed, dtype: torch.dtype, device: torch.device) -> None:
        """Take over the weights of ``count`` experts, one below the other."""
        nn.Module.__init__(self)
        self.count, self.shape = count, weight.values.shape
        self.experts = nn.ModuleList(part.layer(None, dtype, device) for part in weight.apart(count))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """As many elements as are stored, on no device: the products hold them."""
        return torch.empty(self.shape, dtype=torch.int8, device="meta")

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """``[R, outputs]`` of rows ``x [R, inputs]``, each with its expert's weight."""
        ends = groups.ends.tolist() if groups.host is None else groups.host
        spans = zip(self.experts, [0, *ends[:-1]], ends, strict=True)
        parts = [expert(x[begin:end]) for expert, begin, end in spans if begin < end]
        return torch.cat(parts) if parts else x.new_empty(0, self.shape[0] // self.count)


class Room:
    """Memory in which the weights of an :class:`Int4Linear` are unpacked, piece by piece."""

    def __init__(self, layer: Int4Linear) -> None:
        self.layer = layer
        _, groups, half, count = layer.packed.shape
        self.bytes = layer.packed.new_empty(groups, 2, half, count)
        self.wide = layer.scale.new_empty(groups, 2 * half, count)

    def dense(self, index: int) -> Tensor:
        """The weights of piece ``index``, ``[K, count]``; the next call overwrites them."""
        layer, words = self.layer, self.bytes.view(torch.int32)
        packed = layer.packed[index].view(torch.int32)  # four at a time: a CPU shifts no single bytes
        torch.bitwise_and(packed, 0x0F0F0F0F, out=words[:, 0])
        torch.bitwise_right_shift(packed, 4, out=words[:, 1])
        words[:, 1] &= 0x0F0F0F0F
        self.wide.copy_(self.bytes.view(self.wide.shape))
        return torch.addcmul(layer.least[index], self.wide, layer.scale[index], out=self.wide).flatten(0, 1)


def per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round ``[M, K]`` to int8, a scale for each row.

    Returns:
        The integers ``[M, K]``, and the scales ``[M, 1]``, bfloat16 where ``x`` is, else float32: exactly those that
        were divided by.
    """
    dtype = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    whole = x.is_cuda or torch.compiler.is_compiling()
    many = max(1, len(x) if whole else _ROUNDED_AT_ONCE // x.shape[1])
    values, sizes = torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), 1, dtype=dtype)
    for at in range(0, len(x), many):
        piece = slice(at, at + many)
        wide = x[piece].to(torch.float32, copy=True)  # at once: operations on mixed dtypes take several times as long
        most = torch.maximum(wide.amax(-1, keepdim=True), wide.amin(-1, keepdim=True).neg_())
        size = (most / _TOKEN).clamp_min_(_LEAST).to(dtype)
        values[piece] = wide.mul_(size.float().reciprocal()).round_()
        sizes[piece] = size
    return values, sizes
