"""Numbers of any numeric type: Python's, numpy's, torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import RequestError


def number(name: str, value: Any) -> float:
    """A number of any numeric type (numpy's and torch's too, but no bool), or a RequestError that names it."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise RequestError(f"{name} must be a number, got {value!r:.80}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"{name} must be a number, got {value!r:.80}") from None


def integer(name: str, value: Any) -> int:
    """An integer of any type (numpy's and torch's too, but no bool), or a RequestError that names it."""
    found: Any = None
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        try:
            found = value.__index__()
        except TypeError:
            found = None
    if (
        found is None
        or isinstance(found, bool)
        or (getattr(value, "dtype", None) is not None and "bool" in str(value.dtype))
    ):
        raise RequestError(f"{name} must be an integer, got {value!r:.80}")
    return int(found)


def is_list(value: Any) -> bool:
    """Whether a value is a list or tuple rather than a text or a mapping."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
