"""One forward pass of a batch. It knows no method: policies ask and decide, caches plan and run the layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, Update
from ..core.policy import Policy
from ..core.predict import MEASURES
from ..core.protocols import Ask, Sampling
from ..core.state import PER_POSITION, blank, slabs
from ..models.denoiser import Branches, Denoiser
from .branching import forward, joined, settled


@dataclass(frozen=True)
class Record:
    """What each row has cost and when each token came.

    Attributes:
        nfe: ``[B]`` forward passes.
        work: ``[B]`` positions computed, averaged over the layers, summed over the forward passes.
        committed_at: ``[B, T]`` the row's forward pass (from 0) that committed each position; -1 elsewhere.
        confidence: ``[B, T]`` with which it was committed; 0 elsewhere, and where it was not predicted.
    """

    nfe: Tensor
    work: Tensor
    committed_at: Tensor = field(metadata=PER_POSITION)
    confidence: Tensor = field(metadata=PER_POSITION)

    @staticmethod
    def start(canvas: Canvas) -> Record:
        """Nothing done yet."""
        zero = torch.zeros_like(canvas.prompt)
        nothing = torch.zeros(canvas.tokens.shape, device=zero.device)
        return Record(zero, zero.double(), torch.full_like(canvas.tokens, -1), nothing)

    def after(self, update: Update, confidence: Tensor, work: Tensor) -> Record:
        """One forward pass later."""
        at = torch.where(update.write, self.nfe[:, None], self.committed_at)
        sure = torch.where(update.write, confidence.float().clamp(min=0), self.confidence)
        if update.remask is not None:
            at, sure = at.masked_fill(update.remask, -1), sure.masked_fill(update.remask, 0.0)
        return Record(self.nfe + 1, self.work + work, at, sure)


@dataclass(frozen=True)
class State:
    """Everything that is held of the rows of a batch; :mod:`unmask.core.state` moves rows in and out."""

    canvas: Canvas
    policy: Any
    cache: Branches
    sampling: Sampling
    record: Record


@dataclass(frozen=True)
class Commit:
    """One committed token: ``row`` (the request's id), ``position`` on the canvas, ``token`` id, ``confidence``."""

    row: Any
    position: int
    token: int
    confidence: float


@dataclass(frozen=True)
class Status:
    """What the host knows of a row after a forward pass.

    Attributes:
        done: nothing is left to fill.
        finite: the logits were numbers.
        settled: positions from the start of the canvas on that hold final text: up to the first masked position, the
            end of text or the end of the row.
        ended: the row has an end of text with no masked position before it.
        wanted: positions of prompt and response, as long as that is now.
    """

    done: bool
    finite: bool
    settled: int
    ended: bool
    wanted: int


@dataclass(frozen=True)
class Step:
    """What one forward pass did, for the rows that took part in it.

    Attributes:
        index: forward passes of the run before this one.
        rows: ids of the rows, ``B`` of them.
        forward: ``[B]`` each row's own forward pass, from 0.
        ask: what the policy asked for.
        update: what it committed and re-masked.
        confidence: ``[B, T]`` of the predicted tokens; -inf where none was predicted.
        work: ``[B]`` positions computed, averaged over the layers.
        seconds: duration of the step; ``model_seconds``: of that, spent in the network.
        canvas: the canvas after the update.
        committed_at: ``[B, T]`` the row's forward pass that committed each position of it; -1 elsewhere.
        status: of each row, on the host.
        computed: ``computed()`` is ``[B, T]``, how many layers have computed each position. Found out when called.
        notes: ``notes()`` is what the policy shows of the step, ``[B]`` each; see :meth:`Policy.notes`. The same.
        finished: ids of the rows that this step finished.
    """

    index: int
    rows: tuple[Any, ...]
    forward: Tensor
    ask: Ask
    update: Update
    confidence: Tensor
    work: Tensor
    seconds: float
    model_seconds: float
    canvas: Canvas
    committed_at: Tensor
    status: tuple[Status, ...]
    computed: Callable[[], Tensor]
    notes: Callable[[], Mapping[str, Tensor]]
    finished: tuple[Any, ...] = ()

    def committed(self) -> list[Commit]:
        """The tokens written, by row and position; 0 is the confidence of those that were not predicted."""
        at, position = self.update.write.nonzero(as_tuple=True)
        parts = (position, self.update.token[at, position], self.confidence[at, position].clamp(min=0))
        return [
            Commit(self.rows[i], *values) for i, *values in zip(at.tolist(), *(p.tolist() for p in parts), strict=True)
        ]

    def remasked(self) -> list[tuple[Any, int]]:
        """Row id and position of the tokens that became masked again."""
        if self.update.remask is None:
            return []
        at, position = self.update.remask.nonzero(as_tuple=True)
        return [(self.rows[i], place) for i, place in zip(at.tolist(), position.tolist(), strict=True)]


@torch.no_grad()
def start(model: Denoiser, cache: Cache, policy: Policy, canvas: Canvas, sampling: Sampling) -> State:
    """The state before the first forward pass, of a canvas that has columns for the policy's probes behind its rows."""
    made, held = policy.init(canvas, sampling), model.init(canvas, cache, policy.guidance)
    for slab in slabs(held):
        slab.copies = policy.branches
    return State(canvas, made, held, sampling, Record.start(canvas))


@torch.no_grad()
def step(
    model: Denoiser, cache: Cache, policy: Policy, state: State, index: int, rows: Sequence[Any] | None = None
) -> tuple[State, Step]:
    """One forward pass and what the policy makes of it. ``rows``: ids of the rows; None: 0, 1, ...

    Waits for the device twice: once in the model, once for the status of the rows.
    """
    began = time.perf_counter()
    canvas, record = state.canvas, state.record
    ask = policy.ask(canvas, state.policy)
    answer = forward(model, cache, policy, state, ask)
    own = replace(answer.prediction, confidence=answer.prediction.confidence.clone())  # which it may change in place
    for name in MEASURES.keys() & (cache.needs - policy.needs):  # what the cache alone has asked for
        own = replace(own, **{name: None})  # type: ignore[arg-type]
    update, policy_state = policy.decide(canvas, own, state.policy)
    left, ask, answer = settled(canvas, ask, answer, update)
    if (bound := state.sampling.bound) is not None:
        update = bound.hold(left, update, answer.prediction.token, policy.chooses)
    update = joined(canvas, left, update)
    plain, free = answer.state.plain, answer.state.free
    learn = partial(cache.note, update, answer.prediction)
    cache_state = replace(answer.state, plain=learn(plain), free=learn(free) if policy.guidance else None)
    after, sure = canvas.apply(update), answer.prediction.confidence
    if update.source is not None:  # tokens that move keep their confidence
        known = torch.where(sure > -torch.inf, sure, record.confidence)
        sure = torch.where(update.write, known.gather(1, update.source), sure)
    record = record.after(update, sure, answer.work)
    if update.grow is not None:  # what was known of positions that are gone does not come back with them
        gone = ~after.valid
        policy_state, cache_state = blank(policy_state, gone), blank(cache_state, gone)
    status = _status(after, answer.prediction.confidence, policy.remasks)
    event = Step(
        index,
        tuple(range(len(status))) if rows is None else tuple(rows),
        state.record.nfe,
        ask,
        update,
        sure,
        answer.work,
        time.perf_counter() - began,
        answer.seconds(),
        after,
        record.committed_at,
        status,
        answer.computed,
        partial(policy.notes, canvas, state.policy, policy_state),
    )
    return State(after, policy_state, cache_state, state.sampling, record), event


def _status(canvas: Canvas, confidence: Tensor, remasks: bool) -> tuple[Status, ...]:
    """The status of each row, read at once."""
    masks = canvas.first((canvas.tokens == canvas.spec.mask) & canvas.valid)
    settled = torch.minimum(torch.minimum(masks, canvas.eos_at), canvas.wanted)
    if remasks and canvas.spec.block is not None:  # what it has committed in the current block may change
        settled = torch.where(canvas.done, settled, torch.minimum(settled, canvas.base))
    facts = [canvas.done, ~confidence.isnan().any(1), settled, canvas.eos_at < masks, canvas.wanted]
    return tuple(
        Status(bool(done), bool(finite), at, bool(ended), wanted)
        for done, finite, at, ended, wanted in zip(*torch.stack([fact.long() for fact in facts]).tolist(), strict=True)
    )
