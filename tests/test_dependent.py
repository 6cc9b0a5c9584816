"""DAWN, EntropyCache and Elastic-Cache: laws, rules worked out by hand, and naive versions over one row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from helpers import ARCH, MASK, SHIFTS, SPEC, Request, decode, tiny, trail
from unmask import registry
from unmask.caches.elastic import ElasticState
from unmask.caches.entropy_cache import EntropyCache, EntropyState
from unmask.core.canvas import Canvas, Update
from unmask.core.pick import independent
from unmask.core.protocols import Ask, Attention, Looks, Prediction, Sampling
from unmask.models.attention import attention_weighed
from unmask.models.denoiser import Denoiser

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]
GREEDY = Sampling(torch.zeros(1), torch.ones(1), *torch.zeros(2, 1, dtype=torch.long))
LONG = Request(0, [5, 6, 7], 24, ignore_eos=True)


def deeds(policy: str, shift: bool = False, cache: str = "none") -> list[object]:
    """What a policy does with the requests, forward pass by forward pass."""
    return [(row.commits, row.remasks, row.tokens) for row in decode(tiny(shift), policy, cache, REQUESTS).values()]


def at(mask: Tensor) -> list[int]:
    """The true positions of one row."""
    return mask[0].nonzero()[:, 0].tolist()


class TestDawn:
    @pytest.mark.parametrize("shift", SHIFTS)
    @pytest.mark.parametrize("preset", ["paper", "reference"])
    def test_without_edges_it_is_threshold_with_the_lower_bound(self, preset: str, shift: bool) -> None:
        plain = deeds("threshold(tau=0.4,block_length=5)", shift)
        for more in ("edge=2", "sink=0,edge=0.01"):  # all positions have no edges where all receive too much
            assert deeds(f"dawn(low=0.4,block_length=5,{more},preset={preset})", shift) == plain

    def chosen(
        self, policy: str, confidence: list[float], edges: list[tuple[int, int]], sure: float = 0.95
    ) -> list[int]:
        """Positions of a response behind two of the prompt that are committed at first; an edge is from, to."""
        made, many = registry.policy(policy), len(confidence)
        canvas = Canvas.blank([[1, 2]], [many], SPEC)
        line = torch.tensor([[-torch.inf] * 2 + confidence], dtype=torch.float64)
        given = torch.zeros(1, canvas.places(8).shape[1], many + 2)
        for one, other in edges:
            given[0, one, other + 2] = 0.5
        beside = torch.tensor([[sure, 0.1] + [-torch.inf] * many], dtype=torch.float64)
        seen = Prediction(canvas.tokens, line, beside=beside, attention=Attention(given, torch.zeros(1, many + 2)))
        update, _ = made.decide(canvas, seen, made.init(canvas, GREEDY))
        return [place - 2 for place in at(update.write)]

    def test_the_three_sets(self) -> None:
        how = "dawn(tau=0.9,induce=0.3,low=0.5,edge=0.4,sink=0.6,block_length=8)"
        level = [0.95, 0.4, 0.6, 0.7, 0.6, 0.2]
        assert self.chosen(how, level, []) == [0, 2, 3, 4]
        assert self.chosen(how, level, [(1, -2), (5, -2)]) == [0, 1, 2, 3, 4], "an edge to text that is certain"
        assert self.chosen(how, level, [(1, -2)], sure=0.8) == [0, 2, 3, 4], "the model is not sure of that text"
        assert self.chosen(how, level, [(1, -1)]) == [0, 2, 3, 4], "nor of this"
        assert self.chosen(how, level, [(2, 3), (4, 3)]) == [0, 3], "in conflict with the most confident one"
        assert self.chosen(how, level, [(3, 2), (4, 2)]) == [0, 3, 4], "a conflict has no direction"
        assert self.chosen(how, level, [(2, 0), (1, -2), (3, 1)]) == [0, 1, 4], "edges to the first and the second set"
        assert self.chosen(how, [0.4, 0.45], []) == [1], "the most confident one in any case"
        assert self.chosen(how, level, [(4, 4)]) == [0, 2, 3, 4], "no edge leads to itself"

    def test_the_authors_code_excludes_by_both_sets(self) -> None:
        how = "dawn(tau=0.9,induce=0.3,low=0.5,edge=0.4,sink=0.6,block_length=8,preset=reference)"
        level = [0.95, 0.4, 0.6, 0.7, 0.6, 0.95]
        assert self.chosen(how, level, [(2, 0), (1, -2), (3, 1)]) == [0, 1, 2, 3, 4, 5]
        assert self.chosen(how, level, [(2, 5), (5, -2)]) == [0, 3, 4, 5], "in the first and in the second"

    def test_independent_sets_are_those_of_the_greedy_rule(self) -> None:
        draw = torch.Generator().manual_seed(1)
        conflict = torch.rand(30, 9, 9, generator=draw) < 0.25
        conflict = (conflict | conflict.mT) & ~torch.eye(9, dtype=torch.bool)
        score = torch.rand(30, 9, generator=draw).masked_fill(torch.rand(30, 9, generator=draw) < 0.3, -torch.inf)
        found = independent(conflict, score)
        for row in range(30):
            taken: list[int] = []
            for place in sorted(range(9), key=lambda i: -float(score[row, i])):
                if score[row, place] > -torch.inf and not any(conflict[row, place, other] for other in taken):
                    taken.append(place)
            assert found[row].nonzero()[:, 0].tolist() == sorted(taken)

    @pytest.mark.parametrize("kept", ["none", "dual", "d2(k=99,p=1)", "dllm(kp=1,kr=1)"])
    @pytest.mark.parametrize("layers", [1, 9])
    def test_attention_is_what_the_layers_calculate(self, kept: str, layers: int) -> None:
        """In a batch of rows of other lengths: the mean over the heads and the last layers, nothing of padding."""
        model, cache = tiny(), registry.cache(kept)
        prompts = [[5, 6, 7, 8], [9]]
        canvas = Canvas.blank(prompts, [3, 2], SPEC)
        places = canvas.places(2)
        sampling = Sampling(torch.zeros(2), torch.ones(2), *torch.zeros(2, 2, dtype=torch.long))
        asked = Ask(canvas.block(2), looks=Looks(places, layers), beside=canvas.valid)
        answer = model(canvas, asked, cache, model.init(canvas, cache), sampling, torch.zeros(2, dtype=torch.long))
        seen, beside = answer.prediction.attention, answer.prediction.beside
        assert seen is not None and beside is not None
        for row in range(2):
            length = int(canvas.length[row])
            weights, sure = naive_attention(canvas.tokens[row, :length], layers)
            mine = places[row].tolist()
            torch.testing.assert_close(seen.given[row, :, :length], weights[mine].double())
            torch.testing.assert_close(seen.received[row, :length], weights.mean(0).double())
            assert not seen.given[row, :, length:].any() and not seen.received[row, length:].any()
            prompt = len(prompts[row])
            torch.testing.assert_close(beside[row, :prompt], sure[:prompt])
            assert bool((beside[row, prompt:] == -torch.inf).all()), "masked positions are no text"


def naive_attention(tokens: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """``[T, T]`` attention of one row, averaged; ``[T]`` the likeliest token's probability."""
    network, found = tiny().network, []
    hidden, rotary = network.embed(tokens[None]), network.rotary[None, : len(tokens)]
    blocks: Any = network.blocks
    for block in blocks:
        query, key, value = block.qkv(hidden, rotary)
        found.append(attention_weighed(query, key, value, None)[1][0])
        hidden = hidden + block.attend(query, key, value, None)
        hidden = hidden + block.mlp(hidden)
    logits = network.logits(hidden[0])
    logits[:, MASK] = -torch.inf
    logits[:, SPEC.limit :] = -torch.inf
    return torch.stack(found[-layers:]).mean(0), logits.double().softmax(-1).amax(-1)


