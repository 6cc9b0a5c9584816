"""A file of JSON lines that survives a kill: whole lines count, what was cut off is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import RequestError

_BEGIN = b'{"kind":'  # of every line; one that begins otherwise was not cut off by us, and is not ours to drop


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file; a last line without its end is not one. Nothing when there is no file.

    Raises:
        RequestError: it cannot be read, is a device, or a line is not a JSON object.
    """
    try:
        if not path.exists():
            return
        if not path.is_file():
            raise RequestError(f"{path} is not a regular file")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and (number > 1 or _BEGIN.startswith(line[: len(_BEGIN)])):
                    return
                yield _object(line, f"{path} line {number}")
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not line.endswith(b"\n"):
        raise RequestError(f"{where} is not a JSON object; is this a file of results?")
    return row


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line, after dropping what an earlier process left of one. On the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _drop_torn(file)
        file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _drop_torn(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
