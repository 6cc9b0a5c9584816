"""What commands that decode have in common: from records to results, with every listener on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import RequestError
from .inputs import Form, Record, from_argument, from_file
from .outputs import Results, Trace, check_writable, opened
from .progress import loading

if TYPE_CHECKING:
    from ..api import Model
    from ..engine.batch import Request
    from ..measure.profile import Profile
    from ..results import Result
    from .progress import Display


@dataclass(frozen=True)
class Files:
    """Where things come from and go to; see the options of these names."""

    batch: str | None
    output: str | None
    trace: str | None
    picture: str | None
    animate: bool

    def check(self) -> None:
        """No file for two purposes, none that cannot be written; pictures are SVG."""
        seen: dict[Path, str] = {Path(self.batch).resolve(): "batch"} if self.batch not in (None, "-") else {}
        for name in ("output", "trace", "picture"):
            path = getattr(self, name)
            if path is not None and (other := seen.setdefault(Path(path).resolve(), name)) != name:
                raise RequestError(f"--{name} and --{other} are the same file {path}")
            if path is not None:
                check_writable(path)
        if self.picture is not None and Path(self.picture).suffix.lower() != ".svg":
            raise RequestError(f"--picture writes SVG; expected a name that ends in .svg, got {self.picture}")


@dataclass(frozen=True)
class Run:
    """What to decode with, and how to show it; see the options of these names. ``profile``: where policy and cache are
    from, to be checked against the model.
    """

    model: str | None
    policy: str
    cache: str
    batch_size: int
    json: bool
    watch: bool
    device: str
    dtype: str
    profile: Profile | None = None


def decode(
    value: str | None, form: Form, files: Files, run: Run, make: Callable[[Model, Record], Sequence[Request]]
) -> None:
    """Read what is to be decoded, check all of it, decode it.

    Args:
        value: the command's argument.
        form: what it and the lines of a batch are.
        files: where things come from and go to.
        run: what to decode with.
        make: the request of one record.
    """
    files = replace(files, output=None if files.output == "-" else files.output)
    files.check()
    if (value is None) == (files.batch is None):
        raise RequestError(
            f"give either one {form.main.upper()} (- reads it from standard input) or --batch FILE.jsonl"
        )
    records = from_file(files.batch, form) if files.batch is not None else [from_argument(value or "", form)]
    if files.animate and files.picture is None:
        raise RequestError("--animate needs --picture FILE.svg")

    from .. import load, registry

    chosen, kept = registry.policy(run.policy), registry.cache(run.cache)
    with loading(run.model or "the shipped model"):
        lm = load(run.model, run.device, run.dtype)
    if run.profile:
        run.profile.check(lm)
    requests = [_request(lm, record, i, make) for i, record in enumerate(records)]
    decoding = lm.run(requests, chosen, kept, run.batch_size)  # checks them all, decodes nothing yet
    common = {"policy": str(chosen), "cache": str(kept), "model": run.model or "shipped"}
    with ExitStack() as stack:
        batch = files.batch is not None
        file = stack.enter_context(opened(files.output))
        results = Results(file, run.json or batch, common, spans=form.spans)
        traces = stack.enter_context(opened(files.trace))
        listener = Trace(traces, lm, requests, common) if traces else None
        scrolls = files.output is None and sys.stdout.isatty()  # the results themselves show how far it is
        display = stack.enter_context(_display(lm, requests, run.watch, batch and not scrolls))
        finished = _listen(lm, requests, decoding, results, listener, display)
        display.close(finished)
    if files.picture is not None:
        from ..viz import svg

        title = f"{chosen} + {kept}" if str(kept) != "none" else str(chosen)
        drawn = svg(lm, [(title, r) for r in finished], animate=files.animate)
        Path(files.picture).write_text(drawn, encoding="utf-8")


def _request(lm: Model, record: Record, index: int, make: Callable[[Model, Record], Sequence[Request]]) -> Request:
    """Encode and check one record.

    Raises:
        RequestError: names the record's line.
    """
    try:
        return replace(make(lm, record)[0], row=index)
    except RequestError as error:
        message = str(error)
        for name in ("prompt 0", "text 0"):
            message = message.removeprefix(f"{name}: ").replace(name, "it")
        raise RequestError(f"{record.where}: {message}") from None


def _display(lm: Model, requests: Sequence[Request], watch: bool, bar: bool) -> Display:
    from .progress import Bar, Display, Watch

    if watch:
        return Watch(lm, requests)
    return Bar(len(requests)) if bar and sys.stderr.isatty() else Display()


def _listen(
    lm: Model, requests: Sequence[Request], decoding: Any, results: Results, trace: Trace | None, display: Display
) -> list[Result]:
    """Decode; every listener hears of every step. Results in the order of the prompts."""
    finished: dict[int, Result] = {}
    try:
        for state, step in decoding:
            if trace:
                trace.add(step)
            done = lm.results(state) if step.finished else {}
            display.add(step, done)  # first, for it may have to leave the terminal to the results
            for row, result in sorted(done.items()):
                results.add(row, requests[row].seed, result)
            finished.update(done)
    except KeyboardInterrupt:
        display.close([])
        print(f"interrupted: {results.count} of {len(requests)} responses were written", file=sys.stderr)
        raise typer.Exit(130) from None
    return [finished[r.row] for r in requests]
