"""Load a model, generate, stream."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import registry
from .core.errors import ModelError, RequestError
from .core.protocols import Cache, Policy
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
            where a CPU has no bfloat16 arithmetic.

    Raises:
        ModelError: no such model, unsupported family or variant, missing, truncated or mismatched weights, unknown
            device or dtype.
    """
    checkpoint = Checkpoint.find(SHIPPED if path_or_id is None else path_or_id)
    where = pick_device(device)
    text = Text.find(checkpoint.folder)
    spec = checkpoint.spec(len(text) if text else None, text.eos if text else ())
    return Model(load_denoiser(checkpoint, spec, where, pick_dtype(dtype, checkpoint, where)), text)


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
            prompts: a string, a list of ids, a conversation, or a list of any of these. Lengths may differ.
            gen_length: response length in tokens, exact; one number, or one per prompt.
            policy, cache: specs such as ``"slowfast(tau_high=0.9)"`` and ``"dllm(kp=25,kr=5)"``, or objects.
            temperature: of sampling; 0 is greedy. Confidence is always the untempered probability.
            top_p, top_k: nucleus and top-k filters of sampling; 1 and 0 switch them off.
            seed: noise depends on (seed, position, step) alone: a prompt samples the same text in any batch.
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
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, got {batch_size}")
        return run(self.denoiser, registry.cache(cache), registry.policy(policy), requests, batch_size)

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
        lengths, seeds = _per_row("gen_length", gen_length, len(many)), _per_row("seed", seed, len(many))
        return [
            Request(i, self._ids(p, chat), lengths[i], temperature, top_p, top_k, seeds[i], eos_stop)
            for i, p in enumerate(many)
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

    def _ids(self, prompt: Prompt, chat: bool | None) -> list[int]:
        if not isinstance(prompt, str) and (not prompt or not isinstance(prompt[0], dict)):
            return [int(i) for i in prompt]  # type: ignore[arg-type]
        if self.text is None:
            raise RequestError("the model has no tokenizer.json; give prompts as lists of ids")
        return self.text.encode(prompt, chat)  # type: ignore[arg-type]


def pick_device(device: str) -> torch.device:
    """A usable device for ``"auto"`` or a device string, or a ModelError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return chosen


def pick_dtype(dtype: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The dtype for ``"auto"`` or a name, or a ModelError."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; accepted: auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    own = DTYPES.get(str(checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype")), torch.float32)
    half = own in (torch.bfloat16, torch.float16)
    return torch.float32 if half and device.type == "cpu" and not cpu_has_bfloat16() else own


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in probes)


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Refuse sampling parameters out of range."""
    if temperature < 0:
        raise RequestError(f"temperature must be at least 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise RequestError(f"top_p must be in (0, 1], got {top_p}")
    if top_k < 0:
        raise RequestError(f"top_k must be at least 0 (0: off), got {top_k}")


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (int, dict)))
    many = [prompts] if single else list(prompts)
    if not many:
        raise RequestError("no prompts: the batch is empty")
    return many  # type: ignore[return-value]


def _per_row(name: str, value: int | Sequence[int], rows: int) -> list[int]:
    values = [value] * rows if isinstance(value, int) else list(value)
    if len(values) != rows:
        raise RequestError(f"{name} has {len(values)} values for {rows} prompts")
    return values
