"""What a caller gives, checked and brought into one form: one value per prompt."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .core.errors import RequestError

PROMPTS = "a prompt is a string, a list of ids or a conversation"
TEXTS = "a text with gaps is a string or a list of ids"


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Refuse sampling parameters out of range."""
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise RequestError(f"temperature must be a number >= 0 (0: greedy), got {temperature!r}")
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise RequestError(f"top_p must be a number in (0, 1] (1: off), got {top_p!r}")
    if integer("top_k", top_k) < 0:
        raise RequestError(f"top_k must be at least 0 (0: off), got {top_k}")


def check_names(call: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    """Refuse what a call has been given by name and does not take."""
    odd = next((name for name in given if name not in accepted), None)
    if odd is not None:
        raise RequestError(f"{call} has no option {odd!r}; accepted are {', '.join(accepted)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def integer(name: str, value: Any) -> int:
    """Any integer type's value (numpy's too, but no bool), or a RequestError that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RequestError(f"{name} must be an integer, got {value!r:.80}")
    return operator.index(value)


def as_batch(prompts: Any, kinds: str = PROMPTS) -> list[Any]:
    """The prompts (or texts, as ``kinds`` says) as a list of single ones; arrays become lists."""
    name = kinds.split()[1]
    prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(prompts, str):
        return [prompts]
    if not _is_list(prompts):
        raise RequestError(f"{kinds}, or a list of these; got {prompts!r:.80}")
    if not prompts:
        raise RequestError(f"no {name}s: the batch is empty")
    many = [p.tolist() if hasattr(p, "tolist") else p for p in prompts]
    if isinstance(many[0], (int, Mapping)):
        return [many]
    for i, prompt in enumerate(many):
        if not isinstance(prompt, str) and not _is_list(prompt):
            raise RequestError(f"{kinds}, got {prompt!r:.80}", i, name)
    return many


def per_row(name: str, value: Any, rows: int) -> list[int]:
    """An integer for each prompt, from one or from a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not _is_list(value):
        return [integer(name, value)] * rows
    _count(name, value, rows)
    return [integer(name, v) for v in value]


def banned_ids(banned: Any, rows: int, token: Callable[[str], int]) -> list[tuple[int, ...]]:
    """Banned ids of each prompt, from ids and texts of one token, one list for all or one for each prompt.

    ``token`` gives the id of a text.
    """
    given = banned.tolist() if hasattr(banned, "tolist") else banned
    given = [] if given is None else [given] if isinstance(given, str) or hasattr(given, "__index__") else given
    if not _is_list(given):
        raise RequestError(
            f"banned must be ids and texts, in a list for all prompts or in one for each; got {banned!r:.80}"
        )
    each = any(_is_list(own) for own in given)
    if each:
        _count("banned", given, rows)
    found = []
    for own in given if each else [given]:
        if not _is_list(own):
            raise RequestError(f"banned has lists for single prompts, then {own!r:.80} is none")
        ids = (token(i) if isinstance(i, str) else integer("banned: an id", i) for i in own)
        found.append(tuple(dict.fromkeys(ids)))
    return found if each else found * rows


def fixed_ids(fixed: Any, rows: int) -> list[dict[int, int]]:
    """Fixed tokens of each prompt, from one mapping for all or one for each prompt (None: no tokens)."""
    given = [fixed] * rows if fixed is None or isinstance(fixed, Mapping) else fixed
    if not _is_list(given) or not all(own is None or isinstance(own, Mapping) for own in given):
        raise RequestError(f"fixed is {{position in the response: id}}, or a list of these; got {fixed!r:.80}")
    _count("fixed", given, rows)
    return [
        {integer("fixed: a position", at): integer("fixed: an id", i) for at, i in (own or {}).items()} for own in given
    ]


def stop_texts(stop: Any) -> tuple[str, ...]:
    """Stop strings, from one or a list of them; None: there are none."""
    given = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not _is_list(given) or not all(isinstance(one, str) and one for one in given):
        raise RequestError(f"stop must be a text that is not empty, or a list of them; got {stop!r:.80}")
    return tuple(dict.fromkeys(given))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _count(name: str, values: Sequence[Any], rows: int) -> None:
    if len(values) != rows:
        raise RequestError(f"{name} has {len(values)} values for {rows} prompts")
