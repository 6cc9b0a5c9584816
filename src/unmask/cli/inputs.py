"""What to decode: one prompt, or a file of them, checked before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..core.errors import RequestError
from ..engine.request import SamplingParams

_SAMPLING = tuple(f.name for f in fields(SamplingParams))
_RESULT = frozenset(("index", "text", "tokens", "steps", "prompt_tokens", "stats", "spans", "finish_reason", "error",
                     "model", "request"))  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What the argument of a command and the lines of its batch are.

    Attributes:
        main: the key that every line has.
        more: keys it may have beside the fields of :class:`~unmask.engine.request.SamplingParams`.
        without: of these, what it may not have.
        whole: whether newlines at the end of standard input belong to the text.
        spans: whether results tell what was filled.
    """

    main: str
    more: tuple[str, ...]
    without: tuple[str, ...] = ()
    whole: bool = False
    spans: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """All that a line may say of how it is decoded."""
        return (self.main, *self.more, *(name for name in _SAMPLING if name not in self.without))

    @property
    def expected(self) -> str:
        """A line, in words."""
        more = ", ".join(self.keys[1:])
        return f'{{"{self.main}": {_MAIN[self.main]}, ...}}; it may have {more}, and keys of your own'


_MAIN = {"prompt": 'text | [ids] | [{"role": ..., "content": ...}]', "text": "text with gaps | [ids]"}
PROMPT = Form("prompt", ("gen_length", "policy", "cache", "n", "chat"))
TEXT = Form("text", ("prompt", "policy", "cache", "n", "chat"), without=("stop",), whole=True, spans=True)
CAUSAL = Form("prompt", ("gen_length", "n", "chat"), without=("late_eos", "regex", "json_schema", "choices"))
_KEYS = frozenset((*PROMPT.keys, *TEXT.keys)) - {"prompt", "text"}
_ALIASES = {"messages": "prompt", "max_tokens": "gen_length"}  # OpenAI's names


@dataclass(frozen=True)
class Record:
    """One prompt or text; ``where`` names it in messages.

    Attributes:
        own: what it has instead of the command's options.
        carried: keys of the user's own, which go through to the results.
    """

    value: Any
    where: str
    own: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)


def standard_input() -> bytes:
    """All of it.

    Raises:
        RequestError: it is closed.
    """
    if sys.stdin is None:
        raise RequestError("standard input is closed; expected a text there")
    return sys.stdin.buffer.read()


def from_argument(value: str, form: Form) -> Record:
    """The argument as given, or what standard input holds for ``-``; of a prompt without the newline at its end."""
    if value != "-":
        return Record(value, f"the {form.main}")
    text = _decode(standard_input(), "standard input")
    return Record(text if form.whole else text.rstrip("\r\n"), "standard input")


def from_file(path: str, form: Form) -> list[Record]:
    """The prompts or texts of a JSONL file (``-``: standard input); empty lines do not count.

    Raises:
        RequestError: unreadable, nothing in it, or a line that is not what is expected; names the line.
    """
    try:
        raw = standard_input() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    name = "standard input" if path == "-" else path
    records = list(_records(_decode(raw, name), name, form))
    if not records:
        raise RequestError(f"{name} holds no {form.main}s; expected lines {form.expected}")
    return records


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{name} line {line}: not UTF-8 text (byte {error.start})") from None


def _records(text: str, name: str, form: Form) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name} line {number}"
            try:
                value = json.loads(line, parse_constant=_not_json)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{where}: not JSON ({error}); expected {form.expected}") from None
            yield _record(value, where, form)


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _record(value: Any, where: str, form: Form) -> Record:
    """A line: our own form, or OpenAI's batch format, whose ``body`` is a request."""
    from ..core.schema import parse
    from .line import Line

    if not isinstance(value, dict):
        raise RequestError(f"{where}: expected {form.expected}")
    carried = {}
    if isinstance(value.get("body"), dict) and form.main not in value:
        carried = {key: own for key, own in value.items() if key not in ("body", "method", "url")}
        value = value["body"]
    line = {}
    for key, own in value.items():
        name = _ALIASES.get(key, key)
        if name in line or (name != key and name in value):
            raise RequestError(f"{where}: {key} and {name} say the same; give one of them")
        line[name] = own
    if form.main not in line:
        raise RequestError(f"{where}: expected {form.expected}")
    known = set(form.keys)
    carried |= {key: own for key, own in line.items() if key not in known}
    reserved = sorted(_RESULT & carried.keys() - {"model"})
    if reserved:
        raise RequestError(f"{where}: {reserved[0]!r} is a key of results; a key of your own needs another name")
    carried.pop("model", None)
    for key in value:
        if (name := _ALIASES.get(key, key)) in _KEYS and name not in known:
            raise RequestError(f"{where}: {key} is not for {form.main}s; accepted are {', '.join(form.keys)}")
    for key in carried:
        if near := get_close_matches(key, known, 1, 0.8):
            raise RequestError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
    own = {key: given for key, given in line.items() if key in known and given is not None and key != form.main}
    parse(Line, {form.main: line[form.main], **own}, where)
    if "prompt" in own:
        own["prompts"] = [own.pop("prompt")]
    return Record(line[form.main], where, own, carried)
