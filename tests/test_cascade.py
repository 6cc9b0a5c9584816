"""Cascades: the best path is the best of all paths, pair scores are the verifier's, prefixes are committed."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import unmask
from unmask.core.chain import max_marginals, viterbi
from unmask.models import causal

SHIPPED = Path(unmask.__file__).parent / "assets" / "verifier"


@pytest.mark.parametrize(("n", "k"), [(1, 3), (2, 1), (5, 3), (4, 4)])
def test_the_best_path_is_the_best_of_all(n: int, k: int) -> None:
    draw = torch.Generator().manual_seed(n * 10 + k)
    unary = torch.randn(3, n, k, generator=draw, dtype=torch.float64)
    pair = torch.randn(3, n - 1, k, k, generator=draw, dtype=torch.float64)
    if k > 2:
        unary[0, 0, 1] = -torch.inf
    found, marginals = viterbi(unary, pair), max_marginals(unary, pair)
    for row in range(3):
        scores = {}
        for path in product(range(k), repeat=n):
            score = sum(float(unary[row, i, state]) for i, state in enumerate(path))
            scores[path] = score + sum(float(pair[row, i, a, b]) for i, (a, b) in enumerate(pairwise(path)))
        assert tuple(found[row].tolist()) == max(scores, key=scores.__getitem__)
        for i, state in product(range(n), range(k)):
            best = max(score for path, score in scores.items() if path[i] == state)
            assert float(marginals[row, i, state]) == pytest.approx(best)


def test_candidates_are_scored_behind_the_trunk() -> None:
    """In rows of different lengths, and again behind a text that the memory holds in part."""
    model = causal.load()
    theirs = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    cpu = torch.device("cpu")
    texts = [[5, 6, 7, 8, 9], [10, 11]]
    tokens = torch.tensor([[*text, *[0] * (12 - len(text))] for text in texts])
    options = torch.randint(20, 700, (2, 3, 2), generator=torch.Generator().manual_seed(1))
    memory = model.empty(2, 12 + 6, cpu, torch.float32)
    for _ in range(2):
        begin = torch.tensor([len(text) for text in texts])
        start, pair, memory = model.branch(tokens, begin, options, memory)
        with torch.inference_mode():
            for row, text in enumerate(texts):
                trunk = options[row, :, 0].tolist()
                own = theirs(torch.tensor([text])).logits[0, -1].log_softmax(-1)[options[row, 0]]
                torch.testing.assert_close(start[row], own, rtol=1e-3, atol=2e-3)
                for n, a in product(range(2), range(2)):
                    ids = torch.tensor([[*text, *trunk[:n], int(options[row, n, a])]])
                    own = theirs(ids).logits[0, -1].log_softmax(-1)[options[row, n + 1]]
                    torch.testing.assert_close(pair[row, n, a], own, rtol=1e-3, atol=2e-3)
        texts = [[*text, 30, 31] for text in texts]
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)


def test_without_a_verifier_and_margin_a_pass_commits_the_window() -> None:
    lm = unmask.load(dtype="float32")
    problem = "In the morning Uma counts 11 jars. Then 7 jars are added. What is the number of jars now?"
    [fast] = lm.generate(problem, 32, "cascade(order=0,margin=0,window=32)", ignore_eos=True)
    assert fast.stats.nfe == 1
    [slow] = lm.generate(problem, 32, "cascade(order=0,margin=50)", ignore_eos=True)
    assert slow.stats.nfe == 32
    assert slow.tokens == lm.generate(problem, 32, "left_to_right(k=1,lookahead=none)", ignore_eos=True)[0].tokens
