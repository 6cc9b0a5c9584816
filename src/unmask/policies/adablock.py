"""AdaBlock-dLLM (arXiv 2509.26432): blocks end where the model predicts the end of a line or sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import Spec, param
from ..core.errors import ModelError, SpecError
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction, Sampling
from ..core.spans import Spanned
from ..text import Text


@dataclass(frozen=True)
class AdaState:
    """The policy's state, and the current block: ``[start, end)``, ``[B]`` each; -1: none yet."""

    inner: Any
    start: Tensor
    end: Tensor


@dataclass(frozen=True)
class AdaBlock(Wrapper):
    """Decodes by ``policy`` in blocks that end with a delimiter where one is predicted.

    A block's first forward pass looks at the next ``reach`` of the response. Of the positions where a delimiter is the
    predicted token the most confident one ends the block, if it has at least ``tau_end``; else the block has the
    policy's ``block_length``. Blocks can be longer than that.
    """

    name = "adablock"
    paper = "arXiv 2509.26432"
    threshold = "policy"
    refuses = "policies without blocks, or whose blocks must have the same length: it decides where they end"

    policy: Policy = param(Spec("threshold"), "policy that decodes the blocks, as a spec")
    tau_end: float = param(0.3, "confidence from which a delimiter ends a block; above 1: never", ge=0, le=2)
    reach: float = param(0.25, "share of the response, from the block's start on, in which it may end", ge=0, le=1)
    delimiters: str | None = param(
        None, "ids of the tokens that end a block, as in '198 11'; none: those whose text has a line break"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        held = self.policy
        if isinstance(held, Policy) and not (held.spans and getattr(held, "block_length", None)):
            raise SpecError(f"adablock: policy must have blocks that may have any length; {held} has not")
        if self.delimiters is not None and not all(i.isdecimal() for i in self.delimiters.replace(",", " ").split()):
            raise SpecError(f"adablock: delimiters must be ids, as in '198 11', or none, got {self.delimiters!r:.40}")

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        super().check(prompt, gen_length, spec)
        self._ids(spec, torch.device("cpu"))

    def init(self, canvas: Canvas, sampling: Sampling) -> AdaState:
        none = torch.full_like(canvas.prompt, -1)
        return AdaState(self.policy.init(canvas, sampling), none, none)

    def ask(self, canvas: Canvas, state: AdaState) -> Ask:
        begins, low, high = self._block(canvas, state)
        ask = self.policy.ask(Spanned.of(canvas, low, high), state.inner)
        optional = None if ask.optional is None else ask.optional & ~begins[:, None]
        return replace(ask, window=ask.window | self._searched(canvas, begins, low), optional=optional)

    def decide(self, canvas: Canvas, prediction: Prediction, state: AdaState) -> tuple[Update, AdaState]:
        begins, low, high = self._block(canvas, state)
        ends = torch.isin(prediction.token, self._ids(canvas.spec, canvas.tokens.device))
        score = torch.where(ends & self._searched(canvas, begins, low), prediction.confidence, -torch.inf)
        sure, at = score.max(1)
        high = torch.where(sure >= self.tau_end, at + 1, high)
        view = Spanned.of(canvas, low, high)
        window = self.policy.ask(view, state.inner).window
        update, inner = self.policy.decide(view, prediction.within(window), state.inner)
        return update, AdaState(inner, low, high)

    def notes(self, canvas: Canvas, before: AdaState, after: AdaState) -> Mapping[str, Tensor]:
        """Those of the policy, and the block as ``start`` and ``end``."""
        return {**self.policy.notes(canvas, before.inner, after.inner), "start": after.start, "end": after.end}

    def _block(self, canvas: Canvas, state: AdaState) -> tuple[Tensor, Tensor, Tensor]:
        """``[B]`` whether a block begins, and the block as it is if no delimiter ends it: its start and end."""
        size: int = self.policy.block_length  # type: ignore[attr-defined]
        begins, limit = canvas.frontier >= state.end, canvas.length
        origin = torch.maximum(state.end, canvas.prompt)
        if canvas.spec.block is not None:
            size, limit = min(size, canvas.spec.block), torch.minimum(limit, canvas.base + canvas.spec.block)
            origin = torch.maximum(state.end, canvas.base)
        low = origin + (canvas.frontier - origin) // size * size
        high = torch.minimum(low + size, limit)
        return begins, torch.where(begins, low, state.start), torch.where(begins, high, state.end)

    def _searched(self, canvas: Canvas, begins: Tensor, low: Tensor) -> Tensor:
        """``[B, T]`` where the end of a block that begins is looked for."""
        far = low + ((canvas.wanted - canvas.prompt) * self.reach).long()
        near = (canvas.position >= low[:, None]) & (canvas.position < far[:, None])
        return canvas.masked & near & (begins & ~canvas.done)[:, None]

    def _ids(self, spec: ModelSpec, device: torch.device) -> Tensor:
        """The delimiters."""
        return _breaks(spec.tokenizer, device) if self.delimiters is None else _given(self.delimiters, device)


@lru_cache(maxsize=8)
def _given(delimiters: str, device: torch.device) -> Tensor:
    """Ids as a user lists them; sent to the device once."""
    return torch.tensor([int(i) for i in delimiters.replace(",", " ").split()], device=device)


@lru_cache(maxsize=8)
def _breaks(folder: str | None, device: torch.device) -> Tensor:
    """Ids of the tokens whose text has a line break."""
    text = None if folder is None else Text.find(Path(folder))
    if text is None:
        raise ModelError("adablock: delimiters must be given as ids, as in '198 11': the model has no tokenizer")
    found = [i for i, piece in enumerate(text.pieces(range(len(text)))) if "\n" in piece]
    if not found:
        raise ModelError("adablock: delimiters must be given as ids: no token of the model's has a line break")
    return torch.tensor(found, device=device)
