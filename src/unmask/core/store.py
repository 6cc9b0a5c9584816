"""Keys and values of every position, held between forward passes; what the caches share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .canvas import Canvas
from .protocols import Ask, Block, Geometry
from .rows import Rows
from .state import PER_POSITION, Slab


@dataclass(frozen=True)
class Store:
    """Rotated keys and values per layer, ``[B, W, H_kv, D]`` with W > T; position T takes what empty slots write.

    Attributes:
        key, value: one slab per layer, written in place.
        known: ``[B, T]`` positions computed at least once.
        final: ``[B, T]`` positions computed from the final text of a block model's finished blocks.
    """

    key: list[Slab]
    value: list[Slab]
    known: Tensor = field(metadata=PER_POSITION)
    final: Tensor = field(metadata=PER_POSITION)

    @staticmethod
    def empty(canvas: Canvas, geometry: Geometry, like: Tensor, optional: bool = False) -> Store:
        """Room for the canvas in the dtype and on the device of ``like``; ``optional``: see :class:`Slab`."""
        key, value = ([slab(canvas, tail, like, optional) for tail in geometry.tails] for _ in range(2))
        nothing = torch.zeros_like(canvas.valid)
        return Store(key, value, nothing, nothing)

    @property
    def store(self) -> Store:
        """Itself, as states that hold a store and more have it."""
        return self

    def kept(self, canvas: Canvas) -> Tensor:
        """``[B, T]`` positions that need not be computed again, of finished blocks; none where the model has none."""
        return self.final & canvas.past

    def learn(self, canvas: Canvas, computed: Tensor) -> Store:
        """The store after ``computed [B, T]`` positions are written."""
        return replace(self, known=self.known | computed, final=(self.final | computed) & canvas.past)

    def reach(self, layer: int, rows: Rows) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, of some rows, as far as any of them attends."""
        key, value = self.key[layer].data, self.value[layer].data
        return rows.of(key[:, : rows.extent]), rows.of(value[:, : rows.extent])


def slab(canvas: Canvas, tail: tuple[int, ...], like: Tensor, optional: bool = False) -> Slab:
    """A slab with a place for every position of the canvas, and one behind."""
    return Slab(len(canvas.tokens), canvas.tokens.shape[1] + 1, tail, like, follows_canvas=True, optional=optional)


def put(store: Slab, rows: Rows, fresh: Tensor, position: Tensor | None = None) -> None:
    """Write ``fresh [B, Q, ...]`` into a slab in place, at the rows' slots or at ``position [B, Q]``."""
    data = store.data
    if rows.whole and position is None:
        data[slice(None) if rows.row is None else rows.row, : rows.total] = fresh
    else:
        at = rows.index(store.width) if position is None else rows.index_of(position, store.width)
        data.flatten(0, 1).index_copy_(0, at, fresh.flatten(0, 1))


def take(store: Slab, rows: Rows) -> Tensor:
    """What a slab holds at the rows' slots, ``[B, Q, ...]``."""
    data = store.data
    if rows.whole:
        return rows.of(data[:, : rows.total])
    return data.flatten(0, 1)[rows.index(store.width)].view(*rows.position.shape, *store.tail)


def visible(canvas: Canvas, ask: Ask, need: Tensor) -> Tensor:
    """``[B, T]`` positions that may be attended to."""
    return canvas.present if ask.visible is None else canvas.present & (ask.visible | need)


def attend_stored(layer: int, block: Block, hidden: Tensor, rows: Rows, store: Store) -> Tensor:
    """The ordinary layer: write fresh keys and values, attend to all stored ones."""
    query, key, value = block.qkv(hidden, rows.rotary)
    put(store.key[layer], rows, key)
    put(store.value[layer], rows, value)
    hidden = hidden + block.attend(query, *store.reach(layer, rows), rows.keys)
    return hidden + block.mlp(hidden)
