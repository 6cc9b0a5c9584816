"""Block models: a position sees its own block and all before it; blocks count from position 0."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from counting import counting
from helpers import (
    AHEAD,
    BLOCK_CACHES,
    BLOCK_POLICIES,
    CACHES,
    MASK,
    SHIFT,
    SHIFTS,
    SPEC,
    STEPPED,
    Poisoned,
    Request,
    assert_same,
    decode,
    drain,
    forward,
    singly,
    tiny,
)
from pairwise import combined
from refusals import refuses
from test_matrix import REQUESTS, REVOKING, check_batch, check_row, together
from unmask import registry
from unmask.core.canvas import Canvas
from unmask.core.errors import RequestError
from unmask.core.protocols import HIDDEN, Ranked
from unmask.engine.scheduler import Engine
from unmask.models.attention import attention

pytestmark = pytest.mark.usefixtures("many_tiles")
BLOCK = 4
LONG = [Request(1, [3, 1, 4, 1, 5, 9], 21, ignore_eos=True), Request(2, [2, 7], 17), Request(3, [8] * 8, 9)]


def seen(total: int, block: int) -> Tensor:
    """``[1, T, T]`` who sees whom."""
    number = torch.arange(total) // block
    return (number[None] <= number[:, None])[None]


@combined(
    kinds=("policy", "cache", "shift", "requests", "batch"),
    apart=("policy", "cache", "single"),
    policy=BLOCK_POLICIES,
    cache=BLOCK_CACHES,
    shift=SHIFT,
    requests=list(REQUESTS),
    batch=["ragged", "midway", "padded"],
    single=range(5),
)
def test_a_row_is_the_same_in_any_batch(
    policy: str, cache: str, shift: bool, requests: str, batch: str, single: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its blocks are filled one after the other."""
    singles = [single, single - 2]
    found = check_batch(policy, cache, tiny(shift, block=BLOCK), requests, batch, singles, monkeypatch)
    for row in found.values() if policy not in REVOKING else ():
        for before, after in pairwise(commit for commit in row.commits if commit):
            assert max(p for p, _ in before) // BLOCK <= min(p for p, _ in after) // BLOCK


@combined(policy=AHEAD, cache=BLOCK_CACHES, requests=list(REQUESTS))
def test_blocks_begun_ahead(policy: str, cache: str, requests: str) -> None:
    """A row is the same in any batch; blockwise is exact; no more forward passes than block after block."""
    model, given = tiny(block=BLOCK), REQUESTS[requests]
    expected = singly(model, policy, cache, given)
    for request in given:
        check_row(expected[request.row], request, policy)
    order = [given[i] for i in (1, 3, 0, 4, 2)]
    assert_same(decode(model, policy, Poisoned(registry.cache(cache)), order, batch_size=2), expected)
    if cache == "blockwise":
        plain = together(policy, "none", False, requests, BLOCK)
        assert {row: one.commits for row, one in plain.items()} == {row: one.commits for row, one in expected.items()}


def test_ahead_never_reached_is_the_policy() -> None:
    """Blocks of one position have no share that could be filled before they are full."""
    inner = "threshold(tau=0.4)"
    assert_same(
        decode(tiny(block=1), f"ahead({inner},add=1)", "blockwise", LONG[1:]),
        decode(tiny(block=1), inner, "blockwise", LONG[1:]),
    )
    assert (
        decode(tiny(block=BLOCK), f"ahead({inner},add=0)", "blockwise", LONG[:1])[1].nfe
        < decode(tiny(block=BLOCK), inner, "blockwise", LONG[:1])[1].nfe
    )


def test_what_ahead_is_not_for() -> None:
    for model, policy in (
        (tiny(), "ahead(threshold)"),
        (tiny(True, block=BLOCK), "ahead(threshold)"),
        (tiny(block=BLOCK), "ahead(edit(threshold))"),
        (tiny(block=BLOCK), "ahead(dawn)"),
    ):
        with refuses(RequestError, "ahead"):
            decode(model, policy, "none", LONG)


@pytest.mark.parametrize("block", [None, BLOCK])
def test_editing_nothing_is_the_policy_alone(block: int | None) -> None:
    for post in (0, 5):
        edited = decode(
            tiny(block=block), f"edit(threshold(tau=0.4),tau_edit=2,max_post_steps={post})", "none", LONG[:1]
        )
        assert [c for c in edited[1].commits if c] == decode(tiny(block=block), "threshold(tau=0.4)", "none", LONG[:1])[
            1
        ].commits


