"""Where problems come from: the families that ship, generators of ``reasoning-gym``, or a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
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
        split, seed: what they were drawn from; of a file, a name for its content; of a generator, its version.
    """

    name: str
    items: Sequence[Item]
    split: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a decoder made of one problem, and what it cost.

    Attributes:
        text: up to the end of text.
        nfe: forwards of the network that it took part in.
        tokens: before the first end of text.
        positions: computed, averaged over the layers and summed over the forwards.
        first_token: seconds to the commit of its first token that held.
    """

    text: str
    nfe: int
    tokens: int
    positions: float
    first_token: float


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
    if split not in SPLITS:
        raise RequestError(f"unknown split {split!r}; accepted: {', '.join(SPLITS)}")
    if name in FAMILIES:
        try:
            drawn = problems(name, split, n, seed)
        except ValueError as error:
            raise RequestError(str(error)) from None
        check = FAMILIES[name].check
        return Source(name, [Item(p.prompt, partial(check, p)) for p in drawn], split, seed)
    if name.startswith(GYM):
        return Source(name, _gym(name.removeprefix(GYM), n, seed), f"reasoning-gym {version('reasoning-gym')}", seed)
    if name.endswith(".jsonl"):
        content = _read(Path(name))
        return Source(name, _items(Path(name), content, n, answers), f"sha256 {_digest(content)}")
    raise RequestError(f"unknown task {name!r}; accepted: {SOURCES}")


def _gym(name: str, n: int, seed: int) -> list[Item]:
    try:
        import reasoning_gym
    except ImportError:
        raise RequestError(f"{GYM}{name} needs the package reasoning-gym: pip install reasoning-gym") from None
    try:
        drawn = reasoning_gym.create_dataset(name, size=n, seed=seed)
        entries = list(drawn)
    except Exception as error:  # generators raise all kinds, assertions for parameters that cannot be given here
        raise RequestError(f"{GYM}{name}: {error}") from None
    return [Item(entry["question"], partial(_verified, drawn, entry)) for entry in entries]


def _verified(drawn: Any, entry: Any, text: str) -> bool:
    """Full score of a generator's own verifier; what makes the verifier stumble is no answer."""
    try:
        return bool(drawn.score_answer(text.strip(), entry) >= 1.0)
    except Exception:
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _items(path: Path, content: str, n: int, answers: bool) -> list[Item]:
    items: list[Item] = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip() or len(items) == n:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path} line {number}: not JSON ({error})") from None
        needed = ("prompt", "answer") if answers else ("prompt",)
        if not isinstance(record, dict) or any(key not in record for key in needed):
            raise RequestError(
                f"{path} line {number}: expected an object with " + " and ".join(f'"{k}"' for k in needed)
            )
        if not isinstance(record["prompt"], (str, list)):
            raise RequestError(
                f"{path} line {number}: a prompt must be a text, a list of ids or a list of messages, "
                f"got {record['prompt']!r:.80}"
            )
        accepted = _answers(record.get("answer"))
        if answers and not accepted:
            raise RequestError(
                f"{path} line {number}: an answer must be a text, a number, or a list of them that is not empty, "
                f"got {record['answer']!r:.80}"
            )
        items.append(Item(record["prompt"], partial(_is_one_of, accepted)))
    if not items:
        raise RequestError(f"{path} has no problems")
    return items


def _answers(given: Any) -> frozenset[str]:
    """Accepted texts, their white space made single spaces; none where one is neither a text nor a number."""
    several = given if isinstance(given, list) else [given]
    if any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in several):
        return frozenset()
    return frozenset(" ".join(str(one).split()) for one in several)


def _is_one_of(accepted: frozenset[str], text: str) -> bool:
    return " ".join(text.split()) in accepted
