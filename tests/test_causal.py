"""Causal transformers run by our blocks: the logits of ``transformers``, a memory that is cropped, vocabularies."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from unmask.core.canvas import ModelSpec
from unmask.core.errors import ModelError, RequestError
from unmask.models import causal
from unmask.models.vocabulary import pieces_of

CPU = torch.device("cpu")
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 10}),
}
TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [3, 4, 3, 4], [20, 21, 22, 23, 24, 25]]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, causal.CausalModel]:
    """A random model of ``transformers`` in float64, and ours from the folder it was saved in."""
    config, model, change = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    made = model(config(**sizes | heads | {"initializer_range": 0.4, "eos_token_id": [2, 7]} | change)).double().eval()
    made.save_pretrained(folder)
    return made, causal.CausalModel(str(folder))


def expected(theirs: Any, text: list[int]) -> Tensor:
    """``[T, V]``: logits behind every token."""
    with torch.inference_mode():
        found: Tensor = theirs(torch.tensor([text])).logits[0]
    return found


def padded(texts: list[list[int]], total: int, junk: int = 59) -> Tensor:
    return torch.tensor([text + [junk] * (total - len(text)) for text in texts])


def places(spans: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Rows and positions of a stretch of each row."""
    row = torch.cat([torch.full((b - a,), i) for i, (a, b) in enumerate(spans)])
    return row, torch.cat([torch.arange(a, b) for a, b in spans])


def test_rows_side_by_side_have_the_logits_they_have_alone(pair: Any) -> None:
    """Of different lengths, at once; what stands behind a row's places is not looked at."""
    theirs, ours = pair
    tokens = padded(TEXTS, 12)
    row, place = places([(1, len(text) + 1) for text in TEXTS])
    found, memory = ours.score(tokens, row, place, ours.empty(3, 12, CPU))
    assert memory.known.tolist() == [len(text) for text in TEXTS]
    want = torch.cat([expected(theirs, text) for text in TEXTS])
    torch.testing.assert_close(found, want, rtol=0, atol=3e-6 * float(want.std()))


def test_a_memory_is_read_on_from_wherever_it_is_cropped(pair: Any) -> None:
    """Each row another stretch in every pass, and words that were taken back leave no trace."""
    theirs, ours = pair
    memory = ours.empty(3, 12, CPU)
    wrong = padded([[1, 1, *text[2:5], 50, 51, 52] for text in TEXTS], 12)
    _, memory = ours.score(wrong, *places([(5, 9)] * 3), memory)
    memory = memory.cropped(torch.tensor([0, 0, 0]))
    for spans in ([(1, 4), (2, 3), (1, 2)], [(4, 8), (3, 5), (2, 7)], [(8, 10), (4, 4), (7, 7)]):
        row, place = places(spans)
        found, memory = ours.score(padded(TEXTS, 12), row, place, memory)
        want = torch.stack(
            [expected(theirs, TEXTS[r])[p - 1] for r, p in zip(row.tolist(), place.tolist(), strict=True)]
        )
        torch.testing.assert_close(found, want, rtol=0, atol=3e-6 * float(want.std()))
    assert memory.known.tolist() == [9, 4, 6]


def test_greedy_decoding_is_that_of_transformers(pair: Any) -> None:
    theirs, ours = pair
    steps = list(ours.decode(TEXTS, 7, CPU))
    assert all(seconds >= 0 for _, seconds in steps)
    for i, text in enumerate(TEXTS):
        tokens, want = list(text), []
        for _ in range(7):
            want.append(int(expected(theirs, tokens)[-1].argmax()))
            tokens.append(want[-1])
        assert [told[i] for told, _ in steps] == want


def test_prompts_are_read_once(pair: Any) -> None:
    _, ours = pair
    shapes: list[tuple[int, ...]] = []
    hook = ours.network(CPU).embed.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    list(ours.decode(TEXTS, 4, CPU))
    hook.remove()
    assert shapes == [(3, 9), (3, 1), (3, 1), (3, 1)]