@combined(  # dawn averages the attention of what is computed
    apart=("policy", "shift", "requests"),
    policy=[spec for spec in BLOCK_POLICIES if not spec.startswith("dawn")],
    shift=SHIFT,
    requests=list(REQUESTS),
)
def test_blockwise_answers_as_no_cache(policy: str, shift: bool, requests: str) -> None:
    """Same commits in the same forward passes, with less work, which is what is really computed."""
    plain, kept = (together(policy, kept, shift, requests, BLOCK) for kept in ("none", "blockwise"))
    for row, one in plain.items():
        assert kept[row].commits == one.commits
        assert kept[row].remasks == one.remasks
        assert kept[row].work <= one.work


def test_work_claimed_is_work_done() -> None:
    for shift in (False, True):
        model = tiny(shift, block=BLOCK)
        for kept in BLOCK_CACHES:
            with counting(model) as done:
                rows = singly(model, "threshold(tau=0.4)", kept, LONG)
            assert done.mean("qkv_proj") == pytest.approx(sum(row.work for row in rows.values()))


def test_blocks_as_long_as_the_canvas_are_full_attention() -> None:
    for policy in ("threshold(tau=0.4,block_length=none)", "slowfast(tau_min=0.2,tau_high=0.5,block_length=none)"):
        assert_same(
            decode(tiny(block=64), policy, "none", LONG),
            decode(tiny(), policy, "none", LONG),
        )


@pytest.mark.parametrize("kept", ["none", "blockwise"])
def test_blocks_of_one_are_autoregressive_decoding(kept: str) -> None:
    """A masked position sees itself and what precedes it: greedy decoding of the same weights under a causal mask."""
    model = tiny(block=1)
    row = decode(model, "threshold(tau=0.4)", kept, [Request(0, [3, 1, 4], 12, ignore_eos=True)])[0]
    text = [3, 1, 4]
    while len(text) < 15:
        logits = forward(model, [*text, MASK], seen(len(text) + 1, 1))[-1]
        logits[MASK] = -torch.inf
        logits[SPEC.limit :] = -torch.inf
        text.append(int(logits.argmax()))
    assert row.tokens == text
    assert row.nfe == 12


@pytest.mark.parametrize("shift", SHIFTS)
def test_decoding_follows_plain_forward_passes(shift: bool) -> None:
    """One token at a time, most confident first, each answer from a forward pass over all that may be in the input."""
    model, prompt, length = tiny(shift, block=BLOCK), [3, 1, 4, 1, 5], 13
    row = decode(model, "vanilla", "blockwise", [Request(0, prompt, length, ignore_eos=True)])[0]
    text, commits = [*prompt, *[MASK] * length], []
    while MASK in text:
        first = text.index(MASK)
        base = first // BLOCK * BLOCK
        opening = shift and first == base
        end = min(first if opening else base + BLOCK, len(text))
        logits = forward(model, text[:end], seen(end, BLOCK))
        logits[:, MASK] = -torch.inf
        logits[:, SPEC.limit :] = -torch.inf
        open_ = [first] if opening else [at for at in range(first, end) if text[at] == MASK]
        best = {at: logits[at - shift].double().softmax(-1).max(-1) for at in open_}
        at = max(open_, key=lambda p: float(best[p].values))
        text[at] = int(best[at].indices)
        commits.append(frozenset({(at, text[at])}))
    assert row.commits == commits
    assert row.tokens == text


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_longer_response_than_needed_costs_nothing(shift: bool) -> None:
    """Where a text ends, the blocks behind it have never been in the input."""
    for seed in range(20):
        model = tiny(shift, seed=seed, block=BLOCK, eos_bias=2.0)
        rows = {n: decode(model, "threshold(tau=0.4)", "blockwise", [Request(0, [3, 1, 4], n)])[0] for n in (24, 56)}
        ends = [at for at, token in enumerate(rows[24].tokens[3:]) if token in SPEC.eos]
        if ends and ends[0] < 20:
            break
    else:
        pytest.fail("no seed ends its text early")
    assert rows[24].commits == rows[56].commits
    assert rows[24].work == rows[56].work


def test_finished_blocks_are_computed_once() -> None:
    """The prompt's blocks in the first forward pass, a finished block together with the first of the next."""
    model = tiny(block=BLOCK)
    row = decode(model, "vanilla", "blockwise", [Request(0, [3, 1, 4, 1, 5, 9], 14, ignore_eos=True)])[0]
    assert row.nfe == 14
    assert row.work == 4 + 14 * BLOCK + 3 * BLOCK  # the prompt's first block, each pass's own, three stored


