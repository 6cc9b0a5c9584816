"""Validity and accuracy on the family ``record`` without and with a JSON schema: the table of docs/structured.md.

    python recipes/results/structured.py [--n 300]

Each problem asks for a JSON object with three to six keys. Its schema has these keys in the order asked for, a whole
number for the age, any text for the others.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from jsonschema import Draft202012Validator

import unmask
from unmask.measure.stats import mcnemar, wilson
from unmask.tasks import FAMILIES, Problem
from unmask.tasks.base import draw

SETTINGS = ("vanilla(steps=16)", "vanilla(steps=8)", "threshold(tau=0.5)", "slowfast")
LENGTH = 64


def main() -> None:
    """Decode and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300, help="problems")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    problems = draw(FAMILIES["record"], "test", given.n, seed=20)
    lm = unmask.load(dtype="float32")
    print("| policy | valid, % | with a schema | right, % | with a schema | difference | p | NFE | with a schema |")
    print("|---|---|---|---|---|---|---|---|---|")
    for policy in SETTINGS:
        found = decode(lm, policy, problems, given.batch_size)
        free, bound = ([one.text for one in own] for own in found)
        valid = [sum(is_valid(p, t) for p, t in zip(problems, own, strict=True)) for own in (free, bound)]
        right = [[FAMILIES["record"].check(p, t) for p, t in zip(problems, own, strict=True)] for own in (free, bound)]
        won, lost = (sum(a > b for a, b in zip(*own, strict=True)) for own in (right[::-1], right))  # by the schema
        nfe = [sum(one.stats.nfe for one in own) / given.n for own in found]
        cells = [share(n, given.n) for n in (*valid, sum(right[0]), sum(right[1]))]
        row = [policy, *cells, f"+{won} -{lost}", f"{mcnemar(won, lost):.2g}", *(f"{own:.1f}" for own in nfe)]
        print(f"| {' | '.join(row)} |", flush=True)


def decode(lm: unmask.Model, policy: str, problems: list[Problem], size: int) -> tuple[list[Any], list[Any]]:
    """Without the schemas, and with them."""
    prompts = [p.prompt for p in problems]
    bound = [unmask.SamplingParams(seed=0, json_schema=schema_of(p)) for p in problems]
    call = partial(lm.generate, prompts, LENGTH, policy, "none", batch_size=size)
    return call(), call(params=bound)


def schema_of(problem: Problem) -> dict[str, Any]:
    """The keys that a problem asks for."""
    kinds = {name: "integer" if isinstance(value, int) else "string" for name, value in problem.meta["record"].items()}
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": list(kinds), "additionalProperties": False}


def is_valid(problem: Problem, text: str) -> bool:
    """Whether a text is valid by its problem's schema."""
    try:
        return Draft202012Validator(schema_of(problem)).is_valid(json.loads(text))
    except ValueError:
        return False


def share(count: int, n: int) -> str:
    """A percentage with its interval."""
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} ({100 * low:.1f} - {100 * high:.1f})"


if __name__ == "__main__":
    main()
