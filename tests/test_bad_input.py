"""Whatever is wrong with a checkpoint, a spec or a request: one early error that names it and says what is accepted."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unmask
from helpers import VERIFIER, Request
from llada_folder import BOS, CONFIG, CONTEXT, EOS, MASK, VOCAB, weights, write
from refusals import refuses
from unmask import ModelError, RequestError, SpecError, UnmaskError, registry
from unmask.caches.every import Every
from unmask.caches.none import NoCache
from unmask.policies.apd import Apd
from unmask.policies.prophet import Prophet
from unmask.policies.threshold import Threshold
from unmask.policies.vanilla import Vanilla


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def model(folder):
    return unmask.load(folder, dtype="float32")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the good checkpoint, to be spoilt."""
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


def test_errors_are_value_errors():
    assert all(issubclass(e, UnmaskError) for e in (ModelError, RequestError, SpecError))
    assert issubclass(UnmaskError, ValueError)


class TestWhere:
    """The place a model is loaded from."""

    @pytest.mark.parametrize("name", ["no-such-folder", "/no/such/folder", "a/b/c", "gsai ml/llada", ".hidden/../x"])
    def test_no_such_folder(self, name):
        with refuses(ModelError, f"'{name}'", "config.json"):
            unmask.load(name)

    @pytest.mark.parametrize("thing", ["", 5, ["x"], b"folder", 1.5])
    def test_no_path_at_all(self, thing):
        with refuses(ModelError, repr(thing)):
            unmask.load(thing)

    def test_a_file_instead_of_a_folder(self, copy):
        with refuses(ModelError, copy / "model.safetensors"):
            unmask.load(copy / "model.safetensors")

    def test_a_hub_id_that_cannot_be_fetched(self, monkeypatch, tmp_path):
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with refuses(ModelError, "'nobody/no-such-model'"):
            unmask.load("nobody/no-such-model")

    def test_whatever_the_hub_raises_is_one_error(self, monkeypatch):
        import huggingface_hub

        class Odd(Exception):
            pass

        def fetch(*_args, **_options):
            raise Odd("the cable is cut\nand more")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        with refuses(ModelError, "'nobody/model'", "cable") as caught:
            unmask.load("nobody/model")
        assert "and more" not in str(caught.value)


