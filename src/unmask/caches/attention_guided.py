"""d2Cache (arXiv 2509.23094): masks about to be filled, and what attention flows from, are recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import certainty_density, nucleus, top
from ..core.protocols import Ask, Block, Geometry, Plan, Prediction
from ..core.rows import Rows
from ..core.state import PER_POSITION
from ..core.store import Store, put, visible


@dataclass(frozen=True)
class D2State:
    """What is kept, all but the store ``[B, T]``.

    Attributes:
        store: keys and values.
        confidence: float64, the last answer's at each mask; 0 before the first.
        due: positions whose token has changed since they were computed.
        queried: positions that the last forward computed, probes left out.
        importance: the last forward's column sums of the attention rollout.
    """

    store: Store
    confidence: Tensor = field(metadata=PER_POSITION)
    due: Tensor = field(metadata=PER_POSITION)
    queried: Tensor = field(metadata=PER_POSITION)
    importance: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class D2Cache(Cache):
    """After a full forward, each forward computes three kinds of positions; the others keep their keys and values.

    1. The ``k`` masks with the highest certainty prior: confidence when last computed, times the Gaussian-weighted
       density of known positions around (``sigma``). Masks of the policy's window come first, the others up to the
       end of the block that makes up ``k`` masks follow; a block is as long as the window. Where a policy's rule holds
       for any candidates (``Ask.optional``) it is shown these alone, as published; the others get all their window.
    2. Of the rest, the positions that take the share ``p`` of the attention rollout: per layer the mean over heads and
       the identity in equal parts, multiplied over the layers; positions not computed pass themselves on.
    3. Positions whose token has just changed; with a shifted model their predecessors as well (the code: not these).

    ``inflate`` also fills gaps (the authors' code takes 4 for parallel decoding in blocks). By slips that code never
    renews the confidences after the first forward, and counts a block shorter with every token it commits; here
    confidences are the last computed, and blocks keep their length. Its block is that of the forward before, too.

    Memory: keys and values; during a forward of Q positions a few ``[Q, T]`` in float32 at least, all layers together,
    since the rows of the product that belong to positions not computed stay the identity's; after it the T column
    sums. Going from the last layer to the first a vector would do, but would need the attention of all layers at once.
    """

    name = "d2"
    paper = "arXiv 2509.23094"

    k: int | None = param(32, "masks computed, but all of a window that needs all; none: all", ge=1, optional=True)
    sigma: float = param(10.0, "width in positions of the Gaussian around a mask", gt=0, le=100)
    p: float = param(0.1, "share of the attention rollout whose positions are computed", ge=0, le=1)
    nucleus: str = param(
        "reach",
        "the fewest positions that reach the share p, or the most within it and at least one (the authors' code)",
        choices=("reach", "within"),
        hidden=True,
    )
    inflate: int = param(0, "positions computed at most this far apart have those between them computed", ge=0)

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> D2State:
        """Empty store."""
        nothing = torch.zeros_like(canvas.valid)
        return D2State(Store.empty(canvas, geometry, like), nothing.double(), nothing, nothing, nothing.to(_wide(like)))

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: D2State) -> tuple[Plan, D2State]:
        """The three kinds, what is needed and what was never seen."""
        keys = visible(canvas, ask, need)
        open_ = keys if ask.stale is None else keys & ~ask.stale
        must = need if ask.optional is None else need & ~canvas.sources(ask.optional)
        chosen = self._chosen(canvas, ask, open_ | need, must, state.confidence)
        due = state.due | canvas.sources(state.due)
        compute = must | keys & ~state.store.known | canvas.sources(chosen) | open_ & due
        rest = open_ & ~compute
        if self.p < 1:
            rest = rest & nucleus(state.importance * rest, self.p, self.nucleus == "within")
        compute = compute | rest
        if self.inflate:
            compute = compute | open_ & self._between(canvas, compute & canvas.valid)
        if ask.refresh is not None:
            compute = compute | keys & ask.refresh[:, None]
        read = canvas.masked & canvas.targets(compute) & ~ask.window
        queried = compute & canvas.valid
        after = replace(
            state,
            store=state.store.learn(canvas, compute),
            due=state.due & ~compute,
            queried=queried,
            importance=(~queried).to(state.importance.dtype),
        )
        return Plan(compute, keys, compute.sum(1), read=read), after

    def _chosen(self, canvas: Canvas, ask: Ask, open_: Tensor, must: Tensor, confidence: Tensor) -> Tensor:
        """``[B, T]`` the masks with the highest certainty prior, those of the window first."""
        start = canvas.first(ask.window)[:, None]
        ahead = canvas.masked & canvas.targets(open_) & (canvas.position >= start)
        if self.k is None:
            return ahead
        width = torch.where(ask.window, canvas.position - start + 1, 1).amax(1, keepdim=True)
        enough = canvas.first(ahead.cumsum(1) >= self.k)[:, None]
        ahead = ahead & (canvas.position < start + ((enough - start) // width + 1) * width)
        prior = confidence * certainty_density(canvas.tokens != canvas.spec.mask, canvas.length, self.sigma)
        score = prior + ask.window.double() + canvas.targets(must).double()  # a prior is below 1
        return top(torch.where(ahead, score, -torch.inf), self.k)

    def _between(self, canvas: Canvas, mask: Tensor) -> Tensor:
        """``[B, T]`` positions between two of ``mask`` that are at most ``inflate`` apart."""
        far = mask.shape[1] + self.inflate  # stands for "none on this side": farther from everything than `inflate`
        before = torch.where(mask, canvas.position, -far).cummax(1).values
        behind = torch.where(mask, canvas.position, 2 * far).flip(1).cummin(1).values.flip(1)
        return behind - before <= self.inflate

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: D2State) -> Tensor:
        """The ordinary layer against the store, with its attention looked at."""
        if self.p == 1 or (self.p == 0 and self.nucleus == "reach"):
            return super().layer(index, block, hidden, rows, state)
        query, key, value = block.qkv(hidden, rows.rotary)
        put(state.store.key[index], rows, key)
        put(state.store.value[index], rows, value)
        attended, weights = block.attend_weighed(query, *state.store.reach(index, rows), rows.keys)
        self._roll(index, weights, rows, state)
        hidden = hidden + attended
        return hidden + block.mlp(hidden)

    @staticmethod
    def _roll(index: int, weights: Tensor, rows: Rows, state: D2State) -> None:
        """Multiply this layer's ``weights [B, Q, S]`` into the rollout; after the last, note its column sums.

        R <- (A R + R) / 2. Rows of R that belong to positions not computed are the identity's: A R is A's columns of
        computed positions times their rows of R, and A's other columns as they are.
        """
        queried = rows.of(state.queried)
        counts = F.pad(queried, (0, 1)).gather(1, rows.position)  # [B, Q]: no empty slots, no probes
        at = rows.position.clamp(max=rows.extent - 1)
        rolled = rows.scratch.get("rollout")
        if rolled is None:
            rolled = torch.zeros_like(weights).scatter_(2, at[:, :, None], 1.0)
        weights = weights.masked_fill(~counts[:, :, None], 0.0)
        inner = weights.gather(2, at[:, None].expand(-1, rows.slots, -1)).masked_fill(~counts[:, None], 0.0)
        outer = weights.masked_fill(queried[:, None, : rows.extent], 0.0)
        rows.scratch["rollout"] = rolled = torch.baddbmm(outer + rolled, inner, rolled).mul_(0.5)
        if index == len(state.store.key) - 1:
            total = rolled.masked_fill(~counts[:, :, None], 0.0).sum(1)
            state.importance[slice(None) if rows.row is None else rows.row, : rows.extent] += total

    def note(self, update: Update, prediction: Prediction, state: D2State) -> D2State:
        """Remember the confidences, and whose token has changed."""
        told = prediction.confidence
        if prediction.aside is not None:
            told = torch.maximum(told, prediction.aside)
        due = state.due | update.write
        return replace(
            state,
            confidence=torch.where(told > -torch.inf, told, state.confidence),
            due=due if update.remask is None else due | update.remask,
        )


def _wide(like: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32
