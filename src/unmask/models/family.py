"""What a model family must say of itself: sizes, ids and weight names. One file per family implements it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.errors import ModelError
from .transformer import Architecture


@dataclass(frozen=True)
class Description:
    """A checkpoint as its config describes it; ids as in :class:`unmask.core.canvas.ModelSpec`."""

    family: str
    arch: Architecture
    context: int
    mask: int
    eos: tuple[int, ...]
    pad: int
    shift: bool

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other and ids outside the vocabulary, as a :class:`ModelError`."""
        a = self.arch
        if a.width % a.heads or a.head_dim % 2:
            raise ModelError(
                f"{self.family}: config.json has width {a.width} and {a.heads} heads; "
                "the width must be an even multiple of the heads"
            )
        if a.heads % a.kv_heads:
            raise ModelError(
                f"{self.family}: config.json has {a.heads} heads, not a multiple of the {a.kv_heads} key/value heads"
            )
        for name, ids in (("mask", (self.mask,)), ("end-of-text", self.eos), ("pad", (self.pad,))):
            outside = [i for i in ids if not 0 <= i < a.vocab]
            if outside:
                raise ModelError(
                    f"{self.family}: the {name} id {outside[0]} of config.json is not in 0 to {a.vocab - 1}"
                )
        if not self.eos or self.mask in self.eos:
            raise ModelError(f"{self.family}: config.json needs an end-of-text id other than the mask id {self.mask}")


class Family(Protocol):
    """Reads the config and names the weights of one family."""

    name: str
    architectures: tuple[str, ...]

    def describe(self, config: Mapping[str, Any]) -> Description:
        """Sizes and ids.

        Raises:
            ModelError: a missing key, or a variant that is not supported.
        """

    def names(self, arch: Architecture) -> dict[str, str]:
        """From our parameter names to the checkpoint's."""


def size(config: Mapping[str, Any], key: str, default: int | None = None, *, at_least: int = 1) -> int:
    """An integer of the config; ``default`` where the key is absent or null.

    Raises:
        ModelError: names the key and says what is wrong with it.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise ModelError(f"config.json has no {key!r}")
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ModelError(f"config.json has {key} = {value!r}; it must be an integer >= {at_least}")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A positive number of the config; ``default`` where the key is absent or null.

    Raises:
        ModelError: names the key and says what is wrong with it.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ModelError(f"config.json has {key} = {value!r}; it must be a number > 0")
    return float(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """A truth value of the config; false where the key is absent or null.

    Raises:
        ModelError: names the key and says what is wrong with it.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"config.json has {key} = {value!r}; it must be true or false")
    return bool(value)


def refuse(config: Mapping[str, Any], family: str, expected: Mapping[str, Any]) -> None:
    """Refuse a config whose keys, where present and not null, differ from what the family's code implements."""
    for key, value in expected.items():
        if config.get(key) is not None and config[key] != value:
            raise ModelError(f"{family}: config.json has {key} = {config[key]!r}; supported is {value!r}")


def id_list(config: Mapping[str, Any], key: str, file: str = "config.json") -> tuple[int, ...]:
    """Ids of a config: a number, a list of numbers, or null (none).

    Raises:
        ModelError: names the key and says what is wrong with it.
    """
    value = config.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(not isinstance(i, int) or isinstance(i, bool) for i in ids):
        raise ModelError(f"{file} has {key} = {value!r}; it must be an integer or a list of integers")
    return ids


def special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """``mask``, ``eos`` and ``pad`` of a :class:`Description`, from the usual keys (pad: the end of text, if absent).

    Raises:
        ModelError: no mask or no end of text, or not an id.
    """
    eos = id_list(config, "eos_token_id")
    if not eos:
        raise ModelError("config.json has no 'eos_token_id'")
    pad = size(config, "pad_token_id", eos[0], at_least=0)
    return {"mask": size(config, "mask_token_id", at_least=0), "eos": eos, "pad": pad}


def weight_names(arch: Architecture, outer: Mapping[str, str], block: str, layer: Mapping[str, str]) -> dict[str, str]:
    """From our parameter names to a checkpoint's.

    Args:
        arch: sizes, tied head, bias.
        outer: names outside the blocks, without ``.weight``.
        block: what the name of each block begins with, ``{}`` for its number.
        layer: names inside a block.
    """
    names = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in outer.items() if ours != "head" or not arch.tied}
    for i in range(arch.layers):
        for ours, theirs in layer.items():
            for kind in ("weight", "bias") if arch.bias and ours in "qkv" else ("weight",):
                names[f"blocks.{i}.{ours}.{kind}"] = f"{block.format(i)}.{theirs}.{kind}"
    return names
