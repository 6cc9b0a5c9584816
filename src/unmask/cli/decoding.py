"""What commands that decode have in common: from records to results, with every listener on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import RequestError
from .inputs import Form, Record, from_argument, from_file
from .options import Decoding
from .outputs import Results, Trace, check_distinct, check_writable, opened

if TYPE_CHECKING:
    from ..api import Model
    from ..engine.batch import Request
    from ..results import Result
    from .progress import Display


def check_files(options: Decoding) -> None:
    """No file without a name, none for two purposes, none that cannot be written; pictures are SVG."""
    for name, standard in (("batch", "input"), ("output", "output"), ("trace", ""), ("picture", "")):
        if getattr(options, name) == "":
            other = f" or - (standard {standard})" if standard else ""
            raise RequestError(f"--{name} is empty; expected the name of a file{other}")
    made = {f"--{name}": getattr(options, name) for name in ("output", "trace", "picture")}
    check_distinct({"--batch": None if options.batch == "-" else options.batch, **made})
    for path in filter(None, made.values()):
        check_writable(path)
    if options.picture is not None and Path(options.picture).suffix.lower() != ".svg":
        raise RequestError(f"--picture writes SVG; expected a name that ends in .svg, got {options.picture}")


def decode(
    value: str | None,
    form: Form,
    options: Decoding,
    make: Callable[[Model, Record], Sequence[Request]],
    check: Callable[[Model], None] | None = None,
) -> None:
    """Read what is to be decoded, check all of it, decode it.

    Args:
        value: the command's argument.
        form: what it and the lines of a batch are.
        options: how.
        make: the request of one record.
        check: refuses a model that the options are not for.
    """
    options = replace(options, output=None if options.output == "-" else options.output)
    check_files(options)
    if (value is None) == (options.batch is None):
        raise RequestError(
            f"give either one {form.main.upper()} (- reads it from standard input) or --batch FILE.jsonl"
        )
    records = from_file(options.batch, form) if options.batch is not None else [from_argument(value or "", form)]
    if options.animate and options.picture is None:
        raise RequestError("--animate needs --picture FILE.svg")

    from .. import registry
    from ..api import SHIPPED_NAME

    chosen, kept = registry.policy(options.policy), registry.cache(options.cache)
    lm = options.loading.load()
    if check:
        check(lm)
    requests = [_request(lm, record, i, make) for i, record in enumerate(records)]
    with _named(records):
        decoding = lm.run(requests, chosen, kept, options.batch_size)  # checks them all, decodes nothing yet
    common = {"policy": str(chosen), "cache": str(kept), "model": options.model or SHIPPED_NAME}
    with ExitStack() as stack:
        batch = options.batch is not None
        file = stack.enter_context(opened(options.output))
        results = Results(file, options.json or batch, common, spans=form.spans)
        traces = stack.enter_context(opened(options.trace))
        listener = Trace(traces, lm, requests, common) if traces else None
        scrolls = options.output is None and sys.stdout.isatty()  # the results themselves show how far it is
        display = stack.enter_context(_display(lm, requests, options.watch, batch and not scrolls))
        finished = _listen(lm, requests, decoding, results, listener, display)
        display.close(finished)
    if options.picture is not None:
        from ..viz import svg

        title = f"{chosen} + {kept}" if str(kept) != "none" else str(chosen)
        drawn = svg(lm, [(title, r) for r in finished], animate=options.animate)
        Path(options.picture).write_text(drawn, encoding="utf-8")


def _request(lm: Model, record: Record, index: int, make: Callable[[Model, Record], Sequence[Request]]) -> Request:
    """Encode and check one record.

    Raises:
        RequestError: names the record's line.
    """
    try:
        return replace(make(lm, record)[0], row=index)
    except RequestError as error:
        raise RequestError(f"{record.where}: {error.what}") from None


@contextmanager
def _named(records: Sequence[Record]) -> Iterator[None]:
    """Errors of a request, whose row is the index of its record, name the record's line."""
    try:
        yield
    except RequestError as error:
        if error.row is None:
            raise
        raise RequestError(f"{records[error.row].where}: {error.what}") from None


def _display(lm: Model, requests: Sequence[Request], watch: bool, bar: bool) -> Display:
    from .progress import Bar, Display, Watch

    if watch:
        return Watch(lm, requests)
    return Bar(len(requests)) if bar else Display()


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
