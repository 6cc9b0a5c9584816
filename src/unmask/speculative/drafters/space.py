"""SPACE (arXiv 2402.11809): draft and verification in one forward pass, by groups of masks behind every candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.config import param
from ...core.errors import ModelError
from ...core.nets import Shape, fit, load
from ...core.predict import gumbel
from ...models.slots import Lift
from ..accept import DRAFT, distribution, moment
from ..drafter import Accepted, Context, Drafter
from ..target import Target
from ..tree import ROOT, Tree

BUNDLED = Path(__file__).parents[2] / "assets" / "drafters" / "space.safetensors"


@dataclass
class Candidates:
    """What the masks have predicted: ``token [B, k]``, ``share [B, k, V]`` when sampling; None before a first pass."""

    token: Tensor | None = None
    share: Tensor | None = None


def adapted(weights: dict[str, Tensor], probe: Tensor) -> Lift:
    """What the trained weights make of hidden states where ``probe [B, Q]``: the embedding becomes the mask's, and
    behind each layer comes a small feed-forward network. All other places stay as they are, and so does the target.
    """

    def lift(layer: int, hidden: Tensor) -> Tensor:
        if layer < 0:
            return torch.where(probe[..., None], weights["mask"].to(hidden.dtype), hidden)
        down, up = weights["down"][layer].to(hidden.dtype), weights["up"][layer].to(hidden.dtype)
        own = hidden[probe]
        small = F.silu(F.linear(F.rms_norm(own, own.shape[-1:]), down))
        return hidden.masked_scatter(probe[..., None], own + F.linear(small, up))

    return lift


def shapes(layers: int) -> dict[str, Shape]:
    """Of the weights, for a target of so many layers: ``C`` wide, with ``R`` hidden units."""
    return {"mask": ("C",), "down": (layers, "R", "C"), "up": (layers, "C", "R")}


@dataclass(frozen=True)
class Space(Drafter):
    """A pass reads candidates with a group of ``k`` masks behind the text and behind each of them.

    The candidates' logits verify them; the masks behind the last accepted one predict the next candidates, so that no
    pass is spent on drafting. The paper fine-tunes the whole target for its mask token; here the mask's embedding and a
    small network behind each layer, which masks alone go through, are trained (``recipes/speculate/space.py``), and the
    target's own text stays what it is. A rejected candidate is replaced from the residual distribution; the paper's
    code draws it from the target's, which is not exact.
    """

    name = "space"
    paper = "arXiv 2402.11809"
    trained = True
    wants = "weights trained for the target"

    k: int = param(4, "candidates, and masks of a group", ge=1, le=16)
    weights: str | None = param(
        None, "file with the trained weights; none: those for the bundled causal model", file=True
    )

    @property
    def nodes(self) -> int:
        return self.k + (self.k + 1) * self.k

    @cached_property
    def _read(self) -> dict[torch.device, dict[str, Tensor]]:
        return {}

    def trained_for(self, target: Target) -> dict[str, Tensor]:
        """The trained weights on the target's device."""
        if target.device not in self._read:
            path = str(BUNDLED) if self.weights is None else self.weights
            self._read[target.device] = load(self.name, path, target.device)
        return self._read[target.device]

    def check(self, target: Target) -> None:
        arch = target.network.arch
        found = self.trained_for(target)
        width = fit(self.name, found, shapes(arch.layers))["C"]
        if width != arch.width:
            raise ModelError(f"{self.name}: the weights are for a model of width {width}, the target has {arch.width}")

    def begin(self, context: Context) -> Candidates:
        return Candidates()

    def propose(self, context: Context, state: Candidates) -> Tree | None:
        rows, count = len(context.texts), 0 if state.token is None else min(self.k, context.room)
        parents, probes = _layout(count, self.k)
        token = torch.zeros(rows, len(parents), dtype=torch.long, device=context.count.device)
        if state.token is not None:
            token[:, :count] = state.token[:, :count]
        weights = self.trained_for(context.target)
        source = torch.arange(len(parents), device=token.device).clamp(max=max(0, count - 1)).expand_as(token)
        tree = Tree(token, (parents,) * rows, state.share, source, (probes,) * rows)
        return replace(tree, lift=lambda probe: adapted(weights, probe))

    def learn(self, context: Context, accepted: Accepted, state: Candidates) -> None:
        logits, tree = accepted.logits, accepted.tree
        if tree.probe is None:  # there was no room for drafts
            state.token, state.share = None, None
            return
        count = len(tree.parents[0]) - len(tree.probe[0])
        group = torch.tensor([len(nodes) for nodes in accepted.nodes], device=logits.device)
        first = 1 + count + group * self.k  # of the group behind the last accepted candidate
        row = torch.arange(len(group), device=logits.device)[:, None]
        own = logits[row, first[:, None] + torch.arange(self.k, device=logits.device)]
        sampling = context.sampling
        if not sampling.samples:
            state.token, state.share = own.argmax(-1), None
            return
        each = row.expand(-1, self.k).flatten()
        state.share = distribution(own.flatten(0, 1), sampling, each).view(own.shape)
        place = (context.place[:, None] + torch.arange(self.k, device=logits.device)).flatten()
        count_now = moment(context.count, DRAFT)
        noise = gumbel(sampling.seed[each], place, count_now[each], own.shape[-1]).view(own.shape)
        noise = torch.where((sampling.temperature > 0)[:, None, None], noise, 0.0)
        state.token = (state.share.log() + noise).argmax(-1)

    def keep(self, state: Candidates, rows: Sequence[int]) -> Candidates:
        kept = list(rows)
        return Candidates(
            None if state.token is None else state.token[kept], None if state.share is None else state.share[kept]
        )


def _layout(count: int, k: int) -> tuple[tuple[int, ...], frozenset[int]]:
    """Parents of a chain of ``count`` candidates and of the groups of ``k`` masks behind the text and behind each of
    them, in this order; and which nodes are masks.
    """
    parents = list(range(ROOT, count - 1))
    for behind in range(ROOT, count):
        for i in range(k):
            parents.append(behind if i == 0 else len(parents) - 1)
    return tuple(parents), frozenset(range(count, len(parents)))
