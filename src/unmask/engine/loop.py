"""The loop. It knows no method: policies ask and decide, caches plan, everyone else listens to its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.errors import UnmaskError
from ..core.protocols import Ask, Cache, Policy, Sampling
from ..core.rows import append, select
from ..models.denoiser import Branches, Denoiser


@dataclass(frozen=True)
class Record:
    """What each row has cost and when each token came.

    Attributes:
        row: ``[B]`` the row's id in the run.
        begin: ``[B]`` position at which the row's text begins.
        nfe: ``[B]`` forwards of the network.
        work: ``[B]`` positions computed, averaged over the layers, summed over the forwards.
        committed_at: ``[B, T]`` the row's forward (from 0) that committed each position; -1 elsewhere.
        confidence: ``[B, T]`` with which it was committed; 0 elsewhere.
        born: ``[B]`` seconds, clock reading when the row was admitted.
        over: ``[B]`` characters of the last token that belong to a stop string, not to the text.
    """

    row: Tensor
    begin: Tensor
    nfe: Tensor
    work: Tensor
    committed_at: Tensor
    confidence: Tensor
    born: Tensor
    over: Tensor

    @staticmethod
    def start(canvas: Canvas, row: Tensor, begin: Tensor) -> Record:
        """Nothing done yet."""
        zero = torch.zeros_like(canvas.prompt)
        return Record(
            row,
            begin,
            zero,
            zero.double(),
            torch.full_like(canvas.tokens, -1),
            torch.zeros(canvas.tokens.shape, device=zero.device),
            torch.full(zero.shape, time.perf_counter(), dtype=torch.float64, device=zero.device),
            zero,
        )

    def after(self, update: Update, confidence: Tensor, work: Tensor) -> Record:
        """One forward later."""
        at = torch.where(update.write, self.nfe[:, None], self.committed_at)
        sure = torch.where(update.write, confidence.float(), self.confidence)
        if update.remask is not None:
            at, sure = at.masked_fill(update.remask, -1), sure.masked_fill(update.remask, 0.0)
        return replace(self, nfe=self.nfe + 1, work=self.work + work, committed_at=at, confidence=sure)


@dataclass(frozen=True)
class State:
    """Everything a run knows of its rows; :func:`unmask.core.rows.select` and ``append`` move rows out and in."""

    canvas: Canvas
    policy: Any
    cache: Branches
    sampling: Sampling
    record: Record


@dataclass(frozen=True)
class Commit:
    """One committed token: ``row`` id, ``position`` on the canvas, ``token`` id, ``confidence``."""

    row: int
    position: int
    token: int
    confidence: float


@dataclass(frozen=True)
class Step:
    """What one forward did, for the rows that took part in it.

    Attributes:
        index: forwards of the run before this one.
        row: ``[B]`` ids of the rows.
        forward: ``[B]`` each row's own forward, from 0.
        ask: what the policy asked for.
        update: what it committed and re-masked.
        confidence: ``[B, T]`` of the proposed tokens; -inf where not asked.
        work: ``[B]`` positions computed, averaged over the layers.
        seconds: duration of the step; ``model_seconds``: of that, spent in the network.
        canvas: the canvas after the update.
        finished: ids of the rows that this step finished.
        computed: ``computed()`` is ``[B, T]``, how many layers have computed each position. Found out when called.
        notes: ``notes()`` is what the policy tells of the step, ``[B]`` each; see :meth:`Policy.notes`. The same.
    """

    index: int
    row: Tensor
    forward: Tensor
    ask: Ask
    update: Update
    confidence: Tensor
    work: Tensor
    seconds: float
    model_seconds: float
    canvas: Canvas
    finished: tuple[int, ...]
    computed: Callable[[], Tensor]
    notes: Callable[[], Mapping[str, Tensor]] = dict

    def committed(self) -> list[Commit]:
        """The tokens written, by row and position."""
        at, position = self.update.write.nonzero(as_tuple=True)
        parts = (self.row[at], position, self.update.token[at, position], self.confidence[at, position])
        return [Commit(*values) for values in zip(*(p.tolist() for p in parts), strict=True)]

    def remasked(self) -> list[tuple[int, int]]:
        """(row id, position) of the tokens turned back into masks."""
        if self.update.remask is None:
            return []
        at, position = self.update.remask.nonzero(as_tuple=True)
        return list(zip(self.row[at].tolist(), position.tolist(), strict=True))


Look = Callable[[State, Step], tuple[State, Step]]


def start(
    model: Denoiser,
    cache: Cache,
    policy: Policy,
    canvas: Canvas,
    sampling: Sampling,
    row: Tensor | None = None,
    begin: Tensor | None = None,
) -> State:
    """The state before the first forward.

    ``row [B]`` are the ids (default 0, 1, ...), ``begin [B]`` where their texts begin (default: behind the prompt).
    """
    row = torch.arange(len(canvas.tokens), device=canvas.tokens.device) if row is None else row
    canvas = canvas.widened(policy.probes) if policy.probes else canvas
    return State(
        canvas,
        policy.init(canvas, sampling),
        model.init(canvas, cache, policy.guidance),
        sampling,
        Record.start(canvas, row, canvas.prompt if begin is None else begin),
    )


def step(model: Denoiser, cache: Cache, policy: Policy, state: State, index: int) -> tuple[State, Step]:
    """One forward and what the policy makes of it."""
    began = time.perf_counter()
    canvas, record = state.canvas, state.record
    ask = policy.ask(canvas, state.policy)
    answer = model(
        canvas, ask, cache, state.cache, state.sampling, record.nfe, needs=policy.needs, guidance=policy.guidance
    )
    update, policy_state = policy.decide(canvas, answer.prediction, state.policy)
    plain, free = answer.state.plain, answer.state.free
    learn = partial(cache.note, update, answer.prediction)
    cache_state = Branches(learn(plain), learn(free) if policy.guidance else None)
    after = canvas.apply(update)
    record = record.after(update, answer.prediction.confidence, answer.work)
    event = Step(
        index,
        record.row,
        state.record.nfe,
        ask,
        update,
        answer.prediction.confidence,
        answer.work,
        time.perf_counter() - began,
        answer.seconds,
        after,
        tuple(record.row[after.done].tolist()),
        answer.computed,
        partial(policy.notes, canvas, state.policy, policy_state) if hasattr(policy, "notes") else dict,
    )
    return State(after, policy_state, cache_state, state.sampling, record), event


def decode(
    model: Denoiser,
    cache: Cache,
    policy: Policy,
    state: State | None,
    admit: Callable[[int], State | None] = lambda rows: None,
    look: Look = lambda state, event: (state, event),
) -> Iterator[tuple[State, Step]]:
    """Decode rows until none is left; a row leaves the batch with the step that finishes it.

    Args:
        model, cache, policy: any of each.
        state: the rows to begin with, from :func:`start`; None: wait for ``admit``.
        admit: called before each forward with the number of rows in the batch; the state of rows that enter, or None.
        look: called after each step with what it has led to; may finish rows, and returns both as they are then.

    Yields:
        The state after each step, finished rows included, and the step. ``Step.finished`` names them.

    Raises:
        UnmaskError: a row takes more forwards than it has positions to fill, four times over.
    """
    for index in count():
        fresh = admit(0 if state is None else len(state.canvas.tokens))
        if fresh is not None:
            state = fresh if state is None else append(state, fresh)
        if state is None:
            return
        state, event = look(*step(model, cache, policy, state, index))
        yield state, event
        state = _remaining(policy, state, event)


def _remaining(policy: Policy, state: State, event: Step) -> State | None:
    """The state without its finished rows; None when none is left."""
    if len(event.finished) == len(event.row):
        return None
    if event.finished:
        state = select(state, (~state.canvas.done).nonzero()[:, 0])
    limit = 4 * (state.canvas.length - state.canvas.prompt) + 16
    if bool((state.record.nfe > limit).any()):
        raise UnmaskError(f"{policy} does not finish: a row has taken more than {int(limit.max())} forwards")
    return state
