"""Speculative decoding: the text is the target's own, token for token or in distribution, whatever drafts."""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import unmask
from helpers import SPEC, tiny
from refusals import refused, refuses
from unmask import registry
from unmask.cli import app
from unmask.core.errors import ModelError, RequestError, SpecError
from unmask.core.protocols import Sampling
from unmask.engine.request import SamplingParams
from unmask.measure.problems import source
from unmask.models.causal import CausalModel
from unmask.models.denoiser import Denoiser
from unmask.models.packed import Packed
from unmask.speculative.accept import verify
from unmask.speculative.drafter import Context, Drafter
from unmask.speculative.drafters.aded import Trigrams
from unmask.speculative.drafters.chimera import HITS, Chimera, rotary_of, shapes, topology
from unmask.speculative.drafters.space import Space, adapted
from unmask.speculative.drafters.specdiff import SpecDiff
from unmask.speculative.drafters.swift import Search, _bound
from unmask.speculative.loop import Job
from unmask.speculative.model import CausalLM, load_causal
from unmask.speculative.tree import ROOT, Tree, shape_of

SHIPPED = Path(unmask.__file__).parent / "assets" / "verifier"
SPACE, ROOT_ = SHIPPED.parent / "drafters" / "space.safetensors", Path(__file__).parents[1]
FAMILIES = ("word_problem", "record", "sudoku", "waiting_line", "multi")
DRAFTERS = {
    "ngram": ["ngram", "ngram(n=1,length=3)", "ngram(n=5,least=3,length=40)"],
    "specdiff": [
        "specdiff",
        "specdiff(gamma=5,steps=2)",
        "specdiff(gamma=6,tree=14,branches=3)",
        "specdiff(gamma=24,context=64)",
    ],
    "swift": ["swift", "swift(ratio=0.3,stop=0.3,tree=false,interval=3)"],
    "aded": ["aded", "aded(size=5,depth=3,searches=20)"],
    "space": ["space", "space(k=2)"],
    "chimera": ["chimera", "chimera(size=9,depth=3)"],
}
SPECS = [spec for specs in DRAFTERS.values() for spec in specs]
V = 5


def test_every_drafter_is_tested() -> None:
    assert set(DRAFTERS) == set(registry.table("drafter"))


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return load_causal(dtype="float32")


@pytest.fixture(scope="module")
def exact() -> CausalLM:
    return load_causal(dtype="float64")


@pytest.fixture(scope="module")
def prompts(lm: CausalLM) -> list[list[int]]:
    assert lm.text is not None
    return [lm.text.encode(item.prompt) for name in FAMILIES for item in source(name, 2, "test").items]


