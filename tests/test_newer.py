"""Laws of the newer decoders: what each is at the ends of its parameters, and its rule worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from helpers import MASK, SHIFT, SINGLE, SPEC, Request, Row, decode, tiny, trail
from pairwise import combined
from refusals import refuses
from unmask import registry
from unmask.core.canvas import Canvas
from unmask.core.errors import ModelError, RequestError, SpecError
from unmask.core.policy import Policy
from unmask.core.protocols import Prediction, Sampling
from unmask.models.denoiser import Denoiser

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]
OTHERS = [spec for spec in SINGLE if not spec.startswith("edit")]  # which replaces tokens, as only it is expected to
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
        plain = deeds(policy, shift)
        for more in ("window=99", "window=99,last=0,decay=0"):
            assert deeds(f"suffix({policy},{more})", shift) == plain

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


SPANS = [
    "threshold(tau=0.4,block_length=5)",
    "factor(f=0.9,block_length=4)",
    "entropy_bound(gamma=1.2,block_length=5)",
    "klass(tau=0.4,kl=0.3,block_length=5)",
    "hierarchical(tau=0.6,low=0.2,block_length=7)",
    "localleap(tau=0.5,low=0.3,radius=2,block_length=6)",
    "vanilla(block_length=5)",
    "threshold(tau=0.4,block_length=6,opening=first)",
]
NO_BLOCKS = ["threshold(block_length=none)", "slowfast", "credit", "wino", "vanilla(steps=6)", "lookahead(threshold)"]


class TestAdaBlock:
    @combined(policy=SPANS, cache=["none", "dual", "prefix"], shift=SHIFT, block=[None, 8])
    def test_where_nothing_ends_a_block_it_is_its_policy(
        self, policy: str, cache: str, shift: bool, block: int | None
    ) -> None:
        """Also with given tokens, whole blocks of them, and on block models."""
        fixed = dict.fromkeys([4, 6, 7, 8, 9, 10, 11], 20)
        asked = [*REQUESTS, Request(3, [5, 6, 7], 14, fixed=fixed if block is None else {})]
        found = [
            decode(tiny(shift, block=block), how, cache, asked)
            for how in (policy, f'adablock({policy},tau_end=2,delimiters="3 8")', f'adablock({policy},delimiters="")')
        ]
        plain, never, none = ([(row.commits, row.tokens) for row in rows.values()] for rows in found)
        assert plain == never == none

    def test_blocks_end_with_the_surest_delimiter(self) -> None:
        """Found within reach of the block's start, in its first forward pass; longer than usual, too."""
        ids = range(0, 60, 2)
        how = (
            f'adablock(threshold(tau=0.9,block_length=3),tau_end=0.2,reach=0.5,delimiters="{" ".join(map(str, ids))}")'
        )
        lengths, ended = [], 0
        for seed in range(6):
            end = -1
            for before, _, event in trail(tiny(seed=seed), how, "none", Request(0, [5, 6], 20, ignore_eos=True)):
                notes = {name: int(value) for name, value in event.notes().items()}
                if int(before.canvas.frontier) >= end:
                    start, near = notes["start"], range(notes["start"], min(notes["start"] + 10, 22))
                    assert start == int(before.canvas.frontier)
                    sure = {at: float(event.confidence[0, at]) for at in near}
                    tokens = self._predicted(tiny(seed=seed), before, how)
                    sure = {at: value for at, value in sure.items() if tokens[at] in ids and value >= 0.2}
                    best = max(sure, key=sure.__getitem__, default=None)
                    ended += best is not None
                    assert notes["end"] == (min(start + 3, 22) if best is None else best + 1)
                    lengths.append(notes["end"] - start)
                    end = notes["end"]
                assert notes["end"] == end, "a block stays as it is"
                assert all(start <= c.position < end for c in event.committed())
        assert ended > 3
        assert max(lengths) > 3 > min(lengths)

    @staticmethod
    def _predicted(model: Denoiser, before: Any, how: str) -> list[int]:
        """The tokens predicted in a forward pass."""
        none, made = registry.cache("none"), registry.policy(how)
        canvas, ask = before.canvas, made.ask(before.canvas, before.policy)
        answer = model(canvas, ask, none, model.init(canvas, none), before.sampling, before.record.nfe)
        return answer.prediction.token[0].tolist()

    def test_ids_are_needed_without_a_tokenizer(self) -> None:
        with refuses(ModelError, "adablock", "delimiters"):
            registry.policy("adablock").check([1], 4, SPEC)
        with refuses(SpecError, "adablock", "delimiters", "'a b'"):
            registry.policy('adablock(delimiters="a b")')

    def test_line_breaks_end_blocks_of_the_bundled_model(self) -> None:
        lm = unmask.load(device="cpu", dtype="float32")
        made = registry.policy("adablock")
        made.check([1], 4, lm.denoiser.spec)
        ids = made._ids(lm.denoiser.spec, torch.device("cpu")).tolist()
        assert ids == [i for i in range(len(lm.text)) if "\n" in lm.text.pieces([i])[0]] != []

    @pytest.mark.parametrize("wrapper", ["adablock", "window"])
    @pytest.mark.parametrize("policy", NO_BLOCKS)
    def test_policies_without_free_blocks_are_refused(self, wrapper: str, policy: str) -> None:
        with refuses(SpecError, wrapper, policy.partition("(")[0]):
            registry.policy(f"{wrapper}({policy})")


