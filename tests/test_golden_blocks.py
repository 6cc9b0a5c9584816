"""Traces of the published code of block models and mixtures of experts, in float32 on one thread.

Runs the set in ``tests/golden/blocks``, or the collection of the same kind that ``UNMASK_GOLDEN_BLOCKS`` names; its
README says what a case is. A trace is followed until the answer is settled: the references go on to the end of a block
whose text has ended, or fill positions that nobody asked for, where this engine stops.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import test_golden as first_set
import unmask
from helpers import Request
from test_golden import Batches, Case, Outcome, Params, Specs, _spec, followed
from unmask.core.canvas import ModelSpec
from unmask.core.config import Spec
from unmask.models.denoiser import Denoiser

ROOT = Path(os.environ.get("UNMASK_GOLDEN_BLOCKS") or Path(__file__).parent / "golden" / "blocks")
_OTHER = {"fragile.json", "quirks.json", "logits.json"}


def find_cases() -> list[Case]:
    files = [f for f in sorted(ROOT.glob("*/*.json")) if f.name not in _OTHER and f.parent.name != "checkpoints"]
    return [Case(f.parent.name, entry) for f in files for entry in json.loads(f.read_text(encoding="utf-8"))]


def _sdar(schedule: str) -> Callable[[Case, Params], Specs]:
    def build(case: Case, p: Params) -> Specs:
        names = {"low_confidence_dynamic": "dynamic", "low_confidence_static": "static", "sequential": "sequential"}
        assert names[p.take("remasking_strategy", "")] == schedule
        tau = p.take("confidence_threshold", 0.9)
        return _spec("sdar", schedule=Spec(schedule), tau=tau, steps=p.take("denoising_steps", None)), "blockwise"

    return build


def _llada2(case: Case, p: Params) -> Specs:
    steps = min(p.take("steps", 32), case.data["params"]["gen_length"] // p.take("minimal_topk", 1))
    p.take("eos_early_stop", False)  # see `followed`
    return _spec("sdar", tau=p.take("threshold", 0.95), steps=steps), "blockwise"


def _edit(case: Case, p: Params) -> Specs:
    steps = case.data["params"].get("block_length", 32) // p.take("num_to_transfer", 1)
    p.take("eos_early_stop", False)  # see `request`
    inner = Spec("sdar", (), (("tau", p.take("threshold", 0.95)), ("steps", steps)))
    post, tau = p.take("max_post_steps", 16), p.take("editing_threshold", 0.9)
    return _spec("edit", policy=inner, tau_edit=tau, max_post_steps=post), "blockwise"


def _joint(case: Case, p: Params) -> Specs:
    inner = Spec("sdar", (), (("tau", p.take("threshold", 0.5)),))
    post, tau = p.take("max_post_edit_steps", 16), p.take("edit_threshold", 0)
    penalty = p.take("penalty_lambda", 0.0)
    return _spec("edit", policy=inner, tau_edit=tau, max_post_steps=post, penalty=penalty), "blockwise"


def _fast_dllm(case: Case, p: Params) -> Specs:
    cache_ = "dual" if p.take("use_block_cache", False) else "blockwise"
    return _spec("threshold", tau=p.take("threshold", 0.9), block_length=p.take("small_block_size", 8)), cache_


def _diffcoder(case: Case, p: Params) -> Specs:
    tau, steps = p.take("threshold", 0.95), p.take("steps", None)
    if tau is None:
        return _spec("vanilla", steps=steps, block_length=case.data["params"]["block_length"]), "blockwise"
    return _spec("threshold", tau=tau, block_length=None), "blockwise"


def _rnd1(case: Case, p: Params) -> Specs:
    p.take("suffix_ids", None)
    p.take("reserve_eos", False)
    gamma = p.take("eb_gamma", None)
    return _spec("rnd1", steps=p.take("num_steps", 256), scale=p.take("temperature", 1.0), gamma=gamma), "none"


METHODS: dict[str, Callable[[Case, Params], Specs]] = {
    "sdar_dynamic": _sdar("dynamic"),
    "sdar_static": _sdar("static"),
    "sdar_sequential": _sdar("sequential"),
    "llada2_block": _llada2,
    "llada21_edit": _edit,
    "llada21_edit_cached": _edit,
    "llada21_joint": _joint,
    "fastdllm_v2": _fast_dllm,
    "fastdllm_v2_cache": _fast_dllm,
    "diffcoder_block": _diffcoder,
    "rnd1_entropy": _rnd1,
    "rnd1_eb": _rnd1,
    "llada_vanilla": first_set.METHODS["llada_vanilla"],
    "fastdllm": first_set.METHODS["fastdllm"],
}
_ELSEWHERE = {"gemma_entropy_bound", "gemma_entropy_bound_sampled"}  # see test_diffusion_gemma
_ENDS = ("eos_id", "stop_token", "eos_token_id", "stopping_criteria_idx")
_BLOCKS = ("block_length", "block_size")
CASES = [case for case in find_cases() if case.method not in _ELSEWHERE]


@cache
def model(checkpoint: str, block: int | None) -> Denoiser:
    return unmask.load(ROOT / "checkpoints" / checkpoint, device="cpu", dtype="float32", block_length=block).denoiser


def spec_of(case: Case, own: ModelSpec) -> ModelSpec:
    """The model's ids, with the end of text that the case names."""
    ends = next((case.data["params"][name] for name in _ENDS if name in case.data["params"]), None)
    if ends is None:  # RND1 knows no end of text, not even before a suffix
        return replace(own, eos=(own.mask,)) if case.method.startswith("rnd1") else own
    return replace(own, eos=tuple(_listed(ends)))


