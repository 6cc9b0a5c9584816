"""Gaps among given tokens, and banned ids: every policy, with and without caches, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from helpers import EOS, MASK, POLICIES, SPEC, Chaos, Poisoned, Row, decode, tiny
from unmask import registry
from unmask.core import rows
from unmask.engine.batch import Request

SHIFTS = [pytest.param(False, id="plain"), pytest.param(True, id="shift")]
ANY_ORDER = [p for p in POLICIES if not registry.policy(p).left_to_right]
FORWARD_ONLY = sorted(set(POLICIES) - set(ANY_ORDER))
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
    gapped(0, [1, 2, 3, MASK, MASK, MASK, 4, 5, 6, 7, 8, 9, MASK, MASK, 10, MASK, 11], banned=BANNED),
    gapped(1, [4, *[MASK] * 5, *range(20, 38), MASK, MASK, MASK, 7]),  # blocks without a mask
    Request(2, [9, 8, 7], 12, temperature=1.4, seed=5, banned=(EOS, 59)),
    gapped(3, [5, MASK, EOS, 6, MASK, MASK, MASK, 8, *[MASK] * 7]),  # an end of text in the middle, and room at the end
    gapped(4, [30, *[MASK, 3, MASK] * 4, 2], temperature=1.0, top_p=0.9, top_k=20, seed=4, banned=(1, 2)),
]


@pytest.fixture(autouse=True, scope="module")
def many_tiles():  # type: ignore[no-untyped-def]
    """Rectangles so cheap that the small rows of these tests are split among several, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_TILE_COST", {False: 2.0, True: 2.0})
        yield


@cache
def alone(policy: str, kept: str, shift: bool) -> dict[int, Row]:
    """Each request in a batch of its own."""
    found: dict[int, Row] = {}
    for request in REQUESTS:
        found |= decode(tiny(shift), policy, kept, [request])
    return found


def assert_same(got: dict[int, Row], expected: dict[int, Row]) -> None:
    assert got.keys() == expected.keys()
    for row, one in expected.items():
        assert (got[row].commits, got[row].remasks) == (one.commits, one.remasks), f"row {row}"
        assert got[row].tokens == one.tokens, f"row {row}"
        assert got[row].work == pytest.approx(one.work), f"row {row}"


def assert_filled(request: Request, row: Row, policy: str) -> None:
    """Given tokens stay, masks go, bans hold, and no end of text stands in front of given text."""
    text = whole(request)
    last = max((at for at, token in enumerate(text) if token != MASK), default=0)
    ends = [at for at, token in enumerate(row.tokens) if token in SPEC.eos and at >= last]
    stop = ends[0] + 1 if ends and request.eos_stop else len(text)
    assert len(row.tokens) == len(text)
    assert row.finished == 1
    for at, (given, got) in enumerate(zip(text, row.tokens, strict=True)):
        if given != MASK:
            assert got == given, f"position {at} was given"
        else:
            assert got != MASK or at >= stop, f"position {at} is left"
            assert got not in request.banned
            assert got not in SPEC.eos or at > last or not request.fixed
    if policy.partition("(")[0] != "wino":
        assert row.nfe <= text.count(MASK)
        assert all(row.commits), "a forward without effect"


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("policy", ANY_ORDER)
def test_given_tokens_stay_and_masks_are_filled(policy: str, kept: str, shift: bool) -> None:
    for request in REQUESTS:
        assert_filled(request, alone(policy, kept, shift)[request.row], policy)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("policy", ANY_ORDER)
def test_a_row_does_not_see_its_batch(policy: str, kept: str, shift: bool) -> None:
    """Rows with gaps and without, with bans and without, enter and leave."""
    poisoned = Poisoned(registry.cache(kept))
    assert_same(decode(tiny(shift), policy, kept, REQUESTS), alone(policy, kept, shift))
    assert_same(decode(tiny(shift), policy, poisoned, REQUESTS[::-1], batch_size=2), alone(policy, kept, shift))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_policy_that_asks_for_anything(kept: str, scale: float, shift: bool) -> None:
    requests = [replace(r, seed=r.row) for r in REQUESTS]
    found = decode(tiny(shift), Chaos(scale), kept, requests, batch_size=3)
    for request in requests:
        assert_same(decode(tiny(shift), Chaos(scale), kept, [request]), {request.row: found[request.row]})
