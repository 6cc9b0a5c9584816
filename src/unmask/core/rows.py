"""From masks to network rows, and rows of a batch in and out of any state."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

S = TypeVar("S")

# What one more rectangle costs, in positions' worth of work: launches, and weights read again. Measured on the CPU with
# the shipped model (a forward costs 4.5 ms and 75 us per position); on CUDA the estimate for 8 billion parameters.
_TILE_COST = {False: 48.0, True: 256.0}
# In one rectangle 32 rows of 1100 take 20 % longer, perhaps for activations of over 32 MiB, which the heap does not
# keep (core/heap.py). From 2048 to 20000 there is little in it.
_TILE_WORK = {False: 4096.0, True: math.inf}


@dataclass(frozen=True)
class Rows:
    """The positions one forward computes for some rows of a batch, gathered to the left of a ``[B, Q]`` rectangle.

    Attributes:
        row: ``[B]`` which rows of the batch these are; None: all, in order.
        members: the same on the host.
        position: ``[B, Q]`` absolute position of each network row; T (one behind the canvas) where the slot is empty.
        real: ``[B, Q]`` slots that hold a position; None when all do.
        keys: ``[B, S]`` stored positions that may be attended to, S = ``extent``; ``[B, Q, S]`` where the slots differ
            in this; None when all may.
        extent: positions from here on are not attended to by any row; rounded as slots are, see :func:`bucket`.
        total: T.
        whole: every position of the canvas is computed, in order.
        rotary: what the model's blocks need to know of ``position``; set by the model.
        scratch: what a cache hands from one layer to the next; gone after the last.
        layers: per layer the positions ``[B, N]`` that were computed in it (T: none), noted by caches that compute some
            of ``position`` only; empty: all of them, in every layer.
    """

    row: Tensor | None
    members: tuple[int, ...]
    position: Tensor
    real: Tensor | None
    keys: Tensor | None
    extent: int
    total: int
    whole: bool
    rotary: Tensor
    scratch: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Tensor] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """Q."""
        return self.position.shape[1]

    @cached_property
    def index(self) -> Tensor:
        """``[B * Q]`` where the slots are in a store seen as ``[B * (T + 1), ...]``."""
        return self.index_of(self.position)

    def index_of(self, position: Tensor) -> Tensor:
        """``[B * N]`` the same for any ``position [B, N]``."""
        row = torch.arange(len(position), device=position.device) if self.row is None else self.row
        return (position + row[:, None] * (self.total + 1)).reshape(-1)

    def of(self, whole: Tensor) -> Tensor:
        """What concerns these rows of ``whole``, which has a dimension 0 for all rows of the batch."""
        return whole if self.row is None else whole[self.row]

    def keys_of(self, slots: Tensor) -> Tensor | None:
        """``keys`` for some slots ``[B, N]`` as queries."""
        if self.keys is None or self.keys.dim() == 2:
            return self.keys
        return self.keys.gather(1, slots[:, :, None].expand(-1, -1, self.extent))

    @property
    def among(self) -> Tensor | None:
        """``keys`` with the slots themselves in place of stored positions: ``[B, Q]``, ``[B, Q, Q]`` or None."""
        if self.keys is None or self.keys.dim() == 2:
            return self.real
        at = self.position.clamp(max=self.extent - 1)[:, None].expand(-1, self.slots, -1)
        found = self.keys.gather(2, at)
        return found if self.real is None else found & self.real[:, None]

    def most(self, values: tuple[int, ...]) -> int:
        """Slots for the largest of these rows' values, given those of all rows of the batch; see :func:`bucket`."""
        return bucket(max(values[member] for member in self.members), self.slots, self.position.device)


def bucket(count: int, total: int, device: torch.device) -> int:
    """Slots for ``count`` positions, ``total`` at most. CUDA rounds up to few sizes, so that kernels chosen for a shape
    are used again; the CPU does not.
    """
    if device.type != "cuda" or count >= total:
        return count
    step = 8 if count <= 64 else 32 if count <= 512 else 128
    return min(-(-count // step) * step, total)


def tiles(compute: Tensor, keys: Tensor, work: Tensor) -> list[Rows]:
    """Lay out the positions to compute, rows that need about as much work side by side.

    A rectangle costs what its busiest row costs, times its rows: where a few rows of a batch need much (a refresh)
    and the others little, several rectangles are cheaper than one.

    Args:
        compute: ``[B, T]`` positions to compute.
        keys: ``[B, T]`` positions that may be attended to.
        work: ``[B]`` positions' worth of work.
    """
    if len(compute) == 1:
        return [gather(compute, keys)]
    groups = partition(work.tolist(), _TILE_COST[compute.is_cuda], _TILE_WORK[compute.is_cuda])
    if len(groups) == 1:
        return [gather(compute, keys)]
    rows = [torch.tensor(group, device=compute.device) for group in groups]
    return [gather(compute[row], keys[row], row, tuple(group)) for row, group in zip(rows, groups, strict=True)]


def partition(work: list[float], tile_cost: float, most: float = math.inf) -> list[list[int]]:
    """Rows in groups, such that the sum over groups of ``tile_cost + rows * the largest work`` is least; no group of
    several rows with more than ``most`` of that product.

    Groups are stretches of the rows in order of their work. The further a stretch's end, the later the best one begins:
    a queue of beginnings, each with the end from which it is the best, takes n log n steps (the least weight
    subsequence problem, Hirschberg and Larmore 1987).
    """
    order = sorted(range(len(work)), key=work.__getitem__)
    ranked = [work[row] for row in order]
    expiry = _expiry(ranked, most)
    best, begin = [0.0], [0]
    queue = deque([(0, 1)])

    def takeover(old: int, new: int) -> int:
        """The first end for which beginning at ``new`` is cheaper than at ``old``, if that may still be."""
        cheaper = bisect_right(ranked, (best[new] - best[old]) / (new - old), lo=new)
        return min(cheaper, expiry[old]) + 1

    for end, largest in enumerate(ranked, start=1):
        while len(queue) > 1 and queue[1][1] <= end:
            queue.popleft()
        start = queue[0][0]
        best.append(best[start] + tile_cost + (end - start) * largest)
        begin.append(start)
        while queue and takeover(queue[-1][0], end) <= max(queue[-1][1], end + 1):
            queue.pop()  # it would be the best nowhere
        first = takeover(queue[-1][0], end) if queue else end + 1
        if first <= len(order):
            queue.append((end, first))
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[begin[end] : end]))
        end = begin[end]
    return groups


