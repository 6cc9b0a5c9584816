"""State of a batch: rows enter and leave any tree of dataclasses whose tensors have dimension 0 = row.

Three kinds of leaves:

- an ordinary tensor ``[B, ...]``: small, copied when rows enter or leave;
- a tensor declared :data:`PER_POSITION`, ``[B, T, ...]``: as wide as the canvas, and narrowed with it;
- a :class:`Slab`: large, allocated once, addressed by slot. Entering or leaving copies at most the row concerned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

S = TypeVar("S")


# A field of a state that holds ``[B, T, ...]``, T positions of the canvas, so that it is narrowed with the canvas:
# ``field(metadata=PER_POSITION)``.
PER_POSITION = {"per_position": True}


class Slab:
    """A large tensor per row, ``[B, W, ...]``, allocated once for several rows: slot i belongs to row i of the batch.

    Nothing is allocated until :attr:`data` is read for the first time. As wide as a row is, its slot is zero when it
    enters; behind that an earlier row may have left finite numbers.

    Args:
        rows: rows held.
        width: W of each; it only grows.
        tail: the other dimensions of a row.
        like: gives dtype and device.
        follows_canvas: whether W is a position of the canvas, so that wider rows make it wider.
        optional: whether it is used only with policies that reuse keys and values, see ``Policy.reuses``.

    Attributes:
        copies: lines that each row has, next to each other, for policies that compute several canvases of a row; to be
            set before the first use. Between forward passes they hold the same.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        tail: Sequence[int],
        like: Tensor,
        *,
        follows_canvas: bool = False,
        optional: bool = False,
    ) -> None:
        self.rows, self.width, self.tail = rows, width, tuple(tail)
        self.follows_canvas, self.optional = follows_canvas, optional
        self.copies = 1
        self._spare = 0
        self._like = like.new_empty(0)
        self._held: Tensor | None = None

    @property
    def data(self) -> Tensor:
        """``[B, W, ...]``, a view that is written in place; B counts ``copies``. Valid until rows enter or leave."""
        if self._held is None:
            self._held = self._like.new_zeros(max(self.rows, self._spare), self.copies, self.width, *self.tail)
            self._spare = 0
        return self._held[: self.rows].flatten(0, 1)

    def share(self, line: Tensor, position: Tensor) -> None:
        """Give all copies of a row what one of them holds, in place.

        Args:
            line: ``[B]`` which, for each row; counted over all copies of all rows.
            position: ``[B, Q]`` places in which they may differ.
        """
        if self._held is None or self.copies == 1:
            return
        flat = self.data.flatten(0, 1)
        fresh = flat[line[:, None] * self.width + position]
        copy = torch.arange(self.rows * self.copies, device=line.device).view(self.rows, self.copies, 1)
        fresh = fresh[:, None].expand(-1, self.copies, *[-1] * (fresh.dim() - 1))
        flat.index_copy_(0, (copy * self.width + position[:, None]).flatten(), fresh.flatten(0, 2))

    @property
    def address(self) -> int:
        """Where its memory begins; 0 before the first use."""
        return 0 if self._held is None else self._held.data_ptr()

    @property
    def capacity(self) -> int:
        """Rows there is memory for; 0 before the first use."""
        return 0 if self._held is None else len(self._held)

    @property
    def places(self) -> int:
        """Rows there is memory for, or will be with the first use."""
        return max(self.rows, self._spare) if self._held is None else len(self._held)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._like.element_size() * self.copies * self.width * torch.Size(self.tail).numel()

    def reserve(self, rows: int, width: int = 0) -> None:
        """Make room for so many rows, so wide, in one step; what is held stays. Wider, it has room for no more rows."""
        wide = max(width, self.width)
        if self._held is None:
            self.width, self._spare = wide, rows
            return
        if rows > self.capacity or wide > self.width:
            old = self._held
            self._held = self._like.new_zeros(max(rows, self.rows), self.copies, wide, *self.tail)
            self._held[: self.rows, :, : self.width] = old[: self.rows]
            self.width = wide

    def trim(self) -> None:
        """Give back the memory of places that no row takes."""
        self._spare = 0
        if self._held is not None and self.capacity > self.rows:
            self._held = self._held[: self.rows].clone()

    def join(self, other: Slab) -> None:
        """Take the rows of another slab behind the own ones."""
        count, moved = other.rows, other._held
        if self._held is None and moved is not None:
            _ = self.data
        self.reserve(max(self.rows + count, self._spare), other.width)
        if self._held is not None:
            slots = self._held[self.rows : self.rows + count, :, : other.width]
            slots.zero_() if moved is None else slots.copy_(moved[:count])
        self.rows += count

    def clear(self, row: int) -> None:
        """Forget what a row holds: numbers that are not finite must not stay where other rows come."""
        if self._held is not None:
            self._held[row].zero_()

    def keep(self, rows: Sequence[int]) -> None:
        """Hold only some rows, in this order. Rows whose place stays the same are not touched."""
        if self._held is not None:
            moved = {at: row for at, row in enumerate(rows) if at != row}
            if moved.keys() & set(moved.values()):  # not by survivors()
                self._held[: len(rows)] = self._held[list(rows)]
            else:  # no index has to be sent to the device
                for at, row in moved.items():
                    self._held[at] = self._held[row]
        self.rows = len(rows)


