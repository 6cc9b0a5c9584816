"""A wrapper that refreshes any cache completely every n forwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.protocols import Ask, Block, Geometry, Plan, Prediction
from ..core.rows import Rows


@dataclass(frozen=True)
class EveryState:
    """The wrapped cache's state and ``age [B]``, forwards so far."""

    inner: Any
    age: Tensor


@dataclass(frozen=True)
class Every(Cache):
    """Asks ``cache`` to recompute everything in every ``n``-th forward of a row, counted from its first."""

    name = "every"
    paper = "-"

    cache: Cache = param(None, "the cache to refresh, as a spec")
    n: int = param(4, "forwards between complete refreshes", ge=1)

    @property
    def attention(self) -> tuple[str, ...]:  # type: ignore[override]
        """As the wrapped cache."""
        return self.cache.attention

    @property
    def captures(self) -> bool:  # type: ignore[override]
        """As the wrapped cache."""
        return self.cache.captures

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """As the wrapped cache."""
        return self.cache.needs

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> EveryState:
        """The wrapped cache's state, at age 0."""
        return EveryState(self.cache.init(canvas, geometry, like), torch.zeros_like(canvas.prompt))

    def stored(self, state: EveryState) -> bool:
        """As the wrapped cache."""
        return self.cache.stored(state.inner)

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: EveryState) -> tuple[Plan, EveryState]:
        """The wrapped cache's plan, with due rows marked for refresh and nothing stale in them."""
        due = state.age % self.n == 0
        stale = None if ask.stale is None else ask.stale & ~due[:, None]
        ask = replace(ask, stale=stale, refresh=due if ask.refresh is None else due | ask.refresh)
        plan, inner = self.cache.plan(canvas, ask, need, state.inner)
        return plan, EveryState(inner, state.age + 1)

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: EveryState) -> Tensor:
        """The wrapped cache's."""
        return self.cache.layer(index, block, hidden, rows, state.inner)

    def note(self, update: Update, prediction: Prediction, state: EveryState) -> EveryState:
        """Passed on."""
        return replace(state, inner=self.cache.note(update, prediction, state.inner))
