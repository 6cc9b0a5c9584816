"""Load a model, generate, stream."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from . import registry
from .checks import TEXTS, as_batch, check_chat, check_names, fixed_ids, per_row
from .core.cache import Cache
from .core.errors import ModelError, RequestError, SpecError
from .core.policy import Policy
from .core.values import integer, is_list
from .engine.loop import Step
from .engine.outcome import Event, Outcome
from .engine.request import Request, SamplingParams, wrapped
from .engine.scheduler import Engine
from .infill import lay_out
from .models import hub
from .models.denoiser import Denoiser
from .models.family import Recommended
from .models.graphs import Graphs
from .models.kernels import compiled
from .models.packing import Scheme
from .models.placement import pick_device, pick_dtype
from .models.quantised import left_to_itself
from .models.recommended import recommended
from .models.transformer import EAGER
from .models.weights import Checkpoint, load_denoiser
from .results import Result, result_of
from .scoring import score
from .text import Text

BUNDLED_NAME = "unmask-tiny"  # in results, traces and profiles
BUNDLED = hub.BUNDLED[BUNDLED_NAME]
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
Fixed = Mapping[int, int] | Sequence[Mapping[int, int] | None] | None
Params = SamplingParams | Sequence[SamplingParams] | None
_SAMPLES = 1 << 16  # of a prompt in one call: each is a request
_SAMPLING = tuple(f.name for f in fields(SamplingParams))


def load(
    path_or_id: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    block_length: int | None = None,
    cuda_graphs: str = "auto",
    quantize: str = "auto",
) -> Model:
    """Load a masked diffusion language model.

    Args:
        path_or_id: a Hugging Face folder, a hub id, the name of a bundled model, or None for ``unmask-tiny``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"auto"``: the first GPU, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or ``"auto"``: the checkpoint's own; float32
            where a CPU does not calculate in that.
        compile: let ``torch.compile`` fuse what stands between the products. The first forward passes take tens of
            seconds longer; see docs/speed.md for when it pays.
        revision: branch, tag or commit of a hub id.
        adapter: folder or hub id of a LoRA adapter (peft's format), which is merged into the weights; None: the one in
            the model's folder, if there is one.
        block_length: of a block-causal model such as SDAR; None: what its config or name says. It is a property of the
            weights; policies have a parameter of the same name.
        cuda_graphs: ``"auto"``: on CUDA the layers of short forward passes are recorded and launched at once;
            ``"off"``: never.
        quantize: ``"int8"``: weights and activations of the layers in 8 bits, products of integers; ``"int4"``: weights
            in 4 bits; with ``"+head"`` the head as well; ``"none"``: floating point numbers; ``"auto"``: as the
            checkpoint is stored. See docs/quantize.md.

    Raises:
        ModelError: no such model, unsupported family or variant, missing, truncated or mismatched weights, unknown
            device, dtype or kind of quantisation, nothing to compile with, a block length that is not known.
    """
    if not isinstance(compile, bool):
        raise ModelError(f"compile must be True or False, got {compile!r}")
    if cuda_graphs not in ("auto", "off"):
        raise ModelError(f"cuda_graphs must be 'auto' or 'off', got {cuda_graphs!r}")
    path = BUNDLED if path_or_id is None else path_or_id
    checkpoint = Checkpoint.find(path, revision=revision, adapter=adapter, block_length=block_length)
    scheme = Scheme.parse(quantize, checkpoint.stored)
    where = pick_device(device)
    kind = pick_dtype(dtype, checkpoint, where)
    text = Text.find(checkpoint.folder, checkpoint.control)
    spec = checkpoint.spec(len(text) if text else None, text.eos if text else ())
    if text:
        unknown = tuple(i for i in text.unknown if i < spec.limit)
        spec = replace(spec, tokenizer=str(checkpoint.folder), unknown=unknown)
    rounds = scheme is not None and scheme.kind == "int8"
    kernels = compiled(EAGER, where.type, rounds=rounds) if compile else EAGER  # refused before weights are read
    if compile:
        left_to_itself()
    denoiser = load_denoiser(checkpoint, spec, where, kind, scheme)
    denoiser.network.use(kernels)
    if cuda_graphs == "auto" and where.type == "cuda" and not denoiser.network.waits:
        denoiser.graphs = Graphs()
    return Model(denoiser, text, recommended(checkpoint))


PLAIN = Recommended("vanilla", "none", 128, "the published baseline")


class Model:
    """A loaded model.

    Attributes:
        denoiser: the network with its ids.
        text: the tokenizer; None without one.
        recommended: the setting of requests that name none.
    """

    def __init__(self, denoiser: Denoiser, text: Text | None, recommended: Recommended = PLAIN) -> None:
        self.denoiser = denoiser
        self.text = text
        self.recommended = recommended
        self._policies: dict[str, Policy] = {}  # what they have loaded, such as a verifier, lives as long as the model

    def generate(
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
        batch_size: int = 32,
        memory: int | None = None,
        **sampling: Any,
    ) -> list[Result]:
        """Generate a response, or ``n`` of them, to each prompt.

        Args:
            prompts: a string, a list (or array) of ids, a conversation ``[{"role": ..., "content": ...}, ...]``, or a
                list of any of these. Lengths may differ. Strings are text: names of control tokens in them stay text.
            gen_length: response length in tokens, exact unless the policy changes it; one number, or one per prompt.
                None: the model's recommendation.
            policy, cache: specs such as ``"slowfast(tau_high=0.9)"`` and ``"dllm(kp=25,kr=5)"``, or objects. None: the
                model's recommendation; a policy given without a cache has none.
            params: a :class:`~unmask.engine.request.SamplingParams`, or one per prompt.
            chat: wrap strings in the chat template (default: when the model is a chat model).
            fixed: tokens of the response that are given, {position in the response: id}; one mapping for every prompt,
                or a list of them. No end of text is generated in front of them.
            n: samples of each prompt.
            batch_size: most responses decoded at a time; the next enters as one leaves.
            memory: most bytes that the responses being decoded may take; see :class:`~unmask.engine.scheduler.Engine`.
            sampling: fields of :class:`~unmask.engine.request.SamplingParams` by name, such as ``temperature=0.7``, in
                place of ``params``. ``seed`` may be one per prompt; with one number ``seed``, the i-th response has
                the seed ``seed + i``. Noise depends on (seed, position, step) alone, not on the batch.

        Returns:
            Results in the order of the prompts, ``n`` of each one after the other. A response that failed has the
            finish reason ``"error"`` and says why in ``error``; the others are whole.

        Raises:
            RequestError: empty batch or prompt, mask id in a prompt, too long for the context, values out of range.
            SpecError: unknown policy, cache or parameter.
        """
        requests = self.requests(
            prompts, gen_length, policy, cache, params=params, chat=chat, fixed=fixed, n=n, **sampling
        )
        return self._all(requests, batch_size, memory)

    def infill(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        policy: str | Policy | None = None,
        cache: str | Cache | None = None,
        *,
        prompts: Prompt | Sequence[Prompt] | None = None,
        params: Params = None,
        chat: bool | None = None,
        n: int = 1,
        batch_size: int = 32,
        memory: int | None = None,
        **sampling: Any,
    ) -> list[Result]:
        r"""Fill the gaps of texts; every token that is given stays as it is.

        Args:
            texts: a string with gaps ``[MASK]`` (one token) or ``[MASK*12]``, or a list (or array) of ids with mask ids
                among them, or a list of these. ``\[MASK]`` is the text itself. No chat template is applied.
            policy, cache, params, n, batch_size, memory, sampling: see :meth:`generate`; policies that go from left to
                right fill one gap at the end alone. Only a gap at the end of a text can hold an end of text.
            prompts: what comes before the texts, one for all or one for each, encoded as :meth:`generate` does; not
                part of the results' text.
            chat: wrap ``prompts`` in the chat template.

        Returns:
            Results in the order of the texts; ``spans`` are the gaps.

        Raises:
            RequestError: no gap, one that cannot be read, too long for the context, values out of range, another option
                (a gap says how long it is, what is fixed stands in the text), a policy that cannot fill the gaps.
            SpecError: unknown policy, cache or parameter.
        """
        requests = self.infill_requests(
            texts, policy, cache, prompts=prompts, params=params, chat=chat, n=n, **sampling
        )
        return self._all(requests, batch_size, memory)

    def score_choices(
        self, prompt: Prompt | None, template: str, choices: Sequence[Any], *, chat: bool | None = None
    ) -> list[dict[str, float]]:
        """How probable each of several texts is in each gap of a template, read in one forward pass.

        ``prompt``: what comes before; None: nothing. For the rest see :func:`unmask.scoring.score`.
        """
        front = None if prompt is None else self._ids(0, prompt, chat)
        return score(self.denoiser, self.text, registry.cache("none"), front, template, choices)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_length: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        cache: str | Cache | None = None,
        *,
        batch_size: int = 32,
        memory: int | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """As :meth:`generate`, but yields each :class:`~unmask.engine.loop.Step` as it happens."""
        requests = self.requests(prompts, gen_length, policy, cache, **options)
        return (event for event in self.run(requests, batch_size, memory) if isinstance(event, Step))

    def run(self, requests: Sequence[Request], batch_size: int = 32, memory: int | None = None) -> Iterator[Event]:
        """Decode prepared requests; yields every event of the engine as it happens.

        Raises:
            RequestError, ModelError: a request that cannot be decoded, before anything is.
        """
        engine = self.engine(batch_size, memory)
        for request in requests:
            engine.add(request)

        def events() -> Iterator[Event]:
            while engine.busy:
                yield from engine.step()

        return events()

    def engine(self, batch_size: int = 32, memory: int | None = None) -> Engine:
        """An engine of its own, to which requests can be added at any time."""
        return Engine(self.denoiser, self.text, batch_size=batch_size, memory=memory)

    def result(self, outcome: Outcome) -> Result:
        """The result of a request that has ended."""
        return result_of(outcome, self.text, self.denoiser.spec)

    def _all(self, requests: Sequence[Request], batch_size: int, memory: int | None) -> list[Result]:
        outcomes = {
            event.request.id: event for event in self.run(requests, batch_size, memory) if isinstance(event, Outcome)
        }
        return [self.result(outcomes[r.id]) for r in requests]

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
        """Encode prompts into requests with the ids 0, 1, ...; see :meth:`generate`. The engine checks them."""
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
        """Encode texts with gaps into requests; see :meth:`infill`."""
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
        laid = [lay_out(i, t, self.text, self.denoiser.spec, fronts[i]) for i, t in enumerate(many)]
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
            exact = "none" if self.denoiser.spec.block is None else "blockwise"
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
