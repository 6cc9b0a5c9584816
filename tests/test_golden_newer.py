"""Traces of the published code of newer decoders, on the checkpoints of the first set, in float32 on one thread.

Runs the set in ``tests/golden/newer``, or the collection of the same kind that ``UNMASK_GOLDEN_NEWER`` names; there a
README says what a case is and gives each rule. Checkpoints are those of the first set. A trace with an end of text is
followed until the answer is settled: the references go on behind it, or fill what follows it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import test_golden as first_set
from helpers import Request
from test_golden import Batches, Case, Outcome, Params, Specs, _spec, followed
from unmask import registry
from unmask.core.canvas import Canvas, Update
from unmask.core.config import Spec
from unmask.core.policy import Policy
from unmask.core.protocols import Ask, Prediction, Sampling
from unmask.core.spans import Spanned
from unmask.models.denoiser import Denoiser
from unmask.policies.window import Window

ROOT = Path(os.environ.get("UNMASK_GOLDEN_NEWER") or Path(__file__).parent / "golden" / "newer")
_OTHER = {"fragile.json", "quirks.json", "logits.json", "pc_frequencies.json"}


def find_cases() -> list[Case]:
    files = [f for f in sorted(ROOT.glob("*/*.json")) if f.name not in _OTHER]
    return [Case(f.parent.name, entry) for f in files for entry in json.loads(f.read_text(encoding="utf-8"))]


def _localleap(case: Case, p: Params) -> Specs:
    p.take("steps", None)  # ends nothing early: every forward pass commits
    tau = p.take("threshold", None) or p.take("conf_threshold", None)
    low, radius = p.take("relaxed_threshold", None), p.take("radius", None)
    return _spec("localleap", tau=tau, low=low, radius=radius, block_length=p.take("block_length", None)), "none"


@cache
def _frequencies(checkpoint: str) -> str:
    """A file with the frequencies that stand beside the traces, in float32 as there."""
    shares = json.loads((ROOT / "pc_frequencies.json").read_text(encoding="utf-8"))[checkpoint]
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "shares.json").write_text(json.dumps(torch.tensor(shares).tolist()), encoding="utf-8")
    return str(folder / "shares.json")


def _pc_sampler(case: Case, p: Params) -> Specs:
    decay, most, steps, block = (p.take(name, None) for name in ("lambd", "alpha", "steps", "block_length"))
    file = _frequencies(case.checkpoint)
    return _spec("pc_sampler", decay=decay, most=most, steps=steps, block_length=block, frequencies=file), "none"


def _streaming(case: Case, p: Params) -> Specs:
    p.take("steps", None)  # as many as positions, matters through divisibility only
    own = {"tau": p.take("threshold", None), "block_length": p.take("block_length", None)}
    if case.method == "streaming_dream":
        own |= {"opening": Spec("first"), "confidence": Spec("sampled")}
    inner = Spec("threshold", (), tuple(own.items()))
    kept = Spec("suffix", (inner,), (("window", p.take("window_size", None)),))
    return _spec("mask_ratio", policy=kept, alpha=p.take("confidence_alpha", None)), "prefix"


def _adablock(cache: str) -> Callable[[Case, Params], Specs]:
    def build(case: Case, p: Params) -> Specs:
        own = {"tau": p.take("threshold", None)}
        own["block_length"] = p.take("init_block_length", None) or p.take("block_length", None)
        if "dream" in case.method:
            own |= {"confidence": Spec("sampled")}
            own |= {"opening": Spec("first")} if cache != "none" else {}
        inner = Spec("threshold", (), tuple(own.items()))
        ids, tau = " ".join(map(str, p.take("delimiter_ids", []))), p.take("delimiter_threshold", None)
        return _spec("adablock", policy=inner, tau_end=tau, delimiters=ids), cache

    return build


def _dsb(case: Case, p: Params) -> Specs:
    size = p.take("block_length", None)
    own = {"tau": p.take("threshold", None), "block_length": size}
    if "factor" in p:
        own = {"f": p.take("factor", 1.0), "block_length": size, "rank": Spec("last_too")}
    elif "dream" in case.method:
        own |= {"confidence": Spec("sampled")}
    inner = Spec("factor" if "f" in own else "threshold", (), tuple(own.items()))
    longest = p.take("max_block_length", -1)
    return _spec("window", policy=inner, longest=None if longest == -1 else longest), "none"


def _dcd(case: Case, p: Params) -> Specs:
    p.take("lookahead", None)  # matters with a cache only
    fixed, value = p.take("decode_algo", "threshold") == "fixed", p.take("decode_param", 0.9)
    size = p.take("initial_window_length", 16)
    inner = Spec("threshold", (), (("tau", 1 if fixed else value), ("block_length", size)))
    longest = p.take("max_window_length", None)
    own = {"count": value if fixed else None, "pad": p.take("pad_id", None)}
    return _spec("window", policy=inner, longest=longest, **own), "none"


def _dcd_cache(case: Case, p: Params) -> Specs:
    kind, _, delay = p.take("cache_type", "").partition("-delay")
    before = int(delay) if delay else None
    behind = None if kind == "prefix" else before or 0
    last = bool(p.take("lookahead", 1))
    kept = _spec("window_cache", refresh=p.take("refresh_count", 16), before=before, behind=behind, last=last)
    return _dcd(case, p)[0], kept


def _dsb_cache(case: Case, p: Params) -> Specs:
    size, before, behind = p["block_length"], p.take("prefix_window", 0), p.take("suffix_window", 0)
    kept = _spec("window_cache", refresh=size, before=before, behind=behind, margin=Spec("this"))
    return _dsb(case, p)[0], kept


def _dcd_static(case: Case, p: Params) -> Specs:
    p.only("window_type", "static")
    p.take("pad_id", None)
    return _spec("threshold", tau=p.take("decode_param", 0.9), block_length=p.take("block_size", None)), "none"


def _d3llm(case: Case, p: Params) -> Specs:
    pad = end_of(case) if p.take("early_stop", False) else None
    own = {"tau": p.take("threshold", None), "block_length": p.take("block_size", None)}
    own |= {"add": p.take("block_add_threshold", None), "ready": p.take("decoded_token_threshold", None)}
    return _spec("multiblock", least=Spec("active" if "dream" in case.method else "all"), pad=pad, **own), "none"


def _dawn(case: Case, p: Params) -> Specs:
    p.take("steps", None)
    low = p.take("tau_low", None) or p.take("conf_threshold", None)
    own = {"low": low, "induce": p.take("tau_induce", None), "edge": p.take("tau_edge", None)}
    own |= {"sink": p.take("tau_sink", None), "block_length": p.take("block_length", None)}
    own |= {"confidence": Spec("sampled")} if "dream" in case.method else {}
    layers = first_set.model(case.checkpoint).layers - p.take("layers", 0)
    return _spec("dawn", preset=Spec("reference"), layers=layers, **own), "none"


def _lopa(case: Case, p: Params) -> Specs:
    measure = {"default": "confidence", "neg_entropy": "entropy", "margin": "margin"}[p.take("sampling_strategy", None)]
    many, full = p.take("branching_factor", None), p.take("use_full_attention", True)
    own = {"tau": p.take("skip_threshold", None), "block_length": p.take("block_size", None)}
    own |= {"add": p.take("block_add_threshold", None), "ready": p.take("decoded_token_threshold", None)}
    own |= {"rule": Spec("confidence"), "least": Spec("each"), "order": Spec(measure), "future": False}
    how = {"policy": Spec("multiblock", (), tuple((own | {"causal": not full}).items())), "measure": Spec(measure)}
    how |= {"branches": many + (many > 1), "share": p.take("branch_topp", None), "unanswered": Spec("last")}
    stored = _spec("window_cache", refresh=10**6, before=0, behind=None, source=False)  # what is full, and for good
    return _spec("lopa", **how, weight=p.take("selection_conf_alpha", None)), stored


def _freedave_static(case: Case, p: Params) -> Specs:
    kept = "dual" if p.take("dual_cache", None) else "prefix"
    return _spec("vanilla", block_length=p.take("block_length", None)), kept


def _freedave(case: Case, p: Params) -> Specs:
    size, tau = p["block_length"], p.take("confidence_threshold", None)
    inner = Spec("threshold", (), (("tau", tau or 0), ("block_length", size)))
    own = {"rule": Spec("one" if tau is None else "policy"), "block_length": size}
    _, kept = _freedave_static(case, p)
    return _spec("verified", policy=inner, drafts=p.take("draft_steps", None), **own), kept


METHODS: dict[str, Callable[[Case, Params], Specs]] = {
    "localleap": _localleap,
    "localleap_dream": _localleap,
    "dawn": _dawn,
    "dawn_dream": _dawn,
    "pc_sampler": _pc_sampler,
    "adablock": _adablock("none"),
    "adablock_prefix": _adablock("prefix"),
    "adablock_dual": _adablock("dual"),
    "adablock_dream": _adablock("none"),
    "adablock_dream_dual": _adablock("dual"),
    "dcd_cache": _dcd_cache,
    "dcd_dream_cache": _dcd_cache,
    "dsb_cache": _dsb_cache,
    "dsb": _dsb,
    "dsb_dream": _dsb,
    "dcd": _dcd,
    "dcd_dream": _dcd,
    "dcd_static": _dcd_static,
    "d3llm": _d3llm,
    "d3llm_dream": _d3llm,
    "lopa": _lopa,
    "freedave": _freedave,
    "freedave_static": _freedave_static,
    "streaming": _streaming,
    "streaming_dream": _streaming,
}
_ENDS = ("eos_token_id", "eos_id", "eos")
_LENGTHS = ("gen_length", "max_gen_length", "max_new_tokens", "generate_length")
MISSING = {  # no counterpart here: caches and methods of which only the traces are there
    "d3llm_cache",
    "d3llm_dream_cache",
    "dsb_dream_cache",  # its full forward passes commit the first masked position, whatever its confidence
    "rho_eos",
}
CASES = [case for case in find_cases() if case.method not in MISSING]


def end_of(case: Case) -> int | None:
    """The token at which the reference stops, if it does."""
    if case.method == "d3llm_dream":  # whatever it was told, it stops at the model's own
        return first_set.model(case.checkpoint).spec.eos[0] if case.data["params"].get("early_stop") else None
    return next((case.data["params"][name] for name in _ENDS if name in case.data["params"]), None)


def denoiser(case: Case) -> Denoiser:
    """The checkpoint, with the end of text that the case names."""
    found, eos = first_set.model(case.checkpoint), end_of(case)
    return found if eos is None else Denoiser(found.network, replace(found.spec, eos=(eos,)))


def specs(case: Case) -> Specs:
    """Policy and cache; fails on methods and parameters that the table does not know."""
    params = Params(case.data["params"])
    for name in (*_ENDS, *_LENGTHS):
        params.pop(name, None)
    found = METHODS[case.method](case, params)
    assert not params, f"reference parameters unknown here: {dict(params)}"
    return found


@dataclass(frozen=True)
class MarginState:
    inner: Any
    count: torch.Tensor
    margin: torch.Tensor
    start: torch.Tensor


@dataclass(frozen=True)
class CommitsMargin(Window):
    """DSB's window with the defect of its code: between full forward passes it commits in the margin behind, too.

    There the margin is cut off by an index of the whole sequence, in an array that begins with the margin in front; and
    it becomes narrower at the end of the sequence for good.
    """

    before: int = 0
    behind: int = 0

    def init(self, canvas: Canvas, sampling: Sampling) -> MarginState:
        none = torch.zeros_like(canvas.prompt)
        full = torch.full_like(none, self.policy.block_length)  # type: ignore[attr-defined]
        return MarginState(self.policy.init(canvas, sampling), full, none + self.behind, canvas.frontier)

    def _spans(self, canvas: Canvas, state: MarginState) -> tuple[Spanned, torch.Tensor, torch.Tensor]:
        """What is computed, which of it may be committed, and the margin."""
        size: int = self.policy.block_length  # type: ignore[attr-defined]
        start, full = canvas.frontier, state.count >= size
        end = canvas.prompt + size + canvas.filled.sum(1)
        end = torch.minimum(end, canvas.length if self.longest is None else start + self.longest)
        margin = torch.minimum(state.margin, (canvas.length - end).clamp(min=0))
        front = torch.minimum((start - state.start).clamp(min=self.before), start)
        last = torch.where(full, end, torch.minimum(end + margin, end + start - front))
        wide = torch.minimum(torch.where(full, end, end + margin), canvas.length)
        return Spanned.of(canvas, start, torch.maximum(wide, start)), canvas.position < last[:, None], margin

    def ask(self, canvas: Canvas, state: MarginState) -> Ask:
        return self.policy.ask(self._spans(canvas, state)[0], state.inner)

    def decide(self, canvas: Canvas, prediction: Prediction, state: MarginState) -> tuple[Update, MarginState]:
        view, allowed, margin = self._spans(canvas, state)
        update, inner = self.policy.decide(view, prediction.within(allowed), state.inner)
        size: int = self.policy.block_length  # type: ignore[attr-defined]
        count = torch.where(state.count >= size, 0, state.count) + update.write.sum(1)
        return update, MarginState(inner, count, margin, canvas.frontier)


def with_its_defect(case: Case) -> Case:
    """The case, to be played by the rule that the reference really has."""
    return Case("defect", case.data)


def _margin(case: Case) -> tuple[Policy, Any]:
    params = case.data["params"]
    own = registry.policy(_dsb(case, Params(params))[0])
    assert isinstance(own, Window)
    before, behind = params.get("prefix_window", 0), params["suffix_window"]
    kept = _spec("window_cache", refresh=params["block_length"], before=before, behind=0, margin=Spec("this"))
    return CommitsMargin(own.policy, own.longest, before=before, behind=behind), registry.cache(kept)


def rules(case: Case) -> Any:
    return _margin(case) if case.group == "defect" else specs(case)


def key(case: Case) -> Any:
    return case.checkpoint, rules(case), end_of(case)


def play(cases: Sequence[Case]) -> dict[Any, Outcome]:
    requests = [
        Request(
            case,
            case.data["prompt_ids"],
            case.gen_length,
            top_k=50 if "dream" in case.method else 0,  # the default of the configuration class it inherits
            ignore_eos=end_of(case) is None,
        )
        for case in cases
    ]
    return followed(denoiser(cases[0]), rules(cases[0]), requests)


outcome = Batches(CASES, key, play)


def settled(case: Case, tokens: list[int]) -> int:
    """The position from which an answer does not count: one behind its end of text."""
    start, eos = len(case.data["prompt_ids"]), end_of(case)
    return start + tokens[start:].index(eos) + 1 if eos in tokens[start:] else len(tokens)


def problem(case: Case) -> str:
    """The first difference, in words; "" when there is none."""
    ours, theirs = outcome(case), case.data["tokens"]
    end = settled(case, ours.tokens)
    if ours.tokens[:end] != theirs[:end]:
        return f"tokens {ours.tokens[:end]}, reference: {theirs[:end]}"
    if ours.nfe > case.data["nfe"]:
        return f"{ours.nfe} forwards, reference: {case.data['nfe']}"
    if case.method == "freedave":
        return _ahead(case, ours)
    mine = [e for event in ours.events if any(e := _before(event, end))]
    given = [e for event in case.events if any(e := _before(event, end))]
    for i, (one, other) in enumerate(zip(mine, given, strict=False)):
        if one != other:
            return f"forward with effect {i}: {one}, reference: {other}"
    return "" if len(mine) == len(given) else f"{len(mine)} forwards with an effect, reference: {len(given)}"


def _ahead(case: Case, ours: Outcome) -> str:
    """The same forward passes, each of which also commits at once what its own predictions put first; the reference
    does so with the next one. What is ahead is one commit, or with FreeDave++ those of its threshold; where these fill
    the block, the reference's next forward pass is not needed.
    """
    rows = [{tuple(pair) for pair in row["committed"]} for row in case.data["trace"]] + [set()]
    several = "confidence_threshold" in case.data["params"]
    mine, given, at = set[Any](), set[Any](), 0
    for committed, _, _ in ours.events:
        mine, given, at = mine | set(committed), given | rows[at], at + 1
        ahead, then = mine - given, rows[at]  # nothing where a block is full
        if given - mine or not ahead <= then or bool(ahead) != bool(then) or (len(ahead) > 1 and not several):
            return f"forward {at - 1}: {sorted(mine)} so far, reference: {sorted(given)}"
        if several and ahead and ahead == then and not rows[at + 1]:
            given, at = given | then, at + 1
    return "" if at == len(rows) - 1 else f"{len(ours.events)} forwards with an effect, reference: {len(rows) - 1}"


def _before(event: tuple[tuple[tuple[int, int], ...], ...], end: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """What a forward pass did in front of a position, its first commits and what it re-masked."""
    committed, remasked, _ = event
    return tuple(x for x in committed if x[0] < end), tuple(x for x in remasked if x < end)


def commits_context(case: Case) -> bool:
    """The reference also commits in the margin behind the window, which is meant to be context."""
    return case.data["params"].get("suffix_window", 0) > 0


CONDITIONS: dict[str, Callable[[Case], bool]] = {"commits_context": commits_context}
DEVIATIONS: list[dict[str, str]] = first_set.tomllib.loads(
    (first_set.OWN / "deviations.toml").read_text(encoding="utf-8")
)["newer"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_trace(case: Case) -> None:
    found = problem(case)
    if found:
        assert any(d["method"] == case.method and CONDITIONS[d["condition"]](case) for d in DEVIATIONS), found
        assert problem(with_its_defect(case)) == "", "not explained by the defect of the reference"


def test_deviations_are_complete() -> None:
    for entry in DEVIATIONS:
        assert entry.keys() == {"method", "condition", "reason"}
        assert entry["method"] in METHODS
        assert entry["condition"] in CONDITIONS
        assert len(entry["reason"].split()) > 10


def test_the_set_is_whole() -> None:
    if "UNMASK_GOLDEN_NEWER" not in os.environ:
        assert len(find_cases()) == 366
    assert {case.method for case in CASES} <= METHODS.keys()
    assert not METHODS.keys() & MISSING
    assert torch.get_num_threads() == 1
