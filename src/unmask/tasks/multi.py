"""Long answers: a sheet of word problems that do not depend on each other, or a chain of steps that do."""

from __future__ import annotations

import random
import re

from unmask.tasks.arithmetic import Step, random_product, random_sum
from unmask.tasks.base import Family, Problem, canonical_key
from unmask.tasks.words import FIRST_NAMES, ITEMS

NAME = "multi"
SHEET_PROBLEMS = 7
CHAIN_STEPS = (15, 16)
_SHEET_INTROS = (
    "Solve every problem on the sheet:",
    "Write out the sums for each problem:",
    "Work out all the problems:",
    "Solve them one by one:",
)
_CHAIN_INTROS = (
    "Start with {start} and do every step in order:",
    "Begin at {start}, then follow the steps:",
    "Take the number {start} and work through the list:",
    "The first number is {start}. Write out each step:",
)
_GAINS = ("buys", "finds", "gets", "adds")
_LOSSES = ("loses", "sells", "breaks", "gives")
_LINE = re.compile(r"([A-Z][a-z]+): .+=([^=]+)")


def generate(rng: random.Random) -> Problem:
    """A sheet or a chain, one as likely as the other."""
    if rng.random() < 0.5:
        return sheet(rng, SHEET_PROBLEMS)
    return chain(rng, rng.randint(*CHAIN_STEPS))


def sheet(rng: random.Random, length: int) -> Problem:
    """``length`` two-step problems about different people, each answered by one line.

    The line repeats the problem and works out each step where it is told:
    ``Amy: 7 apples, buys 5, 7+5=12, loses 3, 12-3=9 apples``.
    """
    people = rng.sample(FIRST_NAMES, length)
    texts, lines, results = [], [], {}
    for who in people:
        opening, steps = _small_problem(rng, item := rng.choice(ITEMS))
        moves = [f"{_verb(rng, step)} {step.right}" for step in steps if step.symbol != "*"]
        texts.append(f"{who} has {', '.join([opening, *moves])}.")
        worked = [f"{move}, {step}" for move, step in zip(moves, steps[-len(moves) :], strict=True)]
        product = [str(step) for step in steps if step.symbol == "*"]
        lines.append(f"{who}: {', '.join([opening, *product, *worked])} {item}")
        results[who] = f"{steps[-1].result} {item}"
    prompt = f"{rng.choice(_SHEET_INTROS)} {' '.join(texts)}"
    return Problem(NAME, prompt, "\n".join(lines), canonical_key("sheet", lines), {"kind": "sheet", "results": results})


def _small_problem(rng: random.Random, item: str) -> tuple[str, tuple[Step, Step]]:
    """How the problem begins, and its two steps; a product is told by the beginning itself."""
    if rng.random() < 0.3:
        first = random_product(rng)
        return f"{first.left} bags of {first.right} {item}", (first, random_sum(rng, first.result))
    first = random_sum(rng, rng.randint(2, 20))
    return f"{first.left} {item}", (first, random_sum(rng, first.result))


def _verb(rng: random.Random, step: Step) -> str:
    return rng.choice(_GAINS if step.symbol == "+" else _LOSSES)


def chain(rng: random.Random, length: int) -> Problem:
    """``length`` sums and differences, each from the result of the one before, each by another person."""
    value = start = rng.randint(1, 29)
    moves, lines, results = [], [], {}
    for who in rng.sample(FIRST_NAMES, length):
        step = random_sum(rng, value)
        value = step.result
        results[who] = str(value)
        move = f"{_verb(rng, step)} {step.right}"
        moves.append(f"{who} {move}.")
        lines.append(f"{who}: {move}, {step}")
    prompt = f"{rng.choice(_CHAIN_INTROS).format(start=start)} {' '.join(moves)}"
    return Problem(NAME, prompt, "\n".join(lines), canonical_key("chain", lines), {"kind": "chain", "results": results})


def check(problem: Problem, text: str) -> bool:
    """Every person once, in any order, each line ending in the right value."""
    found: dict[str, str] = {}
    for line in text.strip().splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in found:
            return False
        found[match[1]] = match[2]
    return bool(found == problem.meta["results"])


FAMILY = Family(NAME, "long answers: sheets of word problems and chains of steps", generate, check)
