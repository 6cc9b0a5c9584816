"""From lines of results to figures: one per setting and task, and over all tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median, quantiles
from typing import Any

from .run import Setting
from .stats import mcnemar, paired_interval, wilson

ALL = "all"
Kind = tuple[str, str | None, int]  # of problems: task, split, seed
Problem = tuple[Kind, int]  # and the number
Baseline = tuple[str, str, bool]  # policy, cache, early stop
VANILLA = ("vanilla", "none", True)
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """What one setting has shown on one task, or on ``all``.

    Attributes:
        setting, task: what was measured. A task that has several splits or seeds says which.
        environment: on what: model, device, dtype, threads, versions, commit, command.
        n, right: problems, and those answered right.
        interval: of the accuracy, Wilson, 95 %.
        won, lost, shared: of the ``shared`` problems that the baseline decoded too, those that only this setting, only
            the baseline has right.
        nfe: mean forwards of a problem. tpf: tokens per forward, of totals. positions: mean positions computed.
        rate: tokens (before the first end of text) per second, of totals. cpu_rate: per second of processor time.
        spread: quartiles of the batches' rates, interpolated between them.
        speedup: ``rate`` over the baseline's, of the shared problems; speedup_median: median of the batches' ratios.
        first_token: median seconds to the first token that held.
        outside: share of the time that is not spent in the network.
        peak_bytes: most memory.
        moving: share of the time in which requests entered and left; None: an older file does not tell.
        latency: with arrivals, median and 95th percentile of the seconds from a request's arrival to its end.
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
    moving: float | None = None
    latency: tuple[float, float] | None = None

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

    @property
    def kinds(self) -> list[Kind]:
        """Of its problems, in the order in which they first appear."""
        return list(dict.fromkeys(map(_kind, self.batches)))

    @property
    def peers(self) -> tuple[Any, ...]:
        """What it has in common with those that it is compared with."""
        s = self.setting
        return self.environment["run"], s.gen_length, s.batch_size, s.temperature, s.arrivals

    def only(self, kind: Kind) -> Tally:
        """The batches of one kind of problems."""
        return Tally(self.setting, self.environment, [b for b in self.batches if _kind(b) == kind])

    def problems(self) -> dict[Problem, int]:
        """Whether each problem is right."""
        return {p: right for b in self.batches for p, right in zip(_problems(b), b["correct"], strict=True)}

    def total(self, name: str) -> float:
        """Sum over batches, and over problems where it is of problems."""
        return float(sum(sum(b[name]) if isinstance(b[name], list) else b[name] for b in self.batches))


def tallies(rows: Iterable[Mapping[str, Any]]) -> list[Tally]:
    """Group lines of results by environment and setting, in the order in which they first appear.

    A problem counts once. Where batches of a group share some, as when a run went on with another number of problems or
    a file is given twice, the larger batch stays, the first of equal ones.
    """
    runs: dict[str, Mapping[str, Any]] = {}
    groups: dict[tuple[str, Setting], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "run":
            runs[row["run"]] = row
        else:
            names = Setting.__dataclass_fields__
            groups[row["run"], Setting(**{k: row["key"][k] for k in names if k in row["key"]})].append(row)
    return [Tally(setting, runs[run], _once(batches)) for (run, setting), batches in groups.items()]


def _once(batches: Sequence[Line]) -> list[Line]:
    """Batches that share no problem."""
    kept, seen = [], set[Problem]()
    for at in sorted(range(len(batches)), key=lambda at: -batches[at]["key"]["n"]):
        own = _problems(batches[at])
        if seen.isdisjoint(own):
            seen.update(own)
            kept.append(at)
    return [batches[at] for at in sorted(kept)]


def _kind(batch: Line) -> Kind:
    key = batch["key"]
    return key["task"], key["split"], key["seed"]


def _problems(batch: Line) -> list[Problem]:
    key = batch["key"]
    return [(_kind(batch), key["first"] + i) for i in range(key["n"])]


def summarise(tallied: Sequence[Tally], baseline: Baseline | None = VANILLA) -> list[Figures]:
    """Figures of every setting for each task, and then, where it has several, for all of them.

    The baseline of a setting has the same length, batch size and temperature, in the same environment; None: nobody
    has one. What covers some only of the tasks that there are is not called ``all``.
    """
    kinds = {kind for one in tallied for kind in one.kinds}
    names = _names(kinds)
    found = []
    for one in tallied:
        peers = [t for t in tallied if t.peers == one.peers]
        base = next((t for t in peers if (t.setting.policy, t.setting.cache, t.setting.eos_stop) == baseline), None)
        for kind in one.kinds:
            found.append(figures(one.only(kind), base.only(kind) if base else None, names[kind]))
        if len(one.kinds) > 1:
            name = ALL if set(one.kinds) == kinds else " + ".join(names[kind] for kind in one.kinds)
            found.append(figures(one, base, name))
    return found


def _names(kinds: Collection[Kind]) -> dict[Kind, str]:
    """The task, with split and seed where it has several."""

    def name(kind: Kind) -> str:
        task, split, seed = kind
        same = [k for k in kinds if k[0] == task]
        tell = f" {split}" if len({k[1] for k in same}) > 1 else ""
        return f"{task}{tell}" + (f" seed {seed}" if len({k[2] for k in same}) > 1 else "")

    return {kind: name(kind) for kind in kinds}


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
        spread=(min(rates), max(rates)) if len(rates) < 2 else tuple(quantiles(rates, n=4, method="inclusive")[::2]),  # type: ignore[arg-type]
        speedup=_rate(a for a, _ in pairs) / _rate(b for _, b in pairs) if pairs else None,
        speedup_median=median([_rate([a]) / _rate([b]) for a, b in pairs]) if pairs else None,
        first_token=median([s for b in one.batches for s in b["first_token"]]),
        outside=1 - one.total("model_seconds") / seconds,
        peak_bytes=max(peaks, default=None),
        moving=_moving(one.batches), latency=_latency(one.batches),
    )  # fmt: skip


def _moving(batches: Sequence[Line]) -> float | None:
    """Share of the engine's time."""
    if any(b.get("moving_seconds") is None for b in batches):
        return None
    return float(
        sum(b["moving_seconds"] for b in batches) / sum(b.get("engine_seconds", b["seconds"]) for b in batches)
    )


def _latency(batches: Sequence[Line]) -> tuple[float, float] | None:
    told = sorted(s for b in batches for s in b.get("latency") or ())
    return (median(told), told[min(len(told) - 1, int(0.95 * len(told)))]) if told else None


def _pairs(one: Tally, base: Tally) -> list[tuple[Line, Line]]:
    """The batches of the same problems, where the baseline said anything."""
    theirs = {_content(b): b for b in base.batches if sum(b["tokens"])}
    return [(b, theirs[_content(b)]) for b in one.batches if _content(b) in theirs]


def _content(batch: Line) -> tuple[Any, ...]:
    return _kind(batch), batch["key"]["first"], batch["key"]["n"]


def _rate(batches: Iterable[Line]) -> float:
    """Tokens per second of several batches."""
    several = list(batches)
    return float(sum(sum(b["tokens"]) for b in several) / sum(b["seconds"] for b in several))


def as_dict(figures: Figures) -> dict[str, Any]:
    """For JSON: the attributes, the setting's among them, and what follows from them."""
    own = {f.name: getattr(figures, f.name) for f in fields(figures)}
    derived = {"accuracy": figures.accuracy, "difference": figures.difference, "p_value": figures.p_value}
    return {**asdict(own.pop("setting")), **own.pop("environment"), **own, **derived}