def survivors(leaving: Sequence[bool]) -> list[int]:
    """The rows that stay, in an order that moves few of them: rows from the end fill the places of those that leave."""
    stay = [row for row, leaves in enumerate(leaving) if not leaves]
    count = len(stay)
    fill = iter([row for row in stay if row >= count])
    return [row if not leaves else next(fill) for row, leaves in enumerate(leaving[:count])]


def select(state: S, rows: Sequence[int], width: int | None = None) -> S:
    """Keep some rows of a state, in this order; slabs are changed in place, the state given is used up.

    Args:
        state: a tensor, a slab, a dataclass, a list or a tuple of these; anything else is kept as it is.
        rows: row indices; see :func:`survivors`.
        width: positions that remain of leaves declared :data:`PER_POSITION`; None: all.
    """
    index: dict[torch.device, Tensor] = {}

    def chosen(leaf: Tensor, positions: bool) -> Tensor:
        if leaf.device not in index:
            index[leaf.device] = torch.tensor(rows, device=leaf.device)
        own = leaf[:, :width] if positions and width is not None else leaf
        return own[index[leaf.device]]

    changed = set[int]()

    def kept(leaf: Any, positions: bool) -> Any:
        if isinstance(leaf, Slab):
            if id(leaf) not in changed:
                leaf.keep(rows)
            changed.add(id(leaf))
            return leaf
        return chosen(leaf, positions)

    return _map(kept, state)  # type: ignore[no-any-return]


def append(first: S, second: S) -> S:
    """Put the rows of ``second`` behind those of ``first``; both are used up. Other dimensions that differ are padded
    with zeros at the end, which is behind the end of the shorter rows. A bool says whether something holds for any row.
    A slab that stands in a state several times is one slab.

    Raises:
        TypeError: the states are of different kinds.
    """
    return _append(first, second, set())


def _append(first: S, second: S, joined: set[int]) -> S:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        size = [max(a, b) for a, b in zip(first.shape[1:], second.shape[1:], strict=True)]
        return torch.cat([_grow(first, size), _grow(second, size)])  # type: ignore[return-value]
    if type(first) is not type(second):
        raise TypeError(f"cannot append a {type(second).__name__} to a {type(first).__name__}")
    if isinstance(first, Slab) and isinstance(second, Slab):
        if id(first) not in joined:
            first.join(second)
        joined.add(id(first))
        return first
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        return replace(first, **{n: _append(getattr(first, n), getattr(second, n), joined) for n in names})
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return type(first)(_append(a, b, joined) for a, b in zip(first, second, strict=True))
    if isinstance(first, bool):
        return first or second
    return first


def repeated(state: S, count: int) -> S:
    """Every row so many times, next to each other; slabs, which have ``copies``, stay as they are."""
    return _map(lambda leaf, _: leaf if isinstance(leaf, Slab) else leaf.repeat_interleave(count, 0), state)  # type: ignore[no-any-return]


def picked(state: S, line: Tensor) -> S:
    """Some lines ``[B]`` of a state; slabs stay as they are."""
    return _map(lambda leaf, _: leaf if isinstance(leaf, Slab) else leaf[line], state)  # type: ignore[no-any-return]


def mixed(rows: Tensor, first: S, second: S) -> S:
    """The state that is ``first`` in ``rows [B]`` and ``second`` in the others; of states without slabs."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.where(rows.view(-1, *[1] * (first.dim() - 1)), first, second)  # type: ignore[return-value]
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        return replace(first, **{n: mixed(rows, getattr(first, n), getattr(second, n)) for n in names})
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return type(first)(mixed(rows, a, b) for a, b in zip(first, second, strict=True))
    return first


def slabs(state: Any) -> Iterator[Slab]:
    """All slabs of a state."""
    if isinstance(state, Slab):
        yield state
    elif dataclasses.is_dataclass(state) and not isinstance(state, type):
        for f in dataclasses.fields(state):
            yield from slabs(getattr(state, f.name))
    elif isinstance(state, (list, tuple)):
        for leaf in state:
            yield from slabs(leaf)


def places(state: Any) -> int:
    """Rows that the slabs of a state have memory for, or will have with their first use."""
    return max((slab.places for slab in slabs(state)), default=0)


def row_bytes(state: Any, optional: bool = True) -> int:
    """Bytes that one row of a state takes at most. Slabs count whether they are in use yet or not, each once, optional
    ones if ``optional``.
    """
    held = {id(slab): slab for slab in slabs(state)}.values()
    return sum(slab.row_bytes for slab in held if optional or not slab.optional) + _tensor_bytes(state)


def _tensor_bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nbytes // max(1, len(state)) if state.dim() else 0
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return sum(_tensor_bytes(getattr(state, f.name)) for f in dataclasses.fields(state))
    if isinstance(state, (list, tuple)):
        return sum(map(_tensor_bytes, state))
    return 0


def _grow(leaf: Tensor, size: list[int]) -> Tensor:
    if list(leaf.shape[1:]) == size:
        return leaf
    pad = [n for have, want in zip(reversed(leaf.shape[1:]), reversed(size), strict=True) for n in (0, want - have)]
    return F.pad(leaf, pad)


def _map(change: Any, state: Any, positions: bool = False) -> Any:
    if isinstance(state, (Tensor, Slab)):
        return change(state, positions)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        made = {
            f.name: _map(change, getattr(state, f.name), f.metadata.get("per_position", False))
            for f in dataclasses.fields(state)
        }
        return replace(state, **made)
    if isinstance(state, (list, tuple)):
        return type(state)(_map(change, leaf, positions) for leaf in state)
    return state
