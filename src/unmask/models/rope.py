"""Rotary position embeddings: the frequencies of each published scaling, and the settings of them in a config.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ModelError
from .config import Config

_OLD, _NEW = "rope_scaling", "rope_parameters"  # how transformers 4 and 5 spell it
_LENGTHS = ("dynamic", "longrope", "su")  # frequencies that depend on the length of the text


@dataclass(frozen=True)
class Interpolation:
    """Positions divided by ``factor``."""

    factor: float
    gain: float = 1.0

    def __call__(self, inverse: Tensor, theta: float) -> Tensor:
        """Scaled frequencies, of ``inverse [D / 2]``."""
        return inverse / self.factor


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1: low frequencies divided by ``factor``, high ones kept, those between interpolated.

    ``low`` and ``high`` are the numbers of turns over the ``original`` context that bound what lies between.
    """

    factor: float
    low: float
    high: float
    original: int
    gain: float = 1.0

    def __call__(self, inverse: Tensor, theta: float) -> Tensor:
        """Scaled frequencies, of ``inverse [D / 2]``."""
        turns = self.original * inverse / (2 * math.pi)
        share = (turns - self.low) / (self.high - self.low)
        between = (1 - share) * inverse / self.factor + share * inverse
        return torch.where(turns < self.low, inverse / self.factor, torch.where(turns > self.high, inverse, between))


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071): frequencies of few turns over the ``original`` context are divided by ``factor``.

    ``fast`` and ``slow`` are the numbers of turns from which a frequency is kept, and up to which it is divided;
    ``whole`` rounds the dimensions where that is so. ``gain`` multiplies the rotated queries and keys.
    """

    factor: float
    original: int
    fast: float
    slow: float
    whole: bool
    gain: float

    def __call__(self, inverse: Tensor, theta: float) -> Tensor:
        """Scaled frequencies, of ``inverse [D / 2]``."""
        low, high = self._dimension(self.fast, inverse, theta), self._dimension(self.slow, inverse, theta)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * len(inverse) - 1)
        high = high + 0.001 if low == high else high
        ramp = ((torch.arange(len(inverse), device=inverse.device) - low) / (high - low)).clamp(0, 1)
        return inverse / self.factor * ramp + inverse * (1 - ramp)

    def _dimension(self, turns: float, inverse: Tensor, theta: float) -> float:
        """The dimension whose frequency makes so many turns over the original context."""
        return len(inverse) * math.log(self.original / (turns * 2 * math.pi)) / math.log(theta)


Scaling = Interpolation | Llama3 | Yarn


def rotary_table(
    positions: int, dim: int, theta: float, scaling: Scaling | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """``[positions, 2, dim]`` float32 cosines and (signed) sines of rotary embeddings in the half-split layout."""
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    if scaling is not None:
        inverse = scaling(inverse, theta)
    angle = torch.arange(positions, device=device, dtype=torch.float32)[:, None] * inverse
    cosine, sine = angle.cos(), angle.sin()
    table = torch.stack([torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)], 1)
    return table if scaling is None else table * scaling.gain


@dataclass(frozen=True)
class Rope:
    """What a config says of rotary embeddings: ``theta``, the ``share`` of a head that is rotated, the scaling."""

    theta: float
    share: float
    scaling: Scaling | None


def rope_of(config: Config, context: int, share: float = 1.0) -> Rope:
    """Read ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling``, or transformers 5's ``rope_parameters``.

    Args:
        config: the whole of it.
        context: its longest text, which a scaling takes for the original one where it names none.
        share: of a head, where it names none.

    Raises:
        ModelError: a kind of scaling that is not supported, a parameter that is missing or unknown or has two values.
    """
    inner = _object(config)
    theta = _same(config, inner, "rope_theta", 10000.0)
    share = _same(config, inner, "partial_rotary_factor", share)
    if share > 1:
        raise config.wrong("partial_rotary_factor", "a number in (0, 1]")
    return Rope(theta, share, _scaling(config, inner, context))


def _object(config: Config) -> Config:
    """The object of either spelling, or of both, which must not contradict each other; empty where there is none."""
    found: dict[str, Any] = {}
    where = _NEW
    for key in (_NEW, _OLD):
        given = config.get(key)
        if given is None or given is False:  # RND1's way to say none
            continue
        if not isinstance(given, Mapping):
            raise config.wrong(key, "an object, or null")
        for name, value in given.items():
            new = "rope_type" if name == "type" else name
            if found.get(new, value) != value:
                raise ModelError(
                    f"{config.family}: {config.file} has {key}.{name} = {value!r}, and elsewhere {found[new]!r} for it"
                )
            found[new], where = value, key
    return config.inside(where, found)


def _same(config: Config, inner: Config, key: str, default: float) -> float:
    """A number that may stand beside the object or in it, but must be the same."""
    outside, inside = config.number(key, default), inner.number(key, config.number(key, default))
    if outside != inside and config.get(key) is not None:
        raise config.wrong(key, f"{inside:g}, as {inner.path}{key} says; the two differ")
    return inside


def _scaling(config: Config, inner: Config, context: int) -> Scaling | None:
    kind = inner.get("rope_type") or "default"
    readers: dict[str, Callable[[Config, int], Scaling | None]] = {
        "default": _default,
        "linear": _linear,
        "llama3": _llama3,
        "yarn": _yarn,
    }
    read = readers.get(kind) if isinstance(kind, str) else None
    if read is None:
        why = "; its frequencies depend on the length of the text" if kind in _LENGTHS else ""
        raise ModelError(
            f"{config.family}: {inner.file} has {inner.path}rope_type = {kind!r}{why}; supported: {', '.join(readers)}"
        )
    made = read(inner, int(_same(config, inner, "original_max_position_embeddings", context)))
    surplus = set(inner) - inner.asked
    odd = next((key for key in sorted(surplus) if inner[key] is not None), None)
    if odd is not None:
        raise ModelError(f"{config.family}: {inner.file} has {inner.path}{odd}, which {kind} scaling does not have")
    return made


def _default(inner: Config, original: int) -> None:
    """No scaling."""


def _linear(inner: Config, original: int) -> Interpolation:
    return Interpolation(inner.number("factor"))


def _llama3(inner: Config, original: int) -> Llama3:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if high <= low:
        raise inner.wrong("high_freq_factor", f"more than low_freq_factor, {low:g}")
    return Llama3(inner.number("factor"), low, high, original)


def _yarn(inner: Config, original: int) -> Yarn:
    factor = inner.number("factor")
    some, all_of_it = inner.number("mscale", 0), inner.number("mscale_all_dim", 0)
    gain = _gain(factor, some) / _gain(factor, all_of_it) if some and all_of_it else _gain(factor, 1.0)
    return Yarn(
        factor,
        original,
        fast=inner.number("beta_fast", 32.0),
        slow=inner.number("beta_slow", 1.0),
        whole=inner.flag("truncate", True),
        gain=inner.number("attention_factor", gain),
    )


def _gain(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
