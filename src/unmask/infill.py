"""Texts with gaps: what precedes the first gap is the prompt, what follows it are fixed tokens of the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .checks import TEXTS
from .core.canvas import ModelSpec
from .core.errors import RequestError
from .core.values import integer
from .text import Text, split_gaps


@dataclass(frozen=True)
class Layout:
    """A text with gaps as a request has it: ``prompt`` ids, response length, fixed tokens by position in the response,
    and where the text ``begin``s.
    """

    prompt: list[int]
    gen_length: int
    fixed: dict[int, int]
    begin: int


def lay_out(
    index: int, value: str | Sequence[int], text: Text | None, spec: ModelSpec, front: list[int] | None
) -> Layout:
    """One text, behind the ids ``front`` (None: by itself, with what the tokenizer puts around a text).

    Raises:
        RequestError: a gap that cannot be read, no gap, too long, nothing for a mask to look at.
    """
    try:
        ids = _ids(value, text, spec, front is None)
    except RequestError as error:
        raise error.of(index, "text") from None
    whole = [*(front or []), *ids]
    if len(whole) > spec.context:
        raise RequestError(
            f"it has {len(whole)} tokens, gaps and prompt included, but the model's context is {spec.context}",
            index,
            "text",
        )
    first = len(whole) - len(ids) + ids.index(spec.mask)
    given = {at - first: i for at, i in enumerate(whole) if at > first and i != spec.mask}
    if first == 0 and spec.shift:
        raise RequestError(
            "it begins with a gap, but this model predicts a token from the one before it", index, "text"
        )
    if first == 0 and not given:
        raise RequestError("it is nothing but gaps; at least one token is needed", index, "text")
    return Layout(whole[:first], len(whole) - first, given, len(whole) - len(ids))


def _ids(value: str | Sequence[int], text: Text | None, spec: ModelSpec, special: bool) -> list[int]:
    if not isinstance(value, str):
        if any(isinstance(i, Mapping) for i in value):
            raise RequestError(f"{TEXTS}; a conversation can be given as its prompt")
        ids = [integer("an id", i) for i in value]
        if spec.mask not in ids:
            raise RequestError(f"there is no gap to fill: no mask id {spec.mask} is among its ids")
        return ids
    if text is None:
        raise RequestError("the model has no tokenizer.json; give texts as lists of ids with mask ids")
    parts = split_gaps(value)
    masks = sum(part for part in parts if isinstance(part, int))
    if masks > spec.context:
        raise RequestError(f"its gaps have {masks} tokens, but the model's context is {spec.context}")
    return text.encode_gaps(parts, spec.mask, special)
