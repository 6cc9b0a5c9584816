"""The seam between policies and networks: ask -> rows -> prediction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.canvas import Canvas, ModelSpec
from ..core.predict import MEASURES, delayed, forbid, hot, likeliest, read, searching, steer, suppress, temper
from ..core.protocols import Ask, Plan, Prediction, Sampling
from ..core.rows import Counts, Rows, compact, computed, gather, sent, tiles
from ..core.threads import for_work
from .attending import Watch
from .graphs import Graphs
from .lines import Lines, Outputs, Pair
from .probes import Probes
from .transformer import Transformer

_LOGITS_AT_ONCE = 1 << 26  # elements of [positions, vocabulary] at any time: 256 MiB in float32
SAMPLING = 12  # sampling needs so many times more (float64, sorting)


@dataclass(frozen=True)
class Branches:
    """Cache states of the conditional branch and, under classifier-free guidance, of the one without prompt; ``own`` is
    what the model itself hands from one forward pass to the next, if it does.
    """

    plain: Any
    free: Any = None
    own: Any = None


@dataclass(frozen=True)
class Answer:
    """A prediction with what it cost: ``work [B]`` positions computed, ``seconds()`` spent in the network, once the
    device has finished.

    ``computed()`` is ``[B, T]``, how many layers have computed each position, of both branches together under guidance.
    ``touched [B, Q]``: of rows with several canvases, the positions that any of them computed (T: none).
    """

    prediction: Prediction
    state: Branches
    work: Tensor
    seconds: Callable[[], float]
    computed: Callable[[], Tensor]
    touched: Tensor | None = None


class Clock:
    """Time spent in ``with`` blocks; on CUDA the device's own, which may be read once it has finished."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def __enter__(self) -> None:
        self.marks.append(self._mark())

    def __exit__(self, *error: object) -> None:
        self.marks.append(self._mark())

    def seconds(self) -> float:
        """The sum of the blocks."""
        spans = zip(self.marks[::2], self.marks[1::2], strict=True)
        if self.cuda:
            return sum(float(begin.elapsed_time(end)) for begin, end in spans) / 1000
        return float(sum(end - begin for begin, end in spans))


