"""Replies in OpenAI's shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.outcome import Outcome
from ..processor import Processor
from ..results import Result
from .calls import message
from .frames import Frame, Place
from .plan import Plan
from .worker import Ticket

_PREFIX = {"text_completion": "cmpl-", "chat.completion": "chatcmpl-", "infill": "infill-"}
_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "abort": "length"}


@dataclass
class Answer:
    """A response that has ended: its ticket, its outcome and its result."""

    ticket: Ticket
    outcome: Outcome
    result: Result

    @property
    def reason(self) -> str:
        """Why it ended; ``max_nfe`` where the request's limit ended it."""
        return "max_nfe" if self.ticket.limited and self.result.finish_reason == "abort" else self.result.finish_reason


class Replies:
    """Makes the objects of one reply.

    Args:
        lm: the model.
        plan: what was asked for.
        model: the model's name.
    """

    def __init__(self, lm: Processor, plan: Plan, model: str) -> None:
        self.lm, self.plan = lm, plan
        self.common = {"id": _PREFIX[plan.kind] + plan.id, "created": int(time.time()), "model": model}
        self.chat = plan.kind == "chat.completion"

    def text(self, result: Result) -> str:
        """The text of a response, without what echo puts in front."""
        return result.spans[0].text if self.plan.gap else result.text

    def lead(self, index: int) -> str:
        """What echo puts in front of a response."""
        request = self.plan.requests[index]
        return self.lm.text.decode(list(request.prompt)) if self.plan.echo and self.lm.text else ""

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The reply that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            result = answer.result
            text = self.lead(index) + self.text(result)
            said = {"content": text} if self.plan.offer is None else message(self.plan.offer, text)
            own: dict[str, Any] = {"index": index, "finish_reason": self.reason(answer, "tool_calls" in said)}
            own |= {"message": {"role": "assistant", "refusal": None, **said}} if self.chat else {"text": text}
            own["logprobs"] = self.logprobs(index, answer) if self.plan.logprobs else None
            choices.append(own | {"unmask": self.details(answer)})
        return {**self.common, "object": self.plan.kind, "choices": choices, **self.totals(answers)}

    def reason(self, answer: Answer, calls: bool) -> str:
        """OpenAI's name of why a response ended; ``calls``: it calls functions."""
        own = _REASONS[answer.result.finish_reason]
        return "tool_calls" if calls and answer.result.finish_reason != "abort" else own

    def totals(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """``usage`` and the sums of ``unmask``."""
        prompt = sum(len(answer.result.prompt_tokens) for answer in answers[:: self.plan.n])
        tokens = sum(answer.result.stats.tokens for answer in answers)
        nfe = sum(answer.result.stats.nfe for answer in answers)
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        first = self.plan.requests[0]
        setting = {"policy": str(first.policy), "cache": str(first.cache)}
        return {"usage": usage, "unmask": {**setting, "nfe": nfe, "tpf": round(tokens / nfe, 4) if nfe else 0.0}}

    def details(self, answer: Answer) -> dict[str, Any]:
        """The object ``unmask`` of one choice."""
        result, ticket = answer.result, answer.ticket
        own: dict[str, Any] = {
            "finish_reason": answer.reason,
            "nfe": result.stats.nfe,
            "tpf": round(result.stats.tpf, 4),
            "tokens": result.stats.tokens,
            "positions": round(result.stats.positions, 2),
            "seed": result.seed,
            "seconds": round(ticket.seconds, 4),
            "first_token_seconds": None if ticket.first is None else round(ticket.first, 4),
        }
        if self.plan.kind == "infill":
            own["spans"] = [{"start": span.start, "text": span.text} for span in result.spans]
        return own

    # --- chunks of a stream

    def chunk(
        self, index: int, delta: Mapping[str, Any], unmask: Mapping[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """One chunk of a choice; ``delta``: as of a chat."""
        own: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
        own |= {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        own |= more
        if unmask is not None:
            own["unmask"] = unmask
        kind = "chat.completion.chunk" if self.chat else self.plan.kind
        return {**self.common, "object": kind, "choices": [own]}

    def begin(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice; None where there is nothing to tell."""
        told = self.start(index) if self.plan.steps else None
        if self.chat:
            return self.chunk(index, {"role": "assistant", "content": None if self.plan.offer else ""}, told)
        lead = self.lead(index)
        return self.chunk(index, {"content": lead}, told) if lead or told else None

    def end(
        self, index: int, delta: Mapping[str, Any], answer: Answer, calls: bool = False, **more: Any
    ) -> dict[str, Any]:
        """The last chunk of a choice; ``calls``: it has called functions."""
        told: dict[str, Any] = self.details(answer)
        if self.plan.steps:
            told = {"event": "end", **told, "canvas": self.ids(index, answer)}
        return self.chunk(index, delta, told, finish_reason=self.reason(answer, calls), **more)

    def last(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk with the usage."""
        kind = "chat.completion.chunk" if self.chat else self.plan.kind
        return {**self.common, "object": kind, "choices": [], **self.totals(answers)}

    def start(self, index: int) -> dict[str, Any]:
        """The event ``start``: what the canvas holds before the first forward pass."""
        request = self.plan.requests[index]
        fixed = sorted(request.fixed.items())
        return {
            "event": "start",
            "prompt": self.pieces(list(request.prompt)),
            "length": request.gen_length,
            "fixed": [{"at": at, "id": i, "text": text} for (at, i), text in
                      zip(fixed, self.pieces([i for _, i in fixed]), strict=True)],
            "policy": str(request.policy),
            "cache": str(request.cache),
            "seed": request.params.seed,
        }  # fmt: skip

    def step(self, frame: Frame) -> dict[str, Any]:
        """The event ``step``: what one forward pass did."""
        return {
            "event": "step",
            "step": frame.step,
            "committed": self._places(frame.committed),
            "remasked": frame.remasked,
            "provisional": self._places(frame.provisional),
            "masked": frame.masked,
            "length": frame.length,
            "phases": frame.phases,
            "notes": frame.notes,
        }

    def _places(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        texts = self.pieces([i for _, i, _ in places])
        return [
            {"at": at, "id": i, "text": text, "p": round(max(0.0, p), 4)}
            for (at, i, p), text in zip(places, texts, strict=True)
        ]

    def ids(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        """All tokens of a response that were generated or given, up to its end."""
        result = answer.result
        mask, end = self.lm.spec.mask, len(result.tokens)
        if not self.plan.requests[index].fixed:
            end = min(end, result.stats.tokens)
        texts = self.pieces(result.tokens[:end])
        return [
            {"at": at, "id": i, "text": texts[at], "p": round(result.confidence[at], 4), "step": result.steps[at]}
            for at, i in enumerate(result.tokens[:end])
            if i != mask
        ]

    # --- probabilities

    def logprobs(self, index: int, answer: Answer) -> dict[str, Any]:
        """Of all tokens of a response."""
        result = answer.result
        count = sum(len(span.tokens) for span in result.spans) if self.plan.gap else result.stats.tokens
        ids, sure = result.tokens[:count], result.confidence[:count]
        lead = list(self.plan.requests[index].prompt) if self.plan.echo else []
        return self.listed([*lead, *ids], [None] * len(lead) + [*sure], 0)

    def listed(self, ids: Sequence[int], sure: Sequence[float | None], offset: int) -> dict[str, Any]:
        """The object ``logprobs`` of tokens whose text begins at ``offset``; None: a token that was not generated."""
        texts = self.pieces(ids)
        logs = [None if p is None or p <= 0 else round(math.log(min(1.0, p)), 6) for p in sure]
        if self.chat:
            return {"content": [_token(text, log) for text, log in zip(texts, logs, strict=True)], "refusal": None}
        offsets = [offset + len(self._shown(ids[:at])) for at in range(len(ids))]
        top = [None if log is None else {text: log} for text, log in zip(texts, logs, strict=True)]
        return {"tokens": texts, "token_logprobs": logs, "top_logprobs": top, "text_offset": offsets}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id; the ids themselves where the model has no tokenizer."""
        return self.lm.text.pieces(list(ids)) if self.lm.text else [f"<{i}>" for i in ids]

    def _shown(self, ids: Sequence[int]) -> str:
        return self.lm.text.decode(list(ids)) if self.lm.text else ""


def _token(text: str, log: float | None) -> dict[str, Any]:
    known = None if "\ufffd" in text else list(text.encode())
    own = {"token": text, "logprob": -9999.0 if log is None else log, "bytes": known}
    return {**own, "top_logprobs": [dict(own)]}
