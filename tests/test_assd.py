"""Any-subset speculative decoding: what an order lets be seen, and that drafts change the number of passes alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unmask
from helpers import MASK, SPEC, Poisoned, Request, admit, assert_same, cli, decode, singly, tiny
from refusals import refused, refuses
from test_distribution import p_value
from unmask import registry
from unmask.core.canvas import Canvas, Update
from unmask.core.errors import ModelError, RequestError
from unmask.core.protocols import Prediction
from unmask.engine.loop import step
from unmask.models.denoiser import Denoiser
from unmask.policies.assd import Assd, AssdState

SAID, ROWS, TOGETHER = 5, 6000, 300
BUNDLED = Path(unmask.__file__).parent / "assets" / "tiny-block"
SPECS = ["assd(k=1)", "assd(k=3)", "assd(k=8)", "assd(k=4,draft=bigram)"]
REQUESTS = [
    Request(1, [1, 2, 3, 1, 2], 12),
    Request(2, [4], 18, seed=3),
    Request(3, [5, 6, 7, 8, 9, 10, 11], 1),
    Request(4, [9, 3, 2, 4, 5], 9, ignore_eos=True, fixed={2: 7, 3: 8, 6: 9}),
    Request(5, [20, 21], 14, temperature=1.2, top_p=0.9, seed=5),
    Request(6, [1, 2, 3], 9, temperature=0.7, seed=1, ignore_eos=True, fixed={8: 3}),
]


@cache
def model(said: int = SPEC.limit, block: int | None = None) -> Denoiser:
    """Trained, it says, to predict in an order; flat distributions over a few ids where these can be counted."""
    network = tiny().network
    if said < SPEC.limit:
        network = deepcopy(network)
        assert network.head is not None
        network.head.weight.data *= 0.3
    return Denoiser(network, replace(SPEC, orders=True, limit=said, block=block))


def behind(text: list[int], given: list[bool], at: int, said: int) -> Tensor:
    """``[said]`` logits at a masked position, computed without the library: filled positions see those that come
    before them in the order, the mask sees the filled ones before it.
    """
    free = torch.tensor([not one for one in given])
    rank = torch.where(free, free.cumsum(0), 0)
    place = torch.tensor([i for i, token in enumerate(text) if token != MASK and rank[i] < rank[at]] + [at])
    ids = torch.tensor(text)[place]
    seen = rank[place][None] <= rank[place][:, None]
    network = model(said).network
    hidden, rotary = network.embed(ids[None]), network.rotary[place][None]
    for block in network.blocks:
        hidden = hidden + block.attend(*block.qkv(hidden, rotary), seen[None])
        hidden = hidden + block.mlp(hidden)
    logits = network.logits(hidden[0, -1:])[0, :said]
    if said > MASK:
        logits[MASK] = -torch.inf
    return logits


# --- what is seen


@pytest.mark.parametrize("kept", ["none", "blockwise"])
@pytest.mark.parametrize("block", [None, 4])
def test_every_token_is_the_likeliest_behind_those_before_it(kept: str, block: int | None) -> None:
    """Of a block model, too: its blocks do not count. Fixed tokens are in everybody's sight."""
    found = decode(model(block=block), "assd(k=4)", kept, [r for r in REQUESTS if not r.temperature])
    for request in REQUESTS:
        if request.temperature:
            continue
        tokens, start = found[request.row].tokens, len(request.prompt)
        given = [True] * start + [i in (request.fixed or {}) for i in range(request.gen_length)]
        ends = [i for i in range(start, len(tokens)) if tokens[i] in SPEC.eos and not request.ignore_eos]
        for at in range(start, min([*ends, len(tokens) - 1]) + 1):
            if not given[at]:
                text = [t if i < at or given[i] else MASK for i, t in enumerate(tokens)]
                assert tokens[at] == int(behind(text, given, at, SPEC.limit).argmax())


