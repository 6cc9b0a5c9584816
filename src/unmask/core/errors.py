"""The errors that users see. Each is a ``ValueError`` whose one message names the thing and what is accepted."""

from __future__ import annotations

from typing import Any


class UnmaskError(ValueError):
    """Base of every error that bad input raises; the command line prints its message and exits with code 2."""


class SpecError(UnmaskError):
    """An unknown policy, cache or parameter, a value out of range, or a spec string that does not parse."""


class ModelError(UnmaskError):
    """A checkpoint that cannot be used: unknown family, missing, truncated or mismatched weights, dtype or device."""


class RequestError(UnmaskError):
    """A request that cannot be decoded: empty or too long prompt, mask id in the prompt, lengths out of range.

    Attributes:
        what: what is wrong, without a name in front of it.
        row: the prompt it is wrong with; None: with none in particular.
    """

    def __init__(self, what: str, row: int | None = None, kind: str = "prompt") -> None:
        """The message is ``what``, behind "prompt ROW: " (or another ``kind``) where there is a row."""
        super().__init__(what if row is None else f"{kind} {row}: {what}")
        self.what = what
        self.row = row
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return RequestError, (self.what, self.row, self.kind)

    def of(self, row: int, kind: str = "prompt") -> RequestError:
        """The same error of one prompt."""
        return RequestError(self.what, row, kind)
