"""EntropyCache (arXiv 2603.18489): everything is recomputed after a token was committed that was uncertain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import top
from ..core.protocols import Ask, Geometry, Plan, Prediction
from ..core.state import PER_POSITION
from ..core.store import Store, visible


@dataclass(frozen=True)
class EntropyState:
    """Keys and values; what the last commits were.

    Attributes:
        store: keys and values.
        uncertain: ``[B]`` the last forward pass committed a token whose entropy reached the bound.
        age: ``[B]`` forward passes so far.
        since: ``[B, T]`` the forward pass, from 1, that last changed each position; 0: none has.
        due: ``[B, T]`` positions that were changed and have not been computed since.
    """

    store: Store
    uncertain: Tensor
    age: Tensor
    since: Tensor = field(metadata=PER_POSITION)
    due: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class EntropyCache(Cache):
    """Recomputes everything after a forward pass that committed a token of high entropy; else what changes most.

    The largest entropy among the tokens just committed tells how far the keys and values of the others have moved.
    Below ``tau`` only the masked positions, the new tokens and the ``k`` tokens that were committed last are computed:
    these still move for some forward passes.

    ``masks=window`` computes of the masked positions only those of the policy's window.
    """

    name = "entropy_cache"
    paper = "arXiv 2603.18489"
    needs = frozenset({"entropy"})
    captures = True

    tau: float = param(
        0.5, "entropy in nats of a committed token from which everything is recomputed; 0: in every forward pass", ge=0
    )
    k: int = param(64, "tokens committed last that are recomputed", ge=0)
    masks: str = param(
        "all", "masked positions that are recomputed: all, or those of the policy's window", choices=("all", "window")
    )

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> EntropyState:
        """Empty store, nothing committed."""
        never = torch.zeros_like(canvas.tokens)
        nothing = torch.zeros_like(canvas.valid)
        age = torch.zeros_like(canvas.prompt)
        return EntropyState(Store.empty(canvas, geometry, like), age > 0, age, never, nothing)

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: EntropyState) -> tuple[Plan, EntropyState]:
        """Masked, new and recent positions, what was never seen; after an uncertain commit all."""
        keys = visible(canvas, ask, need)
        due = state.uncertain if ask.refresh is None else state.uncertain | ask.refresh
        since = torch.where(canvas.filled & (state.since > 0), state.since.double(), -torch.inf)
        part = state.due | top(since, self.k) if self.k else state.due
        if self.masks == "all":
            part = part | canvas.sources(canvas.open)
        part = part | due[:, None]
        if ask.stale is not None:
            part = part & ~ask.stale
        compute = keys & (part | ~state.store.known) | need
        store = state.store.learn(canvas, compute)
        return Plan(compute, keys, compute.sum(1)), replace(state, store=store, due=state.due & ~compute)

    def note(self, update: Update, prediction: Prediction, state: EntropyState) -> EntropyState:
        """Remember what was committed, and how certain the model was of it."""
        assert prediction.entropy is not None
        changed = update.write if update.remask is None else update.write | update.remask
        most = torch.where(update.write, prediction.entropy, -torch.inf).amax(1)
        age = state.age + 1
        since = torch.where(changed, age[:, None], state.since)
        return replace(state, uncertain=most >= self.tau, age=age, since=since, due=state.due | changed)
