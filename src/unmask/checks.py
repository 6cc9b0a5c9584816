"""What a caller gives, checked and brought into one form: one value per prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .core.errors import RequestError
from .core.values import integer, is_list

PROMPTS = "a prompt is a string, a list of ids or a conversation"
TEXTS = "a text with gaps is a string or a list of ids"


def check_names(call: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    """Refuse what a call has been given by name and does not take."""
    odd = next((name for name in given if name not in accepted), None)
    if odd is not None:
        raise RequestError(f"{call} has no option {odd!r}; accepted are {', '.join(accepted)}")


def as_batch(prompts: Any, kinds: str = PROMPTS) -> list[Any]:
    """The prompts (or texts, as ``kinds`` says) as a list of single ones; arrays become lists."""
    name = kinds.split()[1]
    prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(prompts, str):
        return [prompts]
    if not is_list(prompts):
        raise RequestError(f"{kinds}, or a list of these; got {prompts!r:.80}")
    if not prompts:
        raise RequestError(f"no {name}s: the batch is empty")
    many = [p.tolist() if hasattr(p, "tolist") else p for p in prompts]
    if isinstance(many[0], (int, Mapping)):
        return [many]
    for i, prompt in enumerate(many):
        if not isinstance(prompt, str) and not is_list(prompt):
            raise RequestError(f"{kinds}, got {prompt!r:.80}", i, name)
    return many


def check_chat(chat: Any) -> None:
    """Refuse what does not say whether there is a chat template."""
    if not any(chat is known for known in (True, False, None)):
        raise RequestError(f"chat must be True, False or None, got {chat!r}")


def per_row(name: str, value: Any, rows: int) -> list[int]:
    """An integer for each prompt, from one or from a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not is_list(value):
        return [integer(name, value)] * rows
    _count(name, value, rows)
    return [integer(name, v) for v in value]


def fixed_ids(fixed: Any, rows: int) -> list[dict[int, int]]:
    """Fixed tokens of each prompt, from one mapping for all or one for each prompt (None: no tokens)."""
    given = [fixed] * rows if fixed is None or isinstance(fixed, Mapping) else fixed
    if not is_list(given) or not all(own is None or isinstance(own, Mapping) for own in given):
        raise RequestError(f"fixed is {{position in the response: id}}, or a list of these; got {fixed!r:.80}")
    _count("fixed", given, rows)
    return [
        {integer("fixed: a position", at): integer("fixed: an id", i) for at, i in (own or {}).items()} for own in given
    ]


def _count(name: str, values: Sequence[Any], rows: int) -> None:
    if len(values) != rows:
        raise RequestError(f"{name} has {len(values)} values for {rows} prompts")
