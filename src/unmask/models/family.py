"""What a model family must say of itself: sizes, ids and weight names. One file per family implements it."""

from __future__ import annotations

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


def required(config: Mapping[str, Any], key: str) -> Any:
    """``config[key]``, or a ModelError that names the key."""
    if config.get(key) is None:
        raise ModelError(f"config.json has no {key!r}")
    return config[key]


def refuse(config: Mapping[str, Any], family: str, expected: Mapping[str, Any]) -> None:
    """Refuse a config whose keys, where present and not null, differ from what the family's code implements."""
    for key, value in expected.items():
        if config.get(key) is not None and config[key] != value:
            raise ModelError(f"{family}: config.json has {key} = {config[key]!r}; supported is {value!r}")


def id_list(value: Any) -> tuple[int, ...]:
    """Config values for ids are a number, a list of numbers, or null."""
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