@pytest.fixture(scope="module")
def greedy(prompts: list[list[int]]) -> list[list[int]]:
    """What ``transformers`` generates: tokens with the end of text."""
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    found = []
    for ids in prompts:
        out = model.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False)
        found.append(out[0, len(ids) :].tolist())
    return found


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("spec", [None, *SPECS])
def test_greedy_text_is_that_of_transformers(
    spec: str | None, batch_size: int, lm: CausalLM, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    every = 2 if batch_size == 1 else 1  # the second prompt of each family in batches alone: it takes long
    found = lm.generate(prompts[::every], 48, spec, batch_size=batch_size)
    assert [r.tokens for r in found] == greedy[::every]
    assert {r.finish_reason for r in found} == {"eos", "length"}
    assert all(r.stats.rounds <= len(r.tokens) for r in found)
    if spec:
        assert sum(r.stats.accepted for r in found) > 0
        assert sum(r.stats.rounds for r in found) < sum(len(r.tokens) for r in found)


@pytest.mark.parametrize(
    "spec", [None, *DRAFTERS["ngram"], *DRAFTERS["specdiff"], *DRAFTERS["space"], *DRAFTERS["chimera"]]
)
def test_a_sample_does_not_depend_on_the_batch(spec: str | None, exact: CausalLM, prompts: list[list[int]]) -> None:
    alone, together = (
        [r.tokens for r in exact.generate(prompts[:5], 24, spec, batch_size=n, temperature=0.8, top_p=0.95, seed=5)]
        for n in (1, 5)
    )
    assert alone == together


# --- the rule, against all that can happen


def p_value(counts: Counter[Any], expected: dict[Any, float]) -> float:
    """Of Pearson's statistic; what is expected less than five times counts as one."""
    n = counts.total()
    if any(expected.get(what, 0) == 0 for what in counts):
        return 0.0
    usual = {what: p * n for what, p in expected.items() if p * n >= 5}
    pairs = [(counts[what], mean) for what, mean in usual.items()]
    rest = n - sum(seen for seen, _ in pairs), n - sum(usual.values())
    pairs += [rest] if rest[1] >= 1 else []
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in pairs)
    half = torch.tensor([(len(pairs) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


DEPTH, ROWS = 3, 40000


@cache
def worlds() -> tuple[Tensor, Tensor]:
    """Of a target ``[V + 1, V + 1, V + 1, V]`` logits behind each prefix of up to three tokens (V: none), and of a
    drafter ``[DEPTH, V]`` probabilities by depth.
    """
    draw = torch.Generator().manual_seed(3)
    target = torch.randn(V + 1, V + 1, V + 1, V, generator=draw)
    return target, (torch.randn(DEPTH, V, generator=draw) * 1.5).double().softmax(-1)


def behind(tokens: Tensor) -> Tensor:
    """The target's logits ``[..., V]`` behind ``tokens [..., <= DEPTH]``."""
    padded = torch.full((*tokens.shape[:-1], DEPTH), V)
    padded[..., : tokens.shape[-1]] = tokens
    return worlds()[0][padded[..., 0], padded[..., 1], padded[..., 2]]


def drawn(share: Tensor, count: int = 1, seed: int = 0) -> Tensor:
    """``[ROWS, count]`` tokens drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(share.expand(ROWS, -1), count, generator=generator)


def first_two(tree: Tree, paths: list[list[int]]) -> Counter[tuple[int, ...]]:
    """The first two tokens of the text, where a missing one is drawn from the target."""
    logits = [behind(tree.token[:, :0])]
    logits += [behind(tree.token[:, path]) for path in paths]
    every = torch.arange(ROWS)
    sampling = Sampling(torch.ones(ROWS), torch.ones(ROWS), torch.zeros(ROWS).long(), every, filters=False)
    found = verify(tree, torch.stack(logits, 1), sampling, torch.full((ROWS,), 7), torch.zeros(ROWS).long())
    texts = [[*(int(tree.token[i, n]) for n in tree.path(i, node)), token]
             for i, (node, token) in enumerate(zip(found.node, found.bonus, strict=True))]  # fmt: skip
    short = torch.tensor([text[0] for text in texts])[:, None]
    more = torch.multinomial(behind(short).softmax(-1), 1, generator=torch.Generator().manual_seed(9))[:, 0].tolist()
    return Counter((text[0], text[1] if len(text) > 1 else more[i]) for i, text in enumerate(texts))


@cache
def pairs() -> dict[tuple[int, ...], float]:
    """How likely the target's first two tokens are."""
    none = behind(torch.zeros(1, 0).long())[0].softmax(-1)
    after = behind(torch.arange(V)[:, None]).softmax(-1)
    return {(a, b): float(none[a] * after[a, b]) for a, b in product(range(V), repeat=2)}


CHAIN = [[0], [0, 1], [0, 1, 2]]


def chain(share: Tensor | None, lie: Callable[[Tensor], Tensor] = lambda q: q) -> Tree:
    parents = ((-1, 0, 1),) * ROWS
    if share is None:
        return Tree(torch.tensor([[1, 3, 0]]).expand(ROWS, -1), parents)
    token = torch.cat([drawn(share[depth], seed=depth) for depth in range(DEPTH)], 1)
    return Tree(token, parents, lie(share).expand(ROWS, -1, -1), torch.arange(DEPTH).expand(ROWS, -1))


def branched(share: Tensor) -> Tree:
    """Three candidates for the first token, two behind each of the first two; drawn without replacement."""
    first, second = drawn(share[0], 3, 1), drawn(share[1], 2, 2)
    token = torch.cat([first, second, second], 1)
    source = torch.tensor([0, 0, 0, 1, 1, 1, 1]).expand(ROWS, -1)
    return Tree(token, ((-1, -1, -1, 0, 0, 1, 1),) * ROWS, share.expand(ROWS, -1, -1), source)


def test_a_drawn_chain_leaves_the_targets_distribution() -> None:
    assert p_value(first_two(chain(worlds()[1]), CHAIN), pairs()) > 1e-3


def test_a_certain_chain_leaves_the_targets_distribution() -> None:
    assert p_value(first_two(chain(None), CHAIN), pairs()) > 1e-3


def test_a_drawn_tree_leaves_the_targets_distribution() -> None:
    paths = [[0], [1], [2], [0, 3], [0, 4], [1, 5], [1, 6]]
    assert p_value(first_two(branched(worlds()[1]), paths), pairs()) > 1e-3


@pytest.mark.parametrize(
    "lie",
    [
        lambda q: (q * 0 + 1) / V,
        lambda q: q.sqrt() / q.sqrt().sum(-1, keepdim=True),
        lambda q: q.roll(1, -1),
    ],
    ids=["uniform", "flatter", "another"],
)
def test_a_drafter_that_lies_is_found_out(lie: Callable[[Tensor], Tensor]) -> None:
    assert p_value(first_two(chain(worlds()[1], lie), CHAIN), pairs()) < 1e-6


def test_siblings_drawn_with_replacement_are_not_exact() -> None:
    share = worlds()[1]
    tree = branched(share)
    first = torch.cat([drawn(share[0], seed=seed) for seed in range(3)], 1)
    tree = replace(tree, token=torch.cat([first, tree.token[:, 3:]], 1))
    paths = [[0], [1], [2], [0, 3], [0, 4], [1, 5], [1, 6]]
    assert p_value(first_two(tree, paths), pairs()) < 1e-6


def test_a_draft_that_depends_on_what_stands_behind_it_is_not_exact() -> None:
    """The second token is drawn first and the first one given it, as a diffusion model would in the order of its
    confidence. Each has the probability it was drawn with, and still the text's distribution is another: tokens behind
    an accepted one are no longer drawn from what they were drawn from. So drafters fill their window from the left.
    """
    draw = torch.Generator().manual_seed(5)
    behind_ = (torch.randn(V, generator=draw) * 1.0).double().softmax(-1)
    given = (torch.randn(V, V, generator=draw) * 2.5).double().softmax(-1)
    second = drawn(behind_, seed=1)
    first = torch.multinomial(given[second[:, 0]], 1, generator=torch.Generator().manual_seed(2))
    share = torch.stack([given[second[:, 0]], behind_.expand(ROWS, -1)], 1)
    tree = Tree(torch.cat([first, second], 1), ((-1, 0),) * ROWS, share, torch.arange(2).expand(ROWS, -1))
    assert p_value(first_two(tree, CHAIN[:2]), pairs()) < 1e-6


# --- whole loops, against all texts of three tokens

MANY = 3000  # texts; a drafter that lies has a p-value below 1e-12


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """A random causal model of five ids in float64."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(1)
    sizes = {"vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "eos_token_id": None}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes | heads | {"initializer_range": 0.3})).double().save_pretrained(folder)
    return CausalLM(CausalModel(str(folder), "target"), None, torch.device("cpu"), torch.float64)


@pytest.fixture(scope="module")
def texts(small: CausalLM) -> dict[tuple[int, ...], float]:
    """The probability of every text of three tokens behind a prompt, at temperature 0.8."""
    model = AutoModelForCausalLM.from_pretrained(small.target.model.folder).double().eval()
    found = {}
    with torch.inference_mode():
        for text in product(range(V), repeat=3):
            share = (model(torch.tensor([[1, 2, 1, *text]])).logits[0] / 0.8).softmax(-1)
            found[text] = float(share[2, text[0]] * share[3, text[1]] * share[4, text[2]])
    return found


def small_specdiff(**values: Any) -> SpecDiff:
    """A random diffusion model of the same five ids drafts."""
    drafter = SpecDiff(**values)
    network = tiny(dtype=torch.float64).network
    drafter._held[torch.device("cpu"), torch.float64] = Denoiser(network, replace(SPEC, limit=V, tokenizer=None))
    return drafter


def jobs(count: int, **params: Any) -> Iterator[Job]:
    for i in range(count):
        yield Job(i, [1, 2, 1], 3, SamplingParams(temperature=0.8, seed=i, ignore_eos=True, **params))


def small_space(k: int) -> Space:
    """Random weights for the five ids: bad drafts, but drawn from what they say."""
    drafter = Space(k=k)
    draw = torch.Generator().manual_seed(4)
    shape = {"mask": (24,), "down": (3, 8, 24), "up": (3, 24, 8)}
    drafter._read[torch.device("cpu")] = {
        name: torch.randn(size, generator=draw, dtype=torch.float64) for name, size in shape.items()
    }
    return drafter


def small_chimera(size: int, depth: int) -> Chimera:
    """Random weights for the five ids."""
    drafter, draw = Chimera(size=size, depth=depth), torch.Generator().manual_seed(4)
    sizes = {"C": 24, "D": 20, "E": 60, "Q": 60, "Z": 40, "F": 32, "G": 64}
    drafter._read[torch.device("cpu"), torch.float64] = {
        name: torch.randn([sizes.get(str(n), n) for n in shape], generator=draw, dtype=torch.float64) * 0.3  # type: ignore[misc]
        for name, shape in shapes(3).items()
    }
    return drafter


LOOPS: dict[str, Callable[[], Drafter | None]] = {
    "none": lambda: None,
    "ngram": lambda: registry.drafter("ngram(n=2,length=3)"),
    "specdiff": lambda: small_specdiff(gamma=2),
    "specdiff, steps": lambda: small_specdiff(gamma=2, steps=2),
    "swift": lambda: registry.drafter("swift(ratio=0.5,stop=0.1,length=4,window=4)"),
    "aded": lambda: registry.drafter("aded"),
    "space": lambda: small_space(2),
    "chimera": lambda: small_chimera(2, 2),
    "chimera, tree": lambda: small_chimera(9, 2),
    "specdiff, tree": lambda: small_specdiff(gamma=2, tree=7, branches=3),
}


@pytest.mark.parametrize("name", LOOPS)
def test_sampled_texts_have_the_targets_distribution(
    name: str, small: CausalLM, texts: dict[tuple[int, ...], float]
) -> None:
    drafter = LOOPS[name]()
    found = [row for event in small.run(list(jobs(MANY)), drafter, 1000) for row in event.finished]
    assert p_value(Counter(tuple(row.tokens) for row in found), texts) > 1e-3
    assert drafter is None or sum(row.accepted for row in found) > 100


@pytest.mark.slow
def test_a_model_that_lies_about_its_probabilities_is_found_out(
    small: CausalLM, texts: dict[tuple[int, ...], float]
) -> None:
    class Liar(SpecDiff):
        def propose(self, context: Context, state: Any) -> Tree | None:
            tree = super().propose(context, state)
            assert tree is not None
            assert tree.share is not None
            return replace(tree, share=tree.share**2 / (tree.share**2).sum(-1, keepdim=True))

    honest = small_specdiff(gamma=2)
    drafter = Liar(gamma=2)
    drafter._held.update(honest._held)
    found = [row for event in small.run(list(jobs(MANY)), drafter, 1000) for row in event.finished]
    assert p_value(Counter(tuple(row.tokens) for row in found), texts) < 1e-6


def test_filters_hold_for_the_target(small: CausalLM) -> None:
    """With top-k 1 sampling is greedy."""
    [plain] = small.generate([[1, 2, 1]], 12, ignore_eos=True)
    for drafter in (None, "ngram(n=2,length=3)", small_specdiff(gamma=3), small_specdiff(gamma=3, tree=8)):
        [found] = small.generate([[1, 2, 1]], 12, drafter, ignore_eos=True, temperature=2.0, top_k=1, seed=3)
        assert found.tokens == plain.tokens


# --- trees


def test_shapes_of_trees() -> None:
    shape = shape_of((-1, 0, 0, -1, 3))
    assert shape.depth == (1, 2, 2, 1, 2)
    assert shape.first == (0, 1, -1, -1, 4, -1)
    assert shape.next == (3, 2, -1, -1, -1)
    assert shape.above[4].tolist() == [False, False, False, True, True]
    assert not shape.chain
    assert shape_of((-1, 0, 1)).chain
    with pytest.raises(ValueError, match="parent"):
        shape_of((0,))


def test_a_tree_is_read_as_its_paths_are(lm: CausalLM, prompts: list[list[int]]) -> None:
    """Logits behind each node are those behind its path, in rows of different lengths and trees."""
    rows, target = [prompts[0], prompts[3][:9]], lm.target
    parents = [(-1, -1, 0, 1, 1, 2), (-1, 0, 0)]
    tree = Tree.of([[5, 6, 7, 8, 9, 10], [11, 12, 13]], parents, target.device)
    with torch.inference_mode():
        target.begin(2, 400)
        _, logits = target.read(rows, tree)
        model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
        for row, own in enumerate(parents):
            for node in [ROOT, *range(len(own))]:
                path = [int(tree.token[row, n]) for n in tree.path(row, node)]
                expected = model(torch.tensor([[*rows[row], *path]])).logits[0, -1]
                torch.testing.assert_close(logits[row, node + 1], expected, rtol=1e-3, atol=2e-3)
        target.keep(rows, [[1, 4], [0, 2]])  # the memory goes on behind the accepted path
        _, logits = target.read([[20, 21], [22]], None)
        for row, text in enumerate([[*rows[0], 6, 9, 20, 21], [*rows[1], 11, 13, 22]]):
            expected = model(torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(logits[row, 0], expected, rtol=1e-3, atol=2e-3)


# --- ends and refusals


@pytest.mark.parametrize("spec", [None, "ngram", "specdiff"])
def test_stop_strings_and_suppressed_tokens(spec: str | None, lm: CausalLM, prompts: list[list[int]]) -> None:
    [plain] = lm.generate([prompts[0]], 48)
    [stopped] = lm.generate([prompts[0]], 48, spec, stop="Answer")
    assert stopped.finish_reason == "stop"
    assert stopped.text == plain.text[: plain.text.index("Answer")]
    [silent] = lm.generate([prompts[0]], 16, spec, suppress=[plain.tokens[0]])
    assert plain.tokens[0] not in silent.tokens
    [on] = lm.generate([prompts[0]], 64, spec, ignore_eos=True)
    assert len(on.tokens) == 64
    assert on.finish_reason == "length"


def test_what_a_round_tells(lm: CausalLM, prompts: list[list[int]]) -> None:
    events = list(lm.run(lm.jobs([prompts[0]], 48), "specdiff(gamma=6)"))
    [row] = [row for event in events for row in event.finished]
    assert [e.index for e in events] == list(range(row.rounds))
    said = [token for e in events for token in e.tokens[0]]
    assert said[: len(row.tokens)] == row.tokens
    assert row.drafted == sum(len(e.tree.parents[0]) for e in events if e.tree)
    assert row.accepted == sum(len(e.nodes[0]) for e in events)
    assert row.draft_passes == len([e for e in events if e.tree])


@pytest.mark.parametrize(
    ("error", "parameter", "call"),
    [
        (SpecError, "drafter", lambda m: m.generate("a", drafter="nothing")),
        (SpecError, "n", lambda m: m.generate("a", drafter="ngram(n=0)")),
        (SpecError, "gamma", lambda m: m.generate("a", drafter="specdiff(gamma=0)")),
        (RequestError, "gen_length", lambda m: m.generate("a", 0)),
        (RequestError, "context", lambda m: m.generate("a", 3000)),
        (RequestError, "context", lambda m: m.generate("a", 3, Wide())),
        (RequestError, "empty", lambda m: m.generate([[]], 3)),
        (RequestError, "900", lambda m: m.generate([[900]], 3)),
        (RequestError, "late_eos", lambda m: m.generate("a", 3, late_eos=True)),
        (RequestError, "regex", lambda m: m.generate("a", 3, regex="a+")),
        (ModelError, "absent.safetensors", lambda m: m.generate("a", 3, 'space(weights="absent.safetensors")')),
        (ModelError, "absent.safetensors", lambda m: m.generate("a", 3, 'chimera(weights="absent.safetensors")')),
        (ModelError, "depth", lambda m: m.generate("a", 3, "chimera(depth=9)")),
        (ModelError, "down", lambda m: m.generate("a", 3, f'chimera(weights="{SPACE}")')),
        (RequestError, "absent.txt", lambda m: m.generate("a", 3, 'aded(corpus="absent.txt")')),
        (ModelError, "ratio", lambda m: m.generate("a", 3, "swift(ratio=0.1)")),
        (RequestError, "suppress", lambda m: m.generate("a", 3, suppress=[5000])),
        (RequestError, "batch_size", lambda m: m.generate("a", 3, batch_size=0)),
        (RequestError, "temp", lambda m: m.generate("a", 3, temp=1)),
        (SpecError, "steps", lambda m: m.generate("a", 3, "specdiff(steps=2,tree=4)")),
        (ModelError, "missing", lambda m: m.generate("a", 3, 'specdiff(model="missing")')),
        (ModelError, "dtype", lambda m: load_causal(dtype="int3")),
        (ModelError, "absent", lambda m: load_causal("absent")),
    ],
)
def test_refusals(error: type[Exception], parameter: str, call: Callable[[CausalLM], Any], lm: CausalLM) -> None:
    with refuses(error, parameter):
        call(lm)


@dataclasses.dataclass(frozen=True)
class Wide(Drafter):
    """Would draft more than the context holds."""

    name = "wide"

    @property
    def nodes(self) -> int:
        return 1 << 20

    def propose(self, context: Context, state: Any) -> Tree | None:
        return None


def test_a_corpus_teaches_the_trigrams(prompts: list[list[int]], tmp_path: Path) -> None:
    lm = load_causal(dtype="float32")  # one whose drafters have seen nothing
    [plain] = lm.generate([prompts[0]], 48)
    file = tmp_path / "corpus.txt"
    file.write_text(plain.text.replace("\n", "\\n") + "\n", encoding="utf-8")
    [blank] = lm.generate([prompts[0]], 48, "aded", seed=0)
    [taught] = lm.generate([prompts[0]], 48, f'aded(corpus="{file}")', seed=0)
    assert taught.tokens == blank.tokens == plain.tokens
    assert taught.stats.rounds < blank.stats.rounds


def test_trigrams_fade_and_hold_few() -> None:
    table = Trigrams(2)
    table.add([1, 2, 3, 1, 2, 4, 1, 2, 4])
    assert dict(table.share((1, 2))) == {4: pytest.approx(2 / 3), 3: pytest.approx(1 / 3)}
    table.fade((1, 2), 0.1)
    table.add([1, 2, 5])
    assert [token for token, _ in table.share((1, 2))] == [5, 4]


def test_the_search_finds_the_sublayers_that_do_nothing() -> None:
    """The match of a set is the share of harmless sublayers in it; the search must come near the best set."""
    search = Search([(i, "feed") for i in range(12)], 4, (0, 1, 2, 3), torch.Generator().manual_seed(0))
    while not search.over and search.proposals < 200:
        chosen = search.proposed()
        search.told(chosen, sum(i >= 8 for i in chosen) / 4)
    assert search.score == 1.0
    assert search.over
    assert search.sublayers(search.skip) == {(i, "feed") for i in range(8, 12)}


def test_the_bound_prefers_what_is_like_the_best() -> None:
    seen = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], dtype=torch.float64)
    bound = _bound(seen, torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64), seen)
    assert bound.argmax() == 0
    assert bound.argmin() == 1


def test_masks_change_nothing_but_themselves(lm: CausalLM) -> None:
    """The target's own hidden states pass the trained weights unchanged."""
    weights = registry.drafter("space").trained_for(lm.target)  # type: ignore[attr-defined]
    hidden, probe = torch.randn(2, 5, 256), torch.zeros(2, 5, dtype=torch.bool)
    probe[0, 3] = probe[1, 1] = True
    lift = adapted(weights, probe)
    for layer in (-1, 0, 3):
        after = lift(layer, hidden)
        assert torch.equal(after[~probe], hidden[~probe])
        assert not torch.equal(after[probe], hidden[probe])


def test_chimera_drafts_what_the_recipe_trains(lm: CausalLM, prompts: list[list[int]]) -> None:
    """The likeliest token of each head, given the drafted ones before it, is that of the recipe's forward pass."""
    recipe = runpy.run_path(str(ROOT_ / "recipes" / "speculate" / "chimera.py"), run_name="recipe")
    drafter = registry.drafter("chimera(size=5,depth=5)")
    assert isinstance(drafter, Chimera)
    weights, table = drafter.trained_for(lm.target), rotary_of(lm.target)
    events = list(lm.run(lm.jobs([prompts[0]], 24), drafter))
    text = list(prompts[0])
    checked = 0
    for event in events:
        if event.tree is not None:
            tokens = torch.tensor([[*text, *event.tree.token[0].tolist()]])
            for head in range(event.tree.size):
                wanted = torch.zeros_like(tokens, dtype=torch.bool)
                wanted[0, len(text) - 1 + head] = True
                said = recipe["heads"](lm, weights, tokens, wanted, table)[head]
                assert int(said.argmax()) == int(event.tree.token[0, head])
                checked += 1
        text += event.tokens[0]
    assert checked > 10


def test_the_tree_of_chimera_is_the_likeliest() -> None:
    """Of all trees of so many nodes none holds more of the probability that the hits say."""
    chain, wide = topology(4, 9), topology(10, 3)
    assert chain.parents == (-1, 0, 1, 2)
    paths = [path for n in (1, 2, 3) for path in product(range(len(HITS)), repeat=n)]
    best = sorted((math.prod(HITS[r] for r in path) for path in paths), reverse=True)[:10]
    found = []
    for node in range(10):
        likely, at = 1.0, node
        while at != ROOT:
            rank = [i for i, parent in enumerate(wide.parents) if parent == wide.parents[at]].index(at)
            likely, at = likely * HITS[rank], wide.parents[at]
        found.append(likely)
    assert sorted(found, reverse=True) == pytest.approx(best)


def test_packed_products_are_plain_ones() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(7, 12, generator=draw), torch.randn(7, generator=draw)
    for kind, close in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        made = Packed.of(weight.to(kind), bias.to(kind))
        for rows in (1, 5):
            x = torch.randn(2, rows, 12, generator=draw).to(kind)
            expected = torch.nn.functional.linear(x.double(), weight.to(kind).double(), bias.to(kind).double())
            torch.testing.assert_close(made(x).double(), expected, rtol=close, atol=close)
            torch.testing.assert_close(made.part(x, 3).double(), expected[..., 3:], rtol=close, atol=close)


def test_the_command(tmp_path: Path) -> None:
    batch, trace = tmp_path / "in.jsonl", tmp_path / "trace.jsonl"
    batch.write_text(
        '{"prompt": "Amy has 3 apples.", "id": "a", "gen_length": 12}\n{"prompt": "2+2", "gen_length": 8}\n', "utf-8"
    )
    common = ["speculate", "--dtype", "float32", "--batch", str(batch)]
    plain = CliRunner().invoke(app, common)
    drafted = CliRunner().invoke(app, [*common, "-d", "specdiff(gamma=4)", "--trace", str(trace)])
    assert (plain.exit_code, drafted.exit_code) == (0, 0), drafted.output
    ours, theirs = ([json.loads(line) for line in found.stdout.splitlines()] for found in (drafted, plain))
    assert [one["tokens"] for one in ours] == [one["tokens"] for one in theirs]
    assert ours[0]["id"] == "a"
    rounds = [json.loads(line) for line in trace.read_text("utf-8").splitlines()]
    for row in (0, 1):
        own = [part for one in rounds for part in one["rows"] if part["row"] == row]
        assert [t for part in own for t in part["tokens"]][: len(ours[row]["tokens"])] == ours[row]["tokens"]
        for part in own:
            assert sorted([*part["accepted"], *part["rejected"]]) == list(range(len(part["drafted"])))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["Hi", "-d", "nothing"], ["'nothing'", "specdiff"]),
        (["Hi", "--target", "absent"], ["'absent'"]),
        (["Hi", "--gen-length", "4000"], ["4000", "2048"]),
        ([], ["PROMPT", "--batch"]),
        (["Hi", "--temperature", "-1"], ["temperature"]),
    ],
)
def test_the_command_refuses(more: list[str], named: list[str]) -> None:
    refused(CliRunner().invoke(app, ["speculate", *more]), *named)
