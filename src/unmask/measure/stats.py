"""Intervals and paired comparisons, by scipy where it has them, and accuracy under parallelism."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Any

_Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion; (0, 1) when nothing was tried."""
    if n == 0:
        return 0.0, 1.0
    interval = _binomial(successes, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p-value that two decoders differ, of the problems that only one of them has right.

    Under no difference each of these falls to either with probability 1/2: a binomial test. 1 when there are none.
    """
    return float(_binomial(won, won + lost).pvalue) if won + lost else 1.0


def _binomial(successes: int, n: int) -> Any:
    from scipy.stats import binomtest

    return binomtest(successes, n, 0.5)


def paired_interval(won: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same ``n`` problems (Agresti and Min 2005).

    ``won`` problems only the first has right, ``lost`` only the second. Half a problem is added to each of the four
    cells of the table, so that no difference at all still has an interval. scipy has none for paired proportions.
    """
    if n == 0:
        return -1.0, 1.0
    up, down, many = won + 0.5, lost + 0.5, n + 2
    difference = (up - down) / many
    half = _Z * math.sqrt(max(up + down - (up - down) ** 2 / many, 0.0)) / many
    return max(-1.0, difference - half), min(1.0, difference + half)


def aup(points: Iterable[tuple[float, float]], best: float) -> float:
    """Accuracy under parallelism (d3LLM, ICML 2026) of a method's settings.

    Args:
        points: (tokens per forward, accuracy in percent) of each setting; of equal tokens per forward the most
            accurate counts.
        best: best accuracy in percent of all methods compared.

    Returns:
        The area under accuracy against tokens per forward, from 0, where accuracies below the best weigh less by
        ``exp(-3 (1 - y / best))``. Points more than 5 points below that with the least tokens per forward do not count.

    Raises:
        ValueError: no points, or ``best`` not above 0.
    """
    ranked = sorted(dict(sorted(points)).items())
    if not ranked or best <= 0:
        raise ValueError("accuracy under parallelism needs a point and a best accuracy above 0")
    ranked = [(tpf, y) for tpf, y in ranked if y >= ranked[0][1] - 5]
    weight = [min(math.exp(-3 * (1 - y / best)), 1.0) for _, y in ranked]
    area = ranked[0][0] * ranked[0][1]
    for i in range(1, len(ranked)):
        (before, low), (tpf, y) = ranked[i - 1], ranked[i]
        area += (tpf - before) * (y * weight[i] + low * weight[i - 1]) / 2
    return area
