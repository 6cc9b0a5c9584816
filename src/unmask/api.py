"""Load a model, generate, stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

from . import registry
from .checks import TEXTS, as_batch, banned_ids, check_names, check_sampling, fixed_ids, integer, per_row, stop_texts
from .core.canvas import check_request
from .core.errors import ModelError, RequestError
from .core.heap import keep_freed
from .core.precision import native
from .core.protocols import Cache, Policy
from .engine.batch import Request, check, run
from .engine.loop import State, Step
from .infill import lay_out
from .models.denoiser import Denoiser
from .models.kernels import compiled
from .models.transformer import EAGER
from .models.weights import DTYPES, Checkpoint, load_denoiser
from .results import Result, result_of
from .stop import Stops
from .text import Text

if TYPE_CHECKING:
    from typing_extensions import Unpack

SHIPPED = Path(__file__).parent / "assets" / "tiny"
SHIPPED_NAME = "shipped"  # in results, traces and profiles
Prompt = str | Sequence[int] | Sequence[dict[str, str]]
Banned = str | int | Sequence[str | int] | Sequence[Sequence[str | int]] | None
Stop = str | Sequence[str] | None
Fixed = Mapping[int, int] | Sequence[Mapping[int, int] | None] | None


class Options(TypedDict, total=False):
    """What :meth:`Model.generate` and :meth:`Model.infill` both take by name; see there."""

    temperature: float
    top_p: float
    top_k: int
    seed: int | Sequence[int]
    eos_stop: bool
    chat: bool | None
    banned: Banned


class StreamOptions(Options, total=False):
    """What :meth:`Model.stream` takes besides."""

    fixed: Fixed
    stop: Stop


def load(
    path_or_id: str | Path | None = None, device: str = "auto", dtype: str = "auto", compile: bool = False
) -> Model:
    """Load a masked diffusion language model.

    Args:
        path_or_id: a Hugging Face folder, a hub id, or None for the small model that ships with the package.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"auto"``: the first GPU, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or ``"auto"``: the checkpoint's own; float32
            where a CPU does not calculate in that.
        compile: let ``torch.compile`` fuse what stands between the products. The first forwards take tens of seconds
            longer; see docs/speed.md for when it pays.

    Raises:
        ModelError: no such model, unsupported family or variant, missing, truncated or mismatched weights, unknown
            device or dtype, nothing to compile with.
    """
    if not isinstance(compile, bool):
        raise ModelError(f"compile must be True or False, got {compile!r}")
    checkpoint = Checkpoint.find(SHIPPED if path_or_id is None else path_or_id)
    where = pick_device(device)
    kind = pick_dtype(dtype, checkpoint, where)
    if where.type == "cpu":
        keep_freed()
    text = Text.find(checkpoint.folder)
    spec = checkpoint.spec(len(text) if text else None, text.eos if text else ())
    spec = replace(spec, tokenizer=str(checkpoint.folder) if text else None)
    kernels = compiled(EAGER, where.type) if compile else EAGER  # refused before weights are read
    denoiser = load_denoiser(checkpoint, spec, where, kind)
    denoiser.network.use(kernels)
    return Model(denoiser, text)


class Model:
    """A loaded model. ``denoiser`` and ``text`` (None without tokenizer) are its parts."""

    def __init__(self, denoiser: Denoiser, text: Text | None) -> None:
        self.denoiser = denoiser
        self.text = text
        self._policies: dict[str, Policy] = {}  # what they have loaded, such as a verifier, lives as long as the model

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_length: int | Sequence[int] = 128,
        policy: str | Policy = "slowfast",
        cache: str | Cache = "none",
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | Sequence[int] = 0,
        eos_stop: bool = True,
        batch_size: int = 32,
        chat: bool | None = None,
        banned: Banned = None,
        fixed: Fixed = None,
        stop: Stop = None,
    ) -> list[Result]:
        """Generate one response per prompt.

        Args:
            prompts: a string, a list (or array) of ids, a conversation ``[{"role": ..., "content": ...}, ...]``, or a
                list of any of these. Lengths may differ. Strings are text: names of control tokens in them stay text.
            gen_length: response length in tokens, exact; one number, or one per prompt.
            policy, cache: specs such as ``"slowfast(tau_high=0.9)"`` and ``"dllm(kp=25,kr=5)"``, or objects.
            temperature: of sampling; 0 is greedy. Confidence is always the untempered probability.
            top_p, top_k: nucleus and top-k filters of sampling; 1 and 0 switch them off.
            seed: one number for every prompt, or one per prompt. Noise depends on (seed, position, step) alone: a
                prompt samples the same text in any batch.
            eos_stop: finish a response at an end of text with no mask before it; False fills all of ``gen_length``.
            batch_size: most prompts decoded at a time; the next enters as one leaves.
            chat: wrap strings in the chat template (default: when the model has one).
            banned: tokens that are never said: ids, or texts of one token; a list for every prompt, or a list of lists.
            fixed: tokens of the response that are given, {position in the response: id}; one mapping for every prompt,
                or a list of them. No end of text is said in front of them.
            stop: texts that the responses end before, one or a list; the name of a control token stops at that token.
                A row leaves as soon as one is complete with no mask before it; policies that take tokens back
                (``wino``, ``saber``) and ``eos_stop=False`` decode on, and the text is cut.

        Returns:
            Results in the order of the prompts.

        Raises:
            RequestError: empty batch or prompt, mask id in a prompt, too long for the context, values out of range.
            SpecError: unknown policy, cache or parameter.
        """
        requests = self.requests(
            prompts,
            gen_length,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            eos_stop=eos_stop,
            chat=chat,
            banned=banned,
            fixed=fixed,
            stop=stop,
        )
        return self._all(requests, policy, cache, batch_size)

    def infill(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        policy: str | Policy = "slowfast",
        cache: str | Cache = "none",
        *,
        prompts: Prompt | Sequence[Prompt] | None = None,
        batch_size: int = 32,
        **options: Unpack[Options],
    ) -> list[Result]:
        r"""Fill the gaps of texts; every token that is given stays as it is.

        Args:
            texts: a string with gaps ``[MASK]`` (one token) or ``[MASK*12]``, or a list (or array) of ids with mask ids
                among them, or a list of these. ``\[MASK]`` is the text itself. No chat template is applied.
            policy, cache, batch_size: see :meth:`generate`; policies that go from left to right fill one gap at the end
                alone.
            prompts: what comes before the texts, one for all or one for each, encoded as :meth:`generate` does (chat
                template when there is one); not part of the results' text.
            options: ``temperature``, ``top_p``, ``top_k``, ``seed``, ``eos_stop``, ``chat`` and ``banned`` as in
                :meth:`generate`. Only a gap at the end of a text can hold an end of text.

        Returns:
            Results in the order of the texts; ``spans`` are the gaps.

        Raises:
            RequestError: no gap, one that cannot be read, too long for the context, values out of range, another option
                (a gap says how long it is, what is fixed stands in the text), a policy that cannot fill the gaps.
            SpecError: unknown policy, cache or parameter.
        """
        return self._all(self.infill_requests(texts, prompts=prompts, **options), policy, cache, batch_size)

    def _all(
        self, requests: Sequence[Request], policy: str | Policy, cache: str | Cache, batch_size: int
    ) -> list[Result]:
        results: dict[int, Result] = {}
        for state, step in self.run(requests, policy, cache, batch_size):
            if step.finished:
                results.update(self.results(state))
        return [results[r.row] for r in requests]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_length: int | Sequence[int] = 128,
        policy: str | Policy = "slowfast",
        cache: str | Cache = "none",
        *,
        batch_size: int = 32,
        **options: Unpack[StreamOptions],
    ) -> Iterator[Step]:
        """As :meth:`generate`, but yields each :class:`~unmask.engine.loop.Step` as it happens."""
        check_names("stream", options, StreamOptions.__annotations__)
        requests = self.requests(prompts, gen_length, **options)
        return (step for _, step in self.run(requests, policy, cache, batch_size))

    def run(
        self, requests: Sequence[Request], policy: str | Policy, cache: str | Cache, batch_size: int = 32
    ) -> Iterator[tuple[State, Step]]:
        """Decode prepared requests; yields each state and step (see :func:`unmask.engine.loop.decode`)."""
        size = integer("batch_size", batch_size)
        if size < 1:
            raise RequestError(f"batch_size must be at least 1, got {size}")
        how, keep = self._policy(policy), registry.cache(cache)
        check(how, requests, self.denoiser.spec)
        if self.text is None or not any(r.stop for r in requests):
            return run(self.denoiser, keep, how, requests, size)
        stops = Stops(self.text, requests, early=not getattr(how, "remasks", True))  # a policy needs no base class
        return run(self.denoiser, keep, how, requests, size, stops)

    def requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_length: int | Sequence[int] = 128,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | Sequence[int] = 0,
        eos_stop: bool = True,
        chat: bool | None = None,
        banned: Banned = None,
        fixed: Fixed = None,
        stop: Stop = None,
    ) -> list[Request]:
        """Check and encode prompts; see :meth:`generate`."""
        many = as_batch(prompts)
        check_sampling(temperature, top_p, top_k)
        for name, value, known in (("eos_stop", eos_stop, (True, False)), ("chat", chat, (True, False, None))):
            if not any(value is k for k in known):
                raise RequestError(f"{name} must be {' or '.join(map(str, known))}, got {value!r}")
        spec = self.denoiser.spec
        lengths, seeds = per_row("gen_length", gen_length, len(many)), per_row("seed", seed, len(many))
        wild = [s for s in seeds if not -(1 << 63) <= s < 1 << 63]
        if wild:
            raise RequestError(f"seed must fit in 64 bits, got {wild[0]}")
        ids = [self._ids(i, p, chat) for i, p in enumerate(many)]
        ends = stop_texts(stop)
        if ends and self.text is None:
            raise RequestError("stop: the model has no tokenizer.json, so that its responses have no text")
        never, given = banned_ids(banned, len(many), self._token), fixed_ids(fixed, len(many))
        for i, prompt in enumerate(ids):
            check_request(i, prompt, lengths[i], spec, given[i])
        same = float(temperature), float(top_p), min(top_k, spec.vocab)
        return [
            Request(i, prompt, lengths[i], *same, seeds[i], eos_stop, never[i], given[i], None, ends)
            for i, prompt in enumerate(ids)
        ]

    def infill_requests(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        prompts: Prompt | Sequence[Prompt] | None = None,
        **options: Unpack[Options],
    ) -> list[Request]:
        """Check and encode texts with gaps; see :meth:`infill`."""
        check_names("infill", options, Options.__annotations__)
        many = as_batch(texts, TEXTS)
        fronts: Sequence[list[int] | None] = [None] * len(many)
        if prompts is not None:
            given = as_batch(prompts)
            if len(given) not in (1, len(many)):
                raise RequestError(f"prompts has {len(given)} values for {len(many)} texts")
            encoded = [self._ids(i, p, options.get("chat")) for i, p in enumerate(given)]
            fronts = encoded if len(given) == len(many) else encoded * len(many)
        laid = [lay_out(i, t, self.text, self.denoiser.spec, fronts[i]) for i, t in enumerate(many)]
        requests = self.requests(
            [one.prompt for one in laid],
            [one.gen_length for one in laid],
            fixed=[one.fixed for one in laid],
            **options,
        )
        return [replace(r, begin=one.begin) for r, one in zip(requests, laid, strict=True)]

    def results(self, state: State) -> dict[int, Result]:
        """The finished rows of a state, by row id."""
        done = state.canvas.done.nonzero()[:, 0].tolist()
        return {int(state.record.row[i]): result_of(state, i, self.text) for i in done}

    def _policy(self, policy: str | Policy) -> Policy:
        """The policy of a spec, the same one each time."""
        if not isinstance(policy, str):
            return registry.policy(policy)
        if policy not in self._policies:
            self._policies[policy] = registry.policy(policy)
        return self._policies[policy]

    def _token(self, text: str) -> int:
        if self.text is None:
            raise RequestError("banned: the model has no tokenizer.json; give ids")
        try:
            return self.text.token(text)
        except RequestError as error:
            raise RequestError(f"banned: {error}") from None

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


def pick_device(device: str) -> torch.device:
    """A usable device for ``"auto"`` or a device string, or a ModelError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen, dtype=torch.float64).item()  # confidences are float64
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"device {device!r} cannot be used here; accepted: auto, cpu, cuda, cuda:N ({reason})"
        ) from None
    return chosen


def pick_dtype(dtype: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The dtype for ``"auto"`` or a name, or a ModelError."""
    if dtype != "auto":
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; accepted: auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return native(checkpoint.dtype, device)
