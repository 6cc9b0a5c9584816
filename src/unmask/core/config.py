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
from typing import Any

from .errors import SpecError

_NAME = r"[A-Za-z_][\w\-]*"
_TOKEN = re.compile(rf"\s*(?:({_NAME})|([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|([(),=])|(\"[^\"]*\"|'[^']*'))")
_DEEPEST = 16  # nested specs
_LARGEST = 2**31  # of any number; larger ones are typing errors, and overflow what is counted in them
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
) -> Any:
    """A dataclass field with a one-line description and the range it accepts (``ge <= value``, ``gt < value``, ...).

    ``optional`` also accepts None, whose meaning ``doc`` gives. ``file``: it names a file or folder, so that results
    depend on what is in there.
    """
    metadata = {"doc": doc, "ge": ge, "gt": gt, "le": le, "choices": choices, "optional": optional or default is None}
    return dataclasses.field(default=default, metadata={**metadata, "file": file})


def annotation(field: dataclasses.Field[Any]) -> str:
    """A field's type as the source writes it, also where that does not postpone annotations."""
    return field.type.__name__ if isinstance(field.type, type) else str(field.type)


def accepted(field: dataclasses.Field[Any]) -> str:
    """What a field accepts, in words: ``"a number in (0, 2]"``, ``"one of a, b"``."""
    rule, written = field.metadata, annotation(field)
    if rule.get("choices"):
        words = "one of " + ", ".join(rule["choices"])
    elif "bool" in written:
        words = "true or false"
    elif written.startswith("str"):
        words = "a text without both kinds of quotes"
    else:
        words = "an integer" if written.startswith("int") else "a number"
        low, high = rule.get("ge"), rule.get("le")
        if rule.get("gt") is not None and high is not None:
            words += f" in ({rule['gt']:g}, {high:g}]"
        elif low is not None and high is not None:
            words += f" in [{low:g}, {high:g}]"
        elif rule.get("gt") is not None:
            words += f" > {rule['gt']:g}"
        elif low is not None:
            words += f" >= {low:g}"
    return words + (" or none" if rule.get("optional") else "")


@dataclass(frozen=True)
class Configured:
    """Base of policies and caches: fields check themselves, ``str()`` gives the spec that builds the same object.

    ``refuses`` says in words what it cannot be combined with, and why; "": nothing.
    """

    name = ""
    paper = ""
    refuses = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if "doc" in field.metadata:
                self._check(field, getattr(self, field.name))

    def _check(self, field: dataclasses.Field[Any], value: Any) -> None:
        rule = field.metadata
        if value is None and rule["optional"]:
            return
        written = annotation(field)
        if rule["choices"]:
            ok = value in rule["choices"]
        elif "bool" in written:
            ok = isinstance(value, bool)
        elif written.startswith("str"):
            ok = isinstance(value, str) and not {'"', "'"} <= set(value)  # could not be written down
        elif written.startswith(("int", "float")):
            number = int if written.startswith("int") else (int, float)
            ok = (
                isinstance(value, number)
                and not isinstance(value, bool)
                and abs(value) < _LARGEST
                and _within(rule, value)
            )
        else:
            return
        if not ok:
            raise SpecError(f"{self.name}: {field.name} must be {accepted(field)}, got {value!r}")

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
