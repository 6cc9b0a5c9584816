"""Numbers of any numeric type: Python's, numpy's, torch's."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from .errors import RequestError


def plain(value: Any) -> int | float | None:
    """A number of any type (numpy's and torch's too, but no bool) as Python's; None of what is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and value.shape == ():
        return plain(value.tolist())
    return None


def number(name: str, value: Any) -> float:
    """A number of any numeric type, or a RequestError that names it."""
    found = plain(value)
    try:
        return float(found)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        raise RequestError(f"{name} must be a number, got {value!r:.80}") from None


def integer(name: str, value: Any) -> int:
    """An integer of any type, or a RequestError that names it."""
    found = plain(value)
    if not isinstance(found, int):
        raise RequestError(f"{name} must be an integer, got {value!r:.80}")
    return found


def is_list(value: Any) -> bool:
    """Whether a value is a list or tuple rather than a text or a mapping."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
