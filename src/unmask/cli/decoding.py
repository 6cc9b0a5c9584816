"""What commands that decode have in common: from records to results, with every observer on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import RequestError, SpecError
from ..engine.request import SamplingParams, wrapped
from .cluster import check_options, decoded, elsewhere
from .inputs import Form, Record, from_argument, from_file
from .options import Decoding, Loading
from .outputs import Output, Results, Trace, check_distinct, check_writable, finished_lines

if TYPE_CHECKING:
    from ..api import Model
    from ..engine.request import Request
    from ..engine.scheduler import Engine
    from ..results import Result
    from .progress import Display

Make = Callable[["Model", Any, Mapping[str, Any]], "Sequence[Request]"]


@dataclass(frozen=True)
class Job:
    """A request with the record it comes from; ``key`` identifies what is decoded, for ``--resume``."""

    record: Record
    request: Request
    key: str


def check_files(options: Decoding) -> None:
    """No file without a name, none for two purposes, none that cannot be written; pictures are SVG."""
    for name, standard in (("batch", "input"), ("output", "output"), ("trace", ""), ("picture", "")):
        if getattr(options, name) == "":
            other = f" or - (standard {standard})" if standard else ""
            raise RequestError(f"--{name} is empty; expected the name of a file{other}")
    made = {f"--{name}": getattr(options, name) for name in ("output", "trace", "picture")}
    given = "/dev/stdin" if Path("/dev/stdin").is_file() else None  # what the shell has put there
    check_distinct({"--batch": given if options.batch == "-" else options.batch, **made})
    for path in filter(None, made.values()):
        check_writable(path)
    if options.picture is not None and Path(options.picture).suffix.lower() != ".svg":
        raise RequestError(f"--picture writes SVG; expected a name that ends in .svg, got {options.picture}")
    if options.animate and options.picture is None:
        raise RequestError("--animate needs --picture FILE.svg")
    if options.resume and (options.output is None or options.batch is None):
        raise RequestError("--resume needs --batch and --output: it goes on with the results of a batch in a file")
    if options.resume and options.output is not None:
        check_writable(options.output, regular=True)
    if options.resume and options.trace is not None:
        raise RequestError("--resume and --trace do not go together: a trace has every step")


def decode(
    value: str | None,
    form: Form,
    where: Loading,
    options: Decoding,
    common: Mapping[str, Any],
    make: Make,
    check: Callable[[Model], None] | None = None,
) -> None:
    """Read what is to be decoded, check all of it, decode it.

    Args:
        value: the command's argument.
        form: what it and the lines of a batch are.
        where: the model.
        options: how.
        common: what ``make`` is given beside the options, where a record has none of its own.
        make: the requests of a record's value.
        check: refuses a model that the options are not for.

    Raises:
        typer.Exit: with code 1 where a request failed, after the others are written.
    """
    options = replace(options, output=None if options.output == "-" else options.output)
    records, given = _read(value, form, where, options, common)
    lm = (where if options.ray is None else elsewhere(where)).load()
    if check:
        check(lm)
    name = "".join((where.model or _bundled(), *(f"@{x}" for x in (where.revision,) if x),
                    *(f"+{x}" for x in (where.adapter, where.quantize) if x and x != "auto")))  # fmt: skip
    jobs: list[Job] = []
    for record in records:
        jobs += _jobs(lm, record, given, make, name, len(jobs))
    jobs = _numbered(jobs)
    engine = lm.engine(options.batch_size, None if options.memory is None else max(1, int(options.memory * 2**20)))
    with ExitStack() as stack:
        output = stack.enter_context(Output.at(options.output))
        held = finished_lines(output, [job.key for job in jobs]) if options.resume else {}
        waiting = [job for job in jobs if job.request.id not in held]
        for job in waiting:
            _prefixed(f"{job.record.where}: ", engine.add if options.ray is None else engine.check, job.request)
        results = Results(output, options.json or options.batch is not None, name, form.spans, held)
        traces = None if options.trace is None else stack.enter_context(Output.at(options.trace))
        observer = Trace(traces, lm, [job.request for job in waiting], {"model": name}) if traces else None
        scrolls = options.output is None and sys.stdout.isatty()  # the results themselves show how far it is
        bar = options.batch is not None and not scrolls
        display = stack.enter_context(_display(lm, [job.request for job in waiting], options.watch, bar))
        if options.ray is None:
            finished = _listen(lm, engine, waiting, results, observer, display)
            _draw(lm, finished, options)
        else:
            del lm, engine  # they have checked the lines; each worker has its own
            finished = _hand_on(waiting, where, options, results, display)
        results.close()
        display.close([result for _, result in finished])
    if results.failed:
        what = f"{results.count} of {len(jobs)} responses were written" if len(jobs) > 1 else "no response was written"
        print(f"error: {results.failed[0]}; {what}", file=sys.stderr)
        raise typer.Exit(1)


def _draw(lm: Model, finished: Sequence[tuple[str, Result]], options: Decoding) -> None:
    if options.picture is not None and finished:
        from ..viz import svg

        Path(options.picture).write_text(svg(lm, finished, animate=options.animate), encoding="utf-8")


def _read(
    value: str | None, form: Form, where: Loading, options: Decoding, common: Mapping[str, Any]
) -> tuple[list[Record], dict[str, Any]]:
    """The records, and how they are decoded where they do not say; refused before a model is loaded."""
    check_files(options)
    check_options(options, where)
    if options.memory is not None and not 0 < options.memory < math.inf:
        raise RequestError(f"--memory must be a number of MiB above 0, got {options.memory:g}")
    if (value is None) == (options.batch is None):
        raise RequestError(
            f"give either one {form.main.upper()} (- reads it from standard input) or --batch FILE.jsonl"
        )
    records = from_file(options.batch, form) if options.batch is not None else [from_argument(value or "", form)]
    given = {**common, "policy": options.policy, "cache": options.cache, "n": options.n, "chat": options.chat}
    for f in fields(SamplingParams):
        if f.metadata["file"] and given.get(f.name) is not None:
            given[f.name] = _contents(f.name, given[f.name])
    SamplingParams(**{f.name: given[f.name] for f in fields(SamplingParams) if given.get(f.name) is not None})
    from .. import registry

    for name, known in (("policy", registry.policy), ("cache", registry.cache)):
        for spec, line in {given[name]: "", **{r.own.get(name): f"{r.where}: " for r in records}}.items():
            if spec is not None:
                _prefixed(line, known, spec)
    return records, given


def _contents(name: str, path: str) -> str:
    """What a file holds whose name is an option's value."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--{name.replace('_', '-')}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"--{name.replace('_', '-')}: {path} is not UTF-8 text") from None


