"""Stop strings: a response ends before the first of them, and its row leaves as soon as that is certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .engine.batch import Request
from .engine.loop import State, Step
from .text import Text

_PARTIAL = "\ufffd"  # what bytes decode to that are no complete character yet


@dataclass(frozen=True)
class Ending:
    """Where a text ends: behind so many ``tokens``, the last ``over`` characters of which belong to the stop string."""

    tokens: int
    over: int


def named(text: Text, stops: Sequence[str]) -> frozenset[int]:
    """The control tokens whose names are among stop strings: these stop at the token."""
    return frozenset(ids[0] for ids in map(text.parse, stops) if len(ids) == 1 and not text.decode(ids))


def find(text: Text, stops: Sequence[str], control: frozenset[int], ids: Sequence[int], whole: bool) -> Ending | None:
    """Where a response ends at the first of its stop strings; None where there is none, or it is not certain yet.

    Args:
        text: the tokenizer.
        stops: stop strings, not empty.
        control: those of them that are tokens, see :func:`named`.
        ids: of the response, from its first token on.
        whole: whether nothing follows them.
    """
    end = next((at for at, i in enumerate(ids) if i in control), None)
    whole = whole or end is not None
    ids = ids[:end]
    said = text.decode(ids) if whole else text.decode(ids).rstrip(_PARTIAL)
    found = [at for at in map(said.find, stops) if at >= 0] + ([] if end is None else [len(said)])
    first = min(found, default=None)
    if first is None or (not whole and any(_begun(said, stop, first) for stop in stops)):
        return None
    count = len(ids)
    while count and text.decode(ids[: count - 1]).startswith(said[:first]):
        count -= 1
    return Ending(count, len(text.decode(ids[:count])) - first)


def _begun(said: str, stop: str, before: int) -> bool:
    """Whether a stop string that is not complete may have begun before a place."""
    return any(stop.startswith(said[at:]) for at in range(max(0, len(said) - len(stop) + 1), before))


class Stops:
    """Ends rows at their stop strings; looks at each step of a run, see :func:`unmask.engine.loop.decode`.

    What is behind the end of a row is dropped: its canvas holds ends of text there. Rows leave early unless their
    policy may take tokens back or ``eos_stop`` is off; what they say is the same in any case.

    Args:
        text: the model's tokenizer.
        requests: of the run.
        early: whether the policy never takes back what it has written.
    """

    def __init__(self, text: Text, requests: Sequence[Request], early: bool) -> None:
        self.text, self.early = text, early
        self.stops = {r.row: r.stop for r in requests if r.stop}
        self.control = {stops: named(text, stops) for stops in set(self.stops.values())}
        self.seen: dict[int, int] = {}  # where each row's text has been looked at up to

    def __call__(self, state: State, step: Step) -> tuple[State, Step]:
        """The state and the step, with the rows ended that have a stop string."""
        canvas = state.canvas
        masks = (canvas.tokens == canvas.spec.mask) & canvas.valid
        ready = torch.minimum(torch.minimum(canvas.first(masks), canvas.eos_at), canvas.length)
        facts = torch.stack([state.record.row, canvas.prompt, ready, canvas.done, canvas.eos_stop], 1).tolist()
        endings = {}
        for i, (row, start, stop, done, may_leave) in enumerate(facts):
            looked = self.seen.get(row, start)
            if row in self.stops and (done or (self.early and may_leave and stop > looked)):
                self.seen[row], stops = stop, self.stops[row]
                ids = canvas.tokens[i, start:stop].tolist()
                if ending := find(self.text, stops, self.control[stops], ids, bool(done)):
                    endings[i] = ending
        return _ended(state, step, endings) if endings else (state, step)


def _ended(state: State, step: Step, endings: dict[int, Ending]) -> tuple[State, Step]:
    """With nothing but ends of text behind the ends of rows, by their indices."""
    canvas, record = state.canvas, state.record
    end, over = canvas.length.clone(), record.over.clone()
    for i, one in endings.items():
        end[i], over[i] = canvas.prompt[i] + one.tokens, one.over
    behind = canvas.valid & (canvas.position >= end[:, None])
    tokens = canvas.tokens.masked_fill(behind, canvas.spec.eos[0])
    canvas = replace(canvas, tokens=tokens, fixed=canvas.fixed & ~behind)
    record = replace(
        record,
        over=over,
        committed_at=record.committed_at.masked_fill(behind, -1),
        confidence=record.confidence.masked_fill(behind, 0.0),
    )
    finished = tuple(record.row[canvas.done].tolist())
    return replace(state, canvas=canvas, record=record), replace(step, canvas=canvas, finished=finished)
