"""From logits to tokens: against float64 and naive versions, and against the distribution a model defines."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from helpers import ARCH, LIMIT, MASK, SPEC, Request, forward, run, tiny
from unmask import registry
from unmask.core.canvas import Canvas, ModelSpec
from unmask.core.predict import _filter, entropy, forbid, gumbel, likeliest, margin, read, uniform
from unmask.core.protocols import Ask, Sampling
from unmask.models import denoiser as denoiser_module
from unmask.models.denoiser import Denoiser
from unmask.models.transformer import Architecture, Transformer

values = st.floats(-30, 30, width=32)


def logit_tables(width: int = 6) -> st.SearchStrategy[list[list[float]]]:
    return st.lists(st.lists(values, min_size=width, max_size=width), min_size=1, max_size=4)


# --- greedy ---------------------------------------------------------------------------------------------------


@given(logit_tables(), st.sampled_from([torch.float32, torch.float64]))
def test_likeliest_is_the_float64_softmax(table: list[list[float]], dtype: torch.dtype) -> None:
    logits = torch.tensor(table, dtype=dtype)
    token, confidence = likeliest(logits.clone())
    assert confidence.dtype == torch.float64
    exact = logits.double().softmax(-1)
    assert torch.equal(token, logits.argmax(-1))
    assert torch.allclose(confidence, exact.gather(-1, token[:, None])[:, 0], rtol=1e-6)


def test_likeliest_leaves_its_logits_alone_and_takes_minus_infinity() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 3.0, -torch.inf], [-torch.inf, 5.0, -torch.inf, -torch.inf]])
    before = logits.clone()
    token, confidence = likeliest(logits)
    assert torch.equal(logits, before)
    assert token.tolist() == [2, 1]
    assert confidence.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1.0])


def test_sure_positions_keep_their_order() -> None:
    """Where a float32 softmax says 1, and even where a float64 one does."""
    gaps = torch.tensor([18.0, 20.0, 25.0, 30.0])
    logits = torch.stack([torch.zeros(4), gaps, torch.zeros(4)], 1)
    _, confidence = likeliest(logits)
    assert (logits.softmax(-1).amax(-1) == 1).all()
    assert confidence.diff().gt(0).all()
    assert (confidence < 1).all()


def test_forbidden_ids_are_never_read() -> None:
    spec = ModelSpec(mask=2, eos=(1,), pad=1, vocab=6, limit=5, context=8)
    logits = torch.zeros(1, 6)
    logits[0, [2, 5]] = 50.0
    assert forbid(logits, spec) is logits
    assert logits[0].isinf().nonzero()[:, 0].tolist() == [2, 5]
    assert likeliest(logits)[1].item() == pytest.approx(0.25)


@given(logit_tables())
def test_entropy(table: list[list[float]]) -> None:
    logits = torch.tensor(table, dtype=torch.float64)
    logits[:, 0] = -torch.inf
    found = entropy(logits)
    for line, value in zip(logits, found, strict=True):
        p = [float(x) for x in line.softmax(-1)]
        assert float(value) == pytest.approx(-sum(x * math.log(x) for x in p if x > 0), abs=1e-9)
    assert entropy(torch.tensor([[-torch.inf, 3.0]])).item() == 0


# --- filters --------------------------------------------------------------------------------------------------


def naive_filter(line: list[float], top_k: int, top_p: float) -> set[int]:
    """Ids that stay: the k best, then the fewest of these whose probabilities reach p."""
    order = sorted(range(len(line)), key=lambda i: (-line[i], i))
    order = order[:top_k] if top_k else order
    weights = [math.exp(line[i] - line[order[0]]) for i in order]
    kept, mass = [], 0.0
    for i, weight in zip(order, weights, strict=True):
        if kept and top_p < 1 and mass >= top_p * sum(weights) * (1 - 1e-12):
            break
        kept.append(i)
        mass += weight
    return set(kept)


@given(
    st.lists(
        st.tuples(st.permutations([-4.0, -1.5, 0.0, 0.7, 1.9, 3.2]), st.integers(0, 7), st.floats(0.01, 1)),
        min_size=1,
        max_size=5,
    )
)
def test_filters_are_the_naive_ones(rows: list[tuple[list[float], int, float]]) -> None:
    """Every row with its own k and p, whatever the others have."""
    lines, top_k, top_p = (list(part) for part in zip(*rows, strict=True))
    kept = _filter(torch.tensor(lines, dtype=torch.float64), torch.tensor(top_k), torch.tensor(top_p).double())
    for i, line in enumerate(lines):
        assert set(kept[i].isfinite().nonzero()[:, 0].tolist()) == naive_filter(line, top_k[i], top_p[i])
        stays = kept[i].isfinite()
        assert torch.equal(kept[i][stays], torch.tensor(line, dtype=torch.float64)[stays])


# --- noise ----------------------------------------------------------------------------------------------------

ids = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(ids, st.integers(-5, 10**6), st.integers(0, 10**6)), min_size=1, max_size=5), st.randoms())
def test_noise_is_a_function_of_its_counters(lines: list[tuple[int, int, int]], shuffle: object) -> None:
    """In (0, 1), whatever the order, the batch and the width."""
    columns = [torch.tensor(part) for part in zip(*lines, strict=True)]
    noise = uniform(*columns, 7)
    assert noise.dtype == torch.float64
    assert ((noise > 0) & (noise < 1)).all()
    order = list(range(len(lines)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    assert torch.equal(uniform(*(c[order] for c in columns), 7), noise[order])
    assert torch.equal(uniform(*(c[:1] for c in columns), 3), noise[:1, :3])
    assert torch.equal(gumbel(*columns, 7), -(-noise.log()).log())
    assert gumbel(*columns, 7).isfinite().all()


def test_noise_is_uniform_and_uncorrelated() -> None:
    """Over columns, positions, steps and seeds, all of which are counted up by one in practice."""
    n = 4096
    count, zero = torch.arange(n), torch.zeros(n, dtype=torch.long)
    samples = {
        "column": uniform(zero[:1], zero[:1], zero[:1], n)[0],
        "position": uniform(zero, count, zero, 1)[:, 0],
        "step": uniform(zero, zero, count, 1)[:, 0],
        "seed": uniform(count, zero, zero, 1)[:, 0],
    }
    for name, noise in samples.items():
        share = torch.histc(noise, 16, 0, 1)
        assert float(((share - n / 16) ** 2 / (n / 16)).sum()) < 40, name  # chi-square, 15 degrees of freedom
        for lag in (1, 2, 3):
            assert abs(float(torch.corrcoef(torch.stack([noise[lag:], noise[:-lag]]))[0, 1])) < 0.06, name
    together = torch.corrcoef(torch.stack(list(samples.values()))) - torch.eye(4)
    assert together.abs().max() < 0.06


# --- sampling -------------------------------------------------------------------------------------------------


def sampling(rows: list[tuple[float, float, int, int]]) -> Sampling:
    temperature, top_p, top_k, seed = (list(part) for part in zip(*rows, strict=True))
    return Sampling(
        torch.tensor(temperature, dtype=torch.float64),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(top_k),
        torch.tensor(seed),
    )


@given(logit_tables(), st.integers(0, 99))
def test_cold_rows_stay_greedy_beside_hot_ones(table: list[list[float]], seed: int) -> None:
    logits = torch.tensor([table[0], *table], dtype=torch.float32)
    n = len(logits)
    rows = torch.tensor([1] + [0] * (n - 1))
    place = torch.arange(n)
    rates = sampling([(0.0, 1.0, 0, seed), (9.0, 1.0, 0, seed)])
    parts = list(read(logits, rates, frozenset(), rows, place, place).values())
    greedy = likeliest(logits)
    assert torch.equal(parts[0][1:], greedy[0][1:])
    assert torch.equal(parts[1][1:], greedy[1][1:])
    exact = logits.double().softmax(-1)[0, int(parts[0][0])]
    assert float(parts[1][0]) == pytest.approx(float(exact)), "the confidence is untempered and unfiltered"


@pytest.mark.parametrize("options", [(1.0, 1.0, 1), (1.0, 1e-9, 0), (1e-6, 1.0, 0), (1e-300, 0.9, 3)])
def test_filters_that_leave_one_token_are_greedy(options: tuple[float, float, int]) -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(50, dtype=torch.long)
    token = read(logits, sampling([(*options, 3)]), frozenset(), zero, torch.arange(50), zero)["token"]
    assert torch.equal(token, logits.argmax(-1))


@given(logit_tables(), st.sampled_from([(0.0, 0.5, 2), (0.7, 1.0, 0), (2.0, 0.9, 4)]))
def test_tempered_measures_are_those_of_the_distribution_drawn_from(
    table: list[list[float]], options: tuple[float, float, int]
) -> None:
    logits = torch.tensor(table, dtype=torch.float32)
    temperature, top_p, top_k = options
    expected = torch.zeros_like(logits, dtype=torch.float64)
    for line, row in zip(expected, logits.double(), strict=True):
        order = sorted(range(len(row)), key=lambda i: -float(row[i]))[: top_k or None]
        share = (row[order] / (temperature or 1.0)).softmax(0)
        assume(top_p == 1 or (share.cumsum(0) - top_p).abs().min() > 1e-9)  # on the edge, rounding decides
        kept = [k for k in range(len(order)) if top_p == 1 or not k or share[:k].sum() < top_p]
        line[[order[k] for k in kept]] = share[kept] / share[kept].sum()
    row, place = torch.zeros(len(logits), dtype=torch.long), torch.arange(len(logits))
    needs = frozenset({"tempered", "entropy", "margin"})
    found = read(logits, sampling([(*options, 3)]), needs, row, place, place)
    assert torch.allclose(found["confidence"], expected.gather(1, found["token"][:, None])[:, 0], atol=1e-6)
    assert torch.allclose(found["entropy"].double(), torch.special.entr(expected).sum(1), atol=1e-5)
    top = expected.sort(1, descending=True).values
    assert torch.allclose(found["margin"].double(), top[:, 0] - top[:, 1], atol=1e-6)
    assert torch.allclose(margin(logits), margin(logits + 3.0), atol=1e-6)


SMALL = Architecture(width=16, layers=1, heads=2, kv_heads=1, ffn=16, vocab=7, theta=100.0, eps=1e-6)


@cache
def enumerable() -> Denoiser:
    """Seven ids of which five may be said, so that all answers of two tokens can be written down."""
    torch.manual_seed(3)
    network = Transformer(SMALL, 8).double().requires_grad_(False)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, dtype=torch.float64) * (0.5 if weight.dim() == 2 else 1)
    return Denoiser(network, ModelSpec(mask=5, eos=(4,), pad=4, vocab=7, limit=6, context=8))


def chi_square(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float], n: int) -> tuple[float, int]:
    assert set(counts) <= {k for k, p in expected.items() if p > 0}
    usual = {k: p for k, p in expected.items() if p * n >= 5}
    rest = n - sum(counts[k] for k in usual), n - sum(usual.values()) * n
    pairs = [(counts[k], p * n) for k, p in usual.items()] + ([rest] if rest[1] > 1e-6 else [])
    return sum((seen - mean) ** 2 / mean for seen, mean in pairs), len(pairs) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.6, 1.0, 0), (2.0, 1.0, 0), (1.0, 0.7, 0), (1.5, 1.0, 3)]
)
def test_samples_follow_the_models_distribution(temperature: float, top_p: float, top_k: int) -> None:
    """Two tokens from left to right: p(a | _ _) p(b | a _), tempered and filtered; 4000 answers of one batch."""
    model, n, prompt = enumerable(), 4000, [1, 0]

    def next_token(tokens: list[int], position: int) -> Tensor:
        logits = forward(model, tokens)[position].clone()
        logits[[5, 6]] = -torch.inf
        line = (logits / temperature).tolist()
        keep = naive_filter(line, top_k, top_p)
        masked = [v if i in keep else -math.inf for i, v in enumerate(line)]
        return torch.tensor(masked, dtype=torch.float64).softmax(-1)

    first = next_token([*prompt, 5, 5], 2)
    expected = {
        (a, b): float(first[a] * next_token([*prompt, a, 5], 3)[b]) for a in range(5) for b in range(5) if first[a] > 0
    }
    requests = [Request(i, prompt, 2, temperature, top_p, top_k, seed=i, ignore_eos=True) for i in range(n)]
    policy = registry.policy("vanilla(block_length=1)")
    counts: Counter[tuple[int, ...]] = Counter()
    for event in run(model, "dual", policy, requests, n):
        if event.finished:
            counts.update(tuple(row) for row in event.canvas.tokens[:, 2:].tolist())
    assert counts.total() == n
    statistic, freedom = chi_square(counts, expected, n)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom), "not the model's distribution"


# --- the denoiser ---------------------------------------------------------------------------------------------


def answer(model: Denoiser, canvas: Canvas, ask: Ask, rows: list[tuple[float, float, int, int]], **more: object):
    kept = registry.cache("none")
    state = model.init(canvas, kept, float(more.get("guidance", 0.0)))
    return model(canvas, ask, kept, state, sampling(rows), torch.zeros(len(rows), dtype=torch.long), **more)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_logits_in_pieces(temperature: float, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many logits may exist at a time."""
    model = tiny()
    canvas = Canvas.blank([[1, 2], [3]], [6, 9], SPEC)
    ask = Ask(canvas.response)
    rows = [(temperature, 0.9, 0, 5), (temperature, 1.0, 4, 6)]
    needs = frozenset({"entropy"})
    whole = answer(model, canvas, ask, rows, needs=needs, guidance=guidance).prediction
    monkeypatch.setattr(denoiser_module, "_LOGITS_AT_ONCE", ARCH.vocab * 4)
    pieces = answer(model, canvas, ask, rows, needs=needs, guidance=guidance).prediction
    assert torch.equal(pieces.token, whole.token)
    assert torch.allclose(pieces.confidence[canvas.masked], whole.confidence[canvas.masked])
    assert torch.allclose(pieces.entropy, whole.entropy)


