"""JSON lines: one reader for batches, problems, results, answers and traces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RequestError


@dataclass(frozen=True)
class Line:
    """One line that is not blank.

    Attributes:
        number: counted from 1.
        where: file and number, for messages.
        value: what it holds; None where it is ``torn``.
        ended: whether a newline follows. Without one it is the last line.
        torn: whether it is no JSON because the process that wrote it was stopped in the middle.
    """

    number: int
    where: str
    value: Any
    ended: bool = True
    torn: bool = False


def read(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None


def lines(raw: bytes, name: str | Path, torn: bool = False) -> Iterator[Line]:
    """The lines of a file's content.

    Args:
        raw: the content; a byte order mark at its start does not count.
        name: of the file, for messages.
        torn: whether the last line may be cut off, if another precedes it.

    Raises:
        RequestError: a line that is not JSON in UTF-8; names it.
    """
    parts = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, part in enumerate(parts, 1):
        if not part.strip():
            continue
        where, ended = f"{name} line {number}", number < len(parts)
        try:
            value = json.loads(part.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            if torn and not ended and number > 1:
                yield Line(number, where, None, ended=False, torn=True)
                return
            what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "not JSON"
            raise RequestError(f"{where}: {what} ({error})") from None
        yield Line(number, where, value, ended)


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")
