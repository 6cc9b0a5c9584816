"""Block-causal families and mixtures of experts: logits of the published code, published configs, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from refusals import refuses
from unmask.core.errors import ModelError
from unmask.inspection import inspect
from unmask.models.loading import blank
from unmask.models.transformer import Transformer
from unmask.models.weights import FAMILIES, Checkpoint, load_denoiser, parameter_count

ROOT = Path(os.environ.get("UNMASK_GOLDEN_BLOCKS") or Path(__file__).parent / "golden" / "blocks")
CHECKPOINTS = ROOT / "checkpoints"
PUBLISHED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
NAMES = [entry["name"] for entry in PUBLISHED]
APART = {"DiffusionGemmaForBlockDiffusion"}  # see test_diffusion_gemma
KNOWN = {architecture for family in FAMILIES for architecture in family.architectures} - APART
TOLERANCE = 1e-4


def config_of(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((CHECKPOINTS / name / "config.json").read_text(encoding="utf-8"))
    return read


def entries() -> list[tuple[Path, dict[str, Any]]]:
    """The logits of the families here, with the folder that their files are in."""
    found = [(file.parent, e) for file in sorted(ROOT.glob("*/logits.json")) for e in json.loads(file.read_text())]
    return [(folder, e) for folder, e in found if set(config_of(e["checkpoint"])["architectures"]) & KNOWN]


LOGITS = entries()
RANDOM = sorted({e["checkpoint"] for _, e in LOGITS})
MIXED = [name for name in RANDOM if any("experts" in key for key in config_of(name))]


@cache
def network(name: str, dtype: torch.dtype = torch.float32) -> Transformer:
    blocks = 4 if Checkpoint.find(CHECKPOINTS / name).description.blocks else None
    checkpoint = Checkpoint.find(CHECKPOINTS / name, block_length=blocks)
    return load_denoiser(checkpoint, checkpoint.spec(), torch.device("cpu"), dtype).network


@torch.no_grad()
def logits(net: Transformer, ids: list[int], rank: torch.Tensor) -> torch.Tensor:
    """Of every position, each of which attends to those of its rank and lower ones."""
    hidden, rotary, sees = net.embed(torch.tensor([ids])), net.rotary[None, : len(ids)], rank <= rank[:, None]
    for block in net.blocks:
        hidden = hidden + block.attend(*block.qkv(hidden, rotary), sees[None])
        hidden = hidden + block.mlp(hidden)
    return net.logits(hidden[0])


def rank_of(attention: dict[str, Any], size: int) -> torch.Tensor:
    at = torch.arange(size)
    return {"block": at // attention.get("block_length", 1), "causal": at, "full": torch.zeros_like(at)}[
        attention["kind"]
    ]


@pytest.mark.parametrize(("folder", "entry"), LOGITS, ids=lambda e: Path(e["file"]).stem if isinstance(e, dict) else "")
def test_logits(folder: Path, entry: dict[str, Any]) -> None:
    reference = np.load(folder / entry["file"])
    ids = entry["input_ids"]
    ours = logits(network(entry["checkpoint"]), ids, rank_of(entry["attention"], len(ids))).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference, rtol=0, atol=TOLERANCE)
    assert Checkpoint.find(CHECKPOINTS / entry["checkpoint"]).description.shift == entry["shifted"]


def test_all_families_and_kinds_of_attention_have_logits() -> None:
    found = {(config_of(e["checkpoint"])["architectures"][0], e["attention"]["kind"]) for _, e in LOGITS}
    own = {family.architectures[0] for family in FAMILIES} - {"LLaDAModelLM", "DreamModel"} - APART
    assert {architecture for architecture, _ in found} == own
    assert {kind for _, kind in found} == {"block", "causal", "full"}
    assert len(LOGITS) >= 58


@pytest.mark.parametrize("name", RANDOM)
def test_bfloat16_is_near_and_routers_stay_in_float32(name: str) -> None:
    """The same experts are chosen, for what is chosen by is kept as it was stored."""
    net, exact = network(name, torch.bfloat16), network(name)
    kinds = {n: p.dtype for n, p in net.named_parameters()}
    assert {n for n, kind in kinds.items() if kind == torch.float32} == {n for n in kinds if ".router." in n}
    ids = list(range(3, 20))
    near, far = (logits(n, ids, rank_of({"kind": "full"}, len(ids))) for n in (net, exact))
    assert near.dtype == torch.float32
    assert float((near - far).abs().mean()) < 0.2 * float(far.abs().mean())


# --- published configs ---------------------------------------------------------------------------------------------


def published(name: str) -> Checkpoint:
    config = next(e["config"] for e in PUBLISHED if e["name"] == name)
    return Checkpoint(Path(name), config, name=name)


SAID = {  # thousand millions of parameters, all and active, that the name or the card says; block; mask
    "JetLM/SDAR-1.7B-Chat": (1.7, 1.7, 4, 151669),
    "JetLM/SDAR-4B-Chat": (4.0, 4.0, 4, 151669),
    "JetLM/SDAR-30B-A3B-Chat-b32": (30.5, 3.3, 32, 151669),
    "inclusionAI/LLaDA2.0-mini": (16, 1.4, 32, 156895),
    "inclusionAI/LLaDA2.1-mini": (16, 1.4, 32, 156895),
    "inclusionAI/LLaDA2.1-flash": (103, 6.1, 32, 156895),
    "Efficient-Large-Model/Fast_dLLM_v2_7B": (7.6, 7.6, 32, 151665),
    "Efficient-Large-Model/Fast_dLLM_v2_1.5B": (1.54, 1.54, 32, 151665),
    "inclusionAI/LLaDA-MoE-7B-A1B-Instruct": (7.36, 1.4, None, 156895),
    "radicalnumerics/RND1-Base-0910": (30.5, 3.3, None, 151669),
    "ByteDance-Seed/Stable-DiffCoder-8B-Instruct": (8.25, 8.25, 4, 5),
}
FILES = {  # GB of the published weights, in bfloat16
    "JetLM/SDAR-1.7B-Chat": 4.06,
    "JetLM/SDAR-4B-Chat": 8.83,
    "inclusionAI/LLaDA-MoE-7B-A1B-Instruct": 14.7,
}


@pytest.mark.parametrize("name", NAMES)
def test_published_sizes(name: str) -> None:
    checkpoint = published(name)
    d, (every, active, block, mask) = checkpoint.description, SAID[name]
    embedding = d.arch.vocab * d.arch.width
    counts = (parameter_count(d), parameter_count(d, active=True))
    for count, said in zip(counts, (every, active), strict=True):  # some count the input's embedding, some do not
        assert min(abs(n / 1e9 - said) for n in (count, count - embedding)) < 0.03 * said
    assert (checkpoint.block, checkpoint.spec().mask, checkpoint.spec().vocab) == (block, mask, d.arch.vocab)
    if name in FILES:
        assert abs(2 * counts[0] / 1e9 - FILES[name]) < 0.01 * FILES[name]


def pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


@pytest.mark.parametrize("name", NAMES)
def test_published_names(name: str) -> None:
    """On the meta device, the names are those of the small checkpoint of the published code, for more layers and
    experts; each parameter is made of the rows of its tensors.
    """
    entry, checkpoint = next(e for e in PUBLISHED if e["name"] == name), published(name)
    arch, like = checkpoint.description.arch, load_file(CHECKPOINTS / entry["like"] / "model.safetensors")
    net = blank(arch)
    assert all(t.is_meta for t in (*net.parameters(), *net.buffers()))
    shapes = net.shapes_of(checkpoint.names)
    assert set(checkpoint.names) == set(shapes)
    assert sum(np.prod(shape) for shape in shapes.values()) == parameter_count(checkpoint.description)
    assert len(set(checkpoint.names.values())) == len(checkpoint.names)
    counts = Counter(map(pattern, checkpoint.names.values()))
    assert set(counts) == {pattern(n) for n in like}
    experts = arch.experts
    layers = arch.layers - len(experts.dense) if experts else 0
    for each, count in counts.items():
        dense = re.search(r"mlp\.(gate|up|down)_proj", each) and experts
        whole = layers * experts.count if experts and "experts.#" in each else layers if "mlp." in each else arch.layers
        assert count == (1 if "#" not in each else len(experts.dense) if dense and experts else whole or arch.layers)


def test_the_config_of_rnd1_counts_not_its_class() -> None:
    """The class that is published with it replaces every size that a config gives by those of RND1-Base."""
    small = Checkpoint.find(CHECKPOINTS / "rnd1-rand").description.arch
    assert (small.width, small.layers, small.experts and small.experts.count) == (64, 3, 8)
    whole, bare = published("radicalnumerics/RND1-Base-0910"), Checkpoint(Path(), {"architectures": ["RND1LM"]})
    assert replace(bare.description, pad=whole.description.pad) == whole.description
    with refuses(ModelError, "logit_scale"):
        Checkpoint(Path(), {"architectures": ["RND1LM"], "logit_scale": 2.0}).description  # noqa: B018


def test_an_end_of_text_in_the_config_is_not_needed_where_the_family_has_one() -> None:
    config = next(e["config"] for e in PUBLISHED if e["name"] == "inclusionAI/LLaDA2.1-mini")
    assert "eos_token_id" not in config
    assert published("inclusionAI/LLaDA2.1-mini").spec().eos == (156892,)


# --- block lengths -------------------------------------------------------------------------------------------------


def renamed(tmp_path: Path, name: str, like: str = "sdar-rand", **change: Any) -> Path:
    """A copy of a checkpoint in a folder of that name; None leaves a key out."""
    shutil.copytree(CHECKPOINTS / like, tmp_path / name)
    config = {k: v for k, v in (config_of(like) | change).items() if v is not None}
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "key", "given", "block"),
    [
        ("mine", 16, None, 16),
        ("mine", 16, 8, 8),
        ("mine-b32", None, None, 32),
        ("SDAR-8B-Chat-b64", None, None, 64),
        ("SDAR-8B-Chat-b16-v2", 16, None, 16),
        ("SDAR-8B-Chat", None, None, 4),
        ("TraDo-4B-Instruct", None, None, 4),
        ("mine-b32", 4, 8, 8),
        ("mine", None, 24, 24),
    ],
)
def test_block_lengths_of_sdar(tmp_path: Path, name: str, key: int | None, given: int | None, block: int) -> None:
    folder = renamed(tmp_path, name, block_size=key)
    assert Checkpoint.find(folder, block_length=given).block == block


@pytest.mark.parametrize(
    ("like", "name", "block"),
    [
        ("llada2-rand", "any", 32),
        ("llada2-rand", "any-b16", 16),
        ("fastdllm-v2-rand", "any", 32),
        ("stable-diffcoder-rand", "any", 4),
        ("llada-moe-rand", "any-b8", None),
        ("rnd1-rand", "any", None),
    ],
)
def test_block_lengths_of_families(tmp_path: Path, like: str, name: str, block: int | None) -> None:
    assert Checkpoint.find(renamed(tmp_path, name, like)).block == block


def test_a_hub_id_says_the_block_length_though_the_hubs_folder_does_not() -> None:
    config = config_of("sdar-rand") | {"block_size": None}
    assert Checkpoint(Path("snapshots/0123abcd"), config, name="JetLM/SDAR-4B-Chat-b8").block == 8


@pytest.mark.parametrize(
    ("name", "key", "given", "named"),
    [
        ("mine", None, None, ["block_size", "mine", "block_length"]),
        ("mine-b32", 4, None, ["[4, 32]", "block_length"]),
        ("mine", 4, 0, ["block_length", "0"]),
        ("mine", 4, 2000, ["block_length", "1024", "2000"]),
        ("mine", 4, True, ["block_length", "True"]),
        ("mine", 4, "8", ["block_length", "'8'"]),
        ("mine", -4, None, ["block_size", "-4"]),
        ("mine-b5000", None, None, ["5000", "block_length"]),
    ],
)
def test_block_lengths_that_are_refused(tmp_path: Path, name: str, key: Any, given: Any, named: list[str]) -> None:
    folder = renamed(tmp_path, name, block_size=key)
    with refuses(ModelError, *named):
        unmask.load(folder, block_length=given)


def test_a_block_length_for_a_model_without_blocks_is_refused() -> None:
    with refuses(ModelError, "block_length", "llada_moe"):
        unmask.load(CHECKPOINTS / "llada-moe-rand", block_length=8)


# --- what is refused -----------------------------------------------------------------------------------------------


def altered(tmp_path: Path, like: str, change: dict[str, Any]) -> Path:
    return renamed(tmp_path, "altered", like, **change)


@pytest.mark.parametrize(
    ("like", "change", "named"),
    [
        ("sdar-rand", {"quantization_config": {"quant_method": "gptq"}}, ["gptq", "quantised"]),
        ("sdar-rand", {"attention_sinks": True}, ["attention_sinks"]),
        ("sdar-rand", {"block_causal_prompt": True}, ["block_causal_prompt"]),
        ("sdar-rand", {"sliding_window": 8, "use_sliding_window": True}, ["use_sliding_window"]),
        ("sdar-moe-rand", {"num_experts": None}, ["num_experts"]),
        ("sdar-moe-rand", {"num_experts": 2}, ["2 experts", "3"]),
        ("sdar-moe-rand", {"mlp_only_layers": [7]}, ["mlp_only_layers"]),
        ("sdar-moe-rand", {"expert_capacity": 3}, ["expert_capacity"]),
        ("llada2-rand", {"n_group": 3}, ["16 experts", "3 groups"]),
        ("llada2-rand", {"n_group": 16}, ["16 experts", "16 groups"]),
        ("llada2-rand", {"topk_group": 5}, ["keeps 5"]),
        ("llada2-rand", {"topk_group": 1, "num_experts_per_tok": 5}, ["keeps 1", "5 experts"]),
        ("llada2-rand", {"block_routing_capacity": 48}, ["block_routing_capacity"]),
        ("llada2-rand", {"use_sliding_window": True}, ["use_sliding_window"]),
        ("llada-moe-rand", {"moe_layer_freq": [1, 1]}, ["moe_layer_freq"]),
        ("llada-moe-rand", {"moe_layer_freq": [1, 2, 1]}, ["moe_layer_freq"]),
        ("llada-moe-rand", {"clip_qkv": -1}, ["clip_qkv"]),
        ("rnd1-rand", {"is_causal": True}, ["is_causal"]),
        ("rnd1-rand", {"decoder_sparse_step": 2}, ["decoder_sparse_step"]),
        ("stable-diffcoder-rand", {"rope_scaling": {"type": "dynamic", "factor": 2}}, ["dynamic"]),
        ("stable-diffcoder-rand", {"eos_token_id": None}, ["eos_token_id"]),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, like: str, change: dict[str, Any], named: list[str]) -> None:
    with refuses(ModelError, *named):
        unmask.load(altered(tmp_path, like, change))


def test_a_family_without_a_mask_id_of_its_own_asks_for_it() -> None:
    config = {"architectures": ["DreamModel"], **{k: v for k, v in config_of("sdar-rand").items() if "arch" not in k}}
    for key in ("mask_token_id", "head_dim", "fuse_cross_entropy", "block_size"):
        config.pop(key)
    with refuses(ModelError, "mask_token_id", "dream"):
        Checkpoint(Path(), config).description  # noqa: B018


@pytest.mark.parametrize(
    ("like", "change", "named"),
    [
        ("sdar-moe-rand", {"num_experts": 6}, ["experts.6"]),
        ("sdar-moe-rand", {"num_experts": 9}, ["missing", "experts.8.gate_proj.weight"]),
        ("llada2-rand", {"num_shared_experts": 0}, ["shared_experts"]),
        ("llada2-rand", {"num_shared_experts": 2}, ["shared_experts", "shape"]),
        ("llada2-rand", {"first_k_dense_replace": 0}, ["missing", "layers.0.mlp.gate.weight"]),
        ("llada2-rand", {"first_k_dense_replace": 2}, ["missing", "layers.1.mlp.gate_proj.weight"]),
        ("llada2-rand", {"moe_intermediate_size": 40}, ["shape", "experts"]),
        ("llada2-rand", {"head_dim": 16}, ["attention", "shape"]),
        ("llada-moe-rand", {"moe_router_enable_expert_bias": True}, ["missing", "expert_bias"]),
        ("llada-moe-rand", {"moe_layer_freq": [0, 1, 1]}, ["missing", "layers.0.mlp.gate_proj.weight"]),
        ("llada-moe-ext-rand", {"shared_expert_intermediate_size": None}, ["shared_expert"]),
        ("rnd1-rand", {"num_hidden_layers": 2}, ["layers.2"]),
    ],
)
def test_experts_that_do_not_fit_the_weights(
    tmp_path: Path, like: str, change: dict[str, Any], named: list[str]
) -> None:
    with refuses(ModelError, *named):
        unmask.load(altered(tmp_path, like, change))


@pytest.mark.parametrize("name", MIXED)
def test_missing_experts_are_named(tmp_path: Path, name: str) -> None:
    folder = altered(tmp_path, name, {})
    tensors = load_file(folder / "model.safetensors")
    gone = next(n for n in sorted(tensors) if ".experts.3.up_proj" in n)
    save_file({n: t for n, t in tensors.items() if n != gone}, folder / "model.safetensors")
    with refuses(ModelError, "missing", gone):
        unmask.load(folder)
    assert gone in inspect(folder)["weights"]


# --- what is told --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "attention", "block", "experts"),
    [
        ("sdar-rand", "sdar", "block-causal", 4, None),
        ("llada2-rand", "llada2", "block-causal", 32, (16, 4, 32, 32, 2)),
        ("llada2-ext-rand", "llada2", "block-causal", 32, (8, 1, 32, 64, 2)),
        ("llada-moe-ext-rand", "llada_moe", "full", None, (8, 3, 48, 32, 2)),
        ("rnd1-rand", "rnd1", "full", None, (8, 2, 48, 0, 3)),
    ],
)
def test_inspect(name: str, family: str, attention: str, block: int | None, experts: tuple[int, ...] | None) -> None:
    report = inspect(CHECKPOINTS / name)
    assert (report["family"], report["attention"], report["block"]) == (family, attention, block)
    found = report["experts"]
    assert (found and tuple(found[k] for k in ("count", "chosen", "width", "shared", "layers"))) == experts
    assert report["weights"].startswith("complete")
    assert report["active"] < report["parameters"] if experts else report["active"] == report["parameters"]


def test_inspect_tells_that_a_block_length_is_not_known(tmp_path: Path) -> None:
    folder = renamed(tmp_path, "mine", block_size=None)
    assert "block_length" in inspect(folder)["block"]
    assert inspect(folder, block_length=8)["block"] == 8
    with refuses(ModelError, "block_length"):
        inspect(folder, block_length=0)


def test_queries_keys_and_values_are_bounded(tmp_path: Path) -> None:
    """Rotation keeps the length of each pair of numbers, which is at most the bound times the root of two."""
    net = unmask.load(altered(tmp_path, "llada-moe-rand", {"clip_qkv": 0.25})).denoiser.network
    block, hidden = net.blocks[1], network("llada-moe-rand").embed(torch.arange(4, 20)[None])
    query, key, value = block.qkv(hidden, net.rotary[None, :16])
    for x, bound in ((query, 0.25 * 2**0.5), (key, 0.25 * 2**0.5), (value, 0.25)):
        assert float(x.abs().max()) == pytest.approx(bound, abs=0.04)
        assert float(x.abs().max()) <= bound + 1e-6
    assert torch.equal(block.value(hidden), value)
    free = network("llada-moe-rand").blocks[1].qkv(hidden, net.rotary[None, :16])[2]
    torch.testing.assert_close(free.clamp(-0.25, 0.25), value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in RANDOM if "-ext-" not in name and "-tied-" not in name])
def test_a_row_alone_is_the_row_in_a_batch(name: str) -> None:
    """Experts get the positions of all rows at once; the cache of block models changes nothing."""
    has_blocks = Checkpoint.find(CHECKPOINTS / name).description.blocks is not None
    lm = unmask.load(CHECKPOINTS / name, device="cpu", dtype="float32", block_length=4 if has_blocks else None)
    assert lm.denoiser.spec.block == (4 if has_blocks else None)
    prompts, lengths = [[15, 6, 7], [9, 3, 44, 23, 80, 11, 7], [64]], [12, 5, 9]
    options: dict[str, Any] = {"policy": "threshold(tau=0.3,block_length=4)", "ignore_eos": True}
    for temperature, kept in product((0.0, 0.7), ("none", "blockwise") if has_blocks else ("none",)):
        more = options | {"temperature": temperature, "cache": kept}
        together = lm.generate(prompts, lengths, seed=[3, 4, 5], **more)
        for i, result in enumerate(together):
            (alone,) = lm.generate([prompts[i]], lengths[i], seed=3 + i, **options, temperature=temperature)
            assert alone.tokens == result.tokens


def characters(folder: Path, mask: str) -> Path:
    """Give a folder a tokenizer of single characters, in which the mask is a token like any other."""
    vocab = {chr(32 + i): i for i in range(95)}
    added = [{"id": i, "content": name, "special": False, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for name, i in ((mask, 126), ("</s>", 125))]  # fmt: skip
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": None}
    table = {"version": "1.0", "added_tokens": added, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(table))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_text_that_spells_the_mask_of_a_family_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though neither the config names its id nor the tokenizer calls it special, as with Fast-dLLM v2."""
    monkeypatch.setattr("unmask.models.fast_dllm.MASK", 126)
    folder = characters(renamed(tmp_path, "mine", "fastdllm-v2-rand", mask_token_id=None), "|<MASK>|")
    lm = unmask.load(folder, device="cpu")
    assert lm.denoiser.spec.mask == 126
    (result,) = lm.generate("say |<MASK>| now</s>", 6, "threshold(tau=0.3)", ignore_eos=True)
    assert result.error is None
    assert len(result.prompt_tokens) == len("say |<MASK>| now</s>")
