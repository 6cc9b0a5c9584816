"""A window that slides over the response: DCD (arXiv 2601.02076) and DSB (arXiv 2602.05992)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec, Update
from ..core.config import Spec, param
from ..core.endings import check_pad, padded
from ..core.errors import SpecError
from ..core.pick import top
from ..core.policy import Policy, Wrapper
from ..core.protocols import Ask, Prediction
from ..core.spans import Spanned


@dataclass(frozen=True)
class Window(Wrapper):
    """Decodes by ``policy`` in a window of the first masked positions, as many as the policy's ``block_length``.

    The window begins with the first masked position and moves after every forward pass, so that it always has as many
    masked positions to choose from, where a block's last ones wait for each other. It never reaches over an end of
    text.
    """

    name = "window"
    paper = "arXiv 2601.02076"
    threshold = "policy"
    refuses = "policies without blocks, or whose blocks must have the same length: it moves on at any position"

    policy: Policy = param(Spec("threshold"), "policy that decodes the window, as a spec")
    longest: int | None = param(None, "most positions of the window, filled ones too; none: any number", ge=1)
    count: int | None = param(
        None,
        "commit so many of the most confident positions of the window, whatever the policy says",
        ge=1,
        hidden=True,
    )

    pad: int | None = param(
        None, "id that is written behind an end of text at once, over what stands there", ge=0, hidden=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        held = self.policy
        if isinstance(held, Policy) and not (held.spans and getattr(held, "block_length", None)):
            raise SpecError(f"window: policy must have blocks that may have any length; {held} has not")

    @property
    def remasks(self) -> bool:
        return self.pad is not None

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        super().check(prompt, gen_length, spec)
        check_pad(self.name, self.pad, spec)

    def ask(self, canvas: Canvas, state: Any) -> Ask:
        return self.policy.ask(self._view(canvas), state)

    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        view = self._view(canvas)
        update, after = self.policy.decide(view, prediction, state)
        if self.count is not None:
            update = Update(top(prediction.confidence, self.count), prediction.token)
        return padded(canvas, update, self.pad), after

    def notes(self, canvas: Canvas, before: Any, after: Any) -> Mapping[str, Tensor]:
        """Those of the policy, and the window as ``start`` and ``end``."""
        view = self._view(canvas)
        return {**self.policy.notes(canvas, before, after), "start": view.low, "end": view.high}

    def _view(self, canvas: Canvas) -> Spanned:
        """The canvas with the window as its current block."""
        size: int = self.policy.block_length  # type: ignore[attr-defined]
        behind = canvas.open & (canvas.open.cumsum(1) > size)
        high = torch.minimum(canvas.first(behind), canvas.length)
        if self.longest is not None:
            high = torch.minimum(high, canvas.frontier + self.longest)
        high = torch.where(canvas.eos_stop, torch.minimum(high, canvas.eos_at), high)
        return Spanned.of(canvas, canvas.frontier, torch.maximum(high, canvas.frontier))
