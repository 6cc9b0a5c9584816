"""The policy ``renoise`` and the canvases of DiffusionGemma: recorded traces, laws, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from gemma import CASES, METHODS, ROOT, Case, Fed, cut, decode, denoiser, events, model, request, with_text
from helpers import MASK, cli, fine, tiny
from pairwise import combined
from refusals import refused, refuses
from unmask import registry
from unmask.core.canvas import NO_MASK, Canvas, ModelSpec
from unmask.core.errors import RequestError
from unmask.engine.loop import Step
from unmask.engine.outcome import Outcome
from unmask.engine.scheduler import Engine
from unmask.policies.renoise import Renoise, within_bound

QUICK = "renoise(entropy_bound=2,steps=6,confidence=0.5)"
PROMPTS = [[5, 6, 7], list(range(20, 41)), [9], [30, 2, 77, 41, 8, 8, 13]]
CACHES = ("none", "blockwise")


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.data["name"])
def test_recorded_draws_lead_to_the_recorded_canvases(case: Case, cache: str) -> None:
    """Argmax, accepted positions and step of every forward pass, its number, and the text."""
    p, told = case.data["params"], list[Any]()
    own = denoiser(ROOT / "checkpoints" / case.data["checkpoint"], block=p["canvas_length"], eos=(case.eos,))
    numbers = [p[name] for name in ("entropy_bound", "max_denoising_steps", "t_min", "t_max")]
    policy = Fed(*numbers, p["stability_threshold"], p["confidence_threshold"], case=case, told=told)
    found = decode(own, [request(0, case.data["prompt_ids"], p["max_new_tokens"], policy, cache)])[0]
    assert not told
    assert cut(found.tokens, case.eos) == case.response
    assert found.nfe == case.data["decoder_forwards"]
    assert found.finish_reason == ("eos" if case.eos in case.response else "length")


def test_all_recorded_cases_are_here() -> None:
    assert {case.data["method"] for case in CASES} == set(METHODS)


# --- laws ----------------------------------------------------------------------------------------------------------


def requests(cache: str, policy: str = QUICK, **params: Any) -> list[Any]:
    sizes = (20, 37, 16, 5)
    return [
        request(i, prompt, size, policy, cache, **{"temperature": 1.0, "seed": 7 + i, **params})
        for i, (prompt, size) in enumerate(zip(PROMPTS, sizes, strict=True))
    ]


@combined(cache=CACHES, temperature=[0.0, 1.0, 1.7], batch=[2, 4])
def test_a_row_alone_is_the_row_in_a_ragged_batch(cache: str, temperature: float, batch: int) -> None:
    own = denoiser()
    alone = {r.id: decode(own, [r])[r.id] for r in requests(cache, temperature=temperature)}
    together = decode(own, requests(cache, temperature=temperature), batch)
    for i, one in alone.items():
        assert together[i].tokens == one.tokens
        assert together[i].steps == one.steps
        assert together[i].nfe == one.nfe
        assert together[i].positions == pytest.approx(one.positions)
        assert together[i].confidence == pytest.approx(one.confidence, abs=1e-4)


def test_the_cache_is_exact_and_each_text_is_encoded_once() -> None:
    own = denoiser()
    plain, cached = decode(own, requests("none")), decode(own, requests("blockwise"))
    for one in requests("none"):
        assert cached[one.id].tokens == plain[one.id].tokens
        assert cached[one.id].nfe == plain[one.id].nfe
        room = own.spec.room(len(one.prompt), one.gen_length)
        canvases = len({step for step in plain[one.id].steps if step >= 0})
        encoded = len(one.prompt) + 16 * (canvases - 1)
        assert cached[one.id].positions == encoded + 16 * cached[one.id].nfe
        assert canvases <= room // 16


def test_seeds_decide_and_temperature_zero_still_has_noise() -> None:
    own = denoiser()
    for temperature in (0.0, 1.0):
        found = decode(own, [request(i, PROMPTS[1], 32, QUICK, seed=i // 2, temperature=temperature) for i in range(6)])
        assert found[0].tokens == found[1].tokens
        assert len({tuple(found[i].tokens) for i in (0, 2, 4)}) == 3


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_the_response_has_its_length_whatever_a_canvas_holds(length: int) -> None:
    """And a shorter one is the beginning of a longer one."""
    own = denoiser()
    short, long = (decode(own, [request(0, PROMPTS[0], n, QUICK, ignore_eos=True)])[0] for n in (length, 48))
    assert len(short.tokens) == length
    assert short.tokens == long.tokens[:length]
    assert short.finish_reason == "length"
    assert not {NO_MASK, *()} & set(short.tokens)
    assert short.nfe <= 6 * -(-length // 16)


def test_an_end_of_text_ends_the_row_unless_it_lies_behind_the_length() -> None:
    own = denoiser()
    whole = decode(own, [request(0, PROMPTS[1], 48, QUICK)])[0].tokens
    at = next(i for i in range(20, 32) if whole[i] not in whole[:i])  # in the second canvas
    ends = denoiser(eos=(whole[at],))
    found = decode(ends, [request(0, PROMPTS[1], 48, QUICK)])[0]
    assert found.finish_reason == "eos"
    assert found.tokens == whole[: at + 1] + [whole[at]] * (47 - at)
    assert [step >= 0 for step in found.steps] == [True] * (at + 1) + [False] * (47 - at)
    before = decode(ends, [request(0, PROMPTS[1], at, QUICK)])[0]
    assert (before.finish_reason, before.tokens) == ("length", whole[:at])
    ignored = decode(ends, [request(0, PROMPTS[1], 48, QUICK, ignore_eos=True)])[0]
    assert (ignored.finish_reason, ignored.tokens) == ("length", whole)


def test_a_canvas_is_committed_at_once_and_streams_whole() -> None:
    done = [e for e in events(denoiser(), [request(0, PROMPTS[0], 40, QUICK)]) if isinstance(e, Step)]
    written = [len(e.committed()) for e in done]
    assert sorted(set(written)) == [0, 16]
    assert [e.status[0].settled for e in done if e.committed()] == [3 + 16, 3 + 32, 3 + 40]
    assert all(e.ask.draft is not None and int(e.ask.draft[e.ask.window].min()) >= 0 for e in done)


def test_suppressed_tokens_are_not_generated() -> None:
    own = denoiser()
    plain = decode(own, [request(0, PROMPTS[0], 32, QUICK, temperature=1.0)])[0].tokens
    silent = tuple(set(plain[:8]))
    found = decode(own, [request(0, PROMPTS[0], 32, QUICK, temperature=1.0, suppress=silent)])[0].tokens
    assert not set(found) & set(silent)


def test_what_is_given_at_the_front_stays() -> None:
    found = decode(denoiser(), [request(0, PROMPTS[0], 20, QUICK, fixed={0: 88, 1: 89})])[0]
    assert found.tokens[:2] == [88, 89]
    assert found.steps[:2] == [-1, -1]


def test_rows_enter_and_leave_a_running_batch() -> None:
    own, cache = denoiser(), "blockwise"
    alone = {r.id: decode(own, [r])[r.id].tokens for r in requests(cache)}
    engine, found = Engine(own, batch_size=3), {}
    waiting = requests(cache)
    engine.add(waiting.pop())
    while engine.busy:
        found |= {e.request.id: e.tokens for e in engine.step() if isinstance(e, Outcome)}
        if waiting:
            engine.add(waiting.pop())
    assert found == alone


def test_an_abort_ends_a_canvas() -> None:
    engine = Engine(denoiser(), batch_size=1)
    engine.add(request(0, PROMPTS[0], 40, QUICK))
    engine.step()
    engine.abort(0)
    (outcome,) = (e for e in engine.step() if isinstance(e, Outcome))
    assert outcome.finish_reason == "abort"
    assert set(outcome.tokens) == {NO_MASK}


def test_the_bound_takes_as_many_as_it_allows() -> None:
    draw = torch.Generator().manual_seed(0)
    for bound in (0.0, 0.3, 1.0, 4.0):
        entropy, open_ = torch.rand(5, 12, generator=draw).double(), torch.rand(5, 12, generator=draw) < 0.7
        taken = within_bound(entropy, open_, bound)
        assert not (taken & ~open_).any()
        for row in range(5):
            order = sorted(entropy[row][open_[row]].tolist())
            many = sum(sum(order[:i]) <= bound for i in range(len(order)))
            assert sorted(entropy[row][taken[row]].tolist()) == order[:many]


def test_noise_is_uniform_and_not_that_of_samples() -> None:
    """Chi-square over the vocabulary, and different in each draw and position."""
    policy, spec = Renoise(), replace(denoiser().spec, vocab=8, block=512)
    canvas = Canvas.blank([[1], [1]], [512, 512], spec)
    zero = torch.zeros(2, dtype=torch.long)
    sampling = unmask.core.protocols.Sampling(zero.double(), zero.double() + 1, zero, torch.tensor([3, 4]))
    state = policy.init(canvas, sampling)
    draws = torch.stack([policy.noise(canvas.places(512), replace(state, drawn=zero + i), 8) for i in range(8)])
    count = draws.flatten().bincount(minlength=8).double()
    expected = draws.numel() / 8
    assert float(((count - expected) ** 2 / expected).sum()) < 24.3  # 0.1 % of 7 degrees of freedom
    agree = [(draws[i] == draws[j]).double().mean() for i in range(8) for j in range(i)]
    assert all(0.06 < float(share) < 0.19 for share in agree)
    assert 0.06 < float((draws[:, 0] == draws[:, 1]).double().mean()) < 0.19


def test_canvases_count_from_the_end_of_the_prompt() -> None:
    canvas = Canvas.blank([[1, 2, 3]], [8], ModelSpec(NO_MASK, (0,), 0, 9, 9, 99, block=4))
    assert canvas.block(4)[0].nonzero()[:, 0].tolist() == [3, 4, 5, 6]
    assert canvas.past[0].tolist() == [True] * 3 + [False] * 8


@pytest.mark.parametrize(("length", "room"), [(1, 4), (4, 4), (5, 8)])
def test_whole_canvases_have_room(length: int, room: int) -> None:
    assert ModelSpec(NO_MASK, (0,), 0, 9, 9, 99, block=4).room(3, length) == room


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["threshold", "slowfast", "vanilla", "left_to_right", "lookahead(renoise,4)"])
def test_other_policies_are_refused(policy: str) -> None:
    with refuses(RequestError, policy.partition("(")[0], "renoise"):
        Engine(denoiser()).add(request(0, PROMPTS[0], 16, policy))


@pytest.mark.parametrize("cache", ["prefix", "dual", "dllm", "trailing", "d2", "every(dual,4)"])
def test_other_caches_are_refused(cache: str) -> None:
    with refuses(RequestError, cache.partition("(")[0], 16):
        Engine(denoiser()).add(request(0, PROMPTS[0], 16, QUICK, cache))


@pytest.mark.parametrize("policy", ["renoise", "lookahead(renoise,4)"])
def test_models_with_a_mask_token_are_refused(policy: str) -> None:
    with refuses(RequestError, "renoise", MASK):
        Engine(tiny()).add(request(0, [1, 2], 8, policy))


def test_what_a_whole_canvas_cannot_follow_is_refused() -> None:
    engine = Engine(denoiser())
    for name, value in (("late_eos", True), ("regex", "a+"), ("choices", ("a", "b"))):
        with refuses(RequestError, name):
            engine.add(request(0, PROMPTS[0], 16, **{name: value}))
    with refuses(RequestError, 16):
        engine.add(request(0, PROMPTS[0], 16, fixed={4: 9}))
    with refuses(RequestError, "suppress"):
        engine.add(request(0, PROMPTS[0], 16, suppress=tuple(range(128))))


def test_the_model_recommends_its_policy_and_cache() -> None:
    lm = model()
    policy, cache = lm.setting()
    assert (str(policy), str(cache)) == ("renoise", "blockwise")
    assert lm.recommended.gen_length == 256
    (found,) = lm.generate([PROMPTS[0]], 20, QUICK, seed=1)
    assert len(found.tokens) == 20
    assert registry.policy(str(policy)) == policy


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_text(tmp_path_factory.mktemp("gemma") / "model")


def test_a_conversation_is_answered_and_traced(folder: Path, tmp_path: Path) -> None:
    trace, page = tmp_path / "trace.jsonl", tmp_path / "page.html"
    options = ("--model", folder, "-n", 20, "--seed", 3, "--policy", QUICK, "--cache", "blockwise")
    said = json.loads(fine(cli("generate", "3 + 4", *options, "--json", "--trace", trace)))
    assert said["prompt_tokens"] == len("user:3 + 4;") + 1  # begins with <bos>
    assert len(said["tokens"]) == 20
    assert json.loads(trace.read_text(encoding="utf-8").splitlines()[0])["mask"] is None
    fine(cli("trace", "view", trace, "--output", page))
    assert page.stat().st_size > 1000
    assert cli("generate", "3 + 4", *options, "--watch").exit_code == 0


def test_the_folder_is_described(folder: Path) -> None:
    about = json.loads(fine(cli("inspect", folder, "--json")))
    assert (about["mask"], about["recommended"]["policy"]) == (None, "renoise")
    assert about["weights"].startswith("complete")


def test_a_gap_at_the_end_is_filled_and_one_inside_is_not(folder: Path) -> None:
    assert fine(cli("infill", "ab[MASK*5]", "--model", folder, "--policy", QUICK)).startswith("ab")
    refused(cli("infill", "ab[MASK*5]cd", "--model", folder, "--policy", QUICK), 16)


def test_one_line_says_what_is_refused(folder: Path) -> None:
    for policy, cache, named in (("threshold", "none", "renoise"), (QUICK, "dual", "dual")):
        refused(cli("generate", "a", "--model", folder, "--policy", policy, "--cache", cache), named)
    refused(cli("generate", "a", "--policy", "renoise"), "renoise")
    refused(cli("generate", "a", "--model", folder, "--policy", "renoise(t_min=0)"), "t_min", "renoise")


def test_a_likelihood_has_no_bound_here() -> None:
    from unmask.evaluation.bound import Pair, bounds

    with refuses(RequestError, "mask"):
        next(bounds(denoiser(), [Pair((3, 4), (5, 6))], 4, 0, 4))


@pytest.mark.parametrize("stored", [False, True])
def test_quantised_weights_decode(stored: bool, folder: Path, tmp_path: Path) -> None:
    """Quantised as they are read, and as `unmask quantize` stores them, experts below each other: the same text."""
    if stored:
        assert cli("quantize", folder, "--output", tmp_path / "small").exit_code == 0
        assert json.loads(fine(cli("inspect", tmp_path / "small", "--json")))["weights"].startswith("complete")
    lm = unmask.load(tmp_path / "small" if stored else folder, device="cpu", dtype="float32", quantize="int8")
    whole = unmask.load(folder, device="cpu", dtype="float32", quantize="int8")
    for cache in CACHES:
        found, expected = (m.generate([PROMPTS[0]], 20, QUICK, cache, seed=1)[0].tokens for m in (lm, whole))
        assert found == expected
