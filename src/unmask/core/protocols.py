"""What a policy, a cache and the loop say to each other. Every tensor has dimension 0 = row of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .canvas import Canvas, Update


@dataclass(frozen=True)
class Looks:
    """Whose attention a policy wants to see.

    Attributes:
        places: ``[B, K]`` positions, T where a row has no more; they are computed.
        layers: so many of the last layers are averaged.
    """

    places: Tensor
    layers: int

    def within(self, window: Tensor) -> Looks:
        """The same at those places that are in ``window [B, T]``."""
        inside = F.pad(window, (0, 1)).gather(1, self.places)
        return replace(self, places=torch.where(inside, self.places, window.shape[1]))


@dataclass(frozen=True)
class Attention:
    """Attention probabilities, averaged over the heads and over the layers looked at, float32 at least.

    Attributes:
        given: ``[B, K, T]`` what each place of :class:`Looks` gives to each position; 0 where there is no place.
        received: ``[B, T]`` what each position receives, averaged over the positions computed.
    """

    given: Tensor
    received: Tensor


@dataclass(frozen=True)
class Ask:
    """What a policy wants of the next forward.

    Attributes:
        window: ``[B, T]`` the region the policy works in; its masked positions get a prediction.
        cell: ``[B, T]`` of block models, the part of the model's block that the window is what is left of; for caches
            that keep the rest of the block. None: the window itself.
        visible: ``[B, T]`` positions that may be attended to; the others leave the input altogether. None: all.
        rank: ``[B, T]`` a position sees those of its own rank and of lower ones. None: as the model does, see
            :attr:`unmask.core.canvas.Canvas.rank`.
        stale: ``[B, T]`` positions that need not be recomputed: their stored keys and values will do. Given (even all
            false) it makes every cache keep a store, ``none`` included. None: nothing.
        refresh: ``[B]`` rows whose caches must recompute everything. None: no row.
        skipped: ``[B]`` forwards of the policy's schedule left out since the last one because they could not commit
            anything; caches that refresh by interval age by these too. None: none.
        probe: ``[B, T]`` positions to be predicted as if they were masked, whatever they hold (WINO). A probe takes the
            position's place for itself and for the other probes; nothing else sees it. None: none.
        score: ``[B, T]`` filled positions of the response whose tokens are to be scored where they stand, in sight of
            themselves (Saber). None: none.
        reread: ``[B, T]`` filled positions of the response that are predicted as well, where they stand, in sight of
            themselves (token editing). The prediction has them beside those of the window. None: none.
        beside: ``[B, T]`` filled positions, the prompt's too, of which the likeliest token's probability is wanted
            where a cache computes them anyway; of a shifted model the first position's is that of its own output, as in
            Dream's code. None: none.
        looks: whose attention is wanted. None: nobody's, and no layer keeps any.
        penalty: what is taken off the logit of the token that stands one position before, in the same block of a block
            model. 0: nothing.
        optional: ``[B, T]`` positions of the window that a cache may leave without an answer, as long as one of the
            window's masks gets one. For rules that hold for any candidates; None: all must be answered.
        draft: ``[B, T]`` ids that the network is given where the canvas is open, of models without a mask token; or
            those of tokens drafted in an order, -1 where there is none. None: the mask.
        ends: ``[B, T]`` positions whose prediction of an end of text is wanted, masked or filled, where the cache
            computes them anyway; see ``Prediction.end``. None: none.
        heat: ``[B]`` temperature of the policy itself, which divides the logits before anything is read from them.
            None: 1.
        forks: the canvases that are computed in place of the rows' own. Every tensor of the ask then has one line for
            each of them. None: the rows' own.
    """

    window: Tensor
    cell: Tensor | None = None
    visible: Tensor | None = None
    rank: Tensor | None = None
    stale: Tensor | None = None
    refresh: Tensor | None = None
    skipped: Tensor | None = None
    probe: Tensor | None = None
    score: Tensor | None = None
    reread: Tensor | None = None
    beside: Tensor | None = None
    looks: Looks | None = None
    penalty: float = 0.0
    optional: Tensor | None = None
    draft: Tensor | None = None
    ends: Tensor | None = None
    heat: Tensor | None = None
    forks: Forks | None = None

    def without(self, idle: Tensor) -> Ask:
        """The ask without the predictions of the lines ``idle [B]``."""
        asked = {name: getattr(self, name) for name in ("window", "probe", "score", "reread", "beside", "ends")}
        return replace(self, **{name: part & ~idle[:, None] for name, part in asked.items() if part is not None})


@dataclass(frozen=True)
class Forks:
    """Several canvases of every row, computed in one forward pass as lines of the batch; the row goes on from one.

    They differ in tokens alone. Line b K + k is canvas k of row b, K as many as the policy's ``branches``; canvas 0 is
    the row's own. What a row holds (keys and values, noise, constraints) is the same for all of its canvases before
    the forward pass, and that of the canvas it goes on from behind it; see ``Update.branch``.

    Attributes:
        canvas: ``B K`` lines.
        count: K.
        idle: ``[B K]`` canvases that are not computed; they get no prediction, and no row goes on from one unless
            nothing is left to predict in it.
        sure: ``[B K, T]`` the probability with which tokens were predicted that the row itself does not have yet.
        step: ``[B K]`` the noise's counter. None: forward passes that the row has made.
    """

    canvas: Canvas
    count: int
    idle: Tensor
    sure: Tensor
    step: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """What the model answered.

    Attributes:
        token: ``[B, T]`` proposed ids, meaningful where answered.
        confidence: ``[B, T]`` float64, the softmax probability of ``token``; -inf where not answered: all of the window
            that is no mask, and what the cache has left out of the ask's ``optional``. Of the model's own distribution,
            or for policies whose ``needs`` has ``"tempered"``, of the one that was sampled from.
        entropy: ``[B, T]`` nats, 0 where not answered; only for policies whose ``needs`` has ``"entropy"``.
        margin: ``[B, T]`` lead of the best token's probability over the second's, 0 where not answered; only for
            policies whose ``needs`` has ``"margin"``.
        gap: ``[B, T]`` lead of the best logit over the second, before temperature and filters, 0 where not answered;
            only for policies whose ``needs`` has ``"gap"``.
        where: rows and positions ``[N]`` of what was predicted, by row and position; see :attr:`lines`.
        drawn: ``[B, T]`` ids sampled at the row's temperature, 0 where not answered; ``token`` is then the likeliest.
            Only for policies whose ``needs`` has ``"drawn"``, of models without a mask token.
        logits: ``[N, V]`` of these positions; only for policies whose ``needs`` has ``"logits"``. Suppressed ids have
            -inf.
        probe: ``[B, T]`` float64, the probability that the probes give to the tokens now there; 0 where not probed or
            still masked.
        score: ``[B, T]`` float64, the probability that the network gives to a token where that stands; 0 where not
            scored.
        beside: ``[B, T]`` float64, the likeliest token's probability, as ``confidence`` is, at those of the ask's
            ``beside`` that were computed; -inf elsewhere.
        attention: of the ask's ``looks``.
        allowed: ``[N, V]`` the tokens that a row's constraint accepts at each line of ``logits``, behind the predicted
            ones; only for policies whose ``needs`` has ``"allowed"``. None: no row has a constraint.
        fresh: ``[B, T]`` positions whose answer was computed anew in all layers, not in part taken from a cache.
        end: ``[B, T]`` float64, the probability of an end of text where that is the likeliest token of the model's own
            distribution, 0 where another one is; -inf where not looked at or not computed. None: nothing was looked at.
        aside: ``[B, T]`` float64, for the cache alone: the likeliest token's probability at the positions of its
            plan's ``read``, -inf elsewhere. None: it wanted none.
    """

    token: Tensor
    confidence: Tensor
    entropy: Tensor | None = None
    margin: Tensor | None = None
    gap: Tensor | None = None
    logits: Tensor | None = None
    probe: Tensor | None = None
    score: Tensor | None = None
    beside: Tensor | None = None
    attention: Attention | None = None
    fresh: Tensor | None = None
    end: Tensor | None = None
    aside: Tensor | None = None
    drawn: Tensor | None = None
    allowed: Tensor | None = None
    where: tuple[Tensor, Tensor] | None = None

    @property
    def lines(self) -> tuple[Tensor, Tensor]:
        """Rows and positions ``[N]`` of what was predicted, by row and position: of the lines of ``logits``."""
        if self.where is not None:
            return self.where
        row, position = (self.confidence > -torch.inf).nonzero(as_tuple=True)
        return row, position

    def of(self, line: Tensor) -> Prediction:
        """What was answered for some lines ``[B]`` of the batch, in ascending order, alone."""
        whole = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        logits, allowed = whole.pop("logits", None), whole.pop("allowed", None)
        kept: dict[str, Any] = {name: value[line] for name, value in whole.items()}
        if self.attention is not None:
            kept["attention"] = Attention(self.attention.given[line], self.attention.received[line])
        if logits is None:
            return replace(self, where=None, **kept)
        row, position = self.lines
        place = torch.full_like(self.token[:, 0], -1).scatter(0, line, torch.arange(len(line), device=line.device))[row]
        own = place >= 0
        where, allowed = (place[own], position[own]), None if allowed is None else allowed[own]
        return replace(self, logits=logits[own], allowed=allowed, where=where, **kept)

    def within(self, window: Tensor) -> Prediction:
        """What would have been answered to an ask for ``window [B, T]`` alone; for wrappers that ask for more."""
        kept: dict[str, Any] = {
            name: torch.where(window, value, 0)
            for name in ("token", "entropy", "margin", "gap")
            if (value := getattr(self, name)) is not None
        }
        confidence = torch.where(window, self.confidence, -torch.inf)
        if self.logits is None:
            return replace(self, confidence=confidence, where=None, **kept)
        row, position = self.lines
        inside = window[row, position]
        where, logits = (row[inside], position[inside]), self.logits[inside]
        allowed = None if self.allowed is None else self.allowed[inside]
        more = {"logits": logits, "allowed": allowed, "where": where}
        return replace(self, confidence=confidence, **more, **kept)  # type: ignore[arg-type]


class Search(Protocol):
    """The texts that constraints accept, of one forward pass; see :class:`unmask.constraints.search.Search`."""

    def add(self, piece: slice, logits: Tensor, read: dict[str, Tensor]) -> None:
        """Note the logits ``[n, V]`` of some lines and what was read of them."""

    def finish(self) -> None:
        """Put tokens of accepted texts in place of what was read."""


class Constraints(Protocol):
    """The constraints of rows; see :class:`unmask.constraints.batch.Constraints`."""

    @property
    def active(self) -> bool:
        """Whether any row has one; known on the host."""

    def search(
        self, canvas: Canvas, sampling: Sampling, needs: frozenset[str], row: Tensor, position: Tensor, step: Tensor
    ) -> Search:
        """The search for one forward pass: ``row``, ``position [N]`` of each line of logits, ``step [B]``."""

    def hold(self, canvas: Canvas, update: Update, token: Tensor, chooses: bool) -> Update:
        """An update after which every row can still become an accepted text; ``token [B, T]`` are predicted."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of every row, each ``[B]``: ``temperature`` (0 = greedy), ``top_p`` (1 = off), ``top_k``
    (0 = off), ``seed`` (noise is a function of seed, position and the row's step alone).

    ``suppress [B, K]`` are ids with probability zero, plus 1 (0 = none); ``inside [B, K]`` likewise, but in front of
    the row's last fixed token only. None: nothing. ``late_eos [B]``: rows whose end of text is committed last.
    ``constraints``: what the rows' texts must be; None: anything.
    ``samples``, ``filters``, ``delays``: whether any row has a temperature, top-p or top-k, a late end of text; known
    on the host.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    seed: Tensor
    suppress: Tensor | None = None
    inside: Tensor | None = None
    late_eos: Tensor | None = None
    constraints: Constraints | None = None
    samples: bool = True
    filters: bool = True
    delays: bool = False

    @property
    def bound(self) -> Constraints | None:
        """The constraints, where any row has one."""
        return self.constraints if self.constraints is not None and self.constraints.active else None


@dataclass(frozen=True)
class Ranked:
    """Who sees whom, by rank: a query those keys whose rank is at most its own.

    Attributes:
        query: ``[B, Q]`` whole numbers.
        key: ``[B, S]``; ``HIDDEN`` where no query sees it.
    """

    query: Tensor
    key: Tensor

    @staticmethod
    def of(query: Tensor, key: Tensor, seen: Tensor) -> Ranked:
        """Ranks of queries and keys, of which those not ``seen [B, S]`` are hidden."""
        return Ranked(query, torch.where(seen, key, HIDDEN))

    def mask(self, part: slice = slice(None)) -> Tensor:
        """``[B, N, S]`` which keys some queries see."""
        return self.key[:, None] <= self.query[:, part, None]


HIDDEN = 1 << 40  # the rank of what nobody sees
Keys: TypeAlias = Tensor | Ranked | None  # keys that count: [B, S], or for each query [B, Q, S], or by rank; None: all


@dataclass(frozen=True)
class Plan:
    """A cache's answer to an ask.

    Attributes:
        compute: ``[B, T]`` positions carried through the layers; contains every needed one, less what the ask calls
            optional.
        keys: ``[B, T]`` positions that may be attended to.
        work: ``[B]`` float, positions whose layers are really computed, averaged over the layers.
        fresh: ``[B, T]`` positions that are computed in every layer for certain. None: those of ``compute``.
        read: ``[B, T]`` masked positions outside the window that ``compute`` predicts and whose confidence
            :meth:`Cache.note` needs. None: none.
        host: ``[B]`` whole numbers that the cache's layers need on the host, by name; see ``Rows.host``.
    """

    compute: Tensor
    keys: Tensor
    work: Tensor
    fresh: Tensor | None = None
    read: Tensor | None = None
    host: Mapping[str, Tensor] = field(default_factory=dict)

    def without(self, idle: Tensor) -> Plan:
        """The plan that computes nothing in the rows ``idle [B]``."""
        off = idle[:, None]
        fresh = None if self.fresh is None else self.fresh & ~off
        read = None if self.read is None else self.read & ~off
        return replace(self, compute=self.compute & ~off, work=self.work * ~idle, fresh=fresh, read=read)


class Block(Protocol):
    """One transformer layer as a cache sees it: three primitives, no knowledge of caches."""

    def qkv(self, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries ``[B, Q, H, D]``, rotated keys and values ``[B, Q, H_kv, D]``."""

    def value(self, hidden: Tensor) -> Tensor:
        """Values alone, ``[B, Q, H_kv, D]``."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> Tensor:
        """Attention output after the output projection, ``[B, Q, C]``; for ``keys`` see :data:`Keys`."""

    def attend_weighed(self, query: Tensor, key: Tensor, value: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """As ``attend``, and the attention probabilities ``[B, Q, S]``, averaged over the heads, float32 at least."""

    def weigh(self, query: Tensor, key: Tensor, keys: Keys) -> Tensor:
        """These probabilities alone."""

    def mlp(self, hidden: Tensor) -> Tensor:
        """Feed-forward output, ``[B, Q, C]``."""


class Geometry(Protocol):
    """What a cache must know of a model to allocate its store."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def tails(self) -> Sequence[tuple[int, int]]:
        """Of each layer the number of key and value heads, and their size."""