def _expiry(ranked: list[float], most: float) -> list[int]:
    """The last end of a group that may begin at each place of ``ranked`` works; see :func:`partition` for ``most``."""
    last, start = [len(ranked)] * len(ranked), 0
    for end, largest in enumerate(ranked, start=1):
        low = max(0, end - max(1, int(most / largest))) if largest * end > most else 0
        while start < low:
            last[start] = end - 1
            start += 1
    return last


def gather(compute: Tensor, keys: Tensor, row: Tensor | None = None, members: tuple[int, ...] | None = None) -> Rows:
    """Lay out the positions to compute in one rectangle. Waits for the device once.

    Args:
        compute: ``[B, T]`` positions to compute.
        keys: ``[B, T]`` positions that may be attended to.
        row: ``[B]`` which rows of the batch these are, and ``members`` the same on the host; None: all.
    """
    members = tuple(range(len(compute))) if members is None else members
    total = compute.shape[1]
    place = torch.arange(total, device=compute.device)
    count = compute.sum(1)
    reach = torch.where(keys, place + 1, 0).amax(1)
    most, least, extent, seen = torch.stack([count.amax(), count.amin(), reach.amax(), keys.sum(1).amin()]).tolist()
    if seen != extent:  # without a mask attention is faster than with one: no rounding there
        extent = bucket(extent, total, compute.device)
    seeable = None if seen == extent else keys[:, :extent]
    nothing = place.new_empty(0)
    if least == total:
        return Rows(row, members, place.expand_as(compute), None, seeable, extent, total, True, nothing)
    slots = max(1, bucket(most, total, compute.device))
    if len(compute) == 1 and slots == most:
        return Rows(row, members, compute[0].nonzero().T, None, seeable, extent, total, False, nothing)
    order = torch.argsort((~compute).to(torch.uint8), dim=1, stable=True)[:, :slots]
    real = place[:slots] < count[:, None]
    position = torch.where(real, order, total)
    return Rows(row, members, position, None if least == slots else real, seeable, extent, total, False, nothing)


def computed(parts: Sequence[Rows], shape: Sequence[int], layers: int) -> Tensor:
    """``[B, T]`` (the ``shape``) how many of so many ``layers`` have computed each position of a forward.

    Args:
        parts: the rectangles of the forward, its layers run.
        shape: of the canvas.
        layers: of the model.
    """
    count = torch.zeros(shape[0], shape[1] + 1, dtype=torch.long, device=parts[0].position.device if parts else None)
    for rows in parts:
        row = torch.arange(shape[0], device=count.device) if rows.row is None else rows.row
        for position in rows.layers or [rows.position]:
            ones = torch.full_like(position, 1 if rows.layers else layers)
            count.index_put_((row[:, None], position), ones, accumulate=True)
    return count[:, :-1]


def select(state: S, rows: Tensor) -> S:
    """Keep some rows of any state: every tensor leaf has dimension 0 = row.

    Args:
        state: a tensor, a dataclass, or a list of these; anything else is kept as it is.
        rows: ``[N]`` row indices, or a ``[B]`` mask.
    """
    return _map(lambda leaf: leaf[rows], state)  # type: ignore[no-any-return]


def append(first: S, second: S) -> S:
    """Put the rows of ``second`` behind those of ``first``. Other dimensions that differ are padded with zeros at the
    end, which is behind the end of the shorter rows.

    Raises:
        TypeError: the states are of different kinds.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        size = [max(a, b) for a, b in zip(first.shape[1:], second.shape[1:], strict=True)]
        return torch.cat([_grow(first, size), _grow(second, size)])  # type: ignore[return-value]
    if type(first) is not type(second):
        raise TypeError(f"cannot append a {type(second).__name__} to a {type(first).__name__}")
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        return replace(first, **{n: append(getattr(first, n), getattr(second, n)) for n in names})
    if isinstance(first, list) and isinstance(second, list):
        return [append(a, b) for a, b in zip(first, second, strict=True)]  # type: ignore[return-value]
    return first


def _grow(leaf: Tensor, size: list[int]) -> Tensor:
    if list(leaf.shape[1:]) == size:
        return leaf
    pad = [n for have, want in zip(reversed(leaf.shape[1:]), reversed(size), strict=True) for n in (0, want - have)]
    return F.pad(leaf, pad)


def _map(change: Any, state: Any) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: _map(change, getattr(state, f.name)) for f in dataclasses.fields(state)})
    if isinstance(state, list):
        return [_map(change, leaf) for leaf in state]
    return state
