"""Requests that are being decoded, as the host knows them, in groups that share forward passes."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.cache import Cache
from ..core.policy import Policy
from ..stop import Ending, StopStrings
from .admission import spare_columns
from .loop import State
from .outcome import FinishReason
from .request import Request


@dataclass
class Row:
    """A request that is being decoded, as the host knows it. Slot i of its group's state is row i of its list; ``room``
    are the positions that its response may take on the canvas.
    """

    request: Request
    room: int
    born: float
    stops: StopStrings | None
    nfe: int = 0
    length: int | None = None  # of its response after the last forward pass; None: as asked for
    looked: int = 0  # where the text has been searched for stop strings up to
    first: float | None = None
    reason: FinishReason | None = None
    ending: Ending | None = None
    error: str | None = None

    @property
    def total(self) -> int:
        """Positions of prompt and response."""
        return len(self.request.prompt) + self.room


@dataclass
class Group:
    """The rows that share forward passes: those with equal policy and cache."""

    policy: Policy
    cache: Cache
    rows: list[Row]
    state: State | None = None
    row_bytes: int = 0

    def takes(self, request: Request) -> bool:
        """Whether a request is decoded in this group."""
        return self.policy == request.policy and self.cache == request.cache

    @property
    def width(self) -> int:
        """Positions that the canvas needs: the longest row's, and the columns of probes."""
        spare = spare_columns(self.policy, [row.room for row in self.rows])
        return max(row.total for row in self.rows) + spare