class TestEntropyCache:
    @pytest.mark.parametrize("shift", SHIFTS)
    def test_bound_0_recomputes_everything(self, shift: bool) -> None:
        for policy in ("threshold(tau=0.4,block_length=5)", "wino(tau_in=0.3,tau_out=0.3,block_length=6)", "vanilla"):
            assert deeds(policy, shift, "entropy_cache(tau=0,k=0)") == deeds(policy, shift)

    @pytest.mark.parametrize(("masks", "k"), [("all", 2), ("window", 2), ("window", 0)])
    def test_what_is_recomputed(self, masks: str, k: int) -> None:
        """The masked positions, what was committed, the last k tokens; all behind an uncertain token."""
        kept = Noted(tau=2.0, k=k, masks=masks)
        done: list[tuple[int, int]] = []
        uncertain, both = True, set[bool]()
        for before, _, event in trail(tiny(), "threshold(tau=0.5,block_length=6)", kept, LONG):
            passes = max((n for n, _ in done), default=0)
            expected = set(at(before.canvas.masked if masks == "all" else before.canvas.masked & event.ask.window))
            expected |= {place for n, place in done if n == passes}
            expected |= {place for _, place in sorted(done, key=lambda one: (-one[0], one[1]))[:k]}
            assert set(at(event.computed() > 0)) == (set(range(27)) if uncertain else expected)
            both.add(uncertain)
            uncertain = max(float(ENTROPIES[-1][0, c.position]) for c in event.committed()) >= 2
            done += [(passes + 1, c.position) for c in event.committed()]
        assert both == {True, False}


ENTROPIES: list[Tensor] = []


