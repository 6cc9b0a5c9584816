"""The values of a trace's lines, checked one by one."""

from __future__ import annotations

from typing import Any

_FAR = 1 << 31  # no id, position or count is larger


class Wrong(ValueError):
    """What is wrong with a line, without where that is."""


def field(line: Any, name: str, kind: type[Any], default: Any = None) -> Any:
    """``line[name]`` of a kind, list or dict."""
    value = line.get(name, default) if isinstance(line, dict) else None
    if not isinstance(value, kind):
        what = {"list": "a list", "dict": "an object"}[kind.__name__]
        raise Wrong(f'"{name:.40}" must be {what}, got {value!r:.40}' if value is not None else f'no "{name:.40}"')
    return value


def word(line: dict[str, Any], name: str) -> str:
    """A text."""
    value = line.get(name)
    if not isinstance(value, str):
        raise Wrong(f'"{name}" must be a text, got {value!r:.40}')
    return value


def whole(value: Any, name: str, low: int = 0, high: int = _FAR) -> int:
    """A whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f"{name} must be whole numbers, got {value!r:.40}" if value is not None else f"no {name}")
    if not low <= value <= high:
        raise Wrong(f"{name} has {value}; accepted are {low} to {high}")
    return value


def named(value: Any, name: str, high: float = float(_FAR), low: float = 0) -> float:
    """A number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"{name} must be numbers, got {value!r:.40}" if value is not None else f"no {name}")
    if not low <= value <= high:
        raise Wrong(f"{name} has {value!r:.40}; accepted are {low:g} to {high:g}")
    return float(value)


def span(part: Any, name: str, most: int) -> tuple[int, int, int]:
    """``[first, one behind the last, how many layers]``."""
    if not isinstance(part, list) or len(part) != 3:
        raise Wrong(f'"{name}" has {part!r:.40}; expected [first, one behind the last, layers]')
    first = whole(part[0], f'"{name}"', 0, most)
    return first, whole(part[1], f'"{name}"', first + 1, most), whole(part[2], f'"{name}"')


def spans(value: Any, name: str) -> tuple[tuple[int, int], ...]:
    """``[[first, one behind the last], ...]``."""
    if not isinstance(value, list) or not all(isinstance(part, list) and len(part) == 2 for part in value):
        raise Wrong(f'"{name}" must be [[first, one behind the last], ...] for each row, got {value!r:.40}')
    return tuple((whole(low, f'"{name}"'), whole(high, f'"{name}"', low)) for low, high in value)


def pieces(line: dict[str, Any]) -> dict[int, str]:
    """``{"id": text}`` with numbers for ids; empty where a line has none."""
    value = field(line, "pieces", dict, {})
    try:
        return {whole(int(key), '"pieces"'): word(value, key) for key in value}
    except ValueError as error:
        raise error if isinstance(error, Wrong) else Wrong('"pieces" must be {"id": text, ...}') from None
