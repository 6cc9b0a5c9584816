"""PC-Sampler (arXiv 2508.13021): early positions first, and tokens that say more than common ones do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import blocks, param
from ..core.errors import ModelError
from ..core.pick import block_steps, top
from ..core.policy import Policy
from ..core.protocols import Ask, Prediction, Sampling
from ..core.values import plain

_LEAST = 1e-9  # added to every frequency


@dataclass(frozen=True)
class PcState:
    """All ``[B]``: ``steps`` per block, ``start`` of the current block, forward passes in it (``step``), masked
    positions it began with (``masks``).
    """

    steps: Tensor
    start: Tensor
    step: Tensor
    masks: Tensor


@dataclass(frozen=True)
class PcSampler(Policy):
    """Commits in each forward pass the positions of the block whose score is highest, as many as ``vanilla`` does.

    The score of a predicted token of probability p, n positions behind the block's start, is exp(-``decay`` n) times
    the smaller of ``most`` and -p ln f: f is the token's share of a corpus, so that a token that is common anyway
    counts for little. The same share for all tokens, the default, leaves position and confidence.
    """

    name = "pc_sampler"
    paper = "arXiv 2508.13021"

    decay: float = param(0.25, "how fast a score falls with the position in the block; 0: not at all", ge=0)
    most: float = param(10.0, "largest score before that", gt=0)
    steps: int | None = param(None, "forward passes for the whole response; none: one per token", ge=1)
    block_length: int | None = blocks()
    frequencies: str | None = param(
        None, "JSON file with the share of each token of a corpus; none: the same for all", file=True
    )

    @property
    def paced(self) -> bool:
        return self.steps is not None

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        block_steps(self, torch.tensor([gen_length]), spec)
        self._share(spec, torch.device("cpu"))

    def init(self, canvas: Canvas, sampling: Sampling) -> PcState:
        zero = torch.zeros_like(canvas.prompt)
        return PcState(block_steps(self, canvas.wanted - canvas.prompt, canvas.spec), zero - 1, zero, zero)

    def ask(self, canvas: Canvas, state: PcState) -> Ask:
        block = canvas.block(self.block_length)
        return Ask(block, cell=canvas.cell(self.block_length), optional=block)

    def decide(self, canvas: Canvas, prediction: Prediction, state: PcState) -> tuple[Update, PcState]:
        start = canvas.block_start(self.block_length)
        fresh = start != state.start
        step = torch.where(fresh, 0, state.step)
        left = canvas.block(self.block_length) & canvas.masked
        masks = torch.where(fresh, left.sum(1), state.masks)
        quota = masks // state.steps + (step < masks % state.steps)
        share = self._share(canvas.spec, canvas.tokens.device)
        open_ = prediction.confidence > -torch.inf
        worth = -prediction.confidence * (share + _LEAST).log()[prediction.token]
        late = (-self.decay * (canvas.position - start[:, None])).double().exp()
        score = torch.where(open_, late * worth.clamp(max=self.most), -torch.inf)
        after = PcState(state.steps, start, step + 1, masks)
        return Update(top(score, 1 if self.steps is None else quota.clamp(min=1)), prediction.token), after

    def _share(self, spec: ModelSpec, device: torch.device) -> Tensor:
        """``[V]`` float64, each token's share."""
        if self.frequencies is None:
            return torch.full((spec.vocab,), 1 / spec.vocab, dtype=torch.float64, device=device)
        file = Path(self.frequencies)
        try:
            stamp = file.stat()
        except OSError:
            raise ModelError(
                f"{self.name}: no file {str(file)!r}; expected one of JSON with a share per token"
            ) from None
        return _read(file.resolve(), (stamp.st_mtime_ns, stamp.st_size), spec.vocab, device)


@lru_cache(maxsize=8)
def _read(file: Path, stamp: tuple[int, int], vocab: int, device: torch.device) -> Tensor:
    """The shares in a file: a list of one per id, or how often each of some ids was counted, others as if once."""
    wrong = f"pc_sampler: {str(file)!r} must hold a JSON list of {vocab} shares, or an object of counts by id; "
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(wrong + f"it cannot be read: {str(error).splitlines()[0]}") from None
    if isinstance(found, dict):
        ids = {int(key): value for key, value in found.items() if key.isdecimal() and int(key) < vocab}
        if len(ids) < len(found):
            odd = next(key for key in found if not key.isdecimal() or int(key) >= vocab)
            raise ModelError(wrong + f"it has the key {odd!r}; accepted are 0 to {vocab - 1}")
        found = [ids.get(i, 1) for i in range(vocab)]
    if not isinstance(found, list) or len(found) != vocab:
        held = f"{len(found)} of them" if isinstance(found, list) else f"{found!r:.40}"
        raise ModelError(wrong + f"it holds {held}")
    numbers = [plain(value) for value in found]
    odd = next((i for i, value in enumerate(numbers) if value is None or not 0 <= value < float("inf")), None)
    if odd is not None or not any(numbers):
        raise ModelError(wrong + (f"id {odd} has {found[odd]!r:.40}" if odd is not None else "all are 0"))
    share = torch.tensor(numbers, dtype=torch.float64, device=device)
    return share / max(1.0, float(share.sum()))
