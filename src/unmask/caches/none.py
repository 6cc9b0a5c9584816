"""No cache: every forward pass computes every visible position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas
from ..core.protocols import Ask, Block, Geometry, Plan
from ..core.rows import Rows
from ..core.store import Store, visible


@dataclass(frozen=True)
class NoneState:
    """A ``store`` that takes no memory until a policy calls positions stale, and whether one has: ``stored``."""

    store: Store
    stored: bool


@dataclass(frozen=True)
class NoCache(Cache):
    """Computes all visible positions in every forward pass; keys and values live for one layer.

    A policy that declares positions stale (SlowFast with ``suffix=cached``) makes it keep their keys and values.
    """

    name = "none"
    paper = "-"
    attention = ("full", "block", "canvas", "order")
    captures = True

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> NoneState:
        """A store not in use."""
        return NoneState(Store.empty(canvas, geometry, like, optional=True), stored=False)

    def stored(self, state: NoneState) -> bool:
        """Only where a policy has called positions stale."""
        return state.stored

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: NoneState) -> tuple[Plan, NoneState]:
        """Everything visible, less what may be stale."""
        keys = visible(canvas, ask, need)
        if ask.stale is None:
            compute = keys | need
            return Plan(compute, keys, compute.sum(1)), replace(state, stored=False)
        compute = keys & ~(ask.stale & state.store.known) | need
        return Plan(compute, keys, compute.sum(1)), NoneState(state.store.learn(canvas, compute), stored=True)

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: Any) -> Tensor:
        """The ordinary layer; against the store where there is one."""
        if state.stored:
            return super().layer(index, block, hidden, rows, state)
        hidden = hidden + block.attend(*block.qkv(hidden, rows.rotary), rows.among)
        return hidden + block.mlp(hidden)
