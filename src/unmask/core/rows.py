"""From masks to network rows, and rows of a batch in and out of any state."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

S = TypeVar("S")


@dataclass(frozen=True)
class Rows:
    """The positions one forward computes, gathered to the left of a ``[B, Q]`` rectangle.

    Attributes:
        position: ``[B, Q]`` absolute position of each network row; T (one behind the canvas) where the slot is empty.
        real: ``[B, Q]`` slots that hold a position; None when all do.
        keys: ``[B, S]`` stored positions that may be attended to, S = ``extent``; None when all may.
        extent: positions from here on are not attended to by any row.
        total: T.
        whole: every position of the canvas is computed, in order.
        rotary: what the model's blocks need to know of ``position``; set by the model.
    """

    position: Tensor
    real: Tensor | None
    keys: Tensor | None
    extent: int
    total: int
    whole: bool
    rotary: Tensor

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
        width = self.total + 1
        base = torch.arange(0, len(position) * width, width, device=position.device)
        return (position + base[:, None]).reshape(-1)


def bucket(count: int, total: int, device: torch.device) -> int:
    """Slots for ``count`` rows. CUDA rounds up to few sizes so that graphs and kernels are reused; the CPU does not."""
    if device.type != "cuda" or count >= total:
        return count
    step = 8 if count <= 64 else 32 if count <= 512 else 128
    return min(-(-count // step) * step, total)


def gather(compute: Tensor, keys: Tensor) -> Rows:
    """Lay out the positions to compute. Waits for the device once.

    Args:
        compute: ``[B, T]`` positions to compute.
        keys: ``[B, T]`` positions that may be attended to.
    """
    total = compute.shape[1]
    place = torch.arange(total, device=compute.device)
    count = compute.sum(1)
    reach = torch.where(keys, place + 1, 0).amax(1)
    most, least, extent, seen = torch.stack([count.amax(), count.amin(), reach.amax(), keys.sum(1).amin()]).tolist()
    seeable = None if seen == extent else keys[:, :extent]
    nothing = place.new_empty(0)
    if least == total:
        return Rows(place.expand_as(compute), None, seeable, extent, total, True, nothing)
    slots = max(1, bucket(most, total, compute.device))
    if len(compute) == 1 and slots == most:
        return Rows(compute[0].nonzero().T, None, seeable, extent, total, False, nothing)
    order = torch.argsort((~compute).to(torch.uint8), dim=1, stable=True)[:, :slots]
    real = place[:slots] < count[:, None]
    position = torch.where(real, order, total)
    return Rows(position, None if least == slots else real, seeable, extent, total, False, nothing)


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
