"""From the body of an HTTP request to requests of the engine."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar

from .. import registry
from ..constraints.calls import Calls
from ..constraints.compile import compile_constraint
from ..core.cache import Cache
from ..core.config import Configured
from ..core.errors import RequestError, SpecError
from ..core.policy import Policy
from ..engine.request import Request
from ..processor import Processor
from .calls import Offer, offered
from .errors import Refused, wrong
from .schema import MOST_STOPS, Chat, Completion, Infill
from .settings import Settings
from .wire import Watch

_NAMES = {"gen_length": "max_tokens"}  # what messages of the library call it, and what requests do
MAIN = {"text_completion": "prompt", "chat.completion": "messages", "infill": "text"}
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What an HTTP request asks for.

    Attributes:
        kind: ``text_completion``, ``chat.completion`` or ``infill``.
        requests: one for each response, ``n`` of a prompt one after the other.
        n: responses to each prompt.
        stream, usage: whether the reply is streamed, and ends with the usage then.
        steps: whether it tells what every forward pass does.
        logprobs, echo: as in the body.
        gap: whether the text is the one gap in front of a suffix.
        max_nfe: forward passes after which a response ends.
        timeout: seconds that the request may take; None: as many as any.
        ignored: names of fields that have no effect.
        log: what the log tells of it.
        offer: functions that a response may call; None: none.
    """

    kind: str
    requests: list[Request]
    n: int
    stream: bool
    usage: bool
    steps: bool
    logprobs: bool
    echo: bool
    gap: bool
    max_nfe: int | None
    timeout: float | None
    ignored: list[str]
    log: dict[str, Any] = field(default_factory=dict)
    offer: Offer | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def watch(self) -> Watch:
        """What the engine has to tell before the end."""
        if not self.stream:
            return Watch.NOTHING
        return Watch.STEPS if self.steps or self.logprobs else Watch.TEXT