class TestConfig:
    """``config.json``."""

    def test_missing(self, copy):
        (copy / "config.json").unlink()
        with refuses(ModelError, copy, "config.json"):
            unmask.load(copy)

    @pytest.mark.parametrize("content", [b"", b'{"d_model": 3', b"\xff\xfe\x00", b"[1, 2]", b"null"])
    def test_no_json_object(self, copy, content):
        (copy / "config.json").write_bytes(content)
        with refuses(ModelError, copy / "config.json"):
            unmask.load(copy)

    @pytest.mark.parametrize("how", ["absent", "null"])
    @pytest.mark.parametrize(
        "key", ["d_model", "n_heads", "n_layers", "max_sequence_length", "mask_token_id", "eos_token_id"]
    )
    def test_a_key_is_needed(self, tmp_path, key, how):
        given = {} if how == "absent" else {key: None}
        write(tmp_path, given, without=(key,) if how == "absent" else (), tensors=weights(CONFIG))
        with refuses(ModelError, "config.json", f"'{key}'"):
            unmask.load(tmp_path)

    def test_one_of_two_keys_is_needed(self, tmp_path):
        write(tmp_path, without=("vocab_size", "embedding_size"), tensors=weights(CONFIG))
        with refuses(ModelError, "config.json", "'vocab_size'"):
            unmask.load(tmp_path)

    def test_keys_with_a_default_may_be_absent_or_null(self, tmp_path):
        names = ("embedding_size", "n_kv_heads", "pad_token_id", "rope_theta", "rms_norm_eps", "weight_tying", "rope")
        tensors = weights(CONFIG)
        first = unmask.load(write(tmp_path / "a", without=names, tensors=tensors)).denoiser
        second = unmask.load(write(tmp_path / "b", dict.fromkeys(names), tensors=tensors)).denoiser
        assert replace(first.spec, tokenizer=None) == replace(second.spec, tokenizer=None)
        assert first.network.arch == second.network.arch

    @pytest.mark.parametrize("names", [None, [], "LLaDAModelLM", 7, {}, ["BD3LM"], ["Qwen2ForCausalLM"], [["x"]]])
    def test_unsupported_architecture(self, tmp_path, names):
        with refuses(ModelError, "architectures", names, "LLaDAModelLM"):
            unmask.load(write(tmp_path, {"architectures": names}))

    @pytest.mark.parametrize(
        ("key", "value", "supported"),
        [
            ("block_type", "sequential", "'llama'"),
            ("layer_norm_type", "default", "'rms'"),
            ("activation_type", "gelu", "'silu'"),
            ("rope", False, "True"),
            ("alibi", True, "False"),
            ("attention_layer_norm", True, "False"),
            ("include_bias", True, "False"),
            ("input_emb_norm", True, "False"),
            ("scale_logits", True, "False"),
            ("bias_for_layer_norm", True, "False"),
            ("layer_norm_with_affine", False, "True"),
            ("block_group_size", 4, "1"),
            ("clip_qkv", 8.0, "None"),
        ],
    )
    def test_unsupported_variant(self, tmp_path, key, value, supported):
        with refuses(ModelError, "config.json", key, repr(value), supported):
            unmask.load(write(tmp_path, {key: value}))

    @pytest.mark.parametrize("value", ["32", 32.0, True, [32], 0, -4])
    @pytest.mark.parametrize(
        "key",
        ["d_model", "n_heads", "n_kv_heads", "n_layers", "embedding_size", "mlp_hidden_size", "max_sequence_length"],
    )
    def test_sizes_are_positive_integers(self, tmp_path, key, value):
        write(tmp_path, {key: value}, tensors=weights(CONFIG), tokenizer=False)
        with refuses(ModelError, "config.json", key, repr(value)):
            unmask.load(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("rope_theta", "10000"),
            ("rope_theta", 0),
            ("rms_norm_eps", -1e-5),
            ("rms_norm_eps", math.nan),
            ("mlp_ratio", math.inf),
            ("weight_tying", "false"),
            ("include_qkv_bias", 1),
            ("multi_query_attention", "no"),
            ("mask_token_id", "256"),
            ("mask_token_id", -1),
            ("pad_token_id", -1),
            ("eos_token_id", "257"),
            ("eos_token_id", [257, None]),
            ("eos_token_id", {"id": 1}),
        ],
    )
    def test_other_values(self, tmp_path, key, value):
        write(tmp_path, {key: value}, tensors=weights(CONFIG))
        with refuses(ModelError, "config.json", key, repr(value)):
            unmask.load(tmp_path)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"n_heads": 3}, ("32", "3")),
            ({"n_heads": 32, "n_kv_heads": 32}, ("32",)),
            ({"n_kv_heads": 3}, ("4", "3")),
            ({"mask_token_id": VOCAB}, ("mask", "288", f"{VOCAB - 1}")),
            ({"eos_token_id": [EOS, 9999]}, ("9999", f"{VOCAB - 1}")),
            ({"eos_token_id": -1}, ("-1", f"{VOCAB - 1}")),
            ({"pad_token_id": 300}, ("pad", "300", f"{VOCAB - 1}")),
            ({"eos_token_id": MASK}, ("256",)),
            ({"eos_token_id": []}, ("config.json", "'eos_token_id'")),
        ],
    )
    def test_values_that_do_not_fit_each_other(self, tmp_path, change, words):
        write(tmp_path, change, tensors=weights(CONFIG))
        with refuses(ModelError, *words):
            unmask.load(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "end"}'])
    def test_generation_config(self, copy, content):
        (copy / "generation_config.json").write_text(content)
        with refuses(ModelError, "generation_config.json"):
            unmask.load(copy)


