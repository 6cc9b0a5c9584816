"""List operations on a waiting line of names: easy one token at a time, hard for greedy parallel decoding.

The operations are those of ParallelBench (arXiv 2510.04767); the wording, the names and the
generator are this project's own. Operations at a *random* place accept every valid answer.
"""

from __future__ import annotations

import json
import random

from unmask.tasks.base import Family, Problem, canonical_key
from unmask.tasks.words import full_names

NAME = "waiting_line"
MIN_NAMES, MAX_NAMES = 3, 6
_LEADS = ("Waiting line: {0}", "The line: {0}", "People in line: {0}", "Queue: {0}")
_ENDS = ("Reply with the list only.", "Give the list only.", "Answer with the new list only.")
_WORDINGS = {
    "copy": ("Copy the line.", "Repeat the line.", "Leave the line as it is."),
    "reverse": ("Reverse the line.", "Turn the line around.", "List the line from back to front."),
    "sort": ("Sort the line by name.", "Put the names in order.", "Sort the names from A to Z."),
    "insert": (
        "Insert \"{new}\" at position {at}.",
        "Add \"{new}\" at place {at}.",
        "Let \"{new}\" join at spot {at}.",
    ),
    "remove": ("Remove position {at}.", "Drop the name at place {at}.", "Take out the person at spot {at}."),
    "replace": (
        "Replace position {at} by \"{new}\".",
        "Swap place {at} for \"{new}\".",
        "Put \"{new}\" in the place of number {at}.",
    ),
    "insert_random": (
        "Insert \"{new}\" at a random place.",
        "Add \"{new}\" anywhere.",
        "Let \"{new}\" join at any spot.",
    ),
    "remove_random": ("Remove a random person.", "Drop any one name.", "Take out one random name."),
    "replace_random": ("Replace a random person by \"{new}\".", "Swap any one name for \"{new}\"."),
    "shuffle": ("Shuffle the line.", "Mix the line at random.", "Put the names in a random new order."),
}  # fmt: skip
OPERATIONS = tuple(_WORDINGS)


def generate(rng: random.Random) -> Problem:
    """A line of 3 to 6 people and one of the ten operations."""
    operation = rng.choice(OPERATIONS)
    *line, new = full_names(rng, rng.randint(MIN_NAMES, MAX_NAMES) + 1)
    at = rng.randint(1, len(line) + (operation == "insert"))
    uses_new = operation.startswith(("insert", "replace"))
    uses_at = operation in ("insert", "remove", "replace")
    request = rng.choice(_WORDINGS[operation]).format(new=new, at=at)
    prompt = f"{rng.choice(_LEADS).format(_dump(line))}\n{request} {rng.choice(_ENDS)}"
    meta = {"operation": operation, "line": line, "new": new if uses_new else None, "at": at if uses_at else None}
    key = canonical_key(operation, line, meta["new"], meta["at"])
    return Problem(NAME, prompt, _dump(_apply(rng, operation, line, new, at)), key, meta)


def _dump(names: list[str]) -> str:
    return json.dumps(names, separators=(",", ":"))


def _apply(rng: random.Random, operation: str, line: list[str], new: str, at: int) -> list[str]:
    """One valid answer: the only one, or a random one where there are several."""
    if operation == "shuffle":
        return _shuffled(rng, line)
    if operation in ("copy", "reverse", "sort"):
        return {"copy": line, "reverse": line[::-1], "sort": sorted(line)}[operation]
    kind, _, random_place = operation.partition("_")
    if random_place:
        at = rng.randint(1, len(line) + (kind == "insert"))
    before, after = line[: at - 1], line[at - 1 :]
    if kind == "insert":
        return [*before, new, *after]
    return [*before, *([new] if kind == "replace" else []), *after[1:]]


def _shuffled(rng: random.Random, line: list[str]) -> list[str]:
    result = rng.sample(line, len(line))
    while result == line:
        result = rng.sample(line, len(line))
    return result


def check(problem: Problem, text: str) -> bool:
    """The answer must be a JSON list and nothing else, and one of the valid ones."""
    try:
        names = json.loads(text.strip())
    except (json.JSONDecodeError, RecursionError):
        return False
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    operation, line = problem.meta["operation"], list(problem.meta["line"])
    new, at = problem.meta["new"], problem.meta["at"]
    if operation == "shuffle":
        return sorted(names) == sorted(line) and names != line
    if operation in ("copy", "reverse", "sort"):
        return bool(names == {"copy": line, "reverse": line[::-1], "sort": sorted(line)}[operation])
    return any(names == candidate for candidate in _edits(operation, line, new, at))


def _edits(operation: str, line: list[str], new: str | None, at: int | None) -> list[list[str]]:
    """All valid answers of an insertion, removal or replacement."""
    kind = operation.partition("_")[0]
    places = [at] if at is not None else range(1, len(line) + 1 + (kind == "insert"))
    added = [] if new is None else [new]
    return [[*line[: p - 1], *added, *line[p if kind != "insert" else p - 1 :]] for p in places]


FAMILY = Family(NAME, "copy, reorder or edit a JSON list of names", generate, check)
