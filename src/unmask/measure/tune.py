"""The fastest settings whose loss against vanilla is certified to be small: learn then test (arXiv 2110.01052).

Two disjoint sets of problems. On the *search* set every candidate is tried; those that are dominated are dropped and
the others put in an order (Pareto testing, arXiv 2210.07913). On the *calibration* set, which nothing has looked at,
each is tested in that order for "its loss is epsilon or more"; see :mod:`.betting` for the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..profiles import fingerprint
from ..tasks import FAMILIES
from . import betting
from .candidates import REFERENCE, SPLIT, Goal, sets, settings
from .machine import command
from .problems import Source
from .run import Batch, Decoder, Row, Setting, environment
from .stats import paired_interval

if TYPE_CHECKING:
    from ..api import Model

_MARGIN = 1.5  # so much faster is worth giving up what shows no less risk
_REACH = 5.0  # and so much faster, what merely takes more forwards
_APART = 1.2  # of those that look equally safe: a test of one more is cheap, a gap in the ladder is speed lost
_STEP = 1.05  # two candidates whose speeds differ by less are not both worth a test

Tell = Callable[[str, int, int], None]

Rows = list[Row]


@dataclass(frozen=True)
class Found:
    """What the search set says of a candidate, compared with vanilla on the same problems.

    Attributes:
        setting: the candidate.
        n: problems.
        lost, gained: that vanilla alone, and that the candidate alone has right; agreement: texts that differ, and 0.
        differ: texts that are not vanilla's.
        speed: vanilla's is 1; see ``Goal.objective``.
        nfe: forwards per problem.
    """

    setting: Setting
    n: int
    lost: int
    gained: int
    differ: int
    speed: float
    nfe: float

    @property
    def risk(self) -> tuple[float, float, float]:
        """Loss (at least 0); where that is equal, share of texts that differ; and then, how few forwards it takes."""
        return max(self.lost - self.gained, 0) / self.n, self.differ / self.n, -self.nfe


def losses(target: str, vanilla: Rows, rows: Rows) -> list[int]:
    """Of each problem: -1, 0 or 1."""
    key = "correct" if target == "accuracy" else "digest"
    pairs = zip(chain(*(r[key] for r in vanilla)), chain(*(r[key] for r in rows)), strict=True)
    return [v - c if target == "accuracy" else int(v != c) for v, c in pairs]


def compare(goal: Goal, setting: Setting, vanilla: Rows, rows: Rows) -> Found:
    """A candidate and vanilla on the same problems."""
    own = losses(goal.target, vanilla, rows)
    differ = sum(losses("agreement", vanilla, rows))
    if goal.objective == "tokens_per_second":
        one, other = (median(sum(r["tokens"]) / r["seconds"] for r in many) for many in (vanilla, rows))
        speed = other / one if one else 1.0
    else:
        one, other = (fmean(chain(*(r[goal.objective] for r in many))) for many in (vanilla, rows))
        speed = one / other
    nfe = fmean(chain(*(r["nfe"] for r in rows)))
    return Found(setting, len(own), own.count(1), own.count(-1), differ, speed, nfe)


def search(decoder: Decoder, goal: Goal, candidates: Sequence[Setting], problems: Source, tell: Tell) -> list[Found]:
    """Try candidates on the search set, a batch of each in turn; those that fall back are not tried further.

    Returns:
        All of them, with what was seen of each.
    """
    rows: dict[Setting, Rows] = {s: [] for s in (goal.vanilla, *candidates)}
    alive = list(candidates)
    found: dict[Setting, Found] = {}
    count, timed = len(problems.items), goal.objective == "tokens_per_second"
    for first in range(0, count, goal.batch_size):
        turn = random.Random(f"{goal.seed} {first}").sample([goal.vanilla, *alive], len(alive) + 1)
        for index, setting in enumerate(turn):
            tell("searching", first * len(turn) + index * min(goal.batch_size, count - first), count * len(turn))
            rows[setting].append(decoder(Batch.at(setting, problems, first), timed))
        found |= {s: compare(goal, s, rows[goal.vanilla], rows[s]) for s in alive}
        alive = [s for s in alive if not _falls_back(found[s], [found[o] for o in alive], goal.epsilon)]
    return [found[s] for s in candidates]


def _falls_back(one: Found, others: Sequence[Found], epsilon: float) -> bool:
    """Loses too much beyond doubt, or another is much faster and shows no more risk."""
    if paired_interval(one.lost, one.gained, one.n)[0] > epsilon:
        return True
    return any(
        (o.speed >= _MARGIN * one.speed and o.risk <= one.risk)
        or (o.speed >= _REACH * one.speed and o.risk[:2] <= one.risk[:2])
        for o in others
    )


def front(found: Sequence[Found], goal: Goal) -> list[Found]:
    """Whom to test, safest first: each is faster than all with no more risk, and than vanilla.

    Of those that show the same losses and differences only some are kept, some way apart in speed: few problems
    cannot tell the fastest of them from one that is as safe as it looks, and where it fails the slower ones remain.
    """
    whole = [f for f in found if f.n == goal.n_search]
    kept: list[Found] = []
    for one in sorted(whole, key=lambda f: (f.risk, -f.speed)):
        if one.speed >= _STEP * (kept[-1].speed if kept else 1.0) and not _falls_back(one, whole, goal.epsilon):
            kept.append(one)
    apart: list[Found] = []
    for one in reversed(kept):
        if not apart or one.risk[:2] < apart[0].risk[:2] or one.speed * _APART <= apart[0].speed:
            apart.insert(0, one)
    while apart and betting.least(goal.epsilon, goal.level(len(apart))) > goal.n_calibration:
        apart.pop()  # a share of delta for so many would be too small to certify anything
    return apart


@dataclass(frozen=True)
class Tested:
    """What the calibration set says of a candidate; see :class:`Found` for ``lost`` and ``gained``.

    Attributes:
        found: of the search.
        n: problems looked at.
        e_value, p_value: against "the loss is epsilon or more".
        passed: certified.
    """

    found: Found
    n: int
    lost: int
    gained: int
    e_value: float
    p_value: float
    passed: bool


def certify(decoder: Decoder, goal: Goal, ranked: Sequence[Found], problems: Source, tell: Tell) -> list[Tested]:
    """Test candidates in their order; each stops as soon as the outcome is clear.

    Returns:
        Those that were tested. The chance that any of those that passed loses epsilon or more is delta at most.
    """
    tested: list[Tested] = []
    for index, found in enumerate(ranked):
        plan = betting.plan(goal.epsilon, goal.level(len(ranked)), len(problems.items), goal.target == "accuracy")
        seen: list[int] = []
        outcome = betting.verdict(plan, seen)
        while not outcome.over:
            tell(f"testing {index + 1} of {len(ranked)}", len(seen), len(problems.items))
            batches = (Batch.at(s, problems, len(seen)) for s in (goal.vanilla, found.setting))
            pair = [[decoder(batch, timed=False)] for batch in batches]
            seen += losses(goal.target, *pair)
            outcome = betting.verdict(plan, seen)
        own = seen[: outcome.seen]
        tested.append(
            Tested(found, len(own), own.count(1), own.count(-1), outcome.e_value, outcome.p_value, outcome.passed)
        )
        if goal.correction == "fixed-sequence" and not outcome.passed:
            break
    if goal.correction == "holm":
        passed = holm([t.p_value for t in tested], goal.delta)
        tested = [replace(t, passed=p) for t, p in zip(tested, passed, strict=True)]
    return tested


def holm(p_values: Sequence[float], delta: float) -> list[bool]:
    """Which hypotheses Holm's step-down method rejects, with family-wise error ``delta`` whatever their dependence."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > delta / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


