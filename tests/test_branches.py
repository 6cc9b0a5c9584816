"""Several canvases of a row in one forward pass, and the policies that ask for them: lopa and verified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

import unmask
from helpers import (
    EOS,
    LIMIT,
    MASK,
    POLICIES,
    SHIFT,
    SHIFTS,
    Request,
    Row,
    admit,
    decode,
    forward,
    singly,
    tiny,
    trail,
)
from pairwise import FULL, combined
from refusals import refuses
from unmask import registry
from unmask.core.canvas import Canvas, Update
from unmask.core.errors import SpecError
from unmask.core.forks import Drafts
from unmask.core.policy import Policy
from unmask.core.protocols import Ask, Prediction
from unmask.core.state import slabs
from unmask.engine.admission import state_bytes
from unmask.engine.loop import step
from unmask.engine.scheduler import Engine
from unmask.tasks import FAMILIES, problems

REQUESTS = [
    Request(0, [5, 6, 7], 9, ignore_eos=True),
    Request(1, [4], 7),
    Request(2, [9, 8, 7, 6], 11),
    Request(3, [1, 2], 8, temperature=0.8, seed=5),
    Request(4, [1, 2, 9], 10, temperature=0.7, top_p=0.9, seed=6, ignore_eos=True),
]
GAPS = [Request(5, [5, 6, 7], 12, fixed={3: 4, 7: 9})]


def _drafts(spec: str) -> bool:
    made = registry.policy(spec)
    refused = made.probes or made.remasks or made.holds or made.chooses or made.left_to_right or made.branches > 1
    return not (refused or made.guidance or made.resizes)


DRAFTERS = ["threshold(tau=0)", *(spec for spec in POLICIES if _drafts(spec))]


@cache
def vanilla(block_length: str, kept: str, shift: bool, block: int | None = None, gaps: bool = False) -> dict[int, Row]:
    asked = GAPS if gaps else REQUESTS
    return decode(tiny(shift, block=block), f"vanilla(block_length={block_length})", kept, asked)


def same_text(got: dict[int, Row], expected: dict[int, Row]) -> None:
    """The same tokens, committed in the same order, in no more forward passes."""
    for row, one in expected.items():
        assert got[row].tokens == one.tokens
        assert got[row].nfe <= one.nfe
        order = [next(iter(commit)) for commit in one.commits]
        while order:
            commit, *rest = got[row].commits
            assert commit == set(order[: len(commit)])
            order, got[row].commits[:] = order[len(commit) :], rest
        assert not got[row].commits


@combined(
    apart=("drafter", "kept", "shift", "block", "drafts"),
    drafter=DRAFTERS, kept=["none", "prefix", "dual"], shift=SHIFT, block=["5", "none"], drafts=[2, 5],
)  # fmt: skip
def test_verified_is_vanilla(drafter: str, kept: str, shift: bool, block: str, drafts: int) -> None:
    """Greedy and with temperatures."""
    how = f"verified({drafter},{drafts},block_length={block})"
    same_text(decode(tiny(shift), how, kept, REQUESTS), vanilla(block, kept, shift))
    same_text(decode(tiny(shift), how, kept, GAPS), vanilla(block, kept, shift, gaps=True))


@pytest.mark.parametrize("kept", ["none", "dual", "blockwise"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_verified_is_vanilla_on_block_models(kept: str, shift: bool) -> None:
    found = decode(tiny(shift, block=8), "verified(threshold(tau=0),5,block_length=4)", kept, REQUESTS)
    same_text(found, vanilla("4", kept, shift, 8))


def test_verified_is_vanilla_under_guidance() -> None:
    how = "vanilla(block_length=6,cfg_scale=0.7)"
    expected = decode(tiny(), how, "none", REQUESTS)
    same_text(decode(tiny(), f"verified({how},3,block_length=6)", "none", REQUESTS), expected)


@cache
def bundled() -> unmask.Model:
    return unmask.load(device="cpu", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_verified_is_vanilla_in_all_families(family: str) -> None:
    """The beginnings of two answers; 64 tokens of 300 with ``UNMASK_ALL``."""
    many, length = (300, 64) if FULL else (2, 24)
    prompts = [problem.prompt for problem in problems(family, "test", many)]
    found = [bundled().generate(prompts, length, how) for how in ("vanilla", "verified")]
    assert [r.tokens for r in found[0]] == [r.tokens for r in found[1]]
    plain, fewer = (sum(r.stats.nfe for r in results) for results in found)
    assert fewer < 0.8 * plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"regex": r"[A-Z][a-z]+: [0-9, +=]+\nAnswer: [0-9]+"}, {"stop": "="}, {"late_eos": True}]
)
def test_verified_is_vanilla_with_constraints_and_stops(more: dict[str, Any]) -> None:
    prompts = [problem.prompt for problem in problems("word_problem", "test", 2)]
    for heat in (0.0, 0.9):
        given = {"temperature": heat, "seed": 3, **more}
        plain, found = (bundled().generate(prompts, 24, how, **given) for how in ("vanilla", "verified"))
        assert [(r.text, r.finish_reason) for r in found] == [(r.text, r.finish_reason) for r in plain]


PIPELINES = ["multiblock(tau=1.5,block_length=4,add=0.3,ready=0.7)", "multiblock", "threshold(tau=0.4,block_length=5)"]


@combined(apart=("policy", "kept"), policy=PIPELINES, kept=["none", "dual", "dllm"], shift=SHIFT)
def test_one_branch_is_the_policy(policy: str, kept: str, shift: bool) -> None:
    model = tiny(shift)
    assert decode(model, f"lopa({policy},branches=1)", kept, REQUESTS) == decode(model, policy, kept, REQUESTS)


def naive_lopa(shift: bool, prompt: list[int], length: int, tau: float, many: int) -> list[set[tuple[int, int]]]:
    """Branches one after the other, without a cache; scores are mean confidences, and the base is tried last."""
    model, base = tiny(shift), prompt + [MASK] * length
    extras, commits = list[tuple[int, int]](), list[set[tuple[int, int]]]()
    while MASK in base:
        best: tuple[float, list[int], dict[int, tuple[float, int]]] | None = None
        for extra in [*extras, None]:
            tokens = list(base)
            if extra:
                tokens[extra[0]] = extra[1]
            logits = forward(model, tokens)
            logits = logits.roll(1, 0) if shift else logits
            logits[:, MASK], logits[:, LIMIT:] = -torch.inf, -torch.inf
            sure, token = logits.double().softmax(-1).max(-1)
            found = {i: (float(sure[i]), int(token[i])) for i, t in enumerate(tokens) if t == MASK}
            score = sum(p for p, _ in found.values()) / len(found) if found else 1.0
            if best is None or score > best[0]:
                best = score, tokens, found
        assert best is not None
        _, after, found = best
        order = sorted(found, key=lambda i: -found[i][0])
        chosen = [i for i in order if found[i][0] >= tau] or order[:1]
        for i in chosen:
            after[i] = found[i][1]
        extras = [(i, found[i][1]) for i in order if i not in chosen][: many - 1]
        commits.append({(i, new) for i, (old, new) in enumerate(zip(base, after, strict=True)) if old != new})
        base = after
    return commits


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("many", [2, 4])
def test_lopa_is_the_naive_one(many: int, shift: bool) -> None:
    kept = set()
    for prompt in ([1, 2, 3], [4], [20, 21, 22, 23]):
        how = f"lopa(threshold(tau=0.5,block_length=none),{many},measure=confidence)"
        request = Request(0, prompt, 13, ignore_eos=True)
        assert decode(tiny(shift), how, "none", [request])[0].commits == naive_lopa(shift, prompt, 13, 0.5, many)
        kept |= {int(event.notes()["branch"]) for _, _, event in trail(tiny(shift), how, "none", request)}
    assert len(kept) > 1, "one branch always wins"


@dataclass(frozen=True)
class Twins(Policy):
    """Computes the row's own canvas several times, and goes on from any."""

    name = "twins"
    paper = "-"
    branches = 3

    def ask(self, canvas: Canvas, state: Any) -> Ask:
        forks = Drafts.none(canvas).canvases(canvas, 3, nested=False)
        window = forks.canvas.block(None)
        return Ask(window, forks=replace(forks, idle=torch.zeros_like(forks.idle)))

    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        for value in (prediction.token, prediction.confidence):
            first, *others = value.view(-1, 3, value.shape[1]).unbind(1)
            assert all(torch.equal(first, other) for other in others), "noise depends on the branch"
        write = canvas.position == canvas.frontier[:, None]
        kept = canvas.frontier % 3
        line = torch.arange(len(kept)) * 3 + kept
        return Update(write, prediction.token[line], branch=kept), state


