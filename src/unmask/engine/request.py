"""What is to be decoded, and how: one declaration of every sampling parameter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..core.config import param
from ..core.errors import RequestError
from ..core.values import integer, is_list, number

if TYPE_CHECKING:  # the command line declares its options by what stands here, and shall not wait for torch
    from ..constraints.automaton import Automaton
    from ..core.cache import Cache
    from ..core.canvas import ModelSpec
    from ..core.policy import Policy

SEEDS = 1 << 63


def wrapped(seed: int) -> int:
    """A seed that was counted on, in 64 bits."""
    return (seed + SEEDS) % (2 * SEEDS) - SEEDS


def _texts(name: str, value: Any) -> tuple[str, ...]:
    given = [] if value is None else [value] if isinstance(value, str) else value
    if not is_list(given) or not all(isinstance(one, str) and one for one in given):
        raise RequestError(f"{name} must be a text that is not empty, or a list of them; got {value!r:.80}")
    return tuple(dict.fromkeys(given))


def _tokens(name: str, value: Any) -> tuple[str | int, ...]:
    given = value.tolist() if hasattr(value, "tolist") else value
    given = [] if given is None else [given] if isinstance(given, str) or hasattr(given, "__index__") else given
    if not is_list(given):
        raise RequestError(f"{name} must be ids and texts of one token, in a list; got {value!r:.80}")
    return tuple(dict.fromkeys(i if isinstance(i, str) else integer(f"{name}: an id", i) for i in given))


def _schema(value: Any) -> str | None:
    """A JSON schema as text, in the order of its keys."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        if found is None and not isinstance(value, str):
            return None
        if isinstance(found, (Mapping, bool)):
            return json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"json_schema must be a JSON schema: {error}") from None
    raise RequestError(f"json_schema must be a JSON schema (an object, or true), got {value!r:.80}")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and where a response ends.

    The one declaration: keywords of :meth:`unmask.Model.generate`, options of the command line and keys of batch lines
    are these fields, with these defaults and descriptions.

    Raises:
        RequestError: a value out of range; names the parameter.
    """

    temperature: float = param(0.0, "sampling temperature; 0 is greedy", ge=0)
    top_p: float = param(1.0, "nucleus filter of sampling, in (0, 1]; 1: off", gt=0, le=1)
    top_k: int = param(0, "sample from the k likeliest tokens; 0: off", ge=0)
    seed: int | None = param(None, "sampling seed; none: a fresh one for each call")
    stop: tuple[str, ...] = param((), "the response ends before this text; can be several")
    suppress: tuple[str | int, ...] = param(
        (), "text of a token that is never generated (in Python and JSON also its id); can be several"
    )
    ignore_eos: bool = param(False, "fill all of gen_length, do not stop at an end of text")
    late_eos: bool = param(False, "commit an end of text only where nothing else is left to commit")
    regex: str | None = param(
        None, "the response matches all of this regular expression, as Python's re.fullmatch does"
    )
    json_schema: str | None = param(None, "the response is JSON that is valid by this schema", file=True)
    choices: tuple[str, ...] = param((), "the response is this text; can be several, of which it is one")

    def __post_init__(self) -> None:
        put: Any = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("temperature", number("temperature", self.temperature))
        if not 0 <= self.temperature < math.inf:
            raise RequestError(f"temperature must be a number >= 0 (0: greedy), got {self.temperature!r}")
        put("top_p", number("top_p", self.top_p))
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be a number in (0, 1] (1: off), got {self.top_p!r}")
        put("top_k", integer("top_k", self.top_k))
        if self.top_k < 0:
            raise RequestError(f"top_k must be at least 0 (0: off), got {self.top_k}")
        if self.seed is not None:
            put("seed", integer("seed", self.seed))
            if not -SEEDS <= self.seed < SEEDS:
                raise RequestError(f"seed must fit in 64 bits, got {self.seed}")
        put("stop", _texts("stop", self.stop))
        put("suppress", _tokens("suppress", self.suppress))
        put("json_schema", _schema(self.json_schema))
        put("choices", _texts("choices", self.choices))
        if self.regex is not None and not isinstance(self.regex, str):
            raise RequestError(f"regex must be a regular expression, got {self.regex!r:.80}")
        if len(self.constraint) > 1:
            raise RequestError(f"give one of {' and '.join(self.constraint)}, not both")
        for name in ("ignore_eos", "late_eos"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be True or False, got {getattr(self, name)!r}")

    @property
    def constraint(self) -> dict[str, str | tuple[str, ...]]:
        """What the text must be, by kind; nothing, or one."""
        kinds = {"regex": self.regex, "json_schema": self.json_schema, "choices": self.choices or None}
        return {kind: value for kind, value in kinds.items() if value is not None}


@dataclass(frozen=True)
class Request:
    """One prompt to decode.

    Attributes:
        id: names the request in events and results; unique among those that are being decoded.
        prompt: ids.
        gen_length: response length in tokens; where the policy changes lengths, the one to begin with.
        policy, cache: of this request alone; requests with equal ones share forward passes.
        params: with ``suppress`` as ids and a ``seed`` that is a number.
        fixed: tokens of the response that are given, {position in the response: id}.
        begin: where on the canvas the text of the result begins; None: behind the prompt.
        constraint: what that text must be; None: as ``params`` say. The engine compiles these when it is added.
        state: the state of ``constraint`` behind the prompt, set by the engine.
        most: tokens that the response may become where the policy changes lengths; None: as many as the policy says.
    """

    id: Any
    prompt: Sequence[int]
    gen_length: int
    policy: Policy
    cache: Cache
    params: SamplingParams = SamplingParams(seed=0)
    fixed: Mapping[int, int] = field(default_factory=dict)
    begin: int | None = None
    constraint: Automaton | None = None
    state: int = 0
    most: int | None = None

    def bare(self) -> Request:
        """What can be sent to another process: policy and cache as the specs that build them, and no constraint."""
        own: dict[str, Any] = {"policy": str(self.policy), "cache": str(self.cache), "constraint": None}
        prompt = self.prompt if isinstance(self.prompt, list) else list(self.prompt)  # one object for all n responses
        return replace(self, prompt=prompt, fixed=dict(self.fixed), **own)

    def longest(self, spec: ModelSpec) -> int:
        """Tokens that the response may become, within the model's context."""
        policy, context = self.policy.grows_to(self.gen_length), spec.context - len(self.prompt)
        return max(self.gen_length, min(policy, context, self.most or policy))

    def room(self, spec: ModelSpec) -> int:
        """Positions on the canvas that the response may take."""
        return self.policy.view(spec).room(len(self.prompt), self.longest(spec))

    def check(self, spec: ModelSpec) -> None:
        """Refuse what cannot be decoded; called once for each request.

        Raises:
            RequestError: see :func:`_check_request`; suppressed ids out of range or so many that no
                token is left, tokens given behind a masked position to a policy that goes from left to right, or what
                else the policy refuses. Its ``row`` is the request's id.
            ModelError: something else that the policy needs cannot be used.
        """
        from ..core.canvas import NO_MASK

        spec = self.policy.view(spec)
        _check_request(self.id, self.prompt, self.gen_length, spec, self.fixed)
        limit = min(spec.limit, spec.vocab)
        outside = [i for i in self.params.suppress if not 0 <= int(i) < spec.vocab]
        if outside:
            raise RequestError(f"suppress has the id {outside[0]}; accepted are 0 to {spec.vocab - 1}", self.id)
        if spec.mask == NO_MASK and not self.policy.renoises:
            raise RequestError(
                f"{self.policy} commits masked positions, but this model denoises uniform noise and has no mask token; "
                "use the policy renoise",
                self.id,
            )
        if spec.mask == NO_MASK:
            self._refuse("this model denoises uniform noise and commits whole canvases, in which no token can wait for "
                         "another; a model with a mask token is needed")  # fmt: skip
        if spec.ordered:
            self._refuse(f"{self.policy} keeps the distribution of the model's own text, which that would change; use "
                         "another policy, such as threshold")  # fmt: skip
        silent = {spec.mask, *spec.unknown, *map(int, self.params.suppress), *(spec.eos if self.inside else ())}
        if len({i for i in silent if 0 <= i < limit}) == limit:
            why = ", for an end of text cannot stand in front of given text" if self.inside else ""
            raise RequestError(f"suppress leaves no token to generate{why}", self.id)
        if self.fixed and self.policy.left_to_right:
            raise RequestError(
                f"{self.policy.name} decodes from left to right and cannot look at what stands behind a masked "
                "position: text behind a gap and fixed tokens need a policy that fills positions in any order, such as "
                "slowfast or threshold",
                self.id,
            )
        if self.params.late_eos and self.policy.left_to_right:
            raise RequestError(
                f"late_eos: {self.policy.name} commits from left to right, so that no position can wait for others; "
                "take a policy that fills positions in any order, such as slowfast or threshold",
                self.id,
            )
        self._check_length(spec)
        if spec.block is not None and self.inside:
            raise RequestError(
                f"the model decodes blocks of {spec.block} tokens in order and cannot see what stands behind a gap: "
                "fixed tokens behind masked positions need a model in which every position sees every other",
                self.id,
            )
        try:
            self.cache.check(spec)
            self.policy.check(self.prompt, self.gen_length, spec)
        except RequestError as error:
            raise error.of(self.id) from None

    def _check_length(self, spec: ModelSpec) -> None:
        """Refuse what needs a response whose length is known, of policies that change it."""
        if not self.policy.resizes:
            return
        asked = {"fixed": self.fixed, **self.params.constraint, "constraint": self.constraint}
        given = next((name for name, value in asked.items() if value), None)
        if given is not None:
            raise RequestError(
                f"{given}: {self.policy.name} changes the length of a response, so it is not known where given text "
                "stands and how much room a constraint has; use the policy inside",
                self.id,
            )
        if spec.block is not None:
            raise RequestError(
                f"{self.policy.name}: the model decodes blocks of {spec.block} tokens in order and sees nothing behind "
                "the current one, so that gen_length is only an upper bound already; use the policy inside",
                self.id,
            )

    def _refuse(self, why: str) -> None:
        """Refuse late ends of text and constraints, which make one token wait for others."""
        asked = {"late_eos": self.params.late_eos, **self.params.constraint, "constraint": self.constraint}
        for name, value in asked.items():
            if value:
                raise RequestError(f"{name}: {why}", self.id)

    @property
    def inside(self) -> bool:
        """Whether a masked position stands in front of a fixed token."""
        return bool(self.fixed) and len(self.fixed) <= max(self.fixed)


