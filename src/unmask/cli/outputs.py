"""What a run leaves behind: results and traces, line by line as they come, so that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..core.errors import RequestError
from ..traceview import VERSION

if TYPE_CHECKING:
    from torch import Tensor

    from ..api import Model
    from ..engine.batch import Request
    from ..engine.loop import Step
    from ..results import Result


def check_writable(path: str, make: bool = False, regular: bool = False) -> None:
    """Tell early what :func:`opened` would stumble over, without touching anything.

    Args:
        path: of the file.
        make: whether its folder is made where there is none.
        regular: whether it is replaced or read as well, which devices and pipes are not for.

    Raises:
        RequestError: no name, a folder, or in a folder that does not exist, or without permission.
    """
    if not path:
        raise RequestError("the name of a file to write is empty")
    target, folder = Path(path), Path(path).parent
    while make and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    reason = None
    if target.is_dir():
        reason = errno.EISDIR
    elif not folder.is_dir():
        reason = errno.ENOTDIR if folder.exists() else errno.ENOENT
    elif not os.access(target if target.exists() else folder, os.W_OK):
        reason = errno.EACCES
    if reason:
        raise RequestError(f"cannot write {path}: {os.strerror(reason)}")
    if regular and target.exists() and not target.is_file():
        raise RequestError(f"cannot write {path}: not a regular file")


def check_distinct(files: Mapping[str, str | Path | None]) -> None:
    """Refuse one file for two purposes; ``files`` by what messages call them, None: there is none.

    Raises:
        RequestError: names the two.
    """
    seen: dict[Path, str] = {}
    for name, path in files.items():
        if path is not None and (other := seen.setdefault(Path(path).resolve(), name)) != name:
            raise RequestError(f"{name} and {other} are the same file {path}")


@contextmanager
def opened(path: str | None) -> Iterator[TextIO | None]:
    """A fresh text file, or None for no path.

    Raises:
        RequestError: it cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        file = Path(path).open("w", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from None
    with file:
        yield file


def put(file: TextIO, value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own, on its way at once."""
    unicode = (file.encoding or "").lower().replace("-", "") == "utf8"
    file.write(json.dumps(value, ensure_ascii=not unicode) + "\n")
    file.flush()


@contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, so that what is written is counted as well."""
    held: list[tuple[Any, ...]] = []
    before = signal.signal(signal.SIGINT, lambda *args: held.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held and callable(before):
        before(*held[0])


class Results:
    """Writes responses as they finish, to a file or standard output."""

    def __init__(self, file: TextIO | None, as_json: bool, common: Mapping[str, Any], spans: bool = False) -> None:
        self.file = file or sys.stdout
        self.spans = spans
        self.as_json = as_json
        self.common = common
        self.count = 0

    def add(self, index: int, seed: int, result: Result) -> None:
        """Write one response."""
        with _whole():
            if self.as_json:
                put(self.file, self.record(index, seed, result))
            else:
                self.file.write(result.text + "\n")
                self.file.flush()
            self.count += 1

    def record(self, index: int, seed: int, result: Result) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        own = {
            "index": index,
            "text": result.text,
            "tokens": result.tokens,
            "steps": result.steps,
            "prompt_tokens": len(result.prompt_tokens),
            "stats": dataclasses.asdict(result.stats),
        }
        if self.spans:
            own["spans"] = [dataclasses.asdict(span) for span in result.spans]
        return own | dict(self.common) | {"seed": seed}


class Trace:
    """Writes every step of a run: a header, then one object per forward. ``docs/trace.md`` describes the fields."""

    def __init__(self, file: TextIO, lm: Model, requests: Sequence[Request], common: Mapping[str, Any]) -> None:
        self.file = file
        self.text = lm.text
        self.shown: set[int] = set()
        spec = lm.denoiser.spec
        rows = [
            {"row": r.row, "prompt": list(r.prompt), "gen_length": r.gen_length, "seed": r.seed}
            | ({"fixed": sorted(map(list, r.fixed.items()))} if r.fixed else {})
            for r in requests
        ]
        ids = [spec.mask, *spec.eos, *(i for r in requests for i in (*r.prompt, *r.fixed.values()))]
        own = {"mask": spec.mask, "eos": list(spec.eos), "layers": lm.denoiser.layers}
        put(file, {"trace": VERSION, **common, **own, "rows": rows} | self._pieces(ids))

    def add(self, step: Step) -> None:
        """Write one step."""
        committed = step.committed()
        put(
            self.file,
            {
                "index": step.index,
                "rows": step.row.tolist(),
                "forward": step.forward.tolist(),
                "window": [spans(mask) for mask in step.ask.window],
                "committed": [[c.row, c.position, c.token, round(c.confidence, 6)] for c in committed],
                "remasked": [list(pair) for pair in step.remasked()],
                "confidence": [confidences(row) for row in step.confidence],
                "work": step.work.tolist(),
                "computed": [runs(row) for row in step.computed()],
                "notes": {name: value.tolist() for name, value in step.notes().items()},
                "seconds": step.seconds,
                "finished": list(step.finished),
            }
            | self._pieces([c.token for c in committed]),
        )

    def _pieces(self, ids: Sequence[int]) -> dict[str, Any]:
        """The text of ids that no line has shown yet."""
        new = sorted(set(ids) - self.shown)
        self.shown.update(new)
        return {"pieces": dict(zip(map(str, new), self.text.pieces(new), strict=True))} if self.text and new else {}


def spans(mask: Tensor) -> list[list[int]]:
    """The true positions of a ``[T]`` mask as ``[first, one behind the last]`` ranges."""
    return [[first, last] for first, last, _ in runs(mask.int())]


def runs(values: Tensor) -> list[list[int]]:
    """``[first, one behind the last, value]`` of the stretches of ``[T]`` whole numbers other than 0."""
    edge = values.new_zeros(1)
    at = values.diff(prepend=edge, append=edge).nonzero()[:, 0]
    held = values[at[:-1]].tolist()
    return [[*pair, value] for *pair, value in zip(at[:-1].tolist(), at[1:].tolist(), held, strict=True) if value]


def confidences(values: Tensor) -> list[list[Any]]:
    """``[first position, [confidence, ...]]`` of the stretches of ``[T]`` that were asked (-inf: not asked)."""
    asked = (values > float("-inf")).cpu()
    rounded = [round(v, 3) for v in values.clamp(min=0).tolist()]
    return [[first, rounded[first:last]] for first, last in spans(asked)]
