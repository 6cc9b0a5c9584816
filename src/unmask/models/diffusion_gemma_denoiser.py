"""Answers asks with DiffusionGemma: what is final is encoded, the canvas behind it denoised, in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import NO_MASK, Canvas, ModelSpec
from ..core.predict import MEASURES, gumbel, likeliest, suppress, temper
from ..core.protocols import Ask, Sampling
from ..core.rows import Rows, computed
from ..core.threads import for_work
from .attending import Watch
from .denoiser import SAMPLING, Answer, Branches, Clock, Denoiser, layout, spread
from .diffusion_gemma_network import DiffusionGemma, GemmaBlock, Seen, View
from .lines import Lines
from .probes import Probes


@dataclass(frozen=True)
class Carried:
    """What a step hands to the next: ``signal [B, C, D]``, the mean embedding of its prediction for each position of
    the canvas, and ``start [B]``, where that canvas begins; -1: there was none.
    """

    signal: Tensor
    start: Tensor

    def at(self, start: Tensor) -> Tensor:
        """The signal for canvases that begin at ``start [B]``: nothing for a new one."""
        return torch.where((self.start == start)[:, None, None], self.signal, 0.0)


@dataclass(frozen=True)
class Pass:
    """What the layers need in one forward pass: the cache's state, where canvases begin ``[B]``, their signal."""

    cache: Any
    start: Tensor
    signal: Tensor


class GemmaDenoiser(Denoiser):
    """DiffusionGemma with its ids; see :class:`Denoiser`.

    A forward pass denoises the canvas that the ask's window covers, and encodes what precedes it as far as the cache
    does not hold it. It needs ``draft`` and ``heat`` of the ask, and has no guidance, probes or scores.
    """

    network: DiffusionGemma

    def __init__(self, network: DiffusionGemma, spec: ModelSpec) -> None:
        super().__init__(network, spec)
        self.kinds = set(network.sizes.kinds)

    @property
    def tails(self) -> list[tuple[int, int]]:
        """Of each layer the number of key and value heads, and their size."""
        return [(kind.kv_heads, kind.head_dim) for kind in self.network.sizes.kinds]

    def init(self, canvas: Canvas, cache: Cache, guidance: float = 0.0) -> Branches:
        """The states before the first forward pass."""
        like, size = self.network.embed.weight, canvas.spec.block or 1
        signal = like.new_zeros(len(canvas.tokens), size, self.width)
        own = Carried(signal, torch.full_like(canvas.prompt, -1))
        return Branches(cache.init(canvas, self, like), None, own)

    @torch.no_grad()
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
        """One forward pass; see :class:`Denoiser`."""
        assert ask.draft is not None
        assert ask.heat is not None
        clock = Clock(self.network.device)
        with clock:
            start = canvas.first(ask.window)
            plan, after = cache.plan(canvas, ask, ask.window, state.plain)
            lines = Lines.of(canvas, ask, ask.window, None, None, [plan])
            layouts, outputs, _ = layout([plan], lines, None)
            tokens = torch.where(canvas.tokens == NO_MASK, ask.draft, canvas.tokens).clamp(min=0)
            ran = list[Rows]()
            planned = plan, Pass(after, start, state.own.at(start))
            hidden = self._hidden(outputs, None, cache, None, ran, None, tokens, planned, layouts[0])
        ((_, (row, position), asked),) = outputs.split(hidden)
        answered = canvas.masked[row, position]
        parts, signal = list[dict[str, Tensor]](), torch.zeros_like(state.own.signal)
        for piece, logits in self._logits(asked, 0.0, clock, SAMPLING if sampling.samples else 2):
            own, at = row[piece], position[piece]
            with for_work(self._head_work(len(logits)), self.network.pace("reading")):
                suppress(logits, sampling, canvas, own, at)
                heated = logits / ask.heat[own, None].to(logits.dtype)
                signal[own, at - start[own]] = self.network.signal(heated)
                token, confidence = likeliest(logits)
                found = {"token": token, "confidence": confidence}
                found |= {name: measure(heated) for name, measure in MEASURES.items() if name in needs}
                if "logits" in needs:
                    found["logits"] = heated
                if "drawn" in needs:
                    found["drawn"] = drawn(heated, token, sampling, own, at, step[own])
                parts.append({name: values[answered[piece]] for name, values in found.items()})
        prediction = spread(canvas, row[answered], position[answered], parts, needs, sampling)
        tell = partial(computed, [replace(r, keys=None, scratch={}) for r in ran], canvas.tokens.shape, self.layers)
        return Answer(
            replace(prediction, fresh=plan.compute),
            Branches(after, None, Carried(signal, start)),
            plan.work.double(),
            clock.seconds,
            tell,
        )

    def _tile(
        self,
        tokens: Tensor,
        cache: Cache,
        state: Pass,
        probes: Probes | None,
        keys: Tensor,
        rank: Tensor | None,
        watch: Watch | None,
        rows: Rows,
    ) -> Tensor:
        """Hidden states ``[B, Q, C]`` of the positions of some rows; nobody watches its attention."""
        network, start = self.network, rows.of(state.start)
        size = state.signal.shape[1]
        work = len(rows.members) * rows.slots * (self.layer_weights + 2 * rows.total * self.width)
        with for_work(work, self.network.pace("layers", cache.name)):
            view = View.of(self.kinds, rows, start, size)
            ids = rows.of(tokens).gather(1, rows.position.clamp(max=rows.total - 1))
            place = (rows.position - start[:, None]).clamp(0, size - 1)[..., None].expand(-1, -1, self.width)
            hidden = network.inputs(ids, view.canvas, rows.of(state.signal).gather(1, place))
            for index, block in enumerate(network.blocks):
                assert isinstance(block, GemmaBlock)
                hidden = cache.layer(index, Seen(block, view), hidden, rows, state.cache) * block.factor(view.canvas)
        return hidden

    @torch.no_grad()
    def first_not_finite(self, tokens: Tensor) -> str | None:
        """Where the numbers of one row's ``tokens [T]`` first stop being finite, all of them encoded; None: nowhere."""
        ids = tokens.clamp(min=0)[None]
        every = torch.ones_like(ids, dtype=torch.bool)
        rows = Rows(None, (0,), torch.arange(ids.shape[1], device=ids.device)[None], None, None, ids.shape[1],
                    ids.shape[1], True, self.network.rotary)  # fmt: skip
        view = View.of(self.kinds, rows, torch.full_like(ids[:, 0], ids.shape[1]), 1)
        hidden = self.network.inputs(ids, ~every, self.network.embed.weight.new_zeros(1, ids.shape[1], self.width))
        if not bool(hidden.isfinite().all()):
            return "the embedding"
        for index, block in enumerate(self.network.blocks):
            assert isinstance(block, GemmaBlock)
            seen = Seen(block, view)
            hidden = hidden + seen.attend(*seen.qkv(hidden, rows.rotary), None)
            hidden = (hidden + seen.mlp(hidden)) * block.factor(view.canvas)
            if not bool(hidden.isfinite().all()):
                return f"layer {index + 1} of {self.layers}"
        return None if bool(self.network.logits(hidden[0, -1:]).isfinite().all()) else "the head"


def drawn(heated: Tensor, best: Tensor, sampling: Sampling, row: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """``[N]`` ids sampled from ``heated [N, V]`` logits, at each row's temperature, which multiplies the schedule's;
    ``best`` where that is 0.
    """
    if not sampling.samples:
        return best
    noise = gumbel(sampling.seed[row], position, step, heated.shape[1])
    return torch.where(sampling.temperature[row] > 0, (temper(heated, sampling, row) + noise).argmax(-1), best)
