"""Laws of the newer decoders: what each is at the ends of its parameters, and its rule worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import POLICIES, SHIFT, SPEC, Request, Row, decode, tiny, trail
from pairwise import combined
from refusals import refuses
from unmask import registry
from unmask.core.canvas import Canvas
from unmask.core.errors import ModelError, SpecError
from unmask.core.policy import Policy
from unmask.core.protocols import Prediction, Sampling

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]
OTHERS = [spec for spec in POLICIES if not spec.startswith("edit")]  # which replaces tokens, as only it is expected to
GREEDY = Sampling(torch.zeros(1), torch.ones(1), *torch.zeros(2, 1, dtype=torch.long))


def deeds(policy: str, shift: bool = False, cache: str = "none") -> list[object]:
    """What a policy does with the requests, forward pass by forward pass."""
    rows: dict[int, Row] = decode(tiny(shift), policy, cache, REQUESTS)
    return [(row.commits, row.remasks, row.tokens) for row in rows.values()]


def chosen(
    policy: str, confidence: list[float], tokens: list[int] | None = None, state: Any = None, **more: list[float]
) -> list[int]:
    """Which positions of a response a policy commits at first, of those that a prediction of it has."""
    made: Policy = registry.policy(policy)
    canvas = Canvas.blank([[1]], [len(confidence)], SPEC)
    line = torch.tensor([[-torch.inf, *confidence]], dtype=torch.float64)
    token = torch.tensor([[1, *(tokens or [1] * len(confidence))]])
    own = {name: torch.tensor([[0.0, *value]], dtype=torch.float64) for name, value in more.items()}
    begun = made.init(canvas, GREEDY) if state is None else state
    update, _ = made.decide(canvas, Prediction(token, line, **own), begun)
    return [at - 1 for at in update.write[0].nonzero()[:, 0].tolist()]


class TestLocalLeap:
    @pytest.mark.parametrize("near", ["low=0.1,radius=0", "low=0.9,radius=30", "low=2,radius=3"])
    def test_without_reach_it_is_threshold(self, near: str) -> None:
        for block in ("5", "none"):
            own, plain = f"localleap(tau=0.4,{near},block_length={block})", f"threshold(tau=0.4,block_length={block})"
            assert deeds(own) == deeds(plain)

    def test_around_anchors_less_is_enough(self) -> None:
        confidence = [0.6, 0.5, 0.6, 0.95, 0.6, 0.2, 0.6]
        assert chosen("localleap(tau=0.9,low=0.5,radius=1)", confidence) == [2, 3, 4]
        assert chosen("localleap(tau=0.9,low=0.5,radius=2)", confidence) == [1, 2, 3, 4]
        assert chosen("localleap(tau=0.9,low=0.5,radius=65536)", confidence) == [0, 1, 2, 3, 4, 6]
        assert chosen("localleap(tau=0.96,low=0.5,radius=3)", confidence) == [3], "the best is no anchor"


class TestPcSampler:
    def test_without_decay_it_is_vanilla(self) -> None:
        for more in ("block_length=5", "steps=6,block_length=none"):
            assert deeds(f"pc_sampler(decay=0,most=100,{more})") == deeds(f"vanilla({more})")

    def test_with_much_decay_it_goes_from_left_to_right(self) -> None:
        assert deeds("pc_sampler(decay=99,block_length=none)") == deeds("left_to_right")

    def test_common_tokens_wait(self, tmp_path: Path) -> None:
        counts, shares = tmp_path / "counts.json", tmp_path / "shares.json"
        counts.write_text(json.dumps({"7": 10**6, "8": 5}))
        shares.write_text(json.dumps([0.0] * 7 + [0.9] + [0.001] * (SPEC.vocab - 8)))
        for file in (counts, shares):
            policy = f'pc_sampler(decay=0,frequencies="{file}")'
            assert chosen(policy, [0.99, 0.5, 0.98], [7, 8, 7]) == [1]
            assert chosen(f'pc_sampler(decay=99,frequencies="{file}")', [0.99, 0.5, 0.98], [7, 8, 7]) == [0]
        assert chosen("pc_sampler(decay=0,most=0.1)", [0.4, 0.9, 0.8]) == [0], "all scores are cut off alike"

    @pytest.mark.parametrize(
        ("held", "found"),
        [("[0.5, 0.5]", " 2 "), ('{"999": 1}', "'999'"), ('{"x": 1}', "'x'"), ("[", "64"), ("3", "3")],
    )
    def test_other_files_are_refused(self, tmp_path: Path, held: str, found: str) -> None:
        file = tmp_path / "f.json"
        file.write_text(held)
        made = registry.policy(f'pc_sampler(frequencies="{file}")')
        with refuses(ModelError, "pc_sampler", str(file), found):
            made.check([1], 4, SPEC)
        file.write_text(json.dumps([0.1] * 3 + ["a"] + [0.0] * (SPEC.vocab - 4)))
        with refuses(ModelError, "pc_sampler", 3, "'a'"):
            made.check([1], 4, SPEC)
        file.unlink()
        with refuses(ModelError, "pc_sampler", str(file)):
            made.check([1], 4, SPEC)


class TestSuffix:
    @combined(apart=("policy", "shift"), policy=OTHERS, shift=SHIFT)
    def test_with_everything_in_the_input_it_is_its_policy(self, policy: str, shift: bool) -> None:
        for more in ("window=99", "window=99,last=0,decay=0"):
            assert deeds(f"suffix({policy},{more})", shift) == deeds(policy, shift)

    @pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
    def test_behind_a_block_of_one_it_is_lookahead(self, cache: str) -> None:
        single = "threshold(block_length=1)"
        assert deeds(f"suffix({single},window=4,last=0)", cache=cache) == deeds(f"lookahead({single},5)", cache=cache)

    def test_what_is_in_the_input(self) -> None:
        """The text so far, the block, two positions, the last one, and what was given behind."""
        how = "suffix(threshold(tau=2,block_length=3),window=2)"
        request = Request(0, [5, 6], 12, ignore_eos=True, fixed={9: 3})
        for before, _, event in trail(tiny(), how, "none", request):
            first = int(before.canvas.frontier[0])
            end = 2 + ((first - 2) // 3 + 1) * 3
            assert event.ask.visible is not None
            assert event.ask.visible[0].nonzero()[:, 0].tolist() == sorted({*range(min(14, end + 2)), 11, 13})
            assert event.work[0] == len({*range(min(14, end + 2)), 11, 13})

    def test_decay_thins_out_by_distance_and_anew_for_each_block(self) -> None:
        made = registry.policy("suffix(threshold(block_length=2),window=400,last=0,decay=2)")
        seeds = torch.arange(40)
        canvas = Canvas.blank([[1]] * 40, [420] * 40, replace(SPEC, context=999))
        state = made.init(canvas, replace(GREEDY, seed=seeds))
        seen = made.ask(canvas, state).visible
        assert seen is not None
        assert seen[:, :3].all()
        shares = seen[:, 3:403].double().reshape(40, 4, 100).mean((0, 2)).tolist()
        expected = [float((-0.5 * (torch.arange(100 * n, 100 * n + 100) / 200.0) ** 2).exp().mean()) for n in range(4)]
        assert shares == pytest.approx(expected, abs=0.03)
        assert not seen[:, 403:].any()
        assert len({tuple(row.tolist()) for row in seen}) == 40, "each sequence has its own"
        filled = replace(canvas, tokens=torch.where(canvas.position < 3, 1, canvas.tokens))
        assert not torch.equal(made.ask(filled, state).visible[:, 5:403], seen[:, 5:403]), "each block has its own"
        one = replace(canvas, tokens=torch.where(canvas.position < 2, 1, canvas.tokens))
        assert torch.equal(made.ask(one, state).visible, seen), "each forward pass of a block has the same"


class TestMaskRatio:
    @pytest.mark.parametrize(
        "policy", ["threshold(tau=0.4,block_length=5)", "wino(tau_in=0.3,tau_out=0.3,block_length=6)", "klass(tau=0.4)"]
    )
    def test_without_slope_it_is_its_policy(self, policy: str) -> None:
        assert deeds(f"mask_ratio({policy},alpha=0)") == deeds(policy)

    def test_the_threshold_falls_with_the_masks(self) -> None:
        """Of the block and the kept suffix: 0.8 (1 - 0.5 (1 - m))."""
        made = registry.policy("mask_ratio(suffix(threshold(tau=0.8,block_length=4),window=2),alpha=0.5)")
        canvas = Canvas.blank([[1]], [10], SPEC)
        tokens = canvas.tokens.clone()
        tokens[0, 1:3] = 5  # of the 4 + 2 + 1 positions counted two are filled
        canvas = replace(canvas, tokens=tokens)
        limit = 0.8 * (1 - 0.5 * (1 - 5 / 7))
        line = torch.full((1, 11), -torch.inf, dtype=torch.float64)
        for value, count in ((limit + 1e-9, 2), (limit - 1e-9, 1)):
            line[0, 3:5] = torch.tensor([0.9, value], dtype=torch.float64)
            update, _ = made.decide(canvas, Prediction(tokens, line), made.init(canvas, GREEDY))
            assert int(update.write.sum()) == count

    @pytest.mark.parametrize("policy", ["vanilla", "suffix(factor)", "lookahead(threshold)", "mask_ratio(threshold)"])
    def test_policies_without_a_threshold_are_refused(self, policy: str) -> None:
        with refuses(SpecError, "mask_ratio", policy.partition("(")[0]):
            registry.policy(f"mask_ratio({policy})")
