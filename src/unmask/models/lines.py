"""Which outputs of the network are read, and what for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.canvas import Canvas
from ..core.protocols import Ask, Plan
from .probes import Probes

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Lines:
    """Network outputs by purpose: first ``"asked"``, predictions of masks for the policy; then ``"probe"`` and
    ``"score"``, which rate the tokens that are there; then ``"aside"``, predictions for the cache.

    Attributes:
        places: rows and positions that each purpose's outputs speak of, ``[M]``.
        columns: where on the canvas these outputs stand, ``[M]``.
    """

    places: dict[str, Pair]
    columns: dict[str, Tensor]

    @staticmethod
    def of(
        canvas: Canvas, ask: Ask, want: Tensor, scored: Tensor | None, probes: Probes | None, plans: list[Plan]
    ) -> Lines:
        """Those of the masks ``want [B, T]`` that are computed in every branch, and what else is."""
        computed = plans[0].compute
        for plan in plans[1:]:
            computed = computed & plan.compute
        if ask.optional is not None:
            want = want & canvas.targets(computed)
        read = None if plans[0].read is None else plans[0].read & canvas.targets(computed)
        direct = {"asked": want, "score": scored, "aside": read}
        places = {name: _pair(mask) for name, mask in direct.items() if mask is not None}
        back = int(canvas.spec.shift)
        columns = {name: position - back if back else position for name, (_, position) in places.items()}
        if probes is not None:
            probed = probes.select(~canvas.masked)
            places["probe"], columns["probe"] = (probed.row, probed.position), probed.column
        return Lines(places, columns)

    def all(self) -> Pair:
        """Rows and columns ``[N]`` of all outputs, one purpose after the other."""
        if len(self.places) == 1:
            return self.places["asked"][0], self.columns["asked"]
        return torch.cat([row for row, _ in self.places.values()]), torch.cat([*self.columns.values()])

    def split(self, hidden: Tensor) -> Iterator[tuple[str, Pair, Tensor]]:
        """Each purpose with its places and its part of ``hidden [N, ...]``."""
        parts = torch.split(hidden, [len(row) for row, _ in self.places.values()])
        return zip(self.places.keys(), self.places.values(), parts, strict=True)


def _pair(mask: Tensor) -> Pair:
    row, position = mask.nonzero(as_tuple=True)
    return row, position
