"""LLaDA checkpoints in every published form are read, natively, into the same network."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from llada_folder import (
    BOS,
    CONFIG,
    CONTEXT,
    EOS,
    EOT,
    LLADA_8B,
    MASK,
    TOKENS,
    VOCAB,
    reference_logits,
    shapes,
    stubborn,
    weights,
    write,
)
from unmask import api, inspection
from unmask.core import precision
from unmask.core.rows import gather
from unmask.models.tensors import DTYPES
from unmask.models.transformer import Transformer
from unmask.models.weights import Checkpoint, parameter_count

IDS = [BOS, 5, 70, MASK, 12, MASK, 200, MASK, MASK, 31]
GQA, TIED, BIAS = {"n_kv_heads": 2}, {"weight_tying": True}, {"include_qkv_bias": True}
FORMS = {"mha": {}, "gqa": GQA, "tied": TIED, "bias": BIAS, "gqa-tied-bias": GQA | TIED | BIAS}


def logits(model, ids=IDS):
    """``[T, V]`` of one plain pass through the network that was loaded."""
    network, tokens = model.denoiser.network, torch.tensor([ids])
    rows = gather(tokens >= 0, tokens >= 0)
    rotary = network.rotate_rows(rows)
    with torch.inference_mode():
        hidden = network.embed(tokens)
        for block in network.blocks:
            hidden = hidden + block.attend(*block.qkv(hidden, rotary), None)
            hidden = hidden + block.mlp(hidden)
        return network.logits(hidden[0])


def assert_same(found, expected):
    """Up to the rotary embedding, which is float32 in any model, as LLaDA's is."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.std()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shards", [0, 3])
def test_the_network_is_lladas(tmp_path, form, shards):
    config = CONFIG | FORMS[form]
    tensors = weights(config)
    model = unmask.load(write(tmp_path, FORMS[form], tensors=tensors, shards=shards), dtype="float64")
    expected = reference_logits(config, tensors, IDS)
    assert expected.std() > 0.5
    assert_same(logits(model), expected)


def test_multi_query_attention_has_one_pair_of_key_and_value_heads(tmp_path):
    config = CONFIG | {"n_kv_heads": 1}
    tensors = weights(config)
    folder = write(tmp_path, {"multi_query_attention": True, "n_kv_heads": None}, tensors=tensors)
    torch.testing.assert_close(
        logits(unmask.load(folder)).double(), reference_logits(config, tensors, IDS), atol=1e-4, rtol=0
    )


def test_every_layer_and_every_weight_matters(tmp_path):
    """A name mapped to the wrong place would leave some logits unchanged."""
    config = CONFIG | BIAS
    tensors = weights(config)
    plain = logits(unmask.load(write(tmp_path / "plain", BIAS, tensors=tensors, tokenizer=False)))
    for at, name in enumerate(tensors):
        if ".blocks.0." in name:
            continue
        other = {**tensors, name: tensors[name] * 1.5 + 0.1}
        changed = logits(unmask.load(write(tmp_path / str(at), BIAS, tensors=other, tokenizer=False)))
        assert not torch.allclose(plain, changed, atol=1e-3), name


def test_weights_are_spread_over_all_shards(tmp_path):
    folder = write(tmp_path, shards=3)
    tensors = Checkpoint.find(folder).tensors
    assert {tensors.file(n).name for n in tensors.names()} == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert set(tensors.names()) == set(shapes(CONFIG))