class TestWeights:
    """``*.safetensors``."""

    def test_missing(self, copy):
        (copy / "model.safetensors").unlink()
        with refuses(ModelError, copy, "model.safetensors", "model.safetensors.index.json"):
            unmask.load(copy)

    def test_missing_shards(self, tmp_path):
        write(tmp_path, shards=3)
        for part in (1, 3):
            (tmp_path / f"model-0000{part}-of-00003.safetensors").unlink()
        with refuses(ModelError, tmp_path, "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"):
            unmask.load(tmp_path)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
    def test_an_index_without_a_map(self, tmp_path, content):
        write(tmp_path, shards=2)
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with refuses(ModelError, "model.safetensors.index.json", "weight_map"):
            unmask.load(tmp_path)

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -5000])
    def test_truncated(self, copy, keep):
        file = copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with refuses(ModelError, file):
            unmask.load(copy)

    @pytest.mark.parametrize("keep", [30, -1])
    def test_truncated_shard(self, tmp_path, keep):
        write(tmp_path, shards=2)
        file = tmp_path / "model-00002-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with refuses(ModelError, file):
            unmask.load(tmp_path)

    def test_no_safetensors_at_all(self, copy):
        (copy / "model.safetensors").write_bytes(struct.pack("<Q", 7) + b"garbage" + bytes(100))
        with refuses(ModelError, "model.safetensors"):
            unmask.load(copy)

    def test_a_folder_in_place_of_the_file(self, copy):
        (copy / "model.safetensors").unlink()
        (copy / "model.safetensors").mkdir()
        with refuses(ModelError, copy / "model.safetensors"):
            unmask.load(copy)

    @pytest.mark.parametrize("shards", [0, 2])
    def test_missing_tensors(self, tmp_path, shards):
        tensors = weights(CONFIG)
        gone = "model.transformer.blocks.1.k_proj.weight"
        del tensors[gone]
        with refuses(ModelError, tmp_path, gone):
            unmask.load(write(tmp_path, tensors=tensors, shards=shards))

    def test_many_missing_tensors_are_counted(self, tmp_path):
        with refuses(ModelError, "18"):
            unmask.load(write(tmp_path, tensors={"something.else": torch.ones(2)}))

    def test_a_tensor_that_the_shard_of_the_index_does_not_hold(self, tmp_path):
        write(tmp_path, shards=2)
        index = tmp_path / "model.safetensors.index.json"
        table = json.loads(index.read_text())
        name = "model.transformer.ln_f.weight"
        here = table["weight_map"][name]
        table["weight_map"][name] = next(s for s in table["weight_map"].values() if s != here)
        index.write_text(json.dumps(table))
        with refuses(ModelError, name):
            unmask.load(tmp_path)

    @pytest.mark.parametrize(
        "name", ["wte.weight", "ff_out.weight", "ln_f.weight", "blocks.1.attn_out.weight", "blocks.0.ff_norm.weight"]
    )
    def test_wrong_shape(self, tmp_path, name):
        tensors = weights(CONFIG)
        name = f"model.transformer.{name}"
        right = list(tensors[name].shape)
        tensors[name] = tensors[name][:-1].contiguous()
        wrong = [right[0] - 1, *right[1:]]
        with refuses(ModelError, "model.safetensors", name, wrong, right):
            unmask.load(write(tmp_path, tensors=tensors))

    def test_a_config_of_another_size(self, copy):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"n_kv_heads": 2}))
        with refuses(ModelError, "k_proj.weight", "[32, 32]", "[16, 32]"):
            unmask.load(copy)

    @pytest.mark.parametrize(
        ("change", "left"),
        [({"n_layers": 1}, "blocks.1.attn_norm.weight"), ({"include_qkv_bias": False}, "blocks.0.k_proj.bias")],
    )
    def test_weights_that_nothing_would_read(self, tmp_path, change, left):
        tensors = weights(CONFIG | {"include_qkv_bias": left.endswith("bias")})
        with refuses(ModelError, "config.json", left):
            unmask.load(write(tmp_path, change, tensors=tensors))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
    def test_weights_of_a_kind_that_cannot_be_used_as_they_are(self, tmp_path, dtype):
        tensors = weights(CONFIG)
        name = "model.transformer.blocks.0.q_proj.weight"
        tensors[name] = tensors[name].to(dtype)
        with refuses(ModelError, name, dtype, "float32", "bfloat16", "float16", "float64"):
            unmask.load(write(tmp_path, tensors=tensors))

    def test_the_good_one_is_good(self, folder):
        tensors = load_file(folder / "model.safetensors")
        assert len(tensors) == 21
        assert unmask.load(folder).generate([[1]], gen_length=2)