@pytest.mark.parametrize("name", [start.partition("(")[0] for start in STEPPED])
def test_steps_are_shared_by_the_model_s_blocks(name: str) -> None:
    """Of responses that are whole blocks; a policy whose blocks are others cannot share them."""
    model, given = tiny(block=BLOCK), [Request(1, [3, 1, 4, 1], 16, ignore_eos=True), Request(2, [7] * 8, 8)]
    policy = f"{name}(steps=8,block_length={BLOCK})"
    alone = singly(model, policy, "blockwise", given)
    assert alone[1].nfe == 8
    assert [len(commit) for commit in alone[1].commits] == [2] * 8 or name == "dream"
    assert_same(decode(model, policy, "blockwise", given), alone)
    for other in (8, 2, "none"):
        with refuses(RequestError, name, "steps", BLOCK):
            decode(model, f"{name}(steps=8,block_length={other})", "blockwise", given)


def test_caches_that_mean_nothing_are_refused() -> None:
    for spec in set(CACHES) - set(BLOCK_CACHES):
        with refuses(RequestError, registry.cache(spec).name.partition("every")[0]):
            decode(tiny(block=BLOCK), "threshold", spec, LONG)
    with refuses(RequestError, "blockwise"):
        decode(tiny(), "threshold", "blockwise", LONG)


def test_text_behind_a_gap_is_refused() -> None:
    with refuses(RequestError, str(BLOCK)):
        decode(tiny(block=BLOCK), "threshold", "none", [Request(0, [1, 2], 9, fixed={5: 7})])
    decode(tiny(block=BLOCK), "threshold", "none", [Request(0, [1, 2], 9, fixed={0: 7, 1: 8})])


def test_attention_by_rank_never_holds_the_whole_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some queries at a time are as all at once, with hidden keys and empty slots."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 300, heads, 8, generator=draw, dtype=torch.float64) for heads in (4, 2, 2))
    rank = torch.arange(300)[None].expand(2, -1) // 7
    visible = torch.rand(2, 300, generator=draw) < 0.8
    visible[:, :7] = True
    ranked = Ranked.of(rank, rank, visible)
    assert (ranked.key == HIDDEN).any()
    expected = attention(query, key, value, ranked.mask())
    monkeypatch.setattr("unmask.models.attention._MASK_AT_ONCE", 300 * 9)
    assert torch.allclose(attention(query, key, value, ranked), expected)


def test_blocks_of_a_policy_lie_inside_those_of_the_model() -> None:
    spec = replace(SPEC, block=8, whole=False)
    canvas = Canvas.blank([[1] * 5, [1] * 8], [14, 14], spec)
    assert canvas.block(None).int().tolist()[0] == [0] * 5 + [1] * 3 + [0] * 14
    assert canvas.block(3).sum(1).tolist() == [1, 3]  # 3..5 less the prompt; 8..10
    assert canvas.block(99).sum(1).tolist() == [3, 8]
    assert canvas.masked.sum(1).tolist() == [3, 8]
    assert canvas.present.sum(1).tolist() == [8, 16]
    shifted = Canvas.blank([[1] * 5, [1] * 8], [14, 14], replace(spec, shift=True))
    assert shifted.masked.sum(1).tolist() == [3, 1]  # the second row's next block is opened by the one before
    assert shifted.present.sum(1).tolist() == [8, 8]
    assert shifted.block_start(None).tolist() == [5, 8]
    assert shifted.block_end(None).tolist() == [8, 9]


def test_a_response_takes_whole_blocks_and_is_cut() -> None:
    """The last block is in the input as long as all others; decoding ends when what was asked for is filled."""
    model = tiny(block=BLOCK, whole=True)
    long, cut = (
        decode(model, "vanilla", "blockwise", [Request(0, [3, 1, 4], n, ignore_eos=True)])[0] for n in (13, 10)
    )
    assert len(long.tokens) == len(cut.tokens) == 16
    assert long.commits[: cut.nfe] == cut.commits
    assert cut.nfe < long.nfe
    assert MASK not in cut.tokens[:13]
    engine = Engine(model)
    engine.add(Request(0, [3, 1, 4], 10, ignore_eos=True).to("vanilla", "blockwise"))
    (outcome,) = drain(engine)
    assert outcome.tokens == long.tokens[3:13]
