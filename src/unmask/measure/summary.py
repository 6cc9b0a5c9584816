"""From lines of results to figures: one per setting and task, and over all tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median, quantiles
from typing import Any

from .run import Setting
from .stats import mcnemar, paired_interval, wilson

ALL = "all"
Problem = tuple[str, str | None, int, int]  # task, split, seed, number
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """What one setting has shown on one task, or on ``all``.

    Attributes:
        setting, task: what was measured.
        environment: on what: model, device, dtype, threads, versions, commit, command.
        n, right: problems, and those answered right.
        interval: of the accuracy, Wilson, 95 %.
        won, lost, shared: of the ``shared`` problems that the baseline decoded too, those that only this setting, only
            the baseline has right.
        nfe: mean forwards of a problem. tpf: tokens per forward, of totals. positions: mean positions computed.
        rate: tokens (before the first end of text) per second, of totals. cpu_rate: per second of processor time.
        spread: quartiles of the batches' rates.
        speedup: ``rate`` over the baseline's, of the shared problems; speedup_median: median of the batches' ratios.
        first_token: median seconds to the first token that held.
        outside: share of the time that is not spent in the network.
        peak_bytes: most memory.
    """

    setting: Setting
    task: str
    environment: Mapping[str, Any]
    n: int
    right: int
    interval: tuple[float, float]
    won: int
    lost: int
    shared: int
    nfe: float
    tpf: float
    positions: float
    rate: float
    cpu_rate: float
    spread: tuple[float, float]
    speedup: float | None
    speedup_median: float | None
    first_token: float
    outside: float
    peak_bytes: int | None

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.n

    @property
    def difference(self) -> tuple[float, float, float] | None:
        """Accuracy less the baseline's on the shared problems, and its 95 % interval; None without any."""
        if not self.shared:
            return None
        return (self.won - self.lost) / self.shared, *paired_interval(self.won, self.lost, self.shared)

    @property
    def p_value(self) -> float | None:
        """Exact McNemar test of no difference from the baseline."""
        return mcnemar(self.won, self.lost) if self.shared else None


@dataclass(frozen=True)
class Tally:
    """The batches of one setting, with the environment they ran in."""

    setting: Setting
    environment: Mapping[str, Any]
    batches: Sequence[Mapping[str, Any]]

    def only(self, task: str) -> Tally:
        """The batches of one task."""
        return Tally(self.setting, self.environment, [b for b in self.batches if task in (ALL, b["key"]["task"])])

    def problems(self) -> dict[Problem, int]:
        """Whether each problem is right."""
        found = {}
        for batch in self.batches:
            key = batch["key"]
            for i, right in enumerate(batch["correct"]):
                found[key["task"], key["split"], key["seed"], key["first"] + i] = right
        return found

    def total(self, name: str) -> float:
        """Sum over batches, and over problems where it is of problems."""
        return float(sum(sum(b[name]) if isinstance(b[name], list) else b[name] for b in self.batches))


def tallies(rows: Iterable[Mapping[str, Any]]) -> list[Tally]:
    """Group lines of results by environment and setting, in the order in which they first appear."""
    runs: dict[str, Mapping[str, Any]] = {}
    groups: dict[tuple[str, Setting], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "run":
            runs[row["run"]] = row
        else:
            names = Setting.__dataclass_fields__
            groups[row["run"], Setting(**{k: row["key"][k] for k in names})].append(row)
    return [Tally(setting, runs[run], batches) for (run, setting), batches in groups.items()]


def summarise(tallied: Sequence[Tally], baseline: tuple[str, str] = ("vanilla", "none")) -> list[Figures]:
    """Figures of every setting for each task, and for all of them where there are several.

    The baseline of a setting is ``(policy, cache)`` with early stop at the same length, batch size and temperature in
    the same environment.
    """
    found = []
    for one in tallied:
        base = next((t for t in tallied if _is_base(t, one, baseline)), None)
        tasks = list(dict.fromkeys(b["key"]["task"] for b in one.batches))
        for task in [*tasks, ALL] if len(tasks) > 1 else tasks:
            found.append(figures(one.only(task), base.only(task) if base else None, task))
    return found


def _is_base(tally: Tally, of: Tally, baseline: tuple[str, str]) -> bool:
    a, b = tally.setting, of.setting
    same = (a.gen_length, a.batch_size, a.temperature) == (b.gen_length, b.batch_size, b.temperature)
    return same and (a.policy, a.cache) == baseline and a.eos_stop and tally.environment["run"] == of.environment["run"]


def figures(one: Tally, base: Tally | None, task: str) -> Figures:
    """Figures of one setting against a baseline."""
    right = one.problems()
    theirs = base.problems() if base else {}
    shared = [p for p in right if p in theirs]
    rates = [_rate([b]) for b in one.batches]
    tokens, seconds, nfe, n = *map(one.total, ("tokens", "seconds", "nfe")), len(right)
    pairs = _pairs(one, base) if base else []
    peaks = [b["peak_bytes"] for b in one.batches if b["peak_bytes"] is not None]
    return Figures(
        one.setting, task, one.environment,
        n=n, right=sum(right.values()), interval=wilson(sum(right.values()), n),
        won=sum(right[p] > theirs[p] for p in shared), lost=sum(right[p] < theirs[p] for p in shared),
        shared=len(shared), nfe=nfe / n, tpf=tokens / nfe, positions=one.total("positions") / n,
        rate=tokens / seconds, cpu_rate=tokens / one.total("cpu_seconds"),
        spread=(min(rates), max(rates)) if len(rates) < 2 else tuple(quantiles(rates, n=4)[::2]),  # type: ignore[arg-type]
        speedup=_rate(a for a, _ in pairs) / _rate(b for _, b in pairs) if pairs else None,
        speedup_median=median([_rate([a]) / _rate([b]) for a, b in pairs]) if pairs else None,
        first_token=median([s for b in one.batches for s in b["first_token"]]),
        outside=1 - one.total("model_seconds") / seconds,
        peak_bytes=max(peaks, default=None),
    )  # fmt: skip


def _pairs(one: Tally, base: Tally) -> list[tuple[Line, Line]]:
    """The batches of the same problems, where the baseline said anything."""
    theirs = {_content(b): b for b in base.batches if sum(b["tokens"])}
    return [(b, theirs[_content(b)]) for b in one.batches if _content(b) in theirs]


def _content(batch: Line) -> tuple[Any, ...]:
    return tuple(batch["key"][name] for name in ("task", "split", "seed", "first", "n"))


def _rate(batches: Iterable[Line]) -> float:
    """Tokens per second of several batches."""
    several = list(batches)
    return float(sum(sum(b["tokens"]) for b in several) / sum(b["seconds"] for b in several))


def as_dict(figures: Figures) -> dict[str, Any]:
    """For JSON: the attributes, the setting's among them, and what follows from them."""
    own = {f.name: getattr(figures, f.name) for f in fields(figures)}
    derived = {"accuracy": figures.accuracy, "difference": figures.difference, "p_value": figures.p_value}
    return {**asdict(own.pop("setting")), **own.pop("environment"), **own, **derived}
