"""Traces of the published implementations, token for token and forward for forward, in float32 on one thread.

Runs the set in ``tests/golden``, or the collection that the environment variable ``UNMASK_GOLDEN`` names: a folder with
``checkpoints/`` and one or more folders of ``*.json``.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import unmask
from helpers import Request, forward, made, run
from refusals import refuses
from unmask import registry
from unmask.caches import interval
from unmask.core.canvas import Canvas, ModelSpec
from unmask.core.config import Spec
from unmask.models import causal
from unmask.models.denoiser import Denoiser
from unmask.models.weights import Checkpoint

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings tomli there
    import tomli as tomllib

OWN = Path(__file__).parent / "golden"
ROOT = Path(os.environ.get("UNMASK_GOLDEN") or OWN)
LOGITS_TOLERANCE = 1e-4
MAX_DEVIATING_SHARE = 0.05
ROUNDING, TIE_BREAKS = 3e-7, 32
TOGETHER = 48  # rows in a batch


@dataclass(frozen=True)
class Case:
    """One line of a golden file."""

    group: str
    data: dict[str, Any]

    @cached_property
    def name(self) -> str:
        return self.data["name"]

    @cached_property
    def method(self) -> str:
        return self.data["method"]

    @cached_property
    def checkpoint(self) -> str:
        return self.data["checkpoint"]

    @cached_property
    def gen_length(self) -> int:
        return len(self.data["tokens"]) - len(self.data["prompt_ids"])

    @cached_property
    def events(self) -> list[tuple[Any, ...]]:
        """What the forwards with an effect did, in order."""
        found = [
            (_pairs(t.get("committed")), tuple(sorted(t.get("remasked", ()))), _pairs(t.get("overwritten")))
            for t in self.data["trace"]
        ]
        return [event for event in found if any(event)]

    def __hash__(self) -> int:
        return hash((self.group, self.name))


def _pairs(pairs: list[list[int]] | None) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((p, t) for p, t in pairs or ()))


# --- what the reference methods are called here --------------------------------------------------------------------


class Params(dict[str, Any]):
    """A reference's keyword arguments; each must be taken, so that none is ignored by accident."""

    def take(self, name: str, default: Any) -> Any:
        return self.pop(name, default)

    def only(self, name: str, *accepted: Any) -> None:
        """An argument that changes nothing as long as it has one of these values."""
        value = self.pop(name, accepted[0])
        if value not in accepted:
            raise NotImplementedError(f"reference parameter {name} = {value!r}; known here: {accepted}")

    def greedy(self) -> None:
        self.only("temperature", 0.0, 0, None)
        self.only("remasking", "low_confidence")


Specs = tuple[str, str]


def _spec(name: str, **kwargs: Any) -> str:
    return str(Spec(name, (), tuple(kwargs.items())))


def _vanilla(p: Params) -> str:
    p.greedy()
    p.only("logits_eos_inf", False)
    p.only("confidence_eos_eot_inf", False)
    return _spec(
        "vanilla",
        steps=p.take("steps", 128),
        block_length=p.take("block_length", 128),
        cfg_scale=p.take("cfg_scale", 0.0),
    )


def _llada(case: Case, p: Params) -> Specs:
    return _vanilla(p), "none"


def _fastdllm(cache: str) -> Callable[[Case, Params], Specs]:
    def build(case: Case, p: Params) -> Specs:
        tau = p.take("threshold", None)
        if tau is None:
            return _vanilla(p), cache
        p.greedy()
        p.take("steps", 128)  # matters through divisibility only
        return _spec("threshold", tau=tau, block_length=p.take("block_length", 128)), cache

    return build


def _d2_threshold(case: Case, p: Params) -> Specs:
    p.greedy()
    p.only("alg", "maskgit_plus")
    p.only("num_transfer_tokens", 1)
    return _spec("threshold", tau=p.take("threshold", None), block_length=p.take("block_length", 32)), "none"


def _factor(rank: str, cache: str = "none") -> Callable[[Case, Params], Specs]:
    def build(case: Case, p: Params) -> Specs:
        p.greedy()
        p.take("steps", 128)  # matters through divisibility only
        p.only("alg", "maskgit_plus")
        p.only("num_transfer_tokens", 1)
        return _spec("factor", f=p.take("factor", 1.0), block_length=p.take("block_length", 32), rank=Spec(rank)), cache

    return build