def test_what_the_configs_say(pair: Any) -> None:
    _, ours = pair
    assert ours.eos == (2, 7)
    assert (ours.vocab, ours.description.context) == (61, 32)


def test_what_cannot_be_read_is_refused(pair: Any) -> None:
    _, ours = pair
    ours.check([60], 32)
    with pytest.raises(RequestError, match="61"):
        ours.check([61], 8)
    with pytest.raises(ModelError, match="33"):
        ours.check([1], 33)


def test_the_dtype_is_the_checkpoints_or_what_is_asked_for(pair: Any) -> None:
    _, ours = pair
    assert ours.network(CPU).dtype == torch.float64
    assert ours.network(CPU, torch.float32).dtype == torch.float32
    assert ours.network(CPU) is ours.network(CPU, torch.float64)
    logits, _ = ours.score(padded(TEXTS, 12), *places([(1, 3)] * 3), ours.empty(3, 12, CPU, torch.float32))
    assert logits.dtype == torch.float32


def test_a_network_is_shared_while_it_is_held() -> None:
    first = causal.load()
    assert causal.load() is first is causal.load(str(causal.BUNDLED))
    baseline = causal.load(None, "autoregressive model")
    assert baseline.network(CPU) is first.network(CPU)
    assert baseline.network(CPU, torch.float64) is not first.network(CPU)


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys, torch; from unmask.models import causal; m = causal.load(); "
        "print(next(m.decode([[5, 6]], 1, torch.device('cpu')))[0], 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    "names", [["GPT2LMHeadModel"], ["MambaForCausalLM"], ["LLaDAModelLM"], None, "LlamaForCausalLM"]
)
def test_other_architectures_are_refused_by_name(names: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": names, "model_type": "llama"}))
    with pytest.raises(ModelError, match="LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM") as caught:
        causal.CausalModel(str(tmp_path), "judge")
    assert str(names) in str(caught.value)
    assert "judge" in str(caught.value)


# --- tokenizers -------------------------------------------------------------------------------------------------


def tokenizer(folder: Path, pieces: list[str], added: tuple[str, ...] = (), unigram: bool = False) -> Path:
    folder.mkdir()
    model = (
        models.Unigram([(p, -1.0) for p in pieces], 0)
        if unigram
        else models.WordLevel({p: i for i, p in enumerate(pieces)}, pieces[0])
    )
    made = Tokenizer(model)
    made.add_special_tokens(list(added))
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("unigram", [False, True])
def test_pieces_are_those_of_the_tokenizer(unigram: bool, tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "t", ["<unk>", "a", "b"], ("<end>", "<mask>"), unigram)
    known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert pieces_of(folder) == {i: piece for piece, i in known.items()}


def test_pieces_of_vocab_json_and_what_is_added(tmp_path: Path) -> None:
    assert pieces_of(tmp_path) is None
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 2}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"3": {"content": "<y>"}}}))
    assert pieces_of(tmp_path) == {0: "a", 1: "b", 2: "<x>", 3: "<y>"}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"vocab": 7}}'])
def test_a_broken_tokenizer_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        pieces_of(tmp_path)


def test_tokenizers_may_differ_in_what_one_of_them_does_not_know(pair: Any, tmp_path: Path) -> None:
    _, ours = pair
    ours = causal.CausalModel(ours.source)
    spec = ModelSpec(mask=4, eos=(3,), pad=3, vocab=61, limit=3, context=32)
    ours.fits(spec)  # no tokenizer on our side
    mine = tokenizer(tmp_path / "mine", ["<unk>", "a", "b"], ("<end>",))
    for pieces, odd in ((["<unk>", "a", "b", "c"], "id 3"), (["<unk>", "a"], None), (["<unk>", "b", "a"], "id 1")):
        other = causal.CausalModel(ours.source)
        other.folder = tokenizer(tmp_path / "-".join(pieces), pieces)
        own = replace(spec, tokenizer=str(mine))
        if odd is None:
            other.fits(own)
            continue
        with pytest.raises(ModelError, match=odd):
            other.fits(own)
    with pytest.raises(ModelError, match="62"):
        ours.fits(replace(spec, vocab=70, limit=62))
