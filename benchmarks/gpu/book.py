"""Records of a run: one JSON object a line, one file per part. What is recorded is not measured again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass
class Book:
    """The file of one part.

    Attributes:
        path: the file, ``PART.jsonl``.
        device: name of the device; a record of another device is measured again.
        earlier: folders with files of earlier runs, read only.
        deadline: clock reading (``time.time``) by which the part has to be done.
    """

    path: Path
    device: str
    earlier: tuple[Path, ...] = ()
    deadline: float = float("inf")
    _done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path.parent, *self.earlier):
            for record in read(folder / self.path.name):
                if record.get("device") == self.device and "skipped" not in record:
                    self._done.add(_name(record["key"]))

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether there is a record of this, measured or failed."""
        return _name(key) in self._done

    def write(self, key: Mapping[str, Any], **values: Any) -> None:
        """Add a record; on the disk when this returns."""
        self._done.add(_name(key))
        add(self.path, key, self.device, **values)
        print(self.path.stem, _short(key), _short(values), f"({self.left:.0f} s left)", flush=True)


def add(path: Path, key: Mapping[str, Any], device: str, /, **values: Any) -> None:
    """Add a record to a file; on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": dict(key), "device": device, **values}) + "\n")


def read(path: Path) -> Iterator[Record]:
    """The records of a file; none where there is no file. A last line that was cut off is left out."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise ValueError(f"{path}:{number + 1} is not JSON: {line[:80]!r}") from None


def latest(folders: Iterable[Path], part: str) -> list[Record]:
    """The records of a part in all folders; of equal keys and devices the last that was measured, else the last."""
    found: dict[tuple[str, str], Record] = {}
    for folder in folders:
        for record in read(folder / f"{part}.jsonl"):
            name = (_name(record["key"]), str(record.get("device")))
            without = {"skipped", "failed"}  # what has no figure gives way to what has, and to what is newer
            if name not in found or without & found[name].keys() or not without & record.keys():
                found[name] = record
    return list(found.values())


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _short(values: Mapping[str, Any]) -> str:
    def one(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)[:160]

    return " ".join(f"{name}={one(value)}" for name, value in values.items())
