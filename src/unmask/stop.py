"""Stop strings: a response ends before the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .text import Text

_PARTIAL = "\ufffd"  # what bytes decode to that are no complete character yet


@dataclass(frozen=True)
class Ending:
    """Where a text ends: behind so many ``tokens``, the last ``over`` characters of which belong to the stop string."""

    tokens: int
    over: int


class StopStrings:
    """The stop strings of a request. The name of a control token stops at that token.

    Args:
        text: the tokenizer.
        stops: the strings, not empty.
    """

    def __init__(self, text: Text, stops: Sequence[str]) -> None:
        self.text, self.stops = text, tuple(stops)
        self.control = frozenset(ids[0] for ids in map(text.parse, stops) if len(ids) == 1 and not text.decode(ids))

    def find(self, ids: Sequence[int], whole: bool) -> Ending | None:
        """Where a response ends at the first of its stop strings; None where there is none, or it is not certain yet.

        Args:
            ids: of the response, from its first token on.
            whole: whether nothing follows them.
        """
        text = self.text
        end = next((at for at, i in enumerate(ids) if i in self.control), None)
        whole = whole or end is not None
        ids = ids[:end]
        so_far = text.decode(ids) if whole else text.decode(ids).rstrip(_PARTIAL)
        found = [at for at in map(so_far.find, self.stops) if at >= 0] + ([] if end is None else [len(so_far)])
        first = min(found, default=None)
        if first is None or (not whole and any(_begun(so_far, stop, first) for stop in self.stops)):
            return None
        count = len(ids)
        while count and text.decode(ids[: count - 1]).startswith(so_far[:first]):
            count -= 1
        return Ending(count, len(text.decode(ids[:count])) - first)

    def safe(self, ids: Sequence[int]) -> str:
        """The text of a response's first tokens that is certain to stand in front of every stop string."""
        end = next((at for at, i in enumerate(ids) if i in self.control), None)
        so_far = self.text.decode(ids[:end]).rstrip(_PARTIAL)
        starts = (at for at in range(len(so_far)) for stop in self.stops if _meets(so_far, stop, at))
        return so_far[: next(starts, len(so_far))]


def _meets(so_far: str, stop: str, at: int) -> bool:
    """Whether a stop string stands at a place of a text, or as much of it as the text has left."""
    return so_far.startswith(stop, at) or (len(so_far) - at < len(stop) and stop.startswith(so_far[at:]))


def _begun(so_far: str, stop: str, before: int) -> bool:
    """Whether a stop string that is not complete may have begun before a place."""
    return any(stop.startswith(so_far[at:]) for at in range(max(0, len(so_far) - len(stop) + 1), before))
