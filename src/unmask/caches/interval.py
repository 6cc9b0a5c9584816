"""dLLM-Cache (arXiv 2506.06295): long intervals for the prompt, short ones and an adaptive share for the response."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas
from ..core.config import param
from ..core.protocols import Ask, Block, Geometry, Plan
from ..core.rows import Rows
from ..core.state import PER_POSITION, Slab
from ..core.store import Store, put, slab, take, visible


@dataclass(frozen=True)
class Work:
    """What one layer recomputes.

    Attributes:
        due: ``[B, T]`` positions recomputed for certain.
        open: ``[B, T]`` positions among which the similarity of their values chooses.
        share: ``[B]`` how many of these.
    """

    share: Tensor
    due: Tensor = field(metadata=PER_POSITION)
    open: Tensor = field(metadata=PER_POSITION)

    def host(self, name: str, compute: Tensor) -> dict[str, Tensor]:
        """What the layers need on the host, ``[B]`` each: positions carried that are not due (``left``), positions
        recomputed at the most (``most``), positions to choose among (``looks``).
        """
        left, due = (compute & ~self.due).sum(1), self.due.sum(1)
        return {f"{name}_left": left, f"{name}_most": due + self.share, f"{name}_looks": self.open.sum(1)}


@dataclass(frozen=True)
class IntervalState:
    """Stores and clocks.

    Attributes:
        store: keys and values.
        attention, feed_forward: per layer ``[B, W, C]``, the outputs that skipped positions reuse; empty lists
            where none is ever skipped.
        age: ``[B]`` forwards so far less one.
        first, rest: what this forward recomputes in layer 0 and in the others.
    """

    store: Store
    attention: list[Slab]
    feed_forward: list[Slab]
    age: Tensor
    first: Work
    rest: Work


@dataclass(frozen=True)
class IntervalCache(Cache):
    """Per layer keeps keys, values, attention output and feed-forward output of every position.

    Prompt positions refresh every ``kp`` forwards, response positions every ``kr``. In between, values of the response
    are recomputed in every layer and the share ``rho`` whose values changed most (lowest cosine similarity with the
    forward before) is recomputed; all others reuse their outputs (paper, algorithm 1). Memory: 4 T d layers, half of it
    where ``kr`` = 1.
    """

    name = "dllm"
    paper = "arXiv 2506.06295"
    captures = True

    kp: int = param(50, "forwards between refreshes of the prompt", ge=1)
    kr: int = param(7, "forwards between refreshes of the response", ge=1)
    rho: float = param(0.25, "share of response positions recomputed between refreshes", ge=0, le=1)
    first_layer: str = param(
        "full",
        "layer 0: always the whole response (the authors' later code for LLaDA), prompt and response (theirs for "
        "Dream), or like the others",
        choices=("full", "all", "adaptive"),
        hidden=True,
    )

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> IntervalState:
        """Empty stores."""
        # with kr = 1 all that is carried is computed, but for a shifted model's last prompt position
        reuses = self.kr > 1 or self.first_layer == "all" or canvas.spec.shift
        layers = range(geometry.layers if reuses else 0)
        outputs = [[slab(canvas, (geometry.width,), like) for _ in layers] for _ in range(2)]
        never = torch.full_like(canvas.prompt, -1)
        nothing = torch.zeros_like(canvas.valid)
        work = Work(torch.zeros_like(never), nothing, nothing)
        return IntervalState(Store.empty(canvas, geometry, like), outputs[0], outputs[1], never, work, work)

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: IntervalState) -> tuple[Plan, IntervalState]:
        """Positions carried through the layers: those due, those needed, and the response where it is looked at."""
        keys = visible(canvas, ask, need)
        age = state.age + 1 if ask.skipped is None else state.age + 1 + ask.skipped
        prompt_due, response_due = (self._due(state.age, age, every, ask.refresh) for every in (self.kp, self.kr))
        response = keys & canvas.response
        if ask.stale is not None:
            response = response & ~ask.stale
        due = (
            keys & ~canvas.response & prompt_due[:, None]
            | response & response_due[:, None]
            | keys & ~state.store.known
            | need & ~canvas.valid  # probes are never kept
        )
        due = due if state.attention else due | need
        share = torch.where(response_due, 0, (self.rho * response.sum(1)).floor().long())
        nothing = torch.zeros_like(due)
        always = {"full": response, "all": response | keys & ~canvas.response, "adaptive": nothing}[self.first_layer]
        compute = due | need | always | (response if self.rho else nothing)
        open_ = response & ~due if self.rho else nothing
        share = torch.minimum(share, open_.sum(1))  # what has just come into sight is due and not open
        rest = first = Work(share, due, open_)
        if self.first_layer != "adaptive":
            first = Work(torch.zeros_like(share), due | always, nothing)
        layers = len(state.store.key)
        work = (first.due.sum(1) + first.share + (layers - 1) * (due.sum(1) + share)) / layers
        store = state.store.learn(canvas, due)
        fresh = due | open_ if self.rho == 1 else due
        host = first.host("first", compute) | rest.host("rest", compute)
        return Plan(compute, keys, work, fresh, host=host), replace(state, store=store, age=age, first=first, rest=rest)

    @staticmethod
    def _due(before: Tensor, after: Tensor, every: int, refresh: Tensor | None) -> Tensor:
        due = after.div(every, rounding_mode="floor") != before.div(every, rounding_mode="floor")
        return due if refresh is None else due | refresh

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: IntervalState) -> Tensor:
        """Recompute the chosen positions, reuse the outputs of the others."""
        name, work = ("rest", state.rest) if index else ("first", state.first)
        if not rows.most(f"{name}_left"):
            rows.layers.append(rows.position)
            return self._all(index, block, hidden, rows, state)
        store, attention, feed_forward = state.store, state.attention[index], state.feed_forward[index]
        if not rows.most(f"{name}_most") and not rows.most(f"{name}_looks"):
            rows.layers.append(rows.position[:, :0])
            return hidden + take(attention, rows) + take(feed_forward, rows)
        chosen, position = self._choose(index, block, hidden, rows, store, name, work)
        rows.layers.append(position)
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        rotary = rows.rotary[row if len(rows.rotary) > 1 else 0, chosen]
        query, key, value = block.qkv(hidden[row, chosen], rotary)
        put(store.key[index], rows, key, position)
        put(store.value[index], rows, value, position)
        put(attention, rows, block.attend(query, *store.reach(index, rows), rows.keys_of(chosen)), position)
        hidden = hidden + take(attention, rows)
        put(feed_forward, rows, block.mlp(hidden[row, chosen]), position)
        return hidden + take(feed_forward, rows)

    @staticmethod
    def _all(index: int, block: Block, hidden: Tensor, rows: Rows, state: IntervalState) -> Tensor:
        query, key, value = block.qkv(hidden, rows.rotary)
        put(state.store.key[index], rows, key)
        put(state.store.value[index], rows, value)
        attended = block.attend(query, *state.store.reach(index, rows), rows.keys)
        hidden = hidden + attended
        fed = block.mlp(hidden)
        if state.attention:
            put(state.attention[index], rows, attended)
            put(state.feed_forward[index], rows, fed)
        return hidden + fed

    @staticmethod
    def _choose(
        index: int, block: Block, hidden: Tensor, rows: Rows, store: Store, name: str, work: Work
    ) -> tuple[Tensor, Tensor]:
        """Slots to recompute, ``[B, most]``, and their positions (T behind the row's own count)."""
        due, most = F.pad(rows.of(work.due), (0, 1)).gather(1, rows.position), rows.most(f"{name}_most")
        score = torch.where(due, -torch.inf, torch.inf)
        if rows.most(f"{name}_looks"):
            value = block.value(hidden)
            before = take(store.value[index], rows)
            change = F.cosine_similarity(value.flatten(2).float(), before.flatten(2).float(), dim=-1)
            open_ = F.pad(rows.of(work.open), (0, 1)).gather(1, rows.position)
            put(store.value[index], rows, value, torch.where(open_, rows.position, rows.total))
            score = torch.where(open_, change, score)
        backwards = score.flip(1).argsort(dim=1, stable=True)[:, :most]  # of equals the last, in any batch
        chosen = rows.slots - 1 - backwards
        count = due.sum(1) + rows.of(work.share)
        kept = torch.arange(most, device=hidden.device) < count[:, None]
        return chosen, torch.where(kept, rows.position.gather(1, chosen), rows.total)
