"""Schemas that hold at once, and schemas of which at most one holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from ..core.errors import RequestError

GROUPS: dict[str, frozenset[str]] = {  # the keywords that say something of values of a type
    "object": frozenset(
        (
            "properties",
            "required",
            "additionalProperties",
            "minProperties",
            "maxProperties",
            "propertyNames",
            "patternProperties",
        )
    ),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
}
ANNOTATIONS = frozenset(
    (
        "title",
        "description",
        "default",
        "examples",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$schema",
        "$id",
        "$defs",
        "definitions",
    )
)
_TIGHTER: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}


def merged(first: Any, second: Any, at: str) -> Any:
    """One schema that says what two say.

    Raises:
        RequestError: there is none in what is supported; names the keyword.
    """
    if first is True or second is True:
        return second if first is True else first
    if first is False or second is False:
        return False
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        wrong = second if isinstance(first, Mapping) else first
        raise RequestError(f"json_schema: {at} must be a schema (an object, true or false), got {wrong!r:.60}")
    if not first or not second:
        return first or second
    _check_open(first, second, at)
    made = dict(first)
    for key, value in second.items():
        made[key] = _joined(key, made[key], value, at) if key in made and made[key] != value else value
    return made


def _check_open(first: Mapping[str, Any], second: Mapping[str, Any], at: str) -> None:
    """Refuse ``additionalProperties`` that would speak of the other's properties."""
    for one, other in ((first, second), (second, first)):
        more = set(other.get("properties", {})) - set(one.get("properties", {}))
        if more and one.get("additionalProperties", True) is not True:
            raise RequestError(
                f"json_schema: {at}: additionalProperties beside properties of another schema ({min(more)!r:.40}) is "
                "not supported"
            )


def _joined(key: str, first: Any, second: Any, at: str) -> Any:
    """What a keyword says that two schemas have, with different values."""
    if key in ANNOTATIONS:
        return {**first, **second} if isinstance(first, Mapping) and isinstance(second, Mapping) else first
    if key in _TIGHTER and all(isinstance(v, (int, float)) for v in (first, second)):
        return _TIGHTER[key](first, second)
    if key == "required" and all(isinstance(v, list) for v in (first, second)):
        return [*first, *(name for name in second if name not in first)]
    if key == "properties" and all(isinstance(v, Mapping) for v in (first, second)):
        both = {name: {"allOf": [first[name], second[name]]} for name in first.keys() & second.keys()}
        return {**first, **second, **both}
    if key in ("anyOf", "oneOf"):
        raise RequestError(f"json_schema: {at}: {key} in two schemas that hold at once is not supported")
    if key == "type":
        names = [v if isinstance(v, list) else [v] for v in (first, second)]
        return [name for name in names[0] if name in names[1] or (name == "integer" and "number" in names[1])] + [
            name for name in names[1] if name == "integer" and "number" in names[0] and name not in names[0]
        ]
    if key == "enum" and all(isinstance(v, list) for v in (first, second)):
        return [own for own in first if own in second]
    raise RequestError(f"json_schema: {at}: {key} in two schemas that hold at once is not supported")


def at_most_one(members: Sequence[Any], at: str, resolved: Callable[[Any], Any]) -> None:
    """Refuse ``oneOf`` whose members could hold at once.

    Members differ by type, or are objects with a required property whose constants differ.
    """
    for (i, first), (j, second) in combinations(enumerate(members), 2):
        if not _apart(first, second, resolved):
            raise RequestError(
                f"json_schema: {at}: oneOf needs members that differ by type or by a required property with other "
                f"constants; {i} and {j} may hold at once. Use anyOf"
            )


def _apart(first: Any, second: Any, resolved: Callable[[Any], Any]) -> bool:
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return first is False or second is False
    values = [_values(own) for own in (first, second)]
    if values[0] is not None and values[1] is not None:
        return not any(a == b for a in values[0] for b in values[1])
    kinds = [_kinds(own) for own in (first, second)]
    if kinds != [{"object"}, {"object"}]:
        return kinds[0] is not None and kinds[1] is not None and not kinds[0] & kinds[1]
    properties = [own.get("properties", {}) for own in (first, second)]
    return any(
        _apart(resolved(properties[0].get(name, True)), resolved(properties[1].get(name, True)), resolved)
        for name in set(first.get("required", ())) & set(second.get("required", ()))
    )


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values of ``const`` or ``enum``; None: any."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _kinds(schema: Mapping[str, Any]) -> set[str] | None:
    """Types, whole numbers among the numbers; None: any."""
    given, values = schema.get("type"), _values(schema)
    if given is None:
        return None if values is None else {_kind(own) for own in values}
    return {"number" if name == "integer" else name for name in (given if isinstance(given, list) else [given])}


def _kind(value: Any) -> str:
    names = {bool: "boolean", str: "string", list: "array", dict: "object", int: "number", float: "number"}
    return names.get(type(value), "null")
