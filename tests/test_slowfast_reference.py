"""SlowFast's two ``reference`` presets against plain transcriptions of what the authors' programs do.

The transcriptions below are written for one sequence, with lists and loops, from a reading of the published code for
LLaDA and for Dream. Both sides are fed by the same fake network: its predictions are a function of the number of
positions filled and of where the input ends, so that two decoders see the same numbers exactly as long as they make the
same decisions. ``UNMASK_DRAWS`` sets the number of draws (default 300 each).
"""

from __future__ import annotations

import os
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import unmask
from unmask import registry
from unmask.core.canvas import Canvas, ModelSpec
from unmask.core.protocols import Prediction, Sampling

DRAWS = int(os.environ.get("UNMASK_DRAWS", "300"))
SPEC = ModelSpec(mask=99, eos=(98,), pad=97, vocab=100, limit=100, context=1000)
Pass = tuple[tuple[int, int], ...]  # what a forward pass commits: (position in the response, token)


@dataclass(frozen=True)
class Draw:
    """Random parameters of the authors' programs, and the seed of the fake network."""

    seed: int
    prompt: int
    gen_length: int
    block_length: int
    window: int
    k_max: int
    tau_min: float
    tau_slow: float
    tau_high: float
    sigma: float
    sharp: float

    @staticmethod
    def make(seed: int) -> Draw:
        draw = random.Random(seed)
        size = draw.randint(1, 12)
        return Draw(
            seed,
            prompt=draw.randint(1, 9),
            gen_length=size * draw.randint(1, 5),
            block_length=size,
            window=draw.randint(1, 4),
            k_max=draw.randint(1, 8),
            tau_min=draw.choice((0.1, 0.3, 0.5, 0.8, 0.95)),
            tau_slow=draw.choice((0.5, 0.75, 0.8, 0.9)),
            tau_high=draw.choice((0.5, 0.75, 0.85, 0.9)),
            sigma=draw.choice((0.2, 0.6, 1.0, 1.0, 2.0, 6.0)),
            sharp=draw.choice((0.3, 1.0, 3.0)),
        )

    def network(self, filled: int, end: int) -> list[tuple[float, int]]:
        """Confidence (a multiple of 1/20 or not) and token of every position of the response."""
        draw = random.Random(f"{self.seed} {filled} {end}")
        found = []
        for _ in range(self.gen_length):
            value = draw.random() ** (1 / self.sharp)
            found.append((round(value * 20) / 20 if draw.random() < 0.3 else value, draw.randrange(90)))
        return found


def chosen(text: list[int | None], seen: list[tuple[float, int]], low: int, high: int, tau: float) -> list[int]:
    """The masked positions of [low, high) that reach ``tau`` if they are at least two, else the most confident one."""
    masked = [i for i in range(low, high) if text[i] is None]
    sure = [i for i in masked if seen[i][0] >= tau]
    return sure if len(sure) >= 2 else sorted(masked, key=lambda i: -seen[i][0])[:1]


def fill(text: list[int | None], seen: list[tuple[float, int]], at: list[int]) -> Pass:
    for i in at:
        text[i] = seen[i][1]
    return tuple((i, seen[i][1]) for i in at)


def farthest(text: list[int | None], seen: list[tuple[float, int]], low: int, high: int, tau: float) -> int:
    """One behind the farthest masked position of [low, high) that reaches ``tau``; one behind ``low`` if none does."""
    sure = [i for i in range(low, high) if text[i] is None and seen[i][0] >= tau]
    return max(sure, default=low) + 1


def decode_span(draw: Draw, text: list[int | None], low: int, high: int) -> list[Pass]:
    """The accelerated phase: from the second pass on the input is cut behind the span."""
    passes: list[Pass] = []
    while None in text[low:high]:
        seen = draw.network(len(text) - text.count(None), high if passes else len(text))
        passes.append(fill(text, seen, chosen(text, seen, low, high, draw.tau_high)))
    return passes


def authors_dream(draw: Draw) -> list[Pass]:
    """No blocks; the candidates of a cycle start as zeros, which count in variance and mean from the first pass on."""
    text: list[int | None] = [None] * draw.gen_length
    passes: list[Pass] = []
    start = 0
    while None in text:
        ring, end, settled = [0] * draw.window, 0, False
        for k in range(draw.k_max):
            if None not in text:
                break
            seen = draw.network(len(text) - text.count(None), len(text))
            if not settled:
                candidate = farthest(text, seen, start, len(text), draw.tau_min)
                ring[k % draw.window] = candidate
                spread = statistics.variance(ring) if draw.window > 1 else 0.0
                settled = spread <= draw.sigma**2
                end = candidate if settled else max(1, round(statistics.fmean(ring)))  # halves to even
            passes.append(fill(text, seen, chosen(text, seen, start, len(text), draw.tau_slow)))
        passes += decode_span(draw, text, start, end)
        start = end
    return passes


