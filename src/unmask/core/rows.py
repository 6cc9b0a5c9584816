"""From the positions to compute to rectangles of network rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocols import HIDDEN, Keys, Ranked

# What one more rectangle costs, in positions' worth of work: launches, and weights read again. Measured on the CPU with
# the bundled model (a forward pass costs 4.5 ms and 75 us per position); on CUDA the estimate for 8 billion parameters.
_TILE_COST = {False: 48.0, True: 256.0}
# In one rectangle 32 rows of 1100 take 20 % longer, perhaps for activations of over 32 MiB, which the heap does not
# keep (core/heap.py). From 2048 to 20000 there is little in it.
_TILE_WORK = {False: 4096.0, True: math.inf}


@dataclass(frozen=True)
class Rows:
    """The positions one forward pass computes for some rows of a batch, gathered to the left of a ``[B, Q]`` rectangle.

    Attributes:
        row: ``[B]`` which rows of the batch these are; None: all, in order.
        members: the same on the host.
        position: ``[B, Q]`` absolute position of each network row; T (one behind the canvas) where the slot is empty.
        real: ``[B, Q]`` slots that hold a position; None when all do.
        keys: ``[B, S]`` stored positions that may be attended to, S = ``extent``; ``[B, Q, S]`` or by rank where the
            slots differ in this; None when all may.
        extent: positions from here on are not attended to by any row; rounded as slots are, see :func:`bucket`.
        total: T.
        whole: every position of the canvas is computed, in order.
        rotary: what the model's blocks need to know of ``position``; set by the model.
        host: numbers of the cache's plan on the host, by name, one for each of these rows; see ``Plan.host``.
        scratch: what a cache hands from one layer to the next; gone after the last.
        layers: per layer the positions ``[B, N]`` that were computed in it (T: none), noted by caches that compute some
            of ``position`` only; empty: all of them, in every layer.
    """

    row: Tensor | None
    members: tuple[int, ...]
    position: Tensor
    real: Tensor | None
    keys: Keys
    extent: int
    total: int
    whole: bool
    rotary: Tensor
    host: Mapping[str, Sequence[int]] = field(default_factory=dict)
    scratch: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Tensor] = field(default_factory=list)
    flat: dict[int, Tensor] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Q."""
        return self.position.shape[1]

    def index(self, stride: int) -> Tensor:
        """``[B * Q]`` where the slots are in a store seen as ``[B * stride, ...]``."""
        if stride not in self.flat:
            self.flat[stride] = self.index_of(self.position, stride)
        return self.flat[stride]

    def index_of(self, position: Tensor, stride: int) -> Tensor:
        """``[B * N]`` the same for any ``position [B, N]``."""
        row = torch.arange(len(position), device=position.device) if self.row is None else self.row
        return (position + row[:, None] * stride).reshape(-1)

    def of(self, whole: Tensor) -> Tensor:
        """What concerns these rows of ``whole``, which has a dimension 0 for all rows of the batch."""
        return whole if self.row is None else whole[self.row]

    def keys_of(self, slots: Tensor) -> Keys:
        """``keys`` for some slots ``[B, N]`` as queries."""
        if isinstance(self.keys, Ranked):
            return Ranked(self.keys.query.gather(1, slots), self.keys.key)
        if self.keys is None or self.keys.dim() == 2:
            return self.keys
        return self.keys.gather(1, slots[:, :, None].expand(-1, -1, self.extent))

    @property
    def among(self) -> Keys:
        """``keys`` of the slots themselves instead of stored positions: ``[B, Q]``, ``[B, Q, Q]``, by rank or None."""
        at = self.position.clamp(max=self.extent - 1)
        if isinstance(self.keys, Ranked):
            key = self.keys.key.gather(1, at)
            return Ranked(self.keys.query, key if self.real is None else torch.where(self.real, key, HIDDEN))
        if self.keys is None or self.keys.dim() == 2:
            return self.real
        at = at[:, None].expand(-1, self.slots, -1)
        found = self.keys.gather(2, at)
        return found if self.real is None else found & self.real[:, None]

    def most(self, name: str) -> int:
        """Slots for the largest of these rows' numbers of a name in ``host``; see :func:`bucket`."""
        return bucket(max(self.host[name]), self.slots, self.position.device)


@dataclass(frozen=True)
class Counts:
    """What the host must know of a plan to lay it out, a number for each row.

    Attributes:
        compute: positions to compute.
        reach: one behind the last position attended to.
        seen: positions attended to.
        work: positions' worth of work.
        blind: positions to compute that do not see all that are attended to.
    """

    compute: Sequence[int]
    reach: Sequence[int]
    seen: Sequence[int]
    work: Sequence[float]
    blind: Sequence[int] = ()

    @staticmethod
    def columns(compute: Tensor, keys: Tensor, work: Tensor, rank: Tensor | None = None) -> list[Tensor]:
        """Each of them, ``[B]``, on the device; :class:`Counts` takes them in this order from the host."""
        place = torch.arange(1, keys.shape[1] + 1, device=keys.device)
        found = [compute.sum(1), torch.where(keys, place, 0).amax(1), keys.sum(1), work]
        if rank is not None:
            highest = torch.where(keys, rank, -1).amax(1, keepdim=True)
            found.append((compute & (rank < highest)).sum(1))
        return found


