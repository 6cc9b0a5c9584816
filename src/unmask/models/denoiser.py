"""The seam between policies and networks: ask -> rows -> prediction. The only place that knows of a shift."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.canvas import Canvas, ModelSpec
from ..core.predict import MEASURES, ban, forbid, hot, likeliest, read
from ..core.protocols import Ask, Cache, Plan, Prediction, Sampling
from ..core.rows import Rows, computed, tiles
from .lines import Lines, Pair
from .probes import Probes
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
    """A prediction with what it cost: ``work [B]`` positions computed, ``seconds`` spent in the network.

    ``computed()`` is ``[B, T]``, how many layers have computed each position, of both branches together under guidance.
    """

    prediction: Prediction
    state: Branches
    work: Tensor
    seconds: float
    computed: Callable[[], Tensor]


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
            guidance: classifier-free guidance scale s: logits u + (s + 1)(c - u), u with the prompt and
                all fixed tokens masked out.
        """
        started = time.perf_counter()
        probes = None if ask.probe is None else Probes.of(canvas, ask.probe)
        want = ask.window & canvas.masked
        scored = None if ask.score is None else ask.score & canvas.response & (canvas.tokens != self.spec.mask)
        need = canvas.sources(want if scored is None else want | scored)
        need = need if probes is None else need | probes.held
        branches = [state.plain, state.free] if guidance else [state.plain]
        planned = [cache.plan(canvas, ask, need, branch) for branch in branches]
        lines = Lines.of(canvas, ask, want, scored, probes, [plan for plan, _ in planned])
        ran = list[Rows]()
        run = partial(self._hidden, lines, probes, cache, ran)
        hidden = run(canvas.tokens, *planned[0])
        if guidance:
            given = (canvas.position < canvas.prompt[:, None]) | canvas.fixed
            hidden = torch.stack([hidden, run(torch.where(given, self.spec.mask, canvas.tokens), *planned[1])], 1)
        (_, (row, position), asked), *others = lines.split(hidden)
        seconds, parts = time.perf_counter() - started, list[dict[str, Tensor]]()
        more = _SAMPLING if hot(sampling, needs) else 1
        for piece, logits, spent in self._logits(asked, guidance, more):
            seconds += spent
            ban(logits, sampling, canvas, row[piece], position[piece])
            parts.append(read(logits, sampling, needs, row[piece], position[piece], step[row[piece]]))
        plan = planned[0][0]
        fresh = canvas.targets(plan.compute if plan.fresh is None else plan.fresh)
        prediction = replace(_spread(want, row, position, parts, needs, self.network.arch.vocab), fresh=fresh)
        for name, place, part in others:
            told, spent = self._told(canvas, sampling, place, part, guidance, best=name == "aside")
            seconds, prediction = seconds + spent, replace(prediction, **{name: told})
        work = plan.work + planned[1][0].work if guidance else plan.work
        tell = partial(computed, [replace(r, keys=None, scratch={}) for r in ran], canvas.tokens.shape, self.layers)
        return Answer(prediction, Branches(*(after for _, after in planned)), work, seconds, tell)

    def _told(
        self, canvas: Canvas, sampling: Sampling, place: Pair, hidden: Tensor, guidance: float, best: bool
    ) -> tuple[Tensor, float]:
        """``[B, T]`` the probability of the token at each place, or of the likeliest (``best``), and seconds spent."""
        told = torch.full(canvas.tokens.shape, -torch.inf if best else 0.0, dtype=torch.float64, device=hidden.device)
        seconds = 0.0
        for piece, logits, spent in self._logits(hidden, guidance):
            seconds += spent
            at = place[0][piece], place[1][piece]
            ban(logits, sampling, canvas, *at)
            own = None if best else logits.double().softmax(-1).gather(-1, canvas.tokens[at][:, None])[:, 0]
            told[at] = likeliest(logits)[1] if own is None else own
        return told, seconds

    def _hidden(
        self, lines: Lines, probes: Probes | None, cache: Cache, ran: list[Rows], tokens: Tensor, plan: Plan, state: Any
    ) -> Tensor:
        """Run the layers; the hidden state ``[N, C]`` of each line. ``ran`` is told the rectangles."""
        row, column = lines.all()
        if probes is not None:
            tokens = probes.filled(tokens, self.spec.mask)
        slot = (plan.compute.cumsum(1) - 1)[row, column]
        parts = tiles(plan.compute, plan.keys, plan.work)
        ran += parts
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
