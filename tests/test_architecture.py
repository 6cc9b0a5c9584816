"""Every part of the network's description against ``transformers``' own, and config keys that would change it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helpers import Request, decode, tiny
from llada_folder import CONFIG as LLADA
from unmask.core.canvas import ModelSpec
from unmask.core.errors import ModelError
from unmask.core.rows import gather
from unmask.models import causal
from unmask.models.attention import rotate
from unmask.models.config import Config
from unmask.models.dream import Dream
from unmask.models.family import describe
from unmask.models.llada import Llada
from unmask.models.rope import Interpolation, rope_of, rotary_table
from unmask.models.tensors import tensors_of
from unmask.models.transformer import Architecture, Transformer
from unmask.models.weights import Checkpoint, load_denoiser
from unmask.profiles import fingerprint

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 777.0, "factor": 4.0, "original_max_position_embeddings": 16}
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
KINDS |= {"qwen3": (Qwen3Config, Qwen3ForCausalLM)}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "heads of another size": ("llama", {"head_dim": 10}),
    "attention bias": ("llama", {"attention_bias": True}),
    "mlp bias": ("llama", {"mlp_bias": True, "tie_word_embeddings": True}),
    "eps": ("llama", {"rms_norm_eps": 0.3}),
    "theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0}}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "yarn": ("qwen2", {"rope_parameters": YARN}),
    "biases of qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "norms of qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3 with biases": ("qwen3", {"head_dim": 6, "attention_bias": True, "tie_word_embeddings": True}),
}
TOKENS = [5, 60, 7, 7, 31, 12, 44, 2, 18, 9, 3, 27, 58, 6]


def write(folder: Path, kind: str, change: dict[str, Any]) -> Any:
    """A random model of ``transformers`` in float64, and a folder that holds it."""
    torch.manual_seed(0)
    config, model = KINDS[kind]
    made = model(config(**SIZES | change)).double().eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(torch.randn(weight.shape, dtype=weight.dtype), alpha=0.3)
    made.save_pretrained(folder)
    return made


def bidirectional(model: Any, tokens: list[int]) -> Tensor:
    """``[T, V]`` logits without the causal mask."""
    everything = torch.zeros(1, 1, len(tokens), len(tokens), dtype=torch.float64)
    with torch.inference_mode():
        found: Tensor = model(torch.tensor([tokens]), attention_mask=everything).logits[0]
    return found


def plain(network: Transformer, tokens: list[int]) -> Tensor:
    """``[T, V]`` of one pass through our network."""
    ids = torch.tensor([tokens])
    rotary = network.rotate_rows(gather(ids >= 0, ids >= 0))
    with torch.inference_mode():
        hidden = network.embed(ids)
        for block in network.blocks:
            hidden = hidden + block.attend(*block.qkv(hidden, rotary), None)  # type: ignore[operator]
            hidden = hidden + block.mlp(hidden)  # type: ignore[operator]
        return network.logits(hidden[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_is_that_of_transformers(variant: str, tmp_path: Path) -> None:
    """Up to the rotary embedding, which is float32 in both, and each variant differs from the plain one."""
    kind, change = VARIANTS[variant]
    theirs = write(tmp_path, kind, change)
    model = causal.load(str(tmp_path))
    network = model.network(torch.device("cpu"))
    assert network.dtype == torch.float64
    expected = bidirectional(theirs, TOKENS)
    assert expected.std() > 0.3
    torch.testing.assert_close(plain(network, TOKENS), expected, rtol=0, atol=3e-6 * float(expected.std()))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "plain"])
def test_each_variant_matters(variant: str, tmp_path: Path) -> None:
    """The same weights with the part taken out of the description, or out of the weights, give other logits."""
    kind, change = VARIANTS[variant]
    theirs = write(tmp_path, kind, change)
    network = causal.load(str(tmp_path)).network(torch.device("cpu"))
    expected, arch = bidirectional(theirs, TOKENS), network.arch
    if arch.scaling is not None or arch.theta != 10000.0:
        network.arch = replace(arch, scaling=None, theta=10000.0)
        network.make_rotary(64, "cpu")
    elif arch.eps != 1e-6:
        for module in network.modules():
            if hasattr(module, "eps"):
                module.eps = 1e-6
    else:
        for name, weight in network.named_parameters():
            if "bias" in name or "q_norm" in name or (variant.startswith("heads") and "k" in name):
                weight.data.mul_(0.5)
    assert (plain(network, TOKENS) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["heads of another size", "norms of qwen3"])
def test_values_alone_are_the_values(variant: str, tmp_path: Path) -> None:
    kind, change = VARIANTS[variant]
    write(tmp_path, kind, change)
    network = causal.load(str(tmp_path)).network(torch.device("cpu"))
    block: Any = network.blocks[1]
    hidden = torch.randn(2, 5, 24, dtype=torch.float64)
    _, _, value = block.qkv(hidden, network.rotary[None, :5])
    torch.testing.assert_close(block.value(hidden), value)


def test_a_part_of_each_head_is_rotated() -> None:
    """The first dimensions as if the head had no others, which stay as they are."""
    x, table = torch.randn(2, 3, 4, 10, dtype=torch.float64), rotary_table(3, 6, 100.0)[None]
    turned = rotate(x, table)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert torch.equal(turned[..., :6], rotate(x[..., :6].contiguous(), table))
    assert not torch.allclose(turned[:, 1:, :, :6], x[:, 1:, :, :6])


@pytest.mark.parametrize("spelling", ["beside", "inside"])
def test_partial_rotary_factor_is_honoured(spelling: str, tmp_path: Path) -> None:
    write(tmp_path, "llama", {"head_dim": 8})
    config = json.loads((tmp_path / "config.json").read_text())
    where = config if spelling == "beside" else config["rope_parameters"]
    where["partial_rotary_factor"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = causal.load(str(tmp_path))
    assert (model.description.arch.head_dim, model.description.arch.rotary_dim) == (8, 4)
    assert model.network(torch.device("cpu")).rotary.shape == (65, 2, 4)


# --- rotary frequencies -----------------------------------------------------------------------------------------

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
    "llama3 of llama 3.1": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn of qwen2.5": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, its own gain": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5},
    "yarn, betas": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, not rounded": {"rope_type": "yarn", "factor": 6.0, "truncate": False},
    "yarn of deepseek": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.9},
}


def frequencies(given: dict[str, Any], head: int, context: int) -> tuple[Tensor, float]:
    """``transformers``' inverse frequencies and gain."""
    given = {"original_max_position_embeddings": context} | given if given["rope_type"] == "yarn" else given
    config = PreTrainedConfig(
        head_dim=head, hidden_size=head, num_attention_heads=1, max_position_embeddings=context, rope_parameters=given
    )
    if given["rope_type"] == "default":
        return 1.0 / (given["rope_theta"] ** (torch.arange(0, head, 2).float() / head)), 1.0
    made, gain = ROPE_INIT_FUNCTIONS[given["rope_type"]](config)
    return made, float(gain)


