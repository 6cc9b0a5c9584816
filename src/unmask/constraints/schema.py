"""JSON schemas as trees. What is generated is valid by the schema; not all that is valid is generated.

Objects have the declared properties in the order of the schema, one space or none behind colons and commas, and numbers
at most 15 digits. A keyword that cannot be followed is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.errors import RequestError
from .merging import ANNOTATIONS, GROUPS, at_most_one, merged
from .numbers import decimals, integers
from .strings import CHARACTER, FORMATS, QUOTE, literal, quoted, string
from .syntax import EMPTY, NEVER, Alt, Cat, Node, Repeat, optional, regex, text

DEPTH = 2  # arrays and objects inside each other, where a schema says nothing of a value
_COLON = Cat((text(":"), optional(text(" "))))
_COMMA = Cat((text(","), optional(text(" "))))
_SCALARS = ("string", "number", "boolean", "null")
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
REFUSED = {
    "not": "say what is accepted instead",
    "if": "use anyOf",
    "then": "use anyOf",
    "else": "use anyOf",
    "uniqueItems": "an automaton cannot remember items",
    "contains": "an automaton cannot count items of a kind",
    "minContains": "an automaton cannot count items of a kind",
    "maxContains": "an automaton cannot count items of a kind",
    "dependentRequired": "use anyOf",
    "dependentSchemas": "use anyOf",
    "dependencies": "use anyOf",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "additionalItems": "use items and prefixItems",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "$anchor": "use $ref to #/$defs/...",
    "$dynamicAnchor": "use $ref to #/$defs/...",
    "contentEncoding": "use pattern",
    "contentMediaType": "use pattern",
    "contentSchema": "use pattern",
}


def schema(value: Any) -> Node:
    """The texts of values that a schema accepts.

    Raises:
        RequestError: no schema, or a keyword that is not followed; names the place and the keyword.
    """
    if not isinstance(value, (Mapping, bool)):
        raise RequestError(f"json_schema must be an object (or true), got {value!r:.60}")
    return _Reader(value).node(value, "#", ())


def anything(depth: int, types: Sequence[str] = _TYPES) -> Node:
    """Any JSON value with at most ``depth`` arrays and objects inside each other."""
    parts: list[Node] = []
    for name in types:
        if name in _PLAIN:
            parts.append(_PLAIN[name]())
        elif name in ("array", "object"):
            inner = anything(depth - 1) if depth > 1 else anything(0, _SCALARS)
            if depth > 0:
                parts.append(_list(inner, 0, None) if name == "array" else _map(_KEY, inner, 0, None))
    return Alt(tuple(parts))


_KEY = Cat((QUOTE, Repeat(CHARACTER, 0, None), QUOTE))
_PLAIN: dict[str, Callable[[], Node]] = {
    "string": string,
    "number": lambda: decimals(None, None),
    "integer": lambda: integers(None, None),
    "boolean": lambda: Alt((text("true"), text("false"))),
    "null": lambda: text("null"),
}


def _list(item: Node, low: int, high: int | None, first: Sequence[Node] = ()) -> Node:
    """An array of ``low`` to ``high`` items, the first of which are given."""
    if high is not None and high < low:
        return NEVER
    many: Node = EMPTY
    given = list(first) if high is None else list(first)[:high]
    left = None if high is None else high - len(given)
    if left is None or left > 0:
        need = max(0, low - len(given))
        if given:
            many = Repeat(Cat((_COMMA, item)), need, left)
        else:
            more = Repeat(Cat((_COMMA, item)), max(0, need - 1), None if left is None else left - 1)
            many = Cat((item, more)) if need else optional(Cat((item, more)))
    elif low > len(given):
        return NEVER
    for index in range(len(given) - 1, -1, -1):  # each may be the last, once there are enough
        own = Cat((_COMMA, given[index]) if index else (given[index],))
        many = Cat((own, many))
        if index >= low:
            many = optional(many)
    return Cat((text("["), many, text("]")))


def _map(key: Node, value: Node, low: int, high: int | None) -> Node:
    """An object with keys of a kind."""
    if high == 0:
        return text("{}") if low == 0 else NEVER
    pair = Cat((key, _COLON, value))
    more = Repeat(Cat((_COMMA, pair)), 0, None if high is None else high - 1)
    inner: Node = Cat((pair, more))
    return Cat((text("{"), inner if low else optional(inner), text("}")))


class _Reader:
    """Turns a schema into a tree; places are named as in ``#/properties/age``."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def node(self, value: Any, at: str, seen: tuple[str, ...]) -> Node:
        """The tree of the schema at a place; ``seen``: the references on the way."""
        value, seen = self.resolved(value, at, seen)
        if value is True or value == {}:
            return anything(DEPTH)
        if value is False:
            return NEVER
        for key in value:
            if key in REFUSED and not (key == "uniqueItems" and value[key] is False):
                raise RequestError(f"json_schema: {at}: {key} is not supported; {REFUSED[key]}")
        for key in ("anyOf", "oneOf"):
            if key in value:
                return self.alternatives(value, key, at, seen)
        if "const" in value or "enum" in value:
            return self.listed(value, at)
        return Alt(tuple(self.typed(name, value, at, seen) for name in self.types(value, at)))

    def resolved(self, value: Any, at: str, seen: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """A schema with what it refers to, and all of ``allOf``, put into it."""
        if not isinstance(value, (Mapping, bool)):
            raise RequestError(f"json_schema: {at} must be a schema (an object, true or false), got {value!r:.60}")
        while isinstance(value, Mapping) and ("$ref" in value or "allOf" in value):
            rest = {key: own for key, own in value.items() if key not in ("$ref", "allOf")}
            more = value.get("allOf", [])
            if not isinstance(more, Sequence) or isinstance(more, str):
                raise RequestError(f"json_schema: {at}: allOf must be a list of schemas, got {more!r:.60}")
            members = [rest, *more]
            if "$ref" in value:
                name = value["$ref"]
                if name in seen:
                    raise RequestError(
                        f"json_schema: {at}: {name} refers to itself; values of any depth have no finite automaton"
                    )
                members.insert(0, self.target(name, at))
                seen = (*seen, name)
            value = members[0]
            for index, other in enumerate(members[1:]):
                value = merged(value, other, f"{at}/allOf/{index}" if more else at)
        return value, seen

    def target(self, name: Any, at: str) -> Any:
        """What a reference refers to."""
        found = self.root
        if not isinstance(name, str) or not name.startswith("#"):
            raise RequestError(f"json_schema: {at}: $ref must begin with # (a place in this schema), got {name!r:.60}")
        for part in filter(None, name[1:].split("/")):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                raise RequestError(f"json_schema: {at}: $ref {name!r:.60} refers to nothing")
        return found

    def alternatives(self, value: Mapping[str, Any], key: str, at: str, seen: tuple[str, ...]) -> Node:
        """``anyOf`` or ``oneOf``; what stands beside it belongs to each."""
        members = value[key]
        if not isinstance(members, list) or not members:
            raise RequestError(f"json_schema: {at}: {key} must be a list of schemas that is not empty")
        rest = {name: own for name, own in value.items() if name != key and name not in ANNOTATIONS}
        made = []
        for index, member in enumerate(members):
            own, way = self.resolved(member, f"{at}/{key}/{index}", seen)
            own, way = self.resolved(merged(rest, own, f"{at}/{key}/{index}"), f"{at}/{key}/{index}", way)
            made.append((own, way))
        if key == "oneOf":
            at_most_one([own for own, _ in made], at, lambda own: self.resolved(own, at, ())[0])
        nodes = [self.node(own, f"{at}/{key}/{index}", way) for index, (own, way) in enumerate(made)]
        return Alt(tuple(nodes))

    def listed(self, value: Mapping[str, Any], at: str) -> Node:
        """``enum`` or ``const``."""
        values = [value["const"]] if "const" in value else value["enum"]
        if not isinstance(values, list) or not values:
            raise RequestError(f"json_schema: {at}: enum must be a list that is not empty, got {values!r:.60}")
        if "const" in value and "enum" in value and not any(_equal(value["const"], own) for own in value["enum"]):
            values = []
        beside = sorted(value.keys() - ANNOTATIONS - {"enum", "const", "type"})
        if beside:
            raise RequestError(f"json_schema: {at}: {beside[0]} beside enum or const is not supported; list the values")
        allowed = self.types(value, at) if "type" in value else _TYPES
        return Alt(tuple(literal(own) for own in values if any(_is(own, name) for name in allowed)))

    def types(self, value: Mapping[str, Any], at: str) -> list[str]:
        """The types of a schema, by ``type`` or by the keywords it has."""
        odd = sorted(k for k in value.keys() - ANNOTATIONS - {"type"} - _KNOWN if not k.startswith("x-"))
        if odd:
            raise RequestError(
                f"json_schema: {at}: unknown keyword {odd[0]!r}; accepted are {', '.join(sorted(_KNOWN))}"
            )
        given = value.get("type")
        if given is None:
            own = [name for name, keys in GROUPS.items() if keys & value.keys()]
            return own or list(_TYPES)
        names = given if isinstance(given, list) else [given]
        wrong = next((name for name in names if name not in _TYPES), None)
        if wrong is not None or not names:
            raise RequestError(f"json_schema: {at}: type must be of {', '.join(_TYPES)}, got {given!r:.60}")
        return [name for name in names if not (name == "integer" and "number" in names)]

    def typed(self, name: str, value: Mapping[str, Any], at: str, seen: tuple[str, ...]) -> Node:
        """Values of one type."""
        if name == "object":
            return self.object(value, at, seen)
        if name == "array":
            return self.array(value, at, seen)
        if name == "string":
            return self.string(value, at)
        return self.number(name, value, at) if name in ("integer", "number") else _PLAIN[name]()

    def count(self, value: Mapping[str, Any], key: str, at: str) -> int | None:
        """A keyword that counts."""
        found = value.get(key)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found != int(found) or found < 0:
            raise RequestError(f"json_schema: {at}: {key} must be a whole number of at least 0, got {found!r:.60}")
        return int(found)

    def string(self, value: Mapping[str, Any], at: str) -> Node:
        """Strings."""
        low, high = self.count(value, "minLength", at) or 0, self.count(value, "maxLength", at)
        pattern, form = value.get("pattern"), value.get("format")
        if form is not None and form not in FORMATS:
            raise RequestError(f"json_schema: {at}: format must be one of {', '.join(FORMATS)}, got {form!r:.60}")
        if pattern is not None and not isinstance(pattern, str):
            raise RequestError(f"json_schema: {at}: pattern must be a regular expression, got {pattern!r:.60}")
        try:
            return string(low, high, pattern, form) if high is None or low <= high else NEVER
        except RequestError as error:
            raise RequestError(f"json_schema: {at}: pattern: {error}") from None

    def number(self, name: str, value: Mapping[str, Any], at: str) -> Node:
        """Numbers."""
        bounds: dict[str, float | None] = {}
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            found = value.get(key)
            if found is not None and (
                isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found)
            ):
                raise RequestError(f"json_schema: {at}: {key} must be a number, got {found!r:.60}")
            bounds[key] = found
        step = bounds.pop("multipleOf")
        if step is not None and not (name == "integer" and step == 1):
            raise RequestError(
                f"json_schema: {at}: multipleOf is not supported, save 1 for integers; list the values in enum"
            )
        low = _bound(bounds["minimum"], bounds["exclusiveMinimum"], max)
        high = _bound(bounds["maximum"], bounds["exclusiveMaximum"], min)
        if name == "integer":
            least = None if low is None else math.ceil(low[0]) + (low[1] and low[0] == math.ceil(low[0]))
            most = None if high is None else math.floor(high[0]) - (high[1] and high[0] == math.floor(high[0]))
            return integers(least, most)
        for end in (low, high):
            if end is not None and end[0] != int(end[0]):
                raise RequestError(
                    f"json_schema: {at}: bounds of a number must be whole, got {end[0]:g}; use an integer, or enum"
                )
        ends = [None if end is None else int(end[0]) for end in (low, high)]
        return decimals(ends[0], ends[1], bool(low and low[1]), bool(high and high[1]))

    def array(self, value: Mapping[str, Any], at: str, seen: tuple[str, ...]) -> Node:
        """Arrays."""
        first = value.get("prefixItems", [])
        if not isinstance(first, list):
            raise RequestError(f"json_schema: {at}: prefixItems must be a list of schemas, got {first!r:.60}")
        given = [self.node(own, f"{at}/prefixItems/{index}", seen) for index, own in enumerate(first)]
        low, high = self.count(value, "minItems", at) or 0, self.count(value, "maxItems", at)
        items = value.get("items", True)
        if items is False:
            high = len(given) if high is None else min(high, len(given))
        return _list(NEVER if items is False else self.node(items, f"{at}/items", seen), low, high, given)

    def object(self, value: Mapping[str, Any], at: str, seen: tuple[str, ...]) -> Node:
        """Objects: the declared properties in their order, or, where none are declared, keys of a kind."""
        own, required = value.get("properties", {}), value.get("required", [])
        if not isinstance(own, Mapping) or not isinstance(required, list):
            raise RequestError(
                f"json_schema: {at}: properties must be an object of schemas and required a list of names"
            )
        low, high = self.count(value, "minProperties", at), self.count(value, "maxProperties", at)
        if own or required:
            for key in ("patternProperties", "minProperties", "maxProperties", "propertyNames"):
                if key in value:
                    raise RequestError(f"json_schema: {at}: {key} beside properties is not supported")
            return self.declared(value, own, required, at, seen)
        if (low or 0) > 1:
            raise RequestError(
                f"json_schema: {at}: minProperties above 1 is not supported: keys may repeat; declare them"
            )
        more, patterns = value.get("additionalProperties", True), value.get("patternProperties", {})
        name: Node = _KEY
        if patterns:
            if len(patterns) > 1 or more is not False or "propertyNames" in value:
                raise RequestError(
                    f"json_schema: {at}: patternProperties needs one pattern and additionalProperties false"
                )
            [(pattern, inner)] = patterns.items()
            name = Cat((QUOTE, quoted(regex(pattern, search=True)), QUOTE))
            return _map(name, self.node(inner, f"{at}/patternProperties", seen), low or 0, high)
        if "propertyNames" in value:
            kind = merged({"type": "string"}, value["propertyNames"], f"{at}/propertyNames")
            name = self.node(kind, f"{at}/propertyNames", seen)
        if more is False:
            return text("{}") if not low else NEVER
        return _map(name, self.node(more, f"{at}/additionalProperties", seen), low or 0, high)

    def declared(
        self, value: Mapping[str, Any], own: Mapping[str, Any], required: Sequence[Any], at: str, seen: tuple[str, ...]
    ) -> Node:
        """Objects of declared properties."""
        missing = next((name for name in required if name not in own), None)
        if missing is not None:
            more = value.get("additionalProperties", True)
            own = {**own, **{name: more for name in required if name not in own}}
        pairs = [
            (Cat((literal(name), _COLON, self.node(inner, f"{at}/properties/{name}", seen))), name in required)
            for name, inner in own.items()
            if not (inner is False and name not in required)
        ]
        rest: Node = EMPTY  # what may follow a property
        tails = []
        for pair, needed in reversed(pairs):
            tails.append(rest)
            follows = Cat((_COMMA, pair))
            rest = Cat((follows if needed else optional(follows), rest))
        first: list[Node] = []
        for (pair, needed), tail in zip(pairs, reversed(tails), strict=True):
            first.append(Cat((pair, tail)))
            if needed:
                break
        else:
            first.append(EMPTY)
        return Cat((text("{"), Alt(tuple(first)), text("}")))


def _bound(plain: float | None, strict: float | None, pick: Callable[..., Any]) -> tuple[float, bool] | None:
    """The tighter of two bounds, and whether it itself is left out."""
    ends = [(end, out) for end, out in ((plain, False), (strict, True)) if end is not None]
    if not ends:
        return None
    tightest = pick(end for end, _ in ends)
    return tightest, any(out for end, out in ends if end == tightest)


def _equal(first: Any, second: Any) -> bool:
    return type(first) is type(second) and bool(first == second)


def _is(value: Any, name: str) -> bool:
    """Whether a value is of a JSON type."""
    if isinstance(value, bool) or value is None:
        return name == ("null" if value is None else "boolean")
    if isinstance(value, float):
        return name == "number" or (name == "integer" and value.is_integer())
    kinds = {str: ("string",), int: ("integer", "number"), dict: ("object",), list: ("array",)}
    return name in kinds.get(type(value), ())


_KNOWN = frozenset().union(*GROUPS.values(), {"enum", "const", "anyOf", "oneOf", "allOf", "$ref", "type"})
