"""What only meets in block models: the surplus of the last block, editing inside other policies, likelihoods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers import VERIFIER, Request, assert_same, decode, singly, tiny
from refusals import refuses
from structured import CASES, model, valid
from unmask import Model
from unmask.core.errors import RequestError
from unmask.evaluation.bound import Pair, bounds, greedy
from unmask.models.causal import CausalModel
from unmask.models.denoiser import Denoiser

pytestmark = pytest.mark.usefixtures("many_tiles")


@pytest.mark.parametrize("policy", ["wino(tau_in=0.1,tau_out=0.5)", "ahead(wino(tau_in=0.1,tau_out=0.5))"])
@pytest.mark.parametrize("kept", ["none", "blockwise"])
def test_probes_of_positions_that_fill_the_last_block_have_columns(policy: str, kept: str) -> None:
    """A response of one token is probed in four positions; it is the same beside a row that has room for more."""
    model, long = tiny(block=4, whole=True), Request(9, [2] * 4, 30, ignore_eos=True)
    for token in range(6):
        short = Request(0, [3, 1, 4, token], 1, ignore_eos=True)
        alone = decode(model, policy, kept, [short])
        assert_same({0: decode(model, policy, kept, [short, long])[0]}, alone)


@pytest.mark.parametrize("post", [0, 3])
@pytest.mark.parametrize(
    "inner",
    [
        "lookahead(threshold(tau=0.4),3)",
        "suffix(threshold(tau=0.4,block_length=3),window=2,last=0)",
        "left_to_right(k=2,lookahead=3)",
        "learned(temperature=9,block_length=5)",
    ],
)
def test_editing_nothing_is_the_policy_alone_whatever_it_leaves_out_or_counts(inner: str, post: int) -> None:
    """Editing brings no masked position into the input, and passes over a full block are not the policy's own."""
    request = Request(1, [3, 1, 4, 1, 5, 9], 21, ignore_eos=True)
    edited = decode(tiny(block=8), f"edit({inner},tau_edit=2,max_post_steps={post})", "blockwise", [request])[1]
    assert [c for c in edited.commits if c] == decode(tiny(block=8), inner, "blockwise", [request])[1].commits


@pytest.mark.parametrize("inner", ["edit(threshold(tau=0.4),tau_edit=0.1)", "ahead(threshold(tau=0.4),add=0)"])
def test_prophet_that_is_never_certain_is_the_policy_alone(inner: str) -> None:
    """Edits, held blocks and blocks begun ahead pass through it."""
    request = Request(1, [3, 1, 4, 1, 5, 9], 21, ignore_eos=True)
    never = decode(tiny(block=8), f"prophet({inner},high=1e9,mid=1e9,low=1e9)", "blockwise", [request])
    assert_same(never, decode(tiny(block=8), inner, "blockwise", [request]))
    at_once = decode(tiny(block=8), f"prophet({inner},high=0,mid=0,low=0)", "blockwise", [request])[1]
    assert len(at_once.commits[0]) == 2  # all that the first block has left


@pytest.fixture(scope="module")
def blocks() -> Model:
    """The bundled model's shape with random weights, in whole blocks of 8."""
    lm = model("random")
    return Model(Denoiser(lm.denoiser.network, replace(lm.denoiser.spec, block=8, whole=True)), lm.text)


@pytest.mark.parametrize(("case", "length"), [("record", 21), ("array", 14)])
@pytest.mark.parametrize("policy", ["threshold(tau=0.1)", "edit(threshold(tau=0.1),tau_edit=0)"])
def test_constraints_hold_for_what_was_asked_for(blocks: Model, policy: str, case: str, length: int) -> None:
    """What fills the last block is cut off: the accepted text ends before it."""
    [result] = blocks.generate("Fill it.", length, policy, "blockwise", temperature=1.0, seed=length, **CASES[case])
    assert valid(CASES[case], result.text)


