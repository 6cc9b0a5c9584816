"""Which drafted tokens a target accepts: exactly those that leave its own distribution as it is.

The rule of Leviathan et al. (arXiv 2211.17192) for chains, and its extension to several candidates for one position:
a candidate x, drawn from q, is accepted with probability min(1, p(x) / q(x)); after a rejection p becomes what is left
of it, norm(max(p - q, 0)), for the next candidate or, where there is none, for the token that the target draws itself.
The next candidate was drawn from q without those before it (without replacement). A candidate that
was not drawn is one of a q that has all its probability on it. Greedy decoding is the case of a p with all its
probability on one token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.predict import gumbel, temper, uniform
from ..core.protocols import Sampling
from .tree import ROOT, Tree

DRAFT, ACCEPT, FINAL, KINDS = 0, 1, 2, 3
"""What noise is for: every use of a round has its own."""


@dataclass(frozen=True)
class Verdict:
    """Of each row the last accepted node, :data:`~unmask.speculative.tree.ROOT` where none is, and the ``bonus``: the
    token that the target itself puts behind it.
    """

    node: list[int]
    bonus: list[int]


def distribution(logits: Tensor, sampling: Sampling, row: Tensor) -> Tensor:
    """``[N, V]`` float64, what rows draw from given logits: after temperature, top-k and top-p; at temperature 0 all on
    the likeliest token. ``row [N]``: the row of each line.
    """
    share = temper(logits, sampling, row).softmax(-1)
    certain = torch.zeros_like(share).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.where((sampling.temperature[row] > 0)[:, None], share, certain)


def moment(count: Tensor, kind: int) -> Tensor:
    """``[B]`` the counter of the noise for one use in each row's round ``count [B]``."""
    return count * KINDS + kind


def verify(tree: Tree, logits: Tensor, sampling: Sampling, place: Tensor, count: Tensor) -> Verdict:
    """Accept from a tree what the target's logits allow.

    Args:
        tree: the drafts.
        logits: ``[B, 1 + N, V]`` of the target behind the text, and behind every node.
        sampling: ``[B]`` parameters.
        place: ``[B]`` position of the first drafted token.
        count: ``[B]`` the row's own round, from 0.
    """
    return _sampled(tree, logits, sampling, place, count) if sampling.samples else _greedy(tree, logits.argmax(-1))


def _greedy(tree: Tree, choice: Tensor) -> Verdict:
    """``choice [B, 1 + N]``: the target's own token behind each place."""
    both = torch.cat([choice, tree.token], 1).tolist()  # one transfer
    nodes, bonus = [], []
    for row, (shape, own) in enumerate(zip(tree.shapes, both, strict=True)):
        wanted, drafted = own[: tree.size + 1], own[tree.size + 1 :]
        silent = tree.probe[row] if tree.probe else frozenset()
        node, child = ROOT, shape.first[0]
        while child != ROOT:
            if drafted[child] == wanted[node + 1] and child not in silent:
                node, child = child, shape.first[child + 1]
            else:
                child = shape.next[child]
        nodes.append(node)
        bonus.append(wanted[node + 1])
    return Verdict(nodes, bonus)


def _sampled(tree: Tree, logits: Tensor, sampling: Sampling, place: Tensor, count: Tensor) -> Verdict:
    """All rows side by side, a candidate of each at a time."""
    batch, places, vocab = logits.shape
    row = torch.arange(batch, device=logits.device)
    every = row[:, None].expand(batch, places).flatten()
    share = distribution(logits.flatten(0, 1), sampling, every).view(batch, places, vocab)
    first, following = _links(tree)
    chance = uniform(sampling.seed, place, moment(count, ACCEPT), max(1, tree.size))
    at, left, child = torch.zeros_like(row), share[:, 0], first[:, 0]
    gone = torch.zeros_like(left, dtype=torch.bool)  # candidates rejected at this place
    while bool((child != ROOT).any()):
        live, node = child != ROOT, child.clamp(min=0)
        token = tree.token[row, node]
        draft = _draft(tree, token, row, node, gone)
        mine, theirs = left[row, token], draft[row, token]
        taken = live & (chance[row, node] * theirs < mine)
        rest = (left - draft).clamp(min=0)
        total = rest.sum(-1, keepdim=True)
        rest = torch.where(total > 0, rest / total, left)  # nothing left: rejecting had no probability
        at = torch.where(taken, node + 1, at)
        left = torch.where(taken[:, None], share[row, at], torch.where(live[:, None], rest, left))
        gone = (gone | torch.zeros_like(gone).scatter_(1, token[:, None], True)) & ~taken[:, None]
        child = torch.where(taken, first[row, at], torch.where(live, following[row, node], ROOT))
    noise = gumbel(sampling.seed, place, moment(count, FINAL), vocab)
    noise = torch.where((sampling.temperature > 0)[:, None], noise, 0.0)
    bonus = (left.log() + noise).argmax(-1)
    nodes, tokens = torch.stack([at - 1, bonus]).tolist()
    return Verdict(nodes, tokens)


def _draft(tree: Tree, token: Tensor, row: Tensor, node: Tensor, gone: Tensor) -> Tensor:
    """``[B, V]`` the distribution that a node of each row was drawn from, without the candidates that are ``gone``."""
    certain = torch.zeros(gone.shape, dtype=torch.float64, device=token.device).scatter_(1, token[:, None], 1.0)
    if tree.share is None or tree.source is None:
        return certain
    rest = tree.share[row, tree.source[row, node]].masked_fill(gone, 0.0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, certain)  # none left: filled up with what has no probability


def _links(tree: Tree) -> tuple[Tensor, Tensor]:
    """``[B, 1 + N]`` the first candidate behind each place, ``[B, N]`` the next one beside each node; no probes."""
    firsts, nexts = [], []
    for row, shape in enumerate(tree.shapes):
        silent = tree.probe[row] if tree.probe else frozenset()
        after = [*shape.next, *[ROOT] * (tree.size - len(shape.next))]
        begin = [*shape.first, *[ROOT] * (tree.size + 1 - len(shape.first))]

        def spoken(node: int, silent: frozenset[int] = silent, after: list[int] = after) -> int:
            while node in silent:
                node = after[node]
            return node

        firsts.append([spoken(node) for node in begin])
        nexts.append([spoken(node) for node in after])
    device = tree.token.device
    made = torch.tensor(nexts, dtype=torch.long, device=device).view(len(nexts), tree.size)
    return torch.tensor(firsts, dtype=torch.long, device=device), made