@dataclass(frozen=True)
class Outcome:
    """What became of all candidates.

    Attributes:
        right: how many of the search problems vanilla has right; where that is few, a small loss means little.
    """

    right: int
    found: list[Found]
    tested: list[Tested]

    @property
    def chosen(self) -> Tested | None:
        """The fastest that was certified; None: none was."""
        return max((t for t in self.tested if t.passed), key=lambda t: t.found.speed, default=None)


def tune(
    lm: Model,
    name: str | None,
    task: str,
    pairs: Sequence[tuple[str, str]],
    goal: Goal,
    path: Path,
    tell: Tell = lambda stage, done, of: None,
) -> Outcome:
    """Search, then certify.

    Args:
        lm, name: the model, and the folder or id it was loaded from; None: it ships.
        task: see :func:`.problems.source`.
        pairs: candidates, as (policy, cache) specs.
        goal: what is wanted.
        path: ledger; what it holds is not decoded again.
        tell: hears of (stage, problems done, of so many) before each batch.

    Raises:
        RequestError, SpecError: before anything is decoded.
    """
    goal.check()
    parts = sets(task, goal)
    candidates = settings(pairs, goal, lm, parts)
    decoder = Decoder(lm, name, path)
    found = search(decoder, goal, candidates, parts.search, tell)
    tested = certify(decoder, goal, front(found, goal), parts.calibration, tell)
    batches = [Batch.at(goal.vanilla, parts.search, first) for first in range(0, goal.n_search, goal.batch_size)]
    rows = [decoder(batch, timed=False) for batch in batches]
    return Outcome(sum(chain(*(r["correct"] for r in rows))), found, tested)