def _listed(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else [ids]


def request(case: Case) -> Request:
    params, prompt = case.data["params"], case.data["prompt_ids"]
    length = params.get("gen_length") or params["max_new_tokens"]
    if case.method.startswith("fastdllm_v2"):
        size = params["block_size"]  # whole blocks, the prompt's own one included, and one more token
        length = (length // size + len(prompt) // size) * size + 1 - len(prompt)
    stops = any(name in params for name in _ENDS)
    if case.method.startswith("llada21_edit"):
        stops = params.get("eos_early_stop", False)
    start, fixed = len(prompt), {}
    if params.get("suffix_ids"):
        fixed = {length + i: token for i, token in enumerate(params["suffix_ids"])}
        length += len(fixed)
    if params.get("reserve_eos"):
        fixed = {at - start: token for at, token in enumerate(case.data["initial"]) if at >= start and token != 126}
    return Request(case, prompt, length, ignore_eos=not stops, fixed=fixed)


def specs(case: Case) -> Specs:
    """Policy and cache; fails on methods and parameters that the table does not know."""
    params = Params(case.data["params"])
    blocked = case.method not in {"llada_vanilla", "fastdllm"}
    for name in (*_ENDS, *(_BLOCKS if blocked else ()), "gen_length", "max_new_tokens"):
        params.pop(name, None)
    found = METHODS[case.method](case, params)
    assert not params, f"reference parameters unknown here: {dict(params)}"
    return found


def key(case: Case) -> Any:
    params, how = case.data["params"], specs(case)
    block = next((params[name] for name in _BLOCKS if name in params), None)
    ends = next((tuple(_listed(params[name])) for name in _ENDS if name in params), None)
    return case.checkpoint, block if "blockwise" in how[1] or how[1] == "dual" else None, ends, how


def play(cases: Sequence[Case]) -> dict[Any, Outcome]:
    checkpoint, block, _, how = key(cases[0])
    found = model(checkpoint, block)
    own = Denoiser(found.network, spec_of(cases[0], found.spec))
    return followed(own, how, [request(case) for case in cases])


outcome = Batches(CASES, key, play)


def settled(case: Case, tokens: list[int]) -> int:
    """The position from which an answer does not count."""
    asked, eos = request(case), spec_of(case, model(*key(case)[:2]).spec).eos
    start = len(asked.prompt)
    ends = [p for p, t in enumerate(tokens) if p >= start and t in eos and not asked.ignore_eos]
    return min([start + asked.gen_length, *(p + 1 for p in ends)])


def problem(case: Case) -> str:
    """The first difference, in words; "" when there is none."""
    ours, given = outcome(case), case.events
    end = settled(case, ours.tokens)
    if case.method == "diffcoder_block":  # writes the end of text over what follows it
        given = [(new, gone, tuple(x for x in old if x[0] < end)) for new, gone, old in given]
    for i, (mine, theirs) in enumerate(zip(ours.events, given, strict=False)):
        if mine != theirs:
            return f"forward with effect {i}: {mine}, reference: {theirs}"
    if len(ours.events) > len(case.events):
        return f"{len(ours.events)} forwards with an effect, reference: {len(case.events)}"
    late = [at for more in case.events[len(ours.events) :] for part in (more[0], more[2]) for at, _ in part]
    if late and min(late) < end:
        return f"ends after {len(ours.events)} forwards with an effect of {len(case.events)}"
    theirs = case.data["tokens"][:end]
    if ours.tokens[: len(theirs)] != theirs:
        return f"tokens {ours.tokens[:end]}, reference: {theirs}"
    if ours.nfe > case.data["nfe"]:
        return f"{ours.nfe} forwards, reference: {case.data['nfe']}"
    return ""


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_trace(case: Case) -> None:
    assert not problem(case)


def test_the_set_is_whole() -> None:
    if "UNMASK_GOLDEN_BLOCKS" not in os.environ:
        assert len(CASES) == 539 - 53
    assert {case.method for case in CASES} <= METHODS.keys()
    assert torch.get_num_threads() == 1