def _eb_sampler(case: Case, p: Params) -> Specs:
    p.greedy()
    p.only("num_transfer_tokens", 1)
    orders = {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin"}
    order = Spec(orders[p.take("alg", "maskgit_plus")])
    block = p.take("block_length", 32)
    return _spec("entropy_bound", gamma=p.take("gamma", 0.001), block_length=block, order=order), "none"


def _klass(case: Case, p: Params) -> Specs:
    p.greedy()
    p.only("alg", "maskgit_plus")
    p.only("num_transfer_tokens", 1)
    return _spec(
        "klass",
        tau=p.take("threshold", None),
        kl=p.take("kl_threshold", 0.01),
        history=p.take("kl_history_length", 2),
        block_length=p.take("block_length", 32),
    ), "none"


def _wino(case: Case, p: Params) -> Specs:
    p.greedy()
    tau_in, tau_out = p.take("threshold", 0.6), p.take("threshold_back", 0.9)
    return _spec("wino", tau_in=tau_in, tau_out=tau_out, block_length=p.take("block_length", 128)), "none"


def _interval(p: Params, first_layer: str) -> str:
    p.only("cfg_interval_steps", 1)
    return _spec(
        "dllm",
        kp=p.take("prompt_interval_steps", 1),
        kr=p.take("gen_interval_steps", 1),
        rho=p.take("transfer_ratio", 0.0),
        first_layer=Spec(first_layer),
    )


def _dllmcache_vanilla(case: Case, p: Params) -> Specs:
    return _vanilla(p), _interval(p, "full")


def _slowfast_policy(case: Case, p: Params) -> str:
    p.greedy()
    p.only("cfg_scale", 0.0)
    p.take("num_important_low_confidence_tokens", 3)  # read nowhere in the reference
    cycles = p.take("max_sub_cycles_per_block", 256)
    if _mask_id(case) in case.data["tokens"]:
        raise NotImplementedError(f"max_sub_cycles_per_block = {cycles} left masks in the reference's answer")
    return _spec(
        "slowfast",
        preset=Spec("reference"),
        k_max=p.take("k_exploration_steps", 6),
        tau_min=p.take("cycle_len_confidence_threshold", 0.3),
        tau_high=p.take("high_confidence_threshold", 0.9),
        window=p.take("cycle_length_stability_window", 2),
        sigma2=p.take("cycle_length_stability_std_dev_threshold", 1.0) ** 2,
        block_length=p.take("block_length", 128),
    )


def _slowfast(case: Case, p: Params) -> Specs:
    return _slowfast_policy(case, p), "none"


def _slowfast_dllmcache(case: Case, p: Params) -> Specs:
    return _slowfast_policy(case, p), _interval(p, "adaptive")


def _dream(alg: str, cache: str = "none") -> Callable[[Case, Params], Specs]:
    def build(case: Case, p: Params) -> Specs:
        p.greedy()
        p.only("alg", alg)
        return _spec("dream", alg=Spec(alg), steps=p.take("steps", 512), eps=p.take("eps", 1e-3)), cache

    return build


def _fastdllm_dream(case: Case, p: Params) -> Specs:
    p.greedy()
    alg, steps = p.take("alg", "origin"), p.take("steps", 512)
    tau = p.take("threshold", 0.9)  # read by confidence_threshold alone
    if alg == "confidence_threshold":
        return _spec("threshold", tau=tau, block_length=None, steps=steps, confidence=Spec("sampled")), "none"
    return _spec("dream", alg=Spec(alg), steps=steps, eps=p.take("eps", 1e-3)), "none"


def _fastdllm_dream_blocks(cache: str) -> Callable[[Case, Params], Specs]:
    def build(case: Case, p: Params) -> Specs:
        p.greedy()
        alg, steps, block = p.take("alg", "origin"), p.take("steps", 512), p.take("block_length", None)
        opening, tau = Spec("first"), p.take("threshold", 0.9)  # read by confidence_threshold alone
        if alg == "confidence_threshold":
            sampled = Spec("sampled")
            return _spec("threshold", tau=tau, block_length=block, opening=opening, confidence=sampled), cache
        eps = p.take("eps", 1e-3)
        return _spec("dream", alg=Spec(alg), steps=steps, eps=eps, block_length=block, opening=opening), cache

    return build


def _dllmcache_dream(case: Case, p: Params) -> Specs:
    cache = _interval(p, "all")
    return _dream(case.data["params"]["alg"])(case, p)[0], cache


def _slowfast_dream(case: Case, p: Params) -> Specs:
    policy = _spec(
        "slowfast",
        preset=Spec("reference_dream"),
        k_max=p.take("n_cycle_discovery_steps", 6),
        tau_min=p.take("conf_threshold_cycle_len_pred", 0.1),
        tau_slow=p.take("high_conf_for_parallel_decode_discovery", 0.8),
        tau_high=p.take("high_conf_for_cycle_decode", 0.9),
        window=p.take("stabilize_count", 2),
        sigma2=p.take("cycle_len_variance_threshold", 1.0),
    )
    return policy, "none"


def _slowfast_dream_dllmcache(case: Case, p: Params) -> Specs:
    return _slowfast_dream(case, p)[0], _interval(p, "adaptive")


def _leftright(case: Case, p: Params) -> Specs:
    p.greedy()
    p.only("eos_token_id", None)
    window = p.take("kv_window", None)
    policy = _spec("left_to_right", k=p.take("tokens_per_step", 1), lookahead=p.take("max_lookahead", None))
    return policy, "none" if window is None else _spec("trailing", window=window)


def _apd(case: Case, p: Params) -> Specs:
    p.greedy()
    p.take("eos_token_id", None)  # see requests
    window, folder = p.take("kv_window", None), ROOT / "checkpoints" / case.data["verifier"]
    policy = _spec(
        "apd",
        preset=Spec("reference"),
        r=p.take("apd_mixture_weight", None),
        lookahead=p.take("max_lookahead", None),
        verifier=str(folder),
    )
    return policy, "none" if window is None else _spec("trailing", window=window)


METHODS: dict[str, Callable[[Case, Params], Specs]] = {
    "llada_vanilla": _llada,
    "fastdllm": _fastdllm("none"),
    "fastdllm_prefix": _fastdllm("prefix"),
    "fastdllm_dual": _fastdllm("dual"),
    "d2_threshold": _d2_threshold,
    "factor": _factor("last_too"),
    "factor_prefix": _factor("last_too", "prefix"),
    "factor_dual": _factor("last_too", "dual"),
    "d2_factor": _factor("last_not"),
    "eb_sampler": _eb_sampler,
    "klass": _klass,
    "wino": _wino,
    "dllmcache_vanilla": _dllmcache_vanilla,
    "slowfast": _slowfast,
    "slowfast_dllmcache": _slowfast_dllmcache,
    "slowfast_dream": _slowfast_dream,
    "slowfast_dream_dllmcache": _slowfast_dream_dllmcache,
    "leftright": _leftright,
    "apd": _apd,
    "dream_maskgit_plus": _dream("maskgit_plus"),
    "dream_topk_margin": _dream("topk_margin"),
    "dream_entropy": _dream("entropy"),
    "dllmcache_dream": _dllmcache_dream,
    "fastdllm_dream": _fastdllm_dream,
    "fastdllm_dream_prefix": _fastdllm_dream_blocks("prefix"),
    "fastdllm_dream_dual": _fastdllm_dream_blocks("dual"),
}

VERIFIERS = {"Qwen2ForCausalLM"}  # no diffusion models: of use to APD alone


# --- finding and running the cases ---------------------------------------------------------------------------------


def read(name: str) -> Iterator[tuple[str, Any]]:
    """(group, entry) of all files that match a name."""
    for file in sorted(ROOT.glob(f"*/{name}")):
        group = file.parent.name
        for entry in json.loads(file.read_text(encoding="utf-8")) if group != "checkpoints" else ():
            yield group, entry


def find_cases() -> list[Case]:
    if not (ROOT / "checkpoints").is_dir():
        raise FileNotFoundError(f"{ROOT} has no folder 'checkpoints'")
    skip = {"fragile.json", "logits.json", "pc_frequencies.json"}
    names = sorted({f.name for f in ROOT.glob("*/*.json")} - skip)
    found = [Case(group, entry) for name in names for group, entry in read(name)]
    if not found:
        raise FileNotFoundError(f"{ROOT} has no cases")
    return found


def _architecture(checkpoint: str) -> str:
    return json.loads((ROOT / "checkpoints" / checkpoint / "config.json").read_text())["architectures"][0]


def _mask_id(case: Case) -> int:
    return json.loads((ROOT / "checkpoints" / case.checkpoint / "config.json").read_text())["mask_token_id"]


CASES = find_cases()
LOGITS = list(read("logits.json"))
assert len({(c.group, c.name) for c in CASES}) == len(CASES), "two cases have the same name"


@cache
def model(checkpoint: str) -> Denoiser:
    return unmask.load(ROOT / "checkpoints" / checkpoint, device="cpu", dtype="float32").denoiser


def specs(case: Case) -> Specs:
    """Policy and cache; fails on methods and parameters that the table does not know."""
    if case.method not in METHODS:
        raise NotImplementedError(f"method {case.method!r} is not supported")
    params = Params(case.data["params"])
    gen_length = params.pop("gen_length", None) or params.pop("max_new_tokens", None)
    assert gen_length in (None, case.gen_length)
    found = METHODS[case.method](case, params)
    if params:
        raise NotImplementedError(f"reference parameters unknown here: {dict(params)}")
    return found


@dataclass(frozen=True)
class Outcome:
    """What we did: events of the forwards with an effect, final tokens, forwards; and in how far that is wrong."""

    events: list[tuple[Any, ...]]
    tokens: list[int]
    nfe: int

    def problem(self, case: Case) -> str:
        """The first difference, in words; "" when there is none."""
        for i, (ours, theirs) in enumerate(zip(self.events, case.events, strict=False)):
            if ours != theirs:
                return f"forward with effect {i}: {ours}, reference: {theirs}"
        if len(self.events) != len(case.events):
            return f"{len(self.events)} forwards with an effect, reference: {len(case.events)}"
        if self.tokens != case.data["tokens"]:
            return f"tokens {self.tokens}, reference: {case.data['tokens']}"
        if self.nfe > case.data["nfe"]:
            return f"{self.nfe} forwards, reference: {case.data['nfe']}"
        return ""


def request(case: Case) -> Request:
    top_k = 50 if case.method.startswith("fastdllm_dream") else 0  # the default of the configuration class it inherits
    stops = "eos_token_id" in case.data["params"]
    return Request(case, case.data["prompt_ids"], case.gen_length, top_k=top_k, ignore_eos=not stops)


def denoiser(case: Case) -> Denoiser:
    """The checkpoint, with the end of text that the case names."""
    found, eos = model(case.checkpoint), case.data["params"].get("eos_token_id")
    return found if eos is None else Denoiser(found.network, replace(found.spec, eos=(eos,)))


def followed(
    found: Denoiser, how: Specs, requests: Sequence[Request], forwards: int | None = None
) -> dict[Any, Outcome]:
    """What the engine does with requests that are decoded together; of each row the forwards with an effect."""
    policy, kept = how
    rows: dict[Any, Outcome] = {}
    for done in islice(run(found, registry.cache(kept), made(policy), requests, TOGETHER), forwards):
        written, undone = done.committed(), done.remasked()
        for i, row in enumerate(done.rows):
            before = rows.get(row, Outcome([], [], 0))
            mine = [(c.position, c.token) for c in written if c.row == row]
            over = [(p, t) for p, t in mine if before.tokens and before.tokens[p] != found.spec.mask]
            effect = (
                tuple(sorted(set(mine) - set(over))),
                tuple(sorted(p for other, p in undone if other == row)),
                tuple(sorted(over)),
            )
            tokens = done.canvas.tokens[i, : int(done.canvas.length[i])].tolist()
            rows[row] = Outcome([*before.events, effect] if any(effect) else before.events, tokens, before.nfe + 1)
    return rows


class Batches:
    """Cases that have model, policy and cache in common, decoded together: each is decoded as it is alone."""

    def __init__(self, cases: Sequence[Case], key: Callable[[Case], Any], play: Callable[..., dict[Any, Outcome]]):
        self.cases, self.key, self.play = cases, key, play
        self.done: dict[Case, Outcome] = {}

    def __call__(self, case: Case) -> Outcome:
        if case not in self.done:
            same = self.groups[self.key(case)]
            self.done |= self.play(same if case in same else [case])
        return self.done[case]

    @cached_property
    def groups(self) -> dict[Any, list[Case]]:
        found: dict[Any, list[Case]] = defaultdict(list)
        for case in self.cases:
            with suppress(NotImplementedError):  # told by the case itself
                found[self.key(case)].append(case)
        return found


def key(case: Case) -> Any:
    return case.checkpoint, specs(case), case.data["params"].get("eos_token_id")


def play(cases: Sequence[Case], forwards: int | None = None) -> dict[Any, Outcome]:
    return followed(denoiser(cases[0]), specs(cases[0]), [request(case) for case in cases], forwards)


outcome = Batches(CASES, key, play)


# --- deviations ----------------------------------------------------------------------------------------------------


def ties_of_similarity_in_layer_0(case: Case) -> bool:
    """The reference's layer 0 chooses among identical values: 0 < rho < 1, in forwards between refreshes."""
    params = case.data["params"]
    return 0 < params.get("transfer_ratio", 0.0) < 1 and params.get("gen_interval_steps", 1) > 1


def other_ties(case: Case) -> Iterator[Outcome]:
    """Our run with similarities moved by rounding errors, again and again."""
    exact = interval.F.cosine_similarity
    for seed in range(TIE_BREAKS):
        draw = torch.Generator().manual_seed(seed)

        def moved(*args: Any, draw: torch.Generator = draw, **kwargs: Any) -> torch.Tensor:
            value = exact(*args, **kwargs)
            return value + ROUNDING * torch.randn(value.shape, generator=draw)

        with mock.patch.object(interval.F, "cosine_similarity", moved):
            yield play([case])[case]


def end_of_text_in_the_prompt(case: Case) -> bool:
    """The reference looks for the end of text in prompt and response alike."""
    return denoiser(case).spec.eos[0] in case.data["prompt_ids"]


def first_forward(case: Case) -> Iterator[Outcome]:
    """Our run, given up after its first forward."""
    yield play([case], forwards=1)[case]


@dataclass(frozen=True)
class Condition:
    """When a case may deviate, and runs one of which must reproduce the reference where it does."""

    holds: Callable[[Case], bool]
    replays: Callable[[Case], Iterator[Outcome]]

    def explains(self, case: Case) -> bool:
        return any(not replay.problem(case) for replay in self.replays(case))


CONDITIONS = {
    "ties_of_similarity_in_layer_0": Condition(ties_of_similarity_in_layer_0, other_ties),
    "end_of_text_in_the_prompt": Condition(end_of_text_in_the_prompt, first_forward),
}
DEVIATIONS: list[dict[str, str]] = tomllib.loads((OWN / "deviations.toml").read_text(encoding="utf-8"))["deviation"]


def excuses(case: Case) -> list[Condition]:
    """The conditions that cover a case."""
    listed = [CONDITIONS[d["condition"]] for d in DEVIATIONS if d["method"] == case.method]
    return [c for c in listed if c.holds(case)]


# --- tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.group}-{c.name}")
def test_trace(case: Case) -> None:
    problem = outcome(case).problem(case)
    if not problem:
        return
    covering = excuses(case)
    assert covering, problem
    assert any(c.explains(case) for c in covering), f"not explained by its deviation: {problem}"


@pytest.mark.parametrize(("group", "entry"), LOGITS, ids=lambda e: e if isinstance(e, str) else Path(e["file"]).stem)
def test_logits(group: str, entry: dict[str, Any]) -> None:
    reference = np.load(ROOT / group / entry["file"])
    if _architecture(entry["checkpoint"]) in VERIFIERS:
        ours = judged(entry["checkpoint"], entry["input_ids"]).numpy()
    else:
        ours = forward(model(entry["checkpoint"]), entry["input_ids"]).numpy()
    assert ours.dtype == np.float32
    assert list(ours.shape) == entry["shape"]
    np.testing.assert_allclose(ours, reference, rtol=0, atol=LOGITS_TOLERANCE)


def judged(checkpoint: str, ids: list[int]) -> torch.Tensor:
    """The verifier's logits behind every token, read in two pieces with its cache cropped between them."""
    judge, tokens = causal.load(str(ROOT / "checkpoints" / checkpoint)), torch.tensor([ids])
    blank = Canvas.blank([ids], [1], ModelSpec(mask=-1, eos=(), pad=0, vocab=2**31, limit=2**31, context=2**31))
    row, place, half = torch.zeros(len(ids), dtype=torch.long), torch.arange(1, len(ids) + 1), len(ids) // 2
    first, memory = judge.score(tokens, row[:half], place[:half], judge.memory(blank))
    memory = memory.cropped(torch.tensor([half - 1]))
    second, memory = judge.score(tokens, row[half:], place[half:], memory)
    assert memory.known.tolist() == [len(ids)]
    return torch.cat([first, second])


def test_few_cases_deviate() -> None:
    total = Counter((c.group, c.method) for c in CASES)
    covered = Counter((c.group, c.method) for c in CASES if excuses(c) and outcome(c).problem(c))
    for key, count in covered.items():
        assert count <= math.floor(MAX_DEVIATING_SHARE * total[key]), f"{key}: {count} of {total[key]} cases deviate"


def test_deviations_are_complete() -> None:
    for entry in DEVIATIONS:
        assert entry.keys() == {"method", "condition", "reason"}
        assert entry["method"] in METHODS
        assert entry["condition"] in CONDITIONS
        assert len(entry["reason"].split()) > 10


@pytest.mark.slow
def test_conditions_are_narrow_and_explain_only_their_own() -> None:
    """A condition does not cover what it does not name, and an error elsewhere is not explained by it."""
    exact = [c for c in CASES if c.method == "slowfast_dllmcache" and c.data["params"]["transfer_ratio"] == 0]
    case = min(exact, key=lambda c: c.data["nfe"])
    assert not excuses(case)
    adaptive = case.data["params"] | {"transfer_ratio": 0.25, "gen_interval_steps": 2}
    assert not excuses(Case("x", case.data | {"params": adaptive | {"gen_interval_steps": 1}}))
    other = Case("x", case.data | {"params": adaptive, "tokens": case.data["tokens"][::-1]})
    assert [c.explains(other) for c in excuses(other)] == [False]


def test_every_method_is_known_and_every_one_runs() -> None:
    assert {c.method for c in CASES} <= METHODS.keys()
    if ROOT == OWN:
        assert {c.method for c in CASES} == METHODS.keys()
        assert LOGITS


def test_verifiers_cannot_be_decoded() -> None:
    for config in sorted(ROOT.glob("checkpoints/*/config.json")):
        if _architecture(config.parent.name) in VERIFIERS:
            with refuses(unmask.ModelError, _architecture(config.parent.name)):
                Checkpoint.find(config.parent).family  # noqa: B018


def test_files_hold_one_case_per_line() -> None:
    lines = defaultdict(int)
    for file in OWN.glob("public/*.json"):
        text = file.read_text(encoding="utf-8")
        lines[file.name] = len(text.splitlines()) - 2
        assert lines[file.name] == len(json.loads(text))
    assert sum(lines.values()) - lines["logits.json"] > 400


@pytest.mark.parametrize(
    "change", [{"alg": "origin"}, {"temperature": 0.5}, {"threshold": 0.9}, {"remasking": "random"}]
)
def test_unknown_reference_parameters_fail(change: dict[str, Any]) -> None:
    case = next(c for c in CASES if c.method == "llada_vanilla")
    other = Case(case.group, case.data | {"params": case.data["params"] | change})
    with refuses(NotImplementedError, *change):
        specs(other)


def test_unknown_methods_fail() -> None:
    case = Case("x", CASES[0].data | {"method": "invented"})
    with refuses(NotImplementedError, "'invented'"):
        outcome(case)


def test_a_wrong_trace_is_noticed() -> None:
    """Every part of the comparison can fail."""
    case = next(c for c in CASES if c.method == "slowfast" and len(c.events) > 3)
    ours = outcome(case)
    assert not ours.problem(case)
    assert replace(ours, nfe=case.data["nfe"] + 1).problem(case)
    assert replace(ours, tokens=ours.tokens[:-1]).problem(case)
    assert replace(ours, events=ours.events[:-1]).problem(case)
    assert replace(ours, events=[ours.events[1], ours.events[0], *ours.events[2:]]).problem(case)
