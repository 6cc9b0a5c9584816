"""What a run leaves behind: results and traces, line by line as they come, so that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..core.errors import RequestError
from ..traceview import VERSION

if TYPE_CHECKING:
    from torch import Tensor

    from ..api import Model
    from ..engine.loop import Step
    from ..engine.request import Request
    from ..results import Result
    from .decoding import Job

_ODD = "backslashreplace"  # half a surrogate, in a key of the user's own, is written as JSON has it


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
    """Refuse one file for two purposes, by whatever name; ``files`` by what messages call them, None: none.

    Raises:
        RequestError: names the two.
    """
    seen: dict[Any, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        keys: list[Any] = [Path(path).resolve()]
        if Path(path).is_file():
            status = Path(path).stat()
            keys.append((status.st_dev, status.st_ino))  # hard links are the same file as well
        for key in keys:
            if (other := seen.setdefault(key, name)) != name:
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


class Output:
    """Where results go: standard output, or a file that nobody else writes and that is emptied with the first result.

    Args:
        file: standard output, or a file opened for appending.
        fresh: whether the file is emptied before the first line.
    """

    def __init__(self, file: TextIO, fresh: bool) -> None:
        self.file, self.fresh = file, fresh

    @classmethod
    @contextmanager
    def at(cls, path: str | None) -> Iterator[Output]:
        """The file of a name; None: standard output.

        Raises:
            RequestError: it cannot be written, or another process is writing it.
        """
        if path is None:
            yield cls(sys.stdout, fresh=False)
            return
        existed = Path(path).exists()
        fresh = Path(path).is_file() or not existed  # a device or a pipe cannot be emptied
        try:
            file = Path(path).open("a+" if fresh else "w", encoding="utf-8", errors=_ODD, newline="\n")  # noqa: SIM115
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror}") from None
        with file:
            _lock(file, path)
            try:
                yield cls(file, fresh)
            finally:
                if not existed and not file.closed and file.tell() == 0 and Path(path).is_file():
                    Path(path).unlink()  # nothing came of it

    def emptied(self, lines: Sequence[str] = ()) -> None:
        """Leave only some lines in the file."""
        self.file.seek(0)
        self.file.truncate()
        self.file.writelines(lines)
        self.file.flush()
        self.fresh = False

    def shortened(self, size: int) -> None:
        """Leave only so many bytes in the file."""
        self.file.seek(0)
        self.file.truncate(size)
        self.fresh = False

    def put(self, text: str) -> None:
        """Write a line, on its way at once."""
        try:
            if self.fresh:
                self.emptied()
            self.file.write(text + "\n")
            self.file.flush()
        except OSError as error:
            error.filename = self.file.name
            if self.file is not sys.stdout:
                with suppress(OSError):
                    self.file.close()  # or its end would try again
            raise


def _lock(file: TextIO, path: str) -> None:
    """Refuse a file that another process is writing."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(f"{path} is being written by another process; wait for it, or choose another file") from None
    except OSError as error:  # a pipe, or a file system without locks
        if error.errno not in (errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise


def finished_lines(output: Output, keys: Sequence[str]) -> dict[int, str]:
    """The lines that a file holds of requests with these keys, by their place among them; the rest leaves the file,
    which is written anew only where that stands between them.

    Raises:
        RequestError: the file holds something else than results.
    """
    output.file.seek(0)
    text = output.file.read()
    lines = text.split("\n")
    place = {key: i for i, key in enumerate(keys)}
    held: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            if number == len(lines):  # cut off by a kill
                continue
            raise RequestError(
                f"{output.file.name} line {number}: not a line of results; --resume needs those"
            ) from None
        key = row.get("request") if isinstance(row, dict) and row.get("error") is None else None
        if isinstance(key, str) and key in place:
            index = place[key]
            same = row.get("index") == index  # the batch may have been put in another order
            held[index] = line if same else json.dumps(row | {"index": index}, ensure_ascii=False)
    kept = [line + "\n" for line in held.values()]
    if kept and text.startswith(whole := "".join(kept)):
        output.shortened(len(whole.encode()))
    elif kept:
        with _whole():
            output.emptied(kept)
    return held


class Results:
    """Writes responses as they finish.

    Attributes:
        count: lines written, those held before included.
        failed: what went wrong, for each request that failed.
    """

    def __init__(self, output: Output, as_json: bool, model: str, spans: bool, held: Mapping[int, str]) -> None:
        self.output, self.as_json, self.model, self.spans, self.held = output, as_json, model, spans, held
        self.count = len(held)
        self.failed: list[str] = []
        self._errors: list[str] = []

    def add(self, job: Job, result: Result) -> None:
        """Write one response. Failed ones are lines of JSON only, and do not empty a file of older results."""
        with _whole():
            line = json.dumps(self.record(job, result), ensure_ascii=not self._unicode) if self.as_json else result.text
            if result.error is not None:
                self.failed.append(f"{job.record.where}: {result.error}")
                if self.as_json and not self.output.fresh:
                    self.output.put(line)
                elif self.as_json:
                    self._errors.append(line)
                return
            self.output.put(line)
            self.count += 1
            for waiting in self._errors:
                self.output.put(waiting)
            self._errors = []

    def close(self) -> None:
        """All is done; messages of failed requests go to standard error where no file has them."""
        if len(self.failed) > 1:
            for message in self.failed[1:]:
                print(f"error: {message}", file=sys.stderr)

    @property
    def _unicode(self) -> bool:
        return (self.output.file.encoding or "").lower().replace("-", "") == "utf8"

    def record(self, job: Job, result: Result) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        request = job.request
        own = {
            **job.record.carried,
            "index": request.id,
            "text": result.text,
            "finish_reason": result.finish_reason,
            "tokens": result.tokens,
            "steps": result.steps,
            "prompt_tokens": len(result.prompt_tokens),
            "stats": dataclasses.asdict(result.stats),
        }
        if self.spans:
            own["spans"] = [dataclasses.asdict(span) for span in result.spans]
        if result.error is not None:
            own["error"] = result.error
        setting = {"policy": str(request.policy), "cache": str(request.cache), "model": self.model}
        return own | setting | {"seed": result.seed, "request": job.key}


class Trace:
    """Writes every step of a run: a header, then one object per forward pass; ``docs/trace.md`` has the fields."""

    def __init__(self, output: Output, lm: Model, requests: Sequence[Request], common: Mapping[str, Any]) -> None:
        self.output = output
        self.text = lm.text
        self.shown: set[int] = set()
        spec = lm.denoiser.spec
        rows = [
            {"row": r.id, "prompt": list(r.prompt), "gen_length": r.gen_length, "seed": r.params.seed}
            | ({"fixed": sorted(map(list, r.fixed.items()))} if r.fixed else {})
            for r in requests
        ]
        mask = spec.mask if spec.mask >= 0 else None
        ids = [
            *([] if mask is None else [mask]),
            *spec.eos,
            *(i for r in requests for i in (*r.prompt, *r.fixed.values())),
        ]
        own = {"mask": mask, "eos": list(spec.eos), "layers": lm.denoiser.layers}
        setting = {
            name: ", ".join(dict.fromkeys(str(getattr(r, name)) for r in requests)) for name in ("policy", "cache")
        }
        self.header = {"trace": VERSION, **setting, **common, **own, "rows": rows} | self._pieces(ids)

    def add(self, step: Step) -> None:
        """Write one step; the header comes before the first."""
        if self.header:
            self._put(self.header)
            self.header = {}
        resized = step.update.grow is not None
        last = step.canvas.most if resized else step.canvas.wanted
        ends = last.tolist()  # what fills up the last block behind a response is not part of it
        end = dict(zip(step.rows, ends, strict=True))
        committed = [c for c in step.committed() if c.position < end[c.row]]
        self._put(
            {
                "index": step.index,
                "rows": list(step.rows),
                "forward": step.forward.tolist(),
                "window": [spans(mask[:own]) for mask, own in zip(step.ask.window, ends, strict=True)],
                "committed": [[c.row, c.position, c.token, round(c.confidence, 6)] for c in committed],
                "remasked": [[row, at] for row, at in step.remasked() if at < end[row]],
                "confidence": [confidences(row[:own]) for row, own in zip(step.confidence, ends, strict=True)],
                "work": step.work.tolist(),
                "computed": [runs(row[:own]) for row, own in zip(step.computed(), ends, strict=True)],
                **({"length": (step.canvas.wanted - step.canvas.prompt).tolist()} if resized else {}),
                "notes": {name: value.tolist() for name, value in step.notes().items()},
                "seconds": step.seconds,
                "finished": list(step.finished),
            }
            | self._pieces([c.token for c in committed])
        )

    def _put(self, line: Mapping[str, Any]) -> None:
        self.output.put(json.dumps(line, ensure_ascii=False))

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
