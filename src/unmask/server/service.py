"""From a plan to its reply: queueing, waiting, streaming, and what happens when a client or the clock gives up."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..core.errors import RequestError
from .calls import Reader
from .errors import Refused, Reply
from .host import Host
from .metrics import Metrics
from .plan import MAIN, Plan, numbered, refusal
from .replies import Answer, Replies
from .settings import Settings
from .stable import Stable
from .worker import BEHIND, Ticket, Worker

_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
IGNORED = "x-unmask-ignored"  # the response header that lists fields without effect


class Service:
    """What stands between HTTP and the engine.

    Args:
        host: of the engine.
        settings: limits.
        model: the model's name.
        metrics: what is counted.
    """

    def __init__(self, host: Host, settings: Settings, model: str, metrics: Metrics) -> None:
        self.lm, self.settings, self.model, self.metrics = host.processor, settings, model, metrics
        self.worker = Worker(host, metrics.passed)
        self.open = 0  # responses that are queued or being decoded
        self.draining = False
        self._next = 0
        self._pace = 0.0  # seconds between two responses that end, of late
        self._last = time.perf_counter()
        metrics.watch(self)

    # --- admission

    async def submit(self, plan: Plan) -> list[Ticket]:
        """Queue the requests of a plan.

        Raises:
            Refused: the server is stopping, its queue is full, or the engine cannot decode one of them.
        """
        self._room(len(plan.requests))
        loop = asyncio.get_running_loop()
        requests = numbered(plan.requests, self._next)
        self._next += len(requests)
        news = asyncio.Event()
        tickets = [Ticket(request, plan.watch, plan.max_nfe, loop.create_future(), news) for request in requests]
        self.worker.add(tickets)
        self.open += len(tickets)
        try:
            await tickets[0].accepted
        except asyncio.CancelledError:
            self.release(tickets)
            raise
        except RequestError as error:
            self.open -= len(tickets)
            raise refusal(error, MAIN[plan.kind]) from None
        except RuntimeError as error:
            self.open -= len(tickets)
            raise Refused(500, f"the request could not be begun: {error}", "internal_error") from error
        return tickets

    def _room(self, count: int) -> None:
        if self.draining or not self.worker.alive:
            raise Refused(503, "the server is stopping", "stopping", headers={"retry-after": "5"})
        limit = self.settings.batch_size + self.settings.max_queue
        if count > limit:
            raise Refused(400, f"{count} responses are asked for; at most {limit} are accepted", "invalid_value", "n")
        if self.open + count > limit:
            wait = min(120, max(1, math.ceil((self.open + count - limit) * self._pace)))
            self.metrics.rejected.inc()
            message = f"{self.open} responses are being decoded or wait; at most {limit} may"
            raise Refused(429, message, "queue_full", headers={"retry-after": str(wait)})

    def release(self, tickets: Sequence[Ticket]) -> None:
        """Give up what has not ended, and note that a plan is over."""
        left = [ticket.request.id for ticket in tickets if not ticket.ended]
        if left:
            self.worker.abort(left)
        self.open -= len(tickets)
        now = time.perf_counter()
        self._pace = 0.8 * self._pace + 0.2 * min(10.0, (now - self._last) / len(tickets))
        self._last = now

    # --- replies

    async def answer(self, plan: Plan, http: HttpRequest) -> Response:
        """The reply to a plan."""
        replies = Replies(self.lm, plan, self.model)
        log = http.scope.setdefault("unmask.log", {})
        log |= plan.log
        began = time.perf_counter()
        seconds = min(self.settings.timeout, plan.timeout or math.inf)
        tickets = await self.submit(plan)
        headers = {IGNORED: ascii(", ".join(plan.ignored))[1:-1][:1000]} if plan.ignored else {}
        if plan.stream:
            rings = _rings(http, tickets, began, seconds, self.settings.keep_alive)
            return _Stream(self._stream(plan, replies, tickets, rings, log), lambda: self.release(tickets), headers)
        try:
            async with aclosing(_rings(http, tickets, began, seconds)) as rings:
                async for _ in rings:
                    if all(ticket.ended for ticket in tickets):
                        break
            answers = self._answers(tickets, log)
            body = replies.whole(answers)
        finally:
            self.release(tickets)
        if self.settings.log_prompts:
            log["text"] = [answer.result.text for answer in answers]
        return Reply(body, headers=headers)

    def _answers(self, tickets: Sequence[Ticket], log: dict[str, Any]) -> list[Answer]:
        """The results of tickets that have ended.

        Raises:
            Refused: one of them has failed.
        """
        answers = []
        for ticket in tickets:
            if ticket.outcome is None:
                status, code = (503, "stopping") if self.draining else (500, "internal_error")
                raise Refused(status, ticket.failure or "the engine failed", code)
            answers.append(Answer(ticket, ticket.outcome, self.lm.result(ticket.outcome)))
        for answer in answers:
            self.metrics.ended(answer)
        stats = [answer.result.stats for answer in answers]
        log |= {"tokens": sum(one.tokens for one in stats), "nfe": sum(one.nfe for one in stats)}
        log["finish"] = ",".join(dict.fromkeys(answer.reason for answer in answers))
        failed = next((answer.result.error for answer in answers if answer.result.error is not None), None)
        if failed is not None:
            raise Refused(500, failed, "decoding_failed")
        return answers

    # --- streams

    async def _stream(
        self,
        plan: Plan,
        replies: Replies,
        tickets: Sequence[Ticket],
        rings: AsyncGenerator[bool, None],
        log: dict[str, Any],
    ) -> AsyncGenerator[Message, None]:
        """The messages of a streamed reply; those events are together that are there together, and the last ones end
        it. What goes wrong behind its first byte is an event as well.
        """
        sources = [_Choice(self, plan, replies, index, ticket) for index, ticket in enumerate(tickets)]
        parts = [_event(first) for source in sources if (first := replies.begin(source.index)) is not None]
        try:
            async with aclosing(rings):
                if parts:
                    yield _body(parts)
                    parts = []
                async for alive in rings:
                    if alive:
                        parts.append(b": alive\n\n")
                    for source in sources:
                        if source.due:
                            parts += map(_event, source.take(log))
                    if all(source.done for source in sources):
                        break
                    if parts:
                        yield _body(parts)
                        parts = []
            if plan.usage:
                parts.append(_event(replies.last([source.answer for source in sources if source.answer])))
            parts.append(b"data: [DONE]\n\n")
        except Refused as error:
            log["error"] = error.code
            parts.append(_event(error.body()))
        yield _body(parts, more=False)


class _Stream(Response):
    """A reply of server-sent events; ``over`` is called at its end, whether it has begun or not.

    Args:
        messages: what is sent behind the head; they end by themselves when the client has gone.
    """

    media_type = "text/event-stream"

    def __init__(
        self, messages: AsyncGenerator[Message, None], over: Callable[[], None], headers: Mapping[str, str]
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self.messages, self.over = messages, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for message in self.messages:
                await send(message)
        finally:
            await self.messages.aclose()
            self.over()


class _Choice:
    """One choice of a stream."""

    def __init__(self, service: Service, plan: Plan, replies: Replies, index: int, ticket: Ticket) -> None:
        self.service, self.plan, self.replies, self.index, self.ticket = service, plan, replies, index, ticket
        request = ticket.request
        lead = list(request.prompt)[request.begin :] if request.begin is not None and not plan.gap else []
        text = service.lm.text
        self.stable = Stable(text, request.params.stop, lead) if text else None
        self.reader = Reader(plan.offer) if plan.offer else None
        self.sure: dict[int, float] = {}
        self.answer: Answer | None = None

    @property
    def due(self) -> bool:
        """Whether there is something to take."""
        return not self.done and bool(self.ticket.told or self.ticket.ended or self.ticket.overrun)

    @property
    def done(self) -> bool:
        """Whether its last chunk has been taken."""
        return self.answer is not None

    def take(self, log: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """The chunks of what has happened since the last call.

        Raises:
            Refused: the response failed, or the client is too far behind.
        """
        ticket, chunks = self.ticket, []
        if ticket.overrun:
            raise Refused(400, f"the client is more than {BEHIND} forward passes behind", "stalled")
        while ticket.told:
            progress = ticket.told.popleft()
            frame = progress.frame
            if frame:
                self.sure.update({at: p for at, _, p in frame.committed})
            ids = self._own(progress.ids)
            delta = self.stable.push(ids) if self.stable else ""
            told = self.replies.step(frame) if frame and self.plan.steps else None
            own = self._delta(delta)
            if own or told:
                chunks.append(self.replies.chunk(self.index, own, told, **self._logs(delta)))
        if ticket.ended and not self.done:
            chunks.append(self._last(log))
        return chunks

    def _own(self, ids: list[int]) -> list[int]:
        """Of final tokens, those that belong to the text: before an end of text, and in front of a suffix."""
        request, spec = self.ticket.request, self.service.lm.spec
        if self.plan.gap and self.stable:
            ids = ids[: max(0, min(request.fixed, default=request.gen_length) - len(self.stable.ids))]
        closing = max(request.fixed, default=0)
        at = len(self.stable.ids) if self.stable else 0
        end = next((i for i, one in enumerate(ids) if one in spec.eos and at + i >= closing), None)
        return ids[:end]

    def _last(self, log: dict[str, Any]) -> dict[str, Any]:
        (answer,) = self.service._answers([self.ticket], log)
        text = self.replies.text(answer.result)
        rest = self.stable.finish(text) if self.stable else ""
        if rest is None:
            raise Refused(500, "the text that was streamed is no beginning of the response", "internal_error")
        self.answer = answer
        own = self._delta(rest, last=True)
        calls = self.reader is not None and self.reader.count > 0
        return self.replies.end(self.index, own, answer, calls, **self._logs(rest, answer))

    def _delta(self, text: str, last: bool = False) -> dict[str, Any]:
        """The delta of a chunk: the text, or what it says of calls."""
        if self.reader is None:
            return {"content": text} if text else {}
        own = self.reader.push(text)
        more = self.reader.finish() if last else {}
        return own | ({"content": own.get("content", "") + more["content"]} if more else {})

    def _logs(self, delta: str, answer: Answer | None = None) -> dict[str, Any]:
        """The probabilities of the tokens whose text is in a delta."""
        if not (self.plan.logprobs and self.stable):
            return {}
        known = self.stable.ids
        if answer:
            count = len(answer.result.spans[0].tokens) if self.plan.gap else answer.result.stats.tokens
            known = answer.result.tokens[:count]
            self.sure = dict(enumerate(answer.result.confidence))
        offset = len(self.replies.lead(self.index)) + len(self.stable.sent) - len(delta)
        before = self.stable.counted
        own = self.stable.tokens(known)
        return {"logprobs": self.replies.listed(own, [self.sure.get(before + at) for at in range(len(own))], offset)}


async def _rings(
    http: HttpRequest, tickets: Sequence[Ticket], began: float, seconds: float, keep_alive: float = math.inf
) -> AsyncGenerator[bool, None]:
    """Whenever there is news of tickets, which share one event; True every ``keep_alive`` seconds.

    Raises:
        Refused: 504, the time is over; 499, the client has left.
    """
    news, due = tickets[0].news, set[str]()
    loop = asyncio.get_running_loop()

    def ring(what: str) -> None:
        due.add(what)
        news.set()

    late = loop.call_later(max(0.0, began + seconds - time.perf_counter()), ring, "late")
    alive = loop.call_later(keep_alive, ring, "alive") if keep_alive < math.inf else late
    gone = asyncio.ensure_future(_gone(http))
    gone.add_done_callback(lambda _: ring("gone"))
    try:
        while True:
            await news.wait()
            news.clear()
            if "gone" in due:
                raise Refused(499, "the client has closed the connection", "client_closed_request")
            if "late" in due and not all(ticket.ended for ticket in tickets):
                raise Refused(504, f"the response has not ended within {seconds:g} seconds", "timeout")
            if again := "alive" in due:
                due.clear()
                alive = loop.call_later(keep_alive, ring, "alive")
            yield again
    finally:
        late.cancel()
        alive.cancel()
        gone.cancel()


async def _gone(http: HttpRequest) -> None:
    """Wait until the client has closed the connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _body(parts: Sequence[bytes], more: bool = True) -> Message:
    return {"type": "http.response.body", "body": b"".join(parts), "more_body": more}


def _event(value: Any) -> bytes:
    return b"data: %b\n\n" % _JSON.encode(value).encode("ascii")
