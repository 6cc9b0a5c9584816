"""The Dream family: its schedules, its configurations, its folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM

import unmask
from helpers import SPEC, Request, Row, decode, forward, tiny
from unmask.core.canvas import Canvas
from unmask.core.protocols import Sampling
from unmask.models.transformer import Transformer
from unmask.models.weights import Checkpoint, parameter_count
from unmask.policies.dream import Dream


def one(policy: str, seed: int = 0) -> Row:
    return decode(tiny(), policy, "none", [Request(0, [5, 6, 7], 12, seed=seed, ignore_eos=True)])[0]


# --- Dream's schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy", "origin"])
def test_dream_in_one_step_fills_everything(alg: str) -> None:
    assert one(f"dream(steps=1,alg={alg})").nfe == 1


@pytest.mark.parametrize("steps", [3, 8, 12, 40])
def test_dream_commits_the_published_counts(steps: int) -> None:
    """Of m masks floor(m (1 - s/t)), all in the last step; steps without a commit are left out."""
    clock, left, expected = torch.linspace(1, 1e-3, steps + 1), 12, []
    for i in range(steps):
        count = int(left * (1 - clock[i + 1] / clock[i])) if i < steps - 1 else left
        expected += [count] if count else []
        left -= count
    assert [len(c) for c in one(f"dream(steps={steps})").commits] == expected


def test_dream_origin_spreads_its_commits_evenly() -> None:
    """Each mask's step is uniform over the clock: 400 rows of 12 masks in 4 steps, within 4 standard deviations."""
    requests = [Request(i, [5, 6, 7], 12, seed=i, ignore_eos=True) for i in range(400)]
    rows = decode(tiny(), "dream(steps=4,alg=origin)", "none", requests, 400)
    zero, seeds, n = torch.zeros(400, dtype=torch.float64), torch.arange(400), 400 * 12
    canvas = Canvas.blank([[5, 6, 7]] * 400, [12] * 400, SPEC)
    due = Dream(steps=4, alg="origin").init(canvas, Sampling(zero, zero + 1, 0 * seeds, seeds)).due[:, 3:]
    for i, row in rows.items():
        planned = [{3 + p for p in (due[i] == k).nonzero()[:, 0].tolist()} for k in range(4)]
        assert [{p for p, _ in commits} for commits in row.commits] == [plan for plan in planned if plan]
    clock = torch.linspace(1, 1e-3, 5).tolist()
    for step, p in enumerate([clock[0] - clock[1], clock[1] - clock[2], clock[2] - clock[3], clock[3]]):
        assert abs(int((due == step).sum()) - n * p) < 4 * math.sqrt(n * p * (1 - p))
    assert max(row.nfe for row in rows.values()) == 4


def test_dream_draws_positions_at_a_high_alg_temp_and_takes_the_best_at_a_low_one() -> None:
    best = one("dream(steps=6,alg=topk_margin)").commits
    assert one("dream(steps=6,alg=topk_margin,alg_temp=1e-9)").commits == best
    drawn = {str(one("dream(steps=6,alg=topk_margin,alg_temp=50)", seed=s).commits) for s in range(8)}
    assert len(drawn) > 4


# --- checkpoints ------------------------------------------------------------------------------------------------

DREAM_7B = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
"""The published configuration; Dream-Coder's and DiffuCoder's say the same of the network."""

SMALL = DREAM_7B | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "torch_dtype": "float32",
    "vocab_size": 288,
    "mask_token_id": 260,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a Qwen2.5-shaped model, from its configuration, by their published names."""
    d, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,), "lm_head.weight": (vocab, d)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, rows in (("q", d), ("k", kv), ("v", kv)):
            found |= {
                f"{layer}.self_attn.{name}_proj.weight": (rows, d),
                f"{layer}.self_attn.{name}_proj.bias": (rows,),
            }
        found |= {f"{layer}.self_attn.o_proj.weight": (d, d), f"{layer}.mlp.down_proj.weight": (d, ffn)}
        found |= {f"{layer}.mlp.{name}_proj.weight": (ffn, d) for name in ("gate", "up")}
        found |= {f"{layer}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    return found


def write(folder: Path, config: dict[str, Any] = SMALL) -> Path:
    """A checkpoint with random weights and a tokenizer in the two files that Dream's come with."""
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draw) * 0.1 for name, shape in shapes(config).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {
        str(256 + i): {"content": name, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
                       "single_word": False}
        for i, name in enumerate(CONTROL)
    }  # fmt: skip
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_dream_7b_maps_every_name_without_allocating(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DREAM_7B))
    checkpoint = Checkpoint.find(tmp_path, weights=False)
    description = checkpoint.description
    assert parameter_count(description) == 7_615_616_512
    assert (description.shift, description.mask, description.eos, description.pad) == (True, 151666, (151643,), 151643)
    with torch.device("meta"):
        network = Transformer(description.arch, 16)
    names = checkpoint.family.names(description.arch)
    sizes = {names[ours]: shape for ours, shape in network.shapes().items()}
    assert sizes == shapes(DREAM_7B)
    assert len(sizes) == 339


def test_a_dream_folder_is_qwen2_without_the_causal_mask(tmp_path: Path) -> None:
    """Against transformers' Qwen2, whose layers these are, with every position seeing every other."""
    model = unmask.load(write(tmp_path))
    config = Qwen2Config(**{k: v for k, v in SMALL.items() if k not in ("architectures", "auto_map", "model_type")})
    config._attn_implementation = "eager"
    twin = Qwen2ForCausalLM(config).eval()
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    ids = torch.arange(40, 61)
    everyone = torch.zeros(1, 1, len(ids), len(ids))
    with torch.no_grad():
        reference = twin(ids[None], attention_mask=everyone).logits[0]
    assert torch.allclose(forward(model.denoiser, ids.tolist()), reference, atol=1e-4)


def test_the_tokenizer_comes_from_vocab_and_merges(tmp_path: Path) -> None:
    model = unmask.load(write(tmp_path))
    spec = model.denoiser.spec
    assert (spec.mask, spec.eos, spec.limit, spec.shift) == (260, (256, 258), 261, True)
    ids = model.text.encode("Hi <|mask|>!")
    assert ids[0] == 257 and ids[-len("assistant\n") - 1] == 257 and ids.count(257) == 2
    assert 260 not in ids, "what a user writes stays text"
    assert "Hi <|mask|>!" in model.text.decode(ids)
    (result,) = model.generate("Hi", 8, "threshold", "dual")
    assert set(result.tokens) <= set(range(261)) - {260}


@pytest.mark.parametrize("key", ["rope_scaling", "use_sliding_window", "hidden_act"])
def test_variants_that_the_network_does_not_implement_are_refused(tmp_path: Path, key: str) -> None:
    write(tmp_path, SMALL | {key: {"rope_scaling": {"factor": 2.0}, "use_sliding_window": True}.get(key, "gelu")})
    with pytest.raises(unmask.ModelError, match=key):
        unmask.load(tmp_path)