class TestDeviceAndDtype:
    @pytest.mark.parametrize("dtype", ["int8", "fp32", "", "Float32", None, torch.float32, ["float32"]])
    def test_unknown_dtype(self, folder, dtype):
        with refuses(ModelError, "dtype", repr(dtype), "auto", "float32", "bfloat16", "float16", "float64"):
            unmask.load(folder, dtype=dtype)

    @pytest.mark.parametrize("device", ["gpu", "", "cpu:x", "cuda:99", "meta", None, ["cpu"]])
    def test_unknown_device(self, folder, device):
        with refuses(ModelError, "device", repr(device), "auto", "cpu", "cuda"):
            unmask.load(folder, device=device)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("device", ["cuda", "cuda:0"])
    def test_no_gpu(self, folder, device):
        with refuses(ModelError, "device", repr(device)):
            unmask.load(folder, device=device)


class TestTokenizer:
    @pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "Nonsense"}}', "\x00"])
    def test_corrupt(self, copy, content):
        (copy / "tokenizer.json").write_text(content)
        with refuses(ModelError, copy / "tokenizer.json"):
            unmask.load(copy)

    def test_text_without_one(self, tmp_path):
        bare = unmask.load(write(tmp_path, tokenizer=False))
        for prompts in ("hello", ["hello"], [{"role": "user", "content": "hello"}]):
            with refuses(RequestError, "prompt 0", "tokenizer.json"):
                bare.generate(prompts, gen_length=4)
        assert len(bare.generate([1, 2], gen_length=4)[0].tokens) == 4

    def test_a_conversation_without_a_template(self, tmp_path):
        plain = unmask.load(write(tmp_path, template=None))
        for prompts, chat in (([{"role": "user", "content": "hello"}], None), ("hello", True)):
            with refuses(RequestError, "prompt 0", "template", "chat=False"):
                plain.generate(prompts, gen_length=4, chat=chat)
        assert plain.generate("hello", gen_length=4)[0].prompt_tokens == plain.text.encode("hello", False)

    @pytest.mark.parametrize(
        "message",
        [{}, {"role": "user"}, {"content": "x"}, {"role": "user", "content": None}, {"role": 1, "content": ""}],
    )
    def test_malformed_messages(self, model, message):
        with refuses(RequestError, "prompt 1", "role", "content", repr(message)):
            model.generate(["fine", [message]], gen_length=4)
        with refuses(RequestError, "role", "content", "'oops'"):
            model.generate([{"role": "user", "content": "fine"}, "oops"], gen_length=4)

    def test_a_template_that_refuses(self, tmp_path):
        picky = unmask.load(write(tmp_path, template="{{ raise_exception('roles must alternate') }}"))
        with refuses(RequestError, "prompt 0", "template", "alternate"):
            picky.generate("hello", gen_length=4)

    def test_text_that_is_no_unicode(self, model):
        for chat in (True, False):
            with refuses(RequestError, "prompt 0", "Unicode"):
                model.generate("bad \ud800 half", gen_length=4, chat=chat)


class TestPrompts:
    @pytest.mark.parametrize("prompts", [[], (), torch.empty(0, dtype=torch.long)])
    def test_empty_batch(self, model, prompts):
        with refuses(RequestError, "prompts"):
            model.generate(prompts, gen_length=4)

    @pytest.mark.parametrize(
        ("prompts", "words"),
        [
            ("", ("prompt 0",)),
            (["fine", ""], ("prompt 1",)),
            ([[1, 2], []], ("prompt 1",)),
            (["fine", [1], ()], ("prompt 2",)),
        ],
    )
    @pytest.mark.parametrize("chat", [None, True, False])
    def test_empty_prompt(self, model, prompts, words, chat):
        with refuses(RequestError, *words):
            model.generate(prompts, gen_length=4, chat=chat)

    @pytest.mark.parametrize("prompts", [None, 5, 1.5, b"bytes", {"role": "user", "content": "x"}, {1, 2}, iter(["x"])])
    def test_something_else(self, model, prompts):
        with refuses(RequestError, "prompt", *(() if hasattr(prompts, "__next__") else (repr(prompts),))):
            model.generate(prompts, gen_length=4)

    @pytest.mark.parametrize("odd", [None, 5, 1.5, b"bytes", {"role": "user", "content": "x"}])
    def test_something_else_in_a_batch(self, model, odd):
        with refuses(RequestError, "prompt 1"):
            model.generate(["fine", odd], gen_length=4)

    @pytest.mark.parametrize("odd", [1.0, 1.5, True, None, "7", [7]])
    def test_ids_are_integers(self, model, odd):
        for prompts in ([1, odd, 2], [[1, odd, 2]], ["fine", [odd, odd]]):
            with refuses(RequestError, "id", repr(odd)):
                model.generate(prompts, gen_length=4)

    def test_ids_out_of_range(self, model):
        for bad in (-1, VOCAB, 10**9, -(10**12), 10**30):
            with refuses(RequestError, "prompt 1", bad, VOCAB - 1):
                model.generate([[1], [2, bad, 3]], gen_length=4)
        assert model.generate([[0, VOCAB - 1]], gen_length=4)

    def test_the_mask_id(self, model):
        with refuses(RequestError, "prompt 1", "mask", MASK):
            model.generate([[1], [2, MASK]], gen_length=4)

    def test_too_long(self, model):
        with refuses(RequestError, "prompt 1", 120, "gen_length", 9, 129, CONTEXT):
            model.generate([[1], [2] * 120], gen_length=[4, 9])
        with refuses(RequestError, "prompt", "gen_length", 128):
            model.generate("x" * 500, gen_length=4)
        assert len(model.generate([[2] * 120], gen_length=8)[0].tokens) == 8


