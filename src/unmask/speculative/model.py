"""Load a causal model and generate with it, alone or with a drafter."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..checks import as_batch, check_chat, check_names, per_row
from ..core.errors import ModelError, RequestError
from ..core.values import integer, is_list
from ..engine.request import SamplingParams, wrapped
from ..models import causal
from ..models.placement import pick_device
from ..models.tensors import DTYPES
from ..stop import StopStrings
from ..text import Text
from .drafter import Drafter
from .loop import Job, Round, Row, check, replaced, rounds
from .target import Target

WHAT = "target"
_SAMPLING = tuple(f.name for f in fields(SamplingParams))


@dataclass(frozen=True)
class DraftStats:
    """What a response has cost.

    Attributes:
        tokens: generated, an end of text included.
        rounds: forward passes of the target, the one over the prompt included.
        drafted: tokens proposed; ``accepted``: those of them that became text.
        per_round: ``tokens / rounds``.
        draft_passes: forward passes of the drafter's network.
        seconds: from the batch's begin to the end of the response; ``draft_seconds``: of these, spent drafting.
        tokens_per_second: ``tokens / seconds``.
    """

    tokens: int
    rounds: int
    drafted: int
    accepted: int
    per_round: float
    draft_passes: int
    seconds: float
    draft_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Continuation:
    """A response of a causal model.

    Attributes:
        text: up to the end of text or the first stop string; "" when the model has no tokenizer.
        tokens: ids, with the end of text where there is one, without a stop string.
        prompt_tokens: ids of the prompt.
        stats: what it cost.
        finish_reason: ``eos``, ``stop``, ``length`` or ``error``.
        error: what went wrong, where finish_reason is ``error``.
        seed: of the sampling noise.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    stats: DraftStats
    finish_reason: str
    error: str | None
    seed: int


def load_causal(path_or_id: str | Path | None = None, device: str = "auto", dtype: str = "auto") -> CausalLM:
    """Load a causal language model (Llama, Qwen2, Qwen3).

    Args:
        path_or_id: a Hugging Face folder, a hub id, or None for the bundled causal model of ``unmask-tiny``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"auto"``: the first GPU, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or ``"auto"``: the checkpoint's own; float32
            where a CPU does not calculate in that.

    Raises:
        ModelError: no such model, another kind of model, missing or mismatched weights, unknown device or dtype.
    """
    model = causal.load(None if path_or_id is None else str(path_or_id), WHAT)
    where = pick_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; accepted: auto, {', '.join(DTYPES)}")
    kind = model.dtype(where) if dtype == "auto" else DTYPES[dtype]
    return CausalLM(model, Text.find(model.folder), where, kind)


