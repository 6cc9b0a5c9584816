"""Where problems come from: the families that ship, generators of ``reasoning-gym``, or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import RequestError
from ..tasks import FAMILIES, SPLITS, problems

GYM = "gym:"
SOURCES = f"{', '.join(FAMILIES)}, {GYM}NAME (a generator of reasoning-gym), or a FILE.jsonl"


@dataclass(frozen=True)
class Item:
    """One problem: the prompt (a text or a conversation), and whether an answer to it is right."""

    prompt: Any
    check: Callable[[str], bool]


@dataclass(frozen=True)
class Source:
    """Problems of one kind, by number.

    Attributes:
        name: as written on the command line.
        items: the problems.
    """

    name: str
    items: Sequence[Item]


def source(name: str, n: int, split: str = "test", seed: int = 0, answers: bool = True) -> Source:
    """The first ``n`` problems of a kind, the same ones for the same arguments.

    Args:
        name: a family that ships, ``gym:`` and a generator of reasoning-gym, or a file of JSON lines with ``prompt``
            and ``answer``.
        n: how many; of a file, at most all of it.
        split: ``train``, ``valid`` or ``test`` of a family that ships; the others have none.
        seed: of the generator; a file's problems are taken from the top.
        answers: whether the lines of a file must have an ``answer``; nothing is right for those that have none.

    Raises:
        RequestError: no such kind, or a file that cannot be read.
    """
    if n < 1:
        raise RequestError(f"n must be at least 1, got {n}")
    if name in FAMILIES:
        if split not in SPLITS:
            raise RequestError(f"unknown split {split!r}; accepted: {', '.join(SPLITS)}")
        try:
            drawn = problems(name, split, n, seed)
        except ValueError as error:
            raise RequestError(str(error)) from None
        return Source(name, [Item(p.prompt, lambda text, p=p: FAMILIES[name].check(p, text)) for p in drawn])  # type: ignore[misc]
    if name.startswith(GYM):
        return Source(name, _gym(name.removeprefix(GYM), n, seed))
    if name.endswith(".jsonl"):
        return Source(name, _file(Path(name), n, answers))
    raise RequestError(f"unknown task {name!r}; accepted: {SOURCES}")


def _gym(name: str, n: int, seed: int) -> list[Item]:
    try:
        import reasoning_gym
    except ImportError:
        raise RequestError(f"{GYM}{name} needs the package reasoning-gym: pip install reasoning-gym") from None
    try:
        drawn = reasoning_gym.create_dataset(name, size=n, seed=seed)
    except ValueError as error:
        raise RequestError(f"{GYM}{name}: {error}") from None
    return [
        Item(entry["question"], lambda text, e=entry: drawn.score_answer(text.strip(), e) >= 1.0)  # type: ignore[misc]
        for entry in drawn
    ]


def _file(path: Path, n: int, answers: bool) -> list[Item]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    items: list[Item] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or len(items) == n:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{path} line {number}: {error}") from None
        needed = ("prompt", "answer") if answers else ("prompt",)
        if not isinstance(record, dict) or any(key not in record for key in needed):
            raise RequestError(
                f"{path} line {number}: expected an object with " + " and ".join(f'"{k}"' for k in needed)
            )
        items.append(Item(record["prompt"], _same(record.get("answer", []))))
    if not items:
        raise RequestError(f"{path} has no problems")
    return items


def _same(answer: Any) -> Callable[[str], bool]:
    """Whether a text is the answer, white space aside; of several answers, any."""
    accepted = {" ".join(str(a).split()) for a in (answer if isinstance(answer, list) else [answer])}
    return lambda text: " ".join(text.split()) in accepted
