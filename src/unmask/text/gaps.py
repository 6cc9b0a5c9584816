"""Texts with gaps."""

from __future__ import annotations

import re

from ..core.errors import RequestError

_GAP = re.compile(r"(?P<escape>\\*)\[MASK\b(?P<end>(?:\*(?P<count>[0-9]+))?\])?")
_GAPS = "a gap is [MASK] or, for 12 tokens, [MASK*12]; \\[MASK] is the text itself"


def split_gaps(text: str) -> list[str | int]:
    r"""A text at its gaps ``[MASK]`` and ``[MASK*12]``: stretches of text, and for each gap its number of tokens.

    ``\[MASK]`` is the text ``[MASK]``, ``\\[MASK]`` a backslash and a gap; other backslashes are what they are.

    Raises:
        RequestError: a gap that cannot be read or has no tokens, or there is none.
    """
    parts: list[str | int] = []
    plain, at = "", 0
    for found in _GAP.finditer(text):
        slashes = found["escape"]
        plain += text[at : found.start()] + "\\" * (len(slashes) // 2)
        at = found.end()
        if len(slashes) % 2:
            plain += found[0][len(slashes) :]
            continue
        wrong = found[0][len(slashes) :] + ("" if found["end"] else text[at : at + 8])
        if not found["end"]:
            raise RequestError(f"cannot read the gap at {wrong!r}; {_GAPS}")
        count = int((found["count"] or "1").lstrip("0")[:12] or 0)
        if count < 1:
            raise RequestError(f"the gap {wrong} has no tokens; at least 1 is needed, as in [MASK*1]")
        parts += [plain, count] if plain else [count]
        plain = ""
    plain += text[at:]
    parts += [plain] if plain else []
    if all(isinstance(part, str) for part in parts):
        raise RequestError(f"there is no gap to fill; {_GAPS}")
    return parts
