"""Parameters that check themselves, and the one grammar that writes them down.

A policy or cache is a frozen dataclass whose fields are made with :func:`param`. The same string, such as
``slowfast(tau_high=0.85,suffix=truncate)`` or ``every(dual,4)``, is accepted on the command line, in Python and in
JSON, and labels traces and benchmark rows.

Grammar::

    spec  = name [ "(" [ value *( "," value ) ] ")" ]
    value = [ name "=" ] ( number | "true" | "false" | "none" | spec | quoted text )

Quotes, single or double, are for what is no name: ``apd(verifier="Qwen/Qwen2.5-0.5B")``.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import SpecError
from .values import plain

_NAME = r"[A-Za-z_][\w\-]*"
_TOKEN = re.compile(rf"\s*(?:({_NAME})|([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|([(),=])|(\"[^\"]*\"|'[^']*'))")
_DEEPEST = 16  # nested specs
_LARGEST = 2**31  # of any number; larger ones are typing errors, and overflow what is counted in them
_TYPES: dict[type, dict[str, type]] = {}  # of each class, once resolved
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Spec:
    """A parsed spec: ``name``, positional ``args`` and named ``kwargs`` (a tuple of pairs, in the order written)."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        inside = [_show(a) for a in self.args] + [f"{k}={_show(v)}" for k, v in self.kwargs]
        return f"{self.name}({','.join(inside)})" if inside else self.name


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and (value in _WORDS or not re.fullmatch(_NAME, value)):
        return f'"{value}"' if '"' not in value else f"'{value}'"
    return repr(value) if isinstance(value, float) else str(value)


