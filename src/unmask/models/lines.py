"""Which outputs of the network are read, and what for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.canvas import Canvas
from ..core.protocols import Ask, Plan
from ..core.rows import pairs
from .probes import Probes

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Lines:
    """Network outputs by purpose: first ``"asked"``, predictions of masked positions for the policy; then ``"probe"``
    and ``"score"``, which rate the tokens that are there; then ``"aside"``, predictions for the cache, ``"beside"``, of
    filled positions for the policy, and ``"end"``, of an end of text.

    Attributes:
        masks: ``[B, T]`` for each purpose: the positions that the outputs speak of; for probes, and for all that is
            predicted in an order, the columns they are in.
        probes: of the forward pass.
        shift: of the model.
    """

    masks: dict[str, Tensor]
    probes: Probes | None
    shift: bool

    @staticmethod
    def of(
        canvas: Canvas, ask: Ask, want: Tensor, scored: Tensor | None, probes: Probes | None, plans: list[Plan]
    ) -> Lines:
        """Those of the positions ``want [B, T]`` that are computed in every branch, and what else is."""
        computed = plans[0].compute
        for plan in plans[1:]:
            computed = computed & plan.compute
        if ask.optional is not None:
            want = want & canvas.targets(computed)
        read = None if plans[0].read is None else plans[0].read & canvas.targets(computed)
        if probes is not None and probes.ordered:
            return Lines({"asked": probes.held}, probes, canvas.spec.shift)
        beside = None
        if ask.beside is not None:
            told = canvas.targets(computed) | computed & (canvas.position == 0)
            beside = ask.beside & canvas.valid & (canvas.tokens != canvas.spec.mask) & told
        rating = None if probes is None else probes.rating(canvas)
        ends = None if ask.ends is None else ask.ends & canvas.response & canvas.targets(computed)
        masks = {"asked": want, "score": scored, "aside": read, "beside": beside, "end": ends, "probe": rating}
        return Lines({name: mask for name, mask in masks.items() if mask is not None}, probes, canvas.spec.shift)

    def counts(self) -> list[Tensor]:
        """How many of each purpose, ``[B]``; to be read on the host and given to :meth:`settled`."""
        return [mask.sum(1) for mask in self.masks.values()]

    def settled(self, counts: Sequence[Sequence[int]]) -> Outputs:
        """The outputs one by one."""
        row, position, column, many = [], [], [], [sum(map(int, own)) for own in counts]
        for (name, mask), count in zip(self.masks.items(), many, strict=True):
            at, place = pairs(mask, count)
            stands = (place - int(self.shift and name != "probe")).clamp(min=0)
            if self.probes is not None and (name == "probe" or self.probes.ordered):
                place = self.probes.target[at, place]
            row.append(at)
            position.append(place)
            column.append(stands)
        return Outputs(
            dict(zip(self.masks, zip(row, position, strict=True), strict=True)), many, _one(row), _one(column)
        )


@dataclass(frozen=True)
class Outputs:
    """Attributes:
    places: rows and positions that each purpose's outputs speak of, ``[M]``.
    many: how many each purpose has.
    row, column: ``[N]`` where on the canvas the outputs of all purposes stand, one purpose after the other.
    """

    places: dict[str, Pair]
    many: list[int]
    row: Tensor
    column: Tensor

    def split(self, hidden: Tensor) -> Iterator[tuple[str, Pair, Tensor]]:
        """Each purpose with its places and its part of ``hidden [N, ...]``."""
        parts = torch.split(hidden, self.many)
        return zip(self.places.keys(), self.places.values(), parts, strict=True)


def _one(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