class Planner:
    """Makes plans.

    Args:
        lm: the model.
        settings: defaults and limits.
        model: its name.

    Raises:
        SpecError: the default policy or cache cannot be used.
    """

    def __init__(self, lm: Processor, settings: Settings, model: str) -> None:
        self.lm, self.settings, self.model = lm, settings, model
        self.policy, self.cache = lm.setting(settings.policy, settings.cache)
        self.gen_length = settings.gen_length or lm.recommended.gen_length
        if settings.max_tokens is not None:
            self.gen_length = min(self.gen_length, settings.max_tokens)
        self._specs = lru_cache(maxsize=256)(self._known)

    def completion(self, body: Completion) -> Plan:
        """Of ``/v1/completions``."""
        ignored = self._begin(body)
        many = self._prompts(body.prompt)
        length = self._length("max_tokens", body.max_tokens)
        if body.suffix:
            return self._suffixed(body, many, length, ignored)
        options = self._options(body)
        requests = _named("prompt", lambda: self.lm.requests(many, length, chat=False, **options))
        requests = self._begun(requests, body.max_tokens)
        return self._plan("text_completion", body, requests, ignored, echo=bool(body.echo))

    def chat(self, body: Chat) -> Plan:
        """Of ``/v1/chat/completions``."""
        ignored = self._begin(body)
        if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
            raise wrong("max_tokens and max_completion_tokens differ; give one of them", "max_completion_tokens")
        name = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        most = body.max_completion_tokens or body.max_tokens
        length = self._length(name, most)
        if self.lm.text is None or not self.lm.text.chat:
            raise wrong(f"{self.model} has no chat template; use /v1/completions", "messages", "unsupported_parameter")
        options = self._options(body)
        text, said = self.lm.text, [_message(one) for one in body.messages]
        offer = offered(body, self.lm, self.model)
        ids = _named("messages", lambda: text.encode(said, tools=list(offer.tools) if offer else None))
        requests = _named("messages", lambda: self.lm.requests([ids], length, **options))
        requests = self._begun(requests, most)
        return self._plan("chat.completion", body, requests, ignored, offer=offer)

    def infill(self, body: Infill) -> Plan:
        """Of ``/v1/infill``."""
        ignored = self._begin(body)
        if body.stop:
            raise wrong("stop is not supported where a text is filled; its gaps say how long they are", "stop")
        options = self._options(body)
        texts = [body.text] if isinstance(body.text, str) or isinstance(body.text[0], int) else body.text
        if body.prompt is not None:
            given = body.prompt if isinstance(body.prompt, str) else [_message(one) for one in body.prompt]
            options |= {"prompts": [given], "chat": body.chat}
        requests = _named("text", lambda: self.lm.infill_requests(texts, **options))
        self._length("text", max(request.gen_length for request in requests))
        return self._plan("infill", body, requests, ignored)

    def _begin(self, body: Any) -> list[str]:
        """Refuse what concerns no prompt; the names of fields that have no effect."""
        if body.model is not None and body.model != self.model:
            known = f"the model {body.model!r:.100} is not served here; accepted is {self.model!r}"
            raise Refused(404, known, "model_not_found", "model")
        if isinstance(body.stop, list) and len(body.stop) > MOST_STOPS:
            raise wrong(f"stop has {len(body.stop)} texts; accepted are {MOST_STOPS}", "stop")
        ignored: list[str] = body.ignored()
        return ignored

    def _options(self, body: Any) -> dict[str, Any]:
        """Keywords of :meth:`Model.requests`."""
        policy, cache = self.setting(body.unmask.policy, body.unmask.cache)
        return {"policy": policy, "cache": cache, "n": body.n or 1, **body.sampling()}

    def setting(self, policy: str | None, cache: str | None) -> tuple[Policy, Cache]:
        """Policy and cache of a request.

        Raises:
            Refused: unknown, a value out of range, or one that reads files; names the parameter.
        """
        how = self.policy if policy is None else self._specs("policy", policy)
        if cache is not None:
            return how, self._specs("cache", cache)
        return how, self.cache if policy is None else self._specs("cache", "none")

    def _known(self, kind: str, spec: str) -> Any:
        own = self.policy if kind == "policy" else self.cache
        try:
            made: Configured = getattr(registry, kind)(spec)
        except SpecError as error:
            raise wrong(str(error), f"unmask.{kind}") from None
        if made == own:
            return own
        if not self.settings.allow_files and (name := next(_files(made), None)):
            raise wrong(
                f"{name} names a file or a model; requests may only do that where the server has --allow-files",
                f"unmask.{kind}",
                "unsupported_value",
            )
        return made

    def _prompts(self, prompt: Any) -> list[Any]:
        """A list of texts or of lists of ids."""
        many = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)
        if any(isinstance(one, str) for one in many) and self.lm.text is None:
            raise wrong("the model has no tokenizer; give prompt as ids", "prompt")
        return many

    def _length(self, name: str, given: int | None) -> int:
        most, context = self.settings.max_tokens, self.lm.spec.context
        length = self.gen_length if given is None else given
        limit = context if most is None else min(most, context)
        if length > limit:
            raise wrong(f"{name} is {length}; at most {limit} are accepted", name)
        return length

    def _begun(self, requests: list[Request], most: int | None) -> list[Request]:
        """Of policies that change lengths, responses begin with the server's gen_length at most, and become ``most``
        tokens at most, or what the server allows.
        """
        bound = self.settings.max_tokens if most is None else most
        return [
            replace(r, gen_length=min(r.gen_length, self.gen_length), most=bound) if r.policy.resizes else r
            for r in requests
        ]

    def _suffixed(self, body: Completion, many: list[Any], length: int, ignored: list[str]) -> Plan:
        """The gap between each prompt and the suffix."""
        text, spec = self.lm.text, self.lm.spec
        if body.stop:
            raise wrong("stop is not supported with suffix: all of max_tokens is filled", "stop")
        if text is None or not all(isinstance(one, str) for one in many):
            raise wrong("suffix needs a prompt of text and a model with a tokenizer", "suffix")
        options = self._options(body)

        def made() -> list[Request]:
            laid = [text.encode_gaps([part for part in (one, length, body.suffix) if part], spec.mask) for one in many]
            return self.lm.infill_requests(laid, **options)

        requests = [replace(one, begin=None) for one in _named("suffix", made)]
        return self._plan("text_completion", body, requests, ignored, echo=bool(body.echo), gap=True)

    def _constrained(self, requests: list[Request], offer: Offer | None) -> list[Request]:
        """The requests with their constraint, which is compiled here and not while others are decoded."""
        params = requests[0].params
        if not params.constraint and offer is None:
            return requests
        kind: str
        value: str | tuple[str, ...] | Calls
        [(kind, value)] = params.constraint.items() if offer is None else [("tools", offer.constraint)]
        made = compile_constraint(kind, value, self.lm.text, self.lm.spec, tuple(map(int, params.suppress)))
        return [replace(one, constraint=made) for one in requests]

    def _plan(
        self,
        kind: str,
        body: Any,
        requests: list[Request],
        ignored: list[str],
        echo: bool = False,
        gap: bool = False,
        offer: Offer | None = None,
    ) -> Plan:
        requests = _named(MAIN[kind], lambda: self._constrained(requests, offer))
        own = body.unmask
        usage = bool(body.stream_options and body.stream_options.include_usage)
        first = requests[0]
        log: dict[str, Any] = {
            "policy": str(first.policy),
            "cache": str(first.cache),
            "prompt_tokens": sum(len(one.prompt) for one in requests[:: body.n or 1]),
            "responses": len(requests),
        }
        return Plan(
            kind,
            requests,
            body.n or 1,
            bool(body.stream),
            usage,
            own.stream == "steps",
            bool(getattr(body, "logprobs", None)),
            echo,
            gap,
            own.max_nfe,
            own.timeout,
            ignored,
            log,
            offer,
        )