def parse(text: str) -> Spec:
    """Parse one spec string.

    Raises:
        SpecError: with the place where the text stops making sense.
    """
    tokens: list[tuple[str, str, int]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise SpecError(f"cannot read spec {text!r} at {text[at:].strip()!r}; expected name(key=value, ...)")
        kind = ("name", "number", "mark", "text")[(match.lastindex or 1) - 1]
        tokens.append((kind, match.group(match.lastindex or 1), match.start()))
        at = match.end()
    if sum(word == "(" for _, word, _ in tokens) > _DEEPEST:
        raise SpecError(f"cannot read spec {text[:40]!r}...: more than {_DEEPEST} specs inside each other")
    value, rest = _spec(tokens, text)
    if rest:
        raise SpecError(f"cannot read spec {text!r}: unexpected {rest[0][1]!r} after {value.name!r}")
    return value


_Tokens = list[tuple[str, str, int]]


def _spec(tokens: _Tokens, text: str) -> tuple[Spec, _Tokens]:
    if not tokens or tokens[0][0] != "name":
        found = repr(tokens[0][1]) if tokens else "the end"
        raise SpecError(f"cannot read spec {text!r}: expected a name, found {found}")
    name, tokens = tokens[0][1], tokens[1:]
    if not tokens or tokens[0][1] != "(":
        return Spec(name), tokens
    args: list[Any] = []
    kwargs: list[tuple[str, Any]] = []
    tokens = tokens[1:]
    while tokens and tokens[0][1] != ")":
        key = None
        if len(tokens) > 1 and tokens[0][0] == "name" and tokens[1][1] == "=":
            key, tokens = tokens[0][1], tokens[2:]
        value, tokens = _value(tokens, text)
        if key is None and kwargs:
            raise SpecError(f"cannot read spec {text!r}: a value without a name follows one with a name")
        if key is not None and key in dict(kwargs):
            raise SpecError(f"cannot read spec {text!r}: {key} is given twice")
        kwargs.append((key, value)) if key else args.append(value)
        if tokens and tokens[0][1] == ",":
            tokens = tokens[1:]
        elif tokens and tokens[0][1] != ")":
            raise SpecError(f"cannot read spec {text!r}: expected ',' or ')', found {tokens[0][1]!r}")
    if not tokens:
        raise SpecError(f"cannot read spec {text!r}: the closing ')' is missing")
    return Spec(name, tuple(args), tuple(kwargs)), tokens[1:]


def _value(tokens: _Tokens, text: str) -> tuple[Any, _Tokens]:
    if tokens and tokens[0][0] == "number":
        raw = tokens[0][1]
        return (int(raw) if re.fullmatch(r"[-+]?\d+", raw) else float(raw)), tokens[1:]
    if tokens and tokens[0][0] == "text":
        return tokens[0][1][1:-1], tokens[1:]
    spec, rest = _spec(tokens, text)
    if not spec.args and not spec.kwargs and spec.name in _WORDS:
        return _WORDS[spec.name], rest
    return spec, rest


def param(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
    optional: bool = False,
    file: bool = False,
    hidden: bool = False,
) -> Any:
    """A dataclass field with a one-line description and the range it accepts (``ge <= value``, ``gt < value``, ...).

    Its annotation is the type it accepts: ``bool``, ``int``, ``float``, ``str``, a policy or a cache.

    Args:
        default: the value when none is given. None is one that ``preset`` or another parameter fills in.
        doc: what the parameter does.
        ge, gt, le: bounds of a number.
        choices: the texts accepted.
        optional: None is accepted; ``doc`` says what it means.
        file: it names a file or folder, so that results depend on what is in there.
        hidden: accepted in specs, left out of tables: it exists to imitate other programs or for ablations.
    """
    metadata = {"doc": doc, "ge": ge, "gt": gt, "le": le, "choices": choices, "optional": optional or default is None}
    return dataclasses.field(default=default, metadata={**metadata, "file": file, "hidden": hidden})


def blocks(default: int | None = 32) -> Any:
    """The field ``block_length`` of policies that fill block after block."""
    return param(default, "positions per block; none: the whole response is one block", ge=1, optional=True)


def types(cls: type) -> dict[str, type]:
    """The type that each parameter of a class accepts, None aside."""
    if cls not in _TYPES:
        _TYPES[cls] = _declared(cls)
    return _TYPES[cls]


def _declared(cls: type) -> dict[str, type]:
    hints, found = get_type_hints(cls), dict[str, type]()
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        found[field.name] = next(member for member in members if member is not type(None))
    return found


def accepted(cls: type[Configured], name: str) -> str:
    """What a parameter accepts, in words: ``"a number in (0, 2]"``, ``"one of a, b"``."""
    (rule,) = (f.metadata for f in dataclasses.fields(cls) if f.name == name)
    kind = types(cls)[name]
    if rule.get("choices"):
        words = "one of " + ", ".join(rule["choices"])
    elif kind is bool:
        words = "true or false"
    elif kind is str:
        words = "a text without both kinds of quotes"
    elif kind not in (int, float):
        words = f"a {kind.__name__.lower()}"
    else:
        low, above, high = rule.get("ge"), rule.get("gt"), rule.get("le")
        words = "an integer" if kind is int else "a number"
        if high is not None and (low is not None or above is not None):
            words += f" in ({above:g}, {high:g}]" if low is None else f" in [{low:g}, {high:g}]"
        elif low is not None or above is not None:
            words += f" > {above:g}" if low is None else f" >= {low:g}"
    return words + (" or none" if rule.get("optional") else "")


@dataclass(frozen=True)
class Configured:
    """Base of policies and caches: parameters check themselves, ``str()`` gives the spec that builds the same object.

    Attributes:
        name: what specs call it.
        paper: where it was published; "-": nowhere.
        refuses: what it cannot be combined with, and why; "": nothing.
    """

    name = ""
    paper = ""
    refuses = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if "doc" in field.metadata:
                object.__setattr__(self, field.name, self._checked(field, getattr(self, field.name)))

    def _checked(self, field: dataclasses.Field[Any], value: Any) -> Any:
        """The value as the parameter's type: a float parameter given an integer holds a float."""
        rule, kind = field.metadata, types(type(self))[field.name]
        if (value is None and rule["optional"]) or kind not in (bool, int, float, str):
            return value
        found, ok = value, False
        if kind is str:
            ok = isinstance(value, str) and not {'"', "'"} <= set(value)  # could not be written down
            ok = ok and (not rule["choices"] or value in rule["choices"])
        elif kind is bool:
            ok = isinstance(value, bool)
        else:
            found = plain(value)
            ok = found is not None and abs(found) < _LARGEST and _within(rule, found)
            ok = ok and (kind is float or isinstance(found, int))
        if not ok:
            raise SpecError(f"{self.name}: {field.name} must be {accepted(type(self), field.name)}, got {value!r}")
        return kind(found)

    def _default(self, field: dataclasses.Field[Any]) -> Any:
        """What a field has when it is not given."""
        return field.default

    def __str__(self) -> str:
        values = [
            (f.name, getattr(self, f.name))
            for f in dataclasses.fields(self)
            if _written(getattr(self, f.name)) != _written(self._default(f))
        ]
        return str(Spec(self.name, (), tuple(values)))


def _written(value: Any) -> Any:
    """A policy or cache and the spec that builds it count as one."""
    return str(value) if isinstance(value, (Spec, Configured)) else value


def _within(rule: Any, value: float) -> bool:
    return (
        (rule["ge"] is None or value >= rule["ge"])
        and (rule["gt"] is None or value > rule["gt"])
        and (rule["le"] is None or value <= rule["le"])
    )
