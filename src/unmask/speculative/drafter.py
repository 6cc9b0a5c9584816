"""The base of every drafter: what it sees, what it proposes, what it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.config import Configured
from ..core.protocols import Sampling
from .tree import Tree

if TYPE_CHECKING:  # a drafter's parameters can be listed without torch's networks
    from .target import Target


@dataclass
class Context:
    """The rows being decoded, as a drafter sees them before a round.

    Attributes:
        target: the model that verifies; its memory holds every token of the texts but the last ``waiting`` ones.
        texts: ids of each row, prompt and response so far.
        prompts: how many of these are the prompt.
        room: tokens that the row with most left may still generate, the target's own one not counted.
        longest: the widest any text of these rows can become.
        sampling: ``[B]`` parameters.
        count: ``[B]`` the row's own round, from 0: the counter of its noise.
        ends: ids that end a text; nothing behind one is worth drafting.
    """

    target: Target
    texts: list[list[int]]
    prompts: list[int]
    room: int
    longest: int
    sampling: Sampling
    count: Tensor
    ends: frozenset[int]

    @property
    def place(self) -> Tensor:
        """``[B]`` position of the first token to draft."""
        return self.count.new_tensor([len(text) for text in self.texts])


@dataclass(frozen=True)
class Accepted:
    """What became of a tree.

    Attributes:
        tree: the drafts.
        nodes: of each row the accepted ones, from the text on.
        tokens: of each row what its text has grown by: the accepted tokens and the target's own one.
        hidden: ``[B, P + N, C]`` hidden states of the tokens read, before the final norm: the ``waiting`` ones of each
            row, left-aligned in P columns, then the nodes.
        logits: ``[B, 1 + N, V]`` behind the text and behind each node.
        waiting: of each row, how many of its tokens were read in this round before the nodes.
    """

    tree: Tree
    nodes: list[list[int]]
    tokens: list[list[int]]
    hidden: Tensor
    logits: Tensor
    waiting: list[int]


@dataclass(frozen=True)
class Drafter(Configured, ABC):
    """Proposes what a causal model may say next.

    Parameters are frozen dataclass fields; what changes while decoding lives in the state that :meth:`begin` makes and
    the other methods may change. Whatever is proposed, the text is the target's own: a bad draft costs time only. With
    a temperature that holds if ``Tree.share`` is what the tokens were really drawn from.

    Attributes:
        trained: whether it has weights of its own, made for one target.
        wants: what it needs beside the target, in a few words.
    """

    trained = False
    wants = "nothing"

    @property
    def nodes(self) -> int:
        """The most nodes of a row's tree, which the target's memory has slots for."""
        raise NotImplementedError

    def check(self, target: Target) -> None:
        """Refuse a target that it cannot draft for; called once before decoding.

        Raises:
            ModelError: another tokenizer, weights that are missing or made for another model.
        """

    def begin(self, context: Context) -> Any:
        """The state before the first round of some rows."""
        return None

    @abstractmethod
    def propose(self, context: Context, state: Any) -> Tree | None:
        """A tree for each row, or None: nothing for any."""

    def learn(self, context: Context, accepted: Accepted, state: Any) -> None:
        """Take note of what the target made of a tree; ``context`` is as it was before."""

    def keep(self, state: Any, rows: Sequence[int]) -> Any:
        """The state of some rows alone, the others have ended. The default is for states that belong to no row."""
        return state
