"""Is an expected loss below epsilon? Tests by betting: valid for any number of problems, looked at after each of them.

A gambler starts with wealth 1 and, before each problem, stakes a share ``s`` on its loss ``l`` (-1, 0 or 1) being below
epsilon: the wealth becomes ``wealth * (1 + s (epsilon - l))``. Where the expected loss is epsilon or more, no stakes
that depend on the past alone let the wealth grow on average, and it ever reaches ``1 / level`` with probability
``level`` at most (Ville's inequality): reaching it rejects "the loss is epsilon or more" at that level, wherever one
stops. See Waudby-Smith and Ramdas, arXiv 2010.09686, section 4.

The stakes are those that most probably reach the goal within ``n`` problems, found by dynamic programming over
problems seen and wealth; they aim at the goal as those of Voracek and Orabona (arXiv 2505.22422) do. The plan supposes
some rates of losses and gains; wrong ones cost power, never validity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LOST, GAINED = 0.3, 0.1  # rates that a plan supposes, as shares of epsilon
HASTE = 0.3  # share of its worth that a rejection loses when it comes n problems later: decoding costs
HOPELESS = 0.01  # give up when the supposed chance to reach the goal is below
_POINTS, _STAKES, _RUIN = 600, 33, -5.0  # grid: points of log wealth, stakes, log wealth from which nobody recovers

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What to stake, for each wealth after each number of problems.

    Attributes:
        epsilon: the loss that is tested.
        level: of the test; wealth ``1 / level`` is the goal.
        wealth: ``[G]`` logarithms of wealth, evenly spaced, up to the goal.
        stakes: ``[S]`` shares, ``1 / (1 - epsilon)`` down to 0.
        choice: ``[n, G]`` index of the best of them.
        chance: ``[n, G]`` supposed chance to reach the goal, less what waiting costs.
    """

    epsilon: float
    level: float
    wealth: Floats
    stakes: Floats
    choice: NDArray[np.uint8]
    chance: NDArray[np.float32]

    @property
    def goal(self) -> float:
        """Logarithm of the wealth that rejects."""
        return -math.log(self.level)


@dataclass(frozen=True)
class Verdict:
    """What became of one test.

    Attributes:
        passed: the expected loss is below epsilon, at the level of the test.
        over: nothing more need be looked at: passed, or hopeless, or all problems seen.
        seen: problems up to the end, or all that there were.
        e_value: the largest wealth up to there.
    """

    passed: bool
    over: bool
    seen: int
    e_value: float

    @property
    def p_value(self) -> float:
        """Valid at whatever problem one stops."""
        return min(1.0, 1 / self.e_value)


def least(epsilon: float, level: float) -> int:
    """Problems it takes to show a loss below epsilon when none has a loss, by this or any test of losses 0 and 1."""
    n = max(1, math.floor(math.log(level) / math.log1p(-epsilon)) - 1)
    while n * -math.log1p(-epsilon) < -math.log(level):
        n += 1 + (n >> 52)  # one more is no other float, where n is large
    return n


@lru_cache(maxsize=8)
def plan(epsilon: float, level: float, n: int, gains: bool) -> Plan:
    """The best stakes for ``n`` problems; ``gains``: a loss may be -1.

    Raises:
        ValueError: epsilon or level outside (0, 1), or n below 1.
    """
    if not (0 < epsilon < 1 and 0 < level < 1 and n >= 1):
        raise ValueError(f"expected epsilon and level in (0, 1) and n >= 1, got {epsilon}, {level}, {n}")
    stakes = np.linspace(1, 0, _STAKES) / (1 - epsilon)
    wealth = np.linspace(_RUIN, -math.log(level), _POINTS)
    lost, gained = LOST * epsilon, GAINED * epsilon * gains
    outcomes = [(1 - lost - gained, 0), (lost, 1), *([(gained, -1)] if gains else [])]
    moves = [(rate, *_landing(wealth, _growth(stakes, epsilon, loss))) for rate, loss in outcomes]
    choice, chance = np.empty((n, _POINTS), np.uint8), np.empty((n, _POINTS), np.float32)
    worth = np.append(np.zeros(_POINTS - 1), [1.0, 0.0])  # the last entry, at index -1, is ruin
    every = np.arange(_POINTS)
    for t in reversed(range(n)):
        value = np.zeros((_POINTS, _STAKES))
        for rate, low, high, part in moves:
            value += rate * ((1 - part) * worth[low] + part * worth[high])
        best = np.argmax(value, axis=1)
        choice[t] = best
        worth[:-1] = (1 - HASTE / n) * value[every, best]
        worth[_POINTS - 1] = 1.0
        chance[t] = worth[:-1]
    return Plan(epsilon, level, wealth, stakes, choice, chance)


def _growth(stake: Floats, epsilon: float, loss: int | NDArray[np.int64]) -> Floats:
    """Logarithm of what a stake makes of wealth 1."""
    grown: Floats = np.log(np.maximum(1 + stake * (epsilon - loss), 1e-300))
    return grown


def _landing(wealth: Floats, growth: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Grid points below and above ``wealth [G]`` after ``growth [S]``, and how far between, ``[G, S]``; -1: ruin."""
    place = np.clip((wealth[:, None] + growth - wealth[0]) / (wealth[1] - wealth[0]), -1, _POINTS - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, _POINTS - 1), place - low


def wealth(plan: Plan, losses: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """What becomes of wealth 1.

    Args:
        plan: for ``n`` problems.
        losses: ``[R, t]`` of the problems in order, ``t`` at most ``n``; -1, 0 or 1.

    Returns:
        ``[R, t]`` log wealth after each problem, and ``[R, t]`` the chance that the plan gives it then: 1 at the goal.
    """
    most = 1 / (1 - plan.epsilon)
    n, step = len(plan.choice), plan.wealth[1] - plan.wealth[0]
    now = np.zeros(len(losses))
    paths, chances = np.empty(losses.shape), np.empty(losses.shape)
    for t in range(losses.shape[1]):
        at = np.clip((now - plan.wealth[0]) // step, 0, _POINTS - 1).astype(np.int64)
        # between grid points the plan can be timid where only full stakes still reach the goal
        last = now + (n - t - 1) * math.log1p(most * plan.epsilon) < plan.goal
        now = now + _growth(np.where(last, most, plan.stakes[plan.choice[t, at]]), plan.epsilon, losses[:, t])
        at = np.clip((now - plan.wealth[0]) // step, 0, _POINTS - 1).astype(np.int64)
        ahead = plan.chance[t + 1, at] if t + 1 < n else np.zeros(len(now))
        paths[:, t], chances[:, t] = now, np.where(now >= plan.goal, 1.0, ahead)
    return paths, chances


def verdict(plan: Plan, losses: list[int]) -> Verdict:
    """The test of one candidate after the losses of the first problems, in order."""
    if not losses:
        return Verdict(False, False, 0, 1.0)
    path, chance = (rows[0] for rows in wealth(plan, np.array([losses])))
    rich, poor = path >= plan.goal, chance < HOPELESS
    ends = np.flatnonzero(rich | poor)
    seen = int(ends[0]) + 1 if len(ends) else len(losses)
    over = bool(len(ends)) or len(losses) == len(plan.choice)
    return Verdict(bool(rich[seen - 1]), over, seen, max(1.0, math.exp(path[:seen].max())))
