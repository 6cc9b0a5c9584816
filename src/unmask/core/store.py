"""Keys and values of every position, kept between forwards; what the caches share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas
from .protocols import Ask, Block, Geometry
from .rows import Rows


@dataclass(frozen=True)
class Store:
    """Rotated keys and values per layer, ``[B, T + 1, H_kv, D]``; the last position takes what empty slots write.

    Attributes:
        key, value: one tensor per layer, written in place.
        known: ``[B, T]`` positions computed at least once.
    """

    key: list[Tensor]
    value: list[Tensor]
    known: Tensor

    @staticmethod
    def empty(canvas: Canvas, geometry: Geometry, like: Tensor, positions: int | None = None) -> Store:
        """Room for ``positions`` (default: the canvas; 0: none yet) in the dtype and on the device of ``like``."""
        width = canvas.tokens.shape[1] + 1 if positions is None else positions
        shape = (len(canvas.tokens), width, geometry.kv_heads, geometry.head_dim)
        key = [like.new_zeros(shape) for _ in range(geometry.layers)]
        value = [like.new_zeros(shape) for _ in range(geometry.layers)]
        return Store(key, value, torch.zeros_like(canvas.valid))

    @property
    def width(self) -> int:
        """Positions there is room for, the spare one included; 0 before :meth:`sized`."""
        return self.key[0].shape[1]

    def sized(self, total: int) -> Store:
        """The store with room for ``total`` positions."""
        missing = total + 1 - self.width
        if not missing:
            return self
        key, value = ([F.pad(old, (0, 0, 0, 0, 0, missing)) for old in part] for part in (self.key, self.value))
        return replace(self, key=key, value=value)

    def learn(self, computed: Tensor) -> Store:
        """The store after ``computed [B, T]`` positions are written."""
        return replace(self, known=self.known | computed)

    def reach(self, layer: int, rows: Rows) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, of some rows, as far as any of them attends."""
        return rows.of(self.key[layer][:, : rows.extent]), rows.of(self.value[layer][:, : rows.extent])


def put(store: Tensor, rows: Rows, fresh: Tensor, index: Tensor | None = None) -> None:
    """Write ``fresh [B, Q, ...]`` into ``store [B, T + 1, ...]`` in place, at the rows' slots or at flat ``index``."""
    if rows.whole and index is None:
        store[slice(None) if rows.row is None else rows.row, : rows.total] = fresh
    else:
        at = rows.index if index is None else index
        store.flatten(0, 1).index_copy_(0, at, fresh.flatten(0, 1))


def visible(canvas: Canvas, ask: Ask, need: Tensor) -> Tensor:
    """``[B, T]`` positions that may be attended to."""
    return canvas.valid if ask.visible is None else canvas.valid & (ask.visible | need)


def attend_stored(layer: int, block: Block, hidden: Tensor, rows: Rows, store: Store) -> Tensor:
    """The ordinary layer: write fresh keys and values, attend to all stored ones."""
    query, key, value = block.qkv(hidden, rows.rotary)
    put(store.key[layer], rows, key)
    put(store.value[layer], rows, value)
    hidden = hidden + block.attend(query, *store.reach(layer, rows), rows.keys)
    return hidden + block.mlp(hidden)