def authors_llada(draw: Draw) -> list[Pass]:
    """Block by block; a window of candidates that must be full; standard deviation of the population, mean cut off."""
    text: list[int | None] = [None] * draw.gen_length
    passes: list[Pass] = []
    for low in range(0, draw.gen_length, draw.block_length):
        high, start = low + draw.block_length, 0
        while None in text[low:high]:
            recent: list[int] = []
            end, settled = draw.block_length, False
            for _ in range(draw.k_max):
                seen = draw.network(len(text) - text.count(None), len(text))
                if not settled:
                    candidate = min(farthest(text, seen, low + start, high, draw.tau_min) - low, draw.block_length)
                    recent = [*recent, candidate][-draw.window :]
                    if len(recent) == draw.window:
                        settled = statistics.pstdev(recent) < draw.sigma
                        end = candidate if settled else int(statistics.fmean(recent))
                if None in text[low + start : high]:
                    passes.append(fill(text, seen, chosen(text, seen, low + start, high, draw.tau_high)))
            if not settled:
                end = int(statistics.fmean(recent))
            passes += decode_span(draw, text, low + start, low + end)
            start = end
    return passes


def ours(draw: Draw, spec: str) -> list[Pass]:
    """The policy without an engine: one sequence, the fake network in place of the model."""
    policy = registry.policy(spec)
    canvas = Canvas.blank([[1] * draw.prompt], [draw.gen_length], SPEC, eos_stop=False)
    one = torch.ones(1)
    state = policy.init(canvas, Sampling(0 * one.double(), one, 0 * one.long(), 0 * one.long()))
    passes: list[Pass] = []
    while not bool(canvas.done):
        ask = policy.ask(canvas, state)
        end = draw.gen_length if ask.visible is None else int(ask.visible.sum()) - draw.prompt
        seen = draw.network(draw.gen_length - int(canvas.masked.sum()), end)
        confidence = torch.full(canvas.tokens.shape, -torch.inf, dtype=torch.float64)
        token = torch.zeros_like(canvas.tokens)
        confidence[0, draw.prompt :] = torch.tensor([c for c, _ in seen], dtype=torch.float64)
        token[0, draw.prompt :] = torch.tensor([t for _, t in seen])
        confidence = torch.where(ask.window & canvas.masked, confidence, -torch.inf)
        update, state = policy.decide(canvas, Prediction(token, confidence), state)
        at = update.write[0].nonzero()[:, 0].tolist()
        passes.append(tuple((i - draw.prompt, int(update.token[0, i])) for i in at))
        canvas = canvas.apply(update)
    return passes


def same(want: list[Pass], got: list[Pass]) -> bool:
    return [tuple(sorted(p)) for p in want] == [tuple(sorted(p)) for p in got]


@pytest.mark.parametrize("part", range(10))
def test_dream_preset_is_the_authors_program_for_dream(part: int) -> None:
    for seed in range(part, DRAWS, 10):
        draw = Draw.make(seed)
        spec = (
            f"slowfast(preset=reference_dream,k_max={draw.k_max},window={draw.window},tau_min={draw.tau_min},"
            f"tau_slow={draw.tau_slow},tau_high={draw.tau_high},sigma2={draw.sigma**2!r})"
        )
        assert same(authors_dream(draw), ours(draw, spec)), draw


@pytest.mark.parametrize("part", range(10))
def test_llada_preset_is_the_authors_program_for_llada(part: int) -> None:
    for seed in range(part, DRAWS, 10):
        draw = Draw.make(seed)
        spec = (
            f"slowfast(preset=reference,k_max={draw.k_max},window={draw.window},tau_min={draw.tau_min},"
            f"tau_high={draw.tau_high},sigma2={draw.sigma**2!r},block_length={draw.block_length})"
        )
        assert same(authors_llada(draw), ours(draw, spec)), draw


def test_first_candidate_one_settles_the_span_beside_a_zero() -> None:
    """The case of ``dream-rand`` in which the third pass is the next cycle's first: 21 passes in all."""
    lm = unmask.load(Path(__file__).parent / "golden" / "checkpoints" / "dream-rand", device="cpu", dtype="float32")
    how = "slowfast(preset=reference_dream,k_max=2,window=2,tau_min=.8,tau_slow=.75,tau_high=.85)"
    (result,) = lm.generate([5, 86, 83], 40, policy=how)
    assert result.stats.nfe == 21
    assert [(i + 3, result.tokens[i]) for i, step in enumerate(result.steps) if step == 2] == [
        (6, 69),
        (12, 69),
        (18, 69),
    ]