@pytest.mark.parametrize("spec", SPECS)
def test_greedy_text_is_that_of_one_token_a_pass(spec: str) -> None:
    alone = decode(model(), "assd(k=1)", "none", REQUESTS[:4])
    for kept in ("none", "blockwise"):
        found = decode(model(), spec, kept, REQUESTS[:4])
        assert {row: one.tokens for row, one in found.items()} == {row: one.tokens for row, one in alone.items()}
        for row, one in found.items():
            assert one.nfe <= alone[row].nfe
            assert all(one.commits), "a pass without effect"
    if spec != "assd(k=1)":
        assert sum(one.nfe for one in found.values()) < sum(one.nfe for one in alone.values())


@pytest.mark.parametrize("spec", SPECS[1:])
def test_a_row_is_the_same_in_any_batch(spec: str) -> None:
    for kept in ("none", "blockwise"):
        expected = singly(model(), spec, kept, REQUESTS)
        assert_same(decode(model(), spec, kept, REQUESTS), expected)
        order = [REQUESTS[i] for i in (3, 1, 4, 0, 5, 2)]
        assert_same(decode(model(), spec, Poisoned(registry.cache(kept)), order, batch_size=2), expected)


def test_filled_positions_are_computed_once() -> None:
    """``blockwise`` holds what is filled; each pass computes what the last one filled, the drafts and the masks."""
    plain, kept = (decode(model(), "assd(k=3)", kept, REQUESTS[:4]) for kept in ("none", "blockwise"))
    for row, one in kept.items():
        assert one.commits == plain[row].commits
        prompt = len(next(r.prompt for r in REQUESTS if r.row == row))
        assert one.work <= prompt + len(one.tokens) + one.nfe * 6


# --- the distribution

PROMPT, LENGTH = (1, 3, 1, 2), 3
GAPS: dict[str, dict[int, int]] = {"left to right": {}, "infilling": {1: 2, 3: 4}}


@cache
def texts(gaps: str) -> dict[tuple[int, ...], float]:
    """The probability of every response, one token after the other."""
    fixed = GAPS[gaps]
    length = LENGTH + len(fixed)
    given = [True] * len(PROMPT) + [i in fixed for i in range(length)]
    found = {}
    free = [i for i in range(length) if i not in fixed]
    for said in product(range(SAID), repeat=LENGTH):
        whole = {**fixed, **dict(zip(free, said, strict=True))}
        likely = 1.0
        for at in free:
            text = [*PROMPT, *(whole[i] if i < at or i in fixed else MASK for i in range(length))]
            likely *= float((behind(text, given, len(PROMPT) + at, SAID) / 0.9).softmax(-1)[whole[at]])
        found[tuple(whole[i] for i in range(length))] = likely
    assert sum(found.values()) == pytest.approx(1)
    return found


def sampled(policy: Assd, gaps: str) -> tuple[Counter[Any], float]:
    """How often each response was drawn, and forward passes per token."""
    fixed = GAPS[gaps]
    length = LENGTH + len(fixed)
    requests = [Request(i, PROMPT, length, temperature=0.9, seed=i, fixed=fixed, ignore_eos=True) for i in range(ROWS)]
    lm, kept, passes = model(SAID), registry.cache("none"), 0
    found: Counter[Any] = Counter()
    for first in range(0, ROWS, TOGETHER):
        state = admit(lm, kept, policy, requests[first : first + TOGETHER])
        while not bool(state.canvas.done.all()):
            passes += int((~state.canvas.done).sum())
            state, _ = step(lm, kept, policy, state, 0)
        found.update(map(tuple, state.canvas.tokens[:, len(PROMPT) : len(PROMPT) + length].tolist()))
    return found, passes / (ROWS * LENGTH)


