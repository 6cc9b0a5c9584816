"""Prompt look-up: what followed the same words before is proposed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...core.config import param
from ..drafter import Accepted, Context, Drafter
from ..tree import Tree

_Table = dict[tuple[int, ...], int]


@dataclass
class Seen:
    """Of one text, where each n-gram in it was last followed by something: ``{n-gram: position behind it}``."""

    at: _Table = field(default_factory=dict)
    upto: int = 0
    """Positions whose n-grams are in the table."""

    def add(self, text: Sequence[int], most: int) -> None:
        """Enter all n-grams of at most ``most`` tokens that something follows in ``text``."""
        for end in range(max(1, self.upto), len(text)):
            for n in range(1, min(most, end) + 1):
                self.at[tuple(text[end - n : end])] = end
        self.upto = max(1, len(text))


@dataclass(frozen=True)
class Ngram(Drafter):
    """Looks up the last tokens in the text so far and proposes what followed them there.

    The longest n-gram that occurs before counts, of its occurrences the last one. Costs next to nothing; drafts well
    where a response repeats its prompt or itself.
    """

    name = "ngram"
    paper = "prompt look-up decoding; arXiv 2304.04487"

    n: int = param(3, "longest n-gram looked up, in tokens", ge=1, le=16)
    least: int = param(1, "shortest n-gram looked up", ge=1, le=16)
    length: int = param(10, "tokens proposed", ge=1, le=256)

    @property
    def nodes(self) -> int:
        return self.length

    def begin(self, context: Context) -> list[Seen]:
        return [Seen() for _ in context.texts]

    def propose(self, context: Context, state: list[Seen]) -> Tree | None:
        drafts = []
        for seen, text in zip(state, context.texts, strict=True):
            seen.add(text, self.n)
            found = (seen.at.get(tuple(text[-n:])) for n in range(min(self.n, len(text)), self.least - 1, -1))
            at = next((end for end in found if end is not None), None)
            drafts.append([] if at is None else continued(text, at, min(self.length, context.room), context.ends))
        return Tree.of(drafts, None, context.count.device) if any(drafts) else None

    def learn(self, context: Context, accepted: Accepted, state: list[Seen]) -> None:
        """Nothing: the text itself is what it knows."""

    def keep(self, state: list[Seen], rows: Sequence[int]) -> list[Seen]:
        return [state[row] for row in rows]


def continued(text: Sequence[int], at: int, length: int, ends: frozenset[int]) -> list[int]:
    """The tokens from ``at`` on, over and over where the text ends before ``length``; none behind an end of text."""
    period = len(text) - at
    found: list[int] = []
    for i in range(length):
        found.append(text[at + i % period])
        if found[-1] in ends:
            break
    return found
