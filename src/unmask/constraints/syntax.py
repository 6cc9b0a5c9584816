"""Regular languages as trees, and Python's regular expressions as such trees."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..core.errors import RequestError

if sys.version_info >= (3, 11):
    from re import _constants as ops
    from re import _parser as parser
else:
    import sre_constants as ops
    import sre_parse as parser

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Chars:
    """One character out of ``ranges`` of code points, both ends included, sorted, apart."""

    ranges: Ranges


@dataclass(frozen=True)
class Cat:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """One of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """From ``low`` to ``high`` times; None: without end."""

    node: Node
    low: int
    high: int | None


@dataclass(frozen=True)
class Both:
    """What both accept."""

    first: Node
    second: Node


Node = Chars | Cat | Alt | Repeat | Both
EMPTY = Cat(())
NEVER = Alt(())


def text(value: str) -> Node:
    """Exactly this text.

    Raises:
        RequestError: not valid Unicode.
    """
    odd = next((c for c in value if _SURROGATES[0] <= ord(c) <= _SURROGATES[1]), None)
    if odd is not None:
        raise RequestError(f"{value!r:.40} holds a lone surrogate, which is no character of a text")
    return Cat(tuple(Chars(((ord(c), ord(c)),)) for c in value))


def optional(node: Node) -> Node:
    """The same, or nothing."""
    return Repeat(node, 0, 1)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order, those that touch as one, without surrogates."""
    low, high = _SURROGATES
    apart = [part for a, b in ranges for part in ((a, min(b, low - 1)), (max(a, high + 1), b)) if part[0] <= part[1]]
    found: list[tuple[int, int]] = []
    for a, b in sorted(apart):
        if found and a <= found[-1][1] + 1 and not (found[-1][1] < low <= a):
            found[-1] = (found[-1][0], max(b, found[-1][1]))
        else:
            found.append((a, b))
    return tuple(found)


def others(ranges: Ranges) -> Ranges:
    """Every other character."""
    found, at = [], 0
    for a, b in ranges:
        if at < a:
            found.append((at, a - 1))
        at = b + 1
    return union([*found, (at, _LAST)] if at <= _LAST else found)


def common(first: Ranges, second: Ranges) -> Ranges:
    """Characters that are in both."""
    return union((max(a, c), min(b, d)) for a, b in first for c, d in second if max(a, c) <= min(b, d))


def regex(pattern: str, search: bool = False) -> Node:
    r"""The texts that ``re.fullmatch`` accepts; ``search``: those in which ``re.search`` finds something.

    Raises:
        RequestError: it does not parse, or no finite automaton does what it says (references to groups, looking ahead
            or behind, ``\b``, atomic groups); names what.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree: Any = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(f"regex: {pattern!r:.80} is not a regular expression of Python: {error}") from None
    flags = tree.state.flags
    inside = _Expression(pattern)
    if not search:
        return inside.sequence([*tree], flags, True, True)
    anything = Repeat(Chars(union([(0, _LAST)])), 0, None)
    parts = [*tree]
    begins = bool(parts) and parts[0] in _BEGINS
    ends = bool(parts) and parts[-1] in _ENDS
    node = inside.sequence(parts, flags, begins, ends)
    return Cat((*(() if begins else (anything,)), node, *(() if ends else (anything,))))


_BEGINS = [(ops.AT, ops.AT_BEGINNING), (ops.AT, ops.AT_BEGINNING_STRING)]
_ENDS = [(ops.AT, ops.AT_END), (ops.AT, ops.AT_END_STRING)]
_CATEGORIES = {
    ops.CATEGORY_DIGIT: r"\d",
    ops.CATEGORY_NOT_DIGIT: r"\D",
    ops.CATEGORY_SPACE: r"\s",
    ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w",
    ops.CATEGORY_NOT_WORD: r"\W",
}
_REFUSED = {
    "ASSERT": "looking ahead or behind, (?=...) or (?<=...)",
    "ASSERT_NOT": "looking ahead or behind, (?!...) or (?<!...)",
    "GROUPREF": "references to groups, such as \\1",
    "GROUPREF_EXISTS": "conditions on groups, (?(1)...)",
    "ATOMIC_GROUP": "atomic groups, (?>...)",
    "POSSESSIVE_REPEAT": "possessive repeats, such as a*+",
}


