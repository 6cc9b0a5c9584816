"""DAWN (arXiv 2602.06953): what may be committed together, by a graph of dependencies read from attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.config import param
from ..core.pick import at_least, best, independent
from ..core.policy import Policy
from ..core.protocols import Ask, Looks, Prediction, Sampling
from ..core.rows import among
from ..core.state import PER_POSITION

PRESETS = {"paper": {"excluded_by": "either"}, "reference": {"excluded_by": "both"}}


@dataclass(frozen=True)
class DawnState:
    """``sure [B, T]`` float64: of filled positions the likeliest token's probability when last computed."""

    sure: Tensor = field(metadata=PER_POSITION)


@dataclass(frozen=True)
class Dawn(Policy):
    """Commits confident positions, those that depend on confident text, and others that do not depend on each other.

    An edge leads from a masked position of the block to a position that it gives at least ``edge`` of its attention
    (averaged over the heads and the last ``layers``). Positions whose mean attention exceeds ``sink`` have no edges.
    Committed are: first, what reaches ``tau``; second, what reaches ``induce`` and has an edge to a filled position
    where the model is sure of a token, too (``tau``); third, of the rest that reaches ``low`` and has no edge to the
    first two, the most confident ones with no edge between them. If nothing: the most confident position.

    In the authors' code an edge to a position that is in the first **and** the second set excludes from the third
    (``preset=reference``); the paper means either. With a cache the attention is that of the positions it computes, and
    the probabilities at filled positions are the last computed.
    """

    name = "dawn"
    paper = "arXiv 2602.06953"
    threshold = "tau"
    watches = True

    tau: float = param(0.9, "confidence from which a position is committed, and filled text is relied on", ge=0, le=2)
    induce: float = param(0.7, "confidence that is enough with an edge to such text", ge=0, le=2)
    low: float = param(0.7, "confidence that is enough without an edge to what is committed with it", ge=0, le=2)
    edge: float = param(0.07, "attention from which there is an edge; above 1: no edges", gt=0, le=2)
    sink: float = param(0.01, "mean attention above which a position has no edges", ge=0, le=1)
    layers: int = param(4, "last layers whose attention is averaged", ge=1)
    block_length: int = param(32, "positions per block", ge=1)
    preset: str = param("paper", "where the parameters that are not given come from", choices=tuple(PRESETS))
    excluded_by: str = param(
        None, "the third set has no edge to what is in either of the other two, or in both", choices=("either", "both"),
        hidden=True,
    )  # fmt: skip
    confidence: str = param(
        "model",
        "probability under the model, or after temperature, top-k and top-p",
        choices=("model", "sampled"),
        hidden=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.excluded_by is None:
            object.__setattr__(self, "excluded_by", PRESETS[self.preset]["excluded_by"])

    def _default(self, field: Any) -> Any:
        return PRESETS[self.preset].get(field.name, field.default)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tempered"} if self.confidence == "sampled" else ())

    def init(self, canvas: Canvas, sampling: Sampling) -> DawnState:
        return DawnState(torch.zeros_like(canvas.tokens, dtype=torch.float64))

    def ask(self, canvas: Canvas, state: DawnState) -> Ask:
        block = canvas.block(self.block_length)
        looks = Looks(canvas.places(self.block_length), self.layers)
        cell = canvas.cell(self.block_length)
        return Ask(block, cell=cell, optional=block, beside=self._filled(canvas), looks=looks)

    def _filled(self, canvas: Canvas) -> Tensor:
        """``[B, T]`` the text up to the end of the block."""
        before = canvas.position < canvas.block_end(self.block_length)[:, None]
        return canvas.valid & (canvas.tokens != canvas.spec.mask) & before & ~canvas.done[:, None]

    def decide(self, canvas: Canvas, prediction: Prediction, state: DawnState) -> tuple[Update, DawnState]:
        assert prediction.beside is not None
        sure = torch.where(prediction.beside > -torch.inf, prediction.beside, state.sure)
        places = canvas.places(self.block_length)
        edges = self._edges(canvas, prediction, places)
        confidence = F.pad(prediction.confidence, (0, 1), value=-torch.inf).gather(1, places)
        first = at_least(confidence, self.tau)
        known = self._filled(canvas) & at_least(sure, self.tau)
        second = (edges & known[:, None]).any(2) & at_least(confidence, self.induce)
        taken = first | second if self.excluded_by == "either" else first & second
        within = F.pad(edges, (0, 1)).gather(2, places[:, None].expand(-1, places.shape[1], -1))  # [B, K, K]
        rest = at_least(confidence, self.low) & ~first & ~second & ~(within & taken[:, None]).any(2)
        third = independent(within | within.mT, torch.where(rest, confidence, -torch.inf))
        chosen = torch.where(first | second | third, places, canvas.tokens.shape[1])
        write = among(chosen, canvas.valid)
        write = write | best(prediction.confidence) & ~write.any(1, keepdim=True)
        return Update(write, prediction.token), DawnState(sure)

    def _edges(self, canvas: Canvas, prediction: Prediction, places: Tensor) -> Tensor:
        """``[B, K, T]`` which positions each of the block's depends on."""
        seen = prediction.attention
        assert seen is not None
        apart = places[:, :, None] != canvas.position[:, None]
        return (seen.given >= self.edge) & apart & ~(seen.received > self.sink)[:, None]
