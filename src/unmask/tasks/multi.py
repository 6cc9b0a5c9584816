"""Long answers: a chain of labelled steps, or a sheet of labelled problems that do not depend on each other."""

from __future__ import annotations

import random
import re
import string

from unmask.tasks.arithmetic import Step, random_product, random_sum
from unmask.tasks.base import Family, Problem, canonical_key
from unmask.tasks.words import ITEMS

NAME = "multi"
CHAIN_STEPS = (21, 24)
SHEET_PROBLEMS = (13, 14)
_CHAIN_INTROS = (
    "Start with {start} and do every step in order:",
    "Begin at {start}, then follow the steps:",
    "Take the number {start} and work through the list:",
    "The first number is {start}. Write out each step:",
)
_SHEET_INTROS = (
    "Solve every problem on the sheet:",
    "Write out the sums for each problem:",
    "Work out all the problems:",
    "Solve them one by one:",
)
_GAINS = (", buys {0}", ", finds {0}", ", gets {0}", ", plus {0}", ", adds {0}")
_LOSSES = (", loses {0}", ", sells {0}", ", breaks {0}", ", minus {0}", ", gives {0}")
_LINE = re.compile(r"([a-z]):(.+)")


def generate(rng: random.Random) -> Problem:
    """A chain or a sheet, one as likely as the other."""
    if rng.random() < 0.5:
        return chain(rng, rng.randint(*CHAIN_STEPS))
    return sheet(rng, rng.randint(*SHEET_PROBLEMS))


def chain(rng: random.Random, length: int) -> Problem:
    """``length`` sums and differences, each from the result of the one before."""
    start = rng.randint(1, 29)
    steps: list[Step] = []
    for _ in range(length):
        steps.append(random_sum(rng, steps[-1].result if steps else start))
    labels = string.ascii_lowercase[:length]
    moves = " ".join(f"{label}{step.symbol}{step.right}" for label, step in zip(labels, steps, strict=True))
    prompt = f"{rng.choice(_CHAIN_INTROS).format(start=start)} {moves}"
    answer = "\n".join(f"{label}:{step}" for label, step in zip(labels, steps, strict=True))
    results = {label: step.result for label, step in zip(labels, steps, strict=True)}
    key = canonical_key("chain", [str(step) for step in steps])
    return Problem(NAME, prompt, answer, key, {"kind": "chain", "results": results})


def sheet(rng: random.Random, length: int) -> Problem:
    """``length`` two-step problems, each answered by one line ``a:7+5=12,12-3=9``."""
    texts, lines, results = [], [], {}
    for label in string.ascii_lowercase[:length]:
        text, steps = _small_problem(rng)
        texts.append(f"{label}) {text}.")
        lines.append(f"{label}:{steps[0]},{steps[1]}")
        results[label] = steps[1].result
    prompt = f"{rng.choice(_SHEET_INTROS)} {' '.join(texts)}"
    return Problem(NAME, prompt, "\n".join(lines), canonical_key("sheet", lines), {"kind": "sheet", "results": results})


def _small_problem(rng: random.Random) -> tuple[str, tuple[Step, Step]]:
    item = rng.choice(ITEMS)
    if rng.random() < 0.3:
        first = random_product(rng)
        second = random_sum(rng, first.result)
        return f"{first.left} bags of {first.right} {item}{_move(rng, second)}", (first, second)
    first = random_sum(rng, rng.randint(2, 20))
    second = random_sum(rng, first.result)
    return f"{first.left} {item}{_move(rng, first)}{_move(rng, second)}", (first, second)


def _move(rng: random.Random, step: Step) -> str:
    return rng.choice(_GAINS if step.symbol == "+" else _LOSSES).format(step.right)


def check(problem: Problem, text: str) -> bool:
    """Every label once, in any order, each line ending in the right value."""
    found: dict[str, int] = {}
    for line in text.strip().splitlines():
        match = _LINE.fullmatch(line.strip())
        value = match[2].rpartition("=")[2] if match else ""
        if match is None or match[1] in found or not (value.isascii() and value.isdigit()):
            return False
        found[match[1]] = int(value)
    return bool(found == problem.meta["results"])


FAMILY = Family(NAME, "long answers: chains of steps and sheets of problems", generate, check)
