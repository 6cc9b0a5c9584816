"""DiffusionGemma's network against the published one: logits, weights and configurations."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import unmask
from gemma import CHECKPOINT, ROOT, denoiser, model, read
from refusals import refuses
from unmask import registry
from unmask.core.canvas import NO_MASK, Canvas
from unmask.core.errors import ModelError
from unmask.core.protocols import Ask, Sampling
from unmask.core.rows import gather
from unmask.models import diffusion_gemma_network
from unmask.models.diffusion_gemma import DiffusionGemma
from unmask.models.diffusion_gemma_denoiser import Carried, GemmaDenoiser, Pass
from unmask.models.diffusion_gemma_network import GemmaBlock
from unmask.models.loading import blank
from unmask.models.transformer import EAGER
from unmask.models.weights import Checkpoint, parameter_count

LOGITS = [(folder, e) for folder, e in read("logits.json") if e["checkpoint"].startswith("diffusion-gemma")]
PUBLISHED: dict[str, Any] = {  # diffusiongemma-26B-A4B-it, what concerns text
    "architectures": ["DiffusionGemmaForBlockDiffusion"],
    "boi_token_id": 255999,
    "canvas_length": 256,
    "dtype": "bfloat16",
    "eoi_token_id": 258882,
    "image_token_id": 258880,
    "initializer_range": 0.02,
    "model_type": "diffusion_gemma",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "max_position_embeddings": 262144,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "top_k_experts": 8,
        "use_bidirectional_attention": "vision",
        "vocab_size": 262144,
    },
    "tie_word_embeddings": True,
    "vision_config": {"hidden_size": 1152, "model_type": "gemma4_vision", "num_hidden_layers": 27},
    "vision_soft_tokens_per_image": 280,
}
TINY = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
ROPE = TINY["text_config"]["rope_parameters"]


def sampling(canvas: Canvas) -> Sampling:
    zero = torch.zeros_like(canvas.prompt)
    return Sampling(zero.double(), zero.double() + 1, zero, zero, samples=False, filters=False)


def denoised(entry: dict[str, Any], folder: Path, other: GemmaDenoiser | None = None) -> torch.Tensor:
    """The logits of a canvas behind a prefix."""
    prefix, ids = [i for part in entry["prefix"] for i in part], entry["input_ids"]
    own = other or denoiser(ROOT / "checkpoints" / entry["checkpoint"])
    own = GemmaDenoiser(own.network, replace(own.spec, block=len(ids)))
    canvas = Canvas.blank([prefix], [len(ids)], own.spec)
    none, heat = registry.cache("none"), torch.ones(1, dtype=torch.float64)
    state = own.init(canvas, none)
    if "self_conditioning_logits" in entry:
        before = torch.tensor(np.load(folder / entry["self_conditioning_logits"]))
        state = type(state)(state.plain, None, Carried(own.network.signal(before)[None], canvas.prompt))
    ask = Ask(canvas.block(len(ids)), draft=torch.tensor([prefix + ids]), heat=heat)
    needs = frozenset({"logits"})
    found = own(canvas, ask, none, state, sampling(canvas), canvas.prompt * 0, needs=needs).prediction.logits
    assert found is not None
    return found


@torch.no_grad()
def encoded(entry: dict[str, Any]) -> torch.Tensor:
    """The hidden states of a prefix, causal, after the last norm."""
    own, prefix = denoiser(ROOT / "checkpoints" / entry["checkpoint"]), [i for part in entry["prefix"] for i in part]
    every, behind = torch.ones(1, len(prefix), dtype=torch.bool), torch.tensor([len(prefix)])
    none, canvas = registry.cache("none"), Canvas.blank([prefix], [1], own.spec)
    state = Pass(own.init(canvas, none).plain, behind, torch.zeros(1, 1, own.width))
    hidden = own._tile(torch.tensor([prefix]), none, state, None, every, None, None, gather(every, every))
    return own.network.norm(hidden)[0, -entry["shape"][0] :]


@pytest.mark.parametrize(("folder", "entry"), LOGITS, ids=lambda e: e["name"] if isinstance(e, dict) else "")
def test_logits(folder: Path, entry: dict[str, Any]) -> None:
    ours = (denoised(entry, folder) if "input_ids" in entry else encoded(entry)).numpy()
    assert list(ours.shape) == entry["shape"]
    np.testing.assert_allclose(ours, np.load(folder / entry["file"]), rtol=0, atol=1e-4)


def test_attention_in_pieces_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few queries at a time, with the keys of their windows alone."""
    monkeypatch.setattr(diffusion_gemma_network, "_QUERIES", 3)
    for folder, entry in LOGITS:
        ours = (denoised(entry, folder) if "input_ids" in entry else encoded(entry)).numpy()
        np.testing.assert_allclose(ours, np.load(folder / entry["file"]), rtol=0, atol=1e-4)


