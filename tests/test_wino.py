"""WINO: what its probes see, and what its rule does with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import LIMIT, MASK, SHIFTS, Request, Row, decode, tiny, trail
from unmask import registry
from unmask.models.denoiser import Denoiser

REQUESTS = [
    Request(0, [5, 6, 7], 12, ignore_eos=True),
    Request(1, [4], 9, ignore_eos=True),
    Request(2, [9, 8, 7, 6], 14),
]


def rows(policy: str) -> list[list[frozenset[tuple[int, int]]]]:
    found: dict[int, Row] = decode(tiny(), policy, "none", REQUESTS)
    return [row.commits for row in found.values()]


def naive(model: Denoiser, tokens: list[int], probed: list[int]) -> tuple[Tensor, Tensor]:
    """Logits of the row, and of a probe for each of ``probed``: one pass with an explicit matrix of who sees whom."""
    shift, n, m = model.spec.shift, len(tokens), len(probed)
    place = [*range(n), *(p - shift for p in probed)]
    ids = torch.tensor([[*tokens, *(tokens[p - 1] if shift else MASK for p in probed)]])
    sees = torch.zeros(n + m, n + m, dtype=torch.bool)
    sees[:, :n] = True
    for j, p in enumerate(probed):
        sees[n + j, p] = False
        sees[n + j, n + j if shift else slice(n, n + m)] = True
    hidden, rotary = model.network.embed(ids), model.network.rotary[place][None]
    with torch.inference_mode():
        for block in model.network.blocks:
            hidden = hidden + block.attend(*block.qkv(hidden, rotary), sees[None])
            hidden = hidden + block.mlp(hidden)
        logits = model.network.logits(hidden[0])
        logits[:, MASK] = logits[:, LIMIT:] = -torch.inf
    return (logits[:n].roll(1, 0) if shift else logits[:n]), logits[n:]


@pytest.mark.parametrize("shift", SHIFTS)
def test_probes_see_all_but_their_own_position_and_nothing_sees_them(shift: bool) -> None:
    model, none, seen = tiny(shift), registry.cache("none"), 0
    policy = "wino(tau_in=0.2,tau_out=0.5,block_length=7)"
    for before, _, event in trail(model, policy, none, Request(0, [5, 6, 7], 12, ignore_eos=True)):
        canvas = before.canvas
        found = model(canvas, event.ask, none, model.init(canvas, none), before.sampling, before.record.nfe).prediction
        tokens = canvas.tokens[0, : int(canvas.length[0])].tolist()
        block = event.ask.probe[0].nonzero()[:, 0].tolist()
        real, probes = naive(model, tokens, block)
        for probe, p in zip(probes, block, strict=True):
            if tokens[p] == MASK:
                assert float(found.confidence[0, p]) == pytest.approx(float(real[p].softmax(-1).max()), abs=1e-9)
                assert float(found.probe[0, p]) == 0
            else:
                assert float(found.probe[0, p]) == pytest.approx(float(probe.softmax(-1)[tokens[p]]), abs=1e-9)
                seen += 1
    assert seen > 5


def test_without_verification_it_is_threshold() -> None:
    """Below six open masks nothing is capped."""
    assert rows("wino(tau_in=0.3,tau_out=0,block_length=5)") == rows("threshold(tau=0.3,block_length=5)")


@pytest.mark.parametrize("block", [5, 12])
def test_a_block_takes_no_more_forwards_than_it_has_positions(block: int) -> None:
    for tau_in, tau_out in ((0.1, 0.9), (0.2, 0.5), (0.6, 0.9)):
        policy = f"wino(tau_in={tau_in},tau_out={tau_out},block_length={block})"
        for commits, request in zip(rows(policy), REQUESTS, strict=True):
            assert len(commits) <= request.gen_length


def test_a_forward_drafts_no_more_than_its_share() -> None:
    for commits in rows("wino(tau_in=0,tau_out=0,block_length=14)"):
        assert max(map(len, commits)) <= 9  # .7 of 14
        assert len(commits[-1]) <= 5
