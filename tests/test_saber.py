"""Saber: scores of tokens where they stand, what is drafted, and what is taken back."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import LIMIT, MASK, SHIFTS, Request, decode, forward, tiny, trail
from unmask import registry

SINCE = ["commit", "before", "nothing"]
REQUESTS = [
    Request(0, [5, 6, 7], 14, ignore_eos=True),
    Request(1, [4], 9, ignore_eos=True),
    Request(2, [9, 8, 7, 6], 17),
]


@pytest.mark.parametrize("shift", SHIFTS)
def test_scores_are_of_tokens_in_their_places(shift: bool) -> None:
    model, none, seen = tiny(shift), registry.cache("none"), 0
    for before, _, event in trail(model, "saber(mu=2)", none, REQUESTS[0]):
        canvas = before.canvas
        found = model(canvas, event.ask, none, model.init(canvas, none), before.sampling, before.record.nfe).prediction
        tokens = canvas.tokens[0].tolist()
        logits = forward(model, tokens)
        logits[:, MASK] = logits[:, LIMIT:] = -torch.inf
        share = (logits.roll(1, 0) if shift else logits).softmax(-1)
        for at, token in enumerate(tokens):
            scored = at >= 3 and token != MASK
            assert float(found.score[0, at]) == pytest.approx(float(share[at, token]) if scored else 0, abs=1e-9)
            seen += scored
    assert seen > 20


@pytest.mark.parametrize("since", SINCE)
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: str(r.row))
def test_a_row_follows_the_rule(request_: Request, since: str) -> None:
    """Threshold, drafts, and what is taken back, worked out position by position."""
    n, mu, taken = 2, 3, 0
    commit: dict[int, float] = {}
    last: dict[int, float] = {}
    for before, after, event in trail(tiny(), f"saber(mu={mu},since={since})", "none", request_):
        open_ = {p: float(event.confidence[0, p]) for p in before.canvas.masked[0].nonzero()[:, 0].tolist()}
        mean = sum(commit.values()) / len(commit) if commit else 1.0
        drafts = {p for p, c in open_.items() if c > mean}
        if len(drafts) < n:
            drafts = set(sorted(open_, key=open_.__getitem__, reverse=True)[:n])
        assert {c.position for c in event.committed()} == drafts
        logits = forward(tiny(), before.canvas.tokens[0].tolist())
        logits[:, MASK] = logits[:, LIMIT:] = -torch.inf
        share, tokens = logits.softmax(-1), before.canvas.tokens[0].tolist()
        placed = [p for p in range(len(request_.prompt), len(tokens)) if tokens[p] != MASK]
        now = open_ | {p: float(share[p, tokens[p]]) for p in placed}
        old = commit if since == "commit" else last
        fall = {p: (0 if since == "nothing" else old.get(p, 0)) - now[p] for p in placed}
        if since != "commit":
            fall |= {p: (0 if since == "nothing" else last.get(p, 0)) - now[p] for p in drafts}
        count = min(max(1, math.ceil(len(drafts) / mu)), len(drafts) - 1) if set(open_) - drafts else 0
        count = 0 if bool(after.canvas.done) else count
        worst = set(sorted(fall, key=fall.__getitem__, reverse=True)[:count])
        assert {p for _, p in event.remasked()} == worst
        commit |= {p: open_[p] for p in drafts}
        last, taken = now, taken + len(worst)
    assert taken > 1


@pytest.mark.parametrize("cache", ["none", "dual", "dllm(kp=3,kr=2,rho=0.25)"])
@pytest.mark.parametrize("since", SINCE)
@pytest.mark.parametrize(("n", "mu"), [(1, 1), (2, 1), (2, 8), (5, 1), (5, 2)])
def test_every_forward_fills_at_least_one_position(n: int, mu: int, since: str, cache: str) -> None:
    """Even where all but one of the drafts are taken back."""
    for block in ("none", "6"):
        policy = f"saber(n={n},mu={mu},since={since},block_length={block})"
        for request, row in zip(REQUESTS, decode(tiny(), policy, cache, REQUESTS).values(), strict=True):
            assert all(len(c) - len(r) >= 1 for c, r in zip(row.commits, row.remasks, strict=True))
            assert row.nfe <= request.gen_length


def test_as_many_drafts_as_positions_take_one_forward() -> None:
    for row in decode(tiny(), "saber(n=17)", "none", REQUESTS).values():
        assert row.nfe == 1
        assert not any(row.remasks)
