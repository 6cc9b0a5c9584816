"""Elastic-Cache (arXiv 2510.14973): deeper layers are recomputed when attention to the text drifts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import top
from ..core.protocols import Ask, Block, Geometry, Plan, Prediction
from ..core.rows import Rows, compact
from ..core.state import PER_POSITION, Slab
from ..core.store import Store, put, slab, take, visible


@dataclass(frozen=True)
class ElasticState:
    """What is kept of every position, and what the forward pass at hand does.

    Attributes:
        store: keys and values.
        query: per layer ``[B, W, H, D]``, rotated queries.
        entering: per layer ``[B, W, C]``, the hidden states that entered it when last computed.
        start: ``[B]`` the first layer that this forward pass recomputes for all positions; the layers' number: none.
        drift: ``[B]`` the same for the next one, as its layers find it; written in place.
        due: ``[B, T]`` positions whose token has changed since they were computed.
        active: ``[B, T]`` positions computed in every layer.
        asking: ``[B, T]`` of these, those that predict the window.
        watched: ``[B, T]`` of these, the tracked tokens: most attended in the forward pass before.
        tracked: ``[B, T]`` those that this one finds; written in place.
        text: ``[B, T]`` visible tokens, which may be tracked.
        before: ``[B, T]`` positions that were computed before this forward pass.
    """

    store: Store
    query: list[Slab]
    entering: list[Slab]
    start: Tensor
    drift: Tensor
    due: Tensor = field(metadata=PER_POSITION)
    active: Tensor = field(metadata=PER_POSITION)
    asking: Tensor = field(metadata=PER_POSITION)
    watched: Tensor = field(metadata=PER_POSITION)
    tracked: Tensor = field(metadata=PER_POSITION)
    text: Tensor = field(metadata=PER_POSITION)
    before: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class ElasticCache(Cache):
    """Computes the window, new tokens and a few tracked ones; when the attention of these drifts, deeper layers of all.

    Tracked are, per layer, the ``track`` tokens that the window's positions attend to most: their keys and values move
    least. If in a layer their attention has a cosine similarity below ``gamma`` with that of the forward pass before,
    the deeper layers are recomputed for all positions, from the hidden states that last entered them. What was learned
    in one forward pass is applied in the next: the authors' code waits for the device in every layer, and recomputes in
    the same. Attention is averaged over the heads.

    Memory: keys, values, queries and hidden states, 4 T d layers.
    """

    name = "elastic"
    paper = "arXiv 2510.14973"

    gamma: float = param(
        0.9, "cosine similarity of a tracked token's attention below which deeper layers are recomputed", ge=0, le=2
    )
    track: int = param(1, "tokens tracked for each layer", ge=1, le=64)

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> ElasticState:
        """Empty stores."""
        tails = (geometry.heads, geometry.head_dim), (geometry.width,)
        query, entering = ([slab(canvas, tail, like) for _ in range(geometry.layers)] for tail in tails)
        never, nothing = torch.full_like(canvas.prompt, geometry.layers), torch.zeros_like(canvas.valid)
        return ElasticState(Store.empty(canvas, geometry, like), query, entering, never, never, *[nothing] * 7)

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: ElasticState) -> tuple[Plan, ElasticState]:
        """The window, new and tracked positions, what was never seen; all where deeper layers are recomputed."""
        keys, layers = visible(canvas, ask, need), len(state.query)
        text = keys & ~canvas.masked
        watched = state.tracked & text & state.store.known & ~state.due
        some = state.due | watched
        rest = keys & (state.drift < layers)[:, None]
        if ask.stale is not None:
            some, rest = some & ~ask.stale, rest & ~ask.stale
        active = keys & (some | ~state.store.known) | need
        if ask.refresh is not None:
            active = active | keys & ask.refresh[:, None]
        compute = active | rest
        few, most = active.sum(1), compute.sum(1)
        watched, asking = watched & active, need & canvas.valid
        start = torch.where(most > few, state.drift, layers)
        host = {"few": few, "watched": watched.sum(1), "asking": asking.sum(1), "start": start}
        after = replace(
            state,
            store=state.store.learn(canvas, compute),
            start=start,
            drift=torch.full_like(state.drift, layers),
            due=state.due & ~active,
            active=active,
            asking=asking,
            watched=watched,
            tracked=torch.zeros_like(text),
            text=text,
            before=state.store.known,
        )
        work = (few * start + most * (layers - start)).double() / layers
        return Plan(compute, keys, work, active, host=host), after

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: ElasticState) -> Tensor:
        """The ordinary layer for the active positions, for all where it is recomputed."""
        if index in rows.host["start"]:
            held = (rows.of(state.start) == index)[:, None] & ~_at(rows, state.active)
            hidden = torch.where(held[:, :, None], take(state.entering[index], rows), hidden)
        chosen, real = self._slots(index, rows, state)
        row, at = torch.arange(len(hidden), device=hidden.device)[:, None], chosen.clamp(max=rows.slots - 1)
        position = torch.where(real, rows.position.gather(1, at), rows.total)
        rows.layers.append(position)
        part, rotary = hidden[row, at], rows.rotary[row if len(rows.rotary) > 1 else 0, at]
        query, key, value = block.qkv(part, rotary)
        old = self._weights(index, block, rows, state, "watched", state.before)
        put(state.entering[index], rows, part, position)
        put(state.query[index], rows, query, position)
        put(state.store.key[index], rows, key, position)
        put(state.store.value[index], rows, value, position)
        part = part + block.attend(query, *state.store.reach(index, rows), rows.keys_of(at))
        self._track(index, block, old, rows, state)
        part = torch.where(real[:, :, None], part + block.mlp(part), hidden[row, at])
        return F.pad(hidden, (0, 0, 0, 1)).index_put((row, chosen), part)[:, :-1]

    @staticmethod
    def _slots(index: int, rows: Rows, state: ElasticState) -> tuple[Tensor, Tensor]:
        """``[B, N]`` the slots that a layer computes (Q: none), and which of them are meant."""
        if min(rows.host["start"]) > index:
            active = _listed(rows, state.active, "few")
            return active, active < rows.slots
        place = torch.arange(rows.slots, device=rows.position.device).expand_as(rows.position)
        due = (rows.of(state.start) <= index)[:, None] & (rows.position < rows.total)
        return place, due | _at(rows, state.active)

    @staticmethod
    def _weights(
        index: int, block: Block, rows: Rows, state: ElasticState, name: str, known: Tensor | None = None
    ) -> Tensor | None:
        """``[B, N, S]`` what the positions of ``name`` attend to, by stored queries and keys; None: there are none.

        ``known [B, T]``: of the keys these alone.
        """
        if not rows.most(name):
            return None
        at = _listed(rows, getattr(state, name), name).clamp(max=rows.slots - 1)
        place, held = rows.position.gather(1, at), state.query[index]
        query = held.data.flatten(0, 1)[rows.index_of(place, held.width)].view(*place.shape, *held.tail)
        keys = rows.keys_of(at)
        if known is not None:
            some = rows.of(known)[:, : rows.extent]
            keys = keys & (some if keys.dim() == 2 else some[:, None]) if isinstance(keys, Tensor) else some
        return block.weigh(query, state.store.reach(index, rows)[0], keys)

    def _track(self, index: int, block: Block, old: Tensor | None, rows: Rows, state: ElasticState) -> None:
        """Note the most attended text, and whether the attention of what is tracked has left ``old``."""
        row: Tensor | slice = slice(None) if rows.row is None else rows.row
        weights = self._weights(index, block, rows, state, "asking")
        if weights is not None:
            count = rows.of(state.asking).sum(1, keepdim=True)
            real = torch.arange(weights.shape[1], device=weights.device) < count
            received = (weights * real[:, :, None]).sum(1)
            found = top(torch.where(rows.of(state.text)[:, : rows.extent], received, -torch.inf), self.track)
            state.tracked[row, : rows.extent] |= found & (count > 0)
        now = self._weights(index, block, rows, state, "watched")
        if old is None or now is None:
            return
        alike = F.cosine_similarity(old, now * rows.of(state.before)[:, None, : rows.extent], dim=-1)
        count = rows.of(state.watched).sum(1)
        alike = (alike * (torch.arange(old.shape[1], device=old.device) < count[:, None])).sum(1) / count.clamp(min=1)
        moved = (alike < self.gamma) & (count > 0) & (rows.of(state.start) > index)
        state.drift[row] = torch.minimum(rows.of(state.drift), torch.where(moved, index + 1, len(state.query)))

    def note(self, update: Update, prediction: Prediction, state: ElasticState) -> ElasticState:
        """Remember whose token has changed."""
        changed = update.write if update.remask is None else update.write | update.remask
        return replace(state, due=state.due | changed)


def _at(rows: Rows, mask: Tensor) -> Tensor:
    """``[B, Q]`` what a mask ``[B, T]`` of all rows says of the slots; false where they are empty."""
    return F.pad(rows.of(mask), (0, 1)).gather(1, rows.position)


def _listed(rows: Rows, mask: Tensor, name: str) -> Tensor:
    """``[B, N]`` the slots of a mask ``[B, T]``, Q behind them; N is the largest of these rows' numbers of ``name``."""
    if name not in rows.scratch:
        rows.scratch[name] = compact(_at(rows, mask), rows.most(name))
    return rows.scratch[name]
