"""Where problems come from: the families that ship, generators of ``reasoning-gym``, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from ..core import jsonl
from ..core.errors import RequestError
from ..core.schema import Schema, parse
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


class Question(Schema):
    """A line of a file of problems; an ``answer`` is optional."""

    prompt: str | list[Any] = Field(description="text, ids or messages", title="a text, a list of ids or of messages")
    answer: Any = None

    @property
    def accepted(self) -> frozenset[str]:
        """Texts that are right, their white space made single spaces; none where the answer is not one."""
        several = self.answer if isinstance(self.answer, list) else [self.answer]
        if any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in several):
            return frozenset()
        return frozenset(" ".join(str(one).split()) for one in several)


_Single = str | int | float


class Problem(Question):
    """A line of a file of problems whose answers are checked."""

    answer: _Single | Annotated[list[_Single], Field(min_length=1)] = Field(
        description="text, number, or list of those that are accepted",
        title="a text, a number, or a list of them that is not empty",
    )


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
        raw = jsonl.read(name)
        return Source(name, _items(name, raw, n, answers), f"sha256 {_digest(raw)}")
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


def _digest(raw: bytes) -> str:
    """Of the text: how its lines end makes no difference."""
    text = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return hashlib.sha256(text).hexdigest()[:12]


def _items(name: str, raw: bytes, n: int, answers: bool) -> list[Item]:
    found = islice(jsonl.lines(raw, name), n)
    made = [parse(Problem if answers else Question, line.value, line.where) for line in found]
    if not made:
        raise RequestError(f"{name} has no problems")
    return [Item(one.prompt, partial(_is_one_of, one.accepted)) for one in made]


def _is_one_of(accepted: frozenset[str], text: str) -> bool:
    return " ".join(text.split()) in accepted
