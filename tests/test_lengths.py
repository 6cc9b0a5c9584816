"""Responses that grow and shrink: the rules worked out by hand, laws at the ends, caches, memory, what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from counting import counting
from helpers import EOS, MASK, POLICIES, SHIFT, SINGLE, SPEC, Request, Row, decode, forward, tiny, trail
from pairwise import combined
from refusals import refuses
from serving import QUESTION, serving
from unmask import registry
from unmask.cli import app
from unmask.core.canvas import Canvas, Update
from unmask.core.errors import RequestError, SpecError
from unmask.core.lengths import end_share
from unmask.core.protocols import Prediction, Sampling
from unmask.core.state import slabs
from unmask.engine.admission import state_bytes
from unmask.engine.scheduler import Engine
from unmask.server.plan import Planner
from unmask.traceview.document import page
from unmask.traceview.reader import read

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]
VARIANT = next(p for p in POLICIES if p.startswith("flexible(threshold"))
FIXED = {p.partition("(")[0]: p for p in SINGLE if not registry.policy(p).paced and "edit" not in p}.values()
CLOSED = {  # a bound that is reached from the start, or a share of the end of text that is never outside
    "bound": "flexible({},max_length=1)",
    "share": "flexible({},low=0,high=1,max_length=23)",
    "until": "flexible({},until=0)",
    "daedal": "daedal({},max_length=1)",
}


def deeds(policy: str, shift: bool = False, cache: str = "none") -> list[object]:
    rows: dict[int, Row] = decode(tiny(shift), policy, cache, REQUESTS)
    return [(row.commits, row.remasks, row.tokens) for row in rows.values()]


class TestLaws:
    @combined(apart=("policy", "shift", "closed"), policy=list(FIXED), closed=CLOSED, shift=SHIFT)
    def test_with_its_bounds_closed_it_is_its_policy(self, policy: str, closed: str, shift: bool) -> None:
        assert deeds(closed.format(policy), shift) == deeds(policy, shift)

    def test_tokens_that_move_keep_their_confidence(self) -> None:
        moved = 0
        how = "daedal(threshold(tau=0.3,block_length=none),max_length=30,tau_start=0,tau_low=0.9,step=3,look=4)"
        for state, after, event in (x for request in REQUESTS for x in trail(tiny(), how, "none", request)):
            source = event.update.source
            assert source is not None
            far = event.update.write & (source != event.canvas.position) & state.canvas.filled.gather(1, source)
            moved += int(far.sum())
            before = state.record.confidence.gather(1, source)
            assert after.record.confidence[far].equal(before[far])
            assert event.confidence[far].equal(before[far].to(event.confidence.dtype))
        assert moved

    def test_nothing_changes_while_the_end_is_not_in_the_input(self) -> None:
        grown = 0
        how = "flexible(lookahead(threshold(tau=0.4,block_length=4),3),max_length=30)"
        for state, after, event in trail(tiny(), how, "none", REQUESTS[0]):
            assert event.ask.visible is not None
            if int(after.canvas.length[0]) != int(state.canvas.length[0]):
                assert event.ask.visible[0, int(state.canvas.length[0]) - 1]
                grown += 1
        assert grown > 0


def share(ends: list[float], look: int, length: int | None = None) -> float:
    """The share of a response whose positions predict an end of text with these probabilities."""
    canvas = Canvas.blank([[1, 2]], [len(ends) if length is None else length], SPEC, rooms=[9])
    line = torch.full((1, 11), -torch.inf, dtype=torch.float64)
    line[0, 2 : 2 + len(ends)] = torch.tensor(ends, dtype=torch.float64)
    told = Prediction(torch.zeros(1, 11).long(), line, end=line)
    return float(end_share(canvas, told, None, look))


class TestShare:
    def test_by_hand(self) -> None:
        assert share([0.9, 0, 0.6, 0, 0.8], 2) == pytest.approx(0.7)
        assert share([0.9, 0, 0.6, 0, 0.8], 4) == pytest.approx(2.3 / 4)
        assert share([0.0, 0.0], 3) == 0

    def test_unknown_where_something_was_not_predicted(self) -> None:
        assert share([0.9, -torch.inf, 0.8], 2) != share([0.9, -torch.inf, 0.8], 2)
        assert share([0.9, 0.8], 2, length=3) != share([0.9, 0.8], 2, length=3)

    @pytest.mark.parametrize(
        ("growth", "expected"),
        [
            ("exp", [64, 64, 32, 8, 0, -8, -16]),
            ("linear", [64, 40, 24, 8, 0, -8, -16]),
            ("const", [8] * 4 + [0, -8, -8]),
        ],
    )
    def test_steps(self, growth: str, expected: list[int]) -> None:
        made = registry.policy(f"flexible(growth={growth},low=0.8,high=0.85)")
        shares = torch.tensor([0.0, 0.35, 0.55, 0.75, 0.82, 0.9, 1.0])
        assert made._change(shares).tolist() == expected  # type: ignore[attr-defined]
        assert made._change(torch.tensor([torch.nan])).tolist() == [0]  # type: ignore[attr-defined]


class TestCanvas:
    def test_lengths_stay_within_their_bounds(self) -> None:
        canvas = Canvas.blank([[1, 2], [3]], [3, 2], SPEC, rooms=[6, 2])
        write = torch.zeros_like(canvas.fixed)
        write[0, 5] = True
        after = canvas.apply(Update(write, torch.full_like(canvas.tokens, 7), grow=torch.tensor([9, 9])))
        assert after.tokens.tolist() == [[1, 2, MASK, MASK, MASK, 7, MASK, MASK], [3, MASK, MASK, *[SPEC.pad] * 5]]
        assert (after.length.tolist(), after.wanted.tolist()) == ([8, 3], [8, 3])
        none = after.apply(Update(write & False, after.tokens, grow=torch.tensor([-4, -9])))
        assert none.tokens.tolist() == [[1, 2, MASK, MASK, *[SPEC.pad] * 4], [3, *[SPEC.pad] * 7]]
        assert none.done.tolist() == [False, True]


class TestLook:
    @pytest.mark.parametrize("shift", SHIFT.values(), ids=SHIFT)
    def test_it_costs_the_head_of_the_whole_response_and_no_layer(self, shift: bool) -> None:
        """A prediction for each masked position of the block, and one for each of the response."""
        model, asked, work = tiny(shift), 0, 0.0
        with counting(model) as seen:
            for before, _, event in trail(model, VARIANT, "none", REQUESTS[0]):
                asked += int((event.ask.window & before.canvas.masked).sum() + before.canvas.response.sum())
                work += float(before.canvas.length[0])
                assert float(event.work[0]) == float(before.canvas.length[0])
        assert seen.head == asked
        assert seen.mean("qkv_proj") == work


class TestFlexible:
    def test_a_response_grows_until_its_bound_and_stays(self) -> None:
        how = "flexible(threshold(tau=2,block_length=4),max_length=21,low=0.5,high=1,step=3,look=4,growth=const)"
        sizes = [
            int(after.canvas.length[0]) - 2
            for _, after, _ in trail(tiny(), how, "none", replace(REQUESTS[1], prompt=[4, 5]))
        ]
        assert sizes == sorted(sizes)
        assert sizes[:2] == [12, 15] and sizes[-1] == 21
        few = how.replace("growth=const", "growth=const,until=2")
        assert max(int(after.canvas.length[0]) for _, after, _ in trail(tiny(), few, "none", REQUESTS[1])) == 1 + 9 + 6

    def test_it_shrinks_to_its_last_token(self) -> None:
        """An end of text is what the model predicts everywhere; only the authors' code cuts off tokens."""
        model = sure_of_the_end()
        how = "flexible(threshold(tau=2,block_length=30),high=0.1,step=9,look=2)"
        event = next(step for _, _, step in trail(model, how, "none", Request(0, [4], 40, ignore_eos=True)))
        (place,) = [c.position for c in event.committed()]
        assert int(event.canvas.length[0]) == place + 1
        assert not event.remasked()
        rows = decode(model, how[:-1] + ",cut=any)", "none", [Request(0, [4], 40)])
        assert rows[0].tokens == [4], "nothing is left"

    @pytest.mark.parametrize(("cut", "left"), [("ends", 5), ("any", 0)])
    def test_what_the_model_is_about_to_say_is_not_cut_off(self, cut: str, left: int) -> None:
        """Of eight masked positions the first is committed, the fifth predicts a word, the others an end of text."""
        made = registry.policy(f"flexible(threshold(tau=2),high=0.5,look=6,step=7,cut={cut})")
        canvas = Canvas.blank([[4]], [8], SPEC, rooms=[20])
        state = made.init(canvas, Sampling(torch.zeros(1), torch.ones(1), *torch.zeros(2, 1, dtype=torch.long)))
        end = torch.full((1, 21), -torch.inf, dtype=torch.float64)
        end[0, 1:9] = torch.tensor([0.6, 0.6, 0.6, 0.6, 0, 0.6, 0.6, 0.6])
        sure = torch.where(end > -torch.inf, 0.3, end)
        sure[0, 1] = 0.9
        update, _ = made.decide(canvas, Prediction(torch.full((1, 21), 7), sure, end=end), state)
        assert int(canvas.apply(update).length[0]) == 1 + left

    def test_with_dual_lengths_change_where_a_block_begins(self) -> None:
        how = "flexible(threshold(tau=2,block_length=4),max_length=24,low=0.5,high=1,step=3,look=4,growth=const)"
        began, before = [], None
        for state, after, _ in trail(tiny(), how, "dual", Request(0, [4, 5], 8, ignore_eos=True)):
            start = int(state.canvas.block_start(4))
            if (after.canvas.length > state.canvas.length).any():
                began.append(start != before)
            before = start
        assert len(began) > 3 and all(began)

    def test_a_row_that_shrank_and_grew_is_computed_anew(self) -> None:
        """Positions that come back are masked, and no cache knows them."""
        for state, after, event in trail(tiny(), VARIANT, "dual", REQUESTS[0]):
            new = after.canvas.valid & ~state.canvas.valid & ~event.update.write
            assert (after.canvas.tokens[new] == MASK).all()
            assert not (after.cache.plain.store.known & ~after.canvas.valid).any()