def test_a_tied_head_that_comes_along_and_rotary_buffers_are_left_alone(tmp_path):
    config = CONFIG | TIED
    tensors = weights(config)
    more = {
        "model.transformer.ff_out.weight": torch.full((VOCAB, 32), 7.0),
        "model.transformer.blocks.0.rotary_emb.inv_freq": torch.ones(4),
        "value_head.weight": torch.ones(3),
    }
    model = unmask.load(write(tmp_path, TIED, tensors=tensors | more), dtype="float64")
    assert_same(logits(model), reference_logits(config, tensors, IDS))


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_any_dtype_into_any(tmp_path, stored, wanted):
    tensors = weights(CONFIG, DTYPES[stored])
    model = unmask.load(write(tmp_path, {"torch_dtype": stored}, tensors=tensors), dtype=wanted)
    network = model.denoiser.network
    assert {p.dtype for p in network.parameters()} == {DTYPES[wanted]}
    assert network.rotary.dtype == torch.float32
    found, expected = logits(model), reference_logits(CONFIG, tensors, IDS)
    assert found.dtype == (torch.float64 if wanted == "float64" else torch.float32)
    coarse = {"float64": 2e-6, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.4}[wanted]
    assert (found - expected).abs().max() < coarse
    (result,) = model.generate([[BOS, 1, 2]], gen_length=4, policy="threshold(tau=0.5)")
    assert len(result.tokens) == 4


@pytest.mark.parametrize("key", ["torch_dtype", "dtype", None])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("hardware", [True, False])
def test_dtype_auto_is_the_checkpoints_own_where_the_cpu_calculates_in_it(tmp_path, monkeypatch, key, stored, hardware):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: hardware)
    change = {} if key is None else {key: stored}
    without = tuple({"torch_dtype", "dtype"} - {key})
    folder = write(tmp_path, change, without=without, tensors=weights(CONFIG, DTYPES[stored]))
    expected = torch.float32 if stored == "float16" or (stored == "bfloat16" and not hardware) else DTYPES[stored]
    assert api.pick_dtype("auto", Checkpoint.find(folder), torch.device("cpu")) == expected
    assert api.pick_dtype("auto", Checkpoint.find(folder), torch.device("cuda")) == DTYPES[stored]
    assert unmask.load(folder, device="cpu").denoiser.network.dtype == expected


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_device(tmp_path, device):
    found = unmask.load(write(tmp_path), device=device).denoiser.network
    expected = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    assert found.device.type == found.rotary.device.type == expected


def test_the_ids_come_from_config_generation_config_and_tokenizer(tmp_path):
    def spec(folder):
        return unmask.load(folder).denoiser.spec

    one = spec(write(tmp_path / "one"))
    assert (one.mask, one.pad, one.vocab, one.limit, one.context) == (MASK, EOS, VOCAB, TOKENS, CONTEXT)
    assert (one.eos, one.shift) == ((EOS, EOT), False)
    assert spec(write(tmp_path / "list", {"eos_token_id": [9, EOS]})).eos == (9, EOS, EOT)
    assert spec(write(tmp_path / "bare", {"pad_token_id": None}, tokenizer=False)).eos == (EOS,)
    folder = write(tmp_path / "more", tokenizer=False)
    for value, expected in ((17, (EOS, 17)), ([EOS, 18, 19], (EOS, 18, 19)), (None, (EOS,))):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert spec(folder).eos == expected


@pytest.mark.parametrize("eos", [EOS, EOT])
def test_a_response_ends_at_any_of_them(tmp_path, eos):
    model = unmask.load(write(tmp_path, tensors=stubborn(CONFIG, {eos: 9.0, 65: 3.0})))
    (result,) = model.generate("hello", gen_length=6, policy="vanilla")
    assert result.text == ""
    assert result.stats.tokens == 0
    assert result.stats.nfe == 1


