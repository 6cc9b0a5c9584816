"""Calls of functions as trees: a text, calls, or one of the two."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core.errors import RequestError
from ..text import CallFormat
from .schema import schema
from .syntax import EMPTY, Alt, Both, Cat, Chars, Node, Repeat, others, text

_ANY = Repeat(Chars(others(())), 0, None)


@dataclass(frozen=True)
class Calls:
    """What a response may be.

    Attributes:
        format: how a call is written.
        functions: names and JSON schemas of the arguments, as text.
        many: more calls than one may follow each other.
        text: the response may be a text instead, and where a call can be told from it, stand in front of one.
        free: what such a text must be, as kind and value; None: anything.
    """

    format: CallFormat
    functions: tuple[tuple[str, str], ...]
    many: bool
    text: bool
    free: tuple[str, str | tuple[str, ...]] | None = None


def calls(value: Calls, kinds: Mapping[str, Callable[..., Node]]) -> Node:
    """The texts that are accepted.

    Args:
        value: what is asked for.
        kinds: makes trees of constraints of other kinds.

    Raises:
        RequestError: a schema that is not followed; names the function.
    """
    form = value.format
    each = [
        Cat((text(f"{form.open}{name}{form.middle}" if form.open else ""), _arguments(name, own), text(form.close)))
        for name, own in value.functions
    ]
    one: Node = Alt(tuple(each))
    many: Node = one
    if value.many and form.between is not None:
        many = Cat((one, Repeat(Cat((text(form.between), one)), 0, None)))
    if not value.text:
        return many
    if value.free is not None:
        return Alt((Both(kinds[value.free[0]](value.free[1]), not_begun(form.mark)), many))
    return Cat((without(form.mark), Alt((EMPTY, many)))) if form.tagged else Alt((not_begun(form.mark), many))


def _arguments(name: str, own: str) -> Node:
    try:
        return schema(json.loads(own))
    except RequestError as error:
        raise RequestError(f"tools: {name}: {error.what.removeprefix('json_schema: ')}") from None


def not_begun(mark: str) -> Node:
    """Texts that do not begin with a mark."""
    ways = [Cat((text(mark[:at]), Alt((EMPTY, Cat((_other(mark[at]), _ANY)))))) for at in range(len(mark))]
    return Alt(tuple(ways))


def without(mark: str) -> Node:
    """Texts in which a mark does not occur, whose first character occurs in it once."""
    first = mark[0]
    plain = Repeat(_other(first), 0, None)
    begun = [Cat((text(mark[1:at]), Alt((EMPTY, Cat((_other(first, mark[at]), plain)))))) for at in range(1, len(mark))]
    return Cat((plain, Repeat(Cat((text(first), Alt(tuple(begun)))), 0, None)))


def _other(*characters: str) -> Node:
    ranges = tuple((ord(c), ord(c)) for c in sorted(set(characters)))
    return Chars(others(ranges))
