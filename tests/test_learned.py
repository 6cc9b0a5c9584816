"""The learned policies: their weights, what their networks compute, and what is committed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import SPEC, Request, decode, tiny
from refusals import refuses
from unmask import ModelError, SpecError, registry
from unmask.core import nets
from unmask.core.canvas import Canvas
from unmask.core.predict import uniform
from unmask.core.protocols import Prediction, Sampling
from unmask.policies.learn2pd import Learn2pd
from unmask.policies.learned import HEADS, Learned, LearnedState

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9, seed=3), Request(2, [9, 8, 7, 6], 14)]
BOTH = ["learn2pd", "learned"]


def shipped(name: str) -> dict[str, torch.Tensor]:
    return load_file(nets.BUNDLED / f"{name}.safetensors")


def written(tmp_path: Path, weights: dict[str, torch.Tensor]) -> str:
    save_file({name: w.contiguous() for name, w in weights.items()}, tmp_path / "other.safetensors")
    return str(tmp_path / "other.safetensors")


def sampling(rows: int) -> Sampling:
    zero = torch.zeros(rows, dtype=torch.long)
    return Sampling(zero.double(), zero.double() + 1, zero, torch.arange(rows))


def scene() -> tuple[Canvas, torch.Tensor]:
    """Ragged rows some of which are partly filled, and confidences of the current blocks of 5."""
    canvas = Canvas.blank([[1, 2], [3], [4, 5, 6]], [9, 3, 13], SPEC, eos_stop=False)
    tokens = canvas.tokens.clone()
    tokens[0, 2:8] = 7  # the second block, of four
    tokens[2, 4] = 7
    canvas = replace(canvas, tokens=tokens)
    confidence = uniform(torch.arange(3), torch.zeros(3).long(), torch.zeros(3).long(), tokens.shape[1])
    return canvas, torch.where(canvas.block(5) & canvas.masked, confidence, -torch.inf)


def test_what_ships() -> None:
    assert sum(w.numel() for w in shipped("learn2pd").values()) == 2112
    assert (nets.BUNDLED / "learn2pd.safetensors").stat().st_size < 16 << 10
    assert (nets.BUNDLED / "learned.safetensors").stat().st_size < 1 << 20
    assert shipped("learned")["query.weight"].shape == (128, 128)
    for name in BOTH:
        assert registry.policy(f'{name}(weights="{nets.BUNDLED / name}.safetensors")').check([1], 4, SPEC) is None


@pytest.mark.parametrize("name", BOTH)
def test_bad_weights_are_refused(name: str, tmp_path: Path) -> None:
    good = shipped(name)
    first = next(iter(good))
    (tmp_path / "text").write_text("no weights")
    cases = {
        str(tmp_path / "absent.safetensors"): str(tmp_path / "absent.safetensors"),
        str(tmp_path): str(tmp_path),
        str(tmp_path / "text"): str(tmp_path / "text"),
    }
    for i, (weights, named) in enumerate(
        [
            ({k: w for k, w in good.items() if k != first}, first),
            ({**good, "zzz": torch.ones(2)}, "zzz"),
            ({**good, first: torch.cat([good[first], good[first]])}, first),
            ({**good, first: good[first][None]}, first),
        ]
    ):
        (tmp_path / str(i)).mkdir()
        cases[written(tmp_path / str(i), weights)] = named
    for path, named in cases.items():
        with refuses(ModelError, named) as caught:
            registry.policy(f'{name}(weights="{path}")').check([1], 4, SPEC)
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with refuses(ModelError, "block_length", 32, 33):
        Learn2pd(block_length=33).check([1], 4, SPEC)
    cut = {n: w[..., :126] if n == "embed.weight" else w for n, w in shipped("learned").items()}
    narrow = {n: w[tuple(slice(0, 6 if s == 128 else s) for s in w.shape)] for n, w in cut.items()}
    with refuses(ModelError, "width", 4, 6):
        Learned(weights=written(tmp_path, narrow)).check([1], 4, SPEC)
    for spec in ("learn2pd(tau=3)", "learn2pd(block_length=none)", "learned(temperature=0)", "learned(sample=1)"):
        with pytest.raises(SpecError):
            registry.policy(spec)


def test_places_are_the_block() -> None:
    canvas, _ = scene()
    for size in (None, 1, 5, 40):
        place = canvas.places(size)
        spread = torch.zeros(3, canvas.tokens.shape[1] + 1, dtype=torch.bool).scatter(1, place, True)[:, :-1]
        assert torch.equal(spread, canvas.block(size))
        assert (place.diff(dim=1) >= 0).all()
        assert torch.equal(
            nets.take(nets.put(place.double(), place, canvas.tokens.shape[1]), place, -1.0),
            torch.where(place < canvas.tokens.shape[1], place, -1).double(),
        )


def test_the_filter_position_by_position() -> None:
    canvas, confidence = scene()
    place, w = canvas.places(5), {n: v.double() for n, v in shipped("learn2pd").items()}
    got = Learn2pd.final(w, Learn2pd.inputs(confidence, place))
    for row in range(3):
        start, end = int(canvas.block_start(5)[row]), int(canvas.length[row])
        seen = torch.zeros(32, dtype=torch.float64)
        for i in range(5):
            if start + i < end:
                value = float(confidence[row, start + i])
                seen[i] = 1.0 if value == -math.inf else value
        hidden = [max(0.0, float(w["hidden.bias"][h] + w["hidden.weight"][h] @ seen)) for h in range(32)]
        for i in range(5):
            expected = float(w["out.bias"][i]) + sum(float(w["out.weight"][i, h]) * hidden[h] for h in range(32))
            assert float(got[row, i]) == pytest.approx(expected, abs=1e-9)


def network_of_a_row(w: dict[str, torch.Tensor], seen: torch.Tensor) -> list[float]:
    """The learned policy's log-odds for ``seen [Q, 3]``, one head and one query at a time."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    line, size = [linear("embed", x) for x in seen], 128 // HEADS
    turn = 10000.0 ** (-torch.arange(size // 2).double() / (size // 2))

    def wheel(name: str, j: int, head: int) -> torch.Tensor:
        """Rotations as complex numbers."""
        y = linear(name, norm("norm1", line[j]))[head * size : (head + 1) * size]
        return torch.complex(y[: size // 2], y[size // 2 :]) * torch.polar(torch.ones_like(turn), turn * j)

    found = []
    for i, old in enumerate(line):
        out = []
        for head in range(HEADS):
            query, part = wheel("query", i, head), slice(head * size, (head + 1) * size)
            score = [(query * wheel("key", j, head).conj()).real.sum() / size**0.5 for j in range(len(line))]
            share = torch.stack(score).softmax(0)
            out.append(sum(s * linear("value", norm("norm1", y))[part] for s, y in zip(share, line, strict=True)))
        x = old + linear("attention", torch.cat(out))
        up = linear("up", norm("norm2", x))
        x = x + linear("down", up * 0.5 * (1 + torch.erf(up / 2**0.5)))
        found.append(float(linear("head", norm("norm3", x))))
    return found


def test_the_network_row_by_row() -> None:
    """Each row alone, without padding."""
    canvas, confidence = scene()
    place, weights = canvas.places(5), {n: v.double() for n, v in shipped("learned").items()}
    state = LearnedState(torch.zeros(3).long(), torch.tensor([4, 0, 2]))
    got = Learned.odds(weights, *Learned.inputs(canvas, confidence, place, state))
    for row in range(3):
        start, end, seen = int(canvas.block_start(5)[row]), int(canvas.length[row]), []
        for at in range(start, min(start + 5, end)):
            mask = bool(confidence[row, at] > -torch.inf)
            time = float(state.count[row]) / (end - int(canvas.prompt[row]))
            seen.append([float(confidence[row, at]) if mask else 1.0, float(mask), time])
        expected = network_of_a_row(weights, torch.tensor(seen, dtype=torch.float64))
        assert got[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shift", [False, True])
def test_a_filter_that_finds_nothing_final_is_vanilla(shift: bool, tmp_path: Path) -> None:
    never = {**shipped("learn2pd"), "out.bias": torch.full((32,), -1e9)}
    for spec in ("learn2pd(tau=2,block_length=5)", f'learn2pd(block_length=5,weights="{written(tmp_path, never)}")'):
        plain = decode(tiny(shift), "vanilla(block_length=5)", "none", REQUESTS)
        assert {r: row.commits for r, row in decode(tiny(shift), spec, "none", REQUESTS).items()} == {
            r: row.commits for r, row in plain.items()
        }


def test_a_filter_that_takes_all_fills_a_block_at_once() -> None:
    assert decode(tiny(), "learn2pd(tau=0,block_length=5)", "none", REQUESTS)[0].nfe == 3


def test_nothing_drawn_commits_the_likeliest(tmp_path: Path) -> None:
    """The network's best position, not the model's."""
    weights = {n: w.float() for n, w in shipped("learned").items()}
    weights["head.bias"] = weights["head.bias"] - 1e4
    path, (canvas, confidence) = written(tmp_path, weights), scene()
    answer = Prediction(torch.ones_like(canvas.tokens), confidence)
    for sample in (True, False):
        policy = Learned(sample=sample, block_length=5, weights=path)
        state = policy.init(canvas, sampling(3))
        update, after = policy.decide(canvas, answer, state)
        place = canvas.places(5)
        odds = policy.odds(policy.network(canvas.tokens.device), *policy.inputs(canvas, confidence, place, state))
        for row in range(3):
            open_ = {
                int(p): float(o)
                for p, o in zip(place[row], odds[row], strict=True)
                if p < 16 and confidence[row, p] > 0
            }
            assert update.write[row].nonzero()[:, 0].tolist() == [max(open_, key=open_.__getitem__)]
        assert after.count.tolist() == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_draws_are_noise_of_seed_and_step_alone(temperature: float, tmp_path: Path) -> None:
    """With a network that gives every position the odds 1 : 3."""
    weights = {n: torch.zeros_like(w) for n, w in shipped("learned").items()}
    weights["head.bias"] = torch.full((1,), -math.log(3.0), dtype=torch.float32)
    policy = Learned(temperature=temperature, block_length=None, weights=written(tmp_path, weights))
    canvas = Canvas.blank([[1]] * 400, [20] * 400, SPEC)
    answer = Prediction(torch.ones_like(canvas.tokens), torch.where(canvas.masked, 0.5, -torch.inf).double())
    state, chance = policy.init(canvas, sampling(400)), 1 / (1 + 3 ** (1 / temperature))
    for step in range(2):
        update, state = policy.decide(canvas, answer, state)
        noise = uniform(torch.arange(400), torch.full((400,), -2), torch.full((400,), step), 21)
        expected = (noise < chance)[:, 1:]
        expected[~expected.any(1), 0] = True  # the first of equals
        assert torch.equal(update.write[:, 1:], expected)
        assert float(update.write[:, 1:].double().mean()) == pytest.approx(chance, abs=0.03)
    greedy, _ = Learned(sample=False, block_length=None, weights=policy.weights).decide(canvas, answer, state)
    assert torch.equal(greedy.write.nonzero()[:, 1], torch.ones(400).long())