def _check_request(
    row: int, prompt: Sequence[int], gen_length: int, spec: ModelSpec, fixed: Mapping[int, int] | None = None
) -> None:
    """Refuse what no canvas can hold; ``row`` names the prompt in the message.

    Raises:
        RequestError: an empty prompt (allowed in front of fixed tokens, unless the model is shifted), ids out of range
            or the mask id in it, a response length below 1, more positions than the model's context, fixed tokens
            outside the response or at all of its positions.
    """
    if len(prompt) == 0 and (spec.shift or not fixed):
        raise RequestError("the prompt is empty; at least one token is needed", row)
    if gen_length < 1:
        raise RequestError(f"gen_length must be at least 1, got {gen_length}", row)
    if len(prompt) + gen_length > spec.context:
        raise RequestError(
            f"it has {len(prompt)} tokens and gen_length is {gen_length}: together "
            f"{len(prompt) + gen_length}, but the model's context is {spec.context}",
            row,
        )
    if len(prompt):
        _check_ids(row, "it", prompt, spec)
    if fixed:
        _check_ids(row, "fixed", list(fixed.values()), spec)
        odd = [at for at in fixed if not 0 <= at < gen_length]
        if odd:
            raise RequestError(
                f"fixed has the position {odd[0]}; accepted are 0 to {gen_length - 1}, "
                "counted from the start of the response",
                row,
            )
        if len(fixed) == gen_length:
            raise RequestError(f"fixed leaves nothing to decode: all {gen_length} tokens are given", row)


def _check_ids(row: int, name: str, ids: Sequence[int], spec: ModelSpec) -> None:
    low, high = min(ids), max(ids)
    if low < 0 or high >= spec.vocab:
        raise RequestError(f"{name} has the id {low if low < 0 else high}; accepted are 0 to {spec.vocab - 1}", row)
    if spec.mask in ids:
        raise RequestError(f"{name} contains the mask id {spec.mask}; masks are only allowed in the response", row)