class TestParameters:
    @pytest.mark.parametrize("value", [0, -1, -(10**20)])
    def test_gen_length_below_one(self, model, value):
        with refuses(RequestError, "prompt 0", "gen_length", value):
            model.generate("x", gen_length=value)
        with refuses(RequestError, "prompt 1", "gen_length", value):
            model.generate(["x", "y"], gen_length=[4, value])

    @pytest.mark.parametrize("value", [4.0, 4.5, "4", True, math.nan])
    def test_gen_length_of_another_type(self, model, value):
        for given in (value, [4, value]):
            with refuses(RequestError, "gen_length", repr(value)):
                model.generate(["x", "y"], gen_length=given)

    @pytest.mark.parametrize("name", ["gen_length", "seed"])
    @pytest.mark.parametrize("values", [[], [4], [4, 4, 4]])
    def test_the_wrong_number_of_values(self, model, name, values):
        with refuses(RequestError, name, len(values), 2):
            model.generate(["x", "y"], **({"gen_length": 4} | {name: values}))

    @pytest.mark.parametrize("value", [0, -3])
    def test_batch_size_below_one(self, model, value):
        with refuses(RequestError, "batch_size", value):
            model.generate("x", gen_length=4, batch_size=value)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("batch_size", [2.0, "2", None, True]),
            ("temperature", [-0.1, math.nan, math.inf, "hot", None, True]),
            ("top_p", [0, -1, 1.01, math.nan, "all", None, True]),
            ("top_k", [-1, 1.0, "3", None, True, math.nan]),
            ("seed", [1 << 63, -(1 << 63) - 1, 1.0, "3", True, math.nan]),
            ("ignore_eos", [None, 1, "yes"]),
            ("chat", [1, "yes", 0]),
        ],
    )
    def test_values(self, model, name, values):
        for value in values:
            with refuses(RequestError, name, repr(value)):
                model.generate("x", **({"gen_length": 4} | {name: value}))

    def test_extreme_values_that_are_fine(self, model):
        low, high = model.generate(
            ["x", "y"],
            gen_length=np.int64(4),
            seed=[-(1 << 63), (1 << 63) - 1],
            temperature=1,
            top_k=10**30,
            top_p=1e-9,
        )
        assert len(low.tokens) == len(high.tokens) == 4

    def test_steps_that_do_not_divide(self, model):
        with refuses(RequestError, "steps", 2, 3):
            model.generate("x", gen_length=8, policy="vanilla(steps=3,block_length=4)")


