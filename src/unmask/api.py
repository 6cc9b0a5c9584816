"""Load a model, generate, stream."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import registry
from .core.canvas import Canvas, ModelSpec, check_request
from .core.errors import ModelError, RequestError
from .core.precision import native
from .core.protocols import Cache, Policy, Sampling
from .engine.batch import Request, run
from .engine.loop import State, Step
from .models.denoiser import Denoiser
from .models.weights import DTYPES, Checkpoint, load_denoiser
from .text import Text

SHIPPED = Path(__file__).parent / "assets" / "tiny"
Prompt = str | Sequence[int] | Sequence[dict[str, str]]


@dataclass(frozen=True)
class Stats:
    """What one response cost.

    Attributes:
        nfe: forwards of the network that this row took part in.
        tokens: response tokens before the first end of text; the honest numerator of every rate.
        tpf: tokens per forward, ``tokens / nfe``.
        positions: positions computed, averaged over the layers and summed over the forwards.
        seconds: wall time from the row's admission to its end; rows of a batch share it.
        tokens_per_second: ``tokens / seconds``.
    """

    nfe: int
    tokens: int
    tpf: float
    positions: float
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Result:
    """One response.

    Attributes:
        text: what was generated, up to the first end of text; "" when the model has no tokenizer.
        tokens: ``gen_length`` ids; positions never filled because of an early end of text hold the end-of-text id.
        prompt_tokens: the prompt's ids.
        steps: for each of ``tokens``, the forward (from 0) that committed it; -1 where none did.
        stats: what it cost.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    steps: list[int]
    stats: Stats


