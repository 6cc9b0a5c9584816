"""What tuning starts from: a goal, candidates, two disjoint sets of problems, and batches that are decoded once."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import registry
from ..core.errors import RequestError
from ..tasks import FAMILIES
from . import betting
from .problems import GYM, Source, source
from .run import Setting, files

if TYPE_CHECKING:
    from ..api import Model

TARGETS = ("accuracy", "agreement")
OBJECTIVES = ("tokens_per_second", "nfe", "positions")
CORRECTIONS = ("fixed-sequence", "holm")
REFERENCE = ("vanilla", "none")
SPLIT = "valid"  # of the families that ship; test stays unseen
POLICIES = (
    *(f"threshold(tau={tau})" for tau in (0.998, 0.99, 0.95, 0.9, 0.8, 0.6)),
    *(f"factor(f={f})" for f in (0.1, 0.5, 1.0)),
    *(f"entropy_bound(gamma={gamma})" for gamma in (0.001, 0.01, 0.1)),
    "hierarchical",
    "hierarchical(tau=0.99,low=0.8)",
    "slowfast",
    "slowfast(preset=reference)",
    "slowfast(tau_min=0.3,tau_high=0.95)",
    "slowfast(tau_high=0.95,window=1,block_length=32)",
    "slowfast(tau_high=0.998,window=1,block_length=32)",
    "dawn",
    "localleap",
    "localleap(tau=0.99,low=0.95)",
    "localleap(tau=0.998,low=0.99)",
    "multiblock(tau=0.02)",
    "multiblock(tau=0.2)",
    "dawn(sink=0.05)",  # in short sequences the mean attention is more than the published bound
)
BRANCHING = ("multiblock", "threshold")  # decoded in branches, which costs little where a batch is small for its device
CACHES = ("none", "dual", "dllm")
MORE = tuple(  # caches that answer to what is committed, with what their papers decode by
    (policy, cache)
    for policy in (
        "threshold(tau=0.99)",
        "threshold(tau=0.9)",
        "threshold(tau=0.8)",
        "window(threshold(tau=0.9,block_length=16))",
    )
    for cache in ("entropy_cache", "elastic")
)
NEAR = 64  # positions in sight; where a response may be much longer the rest of its masks is most of the work


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    Attributes:
        epsilon: the loss that is not to be reached, as a share (0.01: one point).
        delta: tolerated chance that a setting is returned whose loss is epsilon or more.
        n_search, n_calibration: problems of each set.
        gen_length, batch_size: of all decoding.
        target: what the loss of a problem is: 1 where vanilla alone is right and -1 where the candidate alone is
            (accuracy), or 1 where the texts differ (agreement).
        objective: what speed is: tokens per second, or vanilla's forwards or positions against the candidate's.
        correction: ``fixed-sequence`` tests one after the other, each at delta, up to the first that fails; ``holm``
            tests all, at delta shared among them.
        seed: of the split into sets, of generators, and of the order in which settings are timed.
    """

    epsilon: float
    delta: float
    n_search: int
    n_calibration: int
    gen_length: int
    batch_size: int = 16
    target: str = "accuracy"
    objective: str = "tokens_per_second"
    correction: str = "fixed-sequence"
    seed: int = 0

    def check(self) -> None:
        """Can it be reached at all?

        Raises:
            RequestError: a value out of range, or too few calibration problems even if none is lost.
        """
        if not 0 < self.epsilon < 1:
            raise RequestError(f"epsilon must be above 0 and below 100 points, got {100 * self.epsilon:g}")
        if not 0 < self.delta < 1:
            raise RequestError(f"delta must be above 0 and below 1, got {self.delta:g}")
        for name in ("n_search", "n_calibration", "gen_length", "batch_size"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in (("target", TARGETS), ("objective", OBJECTIVES), ("correction", CORRECTIONS)):
            if getattr(self, name) not in known:
                raise RequestError(f"unknown {name} {getattr(self, name)!r}; accepted: {', '.join(known)}")
        needed = betting.least(self.epsilon, self.delta)
        if self.n_calibration < needed:
            raise RequestError(
                f"a loss below {100 * self.epsilon:g} points cannot be certified with {self.n_calibration} calibration "
                f"problems at delta {self.delta:g}, even if none is lost: it takes {needed}, "
                f"and about {2 * needed} for settings that lose a few"
            )

    @property
    def vanilla(self) -> Setting:
        """What candidates are compared with."""
        return Setting(*REFERENCE, self.gen_length, self.batch_size)

    def level(self, tests: int) -> float:
        """Of each test."""
        return self.delta / tests if self.correction == "holm" else self.delta


@dataclass(frozen=True)
class Sets:
    """Problems of a task, in two disjoint parts; their ``split`` names the content and order of both."""

    search: Source
    calibration: Source


def grid(gen_length: int) -> list[tuple[str, str]]:
    """Where no candidates are given: policies and caches; for long responses with their far end out of sight, too."""
    policies, more = [*POLICIES, *(f"lopa({policy})" for policy in BRANCHING), "verified"], list(MORE)
    if gen_length >= 4 * NEAR:
        policies += [f"lookahead({policy},{NEAR})" for policy in POLICIES]
        policies += [f"lopa(lookahead({policy},{NEAR}))" for policy in BRANCHING]
        policies += [f"suffix(threshold(tau={tau}))" for tau in (0.998, 0.99, 0.9)]
        policies += [f"flexible(threshold(tau={tau}),max_length={2 * gen_length})" for tau in (0.99, 0.9)]
        more += [(f"lookahead(threshold(tau={tau}),{NEAR})", "entropy_cache") for tau in (0.99, 0.9)]
    return [(policy, cache) for policy in policies for cache in CACHES] + more


def sets(task: str, goal: Goal) -> Sets:
    """Distinct problems, shuffled with the seed, then cut in two.

    Raises:
        RequestError: no such task, or too few problems in it.
    """
    wanted = goal.n_search + goal.n_calibration
    drawn = wanted if task in FAMILIES else 2 * wanted if task.startswith(GYM) else 1 << 62  # of a file: all
    found = source(task, drawn, SPLIT, goal.seed, answers=goal.target == "accuracy")
    items = list({json.dumps(item.prompt, sort_keys=True): item for item in found.items}.values())
    random.Random(f"sets {goal.seed}").shuffle(items)
    if len(items) < wanted:
        raise RequestError(
            f"{task} has {len(items)} distinct problems; searching with {goal.n_search} and calibrating with "
            f"{goal.n_calibration} takes {wanted}"
        )
    items = items[:wanted]
    content = json.dumps([item.prompt for item in items]).encode()
    content += (found.split or "").encode()
    ident = f"{goal.n_search}+{goal.n_calibration} {hashlib.sha256(content).hexdigest()[:12]}"
    parts = {"search": items[: goal.n_search], "calibration": items[goal.n_search :]}
    return Sets(**{name: Source(task, own, f"{name} {ident}", goal.seed) for name, own in parts.items()})


def settings(pairs: Sequence[tuple[str, str]], goal: Goal, lm: Model, parts: Sets) -> list[Setting]:
    """Candidates, each checked against the model and all prompts before anything is decoded.

    Raises:
        SpecError: an unknown policy, cache or parameter.
        RequestError: a prompt or a candidate that the model cannot take, or no candidate beside vanilla.
    """
    if lm.text is None:
        raise RequestError("tuning compares texts, and the model has no tokenizer.json")
    prompts = [item.prompt for item in (*parts.search.items, *parts.calibration.items)]
    requests = lm.requests(prompts, goal.gen_length)
    made: dict[Setting, None] = {}
    for given, cache in pairs:
        how, kept = lm.setting(given, cache)
        for request in requests:
            replace(request, policy=how, cache=kept).check(lm.denoiser.spec)
        policy = str(registry.policy(given))
        one = Setting(policy, str(registry.cache(cache)), goal.gen_length, goal.batch_size, files=files(policy))
        if one != goal.vanilla:
            made[one] = None
    if not made:
        raise RequestError("vanilla without a cache is what candidates are compared with; give another candidate")
    return list(made)
