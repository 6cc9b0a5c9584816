"""A file of JSON lines that survives a kill: whole lines count, what was cut off is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core import jsonl
from ..core.errors import RequestError

_BEGIN = b'{"kind":'  # of every line; one that begins otherwise was not cut off by us, and is not ours to drop


def read(path: Path) -> Iterator[jsonl.Line]:
    """The lines of a file, each a JSON object; a last line without its end is not one. Nothing when there is no file.

    Raises:
        RequestError: it cannot be read, is a device, or a line is not a JSON object.
    """
    if not path.exists():
        return
    if not (path.is_file() or path.is_dir()):
        raise RequestError(f"{path} is not a regular file")
    raw = jsonl.read(path)
    whole = raw.rfind(b"\n") + 1
    if not whole and not _BEGIN.startswith(raw[: len(_BEGIN)]):
        raise RequestError(f"{path} line 1 is not a JSON object with its end of line; is this a file of results?")
    for line in jsonl.lines(raw[:whole], path):
        if not isinstance(line.value, dict):
            raise RequestError(f"{line.where} is not a JSON object; is this a file of results?")
        yield line


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