def sure_of_the_end():  # type: ignore[no-untyped-def]
    """A model that predicts an end of text at every position."""
    model = tiny()
    network = model.network

    class Sure(type(model)):  # type: ignore[misc]
        def _guided(self, hidden, guidance):  # type: ignore[no-untyped-def]
            logits = super()._guided(hidden, guidance)
            logits[:, EOS] += 30
            return logits

    return Sure(network, model.spec)


def transcribed(
    prompt: list[int], first: int, most: int, size: int, taus: tuple[float, float, float, float], step: int, look: int
) -> tuple[list[int], int]:
    """DAEDAL's rule for one row, greedy, no stop: the text and its forward passes. ``taus``: of commits, of the end at
    which decoding begins and at which nothing is put in, and of unsure positions.
    """
    model, passes = tiny(), 0
    tokens, (tau, begin, enough, low) = prompt + [MASK] * first, taus

    def predicted() -> tuple[list[int], list[float], float]:
        logits = forward(model, tokens).double()
        logits[:, MASK] = -torch.inf
        logits[:, SPEC.limit :] = -torch.inf
        sure, best = logits.softmax(-1).max(-1)
        ends = [p for p in range(len(tokens) - 1, len(prompt) - 1, -1) if int(best[p]) in SPEC.eos][:look]
        return best.tolist(), sure.tolist(), sum(float(sure[p]) for p in ends) / look

    limit = len(prompt) + most
    while len(tokens) < limit:
        passes += 1
        if predicted()[2] >= begin:
            tokens = (tokens + [EOS] * (look // 2))[:limit]
            break
        tokens = (tokens + [MASK] * step)[:limit]
    while MASK in tokens:
        passes += 1
        best, sure, share = predicted()
        start = len(prompt) + (tokens.index(MASK) - len(prompt)) // size * size
        window = [p for p in range(start, min(start + size, len(tokens))) if tokens[p] == MASK]
        chosen = [p for p in window if sure[p] >= tau] or [max(window, key=lambda p: sure[p])]
        unsure = [p for p in window if p not in chosen and sure[p] < low]
        for p in chosen:
            tokens[p] = best[p]
        if share < enough and len(tokens) < limit and unsure:
            at = min(unsure, key=lambda p: sure[p])
            tokens = (tokens[:at] + [MASK] * step + tokens[at + 1 :])[:limit]
    return tokens, passes


class TestDaedal:
    @pytest.mark.parametrize("seed", range(6))
    def test_a_plain_transcription_does_the_same(self, seed: int) -> None:
        draw = random.Random(seed)
        prompt = [draw.randrange(3, 40) for _ in range(draw.choice([1, 4]))]
        first, size, step, look = (
            draw.choice([5, 9]),
            draw.choice([4, 6]),
            draw.choice([2, 3, 5]),
            draw.choice([2, 4, 6]),
        )
        taus = (draw.choice([0.3, 2.0]), draw.choice([0.05, 0.2]), draw.choice([0.2, 0.9]), draw.choice([0.2, 0.9]))
        most = first + draw.choice([4, 9, 14])
        expected, passes = transcribed(prompt, first, most, size, taus, step, look)
        how = (
            f"daedal(threshold(tau={taus[0]},block_length={size}),max_length={most},tau_start={taus[1]},"
            f"tau_end={taus[2]},tau_low={taus[3]},step={step},look={look})"
        )
        row = decode(tiny(), how, "none", [Request(0, prompt, first, ignore_eos=True)])[0]
        assert (row.tokens, row.nfe) == (expected, passes)
        assert len(expected) > len(prompt) + first

    def test_what_stands_behind_moves(self) -> None:
        made = registry.policy("daedal(step=3)")
        canvas = Canvas.blank([[1]], [6], SPEC, rooms=[9])
        tokens = torch.tensor([[1, 5, MASK, 6, MASK, 7, 8, 0, 0, 0]])
        found = made._inserted(canvas, tokens, torch.tensor([2]))  # type: ignore[attr-defined]
        assert found[0, :9].tolist() == [1, 5, MASK, MASK, MASK, 6, MASK, 7, 8]


class TestRefused:
    @pytest.mark.parametrize("name", ["flexible", "daedal"])
    def test_schedules(self, name: str) -> None:
        for inner in ("dream", "rnd1", "vanilla(steps=4)", "threshold(steps=4)", "suffix(policy=pc_sampler(steps=4))"):
            with refuses(SpecError, name, inner):
                registry.policy(f"{name}({inner})")

    @pytest.mark.parametrize("name", ["flexible", "daedal"])
    def test_policies_around_them(self, name: str) -> None:
        for outer in ("suffix", "prophet", "edit", "flexible", "daedal", "adablock"):
            with refuses(SpecError, f"{name}({outer}(...))"):
                registry.policy(f"{outer}({name})")

    @pytest.mark.parametrize("name", ["flexible", "daedal"])
    def test_responses_whose_length_must_be_known(self, name: str) -> None:
        with refuses(RequestError, "fixed", name):
            Request(0, [4], 9, fixed={3: 5}).to(name, "none").check(SPEC)
        with refuses(RequestError, "regex", name):
            Request(0, [4], 9, regex="a+").to(name, "none").check(SPEC)
        with refuses(RequestError, name, 8):
            Request(0, [4], 9).to(name, "none").check(replace(SPEC, block=8))

    @pytest.mark.parametrize(
        "spec", ["flexible(max_length=0)", "flexible(low=2)", "daedal(step=1)", "flexible(growth=odd)"]
    )
    def test_values(self, spec: str) -> None:
        with refuses(SpecError, spec.partition("(")[2].partition("=")[0]):
            registry.policy(spec)


class TestMemory:
    HOW = "flexible(threshold(tau=0.4,block_length=4),max_length=24,low=0.5,high=1,step=3,look=4)"

    def test_a_row_is_budgeted_as_long_as_it_may_become(self) -> None:
        short, long = (Request(0, [4, 5], n).to(self.HOW, "dual") for n in (2, 24))
        plain = Request(0, [4, 5], 24).to("threshold(tau=0.4,block_length=4)", "dual")
        assert state_bytes(tiny(), short) == state_bytes(tiny(), long)
        assert state_bytes(tiny(), plain) <= state_bytes(tiny(), short) < 1.1 * state_bytes(tiny(), plain)
        with refuses(RequestError, "2 + 24"):
            Engine(tiny(), memory=state_bytes(tiny(), short) - 1).check(short)

    def test_growing_takes_no_more_memory(self) -> None:
        """The budget holds two rows; the third waits, and no store moves while rows grow."""
        requests = [Request(i, [4, 5 + i], 2, ignore_eos=True).to(self.HOW, "dual") for i in range(3)]
        budget = 2 * state_bytes(tiny(), requests[0])
        engine, where = Engine(tiny(), memory=budget), set()
        for request in requests:
            engine.add(request)
        while engine.busy:
            engine.step()
            assert engine.running <= 2 and engine.used <= budget
            if engine.running == 2:
                where.add(tuple(slab.address for slab in slabs(engine._groups[0].state)))
        assert len(where) == 1

    def test_the_context_and_the_request_are_bounds_too(self) -> None:
        for spec, most, expected in (
            (SPEC, None, 24),
            (replace(SPEC, context=20), None, 18),
            (SPEC, 7, 7),
            (SPEC, 1, 2),
        ):
            asked = replace(Request(0, [4, 5], 2).to(self.HOW, "none"), most=most)
            assert asked.longest(spec) == expected
        engine = Engine(tiny())
        engine.add(replace(Request(0, [4, 5], 2, ignore_eos=True).to(self.HOW, "none"), most=7))
        while engine.busy:
            found = engine.step()
        assert len(found[-1].tokens) == 7  # type: ignore[union-attr]


class TestUse:
    def test_a_trace_of_growing_responses(self, tmp_path: Path) -> None:
        """The page's rows are as long as they ever were; the result has the length that the last line says."""
        asked = ["generate", "Tom has 3 apples. He buys 4 more, and then 5 more. How many apples does Tom have?"]
        options = ["-p", "flexible(threshold,max_length=64)", "-n", "8", "--json", "--trace", str(tmp_path / "t.jsonl")]
        said = CliRunner().invoke(app, asked + options, prog_name="unmask")
        assert said.exit_code == 0, said.output
        trace = read(tmp_path / "t.jsonl")
        result, (row,) = json.loads(said.stdout), trace.rows.values()
        assert '"size":' in page([trace])
        assert row.begin == 8
        sizes = [f.length for f in row.forwards]
        assert row.gen_length == max(8, *sizes) > 8  # type: ignore[type-var]
        assert len(result["tokens"]) == sizes[-1]
        assert result["finish_reason"] == "eos"

    def test_a_served_response_grows_within_max_tokens(self) -> None:
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 24,
            "unmask": {"policy": "flexible(threshold(tau=0.99))", "stream": "steps"},
        }
        with serving(gen_length=8) as served:
            told = [e["choices"][0] for e in served.events("/v1/chat/completions", body)]
            whole = served.post("/v1/chat/completions", {**body, "ignore_eos": True}).json()
        start, *steps, end = [one["unmask"] for one in told]
        assert start["length"] == 8
        assert 8 < max(one["length"] for one in steps) == steps[-1]["length"] <= 24
        assert all(one["at"] < 24 for step in steps for one in step["committed"])
        assert "".join(one["delta"].get("content", "") for one in told) == "".join(one["text"] for one in end["canvas"])
        assert whole["usage"]["completion_tokens"] <= 24

    def test_max_tokens_is_a_bound_and_the_server_s_length_the_start(self) -> None:
        held = SimpleNamespace(settings=SimpleNamespace(max_tokens=40), gen_length=16)
        for given, length, expected in ((None, 16, (16, 40)), (30, 30, (16, 30)), (9, 9, (9, 9))):
            asked = Request(0, [4, 5], length).to("flexible(max_length=99)", "none")
            (found,) = Planner._begun(held, [asked], given)  # type: ignore[arg-type]
            assert (found.gen_length, found.most) == expected
            assert found.longest(replace(SPEC, context=999)) == expected[1]
        plain = [Request(0, [4, 5], 30).to("threshold", "none")]
        assert Planner._begun(held, plain, 30) == plain  # type: ignore[arg-type]
