"""What holds for policies beside their rules: parameters are numbers of any kind, memory is bounded by the request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers import SPEC, Request, decode, tiny
from unmask import registry
from unmask.core import nets
from unmask.core.canvas import Canvas, Update
from unmask.core.errors import SpecError
from unmask.core.policy import Policy, Wrapper
from unmask.core.protocols import Ask, Prediction, Sampling
from unmask.core.state import row_bytes
from unmask.policies.credit import Credit
from unmask.policies.entropy_bound import EntropyBound
from unmask.policies.threshold import Threshold

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]


def sampling(rows: int) -> Sampling:
    zero = torch.zeros(rows)
    return Sampling(zero.double(), zero + 1, zero.long(), zero.long())


# --- parameters


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("threshold(tau=1)", "threshold(tau=1.0)"),
        ("prophet(threshold(tau=1),high=7)", "prophet(threshold(tau=1.0),high=7.0)"),
        ("slowfast(sigma2=4,tau_high=1)", "slowfast(sigma2=4.0,tau_high=1.0)"),
    ],
)
def test_an_integer_given_to_a_float_parameter_is_a_float(one: str, other: str) -> None:
    assert str(registry.policy(one)) == str(registry.policy(other))
    assert registry.policy(one) == registry.policy(other)


@pytest.mark.parametrize(
    "half", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)], ids=repr
)
def test_any_kind_of_number_is_a_number(half: object) -> None:
    made = Threshold(tau=half)  # type: ignore[arg-type]
    assert str(made) == "threshold(tau=0.5)"
    assert type(made.tau) is float


@pytest.mark.parametrize("eight", [np.int64(8), np.uint8(8), np.array(8), torch.tensor(8)], ids=repr)
def test_any_kind_of_integer_is_an_integer(eight: object) -> None:
    made = Threshold(block_length=eight, tau=eight / 8)  # type: ignore[arg-type, operator]
    assert made == Threshold(block_length=8, tau=1.0)
    assert type(made.block_length) is int


@pytest.mark.parametrize(
    "wrong",
    [True, np.bool_(True), torch.tensor(True), np.array([0.5]), torch.tensor([0.5]), "0.5", 10**400, np.float64("nan")],
    ids=lambda value: f"{value!r:.20}",
)
def test_what_is_no_number_is_refused(wrong: object) -> None:
    with pytest.raises(SpecError, match="threshold: tau"):
        Threshold(tau=wrong)  # type: ignore[arg-type]


def test_an_integer_parameter_takes_no_fraction() -> None:
    for wrong in (8.0, np.float32(8), torch.tensor(8.0)):
        with pytest.raises(SpecError, match="block_length"):
            Threshold(block_length=wrong)  # type: ignore[arg-type]


# --- what a parameter may allocate


@pytest.mark.parametrize(
    ("huge", "plain"),
    [
        ("wino(block_length=1000000000)", "wino(block_length=64)"),
        ("dream(steps=1000000000)", "dream(steps=1)"),
        ("dream(steps=1000000000,alg=entropy)", "dream(steps=1,alg=entropy)"),
        ("vanilla(steps=1000000000,block_length=1000000000)", "vanilla(block_length=none)"),
        ("learned(sample=false,block_length=1000000000)", "learned(sample=false,block_length=none)"),
        ("left_to_right(k=1000000000,lookahead=1000000000)", "left_to_right(k=64)"),
    ],
)
def test_memory_is_bounded_by_the_request(huge: str, plain: str) -> None:
    ours, theirs = decode(tiny(), huge, "none", REQUESTS), decode(tiny(), plain, "none", REQUESTS)
    assert {i: row.commits for i, row in ours.items()} == {i: row.commits for i, row in theirs.items()}


def test_a_schedule_of_many_steps_for_random_commits() -> None:
    rows = decode(tiny(), "dream(steps=1000000000,alg=origin)", "none", REQUESTS)
    assert all(sum(map(len, row.commits)) == row.nfe for row in rows.values()), "no two positions share a step"


@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 7, 64, 100, 333, 4096, 50000])
@pytest.mark.parametrize("length", [1, 5, 64, 250])
def test_dream_finds_the_steps_that_a_scan_of_the_whole_schedule_finds(length: int, steps: int, eps: float) -> None:
    policy = registry.policy(f"dream(steps={steps},eps={eps})")
    clock, left, expected = torch.linspace(1, eps, steps + 1), length, []
    share = 1 - clock[1:] / clock[:-1]
    for i in range(steps):
        count = int(left * share[i]) if i < steps - 1 else left
        expected += [count] if count else []
        left -= count
    canvas = Canvas.blank([[1]], [length], replace(SPEC, context=1000), eos_stop=False)
    state, counts = policy.init(canvas, sampling(1)), list[int]()
    while not bool(canvas.done):
        confidence = torch.where(policy.ask(canvas, state).window & canvas.masked, 0.5, -torch.inf).double()
        update, state = policy.decide(canvas, Prediction(torch.ones_like(canvas.tokens), confidence), state)
        counts.append(int(update.write.sum()))
        canvas = canvas.apply(update)
    assert counts == expected


def test_lookahead_probes_what_stays_in_the_input() -> None:
    """A prompt of 27 and a lookahead of 8: 35 positions in the input, and a probe for each of the 8."""
    request = Request(0, list(range(1, 28)), 30, ignore_eos=True)
    row = decode(tiny(), "lookahead(wino(block_length=128),8)", "none", [request])[0]
    assert row.nfe > 1
    assert row.work <= row.nfe * (27 + 30 + 8)
    policy = registry.policy("lookahead(wino(block_length=128),8)")
    canvas = Canvas.blank([request.prompt], [30], SPEC)
    ask = policy.ask(canvas, policy.init(canvas, sampling(1)))
    assert ask.probe is not None
    assert ask.visible is not None
    assert int(ask.visible.sum()) == 35
    assert int(ask.probe.sum()) == 8


# --- what a policy is given


@dataclass(frozen=True)
class Rough(Wrapper):
    """Changes its prediction in place before the policy inside sees it."""

    name = "rough"
    policy: Policy

    def decide(self, canvas: Canvas, prediction: Prediction, state: object) -> tuple[Update, object]:
        update, after = self.policy.decide(canvas, prediction, state)
        prediction.confidence.fill_(-5.0)
        prediction.token.zero_()
        return Update(update.write.clone(), update.token + 7), after


@pytest.mark.parametrize("cache", ["none", "d2(k=4)"])
def test_a_policy_may_change_its_prediction_in_place(cache: str) -> None:
    rough = decode(tiny(), Rough(Threshold(0.4, block_length=4)), cache, REQUESTS[:1])[0]
    assert {token for step in rough.commits for _, token in step} == {7}
    assert all(0 < confidence <= 1 for confidence in rough.confidence.values()), "the engine has its own"


def test_a_policy_names_what_it_leaves_out() -> None:
    @dataclass(frozen=True)
    class Half(Policy):
        name = "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


# --- entropy_bound


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.5])
def test_entropy_bound_ranked_by_margin(gamma: float) -> None:
    """As d2Cache's ``alg=topk_margin``: by margin, as long as the entropies ranked before sum to at most gamma."""
    draw = torch.Generator().manual_seed(int(gamma * 10))
    canvas = Canvas.blank([[1]], [9], SPEC)
    confidence, entropy, margin = (drawn(draw) for _ in range(3))
    confidence[0, 0] = -torch.inf
    entropy[0, 0] = margin[0, 0] = 0.0
    prediction = Prediction(torch.ones_like(canvas.tokens), confidence, entropy, margin)
    policy = EntropyBound(gamma=gamma, block_length=None, order="margin")
    assert policy.needs == {"entropy", "margin"}
    update, _ = policy.decide(canvas, prediction, None)
    ranked, expected, total = sorted(range(1, 10), key=lambda i: -float(margin[0, i])), set[int](), 0.0
    for i in ranked:
        if expected and total > gamma:
            break
        expected.add(i)
        total += float(entropy[0, i])
    assert set(update.write[0].nonzero()[:, 0].tolist()) == expected