def bucket(count: int, total: int, device: torch.device) -> int:
    """Slots for ``count`` positions, ``total`` at most. CUDA rounds up to few sizes, so that kernels chosen for a shape
    are used again; the CPU does not.
    """
    if device.type != "cuda" or count >= total:
        return count
    step = 8 if count <= 64 else 32 if count <= 512 else 128
    return min(-(-count // step) * step, total)


def tiles(
    compute: Tensor,
    keys: Tensor,
    counts: Counts,
    host: Mapping[str, Sequence[int]] | None = None,
    rank: Tensor | None = None,
) -> list[Rows]:
    """Lay out the positions to compute, rows that need about as much work side by side.

    A rectangle costs what its busiest row costs, times its rows: where a few rows of a batch need much (a refresh)
    and the others little, several rectangles are cheaper than one. Rows with nothing to compute are in none.

    Args:
        compute: ``[B, T]`` positions to compute.
        keys: ``[B, T]`` positions that may be attended to.
        counts: of both, on the host.
        host: numbers of the plan on the host, by name.
        rank: ``[B or 1, T]`` a position sees those of its own and of lower ranks; None: all.
    """
    cuda = compute.is_cuda
    busy = [row for row, count in enumerate(counts.compute) if count] or [0]
    groups = partition([counts.work[row] for row in busy], _TILE_COST[cuda], _TILE_WORK[cuda])
    members = [tuple(busy[i] for i in group) for group in groups]
    ranks = None if rank is None else rank.expand_as(keys)
    return [_tile(compute, keys, counts, own, host or {}, len(own) == len(keys), ranks) for own in members]


def partition(work: Sequence[float], tile_cost: float, most: float = math.inf) -> list[list[int]]:
    """Rows in groups, such that the sum over groups of ``tile_cost + rows * the largest work`` is least; no group of
    several rows with more than ``most`` of that product. Groups are stretches of the rows in order of their work; of
    equal sums the one whose last group is the longest.
    """
    order = sorted(range(len(work)), key=work.__getitem__)
    if order and work[order[0]] == work[order[-1]] and len(order) * work[order[0]] <= most:
        return [order]
    best, begin = [0.0], [0]
    for end, row in enumerate(order, start=1):
        own, start = work[row], end - 1
        cost = best[start] + tile_cost + own
        for at in range(end - 2, -1, -1):
            area = (end - at) * own
            if area > most:
                break
            if (longer := best[at] + tile_cost + area) <= cost:
                cost, start = longer, at
        best.append(cost)
        begin.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[begin[end] : end]))
        end = begin[end]
    return groups


def gather(compute: Tensor, keys: Tensor) -> Rows:
    """Lay out the positions to compute, all rows in one rectangle. Waits for the device once.

    Args:
        compute: ``[B, T]`` positions to compute.
        keys: ``[B, T]`` positions that may be attended to.
    """
    columns = Counts.columns(compute, keys, compute.sum(1))
    counts = Counts(*torch.stack(columns).tolist())
    return _tile(compute, keys, counts, tuple(range(len(compute))), {}, True)


def _tile(
    compute: Tensor,
    keys: Tensor,
    counts: Counts,
    members: tuple[int, ...],
    host: Mapping[str, Sequence[int]],
    all_: bool,
    rank: Tensor | None = None,
) -> Rows:
    total, device = compute.shape[1], compute.device
    row = None
    if not all_:
        row = sent(members, device)
        compute, keys = compute[row], keys[row]
        rank = None if rank is None else rank[row]
    size, reach, seen = ([values[i] for i in members] for values in (counts.compute, counts.reach, counts.seen))
    most, least, extent = int(max(size)), int(min(size)), int(max(reach))
    if int(min(seen)) != extent:  # without a mask attention is faster than with one: no rounding there
        extent = bucket(extent, total, device)
    blind = rank is not None and any(counts.blind[i] for i in members)
    seeable: Keys = None if int(min(seen)) == extent and not blind else keys[:, :extent]
    own = {name: [values[i] for i in members] for name, values in host.items()}
    place = torch.arange(total, device=device)
    nothing = place.new_empty(0)
    whole = least == total
    slots = total if whole else max(1, bucket(most, total, device))
    position = place.expand_as(compute) if whole else compact(compute, slots)
    if blind and rank is not None:
        own_rank = F.pad(rank, (0, 1), value=HIDDEN - 1).gather(1, position)
        seeable = Ranked.of(own_rank, rank[:, :extent], keys[:, :extent])
    real = None if least == slots else place[:slots] < compute.sum(1)[:, None]
    return Rows(row, members, position, real, seeable, extent, total, whole, nothing, own)


def sent(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers of the host on a device. Does not wait for it, as ``torch.tensor(values, device=...)`` does."""
    return torch.tensor(values).to(device, non_blocking=True)


def compact(mask: Tensor, slots: int) -> Tensor:
    """``[B, slots]`` the true positions of a ``[B, T]`` mask in order, T behind them. Does not wait for the device."""
    rows, total = mask.shape
    place = torch.where(mask, mask.cumsum(1) - 1, slots).clamp(max=slots)
    found = torch.full((rows, slots + 1), total, device=mask.device)
    return found.scatter_(1, place, torch.arange(total, device=mask.device).expand(rows, total))[:, :slots]


def among(places: Tensor, like: Tensor) -> Tensor:
    """``[B, T]`` the positions that ``places [B, K]`` name, T: none; as wide as ``like [B, T]``."""
    found = like.new_zeros(len(like), like.shape[1] + 1, dtype=torch.bool)
    return found.scatter_(1, places, True)[:, :-1]


def pairs(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows and positions, ``[count]`` each, of the true entries of a ``[B, T]`` mask, of which there must be ``count``.

    Does not wait for the device.
    """
    if mask.device.type == "cpu":
        row, position = torch.nonzero_static(mask, size=count).unbind(1)
        return row, position
    flat = compact(mask.reshape(1, -1), count)[0]
    return flat // mask.shape[1], flat % mask.shape[1]


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
