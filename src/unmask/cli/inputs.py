"""What to decode: one prompt, or a file of them, checked before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import RequestError

SEEDS = 1 << 63


@dataclass(frozen=True)
class Form:
    """What the argument of a command and the lines of its batch are: ``main`` is the key that every line has, ``more``
    are the keys it may have. ``spans``: results tell what was filled.
    """

    main: str
    more: tuple[str, ...]
    spans: bool

    @property
    def expected(self) -> str:
        """A line, in words."""
        return "{" + ", ".join(f'"{key}": {_KEYS[key]}' for key in (self.main, *self.more)) + "}"


_KEYS = {
    "prompt": 'text | [ids] | [{"role": ..., "content": ...}]',
    "text": "text with gaps | [ids]",
    "gen_length": "number",
    "seed": "number",
    "banned": "[texts and ids]",
    "stop": "[texts]",
}
PROMPT = Form("prompt", ("gen_length", "seed", "banned", "stop"), spans=False)
TEXT = Form("text", ("prompt", "seed", "banned"), spans=True)


@dataclass(frozen=True)
class Record:
    """One prompt or text; ``where`` names it in messages. ``own``: what it has instead of the command's options."""

    value: Any
    where: str
    own: Mapping[str, Any] = field(default_factory=dict)


def from_argument(value: str, form: Form) -> Record:
    """The argument as given, or what standard input holds for ``-``, without the newline at its end."""
    if value != "-":
        return Record(value, f"the {form.main}")
    return Record(_decode(sys.stdin.buffer.read(), "standard input").rstrip("\r\n"), "standard input")


def from_file(path: str, form: Form) -> list[Record]:
    """The prompts or texts of a JSONL file (``-``: standard input); empty lines do not count.

    Raises:
        RequestError: unreadable, nothing in it, or a line that is not what is expected; names the line.
    """
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
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
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{where}: not JSON ({error}); expected {form.expected}") from None
            yield _record(value, where, form)


def _record(value: Any, where: str, form: Form) -> Record:
    if not isinstance(value, dict) or form.main not in value:
        raise RequestError(f"{where}: expected {form.expected}")
    known = (form.main, *form.more)
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; accepted are {', '.join(known)}")
    own = {key: given for key, given in value.items() if given is not None and key != form.main}
    for key, given in {**own, form.main: value[form.main]}.items():
        if not _CHECKS[key](given):
            shown = f", got {given!r:.80}" if key in _NUMBERS else ""
            raise RequestError(f"{where}: {key} must be {_ACCEPTED[key]}{shown}")
    if "prompt" in own:
        own["prompts"] = [own.pop("prompt")]
    return Record(value[form.main], where, own)


def _all(value: Any, check: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(check(item) for item in value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _is_number(low: int, high: int) -> Any:
    return lambda value: _is_int(value) and low <= value < high


_NUMBERS = ("gen_length", "seed")
_CHECKS = {
    "prompt": lambda value: isinstance(value, str) or _all(value, _is_int) or _all(value, _is_message),
    "text": lambda value: isinstance(value, str) or _all(value, _is_int),
    "gen_length": _is_number(1, 1 << 31),
    "seed": _is_number(0, SEEDS),
    "banned": lambda value: value == [] or _all(value, lambda i: isinstance(i, str) or _is_int(i)),
    "stop": lambda value: value == [] or _all(value, lambda i: isinstance(i, str) and i != ""),
}
_ACCEPTED = {
    "prompt": "text, a list of ids or a list of messages with the texts role and content",
    "text": "text or a list of ids",
    "gen_length": "an integer of at least 1",
    "seed": "an integer of at least 0",
    "banned": "a list of texts and ids",
    "stop": "a list of texts that are not empty",
}