class TestWindow:
    @combined(policy=SPANS[:-1], cache=["none", "dual"], shift=SHIFT)
    def test_as_long_as_the_response_it_is_one_block(self, policy: str, cache: str, shift: bool) -> None:
        head, _, tail = policy.partition("block_length=")
        size, more = tail[0], tail[1:]
        assert size.isdigit()
        requests = [replace(request, ignore_eos=True) for request in REQUESTS]
        wide, whole = (
            [(r.commits, r.tokens) for r in decode(tiny(shift), how, cache, requests).values()]
            for how in (f"window({head}block_length=99{more})", f"{head}block_length=none{more}")
        )
        if cache == "none":  # the window's start moves, and with it a block cache is refreshed
            assert wide == whole
        assert [len(commits[0]) for commits, _ in wide] == [len(commits[0]) for commits, _ in whole]

    @pytest.mark.parametrize("longest", [None, 6])
    def test_it_holds_the_first_masked_positions(self, longest: int | None) -> None:
        how = f"window(threshold(tau=0.35,block_length=4){f',longest={longest}' if longest else ''})"
        for before, _, event in trail(tiny(), how, "none", Request(0, [5, 6], 20, ignore_eos=True)):
            masks = (before.canvas.tokens[0] == MASK).nonzero()[:, 0].tolist()
            expected = [at for at in masks[:4] if longest is None or at < masks[0] + longest]
            assert (event.ask.window & before.canvas.masked)[0].nonzero()[:, 0].tolist() == expected
            assert {c.position for c in event.committed()} <= set(expected)

    def test_it_does_not_reach_over_an_end_of_text(self) -> None:
        made = registry.policy("window(threshold(block_length=6))")
        canvas = Canvas.blank([[1]], [8], SPEC)
        canvas = replace(canvas, tokens=torch.where(canvas.position == 4, SPEC.eos[0], canvas.tokens))
        assert made.ask(canvas, made.init(canvas, GREEDY)).window[0].nonzero()[:, 0].tolist() == [1, 2, 3]
        canvas = replace(canvas, eos_stop=torch.tensor([False]))
        assert made.ask(canvas, made.init(canvas, GREEDY)).window[0].nonzero()[:, 0].tolist() == [*range(1, 8)]

    def test_padding_is_an_id_of_the_model(self) -> None:
        for policy in ("window", "multiblock"):
            for pad in (SPEC.mask, SPEC.vocab):
                with refuses(RequestError, policy, "pad", pad):
                    registry.policy(f"{policy}(pad={pad})").check([1], 4, SPEC)