class Denoiser:
    """A transformer with its ids: answers asks, running its layers through a cache."""

    def __init__(self, network: Transformer, spec: ModelSpec) -> None:
        self.network = network.eval()
        self.spec = spec
        self.lock = threading.RLock()  # held during every forward pass: threads take turns
        self.graphs: Graphs | None = None
        arch = network.arch
        self.layers, self.width, self.head_dim = arch.layers, arch.width, arch.head_dim
        self.heads, self.kv_heads = arch.heads, arch.kv_heads
        used = sum(p.numel() for p in network.blocks.parameters()) - network.idle
        self.layer_weights = used // max(1, arch.layers)

    @property
    def tails(self) -> Sequence[tuple[int, int]]:
        """Of each layer the number of key and value heads, and their size."""
        return [(self.kv_heads, self.head_dim)] * self.layers

    def init(self, canvas: Canvas, cache: Cache, guidance: float = 0.0) -> Branches:
        """Empty cache states for the rows of a canvas; two of them when ``guidance`` is used."""
        like = self.network.embed.weight
        return Branches(cache.init(canvas, self, like), cache.init(canvas, self, like) if guidance else None)

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
        """One forward pass. Waits for the device once, between the cache's plan and the layers.

        Args:
            canvas: the rows.
            ask: what the policy wants.
            cache: runs the layers.
            state: the cache's states, from :meth:`init` or the last answer.
            sampling: per-row parameters.
            step: ``[B]`` forward passes each row has made, the noise's counter.
            needs: extra parts of the prediction (``"entropy"``).
            guidance: classifier-free guidance scale s: logits u + (s + 1)(c - u), u with the prompt and
                all fixed tokens masked out.
        """
        clock = Clock(self.network.device)
        with clock:
            ask = ask if ask.forks is None else ask.without(ask.forks.idle)
            want = ask.window & canvas.masked
            probes = Probes.wanted(canvas, ask, want)
            if ask.reread is not None:
                want = want | ask.reread & canvas.filled
            scored = None if ask.score is None else ask.score & canvas.filled
            need = canvas.sources(want if scored is None else want | scored)
            need = need if probes is None else probes.needed(need)
            watch = Watch.of(ask.looks, canvas, self.layers, self.network.embed.weight)
            need = need if watch is None else need | watch.computed
            branches = [state.plain, state.free] if guidance else [state.plain]
            planned = [_planned(cache, canvas, ask, need, branch) for branch in branches]
            plans = [plan for plan, _ in planned]
            lines = Lines.of(canvas, ask, want, scored, probes, plans)
            rank, union = canvas.rank if ask.rank is None else ask.rank, _union(ask, plans)
            layouts, outputs, most = layout(plans, lines, rank, union)
            tokens = [_given(canvas, ask), *([self._unprompted(canvas)] if guidance else [])]
            ran = list[Rows]()
            run = partial(self._hidden, outputs, probes, cache, rank, ran)
            watches = [watch, None]  # of the conditional branch alone
            found = [run(*each) for each in zip(watches, tokens, planned, layouts, strict=False)]
            hidden = torch.stack(found, 1) if guidance else found[0]
        (_, (row, position), asked), *others = outputs.split(hidden)
        parts = list[dict[str, Tensor]]()
        sampled = hot(sampling, needs)
        more, pace = SAMPLING if sampled else 1, self.network.pace("sampling" if sampled else "reading")
        search = searching(canvas, sampling, needs, row, position, step)
        for piece, logits in self._logits(asked, guidance, clock, more):
            with for_work(self._head_work(len(logits)), pace):
                steer(logits, ask, sampling, canvas, row[piece], position[piece])
                parts.append(read(logits, sampling, needs, row[piece], position[piece], step[row[piece]]))
                search.add(piece, logits, parts[-1])
        search.finish()
        fresh = canvas.targets(plans[0].compute if plans[0].fresh is None else plans[0].fresh)
        prediction = replace(spread(canvas, row, position, parts, needs, sampling), fresh=fresh)
        prediction = replace(prediction, attention=None if watch is None else watch.seen())
        for name, place, part in others:
            best = {"aside": frozenset[str](), "beside": needs, "end": frozenset[str]()}.get(name)
            told = self._told(canvas, sampling, place, part, guidance, clock, best, ends=name == "end")
            prediction = replace(prediction, **{name: told})  # type: ignore[arg-type]
        work = torch.stack([plan.work.double() for plan in plans]).sum(0)
        tell = partial(computed, [replace(r, keys=None, scratch={}) for r in ran], canvas.tokens.shape, self.layers)
        touched = None if union is None else compact(union, most)
        return Answer(prediction, Branches(*(after for _, after in planned)), work, clock.seconds, tell, touched)

    def _unprompted(self, canvas: Canvas) -> Tensor:
        """``[B, T]`` the tokens with prompt and fixed ones masked."""
        given = (canvas.position < canvas.prompt[:, None]) | canvas.fixed
        return torch.where(given, self.spec.mask, canvas.tokens)

    def _told(
        self,
        canvas: Canvas,
        sampling: Sampling,
        place: Pair,
        hidden: Tensor,
        guidance: float,
        clock: Clock,
        best: frozenset[str] | None,
        ends: bool = False,
    ) -> Tensor:
        """``[B, T]`` the probability of the token at each place, or of the likeliest, by the distribution that these
        needs name (``best``); 0 where that does not end a text (``ends``).
        """
        nothing = 0.0 if best is None else -torch.inf
        told = torch.full(canvas.tokens.shape, nothing, dtype=torch.float64, device=hidden.device)
        for piece, logits in self._logits(hidden, guidance, clock):
            at = place[0][piece], place[1][piece]
            with for_work(self._head_work(len(logits)), self.network.pace("telling")):
                suppress(logits, sampling, canvas, *at)
                if best is None:
                    told[at] = logits.double().softmax(-1).gather(-1, canvas.tokens[at][:, None])[:, 0]
                else:
                    token, sure = likeliest(temper(logits, sampling, at[0]) if "tempered" in best else logits)
                    told[at] = torch.where(canvas.is_eos(token), sure, 0.0) if ends else sure
        return told

    def _hidden(
        self,
        outputs: Outputs,
        probes: Probes | None,
        cache: Cache,
        rank: Tensor | None,
        ran: list[Rows],
        watch: Watch | None,
        tokens: Tensor,
        planned: tuple[Plan, Any],
        parts: list[Rows],
    ) -> Tensor:
        """Run the layers; the hidden state ``[N, C]`` of each output. ``ran`` is told the rectangles."""
        plan, state = planned
        row, column = outputs.row, outputs.column
        if probes is not None:
            tokens = probes.filled(tokens, self.spec.mask)
        slot = (plan.compute.cumsum(1) - 1)[row, column]
        ran += parts
        run = partial(self._tile, tokens, cache, state, probes, plan.keys, rank, watch)
        if len(parts) == 1 and parts[0].row is None:
            return run(parts[0])[row, slot]
        first, begin = [0] * len(tokens), 0  # where each row's slots begin, all rectangles one after the other
        for rows in parts:
            for i, member in enumerate(rows.members):
                first[member] = begin + i * rows.slots
            begin += len(rows.members) * rows.slots
        place = sent(first, row.device)[row] + slot
        return torch.cat([run(rows).flatten(0, 1) for rows in parts])[place]

    def _tile(
        self,
        tokens: Tensor,
        cache: Cache,
        state: Any,
        probes: Probes | None,
        keys: Tensor,
        rank: Tensor | None,
        watch: Watch | None,
        rows: Rows,
    ) -> Tensor:
        """Hidden states ``[B, Q, C]`` of the positions of some rows."""
        rows, place = (rows, None) if probes is None else probes.aim(rows, keys, rank)
        work = len(rows.members) * rows.slots * (self.layer_weights + 2 * rows.total * self.width)
        with for_work(work, self.network.pace("layers", cache.name, watch is not None)):
            rows = replace(rows, rotary=self.network.rotate_rows(rows, place))
            at = rows.position if rows.whole else rows.position.clamp(max=rows.total - 1)
            ids, run = rows.of(tokens).gather(1, at), partial(self._layers, cache, watch)
            if self.graphs is None or watch is not None:
                return run(ids, rows, state)
            return self.graphs(run, cache, self._variant, ids, rows, state)

    def _layers(self, cache: Cache, watch: Watch | None, ids: Tensor, rows: Rows, state: Any) -> Tensor:
        hidden: Tensor = self.network.embed(ids)
        blocks: Any = self.network.blocks
        for index, block in enumerate(blocks):
            seen = block if watch is None else watch.on(index, block, rows, cache.stored(state))
            hidden = cache.layer(index, seen, hidden, rows, state)
        return hidden

    @property
    def _variant(self) -> Hashable:
        """What a graph of the layers depends on beside their inputs."""
        return self.network.kernels, self.network.embed.weight.data_ptr()

    def _head_work(self, count: int) -> int:
        """Of the head, for so many positions, as of a layer; see :func:`unmask.core.threads.for_work`."""
        return 4 * count * self.width * self.network.arch.vocab  # one product, where a layer has four

    @torch.no_grad()
    def first_not_finite(self, tokens: Tensor) -> str | None:
        """Where the numbers of one row's ``tokens [T]`` first stop being finite: "the embedding", "layer 5 of 32", "the
        head"; None: nowhere.
        """
        network, every = self.network, torch.ones_like(tokens, dtype=torch.bool)[None]
        rows = gather(every, every)
        rotary, hidden = network.rotate_rows(rows), network.embed(tokens[None])
        if not bool(hidden.isfinite().all()):
            return "the embedding"
        for index, block in enumerate(network.blocks):
            hidden = hidden + block.attend(*block.qkv(hidden, rotary), None)  # type: ignore[operator]
            hidden = hidden + block.mlp(hidden)  # type: ignore[operator]
            if not bool(hidden.isfinite().all()):
                return f"layer {index} of {self.layers}"
        return None if bool(network.logits(hidden[0]).isfinite().all()) else "the head"

    def _logits(self, hidden: Tensor, guidance: float, clock: Clock, more: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Logits of hidden states, some at a time: which, and the logits. Ids that are never sampled have -inf.

        ``clock`` runs in the head. ``more``: how many times the logits' memory the caller needs with them.
        """
        size = max(1, _LOGITS_AT_ONCE // (self.network.arch.vocab * more))
        for at in range(0, len(hidden), size):
            piece = slice(at, at + size)
            with clock, for_work(self._head_work(len(hidden[piece])), self.network.pace("head")):
                logits = self._guided(hidden[piece], guidance)
            yield piece, forbid(logits, self.spec)

    def _guided(self, hidden: Tensor, guidance: float) -> Tensor:
        if not guidance:
            return self.network.logits(hidden)
        conditional, free = self.network.logits(hidden).unbind(1)
        return free + (guidance + 1) * (conditional - free)


def layout(
    plans: list[Plan], lines: Lines, rank: Tensor | None, union: Tensor | None = None
) -> tuple[list[list[Rows]], Outputs, int]:
    """The rectangles of each plan, the outputs to read, and the most positions of a row of ``union [B, T]``; the host
    reads all it must know of them at once.
    """
    columns = [(*Counts.columns(p.compute, p.keys, p.work, rank), *p.host.values()) for p in plans]
    counts, more = lines.counts(), []
    if union is not None:
        more = [union.sum(1).repeat_interleave(len(lines.masks["asked"]) // len(union))]
    told = torch.stack([column.double() for own in (*columns, more, counts) for column in own]).tolist()
    layouts = []
    for plan, own in zip(plans, columns, strict=True):
        mine, told = told[: len(own)], told[len(own) :]
        many = len(mine) - len(plan.host)
        host = {name: [int(v) for v in values] for name, values in zip(plan.host, mine[many:], strict=True)}
        layouts.append(tiles(plan.compute, plan.keys, Counts(*mine[:many]), host, rank))
    most = int(max(told.pop(0))) if more else 0
    return layouts, lines.settled(told), most


def _planned(cache: Cache, canvas: Canvas, ask: Ask, need: Tensor, state: Any) -> tuple[Plan, Any]:
    """The cache's plan, which computes nothing of idle canvases; and the state after it."""
    plan, after = cache.plan(canvas, ask, need, state)
    return (plan if ask.forks is None else plan.without(ask.forks.idle)), after


def _given(canvas: Canvas, ask: Ask) -> Tensor:
    """``[B, T]`` the tokens with those that an ask drafts."""
    return canvas.tokens if ask.draft is None else torch.where(ask.draft < 0, canvas.tokens, ask.draft)


def _union(ask: Ask, plans: list[Plan]) -> Tensor | None:
    """``[B, T]`` the positions that any canvas of a row computes; None where each has one."""
    if ask.forks is None:
        return None
    computed = torch.stack([plan.compute for plan in plans]).any(0)
    return computed.view(-1, ask.forks.count, computed.shape[1]).any(1)


def spread(
    canvas: Canvas,
    row: Tensor,
    position: Tensor,
    parts: list[dict[str, Tensor]],
    needs: frozenset[str],
    sampling: Sampling,
) -> Prediction:
    """The values of all positions predicted, at their places in ``[B, T]``."""
    like = torch.zeros(canvas.tokens.shape, dtype=torch.float64, device=canvas.tokens.device)
    spread: dict[str, Any] = {
        "token": torch.zeros_like(canvas.tokens),
        "confidence": torch.full_like(like, -torch.inf),
        **{name: torch.zeros_like(like) for name in MEASURES if name in needs},
        **({"drawn": torch.zeros_like(canvas.tokens)} if "drawn" in needs else {}),
    }
    for name, values in spread.items() if parts else ():
        values[row, position] = torch.cat([part[name] for part in parts]).to(values.dtype)
    spread["confidence"] = delayed(canvas, spread["token"], spread["confidence"], sampling)
    logits = allowed = None
    if "logits" in needs:
        logits = torch.cat([part["logits"] for part in parts]) if parts else like.new_zeros(0, canvas.spec.vocab)
    if parts and "allowed" in parts[0]:
        allowed = torch.cat([part["allowed"] for part in parts])
    where = row, position
    return Prediction(**spread, logits=logits, allowed=allowed, where=where)
