"""An autoregressive model beside the decoders that are measured: greedy, by ``transformers``' own ``generate``.

Each forward says one token and keeps keys and values of all before it, as the models do that SlowFast's table 4 is
compared with (arXiv 2506.10848).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ..api import BUNDLED_NAME
from ..core.errors import ModelError, RequestError
from ..verifier import SHIPPED, read_config, read_network, read_text
from .problems import Answer, Source

if TYPE_CHECKING:
    from ..api import Model
    from ..text import Text
    from .run import Setting

NAME = "autoregressive"
WHAT = "autoregressive model"


def spec(model: str) -> str:
    """What stands for a model where policies stand."""
    return f"{NAME}({model})"


def model_of(policy: str) -> str | None:
    """The model of such a spec; None: it is a policy."""
    inside = policy.strip().removeprefix(f"{NAME}(")
    return inside[:-1].strip() if inside != policy.strip() and inside.endswith(")") else None


@dataclass(frozen=True)
class Causal:
    """A causal model with its own tokenizer.

    Attributes:
        name: folder, hub id, or ``shipped``.
        network: of ``transformers``.
        text: tokenizer and chat template.
        eos: ids that end a response.
        context: most tokens it reads; None where its config does not say.
    """

    name: str
    network: Any
    text: Text
    eos: tuple[int, ...]
    context: int | None

    def encode(self, source: Source, gen_length: int, first: int, n: int) -> list[list[int]]:
        """Ids of some problems' prompts.

        Raises:
            RequestError: a prompt of ids, or one that is too long; names it.
        """
        found = []
        for row, item in enumerate(source.items[first : first + n], first):
            if not isinstance(item.prompt, str) and (not item.prompt or isinstance(item.prompt[0], int)):
                raise RequestError(f"it is a list of ids; the {WHAT} {self.name!r} has its own and takes text", row)
            try:
                ids = self.text.encode(item.prompt)
            except RequestError as error:
                raise error.of(row) from None
            if self.context is not None and len(ids) + gen_length > self.context:
                raise RequestError(
                    f"it has {len(ids)} tokens and gen_length is {gen_length}: together {len(ids) + gen_length}, but "
                    f"the {WHAT} {self.name!r} reads at most {self.context}",
                    row,
                )
            found.append(ids)
        return found


def load(name: str, lm: Model) -> Causal:
    """The model of that name, on the device and in the dtype of the diffusion model that it is measured beside.

    Raises:
        ModelError: there is none, it cannot be loaded, or it has no tokenizer.
    """
    network = lm.denoiser.network
    return _load(name, network.device, network.dtype)


@lru_cache(maxsize=4)
def _load(name: str, device: torch.device, dtype: torch.dtype) -> Causal:
    source = str(SHIPPED) if name == BUNDLED_NAME else name
    config = read_config(source, WHAT)
    text = read_text(source, WHAT)
    if text is None:
        raise ModelError(f"the {WHAT} {name!r} has no tokenizer.json, and no vocab.json with merges.txt")
    network = read_network(source, device, dtype, WHAT)
    said = getattr(network.generation_config, "eos_token_id", None)
    ends = said if isinstance(said, list) else [said]
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return Causal(name, network, text, tuple(dict.fromkeys(i for i in (*ends, *text.eos) if i is not None)), context)


def check(lm: Model, setting: Setting, source: Source) -> None:
    """Refuse what cannot be decoded.

    Raises:
        UnmaskError: no such model, a setting it does not have, or a prompt that it cannot take.
    """
    model = load(model_of(setting.policy) or "", lm)
    if setting.cache != "none":
        raise RequestError(f"{setting.policy} has a cache of its own; accepted: none, got {setting.cache!r}")
    if setting.temperature:
        raise RequestError(f"{setting.policy} is greedy; temperature must be 0, got {setting.temperature:g}")
    model.encode(source, setting.gen_length, 0, len(source.items))


def answers(lm: Model, setting: Setting, source: Source, first: int, n: int) -> tuple[list[Answer], float]:
    """Answer problems ``first`` to ``first + n`` together, prompts padded on the left.

    The forwards of a row end with its end of text, although ``generate`` takes it along until the whole batch is done:
    the time for that counts, the forwards and positions do not.

    Returns:
        One answer per problem, and the seconds spent in the network.
    """
    began = time.perf_counter()
    model = load(model_of(setting.policy) or "", lm)
    prompts = model.encode(source, setting.gen_length, first, n)
    eos = model.eos if setting.eos_stop else ()
    with _clock(model.network) as clock:
        said = _generate(model, prompts, setting.gen_length, eos)
    told = clock.second_began or time.perf_counter()
    found = []
    for ids, prompt in zip(said, prompts, strict=True):
        end = next((i for i, token in enumerate(ids) if token in model.eos), len(ids))
        nfe = min(end + 1, len(ids)) if eos else len(ids)
        text = model.text.decode(ids[:end])
        found.append(Answer(text, nfe, end, float(len(prompt) + nfe - 1), told - began))
    return found, clock.inside


def _generate(model: Causal, prompts: Sequence[Sequence[int]], gen_length: int, eos: Sequence[int]) -> list[list[int]]:
    """The ids of each row's response, what follows an end of text in ``eos`` included."""
    from transformers import GenerationConfig

    device, width = model.network.device, max(map(len, prompts))
    fill = model.eos[0] if model.eos else 0
    ids = [[fill] * (width - len(p)) + list(p) for p in prompts]
    real = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    # on the network, too: what a config leaves open, generate takes from there, and a checkpoint's may sample
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=gen_length, eos_token_id=list(eos) or None, pad_token_id=fill, use_cache=True
    )
    model.network.generation_config = greedy
    out = model.network.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(real, device=device),
        generation_config=greedy,
    )
    said: list[list[int]] = out[:, width:].tolist()
    return said


@dataclass
class _Clock:
    """``inside``: seconds in the network; ``second_began``: when its second forward began, by when the first token of
    every row is there.
    """

    inside: float = 0.0
    forwards: int = 0
    second_began: float | None = None
    _entered: float = 0.0

    def enter(self, *_: Any) -> None:
        """A forward begins."""
        self._entered = time.perf_counter()
        self.forwards += 1
        if self.forwards == 2:
            self.second_began = self._entered

    def leave(self, *_: Any) -> None:
        """It has ended."""
        self.inside += time.perf_counter() - self._entered


@contextmanager
def _clock(network: Any) -> Iterator[_Clock]:
    """Time the network's forwards for a while."""
    clock = _Clock()
    hooks = network.register_forward_pre_hook(clock.enter), network.register_forward_hook(clock.leave)
    try:
        yield clock
    finally:
        for hook in hooks:
            hook.remove()
