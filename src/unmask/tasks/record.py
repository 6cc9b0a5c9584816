"""Fill a JSON record from a few sentences; which fields are asked, under what name and in what order, varies."""

from __future__ import annotations

import json
import random

from unmask.tasks.base import Family, Problem, canonical_key
from unmask.tasks.words import CITIES, COLORS, JOBS, PETS, full_names

NAME = "record"
FIELD_NAMES = {
    "name": ("name", "person", "who"),
    "age": ("age", "years"),
    "city": ("city", "town", "home"),
    "job": ("job", "work"),
    "pet": ("pet", "animal"),
    "color": ("color", "paint"),
}
MIN_FIELDS, MAX_FIELDS = 3, 6
_SENTENCES = {
    "age": ("{name} is {age} years old.", "{name} turned {age} this year.", "The age of {name} is {age}."),
    "city": ("The flat is in {city}.", "Home is {city}.", "The family lives in {city}."),
    "job": ("The job is {job}.", "Every day is spent as a {job}.", "Work means being a {job}."),
    "pet": ("There is a {pet} at home.", "The family keeps a {pet}.", "A {pet} sleeps by the door."),
    "color": ("The house is {color}.", "The front door is {color}.", "The car is {color}."),
}
_REQUESTS = ("Fill the record: {0}", "Give a record with {0}", "Write the fields {0}", "Needed fields: {0}")


def generate(rng: random.Random) -> Problem:
    """Six facts about one person in sentences of random order, three to six of them asked for."""
    facts: dict[str, str | int] = {
        "name": full_names(rng, 1)[0],
        "age": rng.randint(20, 79),
        "city": rng.choice(CITIES),
        "job": rng.choice(JOBS),
        "pet": rng.choice(PETS),
        "color": rng.choice(COLORS),
    }
    topics = ["city", "job", "pet", "color"]
    rng.shuffle(topics)
    sentences = [rng.choice(_SENTENCES[topic]).format(**facts) for topic in ("age", *topics)]
    asked = rng.sample(list(FIELD_NAMES), rng.randint(MIN_FIELDS, MAX_FIELDS))
    names = {kind: rng.choice(FIELD_NAMES[kind]) for kind in asked}
    prompt = f"{' '.join(sentences)}\n{rng.choice(_REQUESTS).format(', '.join(names.values()))}"
    record = {names[kind]: facts[kind] for kind in asked}
    answer = json.dumps(record, separators=(",", ":"))
    key = canonical_key(list(record.items()), sorted(map(str, facts.values())))
    return Problem(NAME, prompt, answer, key, {"record": record})


def check(problem: Problem, text: str) -> bool:
    """A JSON object with exactly the fields asked for, in that order, and the right values."""
    try:
        found = json.loads(text.strip(), object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError):
        return False
    expected = list(problem.meta["record"].items())
    if not isinstance(found, list) or len(found) != len(expected):
        return False
    return all(_same_field(item, pair) for item, pair in zip(found, expected, strict=True))


def _same_field(found: object, expected: tuple[str, str | int]) -> bool:
    return isinstance(found, tuple) and found == expected and type(found[1]) is type(expected[1])


FAMILY = Family(NAME, "fill a JSON record from sentences", generate, check)