@pytest.mark.parametrize("theta", [10000.0, 1e6])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_scaling, type", "rope_parameters"])
@pytest.mark.parametrize("name", ROPES)
def test_rotary_tables_are_those_of_transformers(name: str, spelling: str, theta: float) -> None:
    given, context = ROPES[name], 65536 if "of" in name.split() else 128
    inner = dict(given)
    if spelling == "rope_scaling, type":
        inner["type"] = inner.pop("rope_type")
    written = (
        {"rope_parameters": inner | {"rope_theta": theta}}
        if spelling == "rope_parameters"
        else {"rope_theta": theta, "rope_scaling": inner}
    )
    rope = rope_of(Config(written, "x"), context)
    inverse, gain = frequencies(given | {"rope_theta": theta}, 32, context)
    angle = torch.arange(100).float()[:, None] * inverse
    table = rotary_table(100, 32, rope.theta, rope.scaling)
    expected = torch.stack([torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)], 1) * gain
    torch.testing.assert_close(table, expected, rtol=0, atol=2e-5)


def test_both_spellings_may_stand_side_by_side() -> None:
    """As a config that was saved again has them."""
    old, new = {"type": "linear", "rope_type": "linear", "factor": 3}, {"rope_type": "linear", "rope_theta": 7.0}
    rope = rope_of(Config({"rope_scaling": old, "rope_parameters": new, "rope_theta": 7.0}, "x"), 64)
    assert (rope.theta, rope.scaling) == (7.0, Interpolation(3.0))


@pytest.mark.parametrize("given", [None, {}, {"type": "default"}, {"rope_type": "default"}])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_default_means_no_scaling(key: str, given: Any) -> None:
    rope = rope_of(Config({"rope_theta": 7.0, key: given}, "x"), 64)
    assert (rope.theta, rope.share, rope.scaling) == (7.0, 1.0, None)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type = 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_parameters.rope_type = 'longrope'"),
        ({"rope_scaling": {"rope_type": "mine"}}, "rope_scaling.rope_type = 'mine'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "'rope_scaling.factor'"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "rope_scaling.factor = -2"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "mscale": 1.0}}, "rope_scaling.mscale"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention"),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, "rope_theta = 6.0"),
        ({"rope_parameters": {"rope_theta": "5"}}, "rope_parameters.rope_theta = '5'"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn"}}, "rope_scaling.type = 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, "rope_scaling.rope_type = 'linear'"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}, "rope_theta": 5000.0}, "rope_scaling.high_freq_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5"),
    ],
)
def test_rope_settings_that_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as caught:
        rope_of(Config(given, "x"), 64)
    assert named in str(caught.value)