class CausalLM:
    """A causal language model.

    Attributes:
        target: the network, which verifies drafts.
        text: the tokenizer; None without one.
        eos: ids that end a response.
    """

    def __init__(self, model: causal.CausalModel, text: Text | None, device: torch.device, dtype: torch.dtype) -> None:
        self.target = Target(model, device, dtype)
        self.text = text
        self.eos = tuple(dict.fromkeys(model.eos + (text.eos if text else ())))
        self._drafters: dict[str, Drafter] = {}  # what they have loaded lives as long as the model

    def generate(
        self,
        prompts: Any,
        gen_length: int | Sequence[int] = 128,
        drafter: str | Drafter | None = None,
        *,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        chat: bool | None = None,
        n: int = 1,
        batch_size: int = 8,
        **sampling: Any,
    ) -> list[Continuation]:
        """Continue each prompt, or ``n`` times; the text is the target's own whatever drafts.

        Args:
            prompts: see :meth:`unmask.Model.generate`.
            gen_length: tokens of the response at most; one number, or one per prompt.
            drafter: a spec such as ``"ngram(n=3)"``, or an object. None: the target alone.
            params: a :class:`~unmask.engine.request.SamplingParams`, or one per prompt.
            chat: wrap strings in the chat template (default: when the model is a chat model).
            n: samples of each prompt.
            batch_size: responses decoded together.
            sampling: fields of :class:`~unmask.engine.request.SamplingParams` by name. With one number ``seed``, the
                i-th response has the seed ``seed + i``.

        Raises:
            RequestError: empty batch or prompt, too long for the context, values out of range.
            SpecError: unknown drafter or parameter.
            ModelError: a drafter that does not fit the target.
        """
        jobs = self.jobs(prompts, gen_length, params=params, chat=chat, n=n, **sampling)
        found = {row.job.id: row for event in self.run(jobs, drafter, batch_size) for row in event.finished}
        return [self.result(found[job.id]) for job in jobs]

    def run(self, jobs: Sequence[Job], drafter: str | Drafter | None = None, batch_size: int = 8) -> Iterator[Round]:
        """Decode prepared jobs, so many together; yields every round as it happens.

        Raises:
            RequestError, SpecError, ModelError: see :meth:`generate`; before anything is decoded.
        """
        how = self.drafter(drafter)
        size = integer("batch_size", batch_size)
        if size < 1:
            raise RequestError(f"batch_size must be at least 1, got {batch_size}")
        check(self.target, how, jobs)
        ends = frozenset(self.eos)
        parts = [jobs[first : first + size] for first in range(0, len(jobs), size)]
        return (event for part in parts for event in rounds(self.target, how, part, ends))

    def drafter(self, drafter: str | Drafter | None) -> Drafter | None:
        """A drafter from a spec, the same object each time; None stays None.

        Raises:
            SpecError: unknown name or parameter, or a value out of range.
        """
        if not isinstance(drafter, str):
            return None if drafter is None else registry.drafter(drafter)
        if drafter not in self._drafters:
            self._drafters[drafter] = registry.drafter(drafter)
        return self._drafters[drafter]

    def jobs(
        self,
        prompts: Any,
        gen_length: int | Sequence[int] = 128,
        *,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        chat: bool | None = None,
        n: int = 1,
        first: int = 0,
        **sampling: Any,
    ) -> list[Job]:
        """Encode prompts into jobs with the ids ``first``, ``first + 1``, ...; see :meth:`generate`."""
        many = as_batch(prompts)
        check_chat(chat)
        if integer("n", n) < 1:
            raise RequestError(f"n must be at least 1, got {n}")
        lengths = per_row("gen_length", gen_length, len(many))
        each = self._params(params, sampling, len(many))
        fresh = secrets.randbits(48)
        jobs = []
        for i, prompt in enumerate(many):
            ids = self._ids(i, prompt, chat)
            for sample in range(n):
                at = i * n + sample
                own = each[i]
                seed = wrapped((fresh if own.seed is None else own.seed) + (sample if params is not None else at))
                values = {f.name: getattr(own, f.name) for f in fields(own)}
                values |= {"seed": seed, "suppress": tuple(self._token(t) for t in own.suppress)}
                jobs.append(Job(at, ids, lengths[i], SamplingParams(**values), self._stops(own, i)))
        return replaced(jobs, first)

    def result(self, row: Row) -> Continuation:
        """What has become of a job."""
        tokens = row.tokens[: row.ending.tokens] if row.ending else row.tokens
        said = tokens[:-1] if row.finish_reason == "eos" else tokens
        text = self.text.decode(said) if self.text else ""
        text = text[: len(text) - row.ending.over] if row.ending else text
        count, seconds = len(tokens), row.seconds
        stats = DraftStats(
            count,
            row.rounds,
            row.drafted,
            row.accepted,
            count / row.rounds if row.rounds else 0.0,
            row.draft_passes,
            seconds,
            row.draft_seconds,
            count / seconds if seconds else 0.0,
        )
        seed = row.job.params.seed or 0
        return Continuation(text, tokens, row.job.prompt, stats, row.finish_reason, row.error, seed)

    def _params(self, params: Any, sampling: Any, prompts: int) -> list[SamplingParams]:
        check_names("generate", sampling, _SAMPLING)
        if params is not None and sampling:
            raise RequestError(f"give params or {next(iter(sampling))}, not both")
        if params is None:
            return [SamplingParams(**sampling)] * prompts
        if isinstance(params, SamplingParams):
            return [params] * prompts
        if not is_list(params) or len(params) != prompts or not all(isinstance(p, SamplingParams) for p in params):
            raise RequestError(f"params must be a SamplingParams, or one for each of {prompts} prompts")
        return list(params)

    def _ids(self, index: int, prompt: Any, chat: bool | None) -> list[int]:
        written = isinstance(prompt, str) or (len(prompt) > 0 and not isinstance(prompt[0], int))
        if written and self.text is None:
            raise RequestError("the model has no tokenizer.json; give prompts as lists of ids", index)
        try:
            if written and self.text is not None:
                return self.text.encode(prompt, chat)
            return [integer("an id", i) for i in prompt]
        except RequestError as error:
            raise error.of(index) from None

    def _token(self, token: str | int) -> int:
        if isinstance(token, int):
            return token
        if self.text is None:
            raise RequestError("suppress: the model has no tokenizer.json; give ids")
        return self.text.token(token)

    def _stops(self, params: SamplingParams, index: int) -> StopStrings | None:
        if not params.stop:
            return None
        if self.text is None:
            raise RequestError("stop: the model has no tokenizer.json to look for texts with", index)
        return StopStrings(self.text, params.stop)