class TestMultiBlock:
    def test_without_a_pipeline_it_fills_block_after_block(self) -> None:
        for how in (
            "multiblock(tau=1.2,block_length=4,add=1,ready=1)",
            "multiblock(tau=1.2,block_length=4,add=1,ready=0)",
        ):
            for before, _, event in trail(tiny(), how, "none", Request(0, [5, 6], 18, ignore_eos=True)):
                block = before.canvas.block(4)[0].nonzero()[:, 0].tolist()
                assert event.ask.window[0].nonzero()[:, 0].tolist() == block

    def test_a_low_bound_commits_the_least_entropy_of_the_block(self) -> None:
        for how in ("multiblock(tau=0,block_length=5)", "multiblock(tau=0,block_length=5,add=1)"):
            found = decode(tiny(), how, "none", REQUESTS)
            assert all(len(commits) == 1 for row in found.values() for commits in row.commits)
        assert chosen("multiblock(tau=0,block_length=3)", [0.5] * 6, entropy=[2, 1, 3, 0.5, 0.5, 0.5]) == [1]

    def test_a_high_bound_fills_what_has_joined(self) -> None:
        found = decode(tiny(), "multiblock(tau=99,block_length=5,add=0.1)", "none", REQUESTS)
        assert [row.nfe for row in found.values()] == [3, 2, 3]

    def test_blocks_join_and_become_active(self) -> None:
        """Worked out by hand: blocks of four, a response of twelve."""
        made = registry.policy("multiblock(tau=0.5,block_length=4,add=0.25,ready=0.75)")
        canvas = Canvas.blank([[1]], [12], SPEC)
        state = made.init(canvas, GREEDY)
        assert made.ask(canvas, state).window[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4]

        def after(entropies: dict[int, float]) -> list[int]:
            nonlocal canvas, state
            window = made.ask(canvas, state).window & canvas.masked
            line = torch.where(window, 0.5, -torch.inf).double()
            entropy = torch.tensor([[entropies.get(at, 1.0) for at in range(13)]]).double()
            update, state = made.decide(canvas, Prediction(torch.ones_like(canvas.tokens), line, entropy), state)
            canvas = canvas.apply(update)
            return update.write[0].nonzero()[:, 0].tolist()

        assert after({2: 0.4, 6: 0.1}) == [2], "the second block has not joined yet"
        assert after({3: 0.9, 6: 0.1}) == [3, 6], "the first block commits in any case, the second what is certain"
        assert after({9: 0.9, 12: 0.2}) == [1, 12], "of equals the first; the third block has joined"
        assert after({5: 0.6, 4: 0.7, 10: 0.1}) == [4, 10], "the second is active, but the first one is there"
        assert after({7: 0.8}) == [7]
        assert after({}) == [5]


class TestWindowCache:
    @combined(apart=("policy", "shift"), policy=[*SPANS, *(f"window({spec})" for spec in SPANS[:-1])], shift=SHIFT)
    def test_refreshed_in_every_forward_pass_it_is_none(self, policy: str, shift: bool) -> None:
        assert deeds(policy, shift, "window_cache(refresh=1)") == deeds(policy, shift)
        assert deeds(policy, shift, "window_cache(refresh=99,before=99,behind=99,margin=this)") == deeds(policy, shift)

    def test_what_is_recomputed(self) -> None:
        """The window and its margins, the one in front counted from the last window; all when enough was committed."""
        policy, kept = "window(threshold(tau=0.3,block_length=4))", "window_cache(refresh=6,before=1,behind=2)"
        start, count = None, 0
        for _, _, event in trail(tiny(), policy, kept, Request(0, [5, 6, 7], 24, ignore_eos=True)):
            window = event.ask.window[0].nonzero()[:, 0].tolist()
            expected = range(27)
            if start is not None and count < 6:
                expected = range(max(3, start - 1), min(27, window[-1] + 3))
            else:
                count = 0
            assert (event.computed()[0] > 0).nonzero()[:, 0].tolist() == [*expected]
            start, count = window[0], count + len(event.committed())
