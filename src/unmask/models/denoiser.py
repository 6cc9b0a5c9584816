"""The seam between policies and networks: ask -> rows -> prediction. The only place that knows of a shift."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec
from ..core.predict import MEASURES, forbid, hot, likeliest, read
from ..core.protocols import Ask, Cache, Plan, Prediction, Sampling
from ..core.rows import Rows, tiles
from .probes import Probes
from .transformer import Transformer

_LOGITS_AT_ONCE = 1 << 26  # elements of [positions, vocabulary] at any time: 256 MiB in float32
_SAMPLING = 12  # sampling needs so many times more (float64, sorting)
Pair = tuple[Tensor, Tensor]


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


@dataclass(frozen=True)
class Lines:
    """Which network outputs are read, by row and column of the canvas: those the policy asked for, then the probes',
    then those that a cache wants for itself.

    Attributes:
        row, column: ``[N]`` of all.
        asked: rows and positions predicted for the policy, each ``[M]``.
        probed: the probes.
        aside: rows and positions predicted for the cache.
    """

    row: Tensor
    column: Tensor
    asked: Pair
    probed: Probes | None
    aside: Pair | None

    @staticmethod
    def of(canvas: Canvas, ask: Ask, want: Tensor, probes: Probes | None, plans: list[Plan]) -> Lines:
        """Those of the masks ``want [B, T]`` that are computed in every branch, and what else is."""
        back, computed = int(canvas.spec.shift), plans[0].compute
        for plan in plans[1:]:
            computed = computed & plan.compute
        if ask.optional is not None:
            want = want & canvas.targets(computed)
        row, position = want.nonzero(as_tuple=True)
        lines = Lines(row, position - back if back else position, (row, position), None, None)
        if probes is not None:
            probed = probes.select(~canvas.masked)
            lines = replace(lines.more(probed.row, probed.column), probed=probed)
        if plans[0].read is not None:
            row, position = (plans[0].read & canvas.targets(computed)).nonzero(as_tuple=True)
            lines = replace(lines.more(row, position - back), aside=(row, position))
        return lines

    def more(self, row: Tensor, column: Tensor) -> Lines:
        """These and ``row, column [M]``."""
        return replace(self, row=torch.cat([self.row, row]), column=torch.cat([self.column, column]))

    def split(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three parts of ``hidden [N, ...]``."""
        if self.probed is None and self.aside is None:
            return hidden, hidden[:0], hidden[:0]
        begin = len(self.asked[0])
        end = begin + (0 if self.probed is None else len(self.probed.row))
        return hidden[:begin], hidden[begin:end], hidden[end:]


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
        probes = None if ask.probe is None else Probes.of(canvas, ask.probe)
        want = ask.window & canvas.masked
        need = canvas.sources(want) if probes is None else canvas.sources(want) | probes.held
        branches = [state.plain, state.free] if guidance else [state.plain]
        planned = [cache.plan(canvas, ask, need, branch) for branch in branches]
        lines = Lines.of(canvas, ask, want, probes, [plan for plan, _ in planned])
        run = partial(self._hidden, lines, probes, cache)
        hidden = run(canvas.tokens, *planned[0])
        if guidance:
            bare = torch.where(canvas.position < canvas.prompt[:, None], self.spec.mask, canvas.tokens)
            hidden = torch.stack([hidden, run(bare, *planned[1])], 1)
        asked, probed, aside = lines.split(hidden)
        seconds = time.perf_counter() - started
        (row, position), parts = lines.asked, list[dict[str, Tensor]]()
        more = _SAMPLING if hot(sampling, needs) else 1
        for piece, logits, spent in self._logits(asked, guidance, more):
            seconds += spent
            parts.append(read(logits, sampling, needs, row[piece], position[piece], step[row[piece]]))
        plan = planned[0][0]
        fresh = canvas.targets(plan.compute if plan.fresh is None else plan.fresh)
        prediction = _spread(want, row, position, parts, needs, self.network.arch.vocab)
        prediction = replace(prediction, fresh=fresh)
        if lines.probed is not None:
            share = torch.zeros_like(prediction.confidence)
            for piece, logits, spent in self._logits(probed, guidance):
                seconds += spent
                at = lines.probed.row[piece], lines.probed.position[piece]
                share[at] = logits.double().softmax(-1).gather(-1, canvas.tokens[at][:, None])[:, 0]
            prediction = replace(prediction, probe=share)
        if lines.aside is not None:
            sure = torch.full_like(prediction.confidence, -torch.inf)
            for piece, logits, spent in self._logits(aside, guidance):
                seconds += spent
                at = lines.aside[0][piece], lines.aside[1][piece]
                sure[at] = likeliest(logits)[1]
            prediction = replace(prediction, aside=sure)
        work = plan.work + planned[1][0].work if guidance else plan.work
        return Answer(prediction, Branches(*(after for _, after in planned)), work, seconds)

    def _hidden(
        self, lines: Lines, probes: Probes | None, cache: Cache, tokens: Tensor, plan: Plan, state: Any
    ) -> Tensor:
        """Run the layers; the hidden state ``[N, C]`` of each line."""
        row, column = lines.row, lines.column
        if probes is not None:
            tokens = probes.filled(tokens, self.spec.mask)
        slot = (plan.compute.cumsum(1) - 1)[row, column]
        parts = tiles(plan.compute, plan.keys, plan.work)
        run = partial(self._tile, tokens, cache, state, probes, plan.keys)
        if len(parts) == 1:
            return run(parts[0])[row, slot]
        out = self.network.embed.weight.new_empty(len(row), self.width)
        for rows in parts:
            place = torch.full_like(tokens[:, 0], -1)
            place[rows.row] = torch.arange(len(rows.members), device=place.device)
            mine = (place[row] >= 0).nonzero()[:, 0]
            out[mine] = run(rows)[place[row[mine]], slot[mine]]
        return out

    def _tile(
        self, tokens: Tensor, cache: Cache, state: Any, probes: Probes | None, keys: Tensor, rows: Rows
    ) -> Tensor:
        """Hidden states ``[B, Q, C]`` of the positions of some rows."""
        rows, place = (rows, None) if probes is None else probes.aim(rows, keys)
        rows = replace(rows, rotary=self.network.rotate_rows(rows, place))
        at = rows.position if rows.whole else rows.position.clamp(max=rows.total - 1)
        hidden: Tensor = self.network.embed(rows.of(tokens).gather(1, at))
        for index, block in enumerate(self.network.blocks):
            hidden = cache.layer(index, block, hidden, rows, state)  # type: ignore[arg-type]
        return hidden

    def _logits(self, hidden: Tensor, guidance: float, more: int = 1) -> Iterator[tuple[slice, Tensor, float]]:
        """Logits of hidden states, some lines at a time: which, the logits, seconds in the head.

        Ids that may not be said have -inf. ``more``: how many times the logits' memory the caller needs with them.
        """
        size = max(1, _LOGITS_AT_ONCE // (self.network.arch.vocab * more))
        for at in range(0, len(hidden), size):
            piece, started = slice(at, at + size), time.perf_counter()
            logits = self._guided(hidden[piece], guidance)
            yield piece, forbid(logits, self.spec), time.perf_counter() - started

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
