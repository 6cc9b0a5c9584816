"""``unmask bench``: speed and quality of decoders, measured side by side."""

from __future__ import annotations

import json as _json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import RequestError
from . import options as o
from .outputs import check_writable
from .progress import Meter

if TYPE_CHECKING:
    from ..measure.problems import Source
    from ..measure.run import Batch, Decoder, Setting

_PAIR = "POLICY|CACHE"


@dataclass(frozen=True)
class Problems:
    """What is decoded; see :func:`.options.takes`."""

    task: Annotated[list[str] | None, typer.Option("--task", "-t", help=f"{o.TASKS}; repeatable.")] = None
    n: Annotated[int, typer.Option("-n", min=1, help="Problems of each task.")] = 30
    split: Annotated[str, typer.Option(help="Of the families that ship: valid to choose by, test to report.")] = "test"
    seed: Annotated[int, typer.Option(min=0, max=o.SEEDS - 1, help="Of the problems.")] = 0

    def sources(self) -> list[Source]:
        """The problems of each task."""
        from ..measure.problems import source
        from ..tasks import FAMILIES

        return [source(name, self.n, self.split, self.seed) for name in dict.fromkeys(self.task or FAMILIES)]


@o.takes()
def bench(
    *,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="Repeatable; each with each cache.")
    ] = None,
    cache: Annotated[list[str] | None, typer.Option("--cache", "-c", help="Repeatable; default none.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option(metavar=_PAIR, help=f"Repeatable; {_PAIR}|full runs without early stop.")
    ] = None,
    autoregressive: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Folder or hub id of a causal model, or shipped; greedy; repeatable."),
    ] = None,
    drafter: Annotated[
        list[str] | None, typer.Option(help="Of those models, beside each alone; see `unmask drafters`; repeatable.")
    ] = None,
    baseline: Annotated[
        str, typer.Option(metavar=_PAIR, help="What the others are compared with; - for nothing.")
    ] = "vanilla|none",
    problems: Problems,
    gen_length: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable; default 256.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable; default 1.")] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(metavar="RATE|max", help="Requests enter as others leave: at so many a second, or at once."),
    ] = None,
    temperature: o.Temperature = 0.0,
    where: o.Loading,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON lines; what it holds is not run again.")] = Path(
        "runs/bench.jsonl"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON lines instead of a table.")] = False,
) -> None:
    """Measure policies x caches x lengths x batch sizes on problems with known answers, interleaved in one run.

    Every batch is on the disk before the next begins: after Ctrl-C, a crash or a kill the same command goes on.
    """
    from .. import registry
    from ..measure import run
    from ..measure.autoregressive import model_of, spec
    from ..measure.serving import Arrivals
    from ..measure.summary import summarise, tallies

    when = None if arrivals is None else str(Arrivals.parse(arrivals))
    base = o.baseline(baseline)
    if drafter and not autoregressive:
        raise RequestError("--drafter needs --autoregressive MODEL, which verifies what it drafts")
    drafters = [None, *(str(registry.drafter(own)) for own in drafter or [])]
    causal = [f"{spec(name, own)}|none" for name in autoregressive or [] for own in drafters]
    pairs = _pairs(policy, cache, [*(pair or []), *causal], base)
    if when and any(model_of(p) for p, _, _ in pairs):
        raise RequestError("--arrivals is for policies; an autoregressive model decodes whole batches")
    shapes = product(gen_length or [256], batch_size or [1])
    files = {p: run.files(p) for p, _, _ in pairs}
    settings = [run.Setting(p, c, length, size, stop, temperature, files[p], when)
                for length, size in shapes for p, c, stop in pairs]  # fmt: skip
    settings = list(dict.fromkeys(settings))
    check_writable(str(output), make=True, regular=True)
    sources = problems.sources()
    lm = where.load()
    run.check(lm, settings, sources)
    batches = run.order(settings, sources)
    decoder = run.Decoder(lm, where.model, output)
    _decode(decoder, decoder.missing(batches), len(batches))
    found = tallies([decoder.header, *map(decoder, batches)])
    found = sorted(found, key=lambda t: settings.index(t.setting))
    figures = summarise(found, base)
    _show(figures, json)
    if any(one.peak_bytes is None for one in figures):
        print("peak memory is not known: this system does not let a process reset it (/proc/self/clear_refs)",
              file=sys.stderr)  # fmt: skip


def _pairs(
    policies: list[str] | None, caches: list[str] | None, pairs: list[str] | None, base: tuple[str, str, bool] | None
) -> list[tuple[str, str, bool]]:
    """Policy, cache and early stop of everything asked for, the baseline first, each once, as their objects print."""
    if caches and not policies:
        raise RequestError("--cache needs --policy")
    if not policies and not pairs:
        raise RequestError(f"give --policy NAME (and --cache NAME), --pair '{_PAIR}' or --autoregressive MODEL")
    from .. import registry

    asked = [] if base is None else [base]
    asked += [
        (str(registry.policy(p)), str(registry.cache(c)), True) for p in policies or [] for c in caches or ["none"]
    ]
    asked += [o.pair("--pair", text) for text in pairs or []]
    return list(dict.fromkeys(asked))


def _decode(decoder: Decoder, todo: list[Batch], total: int) -> None:
    """Run, with a bar on a terminal; an interrupt says what there is and how to go on."""
    made = total - len(todo)
    try:
        with Left(todo, total) as left:
            for batch in todo:
                left.add(batch, decoder(batch)["seconds"])
                made += 1
    except KeyboardInterrupt:
        there = f"{made} of {total} batches are in {decoder.path}"
        print(f"interrupted: {there}; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


def _show(figures: list[Any], as_json: bool) -> None:
    from ..measure.summary import as_dict
    from ..measure.tables import table

    if not as_json:
        print(table(figures))
        return
    for one in figures:
        print(_json.dumps(as_dict(one)))


class Left:
    """A bar over batches, with the time left by what batches of the same setting and task have taken."""

    def __init__(self, todo: list[Batch], total: int) -> None:
        self.waiting = Counter(map(_kind, todo))
        self.taken: dict[Any, list[float]] = defaultdict(list)
        self.meter = Meter("left", description="batches", total=total, completed=total - len(todo))

    def __enter__(self) -> Left:
        self.meter.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.meter.stop()

    def add(self, batch: Batch, seconds: float) -> None:
        """One more is done."""
        kind = _kind(batch)
        self.waiting[kind] -= 1
        self.taken[kind].append(seconds)
        label = f"{batch.setting.label}, {batch.source.name}"
        self.meter.update(advance=1, description=label[:60], left=f"{_clock(self.left())} left")

    def left(self) -> float:
        """Seconds, if kinds not seen yet take as long as the others do."""
        means = {kind: sum(taken) / len(taken) for kind, taken in self.taken.items()}
        usual = sum(means.values()) / len(means)
        return sum(count * means.get(kind, usual) for kind, count in self.waiting.items())


def _kind(batch: Batch) -> tuple[Setting, str]:
    return batch.setting, batch.source.name


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
