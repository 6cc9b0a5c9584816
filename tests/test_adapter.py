"""LoRA adapters in peft's format: merged into the weights, or refused by the name of what is not supported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import unmask
from helpers import cli, fine
from llada_folder import CONFIG, weights, write
from unmask.core.errors import ModelError
from unmask.inspection import inspect
from unmask.models.weights import Checkpoint, load_denoiser

R = 3
Q, OUT, EMBED = (f"model.transformer.{name}" for name in ("blocks.0.q_proj", "blocks.1.ff_out", "wte"))
PEFT: dict[str, Any] = {  # as peft 0.19 writes it, with nothing left out
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.19.0",
    "qalora_group_size": 16,
    "r": R,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "ff_out"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def pair(module: str, rows: int, columns: int, rank: int = R, prefix: str = "base_model.model.") -> dict[str, Tensor]:
    """The two tensors of an adapted product."""
    draw = torch.Generator().manual_seed(len(module))
    return {
        f"{prefix}{module}.lora_A.weight": torch.randn(rank, columns, generator=draw),
        f"{prefix}{module}.lora_B.weight": torch.randn(rows, rank, generator=draw),
    }


ADAPTER = pair(Q, 32, 32) | pair(OUT, 32, 48)


def adapter(
    folder: Path,
    change: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
    file: str = "safetensors",
) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(PEFT | (change or {})))
    held = ADAPTER if tensors is None else tensors
    if file == "safetensors":
        save_file({n: t.contiguous() for n, t in held.items()}, folder / "adapter_model.safetensors")
    else:
        torch.save(held, folder / "adapter_model.bin")
    return folder


def loaded(folder: Path, **options: Any) -> dict[str, Tensor]:
    """The weights of the network, by the names of the checkpoint, in float64."""
    checkpoint = Checkpoint.find(folder, **options)
    network = load_denoiser(checkpoint, checkpoint.spec(), torch.device("cpu"), torch.float64).network
    held = dict(network.named_parameters())
    parts = {}
    for name, split in network.parts().items():
        for (part, shape), piece in zip(split.items(), held[name].split([s[0] for s in split.values()]), strict=True):
            assert piece.shape == shape
            parts[checkpoint.names[part]] = piece
    return parts


def delta(tensors: dict[str, Tensor], module: str) -> Tensor:
    a, b = (tensors[f"base_model.model.{module}.lora_{which}.weight"].double() for which in "AB")
    return b @ a


def assert_only(found: dict[str, Tensor], base: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    """Some weights differ from the base by just this, the others not at all."""
    for name, weight in base.items():
        extra = changes.get(name, torch.zeros_like(weight).double())
        torch.testing.assert_close(found[name], weight.double() + extra, rtol=0, atol=1e-5 if name in changes else 0)
        assert (name in changes) == (not torch.equal(found[name], weight.double()))


@pytest.mark.parametrize("file", ["safetensors", "bin"])
@pytest.mark.parametrize("where", ["beside", "given"])
def test_products_are_added_to_the_weights(where: str, file: str, tmp_path: Path) -> None:
    base = weights(CONFIG)
    folder = write(tmp_path / "model", tensors=base, tokenizer=False)
    own = adapter(folder if where == "beside" else tmp_path / "adapter", file=file)
    found = loaded(folder, **({} if where == "beside" else {"adapter": own}))
    scaled = {f"{m}.weight": 16 / R * delta(ADAPTER, m) for m in (Q, OUT)}
    assert_only(found, base, scaled)


def test_the_scale_is_that_of_the_config(tmp_path: Path) -> None:
    """Rank-stabilised, and by patterns: the first that a module's name or its end matches."""
    base = weights(CONFIG)
    folder = write(tmp_path / "model", tensors=base, tokenizer=False)
    cases = [
        ({"lora_alpha": 6.0}, 6 / R, 6 / R),
        ({"use_rslora": True}, 16 / math.sqrt(R), 16 / math.sqrt(R)),
        ({"alpha_pattern": {"q_proj": 9}}, 9 / R, 16 / R),
        ({"alpha_pattern": {r"blocks\.[1-9]\..*": 2, "ff_out": 5}}, 16 / R, 2 / R),
        ({"r": 8, "rank_pattern": {"q_proj": R, "blocks.1.ff_out": R}}, 16 / R, 16 / R),
        ({"alpha_pattern": {"proj": 100, "out": 100, "transformer": 100}}, 16 / R, 16 / R),
    ]
    for at, (change, first, second) in enumerate(cases):
        found = loaded(folder, adapter=adapter(tmp_path / str(at), change))
        wanted = {f"{Q}.weight": first * delta(ADAPTER, Q), f"{OUT}.weight": second * delta(ADAPTER, OUT)}
        assert_only(found, base, wanted)


def test_an_adapted_embedding(tmp_path: Path) -> None:
    """peft keeps its products the other way round and without a ``weight``."""
    base = weights(CONFIG)
    folder = write(tmp_path / "model", tensors=base, tokenizer=False)
    a, b = torch.randn(R, 288), torch.randn(32, R)
    tensors = {f"base_model.model.{EMBED}.lora_embedding_A": a, f"base_model.model.{EMBED}.lora_embedding_B": b}
    found = loaded(folder, adapter=adapter(tmp_path / "a", {"target_modules": ["wte"]}, tensors))
    assert_only(found, base, {f"{EMBED}.weight": 16 / R * (b.double() @ a.double()).T})


