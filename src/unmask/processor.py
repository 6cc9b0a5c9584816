"""What turns prompts into requests, and outcomes into results."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from . import registry
from .checks import TEXTS, as_batch, check_chat, check_names, fixed_ids, per_row
from .core.cache import Cache
from .core.canvas import ModelSpec
from .core.errors import RequestError, SpecError
from .core.policy import Policy
from .core.values import integer, is_list
from .engine.outcome import Outcome
from .engine.request import Request, SamplingParams, wrapped
from .infill import lay_out
from .models.family import Recommended
from .results import Result, result_of
from .text import Text

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
Fixed = Mapping[int, int] | Sequence[Mapping[int, int] | None] | None
Params = SamplingParams | Sequence[SamplingParams] | None
PLAIN = Recommended("vanilla", "none", 128, "the published baseline")
_SAMPLES = 1 << 16  # of a prompt in one call: each is a request
_SAMPLING = tuple(f.name for f in fields(SamplingParams))


class Processor:
    """A model without its weights: what it makes of prompts, and of what has been decoded. Can be pickled.

    Attributes:
        spec: the model's ids and lengths.
        text: the tokenizer; None without one.
        recommended: the setting of requests that name none.
    """

    def __init__(self, spec: ModelSpec, text: Text | None, recommended: Recommended = PLAIN) -> None:
        self.spec = spec
        self.text = text
        self.recommended = recommended
        self._policies: dict[str, Policy] = {}  # what they have loaded, such as a verifier, lives as long as the model

    def result(self, outcome: Outcome) -> Result:
        """The result of a request that has ended."""
        return result_of(outcome, self.text, self.spec)

    def requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_length: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        cache: str | Cache | None = None,
        *,
        params: Params = None,
        chat: bool | None = None,
        fixed: Fixed = None,
        n: int = 1,
        **sampling: Any,
    ) -> list[Request]:
        """Encode prompts into requests with the ids 0, 1, ...; see :meth:`unmask.Model.generate`. The engine checks
        them.
        """
        many = as_batch(prompts)
        check_chat(chat)
        count = integer("n", n)
        if not 1 <= count <= _SAMPLES:
            raise RequestError(f"n must be from 1 to {_SAMPLES}, got {n}")
        lengths = per_row("gen_length", self.recommended.gen_length if gen_length is None else gen_length, len(many))
        how, kept = self.setting(policy, cache)
        ids = [self._ids(i, p, chat) for i, p in enumerate(many)]
        given = fixed_ids(fixed, len(many))
        each = self._params(params, sampling, len(many), count)
        return [
            Request(i, ids[i // count], lengths[i // count], how, kept, own, given[i // count])
            for i, own in enumerate(each)
        ]

    def infill_requests(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        policy: str | Policy | None = None,
        cache: str | Cache | None = None,
        *,
        prompts: Prompt | Sequence[Prompt] | None = None,
        chat: bool | None = None,
        **options: Any,
    ) -> list[Request]:
        """Encode texts with gaps into requests; see :meth:`unmask.Model.infill`."""
        check_chat(chat)
        check_names("infill", options, ("params", "n", *(name for name in _SAMPLING if name != "stop")))
        many = as_batch(texts, TEXTS)
        fronts: Sequence[list[int] | None] = [None] * len(many)
        if prompts is not None:
            given = as_batch(prompts)
            if len(given) not in (1, len(many)):
                raise RequestError(f"prompts has {len(given)} values for {len(many)} texts")
            encoded = [self._ids(i, p, chat) for i, p in enumerate(given)]
            fronts = encoded if len(given) == len(many) else encoded * len(many)
        laid = [lay_out(i, t, self.text, self.spec, fronts[i]) for i, t in enumerate(many)]
        requests = self.requests(
            [one.prompt for one in laid],
            [one.gen_length for one in laid],
            policy,
            cache,
            fixed=[one.fixed for one in laid],
            **options,
        )
        count = len(requests) // len(many)
        return [replace(r, begin=laid[i // count].begin) for i, r in enumerate(requests)]

    def setting(self, policy: str | Policy | None = None, cache: str | Cache | None = None) -> tuple[Policy, Cache]:
        """Policy and cache from specs, objects, or the model's recommendation where None is given; with a policy alone
        the cache is ``none``, of block models ``blockwise``. The policy of a spec is the same object each time.

        Raises:
            SpecError: unknown policy, cache or parameter.
        """
        if cache is None:
            exact = "none" if self.spec.block is None else "blockwise"
            cache = self.recommended.cache if policy is None else exact
        own = policy is None
        how: str | Policy = self.recommended.policy if policy is None else policy
        try:
            if isinstance(how, str) and how not in self._policies:
                self._policies[how] = registry.policy(how)
            return self._policies[how] if isinstance(how, str) else registry.policy(how), registry.cache(cache)
        except SpecError as error:
            raise SpecError(f"{self.recommended.source}: {error}" if own else str(error)) from None

    def _params(self, params: Params, sampling: Mapping[str, Any], prompts: int, n: int) -> list[SamplingParams]:
        """Those of each response, with seeds that are numbers and suppressed tokens as ids."""
        check_names("generate", sampling, _SAMPLING)
        if params is not None and sampling:
            raise RequestError(f"give params or {next(iter(sampling))}, not both")
        seeds: list[int] | None = None
        if params is None:
            own = dict(sampling)
            seed = own.pop("seed", None)
            seed = seed.tolist() if hasattr(seed, "tolist") else seed
            if is_list(seed):
                seeds, seed = per_row("seed", seed, prompts), None
            given = [SamplingParams(**own, seed=seed)] * prompts
        elif isinstance(params, SamplingParams):
            given = [params] * prompts
        else:
            given = list(params)
            if len(given) != prompts or not all(isinstance(one, SamplingParams) for one in given):
                raise RequestError(f"params must be a SamplingParams, or one for each of {prompts} prompts")
            seeds = None
        fresh, each = secrets.randbits(48), isinstance(params, Sequence)
        made = []
        for i in range(prompts * n):
            one, sample = given[i // n], i % n
            if seeds is not None:
                seed = seeds[i // n] + sample
            elif one.seed is None:
                seed = fresh + i
            else:
                seed = one.seed + (sample if each else i)
            made.append(replace(one, seed=wrapped(seed), suppress=tuple(map(self._token, one.suppress))))
        return made

    def _token(self, token: str | int) -> int:
        if isinstance(token, int):
            return token
        if self.text is None:
            raise RequestError("suppress: the model has no tokenizer.json; give ids")
        try:
            return self.text.token(token)
        except RequestError as error:
            raise RequestError(f"suppress: {error}") from None

    def _ids(self, index: int, prompt: Prompt, chat: bool | None) -> list[int]:
        written = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping))
        if written and self.text is None:
            raise RequestError("the model has no tokenizer.json; give prompts as lists of ids", index)
        try:
            if written and self.text is not None:
                return self.text.encode(prompt, chat)  # type: ignore[arg-type]
            return [integer("an id", i) for i in prompt]
        except RequestError as error:
            raise error.of(index) from None