def test_the_router_sees_the_residual_and_the_experts_what_is_normalised() -> None:
    block = denoiser().network.blocks[1]
    assert isinstance(block, GemmaBlock)
    mixture, draw = block.mixture, torch.Generator().manual_seed(0)
    x, seen = (torch.randn(2, 9, 48, generator=draw) for _ in range(2))
    with torch.no_grad():
        chosen, weight = mixture.router(seen.flatten(0, 1))
        expected = torch.zeros(18, 48)
        inside, outside = (w.weight.view(6, -1, w.weight.shape[1]) for w in (mixture.experts_in, mixture.experts_out))
        for at in range(18):
            for e, w in zip(chosen[at].tolist(), weight[at], strict=True):
                gate, up = (inside[e] @ x.flatten(0, 1)[at]).chunk(2)
                expected[at] += w * (outside[e] @ (F.gelu(gate, approximate="tanh") * up))
        torch.testing.assert_close(mixture(x, seen), expected.view(2, 9, 48))


# --- configurations and weights ------------------------------------------------------------------------------------


def published(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of transformers' own model, on the meta device, that a checkpoint holds and text needs."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    with torch.device("meta"):
        theirs = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**json.loads(json.dumps(config))))
    kept = re.compile(r"model\.decoder\.|model\.encoder\.language_model\.layers\.\d+\.layer_scalar")
    return {name: value.shape for name, value in theirs.state_dict().items() if kept.match(name)}


@pytest.mark.parametrize("config", [TINY, PUBLISHED], ids=["tiny", "26B-A4B"])
def test_names_and_shapes_are_those_of_the_published_model(config: dict[str, Any]) -> None:
    checkpoint = Checkpoint(Path("x"), config)
    network = blank(checkpoint.description.arch)
    assert all(p.is_meta for p in network.parameters())
    shapes = network.shapes_of(checkpoint.names)
    ours = {theirs: torch.Size(shapes[name]) for name, theirs in checkpoint.names.items()}
    assert ours == published(config)


def test_the_published_configuration() -> None:
    checkpoint = Checkpoint(Path("x"), PUBLISHED)
    described, spec = checkpoint.description, checkpoint.spec()
    assert parameter_count(described) == 25_250_986_812
    assert (spec.mask, spec.block, spec.context, spec.eos) == (NO_MASK, 256, 262144, (1,))
    assert described.published.policy == "renoise"
    assert described.published.gen_length == 256


def test_both_spellings_of_a_configuration_are_one() -> None:
    newer = json.loads((CHECKPOINT / "config.v5.23.json").read_text(encoding="utf-8"))
    assert Checkpoint(Path("x"), newer).description == Checkpoint(Path("x"), TINY).description


def test_ends_of_text_are_those_of_the_generation_config(tmp_path: Path) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106, 50]}), encoding="utf-8")
    assert unmask.load(folder, device="cpu").denoiser.spec.eos == (1, 106, 50)