def test_choices_are_scored_where_the_last_block_has_more_positions(blocks: Model) -> None:
    part = Model(Denoiser(blocks.denoiser.network, replace(blocks.denoiser.spec, whole=False)), blocks.text)
    for lm in (blocks, part):
        [found] = lm.score_choices("Count.", "3+4=[MASK]", ["7", "8"])
        assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("shift", [False, True])
def test_text_that_a_read_does_not_see_is_refused(blocks: Model, shift: bool) -> None:
    """Behind the block of the gap, or of a shifted model behind a gap that opens a block. What is seen counts."""
    own = blocks.denoiser
    lm = Model(Denoiser(own.network, replace(own.spec, shift=shift)), blocks.text)
    first = len(lm.text.plain("", special=True))
    assert len(lm.text.plain("12345", special=True)) == first + 5  # a token for each digit
    front, behind = "12345"[first:], "67"
    [short], [seen] = (lm.score_choices(None, f"{front}[MASK]{more}", ["8", "9"]) for more in ("", behind))
    assert short["8"] != pytest.approx(seen["8"], rel=1e-6)
    for template in (f"{front}[MASK]{behind}3", f"{front}[MASK]67[MASK]"):
        with refuses(RequestError, "template", 8):
            lm.score_choices(None, template, ["8", "9"])
    opening = f"{front}678[MASK]"
    lm.score_choices(None, opening, ["8", "9"])
    if shift:
        with refuses(RequestError, "template", 8):
            lm.score_choices(None, f"{opening}6", ["8", "9"])
    else:
        lm.score_choices(None, f"{opening}6", ["8", "9"])


def test_likelihoods_by_masking_are_refused() -> None:
    pairs = [Pair((3, 1, 4), tuple(range(5, 5 + size))) for size in (3, 12)]
    for measured in (lambda: list(bounds(tiny(block=4), pairs, 8, 0, 4)), lambda: greedy(tiny(block=4), pairs, 4)):
        with refuses(RequestError, 4):
            measured()


def test_apd_may_be_edited_but_not_run_ahead() -> None:
    """A block that is held has nothing to draft; blocks begun ahead stand behind text that is not there yet."""
    apd = f'apd(verifier="{VERIFIER}")'
    model, given = (
        tiny(block=4, whole=True),
        [Request(1, [3, 1, 4, 1, 5, 9], 9, ignore_eos=True), Request(2, [3, 1], 5)],
    )
    edited = f"edit({apd},tau_edit=0.3)"
    assert_same(decode(model, edited, "blockwise", given), singly(model, edited, "blockwise", given))
    for policy in (f"ahead({apd})", "ahead(left_to_right)"):
        with refuses(RequestError, "ahead"):
            decode(model, policy, "blockwise", given)


@pytest.mark.parametrize(("policy", "reads"), [("apd(r=0.2", "score"), ("cascade(k=3,window=4,margin=0.5", "branch")])
@pytest.mark.parametrize("block", [None, 8])
def test_a_verifier_reads_edited_tokens_again(
    policy: str, reads: str, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it read the whole text in every forward pass, though tokens in front of the masked ones are replaced."""
    edited = f'edit({policy},verifier="{VERIFIER}"),tau_edit=0.1,max_post_steps=0)'
    model, given = tiny(block=block), [Request(1, [3, 1, 4, 1, 5, 9], 21, ignore_eos=True), Request(2, [3, 1], 9)]
    found = decode(model, edited, "none", given)
    written = [[at for commit in row.commits for at, _ in commit] for row in found.values()]
    assert any(len(set(own)) < len(own) for own in written), "nothing is edited"
    whole = getattr(CausalModel, reads)

    def anew(self: CausalModel, *given: Any) -> Any:
        return whole(self, *given[:-1], given[-1].cropped(given[-1].known * 0))

    monkeypatch.setattr(CausalModel, reads, anew)
    assert_same(decode(model, edited, "none", given), found)