def test_tensors_that_were_trained_whole_take_the_place_of_the_models(tmp_path: Path) -> None:
    base, head = weights(CONFIG), torch.randn(288, 32)
    folder = write(tmp_path / "model", tensors=base, tokenizer=False)
    whole = {"base_model.model.model.transformer.ff_out.weight": head}
    own = adapter(
        tmp_path / "a", {"target_modules": ["q_proj"], "modules_to_save": ["ff_out"]}, pair(Q, 32, 32) | whole
    )
    found = loaded(folder, adapter=own)
    name = "model.transformer.ff_out.weight"
    wanted = {f"{Q}.weight": 16 / R * delta(ADAPTER, Q), name: head.double() - base[name].double()}
    assert_only(found, base, wanted)


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    """In float32 at least, whatever the model and the adapter are stored in."""
    base = weights(CONFIG, torch.bfloat16)
    small = {n: t.bfloat16() * 1e-2 for n, t in ADAPTER.items()}
    folder = write(tmp_path / "model", {"torch_dtype": "bfloat16"}, tensors=base, tokenizer=False)
    found = loaded(folder, adapter=adapter(tmp_path / "a", tensors=small))
    wanted = base[f"{Q}.weight"].double() + 16 / R * delta(small, Q)
    torch.testing.assert_close(found[f"{Q}.weight"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"peft_type": "ADALORA"}, "peft_type = 'ADALORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"use_frobnication": True}, "use_frobnication"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern"),
        ({"r": None}, "'r'"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": -1}, "lora_alpha = -1"),
        ({"r": 4}, "q_proj"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=False)
    adapter(folder, change)
    with pytest.raises(ModelError) as caught:
        loaded(folder)
    assert named in str(caught.value)


A, B = (f"base_model.model.{Q}.lora_{which}.weight" for which in "AB")


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({}, "no lora_A"),
        ({A: ADAPTER[A]}, Q),
        ({A: ADAPTER[A], B: ADAPTER[B][:-1]}, Q),
        ({A: ADAPTER[A][:, :-1], B: ADAPTER[B]}, Q),
        (pair("model.transformer.blocks.7.q_proj", 32, 32), "blocks.7.q_proj.weight"),
        (pair("model.layers.0.self_attn.q_proj", 32, 32), "model.layers.0.self_attn.q_proj.weight"),
        (ADAPTER | {f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(32)}, "lora_magnitude_vector"),
        (ADAPTER | {"base_model.model.score.weight": torch.ones(2, 32)}, "score.weight"),
        (ADAPTER | {"base_model.model.model.transformer.ff_out.weight": torch.ones(2, 32)}, "ff_out.weight"),
    ],
)
def test_an_adapter_of_another_model_is_refused_by_name(tensors: dict[str, Tensor], named: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=False)
    with pytest.raises(ModelError) as caught:
        loaded(folder, adapter=adapter(tmp_path / "a", tensors=tensors))
    assert named in str(caught.value)


def test_an_adapted_embedding_that_is_the_head_too_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"weight_tying": True}, tokenizer=False)
    names = (f"base_model.model.{EMBED}.lora_embedding_{which}" for which in "AB")
    tensors = dict(zip(names, (torch.ones(R, 288), torch.ones(32, R)), strict=True))
    with pytest.raises(ModelError, match="head"):
        loaded(folder, adapter=adapter(tmp_path / "a", tensors=tensors))


def test_a_target_without_weights_is_refused(tmp_path: Path) -> None:
    """The file lacks what the config says was trained: the adapter is not whole."""
    folder = write(tmp_path / "model", tokenizer=False)
    own = adapter(tmp_path / "a", {"target_modules": ["k_proj", "q_proj"]}, pair(Q, 32, 32))
    with pytest.raises(ModelError, match="k_proj"):
        loaded(folder, adapter=own)


@pytest.mark.parametrize("gone", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_folder(gone: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=False)
    own = adapter(tmp_path / "a")
    (own / gone).unlink()
    with pytest.raises(ModelError, match=gone.replace(".", r"\.")):
        loaded(folder, adapter=own)


def test_an_adapter_in_place_of_a_model_names_the_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GSAI-ML/LLaDA-8B-Instruct"):
        Checkpoint.find(adapter(tmp_path / "a"))


def test_two_adapters_are_one_too_many(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=False)
    adapter(folder)
    with pytest.raises(ModelError, match="adapter_config"):
        Checkpoint.find(folder, adapter=adapter(tmp_path / "a"))


@pytest.mark.parametrize("path", ["/nowhere/at/all", ""])
def test_no_adapter_there(path: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=False)
    with pytest.raises(ModelError, match="no adapter at"):
        Checkpoint.find(folder, adapter=path)


def test_inspect_tells_of_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=False)
    assert inspect(folder)["adapter"] is None
    own = adapter(tmp_path / "a")
    told = inspect(folder, adapter=own)
    assert told["adapter"] == {"path": str(own), "rank": R, "alpha": 16, "modules": 2}
    assert told["bytes"] == (folder / "model.safetensors").stat().st_size
    assert told["weights"].startswith("complete")
    adapter(tmp_path / "b", tensors=pair("other", 32, 32))
    assert "other.weight" in inspect(folder, adapter=tmp_path / "b")["weights"]


def test_inspect_prints_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=False)
    adapter(folder)
    printed = fine(cli("inspect", folder))
    assert f"path {folder}, rank {R}, alpha 16.0, modules 2" in printed


def test_a_model_decodes_with_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    texts = []
    for own in (None, adapter(tmp_path / "a"), adapter(tmp_path / "b", {"lora_alpha": 1e-9})):
        (result,) = unmask.load(folder, adapter=own).generate([[1, 2, 3]], 12, "vanilla", ignore_eos=True)
        texts.append(result.tokens)
    assert texts[0] == texts[2] != texts[1]