def changed(key: str, value: Any) -> dict[str, Any]:
    return TINY | {"text_config": TINY["text_config"] | {key: value}}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (TINY | {"text_config": None}, ("text_config",)),
        (TINY | {"canvas_length": 0}, ("canvas_length", 0)),
        (TINY | {"tie_word_embeddings": False}, ("tie_word_embeddings", False)),
        (changed("top_k_experts", 7), (7, 6)),
        (changed("num_experts", None), ("text_config.num_experts",)),
        (changed("layer_types", ["full_attention"] * 3), ("text_config.layer_types", 4)),
        (changed("layer_types", ["full_attention"] * 3 + ["sliding_attention"]), ("layer_types", "full_attention")),
        (changed("hidden_activation", "silu"), ("text_config.hidden_activation", "silu")),
        (changed("use_bidirectional_attention", "all"), ("use_bidirectional_attention", "all")),
        (changed("attention_bias", True), ("text_config.attention_bias", True)),
        (changed("attn_logit_softcapping", 50.0), ("text_config.attn_logit_softcapping", 50.0)),
        (changed("num_key_value_heads", 3), (4, 3)),
        (changed("rope_parameters", {"full_attention": {}}), ("rope_parameters", "sliding_attention")),
        (
            changed("rope_parameters", ROPE | {"full_attention": {"rope_type": "yarn"}}),
            ("rope_parameters.full_attention.rope_type", "yarn"),
        ),
        (TINY | {"quantization_config": {"quant_method": "fp8"}}, ("fp8",)),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], named: tuple[Any, ...]) -> None:
    with refuses(ModelError, *named):
        Checkpoint(Path("x"), config).description  # noqa: B018


@pytest.mark.parametrize(
    "lost", ["model.decoder.layers.1.experts.down_proj", "model.encoder.language_model.layers.2.layer_scalar"]
)
def test_a_weight_that_is_missing_is_named(lost: str, tmp_path: Path) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    held = load_file(folder / "model.safetensors")
    del held[lost]
    save_file(held, folder / "model.safetensors")
    with refuses(ModelError, lost):
        unmask.load(folder, device="cpu")


def test_what_sees_images_is_left_out_and_other_weights_are_not(tmp_path: Path) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    held = load_file(folder / "model.safetensors")
    assert any("vision_tower" in name for name in held)
    save_file(held | {"model.decoder.layers.0.self_attn.v_gate": torch.zeros(2)}, folder / "model.safetensors")
    with refuses(ModelError, "model.decoder.layers.0.self_attn.v_gate"):
        unmask.load(folder, device="cpu")


def test_a_full_layer_has_no_values_of_its_own() -> None:
    kinds = DiffusionGemma().names(Checkpoint(Path("x"), TINY).description.arch)
    assert "blocks.1.v.weight" in kinds
    assert "blocks.2.v.weight" not in kinds


def test_compile_is_refused() -> None:
    with refuses(ModelError, "compile", "diffusion_gemma"):
        denoiser().network.use(replace(EAGER, compiled=True))


def test_where_the_numbers_end_is_found() -> None:
    own = denoiser(CHECKPOINT)
    tokens = torch.arange(2, 30)
    assert isinstance(own, GemmaDenoiser)
    assert own.first_not_finite(tokens) is None
    weight = own.network.blocks[2].down.weight
    with mock.patch.object(own.network.blocks[2].down, "weight", torch.nn.Parameter(weight * torch.nan)):
        assert own.first_not_finite(tokens) == "layer 3 of 4"
    assert model().recommended.policy == "renoise"


@pytest.mark.parametrize("given", [8, None])
def test_the_canvas_has_the_length_of_the_config_or_what_is_given(given: int | None) -> None:
    assert unmask.load(CHECKPOINT, device="cpu", block_length=given).denoiser.spec.block == (given or 16)


def test_bfloat16_is_near_and_routers_stay_in_float32() -> None:
    near = unmask.load(CHECKPOINT, device="cpu", dtype="bfloat16").denoiser
    kinds = {name for name, p in near.network.named_parameters() if p.dtype == torch.float32}
    assert kinds == {name for name, _ in near.network.named_parameters() if ".router." in name}
    assert isinstance(near, GemmaDenoiser)
    folder, entry = LOGITS[0]
    sharp = torch.tensor(np.load(folder / entry["file"]))
    assert float((denoised(entry, folder, near) - sharp).abs().mean()) < 0.2 * float(sharp.abs().mean())
