"""The closed vocabulary the problems are worded with: few enough words for a tiny model to know them all."""

from __future__ import annotations

import random

FIRST_NAMES = (
    "Ada", "Amy", "Ana", "Ben", "Bob", "Cal", "Cara", "Dan", "Dora", "Ed", "Ella", "Eva", "Finn", "Fay", "Gus", "Gwen",
    "Hal", "Hugo", "Ida", "Ivan", "Jack", "Jane", "Joe", "Kai", "Kate", "Kim", "Lara", "Leo", "Lily", "Max", "Mia",
    "Nina", "Noah", "Olga", "Omar", "Pam", "Paul", "Quinn", "Rita", "Rosa", "Sam", "Sue", "Tara", "Tom", "Uma", "Vera",
    "Will", "Zoe",
)  # fmt: skip
LAST_NAMES = (
    "Adler", "Baker", "Banks", "Bell", "Boyd", "Brook", "Chen", "Cole", "Cruz", "Diaz", "Dunn", "Evans", "Field",
    "Ford", "Frost", "Gray", "Green", "Hall", "Hart", "Hill", "Hunt", "James", "Kent", "King", "Lane", "Lee", "Lopez",
    "Marsh", "Moore", "Nash", "Novak", "Owen", "Park", "Perez", "Price", "Quill", "Reed", "Rossi", "Shaw", "Silva",
    "Stone", "Swan", "Tran", "Vance", "Wade", "Ward", "Wolf", "Young",
)  # fmt: skip
ITEMS = (
    "apples", "bags", "balls", "beads", "bells", "books", "boxes", "cakes", "cards", "coins", "cups", "dolls", "eggs",
    "figs", "flags", "forks", "hats", "jars", "keys", "kites", "lamps", "leaves", "lemons", "maps", "nuts", "pears",
    "pens", "pies", "pins", "plates", "plums", "rings", "rocks", "seeds", "shells", "spoons", "stamps", "stars", "toys",
    "tickets",
)  # fmt: skip
CITIES = (
    "Athens", "Berlin", "Bern", "Boston", "Cairo", "Delhi", "Dublin", "Geneva", "Hanoi", "Lagos", "Leeds", "Lima",
    "Lisbon", "London", "Lyon", "Madrid", "Miami", "Milan", "Oslo", "Paris", "Porto", "Prague", "Quito", "Rome",
    "Seoul", "Sofia", "Tokyo", "Turin", "Vienna", "Warsaw",
)  # fmt: skip
JOBS = (
    "actor", "baker", "barber", "chef", "clerk", "coach", "dancer", "dentist", "doctor", "driver", "farmer", "guard",
    "judge", "lawyer", "miner", "nurse", "painter", "pilot", "plumber", "poet", "sailor", "singer", "tailor",
    "teacher", "vet", "waiter", "welder", "writer",
)  # fmt: skip
PETS = (
    "bird", "cat", "cow", "dog", "duck", "fish", "frog", "goat", "hen", "horse", "lizard", "mouse", "parrot", "pig",
    "pony", "rabbit", "snake", "turtle",
)  # fmt: skip
COLORS = ("black", "blue", "brown", "gold", "gray", "green", "orange", "pink", "purple", "red", "silver", "white")


def full_names(rng: random.Random, count: int) -> list[str]:
    """``count`` "First Last" names, no first name twice, so that first names alone decide the order."""
    firsts = rng.sample(FIRST_NAMES, count)
    lasts = rng.sample(LAST_NAMES, count)
    return [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]