def _message(one: Any) -> dict[str, Any]:
    """A message as chat templates know it; OpenAI's newer name of the system's role is its older one."""
    return {**(one.model_extra or {}), "role": {"developer": "system"}.get(one.role, one.role), "content": one.content}


def _named(param: str, make: Callable[[], T]) -> T:
    """What ``make`` returns; an error names the parameter that it is about.

    Raises:
        Refused: what the library refuses.
    """
    try:
        return make()
    except RequestError as error:
        raise refusal(error, param) from None
    except RecursionError:
        raise wrong("the request holds objects or lists that are nested too deeply", None) from None


def refusal(error: RequestError, param: str) -> Refused:
    """What the library refuses, in the words of requests."""
    message = error.what
    found = re.match(r"\w+", message)
    name = found[0] if found and found[0] in _FIELDS else None
    for own, theirs in _NAMES.items():
        message = re.sub(rf"\b{own}\b", theirs, message)
    if "context" in message:
        return wrong(f"{param}: {message}", param, "context_length_exceeded")
    return wrong(message if name else f"{param}: {message}", _NAMES.get(name, name) if name else param)


_FIELDS = ("gen_length", *(name for name in Chat.model_fields if name not in ("messages", "model")))


def _files(made: Configured) -> Iterator[str]:
    """Parameters of a policy, and of those inside it, that name a file and do not have their default."""
    for f in dataclasses.fields(made):
        value = getattr(made, f.name)
        if isinstance(value, Configured):
            yield from _files(value)
        elif f.metadata.get("file") and value != f.default:
            yield f"{made.name}: {f.name}"


def numbered(requests: Sequence[Request], first: int) -> list[Request]:
    """The same requests with ids from ``first`` on."""
    return [replace(one, id=first + at) for at, one in enumerate(requests)]
