"""Small-number arithmetic shared by the word problems and the long ones: every value stays within 0..29."""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_VALUE = 29


@dataclass(frozen=True)
class Step:
    """One calculation ``left symbol right = result``; ``right`` is 1..9."""

    left: int
    symbol: str
    right: int

    @property
    def result(self) -> int:
        """The exact value of the calculation."""
        if self.symbol == "+":
            return self.left + self.right
        if self.symbol == "-":
            return self.left - self.right
        if self.symbol == "*":
            return self.left * self.right
        return self.left // self.right

    def __str__(self) -> str:
        return f"{self.left}{self.symbol}{self.right}={self.result}"


def random_sum(rng: random.Random, value: int) -> Step:
    """A sum or difference from ``value`` that stays within 1..29, both as likely where both fit."""
    room_up = min(9, MAX_VALUE - value)
    room_down = min(9, value - 1)
    if room_down < 1 or (room_up >= 1 and rng.random() < 0.5):
        return Step(value, "+", rng.randint(1, room_up))
    return Step(value, "-", rng.randint(1, room_down))


def random_step(rng: random.Random, value: int) -> Step:
    """Mostly a sum or difference; sometimes a doubling or a halving where it fits."""
    draw = rng.random()
    if draw < 0.12 and value >= 2 and 2 * value <= MAX_VALUE:
        return Step(value, "*", 2)
    if draw > 0.88 and value >= 2 and value % 2 == 0:
        return Step(value, "/", 2)
    return random_sum(rng, value)


def random_product(rng: random.Random) -> Step:
    """A product of 2..5 by 2..9 that stays within 29."""
    left = rng.randint(2, 5)
    return Step(left, "*", rng.randint(2, min(9, MAX_VALUE // left)))
