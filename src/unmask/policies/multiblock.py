"""d3LLM's entropy-based multi-block decoding (arXiv 2601.07568): the next blocks begin before this one is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import param
from ..core.endings import check_pad, padded
from ..core.pick import best, certainty, ranks
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling


@dataclass(frozen=True)
class MultiState:
    """``added [B]``: blocks that the forward pass before worked on."""

    added: Tensor


@dataclass(frozen=True)
class MultiBlock(Policy):
    """Commits in a pipeline of blocks every position whose entropy is below ``tau``.

    In front of a forward pass the next block joins once the share ``add`` of the last one is filled, one block at a
    time. A block whose predecessor is filled to the share ``ready`` is fully active: the first such one with masked
    positions commits its position of least entropy in any case. The others commit what is certain already.

    ``least=all`` commits the position of least entropy of the whole pipeline, too, as the authors' code for LLaDA does.
    The pipeline of D2F, which LoPA branches, has ``rule=confidence``, ``least=each``, ``future=false`` (and for models
    trained so ``causal=true``).
    """

    name = "multiblock"
    paper = "arXiv 2601.07568"

    tau: float = param(0.45, "entropy in nats below which a position is committed; 0: one position alone", ge=0)
    block_length: int = param(32, "positions per block", ge=1)
    add: float = param(0.1, "share of the last block that is filled when the next one joins", ge=0, le=1)
    ready: float = param(0.95, "share of a block that is filled when the next one is fully active", ge=0, le=1)
    least: str = param(
        "active", "where the least entropy is enough: in the first fully active block, of all, too, or in each such",
        choices=("active", "all", "each"), hidden=True,
    )  # fmt: skip
    rule: str = param(
        "entropy", "`confidence`: what is more probable than `tau` is committed", choices=("entropy", "confidence"),
        hidden=True,
    )  # fmt: skip
    order: str = param(
        "entropy", "what stands for least entropy", choices=("entropy", "confidence", "margin"), hidden=True
    )
    future: bool = param(True, "whether blocks that have not joined are in the input", hidden=True)
    causal: bool = param(False, "whether a block sees only itself, those before it and the prompt", hidden=True)
    pad: int | None = param(
        None, "id that is written behind an end of text at once, over what stands there", ge=0, hidden=True
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.rule, self.order} - {"confidence"})

    @property
    def remasks(self) -> bool:
        return self.pad is not None

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        check_pad(self.name, self.pad, spec)

    def init(self, canvas: Canvas, sampling: Sampling) -> MultiState:
        return MultiState(torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: MultiState) -> Ask:
        added, number = self._added(canvas, state), self._number(canvas)
        window = self._window(canvas, added)
        visible = None if self.future else number < added[:, None]
        return Ask(window, optional=window, visible=visible, rank=number.clamp(min=-1) if self.causal else None)

    def decide(self, canvas: Canvas, prediction: Prediction, state: MultiState) -> tuple[Update, MultiState]:
        added, number = self._added(canvas, state), self._number(canvas)
        open_ = prediction.confidence > -torch.inf
        calm = certainty(prediction, self.order)
        sure = prediction.confidence > self.tau
        if self.rule == "entropy":
            assert prediction.entropy is not None
            sure = open_ & (prediction.entropy < self.tau)
        if self.least == "all":
            sure = sure | best(calm)
        share = self._share(canvas)
        before = torch.cat([torch.ones_like(share[:, :1]), share[:, :-1]], 1).gather(1, number.clamp(min=0))
        full = open_ & (before >= self.ready)
        first = torch.where(full, number, full.shape[1]).amin(1, keepdim=True)
        chosen = full if self.least == "each" else full & (number == first)
        write = sure | self._least(chosen, sure, calm, number.clamp(min=0))
        write = write | best(calm) & ~write.any(1, keepdim=True)  # where a cache has not answered the active block
        return padded(canvas, Update(write, prediction.token), self.pad), replace(state, added=added)

    def notes(self, canvas: Canvas, before: MultiState, after: MultiState) -> Mapping[str, Tensor]:
        """The pipeline as ``start`` and ``end``."""
        end = canvas.prompt + after.added * self.block_length
        return {"start": canvas.block_start(self.block_length), "end": torch.minimum(end, canvas.length)}

    @staticmethod
    def _least(chosen: Tensor, sure: Tensor, calm: Tensor, number: Tensor) -> Tensor:
        """``[B, T]`` of each block with ``chosen`` positions, none of which is ``sure``, the calmest."""
        place = torch.where(chosen, ranks(calm), chosen.shape[1] + 1)
        place = torch.where(chosen & sure, 0, place)
        lowest = place.scatter_reduce(1, number, place, "amin", include_self=False).gather(1, number)
        return chosen & ~sure & (place == lowest)

    def _number(self, canvas: Canvas) -> Tensor:
        """``[B, T]`` the block of each position, negative in the prompt."""
        return (canvas.position - canvas.prompt[:, None]) // self.block_length

    def _window(self, canvas: Canvas, added: Tensor) -> Tensor:
        """``[B, T]`` the blocks worked on, from the first with a masked position."""
        inside = (canvas.position >= canvas.block_start(self.block_length)[:, None]) & canvas.response
        if canvas.spec.block is not None:
            inside = inside & (canvas.position < canvas.block_end(None)[:, None])
        return inside & (self._number(canvas) < added[:, None]) & ~canvas.done[:, None]

    def _share(self, canvas: Canvas) -> Tensor:
        """``[B, T]`` float64, of each block by number, the share that is filled; 1 of those that there are not."""
        many = torch.zeros(canvas.tokens.shape, dtype=torch.float64, device=canvas.tokens.device)
        number = self._number(canvas).clamp(min=0)
        filled = many.scatter_add(1, number, (canvas.response & (canvas.tokens != canvas.spec.mask)).double())
        whole = many.scatter_add(1, number, canvas.response.double())
        return torch.where(whole > 0, filled / whole.clamp(min=1), 1.0)

    def _added(self, canvas: Canvas, state: MultiState) -> Tensor:
        """``[B]`` blocks worked on in this forward pass: one more where the last is filled enough, and the current."""
        last = self._share(canvas).gather(1, (state.added - 1).clamp(min=0)[:, None])[:, 0]
        ended = canvas.eos_stop & (canvas.eos_at < canvas.tokens.shape[1])
        added = state.added + ((state.added == 0) | (last >= self.add) & (self.future | ~ended)).long()
        current = self._number(canvas).gather(1, canvas.frontier.clamp(max=canvas.tokens.shape[1] - 1)[:, None])[:, 0]
        return torch.maximum(added, current + 1)