@pytest.mark.parametrize(
    ("spec", "gaps"),
    [
        ("assd(k=1)", "left to right"),
        ("assd(k=3)", "left to right"),
        ("assd(k=3)", "infilling"),
        ("assd(k=3,draft=bigram)", "infilling"),
    ],
)
def test_texts_have_the_distribution_of_one_token_a_pass(spec: str, gaps: str) -> None:
    policy = registry.policy(spec)
    assert isinstance(policy, Assd)
    found, passes = sampled(policy, gaps)
    assert p_value(found, texts(gaps)) > 1e-3
    assert passes == 1 if policy.k == 1 else passes < 1


class Liar(Assd):
    """Its drafts, it says, were drawn from something flatter."""

    def decide(self, canvas: Canvas, prediction: Prediction, state: AssdState) -> tuple[Update, AssdState]:
        update, after = super().decide(canvas, prediction, state)
        flat = after.share.sqrt()
        return update, replace(after, share=flat / flat.sum(-1, keepdim=True).clamp(min=1e-9))


class Trusting(Assd):
    """It accepts every draft."""

    def decide(self, canvas: Canvas, prediction: Prediction, state: AssdState) -> tuple[Update, AssdState]:
        update, after = super().decide(canvas, prediction, state)
        return update, replace(after, share=after.share * 1e-9)


@pytest.mark.parametrize("liar", [Liar(k=3), Trusting(k=3)], ids=["flatter", "all"])
def test_drafts_that_lie_are_found_out(liar: Assd) -> None:
    assert p_value(sampled(liar, "left to right")[0], texts("left to right")) < 1e-6


# --- the bundled model, and what is refused


@pytest.fixture(scope="module")
def bundled() -> unmask.Model:
    return unmask.load("unmask-tiny-block", dtype="float32")


def test_the_bundled_model_decodes_so(bundled: unmask.Model) -> None:
    prompts = ["Amy has 3 apples. She buys 4 more. How many apples does Amy have?", "Sort: 5 2 9"]
    one, more = (bundled.generate(prompts, 40, policy, "blockwise") for policy in ("assd(k=1)", "assd"))
    assert [r.tokens for r in one] == [r.tokens for r in more]
    assert all(r.stats.nfe < own.stats.nfe for r, own in zip(more, one, strict=True))
    gaps, asked = "[MASK*3]=7\n7-2=[MASK]\nAnswer: [MASK]", f"{prompts[0][:-5]} after she loses 2?"
    one, more = (bundled.infill([gaps], policy, "blockwise", prompts=asked) for policy in ("assd(k=1)", "assd"))
    assert one[0].tokens == more[0].tokens
    assert (more[0].text.count("=7\n7-2="), more[0].stats.nfe < one[0].stats.nfe) == (1, True)


def test_what_is_refused(bundled: unmask.Model, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "silent")
    config = json.loads((BUNDLED / "config.json").read_text("utf-8"))
    told = config.pop("visibilities")
    assert "order" in told
    (tmp_path / "silent" / "config.json").write_text(json.dumps(config), "utf-8")
    silent = unmask.load(tmp_path / "silent")
    assert silent.denoiser.spec.orders is False
    for lm, policy, kept, named in (
        (silent, "assd", "blockwise", ("assd", "visibilities")),
        (bundled, "prophet(assd)", "blockwise", ("assd",)),
        (bundled, "assd", "dual", ("dual",)),
    ):
        with refuses(RequestError, *named):
            lm.generate("2+2", 8, policy, kept)
    with refuses(RequestError, "regex", "assd"):
        bundled.generate("2+2", 8, "assd", "blockwise", regex="[0-9]+")
    with refuses(RequestError, "late_eos", "assd"):
        bundled.generate("2+2", 8, "assd", "blockwise", late_eos=True)
    refused(cli("generate", "2+2", "--policy", "assd"), "assd", "visibilities")
    (tmp_path / "silent" / "config.json").write_text(json.dumps(config | {"visibilities": "order"}), "utf-8")
    with refuses(ModelError, "visibilities", "'order'", "block"):
        unmask.load(tmp_path / "silent")
