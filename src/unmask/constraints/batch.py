"""The constraints of the rows of a batch, as their state carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.canvas import Canvas, Update
from ..core.protocols import Sampling
from .automaton import Automaton
from .rows import Rows
from .search import Search


@dataclass(frozen=True)
class Constraints:
    """Which automaton each row has.

    Attributes:
        number: ``[B]`` of its automaton; 0: none.
        start: ``[B]`` the automaton's state at the beginning of the response.
        active: whether any row has one; known on the host.
    """

    number: Tensor
    start: Tensor
    active: bool

    @staticmethod
    def of(automata: Sequence[Automaton | None], starts: Sequence[int], device: torch.device) -> Constraints:
        """Those of rows that enter."""
        numbers = [0 if own is None else own.number for own in automata]
        return Constraints(
            torch.tensor(numbers, device=device), torch.tensor(list(starts), device=device), any(map(bool, numbers))
        )

    def search(
        self, canvas: Canvas, sampling: Sampling, needs: frozenset[str], row: Tensor, position: Tensor, step: Tensor
    ) -> Search:
        """The search for the paths of one forward pass; see :class:`~unmask.constraints.search.Search`."""
        text = Rows.of(self.number, self.start, canvas, (row, position))
        open_ = (canvas.tokens[row, position] == canvas.spec.mask) & (position < canvas.wanted[row])
        return Search(text, sampling, needs, row, position, step, open_)

    def hold(self, canvas: Canvas, update: Update, token: Tensor, chooses: bool) -> Update:
        """An update after which every row can still become an accepted text.

        Args:
            canvas: before the update.
            update: what the policy wants.
            token: ``[B, T]`` the predicted tokens, which are on a path.
            chooses: whether the policy may commit other tokens. They stay in rows that can be completed with them; the
                other rows get the predicted ones at masked positions, and keep those that they have.
        """
        token = torch.where(canvas.tokens == canvas.spec.mask, token, canvas.tokens)
        bound = self.number > 0
        if chooses:
            after = canvas.apply(replace(update, remask=None))
            lost = torch.from_numpy(Rows.of(self.number, self.start, after).lost()).to(bound.device)
            bound = torch.zeros_like(bound).index_fill(0, lost, True)
        return replace(update, token=torch.where(bound[:, None], token, update.token))
