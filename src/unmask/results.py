"""What a request has become: its text, its tokens, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from .core.canvas import ModelSpec
from .engine.outcome import FinishReason, Outcome
from .text import Text


@dataclass(frozen=True)
class Stats:
    """What one response cost.

    Attributes:
        nfe: forward passes that this response took part in.
        tokens: tokens generated before the first end of text or stop string; the honest numerator of every rate.
        tpf: tokens per forward pass, ``tokens / nfe``.
        positions: positions computed, averaged over the layers and summed over the forward passes.
        seconds: time in the engine from admission to the end, in which the caller's own time does not count; the
            responses of a batch share it.
        tokens_per_second: ``tokens / seconds``.
    """

    nfe: int
    tokens: int
    tpf: float
    positions: float
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Span:
    """A run of positions that were generated.

    Attributes:
        start: index of the first in the result's ``tokens``.
        text: of the tokens up to the end of text or a stop string; "" when the model has no tokenizer.
        tokens: ids.
    """

    start: int
    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Result:
    """A response.

    Attributes:
        text: up to the end of text or the first stop string; of an infilled text the whole. "" when the model has no
            tokenizer.
        tokens: ids of the response, ``gen_length`` of them unless the policy changes that; ends of text where nothing
            was generated, masks where the request failed or was aborted before.
        prompt_tokens: ids of the prompt.
        steps: of each token, the row's forward pass (from 0) that committed it; -1 where none did or it was dropped.
        confidence: of each token, its probability when it was committed.
        stats: what it cost.
        spans: the parts of ``tokens`` that were generated: all of it, or the gaps.
        finish_reason: ``eos``, ``stop`` (a stop string), ``length`` (all of the response is filled), ``abort``
            or ``error``.
        error: what went wrong, where finish_reason is ``error``.
        seed: of the sampling noise.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    steps: list[int]
    confidence: list[float]
    stats: Stats
    spans: tuple[Span, ...]
    finish_reason: FinishReason
    error: str | None
    seed: int


def result_of(outcome: Outcome, text: Text | None, spec: ModelSpec) -> Result:
    """The result of a request that has ended."""
    request, tokens = outcome.request, outcome.tokens
    over = outcome.ending.over if outcome.ending else 0
    given = [at in request.fixed for at in range(len(tokens))]
    end = _end(outcome, spec)
    count = sum(not own for own in given[:end])
    seconds, nfe = outcome.seconds, outcome.nfe
    stats = Stats(
        nfe, count, count / nfe if nfe else 0.0, outcome.positions, seconds, count / seconds if seconds else 0.0
    )

    def decoded(part: Sequence[int], last: bool = True) -> str:
        whole = text.decode(list(part)) if text else ""
        return whole[: len(whole) - over] if last else whole

    runs = [[at for at, _ in run] for fixed, run in groupby(enumerate(given), itemgetter(1)) if not fixed]
    bounds = [(run[0], run[-1] + 1) for run in runs]
    spans = tuple(
        Span(first, decoded(tokens[first : min(stop, end)], first < end <= stop), tokens[first:stop])
        for first, stop in bounds
    )
    prompt = list(request.prompt)
    lead = prompt[len(prompt) if request.begin is None else request.begin :]
    return Result(
        decoded([*lead, *tokens[:end]]),
        tokens,
        prompt,
        outcome.steps,
        outcome.confidence,
        stats,
        spans,
        outcome.finish_reason,
        outcome.error,
        request.params.seed or 0,
    )


def _end(outcome: Outcome, spec: ModelSpec) -> int:
    """How many tokens stand before the end of text, a stop string, or the first token that was not generated."""
    if outcome.ending:
        return outcome.ending.tokens
    last = max(outcome.request.fixed, default=0)
    ends = (at for at, i in enumerate(outcome.tokens) if i == spec.mask or (at >= last and i in spec.eos))
    return next(ends, len(outcome.tokens))
