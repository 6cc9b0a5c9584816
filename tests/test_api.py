"""The Python interface: prompts in any form, results in order, statistics that add up, the same text in any batch."""

from __future__ import annotations

import dataclasses
import inspect
import types

import numpy as np
import pytest
import torch

import unmask
from llada_folder import BOS, CONFIG, EOS, EOT, MASK, TOKENS, stubborn, weights, write

POLICIES = [
    "vanilla",
    "vanilla(steps=8,block_length=none)",
    "threshold(tau=0.5,block_length=6)",
    "slowfast(tau_min=0.2,tau_high=0.5)",
    "slowfast(preset=reference,tau_high=0.6,k_max=3)",
]
CACHES = ["none", "dual", "dllm(kp=5,kr=2,rho=0.5)", "every(prefix,3)"]
PROMPTS = [
    "hello",
    "a longer prompt, with more in it",
    [BOS, 7, 8],
    [{"role": "user", "content": "talk"}],
    "x",
    [1] * 9,
]
LENGTHS = [12, 5, 17, 1, 24, 8]
SEEDS = [4, 4, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random, fairly sure of itself, and with the end of text among the likelier ids."""
    tensors = weights(CONFIG)
    head = tensors["model.transformer.ff_out.weight"]
    head *= 2
    head[EOS] *= 2.5
    return unmask.load(write(tmp_path_factory.mktemp("api"), tensors=tensors), dtype="float32")


def ids_of(model, prompt):
    return model.text.encode(prompt)


class TestPrompts:
    def test_a_string(self, model):
        (result,) = model.generate("hello", gen_length=6)
        assert result.prompt_tokens == ids_of(model, "hello")
        assert isinstance(result.text, str)
        assert len(result.tokens) == len(result.steps) == 6

    def test_many_of_any_kind_in_order(self, model):
        results = model.generate(PROMPTS, gen_length=LENGTHS)
        assert [len(r.tokens) for r in results] == LENGTHS
        expected = [p if isinstance(p, list) and isinstance(p[0], int) else ids_of(model, p) for p in PROMPTS]
        assert [r.prompt_tokens for r in results] == expected

    @pytest.mark.parametrize(
        "ids",
        [
            [5, 6, 7],
            (5, 6, 7),
            range(5, 8),
            np.array([5, 6, 7]),
            torch.tensor([5, 6, 7]),
            [np.int64(5), 6, np.int32(7)],
        ],
    )
    def test_ids(self, model, ids):
        one = model.generate(ids, gen_length=4)
        assert [r.prompt_tokens for r in one] == [[5, 6, 7]]
        two = model.generate([ids, [9]], gen_length=4)
        assert [r.prompt_tokens for r in two] == [[5, 6, 7], [9]]

    def test_a_table_of_ids(self, model):
        table = torch.tensor([[5, 6], [7, 8]])
        for prompts in (table, table.numpy(), table.tolist()):
            assert [r.prompt_tokens for r in model.generate(prompts, gen_length=3)] == [[5, 6], [7, 8]]

    def test_a_conversation(self, model):
        talk = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "?"},
        ]
        (one,), (two, three) = model.generate(talk, gen_length=4), model.generate([talk, talk[:1]], gen_length=4)
        assert one.tokens == two.tokens
        assert one.prompt_tokens == two.prompt_tokens == ids_of(model, talk)
        assert three.prompt_tokens == ids_of(model, talk[:1])

    def test_chat(self, model):
        (raw,) = model.generate("hello", gen_length=4, chat=False)
        assert raw.prompt_tokens == model.text.encode("hello", False) != ids_of(model, "hello")

    def test_nothing_given_is_changed(self, model):
        prompts, lengths = [[5, 6], [7]], [3, 4]
        model.generate(prompts, gen_length=lengths, seed=lengths)
        assert (prompts, lengths) == ([[5, 6], [7]], [3, 4])


class TestResults:
    @pytest.mark.parametrize("cache", CACHES)
    @pytest.mark.parametrize("policy", POLICIES)
    def test_they_add_up(self, model, policy, cache):
        results = model.generate(PROMPTS, LENGTHS, policy, cache, ignore_eos=False)
        for result, length in zip(results, LENGTHS, strict=True):
            tokens, stats = result.tokens, result.stats
            ends = [i for i, t in enumerate(tokens) if t in (EOS, EOT)]
            assert stats.tokens == (ends[0] if ends else length)
            assert result.text == model.text.decode(tokens[: stats.tokens])
            assert all(t < TOKENS and t != MASK for t in tokens)
            assert 1 <= stats.nfe <= 4 * length + 16
            assert stats.tpf == stats.tokens / stats.nfe
            assert stats.positions > 0
            assert stats.seconds > 0
            assert stats.tokens_per_second == pytest.approx(stats.tokens / stats.seconds)
            assert max(result.steps) == stats.nfe - 1
            assert all(-1 <= s < stats.nfe for s in result.steps)
            never = [i for i, s in enumerate(result.steps) if s == -1]
            assert all(ends and i > ends[0] and tokens[i] == EOS for i in never)

    def test_without_a_cache_every_position_is_computed_every_time(self, model):
        for result in model.generate(PROMPTS, LENGTHS, "vanilla", "none", ignore_eos=True):
            assert result.stats.positions == result.stats.nfe * (len(result.prompt_tokens) + len(result.tokens))

    def test_steps_say_which_forward_committed(self, model):
        (single,) = model.generate("hello", 10, "vanilla(block_length=none)", ignore_eos=True)
        assert sorted(single.steps) == list(range(10))
        (blocks,) = model.generate("hello", 10, "vanilla(block_length=5)", ignore_eos=True)
        assert sorted(blocks.steps[:5]) == [0, 1, 2, 3, 4]
        (pairs,) = model.generate("hello", 10, "vanilla(steps=5,block_length=none)", ignore_eos=True)
        assert sorted(pairs.steps) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        (all_,) = model.generate("hello", 10, "threshold(tau=0)", ignore_eos=True)
        assert all_.steps == [0] * 10
        assert all_.stats.nfe == 1

    def test_vanilla_takes_one_forward_per_token(self, model):
        for result in model.generate(PROMPTS, LENGTHS, "vanilla", ignore_eos=True):
            assert result.stats.nfe == len(result.tokens)


class TestEndOfText:
    @pytest.fixture
    def early(self, tmp_path):
        """A model that always wants the end of text most."""
        return unmask.load(write(tmp_path, tensors=stubborn(CONFIG, {EOT: 9.0, 65: 8.0})), dtype="float32")

    def test_stop(self, early):
        (result,) = early.generate("hello", 10, "vanilla(block_length=5)")
        assert result.stats.nfe == 1
        assert result.tokens == [EOT] + [EOS] * 9
        assert result.steps == [0] + [-1] * 9
        assert (result.text, result.stats.tokens, result.stats.tpf, result.stats.tokens_per_second) == ("", 0, 0, 0)

    def test_go_on(self, early):
        (result,) = early.generate("hello", 10, "vanilla(block_length=5)", ignore_eos=True)
        assert result.stats.nfe == 10
        assert result.tokens == [EOT] * 10
        assert -1 not in result.steps
        assert (result.text, result.stats.tokens) == ("", 0)

    @pytest.mark.parametrize("policy", POLICIES)
    def test_what_comes_before_the_end_is_the_same(self, model, policy):
        prompts = [[i, 2 * i] for i in range(24)]
        stopped = model.generate(prompts, 16, policy)
        filled = model.generate(prompts, 16, policy, ignore_eos=True)
        assert any(-1 in r.steps for r in stopped)
        for a, b in zip(stopped, filled, strict=True):
            assert a.text == b.text
            assert a.stats.tokens == b.stats.tokens
            assert a.stats.nfe <= b.stats.nfe
            assert all(s == t for s, t in zip(a.steps, b.steps, strict=True) if s >= 0)
            assert MASK not in b.tokens


class TestAnyBatch:
    @pytest.mark.parametrize("cache", CACHES)
    @pytest.mark.parametrize("policy", POLICIES)
    def test_greedy(self, model, policy, cache):
        alone = model.generate(PROMPTS, LENGTHS, policy, cache, batch_size=1)
        for size in (2, 8):
            together = model.generate(PROMPTS, LENGTHS, policy, cache, batch_size=size)
            assert [plain(r) for r in together] == [plain(r) for r in alone]

    def test_sampled(self, model):
        options = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "policy": "threshold(tau=0.6)"}
        alone = [model.generate(p, n, seed=s, **options)[0] for p, n, s in zip(PROMPTS, LENGTHS, SEEDS, strict=True)]
        for size in (1, 3, 8):
            together = model.generate(PROMPTS, LENGTHS, seed=SEEDS, batch_size=size, **options)
            assert [plain(r) for r in together] == [plain(r) for r in alone]

    def test_the_order_of_the_prompts_does_not_matter(self, model):
        forward = model.generate(PROMPTS, LENGTHS, batch_size=2)
        backward = model.generate(PROMPTS[::-1], LENGTHS[::-1], batch_size=2)
        assert [plain(r) for r in backward[::-1]] == [plain(r) for r in forward]


def plain(result):
    return result.text, result.tokens, result.steps, result.stats.nfe, result.stats.tokens


class TestSeeds:
    OPTIONS = types.MappingProxyType({"gen_length": 16, "temperature": 1.0, "policy": "vanilla", "ignore_eos": True})

    def tokens(self, model, prompts, seed):
        return [r.tokens for r in model.generate(prompts, seed=seed, **self.OPTIONS)]

    def test_one_number_is_that_of_the_first_prompt(self, model):
        one = self.tokens(model, ["a", "b", "a"], 3)
        assert one == self.tokens(model, ["a", "b", "a"], [3, 4, 5])
        assert one[0] != one[2]

    def test_a_fresh_one_for_each_call_unless_one_is_given(self, model):
        calls = [model.generate(["a"] * 2, **self.OPTIONS) for _ in range(2)]
        assert len({tuple(r.tokens) for call in calls for r in call}) == 4
        for one, result in zip(calls[0], self.tokens(model, ["a"] * 2, calls[0][0].seed), strict=True):
            assert one.tokens == result

    def test_each_its_own(self, model):
        found = self.tokens(model, ["a"] * 4, [1, 2, 1, -5])
        assert found[0] == found[2]
        assert len({tuple(f) for f in found}) == 3
        assert self.tokens(model, "a", 2) == [found[1]]
        assert self.tokens(model, ["a"], np.array([2])) == [found[1]]

    def test_the_same_again(self, model):
        assert self.tokens(model, "a", 9) == self.tokens(model, "a", 9)

    def test_greedy_decoding_does_not_look_at_it(self, model):
        options = {**self.OPTIONS, "temperature": 0.0}
        assert len({tuple(model.generate("a", seed=s, **options)[0].tokens) for s in range(4)}) == 1

    @pytest.mark.parametrize("temperature", [1e-6, 1e-300, 5e-324])
    def test_near_zero_temperature_is_greedy(self, model, temperature):
        cold = model.generate("a", **{**self.OPTIONS, "temperature": temperature})
        assert [r.tokens for r in cold] == [r.tokens for r in model.generate("a", **{**self.OPTIONS, "temperature": 0})]

    def test_filters_of_one_token_are_greedy(self, model):
        options = {**self.OPTIONS, "gen_length": 1}
        (greedy,) = model.generate("a", **(options | {"temperature": 0.0}))
        for narrow in ({"top_k": 1}, {"top_p": 1e-9}):
            found = model.generate(["a"] * 5, seed=range(5), **options, **narrow)
            assert [r.tokens for r in found] == [greedy.tokens] * 5


class TestStream:
    @pytest.mark.parametrize("cache", CACHES)
    @pytest.mark.parametrize("policy", POLICIES)
    def test_steps_rebuild_the_results(self, model, policy, cache):
        expected = model.generate(PROMPTS, LENGTHS, policy, cache, batch_size=3)
        written = [{} for _ in PROMPTS]
        when = [{} for _ in PROMPTS]
        work, forwards, finished = [0.0] * len(PROMPTS), [0] * len(PROMPTS), []
        for index, step in enumerate(model.stream(PROMPTS, LENGTHS, policy, cache, batch_size=3)):
            assert isinstance(step, unmask.Step)
            assert step.index == index
            assert step.seconds >= step.model_seconds > 0
            assert 1 <= len(step.rows) <= 3
            place = {row: i for i, row in enumerate(step.rows)}
            for commit in step.committed():
                assert isinstance(commit, unmask.Commit)
                assert 0 < commit.confidence <= 1
                assert commit.position not in written[commit.row]
                written[commit.row][commit.position] = commit.token
                when[commit.row][commit.position] = int(step.forward[place[commit.row]])
                assert int(step.canvas.tokens[place[commit.row], commit.position]) == commit.token
            for row, i in place.items():
                assert int(step.forward[i]) == forwards[row]
                forwards[row] += 1
                work[row] += float(step.work[i])
            assert step.remasked() == []
            finished += step.finished
        assert sorted(finished) == list(range(len(PROMPTS)))
        for row, result in enumerate(expected):
            at = len(result.prompt_tokens)
            assert [written[row].get(at + i, EOS) for i in range(len(result.tokens))] == result.tokens
            assert [when[row].get(at + i, -1) for i in range(len(result.tokens))] == result.steps
            assert forwards[row] == result.stats.nfe
            assert work[row] == pytest.approx(result.stats.positions)

    def test_it_happens_as_it_is_asked_for(self, model):
        steps = model.stream("hello", 10, "vanilla", ignore_eos=True, temperature=0.5, seed=3)
        assert isinstance(steps, types.GeneratorType)
        first = next(steps)
        assert len(first.committed()) == 1
        steps.close()
        assert len(list(model.stream("hello", 10, "vanilla", ignore_eos=True))) == 10

    def test_sampling_options_are_those_of_generate(self, model):
        options = {"temperature": 0.9, "top_p": 0.9, "top_k": 30, "seed": 11, "ignore_eos": True, "chat": False}
        (result,) = model.generate("hello", 12, "vanilla", **options)
        commits = [c for s in model.stream("hello", 12, "vanilla", **options) for c in s.committed()]
        at = len(result.prompt_tokens)
        assert [c.token for c in sorted(commits, key=lambda c: c.position)] == result.tokens
        assert min(c.position for c in commits) == at


class TestPublic:
    def test_every_public_name_is_there_and_documented(self):
        for name in unmask.__all__:
            thing = getattr(unmask, name)
            assert inspect.getdoc(thing), name
        assert set(unmask.__all__) >= {"load", "Model", "Result", "Stats", "Step", "Commit", "UnmaskError"}

    def test_every_field_is_documented(self):
        for cls in (unmask.Result, unmask.Stats, unmask.Step, unmask.Commit):
            for field in dataclasses.fields(cls):
                assert field.name in cls.__doc__, f"{cls.__name__}.{field.name}"

    def test_every_parameter_is_documented(self):
        for function in (unmask.load, unmask.Model.generate):
            for name in inspect.signature(function).parameters:
                assert name == "self" or name in function.__doc__, f"{function.__name__}: {name}"

    def test_results_cannot_be_changed(self, model):
        (result,) = model.generate("x", 2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.text = "other"

    def test_the_random_generator_is_left_alone(self, model):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        model.generate("x", 8, temperature=1.0, seed=5)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.is_grad_enabled()
