"""Layers over keys and values stored by slot: each token says where it stands, where it is stored, what it sees.

Chains, token trees and masked windows are all rectangles of such tokens. Causal targets (:mod:`unmask.models.causal`)
and diffusion drafters (:mod:`unmask.speculative`) are read by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.threads import for_work
from .transformer import Architecture, Transformer

ATTENTION, FEED = "attention", "feed"
Sublayer = tuple[int, str]
"""A layer's number, and which of its two parts."""
Lift = Callable[[int, Tensor], Tensor]
"""What hidden states ``[B, Q, C]`` become behind a layer; -1: behind the embedding."""


@dataclass(frozen=True)
class Memory:
    """What a model has read: per layer keys and values ``[B, S + 1, H_kv, D]`` by slot, the last one for what is to be
    thrown away; and ``known [B]``, how many slots from the left hold the row's text.
    """

    key: list[Tensor]
    value: list[Tensor]
    known: Tensor

    @staticmethod
    def empty(arch: Architecture, rows: int, total: int, device: torch.device, dtype: torch.dtype) -> Memory:
        """Room for so many rows of so many slots."""
        shape = rows, total + 1, arch.kv_heads, arch.head_dim
        key, value = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(arch.layers)] for _ in range(2))
        return Memory(key, value, torch.zeros(rows, dtype=torch.long, device=device))

    def cropped(self, known: Tensor) -> Memory:
        """Forget what lies behind the first ``known [B]`` slots."""
        return replace(self, known=torch.minimum(self.known, known))

    def rows(self, index: Tensor) -> Memory:
        """Some rows alone."""
        return Memory([k[index] for k in self.key], [v[index] for v in self.value], self.known[index])

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots ``source [B, L]`` to ``target [B, L]``, in place; all are read before any is written."""
        row = torch.arange(len(source), device=source.device)[:, None]
        for stored in (*self.key, *self.value):
            stored[row, target] = stored[row, source]


@dataclass(frozen=True)
class Reading:
    """Tokens to read.

    Attributes:
        token: ``[B, Q]`` ids.
        place: ``[B, Q]`` positions in the text, for the rotary embeddings.
        slot: ``[B, Q]`` where keys and values are stored; the memory's last slot: nowhere.
        keys: ``[B, Q, S]`` the slots, of the first S, that each token attends to. None: all of the first ``extent``.
        extent: S.
    """

    token: Tensor
    place: Tensor
    slot: Tensor
    keys: Tensor | None
    extent: int


def read(
    network: Transformer,
    reading: Reading,
    memory: Memory,
    skip: frozenset[Sublayer] = frozenset(),
    lift: Lift | None = None,
) -> Tensor:
    """Hidden states ``[B, Q, C]`` of some tokens, written into the memory.

    Args:
        network: its layers run.
        reading: the tokens.
        memory: of these rows; written in place.
        skip: parts of layers left out.
        lift: changes hidden states behind each layer; None: nothing does.
    """
    extent, slot = reading.extent, reading.slot
    row = torch.arange(len(slot), device=slot.device)[:, None]
    rotary = network.rotary[reading.place.clamp(max=len(network.rotary) - 1)]
    hidden: Tensor = network.embed(reading.token)
    hidden = hidden if lift is None else lift(-1, hidden)
    blocks: Any = enumerate(zip(network.blocks, memory.key, memory.value, strict=True))
    work = slot.numel() * (weights(network) + 2 * extent * network.arch.width)
    with for_work(work, network.pace("layers", "slots", len(skip))):
        for index, (block, stored_key, stored_value) in blocks:
            if (index, ATTENTION) not in skip:
                query, key, value = block.qkv(hidden, rotary)
                stored_key[row, slot], stored_value[row, slot] = key, value
                seen = stored_key[:, :extent], stored_value[:, :extent]
                hidden = hidden + block.attend(query, *seen, reading.keys)
            if (index, FEED) not in skip:
                hidden = hidden + block.mlp(hidden)
            hidden = hidden if lift is None else lift(index, hidden)
    return hidden


def weights(network: Transformer) -> int:
    """Of one layer."""
    arch = network.arch
    attention = arch.width * arch.head_dim * (2 * arch.heads + 2 * arch.kv_heads)
    return attention + 3 * arch.width * arch.ffn