class TestSpecs:
    @pytest.mark.parametrize("kind", ["policy", "cache"])
    @pytest.mark.parametrize(
        "text", ["", "(", "none(", "none)", "1", "none none", "a=b", "every(dual,", "é", "every(n=1,2)"]
    )
    def test_what_does_not_parse(self, model, kind, text):
        with refuses(SpecError, repr(text)):
            model.generate("x", 4, **{kind: text})

    def test_unknown_names(self, model):
        with refuses(SpecError, "policy", "'slowfest'", "slowfast", "threshold", "vanilla"):
            model.generate("x", 4, policy="slowfest")
        with refuses(SpecError, "cache", "'duel'", "dllm", "dual", "every", "none", "prefix"):
            model.generate("x", 4, cache="duel")
        with refuses(SpecError, "cache", "'slowfast'"):
            model.generate("x", 4, cache="every(slowfast,3)")

    @pytest.mark.parametrize(
        ("kind", "spec", "words"),
        [
            ("policy", "threshold(tua=0.9)", ("threshold", "'tua'", "tau, block_length")),
            ("cache", "dual(n=1)", ("dual", "'n'")),
            ("policy", "factor(0.9,32,exact,1)", ("factor", "3", "4")),
            ("policy", "threshold(0.9,tau=0.8)", ("tau",)),
            ("policy", "threshold(tau=0.9,tau=0.8)", ("tau",)),
            ("policy", "threshold(tau=-0.1)", ("threshold", "tau", "2", "-0.1")),
            ("policy", "threshold(tau=high)", ("threshold", "tau", "2", "'high'")),
            ("policy", "threshold(tau=true)", ("tau", "True")),
            ("policy", "threshold(tau=none)", ("tau", "None")),
            ("policy", "threshold(tau=1e999)", ("tau", "inf")),
            ("policy", "threshold(block_length=0)", ("block_length", "1", "none", "got 0")),
            ("policy", "threshold(block_length=2.5)", ("block_length", "1", "none", "2.5")),
            ("policy", "threshold(tau=f(1))", ("threshold", "tau", "f(1)")),
            ("policy", "adaptive(3)", ("adaptive", "policy", "3")),
            ("policy", "slowfast(suffix=cut)", ("suffix", "truncate", "cached", "full", "'cut'")),
            ("policy", "slowfast(preset=3)", ("preset", "paper", "reference", "3")),
            ("policy", "slowfast(sigma2=0)", ("sigma2", "0")),
            ("cache", "dllm(rho=1.5)", ("rho", "1", "1.5")),
            ("cache", "dllm(kp=0)", ("kp", "1", "0")),
            ("cache", "every", ("every", "cache", "every(dual,4)")),
            ("cache", "every(n=3)", ("every", "cache", "every(dual,4)")),
            ("cache", "every(3)", ("every", "cache", "3")),
            ("cache", "every(none(1))", ("none", "0")),
            ("cache", "every(dual,0)", ("every", "n", "1", "0")),
        ],
    )
    def test_parameters(self, model, kind, spec, words):
        with refuses(SpecError, *words):
            model.generate("x", 4, **{kind: spec})

    def test_quotes(self):
        """Parentheses in them nest nothing; both kinds in one text could not be written down."""
        with refuses(SpecError, "vanilla", "'b'"):
            registry.policy(f'vanilla(b="{"(" * 20}")')
        with refuses(SpecError, "verifier"):
            Apd(verifier='it\'s "q"')

    @pytest.mark.parametrize("thing", [3, Vanilla, NoCache, ["vanilla"], object()])
    def test_neither_spec_nor_object(self, model, thing):
        with refuses(SpecError, "policy", type(thing).__name__ if type(thing) is object else repr(thing)):
            model.generate("x", 4, policy=thing)
        with refuses(SpecError, "cache", type(thing).__name__ if type(thing) is object else repr(thing)):
            model.generate("x", 4, cache=thing)

    def test_one_in_place_of_the_other(self, model):
        with refuses(SpecError, "policy", "NoCache()"):
            model.generate("x", 4, policy=NoCache())
        with refuses(SpecError, "cache", "Vanilla("):
            model.generate("x", 4, cache=Vanilla())
        assert model.generate("x", 4, policy=Threshold(), cache=Every(NoCache(), 2))

    def test_a_wrapper_around_something_else(self, model):
        for inner in (None, 3, Vanilla()):
            with refuses(SpecError, "cache", f"{inner!r:.80}"):
                model.generate("x", 4, cache=Every(inner, 2))
        with refuses(SpecError, "cache", "'duel'"):
            model.generate("x", 4, cache=Every("duel", 2))
        assert registry.cache(Every("none", 2)) == Every(NoCache(), 2)

    def test_objects_check_themselves(self):
        with refuses(SpecError, "threshold", "tau", "2", 3):
            Threshold(tau=3)
        with refuses(SpecError, "vanilla", "remasking", "'best'"):
            Vanilla(remasking="best")

    def test_an_object_of_ones_own_has_the_base_class(self, model):
        class Mine:
            name, paper, needs, guidance, probes = "mine", "-", frozenset(), 0.0, 0

            def __init__(self):
                inner = Threshold(tau=0.3)
                self.init, self.ask, self.decide = inner.init, inner.ask, inner.decide

        class Ours(Threshold):
            name = "ours"

        with refuses(SpecError, "policy"):
            model.generate("x", 4, policy=Mine())
        ours = Ours(tau=0.3)
        assert registry.policy(ours) is ours
        expected = model.generate("x", 4, policy="threshold(tau=0.3)")[0].tokens
        assert model.generate("x", 4, policy=ours)[0].tokens == expected


