"""The engine: requests enter and leave while others are being decoded; it alone steps."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from typing import Any

import torch

from ..constraints.compile import begin, check_fit, compile_constraint
from ..core.canvas import ModelSpec
from ..core.errors import RequestError
from ..core.state import append, places, select, slabs, survivors
from ..core.threads import for_work
from ..core.values import integer
from ..models.denoiser import Denoiser
from ..stop import StopStrings
from ..text import Text
from .admission import fresh_state, spare_columns, state_bytes
from .group import Group, Row
from .loop import State, Status, step
from .outcome import Event, Outcome, explained
from .request import Request

_LOG = logging.getLogger(__name__)
_ROUND = 64  # widths of slabs grow in steps of so many positions, so that slightly longer rows fit as well


class Engine:
    """Decodes requests, as many at a time as ``batch_size`` and ``memory`` allow; the next enter as others leave.

    ::

        engine = Engine(denoiser, text)
        engine.add(request)
        while engine.busy:
            for event in engine.step():
                ...

    Every request ends in exactly one :class:`Outcome`, whatever happens to others. Its methods may be called from
    several threads.

    Args:
        model: the network with its ids.
        text: its tokenizer; without one no request may have stop strings.
        batch_size: most rows decoded at a time, all groups together.
        memory: most bytes that the rows' states (keys and values, for the most part) may take; None: no limit.

    Raises:
        RequestError: batch_size or memory out of range.
    """

    def __init__(
        self, model: Denoiser, text: Text | None = None, *, batch_size: int = 32, memory: int | None = None
    ) -> None:
        for name, value in (("batch_size", batch_size), ("memory", memory)):
            if value is not None and integer(name, value) < 1:
                raise RequestError(f"{name} must be at least 1, got {value}")
        self.model, self.text = model, text
        self.batch_size, self.memory = integer("batch_size", batch_size), memory
        self.clock = 0.0  # seconds spent in step(), which is what times are counted in
        self.moving = 0.0  # of these, spent on rows that enter and leave
        self._waiting: deque[Request] = deque()
        self._groups: list[Group] = []
        self._ids: set[Any] = set()
        self._ended: list[Outcome] = []
        self._index, self._turn = 0, 0

    @property
    def spec(self) -> ModelSpec:
        """The model's ids."""
        return self.model.spec

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do or to tell."""
        return bool(self._ids or self._ended)

    @property
    def running(self) -> int:
        """Rows that are being decoded."""
        return sum(len(group.rows) for group in self._groups)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    def check(self, request: Request) -> None:
        """Refuse what cannot be decoded, without adding it.

        Raises:
            RequestError, ModelError: see :meth:`Request.check`; stop strings without a tokenizer, a row that alone does
                not fit the memory, a constraint that cannot be followed or does not fit the response.
        """
        request.check(self.spec)
        self._constrained(request)
        if request.params.stop and self.text is None:
            raise RequestError("stop: the model has no tokenizer.json, so that its responses have no text", request.id)
        if self.memory is not None:
            need = state_bytes(self.model, request)
            if need > self.memory:
                size = f"{len(request.prompt)} + {request.longest(self.spec)}"
                raise RequestError(
                    f"it needs {need / 2**20:.0f} MiB for {size} tokens with "
                    f"cache {request.cache}, but the memory budget is {self.memory / 2**20:.0f} MiB; shorten it, "
                    "choose another cache or raise the budget",
                    request.id,
                )

    def add(self, request: Request) -> None:
        """Queue a request. It is decoded from the next :meth:`step` on that has a place for it.

        Raises:
            RequestError, ModelError: see :meth:`check`; an id that is in use. Nothing is queued then.
        """
        self.check(request)
        request = self._constrained(request)
        with self.model.lock:
            if request.id in self._ids:
                raise RequestError("a request with this id is being decoded already", request.id)
            self._ids.add(request.id)
            self._waiting.append(request)

    def _constrained(self, request: Request) -> Request:
        """The request with its constraint compiled; it fits the response."""
        params, made = request.params, request.constraint
        if made is None and not params.constraint:
            return request
        suppress = tuple(map(int, params.suppress))
        try:
            if made is None:
                [(kind, value)] = params.constraint.items()
                made = compile_constraint(kind, value, self.text, self.spec, suppress)
            ids = [] if request.begin is None else request.prompt[request.begin :]
            state = begin(made, ids, self.text.hidden if self.text else frozenset())
            check_fit(made, state, request.gen_length, request.fixed)
        except RequestError as error:
            raise error.of(request.id) from None
        return replace(request, constraint=made, state=state)

    @torch.no_grad()
    def abort(self, id: Any) -> None:
        """End a request before the next forward pass; its outcome holds what it had. Unknown ids are ignored."""
        with self.model.lock:
            for request in [r for r in self._waiting if r.id == id]:
                self._waiting.remove(request)
                self._end(self._row(request, reason="abort"), None, 0)
            for group in [*self._groups]:  # one that is left empty goes
                for row in group.rows:
                    if row.request.id == id:
                        row.reason = "abort"
                self._leave(group)

    @torch.no_grad()
    @for_work(0)  # what is large in it says so
    def step(self) -> list[Event]:
        """One forward pass of one group, groups taking turns, and the outcomes of the requests that ended."""
        with self.model.lock:
            began = time.perf_counter()
            events: list[Event] = []
            self._admit()
            self.moving += time.perf_counter() - began
            if self._groups:
                self._turn = (self._turn + 1) % len(self._groups)
                events += self._forward(self._groups[self._turn], began)
            else:
                self.clock += time.perf_counter() - began
            events += self._ended
            self._ended = []
            return events

    def _forward(self, group: Group, began: float) -> list[Event]:
        """One forward pass of a group; rows that end leave it."""
        rows, before = group.rows, self.clock
        assert group.state is not None
        try:
            ids = [row.request.id for row in rows]
            group.state, event = step(self.model, group.cache, group.policy, group.state, self._index, ids)
        except Exception as error:  # whatever a policy or a cache does: the other groups go on
            _LOG.debug("%s + %s failed", group.policy, group.cache, exc_info=True)
            for row in rows:
                row.reason, row.error = "error", explained(error)
            self.clock = before + time.perf_counter() - began
            self._leave(group)
            return []
        self._index += 1
        self.clock = before + time.perf_counter() - began
        for slot, (row, status) in enumerate(zip(rows, event.status, strict=True)):
            row.nfe += 1
            row.length = status.wanted - len(row.request.prompt)
            if row.first is None and status.settled > len(row.request.prompt):
                row.first = self.clock - row.born
            elif row.first is not None and status.settled <= len(row.request.prompt):
                row.first = None  # re-masked
            self._judge(group, row, slot, status)
        event = replace(event, finished=tuple(row.request.id for row in rows if row.reason))
        leaving = time.perf_counter()
        self._leave(group)
        spent = time.perf_counter() - leaving
        self.moving += spent
        self.clock += spent
        return [event]

    def _judge(self, group: Group, row: Row, slot: int, status: Status) -> None:
        """Whether a row ends with this forward pass, and why."""
        request = row.request
        if not status.finite:
            row.reason, row.error = "error", self._diagnosis(group, slot)
            return
        if row.stops and (
            status.done or (status.settled > row.looked and self._stays(group) and not request.params.ignore_eos)
        ):
            assert group.state is not None
            row.looked = status.settled
            ids = group.state.canvas.tokens[slot, len(request.prompt) : status.settled].tolist()
            row.ending = row.stops.find(ids, status.done)
            if row.ending:
                row.reason = "stop"
        if row.reason is None and status.done:
            row.reason = "eos" if status.ended and not request.params.ignore_eos else "length"
        elif row.reason is None and row.nfe > group.policy.most_passes(row.room):
            row.reason = "error"
            row.error = f"{group.policy} does not finish: {row.nfe} forward passes for {request.gen_length} tokens"

    def _stays(self, group: Group) -> bool:
        """Whether text before the first masked position, or that of finished blocks, cannot change any more."""
        return not group.policy.remasks or self.spec.block is not None

    def _diagnosis(self, group: Group, slot: int) -> str:
        """Where the numbers end, found by one more forward pass of the row alone."""
        assert group.state is not None
        canvas = group.state.canvas
        try:
            where = self.model.first_not_finite(canvas.tokens[slot][canvas.valid[slot]])
        except RuntimeError:  # no memory for it
            where = None
        dtype = str(self.model.network.dtype).removeprefix("torch.")
        way_out = {"float16": "; load it with dtype bfloat16 or float32", "bfloat16": "; load it with dtype float32"}
        found = f", the first in {where}" if where else ""
        return f"the model's logits are not finite numbers in {dtype}{found}{way_out.get(dtype, '')}"

    def _leave(self, group: Group) -> None:
        """Take the rows that have a reason out of a group."""
        leaving = [row.reason is not None for row in group.rows]
        if not any(leaving):
            return
        for slot, row in enumerate(group.rows):
            if row.reason is not None:
                self._end(row, group.state, slot)
            if row.reason == "error":
                for slab in slabs(group.state):
                    slab.clear(slot)
        stay = survivors(leaving)
        if stay and group.state is not None:
            group.rows = [group.rows[i] for i in stay]
            group.state = select(group.state, stay, group.width)
        else:
            at = next(i for i, one in enumerate(self._groups) if one is group)
            del self._groups[at]
            self._turn -= at <= self._turn

    def _end(self, row: Row, state: State | None, slot: int) -> None:
        """Note the outcome of a row."""
        request, spec = row.request, self.spec
        length = request.gen_length if row.length is None else row.length
        fixed = [request.fixed.get(at, spec.mask) for at in range(length)]
        tokens, steps, sure, work = fixed, [-1] * length, [0.0] * length, 0.0
        if state is not None:
            own = slice(len(request.prompt), len(request.prompt) + length)
            record = state.record
            tokens, steps = torch.stack([state.canvas.tokens[slot, own], record.committed_at[slot, own]]).tolist()
            *sure, work = torch.cat([record.confidence[slot, own].double(), record.work[slot : slot + 1]]).tolist()
        if row.ending:
            cut = length - row.ending.tokens
            tokens[row.ending.tokens :], steps[row.ending.tokens :] = [spec.eos[0]] * cut, [-1] * cut
            sure[row.ending.tokens :] = [0.0] * cut
        if row.reason == "eos" and not any(token in spec.eos for token in tokens):  # it stands behind gen_length
            row.reason = "length"
        if row.reason == "eos":  # masked positions behind it stay empty
            tokens = [spec.eos[0] if token == spec.mask else token for token in tokens]
        assert row.reason is not None
        self._ids.discard(request.id)
        spent = self.clock - row.born
        self._ended.append(
            Outcome(request, row.reason, tokens, steps, sure, row.nfe, work, spent, row.first, row.ending, row.error)
        )

    def _fail(self, rows: list[Row], error: Exception, state: State | None) -> None:
        """Note the outcomes of rows that could not enter."""
        for slot, row in enumerate(rows):
            row.reason, row.error = "error", explained(error)
            self._end(row, state, slot)

    # --- rows that enter

    def _admit(self) -> None:
        """Let waiting requests in, in their order, as long as they fit."""
        entering: list[tuple[Group, list[Row]]] = []
        running, used = self.running, self.used
        while self._waiting and running < self.batch_size:
            request = self._waiting[0]
            group, fresh = self._place(entering, request)
            if self.memory is not None:
                width = max(row.total for row in [*group.rows, *fresh, self._row(request)])
                need = state_bytes(self.model, request, width)
                count = len(group.rows) + len(fresh)
                grown = used - group.row_bytes * count + max(need, group.row_bytes) * (count + 1)
                if running and grown > self.memory:
                    break
                used, group.row_bytes = grown, max(need, group.row_bytes)
            self._waiting.popleft()
            stops = StopStrings(self.text, request.params.stop) if request.params.stop and self.text else None
            fresh.append(self._row(request, stops=stops, looked=len(request.prompt)))
            running += 1
        for group, fresh in entering:
            if fresh:
                self._enter(group, fresh)

    def _row(self, request: Request, stops: StopStrings | None = None, **known: Any) -> Row:
        """What the host knows of a request that enters now."""
        return Row(request, request.room(self.spec), self.clock, stops, **known)

    def _place(self, entering: list[tuple[Group, list[Row]]], request: Request) -> tuple[Group, list[Row]]:
        """The group of a request, and those that enter it now."""
        for group, fresh in entering:
            if group.takes(request):
                return group, fresh
        running = next((group for group in self._groups if group.takes(request)), None)
        entering.append((running or Group(request.policy, request.cache, []), []))
        return entering[-1]

    def _enter(self, group: Group, fresh: list[Row]) -> None:
        """Put rows behind those of a group."""
        try:
            made = fresh_state(self.model, [row.request for row in fresh])
        except Exception as error:  # a policy that cannot begin
            _LOG.debug("%s cannot begin", group.policy, exc_info=True)
            if len(fresh) == 1:
                return self._fail(fresh, error, None)
            for row in fresh:  # perhaps with one of them only
                self._enter(group, [row])
            return
        if group.state is None:
            self._reserve(group, made, fresh)
            group.state = made
            self._groups.append(group)
        else:
            before = len(group.rows)
            try:
                self._reserve(group, group.state, fresh)
                group.state = append(group.state, made)
            except Exception as error:  # no memory, or states that differ
                _LOG.debug("%s cannot enter", group.policy, exc_info=True)
                for slab in slabs(group.state):
                    slab.keep(range(before))
                return self._fail(fresh, error, made)
        group.rows += fresh

    def _reserve(self, group: Group, state: State, fresh: list[Row]) -> None:
        """Make room for rows that enter a group, and for those that are going to, so that entering copies nothing but
        the row itself.
        """
        rows = [row.request for row in (*group.rows, *fresh)]
        free, room, wide = self.batch_size - self.running - len(fresh), len(rows), 0
        if free:
            rows += [r for r in self._waiting if group.takes(r)][:free]
        if self.memory is None:
            room, held = len(rows), max((slab.capacity for slab in slabs(state)), default=0)
            if 0 < held < room:  # where requests come one by one, not every one of them moves the others
                room = min(max(room, 2 * held), self.batch_size)
            rooms = [r.room(self.spec) for r in rows]
            width = max(len(r.prompt) + own for r, own in zip(rows, rooms, strict=True))
            width += spare_columns(group.policy, rooms)
            wide = -(-(width + 1) // _ROUND) * _ROUND
        else:
            left = self.memory - sum(one.row_bytes * places(one.state) for one in self._groups if one is not group)
            if left < room * group.row_bytes:
                for slab in (slab for one in self._groups for slab in slabs(one.state)):
                    slab.trim()
            else:
                room = max(room, min(len(rows), left // max(1, group.row_bytes)))
        for slab in slabs(state):
            slab.reserve(room, wide if slab.follows_canvas else 0)

    # --- memory

    @property
    def used(self) -> int:
        """Bytes of the states of the rows that are being decoded; counted with a budget only."""
        return sum(group.row_bytes * len(group.rows) for group in self._groups)
