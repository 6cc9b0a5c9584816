"""An autoregressive model beside the decoders that are measured: greedy, one token a forward pass, or with a drafter.

It keeps keys and values of all before it, as the models do that SlowFast's table 4 is compared with (arXiv 2506.10848).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from .. import registry
from ..api import BUNDLED_NAME
from ..core.errors import ModelError, RequestError
from ..engine.request import SamplingParams
from ..models import causal
from ..speculative.loop import Job
from ..speculative.model import CausalLM
from ..text import Text
from .problems import Answer, Source

if TYPE_CHECKING:
    from ..api import Model

NAME = "autoregressive"
WHAT = "autoregressive model"


_DRAFTER = ", drafter="


def spec(model: str, drafter: str | None = None) -> str:
    """What stands for a model where policies stand, with the spec of a drafter, if any."""
    return f"{NAME}({model})" if drafter is None else f"{NAME}({model}{_DRAFTER}{drafter})"


def parts_of(policy: str) -> tuple[str, str | None] | None:
    """The model of such a spec and its drafter; None: it is a policy.

    Raises:
        SpecError: no such drafter.
    """
    inside = policy.strip().removeprefix(f"{NAME}(")
    if inside == policy.strip() or not inside.endswith(")"):
        return None
    model, comma, drafter = inside[:-1].partition(_DRAFTER)
    return model.strip(), str(registry.drafter(drafter)) if comma else None


def model_of(policy: str) -> str | None:
    """The model of such a spec; None: it is a policy."""
    found = parts_of(policy)
    return None if found is None else found[0]


@dataclass(frozen=True)
class Autoregressive:
    """A causal model with its own tokenizer.

    Attributes:
        name: folder, hub id, or ``unmask-tiny``.
        model: the causal model.
        text: tokenizer and chat template.
        eos: ids that end a response.
        device, dtype: where and in what it calculates.
        lm: the same model, for drafters.
        drafter: spec of one; None: the model alone.
    """

    name: str
    model: causal.CausalModel
    text: Text
    eos: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    lm: CausalLM
    drafter: str | None = None

    @property
    def spec(self) -> str:
        """What stands for it where policies stand."""
        return spec(self.name, self.drafter)

    @staticmethod
    def beside(lm: Model, name: str, drafter: str | None = None) -> Autoregressive:
        """The model of that name, on the device and in the dtype of the diffusion model that it is measured beside.

        Raises:
            ModelError: there is none, it cannot be loaded, or it has no tokenizer.
        """
        network = lm.denoiser.network
        return replace(_load(name, network.device, network.dtype), drafter=drafter)

    def check(self, source: Source, gen_length: int, cache: str = "none", temperature: float = 0.0) -> None:
        """Refuse what cannot be decoded.

        Raises:
            RequestError: a setting it does not have, or a prompt that it cannot take.
            ModelError: a drafter that does not fit.
        """
        if cache != "none":
            raise RequestError(f"{self.spec} has a cache of its own; accepted: none, got {cache!r}")
        if temperature:
            raise RequestError(f"{self.spec} is greedy; temperature must be 0, got {temperature:g}")
        self.encode(source, gen_length, 0, len(source.items))
        drafter = self.lm.drafter(self.drafter)
        if drafter is not None:
            drafter.check(self.lm.target)

    def encode(self, source: Source, gen_length: int, first: int, n: int) -> list[list[int]]:
        """Ids of some problems' prompts.

        Raises:
            RequestError: a prompt of ids, or one that is too long; names it.
        """
        found, most = [], self.model.description.context
        for row, item in enumerate(source.items[first : first + n], first):
            if not isinstance(item.prompt, str) and (not item.prompt or isinstance(item.prompt[0], int)):
                raise RequestError(f"it is a list of ids; the {WHAT} {self.name!r} has its own and takes text", row)
            try:
                ids = self.text.encode(item.prompt)
            except RequestError as error:
                raise error.of(row) from None
            if len(ids) + gen_length > most:
                raise RequestError(
                    f"it has {len(ids)} tokens and gen_length is {gen_length}: together {len(ids) + gen_length}, but "
                    f"the {WHAT} {self.name!r} reads at most {most}",
                    row,
                )
            found.append(ids)
        return found

    def answers(
        self, source: Source, gen_length: int, first: int, n: int, eos_stop: bool = True
    ) -> tuple[list[Answer], float]:
        """Answer problems ``first`` to ``first + n`` together.

        The forward passes of a problem end with its end of text, although it is taken along until the whole batch is
        done: the time for that counts, the passes and positions do not.

        Returns:
            One answer per problem, and the seconds spent in the network.
        """
        if self.drafter is not None:
            return self._drafted(source, gen_length, first, n, eos_stop)
        began, inside, told = time.perf_counter(), 0.0, 0.0
        prompts = self.encode(source, gen_length, first, n)
        ids: list[list[int]] = [[] for _ in prompts]
        ended = [False] * n
        for tokens, seconds in self.model.decode(prompts, gen_length, self.device, self.dtype):
            inside, told = inside + seconds, told or time.perf_counter() - began
            for own, token in zip(ids, tokens, strict=True):
                own.append(token)
            ended = [done or token in self.eos for done, token in zip(ended, tokens, strict=True)]
            if eos_stop and all(ended):
                break
        found = []
        for own, prompt in zip(ids, prompts, strict=True):
            end = next((i for i, token in enumerate(own) if token in self.eos), len(own))
            nfe = min(end + 1, len(own)) if eos_stop else len(own)
            found.append(Answer(self.text.decode(own[:end]), nfe, end, float(len(prompt) + nfe - 1), told))
        return found, inside

    def _drafted(
        self, source: Source, gen_length: int, first: int, n: int, eos_stop: bool
    ) -> tuple[list[Answer], float]:
        """The same with the drafter: the passes and positions are the model's own, the drafter's time counts."""
        began, inside, told = time.perf_counter(), 0.0, 0.0
        params = SamplingParams(seed=0, ignore_eos=not eos_stop)
        jobs = [Job(i, ids, gen_length, params) for i, ids in enumerate(self.encode(source, gen_length, first, n))]
        positions = [len(job.prompt) - 1.0 for job in jobs]
        found: dict[int, Answer] = {}
        for event in self.lm.run(jobs, self.drafter, n):
            inside, told = inside + event.seconds, told or time.perf_counter() - began
            for i, at in enumerate(event.rows):
                positions[at] += 1 + (len(event.tree.parents[i]) if event.tree else 0)
            for row in event.finished:
                end = next((i for i, token in enumerate(row.tokens) if token in self.eos), len(row.tokens))
                text = self.text.decode(row.tokens[:end])
                found[row.job.id] = Answer(text, row.rounds, end, positions[row.job.id], told)
        return [found[job.id] for job in jobs], inside


@lru_cache(maxsize=4)
def _load(name: str, device: torch.device, dtype: torch.dtype) -> Autoregressive:
    model = causal.load(None if name == BUNDLED_NAME else name, WHAT)
    text = Text.find(model.folder)
    if text is None:
        raise ModelError(f"the {WHAT} {name!r} has no tokenizer.json, and no vocab.json with merges.txt")
    lm = CausalLM(model, text, device, dtype)
    return Autoregressive(name, model, text, tuple(dict.fromkeys(model.eos + text.eos)), device, dtype, lm)
