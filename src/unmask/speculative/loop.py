"""Rounds of speculative decoding: draft, verify, keep what was accepted, for rows of different lengths side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..core.errors import RequestError
from ..core.protocols import Sampling
from ..core.state import select
from ..engine.request import SamplingParams
from ..stop import Ending, StopStrings
from .accept import verify
from .drafter import Accepted, Context, Drafter
from .target import Target
from .tree import Tree

DIFFUSION = ("late_eos", "regex", "json_schema", "choices")
"""Sampling parameters that a causal model does not take."""


@dataclass(frozen=True)
class Job:
    """One prompt to continue.

    Attributes:
        id: names it in events.
        prompt: ids.
        gen_length: tokens of the response at most.
        params: with ``suppress`` as ids and a ``seed`` that is a number.
        stops: finds its stop strings; None: it has none.
    """

    id: int
    prompt: list[int]
    gen_length: int
    params: SamplingParams
    stops: StopStrings | None = None


@dataclass
class Row:
    """A job being decoded.

    Attributes:
        tokens: generated so far, an end of text included.
        rounds: forward passes of the target that it took part in.
        drafted, accepted: tokens proposed for it, and those of them that became text.
        draft_passes: forward passes of the drafter.
        seconds: from its begin to its end; ``draft_seconds``: of these, spent drafting.
        finish_reason, ending, error: how it ended; "": it has not.
    """

    job: Job
    tokens: list[int] = field(default_factory=list)
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_passes: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0
    finish_reason: str = ""
    ending: Ending | None = None
    error: str | None = None


@dataclass(frozen=True)
class Round:
    """What one forward pass of the target did.

    Attributes:
        index: rounds before this one.
        rows: ids of the jobs that took part.
        tree: the drafts; None: there were none.
        nodes: of each row the accepted nodes, from the text on.
        tokens: of each row what its text has grown by.
        seconds: of the round; ``draft_seconds``: of these, spent drafting.
        finished: the rows that this round finished.
    """

    index: int
    rows: tuple[int, ...]
    tree: Tree | None
    nodes: list[list[int]]
    tokens: list[list[int]]
    seconds: float
    draft_seconds: float
    finished: tuple[Row, ...]


@torch.inference_mode()
def rounds(target: Target, drafter: Drafter | None, jobs: Sequence[Job], ends: frozenset[int]) -> Iterator[Round]:
    """Decode some jobs together; ``drafter`` None: a token of each row in every forward pass of the target."""
    rows = [Row(job) for job in jobs]
    began, index = time.perf_counter(), 0
    longest = max(len(job.prompt) + job.gen_length for job in jobs)
    target.begin(len(rows), longest + (drafter.nodes if drafter else 0))
    waiting = [list(job.prompt) for job in jobs]
    sampling, count = _sampling(jobs, target.device), torch.zeros(len(jobs), dtype=torch.long, device=target.device)
    state: Any = None
    while rows:
        start = time.perf_counter()
        context = _context(target, rows, sampling, count, ends, longest)
        if drafter is not None and index == 0:
            state = drafter.begin(context)
        tree = drafter.propose(context, state) if drafter is not None and context.room else None
        drafting = time.perf_counter() - start
        hidden, logits = target.read(waiting, tree)
        _suppress(logits, sampling)
        finite = logits[:, 0].isfinite().any(-1).tolist()
        nothing = Tree(sampling.seed[:, None][:, :0], tuple(() for _ in rows))
        drafts = nothing if tree is None else tree
        verdict = verify(drafts, logits, sampling, context.place, count)
        nodes = [drafts.path(i, node) for i, node in enumerate(verdict.node)]
        ids = drafts.token.tolist() if tree is not None else [[] for _ in rows]
        news = [[*(own[n] for n in path), last] for own, path, last in zip(ids, nodes, verdict.bonus, strict=True)]
        target.keep(waiting, nodes)
        if drafter is not None:
            begin = time.perf_counter()
            drafter.learn(context, Accepted(drafts, nodes, news, hidden, logits, [len(w) for w in waiting]), state)
            drafting += time.perf_counter() - begin
        for i, row in enumerate(rows):
            _grow(row, news[i], drafts, i, drafting, bool(finite[i]), ends)
            row.seconds = time.perf_counter() - began
        done = tuple(row for row in rows if row.finish_reason)
        yield Round(
            index, tuple(row.job.id for row in rows), tree, nodes, news, time.perf_counter() - start, drafting, done
        )
        index, count, waiting = index + 1, count + 1, [[own[-1]] for own in news]
        if done:
            left = [i for i, row in enumerate(rows) if not row.finish_reason]
            rows, waiting = [rows[i] for i in left], [waiting[i] for i in left]
            if rows:
                target.rows(left)
                state = drafter.keep(state, left) if drafter is not None else None
                sampling, count = select(sampling, left), select(count, left)


def _context(
    target: Target, rows: Sequence[Row], sampling: Sampling, count: torch.Tensor, ends: frozenset[int], longest: int
) -> Context:
    room = max(row.job.gen_length - len(row.tokens) for row in rows) - 1
    stops = frozenset() if all(row.job.params.ignore_eos for row in rows) else ends
    texts = [[*row.job.prompt, *row.tokens] for row in rows]
    return Context(target, texts, [len(row.job.prompt) for row in rows], room, longest, sampling, count, stops)


def _grow(
    row: Row, news: list[int], tree: Tree, index: int, drafting: float, finite: bool, ends: frozenset[int]
) -> None:
    """Add the tokens of a round to a row, up to its end."""
    silent = tree.probe[index] if tree.probe else frozenset()
    row.rounds += 1
    row.drafted += len(tree.parents[index]) - len(silent)
    row.accepted += len(news) - 1
    row.draft_passes += tree.passes
    row.draft_seconds += drafting
    if not finite:
        row.finish_reason, row.error = "error", "the target's logits are not finite"
        return
    before = len(row.tokens)
    row.tokens += news
    if not row.job.params.ignore_eos:
        end = next((i for i, token in enumerate(news) if token in ends), None)
        if end is not None:
            del row.tokens[before + end + 1 :]
            row.finish_reason = "eos"
    if len(row.tokens) >= row.job.gen_length:
        cut = row.finish_reason == "" or len(row.tokens) > row.job.gen_length
        del row.tokens[row.job.gen_length :]
        row.finish_reason = "length" if cut else row.finish_reason
    if row.job.stops is not None:
        said = [t for t in row.tokens if row.job.params.ignore_eos or t not in ends]
        row.ending = row.job.stops.find(said, bool(row.finish_reason))
        row.finish_reason = "stop" if row.ending else row.finish_reason


def _sampling(jobs: Sequence[Job], device: torch.device) -> Sampling:
    params = [job.params for job in jobs]

    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(p, name) for p in params], dtype=dtype, device=device)

    width = max(len(p.suppress) for p in params)
    silent = None
    if width:
        rows = [[*(int(i) + 1 for i in p.suppress), *[0] * (width - len(p.suppress))] for p in params]
        silent = torch.tensor(rows, device=device)
    return Sampling(
        column("temperature", torch.float64),
        column("top_p", torch.float64),
        column("top_k", torch.long),
        column("seed", torch.long),
        suppress=silent,
        samples=any(p.temperature > 0 for p in params),
        filters=any(p.top_p < 1 or p.top_k > 0 for p in params),
    )


def _suppress(logits: torch.Tensor, sampling: Sampling) -> None:
    """Give suppressed tokens probability zero, in ``logits [B, 1 + N, V]``."""
    if sampling.suppress is None:
        return
    batch, _, vocab = logits.shape
    silent = torch.zeros(batch, vocab + 1, dtype=torch.bool, device=logits.device)
    silent.scatter_(1, sampling.suppress, True)
    logits.masked_fill_(silent[:, None, 1:], -torch.inf)


def check(target: Target, drafter: Drafter | None, jobs: Sequence[Job]) -> None:
    """Refuse what cannot be decoded.

    Raises:
        RequestError: an empty prompt, ids out of range, too long for the context; names the job.
        ModelError: a drafter that does not fit.
    """
    model = target.model
    if drafter is not None:
        drafter.check(target)
        if drafter.nodes >= model.description.context:
            raise RequestError(
                f"{drafter} drafts trees of {drafter.nodes} tokens; the {model.what} {model.source!r} has a context of "
                f"{model.description.context}"
            )
    for job in jobs:
        if not job.prompt:
            raise RequestError("the prompt is empty; at least one token is needed", job.id)
        if job.gen_length < 1:
            raise RequestError(f"gen_length must be at least 1, got {job.gen_length}", job.id)
        low, high, limit = min(job.prompt), max(job.prompt), model.description.context
        if low < 0 or high >= model.vocab:
            odd = low if low < 0 else high
            raise RequestError(f"it has the id {odd}; accepted are 0 to {model.vocab - 1}", job.id)
        if len(job.prompt) + job.gen_length > limit:
            raise RequestError(
                f"it has {len(job.prompt)} tokens and gen_length is {job.gen_length}: together "
                f"{len(job.prompt) + job.gen_length}, but the {model.what}'s context is {limit}",
                job.id,
            )
        outside = [i for i in job.params.suppress if not 0 <= int(i) < model.vocab]
        if outside:
            raise RequestError(f"suppress has the id {outside[0]}; accepted are 0 to {model.vocab - 1}", job.id)
        for name in DIFFUSION:
            if getattr(job.params, name):
                raise RequestError(f"{name} is for diffusion models; a causal model does not take it", job.id)


def replaced(jobs: Sequence[Job], first: int) -> list[Job]:
    """The same with ids that count from ``first``."""
    return [replace(job, id=first + i) for i, job in enumerate(jobs)]
