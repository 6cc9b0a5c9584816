"""Attention as a product of a forward pass: what some positions give to the others, averaged over the last layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import Canvas
from ..core.protocols import Attention, Block, Keys, Looks
from ..core.rows import Rows, among


class Watch:
    """Sums up the attention that the layers of one forward pass calculate.

    Args:
        looks: what the policy wants to see.
        canvas: the rows.
        layers: of the model.
        like: gives the dtype of the sums, float32 at least.

    Attributes:
        computed: ``[B, T]`` the positions looked at.
    """

    def __init__(self, looks: Looks, canvas: Canvas, layers: int, like: Tensor) -> None:
        self.computed = among(looks.places, canvas.valid) & canvas.present
        self.first = max(0, layers - looks.layers)
        self.places = looks.places
        self.valid = F.pad(canvas.valid, (0, 1))
        total = canvas.valid.shape[1]
        wide = like.new_zeros(len(self.places), 1, dtype=torch.promote_types(like.dtype, torch.float32))
        self._given = wide[:, :, None].repeat(1, self.places.shape[1], total)
        self._layers = wide.repeat(1, self.places.shape[1])
        self._received, self._queries = wide.repeat(1, total), wide[:, 0].clone()

    @staticmethod
    def of(looks: Looks | None, canvas: Canvas, layers: int, like: Tensor) -> Watch | None:
        """None where nothing is looked at."""
        return None if looks is None else Watch(looks, canvas, layers, like)

    def on(self, index: int, block: Block, rows: Rows, stored: bool) -> Block:
        """The block of a layer, watched if it is one of the last; ``stored``: see ``Cache.stored``."""
        return block if index < self.first else Watched(block, self, rows, stored)

    def note(self, weights: Tensor, rows: Rows, stored: bool) -> None:
        """Add the probabilities ``[B, Q, S]`` of a layer's queries."""
        total = self.valid.shape[1] - 1
        query = rows.layers[-1] if rows.layers else rows.position
        row: Tensor | slice = slice(None) if rows.row is None else rows.row
        if stored:
            weights = F.pad(weights, (0, total - weights.shape[2]))
        else:  # the keys are those of the slots
            weights = _pick(weights.mT, _slots(rows.position, total)).mT
        place, real = self.places[row], self.valid[row].gather(1, query)
        at = F.pad(_slots(query, total), (0, 1), value=query.shape[1]).gather(1, place)
        self._given[row] += _pick(weights, at)
        self._layers[row] += (at < query.shape[1]).to(weights.dtype)
        self._received[row] += (weights * real[:, :, None]).sum(1)
        self._queries[row] += real.sum(1).to(weights.dtype)

    def seen(self) -> Attention:
        """The averages."""
        given = self._given / self._layers.clamp(min=1)[:, :, None]
        return Attention(given, self._received / self._queries.clamp(min=1)[:, None])


def _slots(position: Tensor, total: int) -> Tensor:
    """``[B, T]`` the slot, of ``position [B, Q]``, that holds each of ``total`` positions; Q: none."""
    rows, many = position.shape
    found = torch.full((rows, total + 1), many, device=position.device)
    return found.scatter_(1, position, torch.arange(many, device=position.device).expand_as(position))[:, :-1]


def _pick(values: Tensor, at: Tensor) -> Tensor:
    """``[B, K, S]`` of ``values [B, Q, S]`` those ``at [B, K]``, zeros where that is Q."""
    return F.pad(values, (0, 0, 0, 1)).gather(1, at[:, :, None].expand(-1, -1, values.shape[2]))


@dataclass(frozen=True)
class Watched:
    """A block that tells ``watch`` what its queries attend to; see :class:`unmask.core.protocols.Block`."""

    block: Block
    watch: Watch
    rows: Rows
    stored: bool

    def qkv(self, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block's."""
        return self.block.qkv(hidden, rotary)

    def value(self, hidden: Tensor) -> Tensor:
        """The block's."""
        return self.block.value(hidden)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> Tensor:
        """The block's, with the probabilities noted."""
        return self.attend_weighed(query, key, value, keys)[0]

    def attend_weighed(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """The block's, with the probabilities noted."""
        out, weights = self.block.attend_weighed(query, key, value, keys)
        self.watch.note(weights, self.rows, self.stored)
        return out, weights

    def weigh(self, query: Tensor, key: Tensor, keys: Keys) -> Tensor:
        """The block's."""
        return self.block.weigh(query, key, keys)

    def mlp(self, hidden: Tensor) -> Tensor:
        """The block's."""
        return self.block.mlp(hidden)