@dataclass(frozen=True)
class Noted(EntropyCache):
    """Keeps the entropies that it is told of."""

    def note(self, update: Update, prediction: Prediction, state: EntropyState) -> EntropyState:
        assert prediction.entropy is not None
        ENTROPIES.append(prediction.entropy)
        return super().note(update, prediction, state)


class Naive:
    """Elastic-Cache over one row in plain Python, a layer at a time."""

    def __init__(self, model: Denoiser, total: int) -> None:
        arch, self.network = model.network.arch, model.network
        empty = torch.zeros(1, total, arch.heads, arch.head_dim, dtype=torch.float64)
        few = torch.zeros(1, total, arch.kv_heads, arch.head_dim, dtype=torch.float64)
        self.query, self.key = (
            [empty.clone() for _ in model.network.blocks],
            [few.clone() for _ in model.network.blocks],
        )
        self.value = [few.clone() for _ in model.network.blocks]
        self.entering = [torch.zeros(1, total, arch.width, dtype=torch.float64) for _ in model.network.blocks]
        self.rotary = model.network.rotary[None, :total]

    def weights(self, layer: int, places: list[int]) -> Tensor:
        if not places:
            return torch.zeros(0, self.key[layer].shape[1])
        return attention_weighed(self.query[layer][:, places], self.key[layer], self.key[layer], None)[1][0]

    def run(
        self,
        tokens: Tensor,
        active: list[int],
        start: int,
        asking: list[int],
        watched: list[int],
        gamma: float,
        track: int,
    ) -> tuple[Tensor, set[int], int]:
        """Logits ``[T, V]``, the tracked tokens, and the first layer to recompute next."""
        hidden, tracked = self.network.embed(tokens[None]), set[int]()
        text, blocks = (tokens != MASK).double(), cast("list[Any]", list(self.network.blocks))
        drift = len(blocks)
        for i, block in enumerate(blocks):
            rows = active
            if i >= start:
                rows = list(range(len(tokens)))
                rest = [p for p in rows if p not in active]
                if i == start:
                    hidden[:, rest] = self.entering[i][:, rest]
            before = self.weights(i, watched)
            query, key, value = block.qkv(hidden[:, rows], self.rotary[:, rows])
            self.entering[i][:, rows] = hidden[:, rows]
            self.query[i][:, rows], self.key[i][:, rows], self.value[i][:, rows] = query, key, value
            out = hidden[:, rows] + block.attend(query, self.key[i], self.value[i], None)
            hidden = hidden.clone()
            hidden[:, rows] = out + block.mlp(out)
            received = self.weights(i, asking).sum(0) * text
            tracked |= set(received.topk(track).indices.tolist())
            if watched and i < start:
                alike = torch.nn.functional.cosine_similarity(before, self.weights(i, watched), dim=-1).mean()
                drift = min(drift, i + 1 if alike < gamma else drift)
        return self.network.logits(hidden[0]), tracked, drift


class TestElastic:
    @pytest.mark.parametrize(("gamma", "track"), [(0.9, 1), (0.97, 2), (0.0, 1)])
    def test_it_is_the_naive_version(self, gamma: float, track: int) -> None:
        """The same predictions, the same positions computed in the same layers."""
        model = tiny(arch=replace(ARCH, layers=4))
        naive, layers = Naive(model, 27), 4
        tracked, changed, drift, starts = set[int](), set[int](), layers, set[int]()
        kept = f"elastic(gamma={gamma},track={track})"
        for before, after, event in trail(model, "threshold(tau=0.6,block_length=6)", kept, LONG):
            tokens = before.canvas.tokens[0]
            asking = at(before.canvas.masked & event.ask.window)
            watched = sorted(tracked - changed)
            active = sorted({*asking, *watched, *changed} if tracked else range(27))
            logits, tracked, following = naive.run(tokens, active, drift, asking, watched, gamma, track)
            counts = [layers if place in active else layers - drift for place in range(27)]
            assert event.computed()[0].tolist() == counts
            assert float(event.work[0]) == sum(counts) / layers
            logits[:, [MASK, *range(SPEC.limit, SPEC.vocab)]] = -torch.inf
            sure = logits.double().softmax(-1).amax(-1)
            torch.testing.assert_close(event.confidence[0, asking], sure[asking])
            state: ElasticState = after.cache.plain
            assert int(state.drift) == following
            starts.add(drift)
            drift, changed = following, {c.position for c in event.committed()}
        assert starts == {4} if gamma == 0 else len(starts) > 1

    @pytest.mark.parametrize("shift", SHIFTS)
    def test_it_computes_less_than_none(self, shift: bool) -> None:
        for policy in ("threshold(tau=0.4,block_length=5)", "vanilla(block_length=5)"):
            found, plain = (decode(tiny(shift), policy, kept, REQUESTS) for kept in ("elastic", "none"))
            for row, one in plain.items():
                assert found[row].work / found[row].nfe < one.work / one.nfe
