"""JSON strings: any, of a number of characters, of a pattern, of a format."""

from __future__ import annotations

import json

from .syntax import Alt, Both, Cat, Chars, Node, Repeat, common, others, regex, text, union

_BARE = others(union([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)]))  # characters that stand for themselves
_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_HEX = Chars(union([(0x30, 0x39), (0x61, 0x66)]))
_ESCAPE = Alt(
    (
        Chars(union((ord(c), ord(c)) for c in _SHORT.values())),
        Cat((text("u00"), Chars(((0x30, 0x31),)), _HEX)),
    )
)
CHARACTER = Alt((Chars(_BARE), Cat((text("\\"), _ESCAPE))))
QUOTE = text('"')
_HOUR = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DATE = r"(?:19|20)\d\d-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
FORMATS = {
    "date": rf"(?a:{_DATE})",
    "time": rf"(?a:{_HOUR})",
    "date-time": rf"(?a:{_DATE}T{_HOUR})",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"(?a:{_BYTE}(\.{_BYTE}){{3}})",
    "email": r"[A-Za-z0-9_%+-]{1,32}(\.[A-Za-z0-9_%+-]{1,32})?@([A-Za-z0-9]{1,32}\.){1,3}[A-Za-z]{2,12}",
}


def string(low: int = 0, high: int | None = None, pattern: str | None = None, form: str | None = None) -> Node:
    """A JSON string of ``low`` to ``high`` characters in which ``pattern`` is found, of a format."""
    parts: list[Node] = []
    if pattern is not None:
        parts.append(quoted(regex(pattern, search=True)))
    if form is not None:
        parts.append(quoted(regex(FORMATS[form])))
    if low or high is not None or not parts:
        parts.append(Repeat(CHARACTER, low, high))
    inner = parts[0]
    for part in parts[1:]:
        inner = Both(inner, part)
    return Cat((QUOTE, inner, QUOTE))


def quoted(node: Node) -> Node:
    """A tree of plain text as it stands inside a JSON string."""
    if isinstance(node, Chars):
        parts: list[Node] = [Chars(own)] if (own := common(node.ranges, _BARE)) else []
        for a, b in common(node.ranges, others(_BARE)):
            parts += [text(json.dumps(chr(i))[1:-1]) for i in range(a, b + 1)]
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))
    if isinstance(node, Repeat):
        return Repeat(quoted(node.node), node.low, node.high)
    if isinstance(node, Both):
        return Both(quoted(node.first), quoted(node.second))
    return type(node)(tuple(map(quoted, node.parts)))


def literal(value: object) -> Node:
    """One JSON value, written as ``json.dumps`` does without spaces."""
    return text(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
