"""Grade-school word problems: two to four worked steps, then the answer on a line of its own."""

from __future__ import annotations

import random
import re

from unmask.tasks.arithmetic import Step, random_product, random_step
from unmask.tasks.base import Family, Problem, canonical_key
from unmask.tasks.words import FIRST_NAMES, ITEMS

NAME = "word_problem"
_STARTS = (
    "{who} has {left} {item}.",
    "{who} starts with {left} {item}.",
    "{who} owns {left} {item}.",
    "There are {left} {item} on the table of {who}.",
    "In the morning {who} counts {left} {item}.",
)
_PRODUCTS = (
    "{who} has {left} bags with {right} {item} each.",
    "{who} buys {left} packs of {right} {item} each.",
    "{who} fills {left} rows with {right} {item} each.",
    "There are {left} shelves with {right} {item} each in the shop of {who}.",
)
_MOVES = {
    "+": (
        "{who} buys {right} more.",
        "{who} finds {right} more.",
        "{other} gives {who} {right} {item}.",
        "Then {right} {item} are added.",
        "{who} gets {right} from {other}.",
        "{who} makes {right} more {item}.",
    ),
    "-": (
        "{who} loses {right} of them.",
        "{who} gives {right} to {other}.",
        "{who} sells {right} {item}.",
        "Then {right} {item} break.",
        "{other} takes {right} of them.",
        "{who} throws {right} away.",
    ),
    "*": ("Then the number of {item} doubles.", "{other} brings as many {item} again.", "{who} doubles the {item}."),
    "/": (
        "{who} gives half of them to {other}.",
        "Then half of the {item} are lost.",
        "{who} sells half of the {item}.",
    ),
}
_QUESTIONS = (
    "How many {item} are left?",
    "How many {item} does {who} have now?",
    "How many {item} are there in the end?",
    "What is the number of {item} now?",
)
_ANSWER = re.compile(r"Answer: (\d+)")


def generate(rng: random.Random) -> Problem:
    """A new problem; the wording varies, the content is its calculations."""
    steps, opening = _calculations(rng)
    who, other = rng.sample(FIRST_NAMES, 2)
    words = {"who": who, "other": other, "item": rng.choice(ITEMS)}
    first = steps[0]
    opening_text = rng.choice(_PRODUCTS if opening else _STARTS)
    sentences = [opening_text.format(left=first.left, right=first.right, **words)]
    sentences += [rng.choice(_MOVES[step.symbol]).format(right=step.right, **words) for step in steps[opening:]]
    sentences.append(rng.choice(_QUESTIONS).format(**words))
    result = steps[-1].result
    answer = "\n".join([*map(str, steps), f"Answer: {result}"])
    key = canonical_key(opening, [str(step) for step in steps])
    return Problem(NAME, " ".join(sentences), answer, key, {"result": result, "steps": len(steps)})


def _calculations(rng: random.Random) -> tuple[list[Step], int]:
    """The steps, and 1 if the first of them is told by the opening sentence (a product)."""
    opening = int(rng.random() < 0.35)
    steps = [random_product(rng)] if opening else []
    value = steps[-1].result if steps else rng.randint(3, 20)
    for _ in range(rng.randint(2, 4) - opening):
        steps.append(random_step(rng, value))
        value = steps[-1].result
    return steps, opening


def check(problem: Problem, text: str) -> bool:
    """The last line must state the right value; how it was reached is free."""
    lines = text.strip().splitlines()
    match = _ANSWER.fullmatch(lines[-1].strip()) if lines else None
    return match is not None and int(match[1]) == problem.meta["result"]


FAMILY = Family(NAME, "arithmetic word problems with two to four worked steps", generate, check)