def load(path_or_id: str | Path | None = None, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a masked diffusion language model.

    Args:
        path_or_id: a Hugging Face folder, a hub id, or None for the small model that ships with the package.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"auto"``: the first GPU, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or ``"auto"``: the checkpoint's own; float32
            where a CPU does not calculate in that.

    Raises:
        ModelError: no such model, unsupported family or variant, missing, truncated or mismatched weights, unknown
            device or dtype.
    """
    checkpoint = Checkpoint.find(SHIPPED if path_or_id is None else path_or_id)
    where = pick_device(device)
    kind = pick_dtype(dtype, checkpoint, where)
    text = Text.find(checkpoint.folder)
    spec = checkpoint.spec(len(text) if text else None, text.eos if text else ())
    spec = replace(spec, tokenizer=str(checkpoint.folder) if text else None)
    return Model(load_denoiser(checkpoint, spec, where, kind), text)


class Model:
    """A loaded model. ``denoiser`` and ``text`` (None without tokenizer) are its parts."""

    def __init__(self, denoiser: Denoiser, text: Text | None) -> None:
        self.denoiser = denoiser
        self.text = text

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
        )
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
        **sampling: Any,
    ) -> Iterator[Step]:
        """As :meth:`generate`, but yields each :class:`~unmask.engine.loop.Step` as it happens."""
        requests = self.requests(prompts, gen_length, **sampling)
        return (step for _, step in self.run(requests, policy, cache, batch_size))

    def run(
        self, requests: Sequence[Request], policy: str | Policy, cache: str | Cache, batch_size: int = 32
    ) -> Iterator[tuple[State, Step]]:
        """Decode prepared requests; yields each state and step (see :func:`unmask.engine.loop.decode`)."""
        size = _integer("batch_size", batch_size)
        if size < 1:
            raise RequestError(f"batch_size must be at least 1, got {size}")
        how, keep = registry.policy(policy), registry.cache(cache)
        _rehearse(how, requests, self.denoiser.spec)
        return run(self.denoiser, keep, how, requests, size)

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
    ) -> list[Request]:
        """Check and encode prompts; see :meth:`generate`."""
        many = _as_batch(prompts)
        check_sampling(temperature, top_p, top_k)
        for name, value, known in (("eos_stop", eos_stop, (True, False)), ("chat", chat, (True, False, None))):
            if not any(value is k for k in known):
                raise RequestError(f"{name} must be {' or '.join(map(str, known))}, got {value!r}")
        spec = self.denoiser.spec
        lengths, seeds = _per_row("gen_length", gen_length, len(many)), _per_row("seed", seed, len(many))
        wild = [s for s in seeds if not -(1 << 63) <= s < 1 << 63]
        if wild:
            raise RequestError(f"seed must fit in 64 bits, got {wild[0]}")
        ids = [self._ids(i, p, chat) for i, p in enumerate(many)]
        for i, prompt in enumerate(ids):
            check_request(i, prompt, lengths[i], spec)
        return [
            Request(i, prompt, lengths[i], float(temperature), float(top_p), min(top_k, spec.vocab), seeds[i], eos_stop)
            for i, prompt in enumerate(ids)
        ]

    def results(self, state: State) -> dict[int, Result]:
        """The finished rows of a state, by row id."""
        done = state.canvas.done.nonzero()[:, 0].tolist()
        return {int(state.record.row[i]): self._result(state, i) for i in done}

    def _result(self, state: State, i: int) -> Result:
        canvas, record = state.canvas, state.record
        low, high = int(canvas.prompt[i]), int(canvas.length[i])
        ids: list[int] = canvas.tokens[i, :high].tolist()
        spec = self.denoiser.spec
        tokens = [spec.eos[0] if t == spec.mask else t for t in ids[low:]]
        count = min(int(canvas.eos_at[i]), high) - low
        seconds = time.perf_counter() - float(record.born[i])
        nfe = int(record.nfe[i])
        stats = Stats(nfe, count, count / nfe, float(record.work[i]), seconds, count / seconds)
        text = self.text.decode(tokens[:count]) if self.text else ""
        return Result(text, tokens, ids[:low], record.committed_at[i, low:high].tolist(), stats)

    def _ids(self, index: int, prompt: Prompt, chat: bool | None) -> list[int]:
        written = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping))
        if not written:
            return [_integer(f"prompt {index}: an id", i) for i in prompt]
        if self.text is None:
            raise RequestError(f"prompt {index}: the model has no tokenizer.json; give prompts as lists of ids")
        try:
            return self.text.encode(prompt, chat)  # type: ignore[arg-type]
        except RequestError as error:
            raise RequestError(f"prompt {index}: {error}") from None


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


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Refuse sampling parameters out of range."""
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise RequestError(f"temperature must be a number >= 0 (0: greedy), got {temperature!r}")
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise RequestError(f"top_p must be a number in (0, 1] (1: off), got {top_p!r}")
    if _integer("top_k", top_k) < 0:
        raise RequestError(f"top_k must be at least 0 (0: off), got {top_k}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(name: str, value: Any) -> int:
    """Any integer type's value (numpy's too, but no bool), or a RequestError that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RequestError(f"{name} must be an integer, got {value!r:.80}")
    return operator.index(value)


def _as_batch(prompts: Any) -> list[Prompt]:
    """The prompts as a list of single prompts; arrays become lists."""
    prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise RequestError(f"{_KINDS}, or a list of these; got {prompts!r:.80}")
    if not prompts:
        raise RequestError("no prompts: the batch is empty")
    many = [p.tolist() if hasattr(p, "tolist") else p for p in prompts]
    if isinstance(many[0], (int, Mapping)):
        return [many]
    for i, prompt in enumerate(many):
        if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
            raise RequestError(f"prompt {i}: {_KINDS}, got {prompt!r:.80}")
    return many


_KINDS = "a prompt is a string, a list of ids or a conversation"


def _per_row(name: str, value: int | Sequence[int], rows: int) -> list[int]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [_integer(name, value)] * rows
    if len(value) != rows:
        raise RequestError(f"{name} has {len(value)} values for {rows} prompts")
    return [_integer(name, v) for v in value]


def _rehearse(policy: Policy, requests: Sequence[Request], spec: ModelSpec) -> None:
    """Let the policy see every response length, so that it refuses one before anything is decoded."""
    lengths = sorted({r.gen_length for r in requests})
    if lengths:
        zero = torch.zeros(len(lengths), dtype=torch.long)
        canvas = Canvas.blank([spec.eos[:1]] * len(lengths), lengths, spec)
        policy.init(canvas, Sampling(zero.double(), zero.double() + 1, zero, zero))
