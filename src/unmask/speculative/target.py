"""The causal model that verifies: it reads a token tree in one forward pass and keeps the accepted path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..models.causal import CausalModel
from ..models.slots import Memory, Reading, Sublayer, read
from ..models.transformer import Transformer
from .tree import Tree


class Target:
    """A causal model and what it has read of some rows.

    Attributes:
        model: where it comes from: config, tokenizer, ids.
        network: its layers.
        memory: keys and values by slot. The first ``known[i]`` slots hold row i's text, those behind it one tree.
        known: of each row.
        passes: forward passes made.
    """

    def __init__(self, model: CausalModel, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.network: Transformer = model.network(device, dtype)
        self.memory = Memory([], [], torch.zeros(0, dtype=torch.long, device=device))
        self.known: list[int] = []
        self.passes = 0

    def begin(self, rows: int, slots: int) -> None:
        """Forget everything; so many rows with so many slots each follow."""
        self.memory = self.model.empty(rows, slots, self.device, self.dtype)
        self.known = [0] * rows

    def read(self, waiting: Sequence[Sequence[int]], tree: Tree | None) -> tuple[Tensor, Tensor]:
        """Read the tokens of each row that are new, at least one, and a tree behind them.

        Returns:
            Hidden states ``[B, P + N, C]``, and logits ``[B, 1 + N, V]`` behind the last new token and each node.
        """
        reading = self.reading(waiting, tree)
        lift = None
        if tree is not None and tree.lift is not None:
            before = torch.zeros_like(reading.token[:, : reading.token.shape[1] - tree.size], dtype=torch.bool)
            lift = tree.lift(torch.cat([before, tree.silent], 1))
        hidden = read(self.network, reading, self.memory, lift=lift)
        self.passes += 1
        last = torch.tensor([len(own) - 1 for own in waiting], device=self.device)
        row = torch.arange(len(waiting), device=self.device)
        outputs = hidden[row, last][:, None]
        if tree is not None:
            outputs = torch.cat([outputs, hidden[:, hidden.shape[1] - tree.size :]], 1)
        logits = self.network.logits(outputs.flatten(0, 1))
        return hidden, logits.view(*outputs.shape[:2], -1)

    def reading(self, waiting: Sequence[Sequence[int]], tree: Tree | None) -> Reading:
        """Where new tokens and a tree stand, and what they attend to."""
        device, bin_ = self.device, self.memory.key[0].shape[1] - 1
        width, size = max(map(len, waiting)), tree.size if tree else 0
        count = torch.tensor([len(own) for own in waiting], device=device)
        known = torch.tensor(self.known, device=device)
        ids = torch.tensor([[*own, *[0] * (width - len(own))] for own in waiting], device=device)
        column = torch.arange(width, device=device)
        place = known[:, None] + column
        slot = place if len(waiting) == 1 else torch.where(column < count[:, None], place, bin_)
        extent = max(known + len(own) for known, own in zip(self.known, waiting, strict=True)) + size
        if tree is None:
            alone = len(waiting) == width == 1
            keys = None if alone else torch.arange(extent, device=device) <= place[:, :, None]
            return Reading(ids, place, slot, keys, extent)
        base = (known + count)[:, None]
        node = torch.arange(size, device=device)
        tree_place, tree_slot = base + tree.depth - 1, torch.where(tree.real, base + node, bin_)
        stored = torch.arange(extent, device=device)
        keys = stored <= torch.cat([place, (base + node) if tree.chain else (base - 1).expand(-1, size)], 1)[:, :, None]
        if not tree.chain:
            offset = stored - base
            inside = (offset >= 0) & (offset < size)
            led = tree.above.gather(2, offset.clamp(0, size - 1)[:, None].expand(-1, size, -1)) & inside[:, None]
            keys[:, width:] |= led
        return Reading(
            torch.cat([ids, tree.token], 1),
            torch.cat([place, tree_place.clamp(min=0)], 1),
            torch.cat([slot, tree_slot], 1),
            keys,
            extent,
        )

    def keep(self, waiting: Sequence[Sequence[int]], nodes: Sequence[Sequence[int]]) -> None:
        """Make new tokens and the accepted nodes of the tree behind them the text; forget the other nodes."""
        base = [known + len(own) for known, own in zip(self.known, waiting, strict=True)]
        if any(node != i for own in nodes for i, node in enumerate(own)):
            longest, bin_ = max(map(len, nodes)), self.memory.key[0].shape[1] - 1
            pairs = list(zip(base, nodes, strict=True))
            source = [[*(b + node for node in own), *[bin_] * (longest - len(own))] for b, own in pairs]
            goal = [[*range(b, b + len(own)), *[bin_] * (longest - len(own))] for b, own in pairs]
            self.memory.move(torch.tensor(source, device=self.device), torch.tensor(goal, device=self.device))
        self.known = [b + len(own) for b, own in zip(base, nodes, strict=True)]

    def rows(self, rows: Sequence[int]) -> None:
        """Go on with some rows alone."""
        self.memory = self.memory.rows(torch.tensor(list(rows), device=self.device))
        self.known = [self.known[row] for row in rows]

    def draft(self, reading: Reading, skip: frozenset[Sublayer], memory: Memory | None = None) -> Tensor:
        """Hidden states of a pass that leaves parts of layers out; it writes behind the text, which stays."""
        return read(self.network, reading, memory or replace(self.memory), skip)
