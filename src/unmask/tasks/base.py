"""What every task family shares: problems, families, and splits that cannot overlap."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "valid", "test")
_VALID_SHARE = 0.05
_TEST_SHARE = 0.10
_MAX_TRIES_PER_PROBLEM = 2000


@dataclass(frozen=True)
class Problem:
    """One request, one reference answer, and what a program needs to check any other answer.

    ``key`` is the canonical content of the problem, without its wording: two problems that
    differ only in wording share it, so they always fall in the same split.
    """

    family: str
    prompt: str
    answer: str
    key: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The only split this problem can ever belong to."""
        return split_of(self.family, self.key)


@dataclass(frozen=True)
class Family:
    """A kind of problem: how to make one, and how to check an answer to one."""

    name: str
    description: str
    generate: Callable[[random.Random], Problem]
    check: Callable[[Problem, str], bool]


def canonical_key(*parts: Any) -> str:
    """A stable text for the content of a problem (numbers, names, operations)."""
    return json.dumps(parts, separators=(",", ":"), sort_keys=True)


def split_of(family: str, key: str) -> str:
    """Assign a problem to a split by its content alone, so that no seed can leak one into another."""
    digest = hashlib.sha256(f"{family}|{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < _TEST_SHARE:
        return "test"
    if position < _TEST_SHARE + _VALID_SHARE:
        return "valid"
    return "train"


def draw(family: Family, split: str, n: int, seed: int = 0) -> list[Problem]:
    """``n`` problems of ``split`` with distinct content, the same ones for the same arguments."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    rng = random.Random(f"{family.name}/{split}/{seed}")
    found: dict[str, Problem] = {}
    for _ in range(_MAX_TRIES_PER_PROBLEM * max(n, 1)):
        if len(found) == n:
            break
        problem = family.generate(rng)
        if problem.split == split:
            found.setdefault(problem.key, problem)
    if len(found) < n:
        raise ValueError(f"family {family.name!r} has too few distinct {split} problems for n={n}")
    return list(found.values())