@pytest.mark.parametrize("temperature", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("policy", ["vanilla", "threshold", "slowfast", "vanilla(cfg_scale=1.5)"])
def test_neither_masks_nor_ids_beyond_the_tokenizer_are_sampled(tmp_path, temperature, policy):
    wishes = {MASK: 40.0, TOKENS: 38.0, VOCAB - 1: 37.0, 65: 20.0, 66: 19.5}
    model = unmask.load(write(tmp_path, tensors=stubborn(CONFIG, wishes)))
    for result in model.generate(["a", "b"], gen_length=12, policy=policy, temperature=temperature, seed=[3, 4]):
        assert len(result.tokens) == 12
        assert all(t < TOKENS and t != MASK for t in result.tokens)
        if temperature < 1:
            assert set(result.tokens) <= {65, 66}


def test_without_a_tokenizer_the_whole_vocabulary_but_the_mask_is_sampled(tmp_path):
    wishes = {MASK: 40.0, VOCAB - 1: 37.0}
    model = unmask.load(write(tmp_path, tensors=stubborn(CONFIG, wishes), tokenizer=False))
    assert model.text is None
    (result,) = model.generate([[1, 2]], gen_length=5)
    assert result.tokens == [VOCAB - 1] * 5
    assert result.text == ""


def test_llada_8b_maps_every_name_without_allocating(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLADA_8B))
    checkpoint = Checkpoint.find(tmp_path)
    description = checkpoint.description
    assert parameter_count(description) == 8_015_581_184
    assert dataclasses.asdict(description.arch) == {
        "width": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "ffn": 12288,
        "vocab": 126464,
        "theta": 500000.0,
        "eps": 1e-5,
        "qkv_bias": False,
        "tied": False,
        "head_dim": 128,
        "rotary_dim": 128,
        "qk_norm": False,
        "o_bias": False,
        "mlp_bias": False,
        "scaling": None,
        "clip": 0.0,
        "experts": None,
    }
    ids = (description.mask, description.eos, description.pad, description.context, description.shift)
    assert ids == (126336, (126081,), 126081, 4096, False)
    with torch.device("meta"):
        network = Transformer(description.arch, description.context)
    assert all(t.is_meta for t in (*network.parameters(), *network.buffers()))
    names = checkpoint.family.names(description.arch)
    sizes = {names[ours]: shape for ours, shape in network.shapes().items()}
    assert sizes == shapes(LLADA_8B)
    assert len(sizes) == 291
    layer = r"attn_norm|q_proj|k_proj|v_proj|attn_out|ff_norm|ff_proj|up_proj|ff_out"
    real = re.compile(rf"model\.transformer\.(wte|ln_f|ff_out|blocks\.([0-9]|[12][0-9]|3[01])\.({layer}))\.weight")
    assert all(real.fullmatch(name) for name in sizes)


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    folder = write(tmp_path)
    model = unmask.load(folder)
    before = logits(model)
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(bytes(1000))
    assert torch.equal(logits(model), before)


def test_the_shipped_layout_can_be_written_again(tmp_path):
    """What we read is what another LLaDA implementation would: the file itself holds the published names."""
    tensors = load_file(write(tmp_path / "a", shards=0) / "model.safetensors")
    assert {n: tuple(t.shape) for n, t in tensors.items()} == shapes(CONFIG)
    save_file(tensors, write(tmp_path / "b") / "model.safetensors")
    assert torch.equal(logits(unmask.load(tmp_path / "a")), logits(unmask.load(tmp_path / "b")))


# --- other files, and other places ------------------------------------------------------------------------------


def without_index(folder, shards, **names):
    """A sharded checkpoint whose index is gone and whose shards may have another name."""
    write(folder, shards=shards)
    (folder / "model.safetensors.index.json").unlink()
    for old, new in names.items():
        part = next(folder.glob(f"*{old.strip('_')}-of-*"))
        part.rename(folder / new)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_without_an_index(tmp_path, shards):
    expected = logits(unmask.load(write(tmp_path / "whole")))
    assert torch.equal(logits(unmask.load(without_index(tmp_path / "parts", shards))), expected)


def test_one_safetensors_file_of_any_name(tmp_path):
    expected = logits(unmask.load(write(tmp_path / "whole")))
    assert torch.equal(logits(unmask.load(without_index(tmp_path / "a", 1, _00001="weights.safetensors"))), expected)


