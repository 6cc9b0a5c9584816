"""The seam between policies and networks: ask -> rows -> prediction. The only place that knows of a shift."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec
from ..core.predict import MEASURES, forbid, read
from ..core.protocols import Ask, Cache, Prediction, Sampling
from ..core.rows import Rows, tiles
from .transformer import Transformer

_LOGITS_AT_ONCE = 1 << 26  # elements of [positions, vocabulary] at any time: 256 MiB in float32
_SAMPLING = 12  # sampling needs so many times more (float64, sorting)


@dataclass(frozen=True)
class Branches:
    """Cache states of the conditional branch and, under classifier-free guidance, of the one without prompt."""

    plain: Any
    free: Any = None


@dataclass(frozen=True)
class Answer:
    """A prediction with what it cost: ``work [B]`` positions computed, ``seconds`` spent in the network."""

    prediction: Prediction
    state: Branches
    work: Tensor
    seconds: float


class Denoiser:
    """A transformer with its ids: answers asks, running its layers through a cache."""

    def __init__(self, network: Transformer, spec: ModelSpec) -> None:
        self.network = network.eval()
        self.spec = spec
        arch = network.arch
        self.layers, self.width, self.kv_heads, self.head_dim = arch.layers, arch.width, arch.kv_heads, arch.head_dim

    def init(self, canvas: Canvas, cache: Cache, guidance: float = 0.0) -> Branches:
        """Empty cache states for the rows of a canvas; two of them when ``guidance`` is used."""
        like = self.network.embed.weight
        return Branches(cache.init(canvas, self, like), cache.init(canvas, self, like) if guidance else None)

    @torch.inference_mode()
    def __call__(
        self,
        canvas: Canvas,
        ask: Ask,
        cache: Cache,
        state: Branches,
        sampling: Sampling,
        step: Tensor,
        *,
        needs: frozenset[str] = frozenset(),
        guidance: float = 0.0,
    ) -> Answer:
        """One forward.

        Args:
            canvas: the rows.
            ask: what the policy wants.
            cache: runs the layers.
            state: the cache's states, from :meth:`init` or the last answer.
            sampling: per-row parameters.
            step: ``[B]`` forwards each row has made, the noise's counter.
            needs: extra parts of the prediction (``"entropy"``).
            guidance: classifier-free guidance scale s: logits u + (s + 1)(c - u), u with the prompt masked out.
        """
        started = time.perf_counter()
        want = ask.window & canvas.masked
        need = F.pad(want[:, 1:], (0, 1)) if self.spec.shift else want
        row, position = want.nonzero(as_tuple=True)
        hidden, plain, work, fresh = self._hidden(canvas.tokens, canvas, ask, need, cache, state.plain, row, position)
        if guidance:
            masked = torch.where(canvas.position < canvas.prompt[:, None], self.spec.mask, canvas.tokens)
            other, free, more, _ = self._hidden(masked, canvas, ask, need, cache, state.free, row, position)
            hidden, state, work = torch.stack([hidden, other], 1), Branches(plain, free), work + more
        else:
            state = Branches(plain)
        seconds = time.perf_counter() - started
        parts: list[dict[str, Tensor]] = []
        hot = bool((sampling.temperature > 0).any())
        size = max(1, _LOGITS_AT_ONCE // (self.network.arch.vocab * (_SAMPLING if hot else 1)))
        for at in range(0, len(row), size):
            piece = slice(at, at + size)
            started = time.perf_counter()
            logits = self._guided(hidden[piece], guidance)
            seconds += time.perf_counter() - started
            forbid(logits, self.spec)
            parts.append(read(logits, sampling, needs, row[piece], position[piece], step[row[piece]]))
        prediction = _spread(want, row, position, parts, needs, self.network.arch.vocab)
        fresh = F.pad(fresh[:, :-1], (1, 0)) if self.spec.shift else fresh
        return Answer(replace(prediction, fresh=fresh), state, work, seconds)

    def _hidden(
        self,
        tokens: Tensor,
        canvas: Canvas,
        ask: Ask,
        need: Tensor,
        cache: Cache,
        state: Any,
        row: Tensor,
        position: Tensor,
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        """Run the layers; the hidden state ``[N, C]`` that predicts each wanted position."""
        plan, state = cache.plan(canvas, ask, need, state)
        fresh = plan.compute if plan.fresh is None else plan.fresh
        source = position - 1 if self.spec.shift else position
        slot = (plan.compute.cumsum(1) - 1)[row, source]
        parts = tiles(plan.compute, plan.keys, plan.work)
        if len(parts) == 1:
            return self._tile(tokens, cache, state, parts[0])[row, slot], state, plan.work, fresh
        out = self.network.embed.weight.new_empty(len(row), self.width)
        for rows in parts:
            place = torch.full_like(canvas.prompt, -1)
            place[rows.row] = torch.arange(len(rows.members), device=place.device)
            mine = (place[row] >= 0).nonzero()[:, 0]
            out[mine] = self._tile(tokens, cache, state, rows)[place[row[mine]], slot[mine]]
        return out, state, plan.work, fresh

    def _tile(self, tokens: Tensor, cache: Cache, state: Any, rows: Rows) -> Tensor:
        """Hidden states ``[B, Q, C]`` of the positions of some rows."""
        rows = replace(rows, rotary=self.network.rotate_rows(rows))
        at = rows.position if rows.whole else rows.position.clamp(max=rows.total - 1)
        hidden: Tensor = self.network.embed(rows.of(tokens).gather(1, at))
        for index, block in enumerate(self.network.blocks):
            hidden = cache.layer(index, block, hidden, rows, state)  # type: ignore[arg-type]
        return hidden

    def _guided(self, hidden: Tensor, guidance: float) -> Tensor:
        if not guidance:
            return self.network.logits(hidden)
        conditional, free = self.network.logits(hidden).unbind(1)
        return free + (guidance + 1) * (conditional - free)


def _spread(
    want: Tensor, row: Tensor, position: Tensor, parts: list[dict[str, Tensor]], needs: frozenset[str], vocab: int
) -> Prediction:
    """The lines' values at their places in ``[B, T]``."""
    spread = {
        "token": torch.zeros_like(want, dtype=torch.long),
        "confidence": torch.full(want.shape, -torch.inf, dtype=torch.float64, device=want.device),
        **{name: torch.zeros_like(want, dtype=torch.float64) for name in MEASURES if name in needs},
    }
    for name, values in spread.items() if parts else ():
        values[row, position] = torch.cat([part[name] for part in parts]).to(values.dtype)
    logits = None
    if "logits" in needs:
        logits = torch.cat([part["logits"] for part in parts]) if parts else torch.zeros(0, vocab, device=want.device)
    return Prediction(**spread, logits=logits)
