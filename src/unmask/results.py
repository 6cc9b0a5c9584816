"""What a row has become: its text, its tokens, and what they cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from .engine.loop import State
from .text import Text


@dataclass(frozen=True)
class Stats:
    """What one response cost.

    Attributes:
        nfe: forwards of the network that this row took part in.
        tokens: tokens decoded before the first end of text or stop string; the honest numerator of every rate.
        tpf: tokens per forward, ``tokens / nfe``.
        positions: positions computed, averaged over the layers and summed over the forwards.
        seconds: wall time from the row's admission to its end; rows of a batch share it.
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
    """A run of positions that were decoded.

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
    """One response.

    Attributes:
        text: what was generated, up to the end of text or a stop string; of a text with gaps, the whole text with the
            gaps filled. "" when the model has no tokenizer.
        tokens: ``gen_length`` ids; positions never filled because of an early end of text, and those behind a stop
            string, hold the end-of-text id. Of a text with gaps, everything from the first gap on.
        prompt_tokens: the prompt's ids; of a text with gaps, what precedes the first gap too.
        steps: for each of ``tokens``, the forward (from 0) that committed it; -1 where none did or it was
            dropped.
        stats: what it cost.
        spans: the parts of ``tokens`` that were decoded: all of it, or the gaps.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    steps: list[int]
    stats: Stats
    spans: tuple[Span, ...]


def result_of(state: State, i: int, text: Text | None) -> Result:
    """The result of row ``i`` of a state, which is done."""
    canvas, record, eos = state.canvas, state.record, state.canvas.spec.eos[0]
    low, high = int(canvas.prompt[i]), int(canvas.length[i])
    ids: list[int] = canvas.tokens[i, :high].tolist()
    tokens = [eos if token == canvas.spec.mask else token for token in ids[low:]]
    end = min(int(canvas.eos_at[i]), high) - low
    given: list[bool] = canvas.fixed[i, low:high].tolist()
    count, nfe = given[:end].count(False), int(record.nfe[i])
    seconds = time.perf_counter() - float(record.born[i])
    stats = Stats(nfe, count, count / nfe, float(record.work[i]), seconds, count / seconds)

    def decoded(part: list[int], last: bool = True) -> str:
        said = text.decode(part) if text else ""
        return said[: len(said) - int(record.over[i])] if last else said

    runs = [[at for at, _ in run] for fixed, run in groupby(enumerate(given), itemgetter(1)) if not fixed]
    bounds = [(run[0], run[-1] + 1) for run in runs]
    spans = tuple(
        Span(first, decoded(tokens[first : min(stop, end)], first < end <= stop), tokens[first:stop])
        for first, stop in bounds
    )
    whole = decoded([*ids[int(record.begin[i]) : low], *tokens[:end]])
    return Result(whole, tokens, ids[:low], record.committed_at[i, low:high].tolist(), stats, spans)