@pytest.mark.parametrize("shift", [False, True], ids=["plain", "shift"])
@pytest.mark.parametrize("scale", [0.0, 1.3])
def test_predictions_are_the_plain_forwards(scale: float, shift: bool) -> None:
    """Only asked masks are answered; guidance is u + (s + 1)(c - u), u with the prompt masked out; no forbidden id."""
    model = tiny(shift)
    canvas = Canvas.blank([[1, 2, 3], [9]], [7, 4], model.spec)
    ask = Ask(canvas.response & (canvas.position % 3 != 1))
    found = answer(model, canvas, ask, [(0.0, 1.0, 0, 0)] * 2, needs=frozenset({"entropy"}), guidance=scale).prediction
    asked = ask.window & canvas.masked
    assert ((found.confidence > -torch.inf) == asked).all()
    assert not found.token[~asked].any()
    for i in range(2):
        tokens = canvas.tokens[i, : int(canvas.length[i])].tolist()
        logits = forward(model, tokens)
        if scale:
            free = forward(model, tokens, prompt_masked=int(canvas.prompt[i]))
            logits = free + (scale + 1) * (logits - free)
        logits = logits.roll(1, 0) if shift else logits
        logits[:, MASK] = -torch.inf
        logits[:, LIMIT:] = -torch.inf
        for position in asked[i].nonzero()[:, 0].tolist():
            p = logits[position].softmax(-1)
            assert int(found.token[i, position]) == int(p.argmax())
            assert float(found.confidence[i, position]) == pytest.approx(float(p.max()), rel=1e-6)
            known = p[p > 0]
            assert float(found.entropy[i, position]) == pytest.approx(float(-(known * known.log()).sum()), rel=1e-5)


def test_hidden_positions_leave_the_input() -> None:
    """``visible``: a shorter row in the middle of a canvas answers as the same row cut off."""
    model = tiny()
    canvas = Canvas.blank([[1, 2, 3]], [9], SPEC)
    window = canvas.response & (canvas.position < 7)
    cut = answer(model, canvas, Ask(window, visible=canvas.position.expand(1, -1) < 7), [(0.0, 1.0, 0, 0)]).prediction
    short = Canvas.blank([[1, 2, 3]], [4], SPEC)
    plain = answer(model, short, Ask(short.response), [(0.0, 1.0, 0, 0)]).prediction
    assert torch.equal(cut.token[:, :7], plain.token)
    assert torch.allclose(cut.confidence[:, 3:7], plain.confidence[:, 3:7])
