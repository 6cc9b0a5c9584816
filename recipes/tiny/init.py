"""Structured initialisation: the circuits that take small models longest to find are there from the first step.

Copying out of the prompt ("induction") needs two layers that cooperate, and training finds it only after a
long plateau. Here layer 0 starts with heads that look one token back, one ahead and two back, and layer 1 with
heads that look for the place with the same neighbour and copy what stands there. Everything else starts
small and random, and every weight is trained.
"""

from __future__ import annotations

import math

import torch
from model import Block, TinyLLaDA
from tokenizers import Tokenizer
from torch import Tensor

TOKEN_DIMS, NEIGHBOUR_DIMS = 128, 48  # of the stream: token identity; each of the two neighbours
PAIRS_FAST, PAIRS_SLOW = 6, 16  # rotary pairs that tell single positions apart; pairs that hardly turn


class Basis:
    """A random orthonormal basis of the stream, cut into the parts that the first layers use."""

    def __init__(self, d: int) -> None:
        basis = torch.linalg.qr(torch.randn(d, d))[0]
        sizes = [TOKEN_DIMS, NEIGHBOUR_DIMS, NEIGHBOUR_DIMS, 1]
        self.token, self.left, self.right, constant, self.rest = basis.split([*sizes, d - sum(sizes)], dim=1)
        self.constant = constant[:, 0]


def projection(rows: int, columns: int) -> Tensor:
    """A random matrix with orthonormal rows (or columns, whichever are fewer)."""
    wide = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0]
    return wide if rows >= columns else wide.T


@torch.no_grad()
def structured_init(model: TinyLLaDA, tokenizer: Tokenizer) -> None:
    """Overwrite the initial weights of ``model``."""
    basis = Basis(model.config["d_model"])
    init_words(model, tokenizer, basis)
    first, second, *others = model.transformer["blocks"]
    look_aside(first, 0, -1, basis, basis.left)
    look_aside(first, 1, 1, basis, basis.right)
    look_aside(first, 2, -2, basis, basis.rest[:, :-1])
    same_neighbour(second, 0, basis, basis.left)
    same_neighbour(second, 1, basis, basis.right)
    same_neighbour(second, 2, basis, basis.rest[:, :-1])
    for block, heads in ((second, range(3, 4)), *((block, range(4)) for block in others)):
        for head in heads:
            rows = head_rows(block, head)
            block.attn_out.weight[:, rows] = 0.15 * block.v_proj.weight[rows].T


def init_words(model: TinyLLaDA, tokenizer: Tokenizer, basis: Basis) -> None:
    """Embeddings in the token part plus one constant direction; a word is near its twin with a leading space."""
    embedding, head = model.transformer["wte"].weight, model.transformer["ff_out"].weight
    words = torch.randn(embedding.shape[0], TOKEN_DIMS) * 8 / TOKEN_DIMS**0.5
    vocabulary = tokenizer.get_vocab()
    for piece, i in vocabulary.items():
        if piece.startswith("Ġ") and piece[1:] in vocabulary:
            words[vocabulary[piece[1:]]] = words[i] * 0.95 + torch.randn(TOKEN_DIMS) * 2.4 / TOKEN_DIMS**0.5
    mask = model.config["mask_token_id"]
    words[mask] = 0.0  # a mask has no identity to copy ...
    identity = words @ basis.token.T
    head.add_(identity, alpha=0.1)
    identity[mask] = 8 * basis.rest[:, -1]  # ... but a length like that of other tokens
    embedding.copy_(identity + 4 * basis.constant)


def head_rows(block: Block, head: int) -> slice:
    size = block.q_proj.weight.shape[0] // block.heads
    return slice(head * size, (head + 1) * size)


def look_aside(block: Block, head: int, offset: int, basis: Basis, into: Tensor) -> None:
    """Attend to the token ``offset`` places away and write its identity into a part of the stream."""
    rows = head_rows(block, head)
    size = rows.stop - rows.start
    inverse = 10000.0 ** -(torch.arange(0, size, 2).float() / size)
    strength = torch.zeros(size // 2)
    strength[:PAIRS_FAST] = 12.6 / math.sqrt(PAIRS_FAST) / 7.2
    query = torch.cat((strength, torch.zeros(size // 2)))
    key = torch.cat((strength * torch.cos(-offset * inverse), strength * torch.sin(-offset * inverse)))
    for weight, vector in ((block.q_proj.weight, query), (block.k_proj.weight, key)):
        weight[rows] = torch.outer(vector, basis.constant) + 0.2 * weight[rows]
    width = into.shape[1]
    block.v_proj.weight[rows] = projection(size, TOKEN_DIMS) @ basis.token.T
    block.attn_out.weight[:, rows] = 0.7 * into @ projection(width, size)


def same_neighbour(block: Block, head: int, basis: Basis, part: Tensor) -> None:
    """Attend to places whose neighbour (written into ``part`` by layer 0) is the same, and copy their token."""
    rows = head_rows(block, head)
    size = rows.stop - rows.start
    match = torch.zeros(size, part.shape[1])
    seen = 1.9 * projection(2 * PAIRS_SLOW, part.shape[1])
    half = size // 2
    match[half - PAIRS_SLOW : half], match[size - PAIRS_SLOW :] = seen[:PAIRS_SLOW], seen[PAIRS_SLOW:]
    for weight in (block.q_proj.weight, block.k_proj.weight):
        weight[rows] = match @ part.T + 0.2 * weight[rows]
    read = projection(size, TOKEN_DIMS) @ basis.token.T
    block.v_proj.weight[rows] = read
    block.attn_out.weight[:, rows] = 0.75 * read.T
