"""Whole numbers and decimals within bounds, as JSON writes them."""

from __future__ import annotations

from collections.abc import Iterator

from .syntax import NEVER, Alt, Cat, Chars, Node, Repeat, optional, text

DIGITS = 15  # most digits of a number without bounds, and of a fraction: a double holds them
_LARGEST = 10**DIGITS - 1
_DIGIT = Chars(((48, 57),))
_FRACTION = Cat((text("."), Repeat(_DIGIT, 1, DIGITS)))
_SOME = Cat((text("."), Repeat(text("0"), 0, DIGITS // 2), Chars(((49, 57),)), Repeat(_DIGIT, 0, DIGITS // 2)))
_EXPONENT = Cat((Chars(((69, 69), (101, 101))), optional(Chars(((43, 43), (45, 45)))), Repeat(_DIGIT, 1, 2)))


def integers(low: int | None, high: int | None) -> Node:
    """Whole numbers from ``low`` to ``high``; None: without a bound, of at most ``DIGITS`` digits."""
    low = min(-_LARGEST, high or 0) if low is None else low
    high = max(_LARGEST, low) if high is None else high
    parts: list[Node] = []
    if low < 0:
        parts.append(Cat((text("-"), _counts(max(1, -high), -low))))
    if high >= 0:
        parts.append(_counts(max(0, low), high))
    return Alt(tuple(parts))


def decimals(low: int | None, high: int | None, above: bool = False, below: bool = False) -> Node:
    """Numbers from ``low`` to ``high`` with a fraction of up to ``DIGITS`` digits or none.

    ``above``, ``below``: without the bound itself. Without bounds also with an exponent.
    """
    if low is None and high is None:
        whole = Cat((optional(text("-")), _counts(0, _LARGEST), optional(_FRACTION), optional(_EXPONENT)))
        return whole
    parts = [integers(None if low is None else low + above, None if high is None else high - below)]
    top = _LARGEST if high is None else high - 1
    bottom = 0 if low is None else max(0, low)
    if top >= bottom:  # n.y with n from bottom to top
        parts += _with_fraction(bottom, top, above and low == bottom)
    deepest = _LARGEST if low is None else -low - 1
    nearest = 0 if high is None else max(0, -high)
    if deepest >= nearest:
        below = below and high is not None and -high == nearest
        parts += [Cat((text("-"), own)) for own in _with_fraction(nearest, deepest, below)]
    return Alt(tuple(parts))


def _with_fraction(low: int, high: int, not_even: bool) -> list[Node]:
    """Decimals whose whole part is from ``low`` to ``high``; ``not_even``: not ``low`` itself."""
    if not not_even:
        return [Cat((_counts(low, high), _FRACTION))]
    rest = [Cat((_counts(low + 1, high), _FRACTION))] if high > low else []
    return [Cat((text(str(low)), _SOME)), *rest]


def _counts(low: int, high: int) -> Node:
    """Numbers from ``low`` to ``high``, both at least 0, without leading zeros."""
    parts: list[Node] = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)
        parts += [Cat(tuple(Chars(((48 + a, 48 + b),)) for a, b in span)) for span in _spans(low, last)]
        low = last + 1
    return Alt(tuple(parts)) if parts else NEVER


def _spans(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Numbers with equally many digits as ranges of digits, one after the other; several of these."""
    size = 10
    while size <= high:
        if low // size != high // size:
            if low % size:
                yield from _spans(low, low - low % size + size - 1)
                yield from _spans(low - low % size + size, high)
                return
            if high % size != size - 1:
                yield from _spans(low, high - high % size - 1)
                yield from _spans(high - high % size, high)
                return
        size *= 10
    yield [(int(a), int(b)) for a, b in zip(str(low), str(high), strict=True)]