def _title(request: Request) -> str:
    cache = str(request.cache)
    return f"{request.policy}" if cache == "none" else f"{request.policy} + {cache}"


def _bundled() -> str:
    from ..api import BUNDLED_NAME

    return BUNDLED_NAME


def _jobs(lm: Model, record: Record, given: Mapping[str, Any], make: Make, model: str, first: int) -> Iterator[Job]:
    """The requests of a record, one for each sample, with ids from ``first`` on; ``--seed`` counts with these.

    Raises:
        RequestError: names the record's line.
    """
    own = {**given, **record.own}
    if given.get("seed") is not None and "seed" not in record.own:
        own["seed"] = wrapped(given["seed"] + first)
    made = _prefixed(f"{record.where}: ", make, lm, record.value, own)
    for sample, request in enumerate(made):
        params = asdict(request.params)
        if own.get("seed") is None:  # a fresh one: any will do
            params.pop("seed")
        key = [model, list(request.prompt), request.gen_length, str(request.policy), str(request.cache), params,
               sorted(request.fixed.items()), sample, record.carried]  # fmt: skip
        digest = hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()[:16]
        yield Job(record, replace(request, id=first + sample), digest)


def _numbered(jobs: Sequence[Job]) -> list[Job]:
    """The same with keys that differ: of jobs with one key, the second's ends in -1, the third's in -2."""
    seen = Counter[str]()
    made = []
    for job in jobs:
        made.append(replace(job, key=f"{job.key}-{seen[job.key]}") if seen[job.key] else job)
        seen[job.key] += 1
    return made


def _prefixed(where: str, make: Callable[..., Any], *args: Any) -> Any:
    """What ``make`` returns; its errors name the line they are about."""
    try:
        return make(*args)
    except RequestError as error:
        raise RequestError(f"{where}{error.what}") from None
    except SpecError as error:
        raise SpecError(f"{where}{error}") from None


def _display(lm: Model, requests: Sequence[Request], watch: bool, bar: bool) -> Display:
    from .progress import Bar, Display, Watch

    if watch:
        return Watch(lm, requests)
    return Bar(len(requests)) if bar else Display()


@contextmanager
def _counted(results: Results, total: int, display: Display) -> Iterator[None]:
    """A run that breaks off tells how far it got."""
    try:
        yield
    except KeyboardInterrupt:
        display.close([])
        print(f"interrupted: {results.count} of {total} responses were written", file=sys.stderr)
        raise typer.Exit(130) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the results has left
            raise
        display.close([])
        name = f"{error.filename}: " if error.filename else ""
        what = f"{results.count} of {total} responses were written"
        print(f"error: {name}{error.strerror or error}; {what}", file=sys.stderr)
        raise typer.Exit(1) from None


def _listen(
    lm: Model, engine: Engine, jobs: Sequence[Job], results: Results, trace: Trace | None, display: Display
) -> list[tuple[str, Result]]:
    """Decode; observers hear of every event. Titles and results in the order of the jobs, without failed ones."""
    from ..engine.outcome import Outcome

    by_id = {job.request.id: job for job in jobs}
    finished: dict[int, Result] = {}
    with _counted(results, len(jobs) + len(results.held), display):
        while engine.busy:
            events = engine.step()
            done = {e.request.id: lm.result(e) for e in events if isinstance(e, Outcome)}
            for event in events:
                if not isinstance(event, Outcome):
                    if trace:
                        trace.add(event)
                    display.add(event, done)  # first, for it may have to leave the terminal to the results
            for at, result in sorted(done.items()):
                results.add(by_id[at], result)
                if result.error is None:
                    finished[at] = result
    return [(_title(by_id[at].request), finished[at]) for at in sorted(finished)]


def _hand_on(
    jobs: Sequence[Job], where: Loading, options: Decoding, results: Results, display: Display
) -> list[tuple[str, Result]]:
    """Let a cluster decode; titles and results as :func:`_listen` has them."""
    finished = []
    with _counted(results, len(jobs) + len(results.held), display), closing(decoded(jobs, where, options)) as found:
        for job, result in found if jobs else ():
            display.ended([result])
            results.add(job, result)
            if result.error is None:
                finished.append((_title(job.request), result))
    return finished
