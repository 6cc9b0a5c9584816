"""Gaps among given tokens, and suppress ids: every policy, with and without caches, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import (
    EOS,
    LIMIT,
    MASK,
    SAMPLED,
    SHIFT,
    SHIFTS,
    SIZED,
    SPEC,
    Chaos,
    Poisoned,
    Request,
    Row,
    admit,
    assert_same,
    decode,
    forward,
    tiny,
    trail,
)
from pairwise import FULL, combined
from refusals import refuses
from unmask import RequestError, registry
from unmask.core.canvas import Canvas, Update
from unmask.core.predict import suppress

pytestmark = pytest.mark.usefixtures("many_tiles")
ANY_ORDER = [p for p in SIZED if not registry.policy(p).left_to_right]
FORWARD_ONLY = sorted(set(SIZED) - set(ANY_ORDER))
CACHES = ["none", "dual", "dllm(kp=2,kr=2)"]


def gapped(row: int, text: list[int], **more: object) -> Request:
    """A text with mask ids in it as a request."""
    first = text.index(MASK)
    fixed = {at - first: token for at, token in enumerate(text) if at > first and token != MASK}
    return Request(row, text[:first], len(text) - first, fixed=fixed, **more)  # type: ignore[arg-type]


def whole(request: Request) -> list[int]:
    """The request as its text with mask ids."""
    response = [request.fixed.get(at, MASK) for at in range(request.gen_length)]
    return [*request.prompt, *response]


BANNED = (3, 7, 8, 11, 12, 14, 15, 17, 20, 21, 22, 26, 33, 40, 41, 44, 50, 52)
REQUESTS = [
    gapped(0, [1, 2, 3, MASK, MASK, MASK, 4, 5, 6, 7, 8, 9, MASK, MASK, 10, MASK, 11], suppress=BANNED),
    gapped(1, [4, *[MASK] * 5, *range(20, 38), MASK, MASK, MASK, 7]),  # blocks without a mask
    Request(2, [9, 8, 7], 12, temperature=1.4, seed=5, suppress=(EOS, 59)),
    gapped(3, [5, MASK, EOS, 6, MASK, MASK, MASK, 8, *[MASK] * 7]),  # an end of text in the middle, and room at the end
    gapped(4, [30, *[MASK, 3, MASK] * 4, 2], temperature=1.0, top_p=0.9, top_k=20, seed=4, suppress=(1, 2)),
]


def assert_filled(request: Request, row: Row, policy: str) -> None:
    """Given tokens stay, masks go, bans hold, and no end of text stands in front of given text."""
    text = whole(request)
    last = max((at for at, token in enumerate(text) if token != MASK), default=0)
    ends = [at for at, token in enumerate(row.tokens) if token in SPEC.eos and at >= last]
    stop = ends[0] + 1 if ends and not request.ignore_eos else len(text)
    assert len(row.tokens) == len(text)
    assert row.finished == 1
    for at, (given, got) in enumerate(zip(text, row.tokens, strict=True)):
        if given != MASK:
            assert got == given, f"position {at} was given"
        else:
            assert got != MASK or at >= stop, f"position {at} is left"
            assert got not in request.suppress
            assert got not in SPEC.eos or at > last or not request.fixed
    if not registry.policy(policy).remasks:
        assert row.nfe <= text.count(MASK)
        assert all(row.commits), "a forward without effect"


@combined(
    kinds=("policy", "shift", "batch"),
    apart=("policy", "kept", "single"),
    policy=ANY_ORDER,
    kept=CACHES,
    shift=SHIFT,
    batch=["ragged", "midway"],
    single=range(5),
)
def test_given_tokens_stay_and_masks_are_filled_in_any_batch(
    policy: str, kept: str, shift: bool, batch: str, single: int
) -> None:
    """Rows with gaps and without, with bans and without; in one batch, or entering and leaving; one of them alone."""
    if batch == "ragged":
        found = decode(tiny(shift), policy, kept, REQUESTS)
    else:
        found = decode(tiny(shift), policy, Poisoned(registry.cache(kept)), REQUESTS[::-1], batch_size=2)
    for request in REQUESTS:
        assert_filled(request, found[request.row], policy)
    alone = REQUESTS[single]
    assert_same({alone.row: found[alone.row]}, decode(tiny(shift), policy, kept, [alone]))


@combined(scale=[0.0, 0.5], kept=CACHES, shift=SHIFT)
def test_a_policy_that_asks_for_anything(kept: str, scale: float, shift: bool) -> None:
    requests = [replace(r, seed=r.row) for r in REQUESTS]
    found = decode(tiny(shift), Chaos(scale), kept, requests, batch_size=3)
    first = CACHES.index(kept)
    for request in requests if FULL else [requests[first], requests[first + 2]]:
        assert_same(decode(tiny(shift), Chaos(scale), kept, [request]), {request.row: found[request.row]})


# --- what a gap is predicted from


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_gap_sees_what_stands_behind_it(shift: bool) -> None:
    """One mask among given tokens: the likeliest token of one plain pass over the whole text."""
    for text in ([1, 2, MASK, 4, 5, 6], [7, MASK, 9, 3], [5, 6, 7, 8, MASK, 11]):
        at = text.index(MASK)
        logits = forward(tiny(shift), text)[at - shift]
        logits[[MASK, *SPEC.eos, *range(LIMIT, SPEC.vocab)]] = -torch.inf
        row = decode(tiny(shift), "vanilla", "none", [gapped(0, text)])[0]
        assert row.tokens[at] == int(logits.argmax())
        assert row.confidence[at] == pytest.approx(float(logits.softmax(-1).max()))


def test_guidance_leaves_all_that_is_given_out_of_the_other_branch() -> None:
    """As the published code does: what is no mask in the beginning is masked."""
    text, scale = [1, 2, MASK, 4, 5], 0.7
    seen, unseen = forward(tiny(), text)[2], forward(tiny(), [MASK] * 5)[2]
    logits = unseen + (scale + 1) * (seen - unseen)
    logits[[MASK, *SPEC.eos, *range(LIMIT, SPEC.vocab)]] = -torch.inf
    row = decode(tiny(), f"vanilla(cfg_scale={scale})", "none", [gapped(0, text)])[0]
    assert row.confidence[2] == pytest.approx(float(logits.softmax(-1).max()))


def test_given_text_stays_in_sight_where_slowfast_cuts_the_rest_off() -> None:
    cut = 0
    policy = "slowfast(suffix=truncate,tau_min=0.3,tau_high=0.5,k_max=3)"
    for before, _, event in trail(tiny(), policy, "none", REQUESTS[4]):
        assert event.ask.visible is not None
        assert bool(event.ask.visible[before.canvas.fixed].all())
        cut += not bool(event.ask.visible[before.canvas.valid].all())
    assert cut, "nothing is cut off"


def test_budgets_count_masks() -> None:
    """Never ahead of filling the masks evenly in so many forwards; given tokens are no head start and no debt."""
    (row,) = decode(tiny(), "threshold(tau=0,steps=4,block_length=none)", "none", [REQUESTS[1]]).values()
    assert [len(commits) for commits in row.commits] == [2, 2, 2, 2]
    (row,) = decode(tiny(), "dream(steps=1)", "none", [REQUESTS[1]]).values()
    assert [len(commits) for commits in row.commits] == [8]


def test_wino_probes_nothing_that_was_given() -> None:
    undone = 0
    for shift in (False, True):
        for before, _, event in trail(tiny(shift), "wino(tau_in=0.1,tau_out=0.9)", "none", REQUESTS[1]):
            assert not (event.ask.probe & before.canvas.fixed).any()
            undone += len(event.remasked())
    assert undone, "nothing is taken back"


# --- ends of text


def test_an_end_of_text_ends_a_row_behind_the_last_given_token_only() -> None:
    text = [1, EOS, MASK, EOS, 5, MASK, MASK]
    canvas = Canvas.blank([[1]], [6], SPEC, fixed=[{0: EOS, 2: EOS, 3: 5}])
    assert canvas.tokens[0].tolist() == text
    assert canvas.fixed[0].nonzero()[:, 0].tolist() == [1, 3, 4]
    assert canvas.closing[0].nonzero()[:, 0].tolist() == [4, 5, 6]
    write = torch.tensor([[False] * 5 + [True, False]])
    ended = canvas.apply(Update(write, torch.full_like(canvas.tokens, EOS)))
    assert int(ended.eos_at) == 5
    assert ended.masked[0].nonzero()[:, 0].tolist() == [2, 6]  # not before the first gap is full
    write = torch.tensor([[False, False, True] + [False] * 4])
    assert bool(ended.apply(Update(write, torch.full_like(canvas.tokens, 9))).done)
    given = Canvas.blank([[1]], [6], SPEC, fixed=[{2: EOS}])  # a given end of text is one, too
    assert int(given.eos_at) == 3
    write = torch.tensor([[False, True, True] + [False] * 4])
    assert bool(given.apply(Update(write, torch.full_like(canvas.tokens, 9))).done)


def test_the_last_gap_may_hold_an_end_of_text_and_no_other() -> None:
    """A model that wants to end says so only where nothing follows."""
    keen, order = tiny(eos_bias=3.0), "vanilla(block_length=1)"
    (row,) = decode(keen, order, "none", [gapped(0, [6, MASK, MASK, 2, MASK, MASK, MASK, 3])]).values()
    assert not set(row.tokens) & set(SPEC.eos)
    (row,) = decode(keen, order, "none", [gapped(0, [6, MASK, MASK, 2, *[MASK] * 9])]).values()
    assert not set(row.tokens[:4]) & set(SPEC.eos)
    assert row.tokens.index(EOS) >= 4
    assert row.tokens[-1] == MASK, "it does not stop early"


# --- bans


def test_a_suppress_id_has_probability_zero_for_its_row_alone() -> None:
    plain, other = Request(0, [1, 2, 3], 6, ignore_eos=True), Request(1, [7, 8], 6, ignore_eos=True)
    free = decode(tiny(), "vanilla", "none", [plain, other])
    favourite = free[0].tokens[3:]
    barred = decode(tiny(), "vanilla", "none", [replace(plain, suppress=favourite), other])
    assert not set(barred[0].tokens[3:]) & set(favourite)
    assert barred[1].commits == free[1].commits
    canvas = Canvas.blank([[1, 2, 3]], [6], SPEC)
    logits = forward(tiny(), canvas.tokens[0].tolist())
    logits[:, [MASK, *favourite, *range(LIMIT, SPEC.vocab)]] = -torch.inf
    ((at, token),) = barred[0].commits[0]
    assert token == int(logits[at].argmax())
    assert barred[0].confidence[at] == pytest.approx(float(logits[at].softmax(-1).max()))


@pytest.mark.parametrize(
    "needs", ["credit(tau=0.5,block_length=5)", "klass(tau=0.4,kl=0.3)", "entropy_bound(gamma=1.2)"]
)
def test_bans_reach_whoever_looks_at_distributions(needs: str) -> None:
    allowed = {3, 4}
    request = Request(0, [1, 2], 9, temperature=2.0, suppress=sorted(set(range(LIMIT)) - allowed))
    assert set(decode(tiny(), needs, "none", [request])[0].tokens[2:]) <= allowed


def test_banning_the_mask_id_changes_nothing_and_banning_the_end_of_text_fills_the_row() -> None:
    request = Request(0, [1, 2, 3], 12)
    assert decode(tiny(), "vanilla", "none", [request]) == decode(
        tiny(), "vanilla", "none", [replace(request, suppress=[MASK])]
    )
    keen = tiny(eos_bias=3.0)
    assert EOS in decode(keen, "vanilla", "none", [request])[0].tokens
    row = decode(keen, "vanilla", "none", [replace(request, suppress=SPEC.eos)])[0]
    assert not set(row.tokens) & {MASK, *SPEC.eos}


def test_requests_that_ban_nothing_cost_nothing() -> None:
    made, kept = registry.policy("vanilla"), registry.cache("none")
    state = admit(tiny(), kept, made, [Request(0, [1, 2], 5), Request(1, [1], 3)])
    assert state.sampling.suppress.shape == state.sampling.inside.shape == (2, 0)
    zero, logits = torch.zeros(1, dtype=torch.long), torch.zeros(1, SPEC.vocab)

    class Nothing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            raise AssertionError(f"{function} for nothing")

    with Nothing():
        suppress(logits, state.sampling, state.canvas, zero, zero)


# --- who refuses


@pytest.mark.parametrize("policy", FORWARD_ONLY)
def test_policies_that_go_forward_refuse_what_stands_behind_a_mask(policy: str) -> None:
    name = policy.partition("(")[0]
    with refuses(RequestError, "prompt 0", name):
        decode(tiny(), policy, "none", [REQUESTS[2], REQUESTS[0]])
    assert decode(tiny(), policy, "none", [REQUESTS[2]])[2].finished == 1  # bans are fine


def test_left_to_right_is_among_them() -> None:
    assert any(policy.startswith("left_to_right") for policy in FORWARD_ONLY)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"suppress": range(LIMIT)}, ["suppress"]),
        ({"suppress": sorted(SAMPLED)}, ["suppress"]),
        ({"suppress": sorted(SAMPLED - set(SPEC.eos)), "fixed": {3: 1}}, ["suppress"]),
        ({"suppress": [5, SPEC.vocab]}, ["suppress", SPEC.vocab, SPEC.vocab - 1]),
        ({"suppress": [-1]}, ["suppress", -1]),
        ({"fixed": {5: 1}}, ["fixed", 5, 4]),
        ({"fixed": {-1: 1}}, ["fixed", -1]),
        ({"fixed": {0: MASK}}, ["fixed", "mask", MASK]),
        ({"fixed": {0: SPEC.vocab}}, ["fixed", SPEC.vocab]),
        ({"fixed": dict.fromkeys(range(5), 1)}, ["fixed", 5]),
    ],
)
def test_requests_that_cannot_be(more: dict[str, object], named: list[object]) -> None:
    with refuses(RequestError, "prompt 0", *named):
        decode(tiny(), "vanilla", "none", [replace(Request(0, [1, 2], 5), **more)])  # type: ignore[arg-type]


def test_a_text_may_begin_with_a_gap_unless_the_model_is_shifted() -> None:
    request = Request(0, [], 4, fixed={1: 5, 3: 7})
    for kept in CACHES:
        (row,) = decode(tiny(), "vanilla", Poisoned(registry.cache(kept)), [request]).values()
        assert (row.tokens[1], row.tokens[3]) == (5, 7)
        assert MASK not in row.tokens
    with refuses(RequestError, "prompt 0"):
        decode(tiny(shift=True), "vanilla", "none", [request])


def test_all_but_an_end_of_text_may_be_suppress_where_nothing_follows() -> None:
    request = Request(0, [1], 3, suppress=sorted(SAMPLED - {EOS}))
    assert decode(tiny(), "vanilla", "none", [request])[0].finished == 1
