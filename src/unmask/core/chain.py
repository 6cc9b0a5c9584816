"""Linear chains of few states per position: the best path, and the best path through each state, by max-plus products.

Scores are logarithms: ``unary [B, N, K]`` of states, ``pair [B, N - 1, K, K]`` of neighbouring states (left, right).
"""

from __future__ import annotations

import torch
from torch import Tensor


def forwards(unary: Tensor, pair: Tensor) -> Tensor:
    """``[B, N, K]`` the best score of what ends in each state, itself included."""
    found = [unary[:, 0]]
    for n in range(1, unary.shape[1]):
        found.append((found[-1][:, :, None] + pair[:, n - 1]).amax(1) + unary[:, n])
    return torch.stack(found, 1)


def max_marginals(unary: Tensor, pair: Tensor) -> Tensor:
    """``[B, N, K]`` the score of the best path through each state."""
    back = forwards(unary.flip(1), pair.flip(1).transpose(2, 3)).flip(1)
    return forwards(unary, pair) + back - unary.masked_fill(unary == -torch.inf, 0.0)


def viterbi(unary: Tensor, pair: Tensor) -> Tensor:
    """``[B, N]`` the states of the best path."""
    front = forwards(unary, pair)
    states = [front[:, -1].argmax(1)]
    for n in range(unary.shape[1] - 2, -1, -1):
        right = states[-1][:, None, None].expand(-1, pair.shape[2], 1)
        states.append((front[:, n] + pair[:, n].gather(2, right)[..., 0]).argmax(1))
    return torch.stack(states[::-1], 1)