def drawn(draw: torch.Generator) -> Tensor:
    return torch.rand(1, 10, generator=draw, dtype=torch.float64)


# --- d2


def test_inflating_far_gaps_is_the_same_alone_and_in_a_batch() -> None:
    """``inflate`` as wide as the canvas, rows of different lengths: the ends of a row are no positions to fill from."""
    requests = [Request(i, [3 + i] * (1 + 3 * i), 10 + 4 * i, ignore_eos=True) for i in range(3)]
    for inflate in (20, 40, 1000):
        cache = f"d2(k=2,inflate={inflate})"
        together = decode(tiny(), "vanilla", cache, requests)
        for request in requests:
            alone = decode(tiny(), "vanilla", cache, [request])[request.row]
            assert alone.commits == together[request.row].commits
            assert alone.work == together[request.row].work


# --- credit and klass


@pytest.mark.parametrize("block", [None, 4])
def test_credit_is_that_of_a_table_over_the_vocabulary(block: int | None) -> None:
    """Random logits, tokens that win again and lose in between: as with one number for each position and token."""
    policy = registry.policy(Credit(tau=0.8, alpha=2.0, gamma=0.5, beta=0.7, block_length=block))
    canvas = Canvas.blank([[1], [2, 3]], [11, 7], SPEC, eos_stop=False)
    draw, state = torch.Generator().manual_seed(3), policy.init(canvas, sampling(2))
    table, begun = torch.zeros(*canvas.tokens.shape, SPEC.vocab, dtype=torch.float64), [-1, -1]
    while not bool(canvas.done.all()):
        asked = policy.ask(canvas, state).window & canvas.masked
        where = asked.nonzero(as_tuple=True)
        logits = 2 * torch.randn(len(where[0]), 4, generator=draw)
        logits = torch.nn.functional.pad(logits, (3, SPEC.vocab - 7), value=-torch.inf)
        confidence = torch.where(asked, 0.5, -torch.inf).double()
        update, state = policy.decide(canvas, Prediction(canvas.tokens, confidence, logits=logits), state)
        for row in range(2):
            start = int(canvas.block_start(block)[row])
            table[row] *= 0.7 if start == begun[row] else 0.0
            begun[row] = start
        best: dict[int, tuple[float, int]] = {}
        for row, position, line in zip(*(part.tolist() for part in where), logits.double(), strict=True):
            top = int(line.argmax())
            table[row, position, top] += float(line.softmax(-1)[top]) ** 0.5
            raised = (line + 2.0 * table[row, position].log1p()).softmax(-1)
            sure, token = raised.max(-1)
            best[row] = max(best.get(row, (0.0, -1)), (float(sure), position))
            if update.write[row, position]:
                assert int(update.token[row, position]) == int(token)
            assert bool(update.write[row, position]) or float(sure) < 0.8
        assert all(bool(update.write[row, position]) for row, (_, position) in best.items())
        canvas = canvas.apply(update)


