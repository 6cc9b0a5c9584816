"""Examples in Markdown: what a page says to type, and what it says comes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$"
    r"(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    """A block of a page, and the block ```text right behind it; ``output`` is None where there is none."""

    kind: str
    code: str
    output: str | None
    run: bool


def examples(page: str, *kinds: str) -> list[Example]:
    """The blocks of a page of some kinds that are to be run, in their order."""
    found = [Example(m["kind"], m["code"], m["output"], not m["why"]) for m in _FENCE.finditer(page)]
    return [one for one in found if one.run and one.kind in kinds]


def fits(expected: str, output: str) -> bool:
    """Whether an output is as expected: ``…`` stands for anything within a line, alone in a line for any lines."""
    pattern = ""
    for line in expected.splitlines(keepends=True):
        pattern += "(?:.*\n)*?" if line.strip() == "…" else ".*?".join(map(re.escape, line.split("…")))
    return re.fullmatch(pattern, output) is not None