# --- Dream in both spellings ------------------------------------------------------------------------------------

DREAM = SIZES | {"architectures": ["DreamModel"], "mask_token_id": 60, "hidden_act": "silu", "torch_dtype": "float64"}


def dream(folder: Path, change: dict[str, Any], sizes: dict[str, Any]) -> tuple[Any, Any]:
    """Qwen2 of ``transformers`` with ``change`` in it, and the same weights loaded as Dream with the same keys."""
    theirs = write(folder / "theirs", "qwen2", sizes)
    save_file({n: t.contiguous() for n, t in theirs.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(DREAM | {"rms_norm_eps": 1e-6} | change))
    checkpoint = Checkpoint.find(folder)
    ours = load_denoiser(checkpoint, checkpoint.spec(), torch.device("cpu"), torch.float64)
    return theirs, ours.network


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, None),
        ({"rope_theta": 1e6}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        (
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default"}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, None),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
        ),
        ({"head_dim": 8}, None),
    ],
)
def test_dream_reads_what_transformers_writes(
    change: dict[str, Any], sizes: dict[str, Any] | None, tmp_path: Path
) -> None:
    theirs, network = dream(tmp_path, change, sizes or change)
    expected = bidirectional(theirs, TOKENS)
    torch.testing.assert_close(plain(network, TOKENS), expected, rtol=0, atol=3e-6 * float(expected.std()))


# --- keys -------------------------------------------------------------------------------------------------------


def read(family: Any, config: dict[str, Any]) -> Any:
    return describe(family, config, Path("x"))


FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llada": (Llada(), LLADA),
    "dream": (Dream(), DREAM),
    "llama": (causal.FAMILIES[0], SIZES),
    "qwen2": (causal.FAMILIES[1], SIZES),
    "qwen3": (causal.FAMILIES[2], SIZES),
}
UNKNOWN = {
    "attn_logit_softcapping": 30.0,
    "final_logit_softcapping": 30.0,
    "logit_scale": 2.0,
    "embedding_multiplier": 12,
    "residual_multiplier": 0.22,
    "query_pre_attn_scalar": 256,
    "use_qk_norm": True,
    "qk_layernorm": True,
    "num_experts": 8,
    "num_local_experts": 4,
    "attention_sinks": True,
    "no_rope_layers": [1, 0],
    "attentionScale": 0.5,
    "mup_alpha": 0.5,
    "frobnicate": True,
    "pruned_heads": {"0": [1]},
    "norm_type": "layernorm",
    "position_embedding_type": "absolute",
    "is_causal": True,
    "block_size": 32,
}
NEUTRAL = {
    "attn_logit_softcapping": None,
    "use_qk_norm": False,
    "num_experts": 0,
    "pruned_heads": {},
    "no_rope_layers": [],
    "_attn_implementation_autoset": True,
    "transformers_version": "5.0",
    "initializer_range": 0.02,
    "use_cache": True,
    "attention_dropout": 0.1,
    "seed": 42,
    "learning_rate": 1e-4,
    "unsloth_version": "2025.1",
    "image_token_id": 5,
    "id2label": {"0": "a"},
    "name_of_the_run": "brave-otter-7",
    "auto_map": {"AutoModel": "x.Y"},
    "transformers.js_config": {"dtype": "q4"},
    "model_max_length": 4096,
    "use_flash_attn": True,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", UNKNOWN)
def test_an_unknown_key_that_may_change_the_computation_is_refused_by_name(family: str, key: str) -> None:
    reader, config = FAMILIES[family]
    with pytest.raises(ModelError) as caught:
        read(reader, config | {key: UNKNOWN[key]})
    assert f"{key} = {UNKNOWN[key]!r}" in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", NEUTRAL)
def test_a_key_that_changes_nothing_is_let_through(family: str, key: str) -> None:
    reader, config = FAMILIES[family]
    assert read(reader, config | {key: NEUTRAL[key]}) == read(reader, config)


@pytest.mark.parametrize(
    ("family", "change", "key"),
    [
        ("qwen2", {"attention_bias": True}, "attention_bias"),
        ("dream", {"attention_bias": True}, "attention_bias"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("dream", {"hidden_act": "relu"}, "hidden_act"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ("llama", {"sliding_window": 8}, "sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llada", {"head_dim": 16}, "head_dim"),
        ("llada", {"sliding_window": 16}, "sliding_window"),
    ],
)
def test_a_variant_that_the_family_does_not_have_is_refused(family: str, change: dict[str, Any], key: str) -> None:
    reader, config = FAMILIES[family]
    with pytest.raises(ModelError, match=key):
        read(reader, config | change)


@pytest.mark.parametrize(
    "change", [{"sliding_window": 8, "use_sliding_window": False}, {"layer_types": ["full_attention"] * 2}]
)
def test_windows_that_are_off_are_none(change: dict[str, Any]) -> None:
    reader, config = FAMILIES["qwen2"]
    assert read(reader, config | change) == read(reader, config)


@pytest.mark.parametrize(
    "change", [{"heads": 3}, {"kv_heads": 3}, {"head_dim": 7}, {"rotary_dim": 3}, {"rotary_dim": 10}]
)
def test_sizes_that_do_not_fit_each_other(change: dict[str, int]) -> None:
    sizes = {"width": 32, "layers": 1, "heads": 4, "kv_heads": 2, "ffn": 8, "vocab": 9}
    with pytest.raises(ModelError):
        Architecture(theta=10.0, eps=1e-6, **sizes | change)


def test_families_are_told_apart_by_architectures_alone() -> None:
    for kind in ("Dream", "llada", "qwen2", "odd"):
        config = DREAM | {"model_type": kind}
        assert Checkpoint(Path(), config).description.family == "dream"
    with pytest.raises(ModelError, match="LLaDAOtherModelLM"):
        Checkpoint(Path(), LLADA | {"architectures": ["LLaDAOtherModelLM"]}).description  # noqa: B018


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_weights_are_refused_by_name(family: str, method: str) -> None:
    reader, config = FAMILIES[family]
    with pytest.raises(ModelError, match=method):
        read(reader, config | {"quantization_config": {"quant_method": method, "bits": 4}})


@pytest.mark.parametrize(
    ("endings", "method"),
    [(("qweight", "qzeros", "scales", "g_idx"), "GPTQ"), (("qweight", "qzeros", "scales"), "AWQ")],
)
def test_packed_weights_are_refused_without_a_config_that_says_so(
    endings: tuple[str, ...], method: str, tmp_path: Path
) -> None:
    names = [f"model.layers.0.self_attn.q_proj.{ending}" for ending in endings]
    save_file({name: torch.ones(2, 2).int() for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{method}.*q_proj\."):
        tensors_of(tmp_path)


# --- through the caches -----------------------------------------------------------------------------------------

UNUSUAL = Architecture(
    width=32, layers=2, heads=3, kv_heads=1, ffn=48, vocab=64, theta=500.0, eps=1e-3, head_dim=12, rotary_dim=6,
    qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True, scaling=Interpolation(2.0),
)  # fmt: skip


@pytest.mark.parametrize("kept", ["every(dual,1)", "dllm(kp=1,kr=1)", "d2(k=999,p=1)"])
def test_caches_that_reuse_nothing_change_nothing(kept: str) -> None:
    """Whatever the architecture: heads of another size than the width leaves, norms, biases, a part rotated."""
    rows = [Request(i, prompt, 12, ignore_eos=True) for i, prompt in enumerate([[1, 2, 3], [7], [9, 8, 7, 6, 5]])]
    plainly, cached = (decode(tiny(arch=UNUSUAL), "threshold(tau=0.4,block_length=5)", c, rows) for c in ("none", kept))
    for row in rows:
        assert plainly[row.row].commits == cached[row.row].commits


# --- fingerprints -----------------------------------------------------------------------------------------------


def fingerprinted(arch: Architecture, dtype: torch.dtype = torch.float32) -> str:
    """The fingerprint of a model of these sizes, its weights the same for all that have weights of the same shapes."""
    torch.manual_seed(0)
    network = Transformer(arch, 16)
    for weight in network.parameters():
        torch.nn.init.normal_(weight)
    network = network.to(dtype)
    spec = ModelSpec(mask=1, eos=(2,), pad=2, vocab=arch.vocab, limit=arch.vocab, context=16)
    return fingerprint(SimpleNamespace(denoiser=SimpleNamespace(network=network, spec=spec)))  # type: ignore[arg-type]


def test_the_fingerprint_covers_what_the_weights_do_not_say() -> None:
    """Each of these computes something else from the same tensors."""
    arch = Architecture(width=32, layers=1, heads=4, kv_heads=4, ffn=8, vocab=9, theta=10000.0, eps=1e-6)
    changes: list[dict[str, Any]] = [
        {},
        {"heads": 8, "kv_heads": 8, "head_dim": 4, "rotary_dim": 4},
        {"theta": 1e6},
        {"eps": 1e-5},
        {"rotary_dim": 4},
        {"scaling": Interpolation(2.0)},
        {"scaling": Interpolation(4.0)},
    ]
    found = [fingerprinted(replace(arch, **change)) for change in changes]
    assert len(set(found)) == len(changes)
    assert fingerprinted(arch, torch.bfloat16) == found[0]
