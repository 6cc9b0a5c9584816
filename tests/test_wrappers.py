"""Policies around policies: early commits, thresholds that adapt, a shorter sight, and how nested specs are built."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from functools import cache as cached

import pytest
import torch
from typer.testing import CliRunner

from helpers import LIMIT, MASK, SHIFT, SHIFTS, SINGLE, SPEC, VERIFIER, Request, Row, decode, forward, tiny, trail
from pairwise import combined
from refusals import refuses
from unmask import registry
from unmask.cli import app
from unmask.core.canvas import Canvas
from unmask.core.errors import SpecError
from unmask.core.policy import Policy, with_threshold
from unmask.core.predict import read
from unmask.core.protocols import Ask, Prediction, Sampling
from unmask.policies.adaptive import Adaptive
from unmask.policies.prophet import Prophet
from unmask.policies.threshold import Threshold
from unmask.policies.vanilla import Vanilla

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]
NEVER = "high=1e9,mid=1e9,low=1e9"
WITH_THRESHOLD = {
    "threshold": ["threshold(tau=0.6,block_length=none)", "threshold(tau=0.3,block_length=5,steps=9,opening=first)"],
    "slowfast": ["slowfast(tau_min=0.3,tau_high=0.5,k_max=3)", "slowfast(preset=reference,tau_high=0.5,k_max=3)"],
    "klass": ["klass(tau=0.4,kl=0.3,block_length=5)"],
    "hierarchical": ["hierarchical(tau=0.6,low=0.2,block_length=7)"],
    "credit": ["credit(tau=0.5,block_length=5)"],
    "wino": ["wino(tau_in=0.3,tau_out=0.3,block_length=6)"],
    "sdar": ["sdar(tau=0.5,steps=14,block_length=7)"],
    "localleap": ["localleap(tau=0.5,low=0.3,radius=2,block_length=7)"],
    "suffix": ["suffix(threshold(tau=0.4,block_length=4),window=3)"],
    "adablock": ['adablock(threshold(tau=0.4,block_length=5),tau_end=0.1,reach=0.6,delimiters="3 8 11 20 33 40")'],
    "window": ["window(threshold(tau=0.4,block_length=4))"],
    "dawn": ["dawn(tau=0.5,block_length=7)"],
}


def with_number(policy: Policy, value: float) -> Policy:
    """The policy with another threshold."""
    name = type(policy).threshold
    held = getattr(policy, name)
    return replace(policy, **{name: with_number(held, value) if isinstance(held, Policy) else value})


@cached
def rows(policy: str, shift: bool = False, cache: str = "none") -> list[Row]:
    return list(decode(tiny(shift), policy, cache, REQUESTS).values())


def deeds(found: list[Row]) -> list[object]:
    return [(row.commits, row.remasks, row.tokens) for row in found]


class TestProphet:
    @combined(apart=("policy", "shift"), policy=SINGLE, shift=SHIFT)
    def test_without_reach_it_is_its_policy(self, policy: str, shift: bool) -> None:
        assert deeds(rows(f"prophet({policy},{NEVER})", shift)) == deeds(rows(policy, shift))

    @pytest.mark.parametrize(
        "policy", ["vanilla(block_length=4)", "threshold(block_length=4)", "wino", "klass", "dream"]
    )
    def test_within_reach_it_commits_everything_at_once(self, policy: str) -> None:
        found = rows(f"prophet({policy},high=0,mid=0,low=0)")
        assert [(row.nfe, len(row.commits[0])) for row in found] == [(1, 12), (1, 9), (1, 14)]

    @pytest.mark.parametrize("shift", SHIFTS)
    def test_it_commits_when_the_gap_of_the_answer_is_wide(self, shift: bool) -> None:
        """The published loop, written out: blocks, one token per step, step / steps for the progress."""
        start, length, exits = 4, 5, set()
        for high, mid, low in ((4.0, 2.5, 1.0), (2.4, 2.2, 1.5), (9.0, 2.0, 1.0), (9.0, 9.0, 1.2)):
            policy = f"prophet(vanilla(block_length=4),{high},{mid},{low},answer_start={start},answer_length={length})"
            for i in range(4):
                prompt, gen = [5 + i, 6], 12
                tokens, commits = prompt + [MASK] * gen, []
                while MASK in tokens:
                    logits = forward(tiny(shift), tokens)
                    logits[:, MASK] = logits[:, LIMIT:] = -torch.inf
                    logits = logits.roll(1, 0) if shift else logits
                    best, token = logits.softmax(-1).max(-1)
                    masks = [p for p, t in enumerate(tokens) if t == MASK]
                    answer = [p for p in masks if 2 + start <= p < 2 + start + length]
                    top = logits.topk(2).values
                    progress = (len(commits) + 1) / gen
                    enough = high if progress < 0.33 else mid if progress < 0.67 else low
                    block = [p for p in masks if (p - 2) // 4 == (masks[0] - 2) // 4]
                    chosen = [max(block, key=lambda p: float(best[p]))]
                    if answer and float((top[:, 0] - top[:, 1])[answer].mean()) >= enough:
                        chosen, _ = masks, exits.add(len(commits))
                    commits.append(frozenset((p, int(token[p])) for p in chosen))
                    for p in chosen:
                        tokens[p] = int(token[p])
                request = Request(0, prompt, gen, ignore_eos=True)
                assert decode(tiny(shift), policy, "none", [request])[0].commits == commits
        assert len(exits) > 2, "always the same step"

    def test_each_row_has_its_own_progress(self) -> None:
        """With nothing required from two thirds on, the rest follows when these are filled."""
        lengths = {1: 6, 2: 30, 3: 12}
        requests = [Request(row, [4, row], length, ignore_eos=True) for row, length in lengths.items()]
        found = decode(tiny(), "prophet(vanilla,high=1e9,mid=1e9,low=0)", "none", requests)
        for row, length in lengths.items():
            commits = [len(commit) for commit in found[row].commits if commit]
            alone = next(n for n in range(length) if n / length >= 0.67)
            assert commits == [1] * (alone - 1) + [length - alone + 1]

    def test_a_policy_that_hides_masks_is_left_alone_meanwhile(self) -> None:
        found = decode(tiny(), "prophet(left_to_right(lookahead=3),0,0,0)", "none", REQUESTS[:1])[0]
        assert [len(commit) for commit in found.commits] == [1] * 9 + [3]
        stale = decode(tiny(), "prophet(slowfast(tau_min=0.3,tau_high=0.5,k_max=3),0,0,0)", "none", REQUESTS)
        assert all(row.nfe == 1 for row in stale.values())

    def test_the_gap_is_of_the_models_own_logits(self) -> None:
        logits = torch.tensor([[0.0, 3.0, 1.0, -9.0], [5.0, 4.5, -torch.inf, 0.0]])
        one, where = torch.ones(1, dtype=torch.float64), torch.tensor([0, 0])
        hot = Sampling(2 * one, one / 2, torch.tensor([1]), torch.tensor([7]))
        for needs in ({"gap"}, {"gap", "tempered"}):
            found = read(logits.clone(), hot, frozenset(needs), where, torch.tensor([3, 4]), where)
            assert found["gap"].tolist() == [2.0, 0.5]

    @pytest.mark.parametrize("shift", SHIFTS)
    def test_a_part_of_a_prediction_is_that_of_a_smaller_ask(self, shift: bool) -> None:
        model, none = tiny(shift), registry.cache("none")
        needs = frozenset({"entropy", "margin", "gap", "logits"})
        sampling = Sampling(torch.zeros(2), torch.ones(2), *torch.zeros(2, 2, dtype=torch.long))
        canvas = Canvas.blank([[1, 2], [3]], [8, 6], model.spec)
        part = canvas.response & (canvas.position % 3 == 0)

        def asked(window: torch.Tensor) -> Prediction:
            state, step = model.init(canvas, none), torch.zeros_like(canvas.prompt)
            return model(canvas, Ask(window), none, state, sampling, step, needs=needs).prediction

        less, cut = asked(part), asked(canvas.response).within(part)
        for field in dataclasses.fields(Prediction):
            one, other = getattr(less, field.name), getattr(cut, field.name)
            pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
            assert one is other is None or all(torch.equal(a, b) for a, b in pairs), field.name


class TestAdaptive:
    @pytest.mark.parametrize("cache", ["none", "dual"])
    @pytest.mark.parametrize("policy", [spec for specs in WITH_THRESHOLD.values() for spec in specs])
    def test_without_gain_it_is_its_policy(self, policy: str, cache: str) -> None:
        """Also outside its bounds."""
        assert deeds(rows(f"adaptive({policy},gain=0)", cache=cache)) == deeds(rows(policy, cache=cache))

    @pytest.mark.parametrize("policy", [specs[0] for specs in WITH_THRESHOLD.values()])
    def test_with_gain_it_is_not(self, policy: str) -> None:
        changed = (f"adaptive({policy},gain=0.3,target={target},low=0.05)" for target in (0.2, 0.9))
        assert any(deeds(rows(spec)) != deeds(rows(policy)) for spec in changed)

    @pytest.mark.parametrize("policy", [spec for specs in WITH_THRESHOLD.values() for spec in specs])
    def test_rows_may_have_thresholds_of_their_own(self, policy: str) -> None:
        """One forward of a batch at two thresholds is each row's forward at its own."""
        made = registry.policy(policy)
        canvas = Canvas.blank([[5, 6, 7], [5, 6, 7]], [12, 12], SPEC)
        sampling = Sampling(torch.zeros(2), torch.ones(2), *torch.zeros(2, 2, dtype=torch.long))
        canvas = canvas.widened(made.probes)
        ask, none = made.ask(canvas, made.init(canvas, sampling)), registry.cache("none")
        step = torch.zeros_like(canvas.prompt)
        answer = tiny()(canvas, ask, none, tiny().init(canvas, none), sampling, step, needs=made.needs).prediction
        both = with_threshold(made, torch.tensor([0.2, 0.8], dtype=torch.float64))
        update, _ = both.decide(canvas, answer, made.init(canvas, sampling))
        for row, value in enumerate((0.2, 0.8)):
            alone, _ = with_number(made, value).decide(canvas, answer, made.init(canvas, sampling))
            assert torch.equal(update.write[row], alone.write[row])

    def test_policies_without_a_threshold_are_refused(self) -> None:
        assert {s for s in registry.POLICIES if registry.lookup("policy", s).threshold} == set(WITH_THRESHOLD)
        for name in set(registry.POLICIES) - set(WITH_THRESHOLD):
            with refuses(SpecError, "adaptive", "policy", name):
                registry.policy(f"adaptive({name})")
        with refuses(SpecError, "adaptive", "low", "high", 0.8, 0.9):
            registry.policy("adaptive(low=0.9,high=0.8)")

    @pytest.mark.parametrize(
        ("policy", "bounds"),
        [("threshold(tau=0.5,block_length=none)", (0.05, 1.5)), ("threshold(tau=0.5,block_length=6)", (0.3, 0.6))],
    )
    def test_the_threshold_follows_the_errors(self, policy: str, bounds: tuple[float, float]) -> None:
        """Worked out position by position; and between the bounds the share of errors is as near the target as said."""
        low, high = bounds
        gain, target, watched, moved = 0.05, 0.3, 0, set()
        spec = f"adaptive({policy},gain={gain},target={target},low={low},high={high})"
        for i in range(6):
            tau, seen, errors, n, clamped = 0.5, {}, 0, 0, False
            for before, after, event in trail(tiny(), spec, "none", Request(0, [5 + i, 6], 30, ignore_eos=True)):
                sure = {p: float(event.confidence[0, p]) for p in before.canvas.masked[0].nonzero()[:, 0].tolist()}
                sure = {p: c for p, c in sure.items() if c > -torch.inf}
                chosen = {p for p, c in sure.items() if c >= tau} | {max(sure, key=sure.__getitem__)}
                assert {c.position for c in event.committed()} == chosen
                held = [c for c in event.committed() if c.position in seen and seen[c.position][0] >= low]
                wrong = sum(seen[c.position][1] != c.token for c in held)
                free = tau + gain * (wrong - target * len(held))
                clamped, tau = clamped or not low <= free <= high, min(max(free, low), high)
                errors, n, watched = errors + wrong, n + len(held), watched + len(held)
                assert float(after.policy.tau) == pytest.approx(tau, abs=1e-12)
                token = event.update.token[0].tolist()
                seen |= {p: (c, token[p]) for p, c in sure.items() if p not in seen}
                moved.add(round(tau, 6))
            if n and not clamped:
                assert abs(errors / n - target) <= (high - low) / (gain * n)
        assert watched > 20
        assert len(moved) > 5


