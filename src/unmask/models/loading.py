"""From the tensors of a checkpoint to a network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..core.errors import ModelError
from .tensors import Tensors
from .transformer import Architecture, Transformer

_UNUSED = re.compile(r"rotary|inv_freq|vision_tower|embed_vision")  # buffers some tools write; what sees images


def blank(arch: Architecture, context: int = 1) -> Transformer:
    """A network on the meta device."""
    with torch.device("meta"):
        return arch.made(context)


def matched(
    network: Transformer, names: Mapping[str, str], known: set[str], tensors: Tensors, folder: Path
) -> dict[str, str]:
    """The tensors to read, file by file, and the parameter each is for.

    Args:
        network: made on the meta device.
        names: from its parameters' names to those of the tensors.
        known: names of tensors that may be there, whether they are read or not.
        tensors: the checkpoint's.
        folder: for messages.

    Raises:
        ModelError: missing or surplus weights, wrong shapes, truncated files.
    """
    held = set(tensors.names())
    absent = [theirs for theirs in names.values() if theirs not in held]
    if absent:
        raise ModelError(f"{folder}: weights missing: {_some(absent)}")
    inside = {name.split(".")[0] for name in known}
    surplus = [n for n in tensors.names() if n.split(".")[0] in inside and n not in known and not _UNUSED.search(n)]
    if surplus:
        raise ModelError(f"{folder}: weights that config.json does not account for: {_some(surplus)}")
    wanted, ours = network.shapes_of(names), {theirs: ours for ours, theirs in names.items()}
    found = {theirs: ours[theirs] for theirs in tensors.names() if theirs in ours}
    for theirs, name in found.items():
        if not fits(tensors.shape(theirs), wanted[name]):
            raise ModelError(
                f"{tensors.file(theirs)}: {theirs} has shape {tensors.shape(theirs)}; "
                f"config.json implies {list(wanted[name])}"
            )
    return found


def fill(
    network: Transformer, found: Mapping[str, str], tensors: Tensors, device: torch.device, dtype: torch.dtype
) -> None:
    """Read what :func:`matched` has found into a network made on the meta device, one tensor at a time.

    Each is copied out of the file, so that a file overwritten later does not change (or crash) a loaded model.

    Raises:
        ModelError: a file that cannot be read, or holds other than floating point numbers.
    """
    state = {
        ours: tensors.read(theirs).to(device=device, dtype=network.kept(ours, dtype), copy=True)
        for theirs, ours in found.items()
    }
    network.assign(state)


def fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a tensor is of the wanted shape; experts may stand below each other instead of in their own dimension, as
    ``unmask quantize`` writes them.
    """
    below = [math.prod(wanted[:-1]), wanted[-1]] if len(wanted) == 3 else None
    return list(shape) in (list(wanted), below)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
