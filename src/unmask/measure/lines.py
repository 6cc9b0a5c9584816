"""The lines of a file of results, as ``unmask bench`` and ``unmask tune`` write them, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import RequestError
from . import ledger

VERSION = 1
_MOST = 2**63  # of any number: sums of them are finite, and no integer is beyond a float
_RUN: dict[str, Any] = {
    **dict.fromkeys(("run", "model", "device", "dtype", "torch", "unmask", "command"), str),
    "threads": int,
    "commit": (str, type(None)),
}
_KEY: dict[str, Any] = {
    **dict.fromkeys(("policy", "cache", "task"), str),
    **dict.fromkeys(("gen_length", "batch_size", "seed", "first", "n"), int),
    "eos_stop": bool,
    "temperature": (int, float),
    "split": (str, type(None)),
}
_PROBLEMS = ("correct", "nfe", "tokens", "positions", "first_token")
_SECONDS = ("seconds", "cpu_seconds", "model_seconds")


def read(path: Path) -> list[dict[str, Any]]:
    """All lines, checked; none when there is no file.

    Raises:
        RequestError: the file is not one of results or of another version; names the first line that is wrong.
    """
    rows: list[dict[str, Any]] = []
    runs: set[str] = set()
    for number, row in enumerate(ledger.read(path), 1):
        if row.get("version") != VERSION:
            raise RequestError(f"{path} is not a file of `unmask bench`, or of another version of it")
        if row.get("kind") == "run" and _has(row, _RUN):
            runs.add(row["run"])
        elif not _is_batch(row):
            raise RequestError(f"{path} line {number} is not a line of `unmask bench`; has the file been edited?")
        elif row["run"] not in runs:
            raise RequestError(f"{path} line {number}: the line of kind run that tells of run {row['run']} is missing")
        rows.append(row)
    return rows


def _is_batch(row: dict[str, Any]) -> bool:
    key = row.get("key")
    return (
        row.get("kind") == "batch"
        and isinstance(row.get("run"), str)
        and isinstance(key, dict)
        and _has(key, _KEY)
        and isinstance(key.get("files", ""), str)
        and all(_is_number(v) for v in key.values() if isinstance(v, (int, float)))
        and key["n"] > 0
        and all(_are_numbers(row.get(name), key["n"]) for name in _PROBLEMS)
        and all(_is_number(row.get(name)) and row[name] > 0 for name in _SECONDS)
        and min(row["nfe"]) > 0
        and max(row["correct"]) <= 1
        and key["gen_length"] > 0
        and "peak_bytes" in row
        and isinstance(row.get("digest"), list)
        and len(row["digest"]) == key["n"]
        and (row["peak_bytes"] is None or (isinstance(row["peak_bytes"], int) and _is_number(row["peak_bytes"])))
    )


def _has(row: dict[str, Any], kinds: dict[str, Any]) -> bool:
    return all(name in row and isinstance(row[name], kind) for name, kind in kinds.items())


def _are_numbers(values: Any, n: int) -> bool:
    return isinstance(values, list) and len(values) == n and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < _MOST
