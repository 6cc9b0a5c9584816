"""What to decode: one prompt, or a file of them, checked before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import RequestError

EXPECTED = '{"prompt": text | [ids] | [{"role": ..., "content": ...}], "gen_length": number, "seed": number}'
SEEDS = 1 << 63


@dataclass(frozen=True)
class Record:
    """One prompt; ``where`` names it in messages. ``gen_length`` and ``seed`` None: the command's."""

    prompt: Any
    where: str
    gen_length: int | None = None
    seed: int | None = None


def from_argument(prompt: str) -> Record:
    """The prompt as given, or what standard input holds for ``-``, without the newline at its end."""
    if prompt != "-":
        return Record(prompt, "the prompt")
    return Record(_decode(sys.stdin.buffer.read(), "standard input").rstrip("\r\n"), "standard input")


def from_file(path: str) -> list[Record]:
    """The prompts of a JSONL file (``-``: standard input); empty lines do not count.

    Raises:
        RequestError: unreadable, no prompts, or a line that is not what is expected; names the line.
    """
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    name = "standard input" if path == "-" else path
    records = list(_records(_decode(raw, name), name))
    if not records:
        raise RequestError(f"{name} holds no prompts; expected lines {EXPECTED}")
    return records


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{name} line {line}: not UTF-8 text (byte {error.start})") from None


def _records(text: str, name: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name} line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{where}: not JSON ({error}); expected {EXPECTED}") from None
            yield _record(value, where)


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict) or "prompt" not in value:
        raise RequestError(f"{where}: expected {EXPECTED}")
    unknown = sorted(set(value) - {"prompt", "gen_length", "seed"})
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; accepted are prompt, gen_length, seed")
    prompt = value["prompt"]
    if not (isinstance(prompt, str) or _all(prompt, _is_int) or _all(prompt, _is_message)):
        raise RequestError(
            f"{where}: prompt must be text, a list of ids or a list of messages with the texts role and content"
        )
    for key, low, high in (("gen_length", 1, 1 << 31), ("seed", 0, SEEDS)):
        number = value.get(key)
        if number is not None and not (_is_int(number) and low <= number < high):
            raise RequestError(f"{where}: {key} must be an integer of at least {low}, got {number!r}")
    return Record(prompt, where, value.get("gen_length"), value.get("seed"))


def _all(value: Any, check: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(check(item) for item in value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