class _Expression:
    """Turns what Python's own parser makes of a pattern into a tree."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def refused(self, what: str) -> RequestError:
        return RequestError(f"regex: {self.pattern!r:.80} has {what}, which no finite automaton can follow")

    def sequence(self, parts: Sequence[tuple[Any, Any]], flags: int, first: bool, last: bool) -> Node:
        """Parts one after the other; ``first``, ``last``: nothing stands in front of them, or behind."""
        made = []
        for index, part in enumerate(parts):
            if part in _BEGINS or part in _ENDS:
                if flags & re.MULTILINE:
                    raise self.refused("anchors of lines, (?m)")
                before = all(p in _BEGINS for p in parts[:index])
                after = all(p in _ENDS for p in parts[index + 1 :])
                if not (part in _BEGINS and first and before) and not (part in _ENDS and last and after):
                    raise self.refused("an anchor (^ or $) inside")
                continue
            front = first and all(p in _BEGINS for p in parts[:index])
            back = last and all(p in _ENDS for p in parts[index + 1 :])
            made.append(self.one(part, flags, front, back))
        return made[0] if len(made) == 1 else Cat(tuple(made))

    def one(self, part: tuple[Any, Any], flags: int, first: bool, last: bool) -> Node:
        op, given = part
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            return Chars(self.chars(op, given, flags))
        if op is ops.BRANCH:
            return Alt(tuple(self.sequence(list(branch), flags, first, last) for branch in given[1]))
        if op is ops.SUBPATTERN:
            _, more, less, inner = given
            return self.sequence(list(inner), (flags | more) & ~less, first, last)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            low, high, inner = given
            return Repeat(self.sequence(list(inner), flags, False, False), low, None if high is ops.MAXREPEAT else high)
        if op is ops.AT:
            raise self.refused("\\b or \\B")
        raise self.refused(_REFUSED.get(str(op), str(op).lower()))

    def chars(self, op: Any, given: Any, flags: int) -> Ranges:
        """The characters of one place in the pattern."""
        if op is ops.ANY:
            return union([(0, _LAST)]) if flags & re.DOTALL else others(((10, 10),))
        if op is not ops.IN:
            given = [(op, given)]
        negated = any(kind in (ops.NEGATE, ops.NOT_LITERAL) for kind, _ in given)
        found = union(part for item in given for part in self._item(item, flags))
        if flags & re.IGNORECASE:
            found = self._both_cases(found, negated)
        return others(found) if negated else found

    def _item(self, item: tuple[Any, Any], flags: int) -> Iterator[tuple[int, int]]:
        kind, value = item
        if kind in (ops.LITERAL, ops.NOT_LITERAL):
            yield value, value
        elif kind is ops.RANGE:
            yield value
        elif kind is ops.CATEGORY:
            yield from category(_CATEGORIES[value], bool(flags & re.ASCII))
        elif kind is not ops.NEGATE:
            raise self.refused(str(kind).lower())

    def _both_cases(self, ranges: Ranges, negated: bool) -> Ranges:
        if sum(b - a + 1 for a, b in ranges) > 1 << 12:
            raise RequestError(f"regex: {self.pattern!r:.80} ignores the case of a large class; write both cases")
        letters = "".join(chr(i) for a, b in ranges for i in range(a, b + 1))
        if negated and any(not c.isascii() for c in letters):
            raise RequestError(
                f"regex: {self.pattern!r:.80} ignores the case of what it excludes; write both cases instead"
            )
        pairs = [(ord(c), ord(c)) for own in letters for c in (own, own.swapcase()) if len(c) == 1]
        if negated:
            pairs += [(ord(c), ord(c)) for c in "\u0130\u0131\u017f\u212a"]  # what Python folds into i, s, k
        return union(pairs)


@cache
def category(name: str, ascii_only: bool = False) -> Ranges:
    r"""The characters of ``\d``, ``\w``, ... as Python's ``re`` knows them."""
    matched = re.compile(f"{name}+", re.ASCII if ascii_only else 0)
    low, high = _SURROGATES
    every = "".join(map(chr, (*range(low), *range(high + 1, _LAST + 1))))
    gap = high + 1 - low
    found = []
    for run in matched.finditer(every):
        a, b = (at if at < low else at + gap for at in (run.start(), run.end() - 1))
        found.append((a, b))
    return union(found)