class TestLookahead:
    @combined(apart=("policy", "cache"), policy=SINGLE, cache=["none", "dllm(kp=3,kr=2,rho=0.25)"])
    def test_with_everything_in_sight_it_is_its_policy(self, policy: str, cache: str) -> None:
        assert deeds(rows(f"lookahead({policy},14)", cache=cache)) == deeds(rows(policy, cache=cache))

    @pytest.mark.parametrize("cache", ["none", "trailing(window=3)", "dual", "d2(k=4,p=0.4,sigma=3,inflate=3)"])
    @pytest.mark.parametrize("positions", [1, 3, 5])
    @pytest.mark.parametrize(
        "policy", ["left_to_right(k=2,lookahead={})", f'apd(r=0.4,lookahead={{}},verifier="{VERIFIER}")']
    )
    def test_it_is_the_lookahead_of_policies_that_have_one(self, policy: str, positions: int, cache: str) -> None:
        wrapped = f"lookahead({policy.format('none')},{positions})"
        assert deeds(rows(wrapped, cache=cache)) == deeds(rows(policy.format(positions), cache=cache))

    @pytest.mark.parametrize("shift", SHIFTS)
    @pytest.mark.parametrize(
        "policy", ["vanilla(block_length=4)", "threshold(tau=0.4,block_length=4)", "hierarchical(tau=0.6,low=0.2)"]
    )
    def test_what_is_out_of_sight_does_not_matter(self, policy: str, shift: bool) -> None:
        """Until the end of the shorter canvas comes into sight, a longer one is decoded alike, at the same cost."""
        near, prompt, short = 6, [5, 6, 7], 16
        made = {}
        for length in (short, 40):
            request = Request(0, prompt, length, ignore_eos=True)
            made[length] = list(trail(tiny(shift), f"lookahead({policy},{near})", "none", request))
        common = 0
        for (canvas, _, one), (_, _, other) in zip(made[short], made[40], strict=False):
            if int(canvas.canvas.frontier) + near > len(prompt) + short:
                break
            assert one.committed() == other.committed()
            assert int(one.work) == int(other.work) <= int(canvas.canvas.frontier) + near
            common += 1
        assert common > 3

    def test_text_far_behind_stays_in_sight(self) -> None:
        """What is given there changes what is predicted here."""
        prompt, told = [5, 6], {}
        for token in (7, 8):
            request = Request(0, prompt, 20, ignore_eos=True, fixed={18: token})
            first = next(iter(trail(tiny(), "lookahead(vanilla(block_length=4),3)", "none", request)))[2]
            assert (first.confidence[0] > -torch.inf).nonzero()[:, 0].tolist() == [2, 3, 4]
            assert int(first.work) == len(prompt) + 3 + 1
            told[token] = first.confidence[0, 2:5].tolist()
        assert told[7] != told[8]

    def test_forward_only_policies_stay_so(self) -> None:
        assert registry.policy("lookahead(left_to_right)").left_to_right
        assert not registry.policy("lookahead").left_to_right
        assert registry.policy("lookahead(wino)").remasks