def test_shards_without_an_index_must_be_all_and_of_one_checkpoint(tmp_path):
    folder = without_index(tmp_path / "a", 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(unmask.ModelError, match="model-00002-of-00003"):
        unmask.load(folder)
    folder = without_index(tmp_path / "b", 2, _00001="other.safetensors")
    with pytest.raises(unmask.ModelError, match="other"):
        unmask.load(folder)


def as_torch(folder, *, shards=0, legacy=False):
    """A checkpoint as files of ``torch.save``."""
    write(folder, shards=shards)
    index = folder / "model.safetensors.index.json"
    placed = (
        json.loads(index.read_text())["weight_map"] if shards else dict.fromkeys(shapes(CONFIG), "model.safetensors")
    )
    renamed = {old: old.replace("model", "pytorch_model").replace("safetensors", "bin") for old in set(placed.values())}
    for old, new in renamed.items():
        torch.save(load_file(folder / old), folder / new, _use_new_zipfile_serialization=not legacy)
        (folder / old).unlink()
    if shards:
        index.unlink()
        table = {"weight_map": {name: renamed[old] for name, old in placed.items()}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("shards", [0, 2])
def test_files_of_torch_save(tmp_path, shards, legacy):
    expected = logits(unmask.load(write(tmp_path / "whole")))
    folder = as_torch(tmp_path / "torch", shards=shards, legacy=legacy)
    assert torch.equal(logits(unmask.load(folder)), expected)
    told = inspection.inspect(folder)
    assert told["weights"] == f"complete: 21 weights in {shards or 1} file{'s' * (shards > 1)}"
    assert told["bytes"] == sum(file.stat().st_size for file in folder.glob("*.bin"))


class Odd:
    """Something that a file of weights need not hold."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_nothing_in_a_file_of_torch_save_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors") | {"odd": Odd()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(unmask.ModelError, match=r"pytorch_model\.bin.*save_file"):
        unmask.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"garbage", b"PK\x03\x04" + bytes(200)])
def test_a_broken_file_of_torch_save(tmp_path, content):
    folder = as_torch(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(unmask.ModelError, match=r"pytorch_model\.bin"):
        unmask.load(folder)


def test_files_of_torch_save_that_hold_something_else(tmp_path):
    folder = as_torch(tmp_path / "m")
    for held in ([torch.ones(2)], {"model": {"a": torch.ones(2)}}):
        torch.save(held, folder / "pytorch_model.bin")
        with pytest.raises(unmask.ModelError, match="does not hold tensors by name"):
            unmask.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_the_system_says_of_a_file_is_told(tmp_path, monkeypatch, name):
    """A file that may not be read is not called truncated."""
    folder, real, text = write(tmp_path), Path.open, Path.read_text

    def refuse(self):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", lambda self, *args, **options: refuse(self) or real(self, *args, **options))
    monkeypatch.setattr(Path, "read_text", lambda self, **options: refuse(self) or text(self, **options))
    with pytest.raises(unmask.ModelError, match=f"{name.replace('.', '[.]')} cannot be read: Permission denied"):
        unmask.load(folder)


class TestHub:
    """What is asked of the hub."""

    @pytest.fixture
    def asked(self, monkeypatch, tmp_path):
        """The calls; the hub has one checkpoint, of which it hands out what is wanted."""
        import huggingface_hub

        source, calls = write(tmp_path / "there"), []

        def fetch(repo, revision=None, allow_patterns=()):
            calls.append((repo, revision))
            folder = tmp_path / "cache" / str(revision)
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                if any(file.match(pattern) for pattern in allow_patterns):
                    (folder / file.name).write_bytes(file.read_bytes())
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        return calls, source

    @pytest.mark.parametrize("revision", [None, "v2"])
    def test_revision(self, asked, revision):
        calls, _ = asked
        checkpoint = Checkpoint.find("someone/model", revision=revision)
        assert len(checkpoint.tensors.names()) == 21
        assert calls == [("someone/model", revision)]

    def test_without_weights(self, asked):
        folder = Checkpoint.find("someone/model", weights=False).folder
        assert not list(folder.glob("*.safetensors"))

    def test_files_of_torch_save(self, asked):
        _, source = asked
        as_torch(source)
        (source / "training_args.bin").write_bytes(b"x")
        checkpoint = Checkpoint.find("someone/model")
        assert len(checkpoint.tensors.names()) == 21
        assert not (checkpoint.folder / "training_args.bin").exists()

    def test_a_folder_has_no_revisions(self, tmp_path):
        with pytest.raises(unmask.ModelError, match="revision 'v2'"):
            Checkpoint.find(write(tmp_path), revision="v2")