@pytest.mark.parametrize("policy", ["klass(tau=0.5,kl=0.5,block_length=5)", "credit(tau=0.5,block_length=5)"])
def test_no_state_holds_the_vocabulary_for_the_prompt(policy: str) -> None:
    """A row of the state takes the same memory whatever the prompt's length is, positions of the canvas aside."""
    small, large = (
        row_bytes(registry.policy(policy).init(Canvas.blank([[1] * n], [12], SPEC), sampling(1))) for n in (1, 50)
    )
    assert 0 <= large - small <= 49 * 16
    requests = [Request(0, [5, 6, 7], 12), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14), Request(3, [3], 17)]
    together = decode(tiny(), policy, "none", requests, batch_size=2)
    for request in requests:
        assert decode(tiny(), policy, "none", [request])[request.row].commits == together[request.row].commits


# --- weights of learned policies


@pytest.mark.parametrize("name", ["learn2pd", "learned"])
def test_weights_that_are_replaced_are_read_anew(name: str, tmp_path: Path) -> None:
    """By a file written over the old one, or moved into its place."""
    device, bundled = torch.device("cpu"), nets.load(name, None, torch.device("cpu"))
    file = tmp_path / "weights.safetensors"
    policy = registry.policy(f'{name}(weights="{file}")')
    for scale in (1.0, 0.5, 2.0):
        fresh = tmp_path / f"fresh{scale}"
        save_file({key: (weight * scale).float() for key, weight in bundled.items()}, fresh)
        if scale == 2.0:
            file.write_bytes(fresh.read_bytes())
        else:
            fresh.replace(file)
        policy.check([1], 4, SPEC)
        found = nets.load(name, str(file), device)
        assert found is nets.load(name, str(file), device), "read once"
        assert all(torch.allclose(found[key], scale * weight) for key, weight in bundled.items())


# --- probes


@dataclass(frozen=True)
class Seldom(Wrapper):
    """Probes in every other forward pass."""

    name = "seldom"
    policy: Policy

    def ask(self, canvas: Canvas, state: object) -> Ask:
        ask = self.policy.ask(canvas, state)
        return replace(ask, probe=None) if int(canvas.masked.sum()) % 2 else ask

    def decide(self, canvas: Canvas, prediction: Prediction, state: object) -> tuple[Update, object]:
        if prediction.probe is None:
            prediction = replace(prediction, probe=torch.ones_like(prediction.confidence))
        return self.policy.decide(canvas, prediction, state)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["none", "dual", "dllm(kp=3,kr=2)", "d2(k=4)"])
def test_forward_passes_without_probes_at_full_context(cache: str, shift: bool) -> None:
    """Columns for probes lie behind the model's context; where nothing is probed, nothing is computed there."""
    requests = [Request(0, [1, 2, 3, 4], 60, ignore_eos=True), Request(1, [1, 2], 40, ignore_eos=True)]
    rows = decode(tiny(shift), Seldom(registry.policy("wino(block_length=128)")), cache, requests)
    assert all(row.finished for row in rows.values())