class TestNestedSpecs:
    @pytest.mark.parametrize(
        "text",
        [
            "prophet",
            "adaptive",
            "prophet(policy=threshold(tau=0.8),high=5.0)",
            "prophet(policy=adaptive(policy=wino,gain=0.1),answer_length=5)",
            "adaptive(policy=slowfast(preset=reference))",
            "lookahead(policy=prophet(policy=slowfast),positions=64)",
        ],
    )
    def test_round_trip(self, text: str) -> None:
        made = registry.policy(text)
        assert str(made) == text
        assert registry.policy(str(made)) == made

    def test_defaults(self) -> None:
        assert registry.policy("prophet").policy == Vanilla()
        assert str(registry.policy("prophet(vanilla)")) == "prophet"
        assert str(registry.policy("adaptive(threshold(tau=0.9))")) == "adaptive"
        for made, inner in ((Prophet(), Vanilla()), (Adaptive(), Threshold()), (Prophet("threshold"), Threshold())):
            assert registry.policy(made).policy == inner

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("prophet(dual)", ["policy", "'dual'"]),
            ("prophet(none)", ["prophet", "policy"]),
            ("prophet(3)", ["prophet", "policy", 3]),
            ("prophet(vanilla(steps=0))", ["vanilla", "steps", 0]),
            ("prophet(high=-1)", ["prophet", "high", -1]),
            ("saber(mu=0.5)", ["saber", "mu", 0.5]),
            ("lookahead(positions=0)", ["lookahead", "positions", 0]),
            ("adaptive(gain=2)", ["adaptive", "gain", 2]),
        ],
    )
    def test_bad_ones(self, text: str, named: list[object]) -> None:
        with refuses(SpecError, *named):
            registry.policy(text)

    def test_the_list_says_what_the_default_is(self) -> None:
        listed = json.loads(CliRunner().invoke(app, ["policies", "--json"]).stdout)
        policy = listed["prophet"]["parameters"][0]
        assert (policy["default"], policy["required"], policy["accepted"]) == ("vanilla", False, "a policy")
        assert "policy = threshold; a policy" in CliRunner().invoke(app, ["policies"]).stdout
