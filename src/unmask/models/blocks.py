"""How long the blocks of a block-causal model are: given, said by its config or its name, or asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..core.errors import ModelError
from .family import Blocks, Description

_NUMBER = re.compile(r"[-_]b(\d+)(?=[-_.]|$)")


def checked(given: Any, description: Description) -> int | None:
    """A block length that somebody gives.

    Raises:
        ModelError: no such length, or a model without blocks.
    """
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= description.context:
        raise ModelError(
            f"block_length must be an integer from 1 to the model's context of {description.context}, got {given!r}"
        )
    if description.blocks is None:
        raise ModelError(
            f"block_length = {given} was given, but {description.family} has no blocks: every position attends to all "
            "others; policies have a parameter block_length of their own"
        )
    return given


def block_length(description: Description, given: Any, names: Sequence[str]) -> int | None:
    """The block length of a model; None: it has full attention.

    Args:
        description: of its config.
        given: what somebody gives; counts before all else.
        names: of its folder and its hub id, which may end in ``-b32`` or the like.

    Raises:
        ModelError: nobody says it, config and name say different ones, or what is given makes no sense.
    """
    own, blocks = checked(given, description), description.blocks
    if blocks is None or own is not None:
        return own
    told = {int(number) for name in names for number in _NUMBER.findall(name)}
    if blocks.keys and blocks.length is not None:
        told.add(blocks.length)
    if len(told) > 1:
        raise ModelError(_asked(description, blocks, names, f"it has two block lengths, {sorted(told)}"))
    found = next(iter(told), blocks.length)
    if found is None:
        found = next((n for like, n in blocks.named.items() if any(re.search(like, name) for name in names)), None)
    if found is None:
        raise ModelError(_asked(description, blocks, names, "its block length is not known"))
    if not 1 <= found <= description.context:
        what = f"a block length of {found}, where 1 to the context of {description.context} make sense"
        raise ModelError(_asked(description, blocks, names, what))
    return found


def _asked(description: Description, blocks: Blocks, names: Sequence[str], what: str) -> str:
    keys = " or ".join(blocks.keys) or "no key that says it"
    return (
        f"{description.family}: {what}; looked at config.json ({keys}) and at the name ({', '.join(names)}), which may "
        "end in -b32. Give it: block_length=32, or --block-length 32"
    )
