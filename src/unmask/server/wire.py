"""What a server and its engine tell each other: pickled objects on a socket, the same for a thread and a process."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..constraints.automaton import Automaton
from ..engine.request import Request
from .frames import Frame

_HEAD = struct.Struct("!Q")  # bytes of the object that follows


class Watch(Enum):
    """What of a request's decoding is told before its end."""

    NOTHING = 0
    TEXT = 1
    STEPS = 2


# --- orders, to the engine


@dataclass(frozen=True)
class Job:
    """A request for the engine.

    Attributes:
        request: with an id that no other request has; policy and cache are specs.
        watch: what is told before the end.
        max_nfe: forward passes after which it ends; None: no limit.
        rule: the number of its constraint at the server; None: it has none.
        automaton: the constraint, where the engine does not have it.
    """

    request: Request
    watch: Watch
    max_nfe: int | None
    rule: int | None = None
    automaton: Automaton | None = None


@dataclass(frozen=True)
class Add:
    """Queue all of these jobs, or none."""

    jobs: Sequence[Job]


@dataclass(frozen=True)
class Abort:
    """End requests before the next forward pass; those that have ended are ignored."""

    ids: Sequence[Any]


@dataclass(frozen=True)
class Stop:
    """End all requests and the engine."""


Order = Add | Abort | Stop


# --- news, from the engine


@dataclass(frozen=True)
class Added:
    """What has become of an :class:`Add`.

    Attributes:
        ids: of its requests.
        error: why none of them could be queued: a ``RequestError``, or a ``RuntimeError``, which is not their fault.
    """

    ids: Sequence[Any]
    error: Exception | None = None


@dataclass(frozen=True)
class Progress:
    """What one forward pass brought a response.

    Attributes:
        id: of the request.
        ids: tokens that can no longer change, behind those told before.
        frame: all of what the forward pass did; None unless it is watched.
    """

    id: Any
    ids: list[int]
    frame: Frame | None


@dataclass(frozen=True)
class Ended:
    """A request has ended.

    Attributes:
        id: of the request.
        outcome: the :class:`~unmask.engine.outcome.Outcome`, all but its request.
        first: when its first token could no longer change, by ``time.perf_counter``; None: never.
        at: when it ended.
        limited: whether ``max_nfe`` ended it.
    """

    id: Any
    outcome: Mapping[str, Any]
    first: float | None
    at: float
    limited: bool


@dataclass(frozen=True)
class Broken:
    """Requests that are lost, and why."""

    ids: Sequence[Any]
    why: str


@dataclass(frozen=True)
class Load:
    """What the engine has to do.

    Attributes:
        running, waiting: requests.
        used: bytes of the running ones; 0 without a budget.
        rows: of each forward pass since the last time.
    """

    running: int = 0
    waiting: int = 0
    used: int = 0
    rows: tuple[int, ...] = ()


News = Added | Progress | Ended | Broken | Load


def packed(told: Any) -> bytes:
    """An object as bytes of the wire."""
    data = pickle.dumps(told, pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(data)) + data


class Rules:
    """The constraints that were sent last, which are large. Both sides have one and do the same to it."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._held: OrderedDict[int, Automaton] = OrderedDict()

    def sent(self, number: int, automaton: Automaton | None) -> Automaton | None:
        """The one with this number, which is held from now on; None: it has to be sent, and is not."""
        own = self._held.pop(number, automaton)
        if own is not None:
            self._held[number] = own
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return own

    def forget(self) -> None:
        """Hold none: all are sent anew."""
        self._held.clear()


class Unpacker:
    """Makes objects of the bytes that have come."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def amid(self) -> bool:
        """Whether an object has come in part."""
        return bool(self._held)

    def feed(self, data: bytes) -> Iterator[Any]:
        """The objects that are complete with these bytes."""
        self._held += data
        while len(self._held) >= _HEAD.size:
            end = _HEAD.size + _HEAD.unpack_from(self._held)[0]
            if len(self._held) < end:
                return
            told = bytes(self._held[_HEAD.size : end])
            del self._held[:end]
            yield pickle.loads(told)
