"""From the tensors of a checkpoint to a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import ModelError
from .tensors import Tensors
from .transformer import Architecture, Transformer

_UNUSED = re.compile(r"rotary|inv_freq")  # buffers that some tools write; made anew here


def blank(arch: Architecture, context: int = 1) -> Transformer:
    """A network on the meta device."""
    with torch.device("meta"):
        return Transformer(arch, context)


def fill(
    network: Transformer,
    names: Mapping[str, str],
    known: set[str],
    tensors: Tensors,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Read the weights into a network made on the meta device, one tensor at a time.

    Each is copied out of the file, so that a file overwritten later does not change (or crash) a loaded model.

    Args:
        network: made on the meta device.
        names: from its parameters' names to those of the tensors.
        known: names of tensors that may be there, whether they are read or not.
        tensors: the checkpoint's.
        folder: for messages.
        device, dtype: what the network is to have.

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
    wanted, ours = network.shapes(), {theirs: ours for ours, theirs in names.items()}
    state: dict[str, Tensor] = {}
    for theirs in tensors.names():
        if theirs not in ours:
            continue
        shape, found = wanted[ours[theirs]], tensors.shape(theirs)
        if found != list(shape):
            raise ModelError(f"{tensors.file(theirs)}: {theirs} has shape {found}; config.json implies {list(shape)}")
        state[ours[theirs]] = tensors.read(theirs).to(device=device, dtype=dtype, copy=True)
    network.assign(state)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
