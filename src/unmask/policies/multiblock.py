"""d3LLM's entropy-based multi-block decoding (arXiv 2601.07568): the next blocks begin before this one is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import param
from ..core.endings import check_pad, padded
from ..core.pick import best
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
    """

    name = "multiblock"
    paper = "arXiv 2601.07568"
    needs = frozenset({"entropy"})

    tau: float = param(0.45, "entropy in nats below which a position is committed; 0: one position alone", ge=0)
    block_length: int = param(32, "positions per block", ge=1)
    add: float = param(0.1, "share of the last block that is filled when the next one joins", ge=0, le=1)
    ready: float = param(0.95, "share of a block that is filled when the next one is fully active", ge=0, le=1)
    least: str = param(
        "active", "where the least entropy is enough: in the first fully active block, or of all, too",
        choices=("active", "all"), hidden=True,
    )  # fmt: skip
    pad: int | None = param(
        None, "id that is written behind an end of text at once, over what stands there", ge=0, hidden=True
    )

    @property
    def remasks(self) -> bool:
        return self.pad is not None

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        check_pad(self.name, self.pad, spec)

    def init(self, canvas: Canvas, sampling: Sampling) -> MultiState:
        return MultiState(torch.zeros_like(canvas.prompt))

    def ask(self, canvas: Canvas, state: MultiState) -> Ask:
        window = self._window(canvas, self._added(canvas, state))
        return Ask(window, optional=window)

    def decide(self, canvas: Canvas, prediction: Prediction, state: MultiState) -> tuple[Update, MultiState]:
        assert prediction.entropy is not None
        added, number = self._added(canvas, state), self._number(canvas)
        open_ = prediction.confidence > -torch.inf
        calm = torch.where(open_, -prediction.entropy.double(), -torch.inf)
        sure = open_ & (prediction.entropy < self.tau)
        if self.least == "all":
            sure = sure | best(calm)
        share = self._share(canvas)
        before = torch.cat([torch.ones_like(share[:, :1]), share[:, :-1]], 1).gather(1, number.clamp(min=0))
        full = open_ & (before >= self.ready)
        first = torch.where(full, number, full.shape[1]).amin(1, keepdim=True)
        chosen = full & (number == first)
        must = best(torch.where(chosen, calm, -torch.inf)) & ~(sure & chosen).any(1, keepdim=True)
        write = sure | must
        write = write | best(calm) & ~write.any(1, keepdim=True)  # where a cache has not answered the active block
        return padded(canvas, Update(write, prediction.token), self.pad), replace(state, added=added)

    def notes(self, canvas: Canvas, before: MultiState, after: MultiState) -> Mapping[str, Tensor]:
        """The pipeline as ``start`` and ``end``."""
        end = canvas.prompt + after.added * self.block_length
        return {"start": canvas.block_start(self.block_length), "end": torch.minimum(end, canvas.length)}

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
        added = state.added + ((state.added == 0) | (last >= self.add)).long()
        current = self._number(canvas).gather(1, canvas.frontier.clamp(max=canvas.tokens.shape[1] - 1)[:, None])[:, 0]
        return torch.maximum(added, current + 1)