class TestNothingHappensFirst:
    """A request is refused as a whole, before the first forward, however late in the batch its fault is."""

    @pytest.fixture
    def watched(self, model, monkeypatch):
        def forward(*_args, **_options):
            raise AssertionError("a forward was made")

        monkeypatch.setattr(type(model.denoiser), "__call__", forward)
        return model

    @pytest.mark.parametrize(
        ("prompts", "options"),
        [
            (["fine", "fine", ""], {}),
            ([[1], [2], [MASK]], {}),
            ([[1], [2], [VOCAB]], {}),
            ([[1], [2], [3] * CONTEXT], {}),
            ([[1], [2], [3]], {"gen_length": [4, 4, 0]}),
            ([[1], [2], [3]], {"seed": [4, 4, None]}),
            ([[1], [2], [3]], {"gen_length": [4, 4, 8], "policy": "vanilla(steps=3,block_length=4)"}),
            ([[1], [2], [3]], {"gen_length": [4, 4, 8], "policy": "dream(steps=3,block_length=4)"}),
            ([[1], [2], [3]], {"gen_length": [4, 4, 8], "policy": "prophet(vanilla(steps=3,block_length=4))"}),
            ([[1], [2], [3]], {"policy": "learn2pd(block_length=33)"}),
            ([[1], [2], [3]], {"policy": 'learned(weights="absent")'}),
            ([[1], [2], [VOCAB - 1]], {"policy": f'apd(verifier="{VERIFIER}")'}),
            ([[1], [2], [3]], {"policy": 'apd(verifier="absent")'}),
            ([[1], [2], [3]], {"policy": "nobody"}),
            ([[1], [2], [3]], {"cache": "nobody"}),
            ([[1], [2], [3]], {"batch_size": 0}),
        ],
    )
    @pytest.mark.parametrize("way", ["generate", "stream"])
    def test_refused_at_once(self, watched, prompts, options, way):
        with pytest.raises(UnmaskError):
            getattr(watched, way)(prompts, **({"gen_length": 4, "batch_size": 1} | options))

    def test_no_state_is_made_to_find_out(self, watched, monkeypatch):
        """Each request is looked at, none is admitted."""
        for policy in (Vanilla, Prophet):
            monkeypatch.setattr(policy, "init", lambda *_: pytest.fail("a state was made"))
        with refuses(RequestError, "prompt 2", "vanilla", "steps"):
            watched.stream([[1], [2], [3]], [4, 4, 8], "prophet(vanilla(steps=3,block_length=4))")
        watched.stream([[1], [2], [3]], [4, 4, 8], "prophet(vanilla(steps=4,block_length=4))")

    def test_prepared_requests_too(self, watched):
        requests = [Request(i, [BOS], 4 * (i + 1)).to("vanilla(steps=3,block_length=4)", "none") for i in range(2)]
        with refuses(RequestError, "prompt 1", "steps"):
            watched.run(requests, 1)

    @pytest.mark.parametrize(
        ("odd", "what"),
        [
            (Request(7, [BOS], CONTEXT), CONTEXT + 1),
            (Request(7, [MASK], 4), MASK),
            (Request(7, [BOS], 4, suppress=range(VOCAB)), "suppress"),
        ],
    )
    def test_prepared_requests_are_named_by_their_row(self, watched, odd, what):
        with refuses(RequestError, what) as caught:
            watched.run([one.to("vanilla", "none") for one in (Request(3, [BOS], 4), odd)], 1)
        assert caught.value.row == 7
        assert str(caught.value) == f"prompt 7: {caught.value.what}"
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.what, again.row) == (str(caught.value), caught.value.what, 7)

    def test_the_model_works_afterwards(self, model):
        before = model.generate("x", 4)[0].tokens
        with pytest.raises(UnmaskError):
            model.generate(["x", [MASK]], 4)
        assert model.generate("x", 4)[0].tokens == before
