"""No cache: every forward computes every visible position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import Configured
from ..core.protocols import Ask, Block, Geometry, Plan, Prediction
from ..core.rows import Rows
from ..core.store import Store, attend_stored, visible


@dataclass(frozen=True)
class NoneState:
    """The store has no positions until a policy lets some go stale."""

    store: Store


@dataclass(frozen=True)
class NoCache(Configured):
    """Computes all visible positions in every forward; keys and values live for one layer.

    A policy that declares positions stale (SlowFast with ``suffix=cached``) makes it keep their keys and values.
    """

    name = "none"
    paper = "-"

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> NoneState:
        """An empty store."""
        return NoneState(Store.empty(canvas, geometry, like, positions=0))

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: NoneState) -> tuple[Plan, NoneState]:
        """Everything visible, less what may be stale."""
        keys = visible(canvas, ask, need)
        if ask.stale is None:
            compute = keys | need
            return Plan(compute, keys, compute.sum(1).double()), state
        store = state.store.sized(canvas.tokens.shape[1])
        compute = keys & ~(ask.stale & store.known) | need
        state = replace(state, store=store.learn(compute))
        return Plan(compute, keys, compute.sum(1).double()), state

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: NoneState) -> Tensor:
        """The ordinary layer; against the store once there is one."""
        if state.store.width:
            return attend_stored(index, block, hidden, rows, state.store)
        hidden = hidden + block.attend(*block.qkv(hidden, rows.rotary), rows.among)
        return hidden + block.mlp(hidden)

    def note(self, update: Update, prediction: Prediction, state: Any) -> Any:
        """Nothing to learn."""
        return state