@pytest.mark.parametrize("kept", ["none", "dual", "dllm(kp=3,kr=2)", "d2(k=4,p=0.4)"])
def test_equal_canvases_are_one(kept: str) -> None:
    """Noise and keys and values are the same for all; work counts each, a forward pass is one."""
    found = decode(tiny(), Twins(), kept, REQUESTS)
    plain = decode(tiny(), "left_to_right(k=1,lookahead=none)", kept, REQUESTS)
    for row, one in plain.items() if kept == "none" else ():
        assert found[row].tokens == one.tokens
        assert found[row].work == 3 * one.work
        assert found[row].nfe == one.nfe
    assert {row: one.tokens for row, one in singly(tiny(), Twins(), kept, REQUESTS).items()} == {
        row: one.tokens for row, one in found.items()
    }


@pytest.mark.parametrize("policy", ["lopa(multiblock(tau=1.5,block_length=4),branches=3)", "verified(drafts=4)"])
@pytest.mark.parametrize("kept", ["dual", "dllm(kp=3,kr=2,rho=0.25)", "d2(k=4,p=0.4)", "window_cache(refresh=5)"])
def test_copies_hold_the_same_between_forward_passes(policy: str, kept: str) -> None:
    how, cached = registry.policy(policy), registry.cache(kept)
    state, kinds = admit(tiny(), cached, how, REQUESTS), set()
    for index in range(5):
        state, event = step(tiny(), cached, how, state, index)
        kinds.add(bool((event.update.write.sum(1) > 1).any()))
        for slab in slabs(state.cache):
            lines = slab.data.unflatten(0, (-1, how.branches))[:, :, :-1]
            valid = state.canvas.valid
            for copy in range(1, how.branches):
                assert torch.equal(lines[:, copy][valid], lines[:, 0][valid])
    assert True in kinds