def describe(lm: Model, name: str | None, task: str, goal: Goal, outcome: Outcome) -> dict[str, Any]:
    """What a profile says; see ``docs/tune.md``."""
    one = outcome.chosen
    policy, cache = (one.found.setting.policy, one.found.setting.cache) if one else REFERENCE
    return {
        "unmask": __version__,
        **{key: value for key, value in environment(lm, name).items() if key != "unmask"},
        "fingerprint": fingerprint(lm),
        "policy": policy,
        "cache": cache,
        "gen_length": goal.gen_length,
        "batch_size": goal.batch_size,
        "task": task,
        "split": SPLIT if task in FAMILIES else None,
        "target": goal.target,
        "epsilon_points": 100 * goal.epsilon,
        "delta": goal.delta,
        "correction": goal.correction,
        "n_search": goal.n_search,
        "vanilla_right": outcome.right if goal.target == "accuracy" else None,
        "n_calibration": goal.n_calibration,
        "tests": len(outcome.tested),
        "certified": one is not None,
        "speed": {"objective": goal.objective, "against_vanilla": round(one.found.speed, 3) if one else 1.0},
        "loss": {"n": one.n, "lost": one.lost, "gained": one.gained, "e_value": one.e_value} if one else None,
        "guarantee": guarantee(task, goal, outcome),
        "seed": goal.seed,
        "command": command(),
    }


def guarantee(task: str, goal: Goal, outcome: Outcome) -> str:
    """What is certified, in words."""
    if outcome.chosen is None:
        return "No candidate was certified. This is vanilla without a cache, whose loss is zero by definition."
    points = f"{100 * goal.epsilon:g} point{'s' if goal.epsilon != 0.01 else ''}"
    less = (
        f"accuracy is less than {points} below that of vanilla without a cache"
        if goal.target == "accuracy"
        else f"texts differ from those of vanilla without a cache for less than {100 * goal.epsilon:g} % of prompts"
    )
    # digits enough that rounding never claims more
    confidence = f"{100 * (1 - goal.delta):.10g} %" if goal.delta >= 1e-6 else f"1 - {goal.delta:g}"
    return (
        f"With confidence {confidence}: on problems drawn like those of {task} that calibration used, "
        f"its {less}, at gen_length {goal.gen_length}, temperature 0, with this model and dtype. "
        f"The chance that tuning returns a setting of which this is false is {goal.delta:g} at most."
    )
