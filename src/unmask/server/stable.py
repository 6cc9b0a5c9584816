"""The text of a response that can no longer change, as its tokens become final."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..stop import StopStrings
from ..text import Text

_PARTIAL = "\ufffd"  # what bytes decode to that are no complete character yet
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token of one byte; several in a row are one text or none


class Stable:
    """Turns final tokens into deltas of text whose concatenation is the text of the whole response.

    Held back are bytes that are no complete character yet, and what may be the beginning of a stop string.

    Args:
        text: the tokenizer.
        stops: the stop strings.
        lead: ids in front of the response that belong to its text.
    """

    def __init__(self, text: Text, stops: Sequence[str] = (), lead: Sequence[int] = ()) -> None:
        self.text, self.lead = text, list(lead)
        self.stops = StopStrings(text, stops) if stops else None
        self.ids: list[int] = []
        self.sent = ""
        self.counted = 0  # tokens whose text has been sent

    def push(self, ids: Sequence[int]) -> str:
        """The text that more final tokens add."""
        if not ids:
            return ""
        self.ids += ids
        whole = [*self.lead, *self.ids]
        while whole and _BYTE.fullmatch(self.text.piece(whole[-1])):
            whole.pop()
        safe = self.stops.safe(whole) if self.stops else self.text.decode(whole).rstrip(_PARTIAL)
        return self._more(safe) if safe.startswith(self.sent) else ""

    def finish(self, text: str) -> str | None:
        """The rest of the response's text; None where what was sent is no beginning of it."""
        return self._more(text) if text.startswith(self.sent) else None

    def tokens(self, ids: Sequence[int]) -> list[int]:
        """Of the ids of a response, those whose text has been sent since the last call."""
        begin = self.counted
        for count in range(begin + 1, len(ids) + 1):
            shown = self.text.decode([*self.lead, *ids[:count]])
            if len(shown.rstrip(_PARTIAL)) > len(self.sent):
                break
            if not shown.endswith(_PARTIAL):
                self.counted = count
        return list(ids[begin : self.counted])

    def _more(self, text: str) -> str:
        delta, self.sent = text[len(self.sent) :], text if len(text) > len(self.sent) else self.sent
        return delta