def test_memory_counts_the_canvases() -> None:
    request = Request(0, [1, 2, 3], 20)
    one, three = (state_bytes(tiny(), request.to(f"lopa(branches={n})", "dual")) for n in (1, 3))
    stored = sum(
        s.row_bytes for s in slabs(admit(tiny(), registry.cache("dual"), registry.policy("lopa"), [request]).cache)
    )
    assert three - one == stored * 2 // 3
    engine = Engine(tiny(), memory=2 * three)
    for n in range(3):
        engine.add(replace(request, row=n).to("lopa(branches=3)", "dual"))
    engine.step()
    assert (engine.running, engine.waiting) == (2, 1)


def test_a_canvas_that_is_aborted_or_fails_leaves_the_others() -> None:
    engine = Engine(tiny())
    for request in REQUESTS[:3]:
        engine.add(request.to("lopa(branches=3)", "dual"))
    engine.step()
    engine.abort(1)
    texts = {}
    while engine.busy:
        texts |= {e.request.id: e for e in engine.step() if isinstance(e, unmask.engine.outcome.Outcome)}
    alone = singly(tiny(), "lopa(branches=3)", "dual", REQUESTS[:3])
    assert texts[1].finish_reason == "abort"
    for row in (0, 2):
        answer = alone[row].tokens[len(REQUESTS[row].prompt) :]
        assert texts[row].tokens == [EOS if token == MASK else token for token in answer]


@pytest.mark.parametrize("inner", ["wino", "edit", "refine", "saber", "apd", "renoise", "lopa", "verified"])
def test_policies_that_cannot_draft_are_refused(inner: str) -> None:
    with refuses(SpecError, "verified", inner):
        registry.policy(f"verified({inner})")


@pytest.mark.parametrize("inner", ["wino", "edit", "renoise", "lopa", "verified"])
def test_policies_that_cannot_branch_are_refused(inner: str) -> None:
    with refuses(SpecError, "lopa", inner):
        registry.policy(f"lopa({inner})")


@pytest.mark.parametrize("outer", ["lookahead", "suffix", "prophet", "edit", "ahead"])
def test_policies_around_several_canvases_are_refused(outer: str) -> None:
    with refuses(SpecError, outer, "lopa"):
        registry.policy(f"{outer}(lopa(threshold))")
    registry.policy(f"{outer}(lopa(threshold,branches=1))")
