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
from helpers import VERIFIER
from llada_folder import BOS, CONFIG, CONTEXT, EOS, MASK, VOCAB, weights, write
from unmask import ModelError, RequestError, SpecError, UnmaskError, registry
from unmask.caches.every import Every
from unmask.caches.none import NoCache
from unmask.engine.batch import Request
from unmask.policies.apd import Apd
from unmask.policies.prophet import Prophet
from unmask.policies.threshold import Threshold
from unmask.policies.vanilla import Vanilla


def fails(kind, *words):
    """A ``pytest.raises`` for one error of ``kind`` whose message holds all the words and fits on a few lines."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{_literal(w)})" for w in words))


def _literal(word):
    return "".join(rf"\{c}" if not c.isalnum() and c not in " _'" else c for c in str(word))


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
        with fails(ModelError, f"no model at '{name}'", "folder with config.json", "hub id like GSAI-ML/LLaDA-8B"):
            unmask.load(name)

    @pytest.mark.parametrize("thing", ["", 5, ["x"], b"folder", 1.5])
    def test_no_path_at_all(self, thing):
        with fails(ModelError, f"no model at {thing!r}", "expected a folder or a hub id"):
            unmask.load(thing)

    def test_a_file_instead_of_a_folder(self, copy):
        with fails(ModelError, "model.safetensors'", "expected a folder"):
            unmask.load(copy / "model.safetensors")

    def test_a_hub_id_that_cannot_be_fetched(self, monkeypatch, tmp_path):
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with fails(ModelError, "'nobody/no-such-model' is no local folder", "could not be fetched from the hub"):
            unmask.load("nobody/no-such-model")

    def test_whatever_the_hub_raises_is_one_error(self, monkeypatch):
        import huggingface_hub

        class Odd(Exception):
            pass

        def fetch(*_args, **_options):
            raise Odd("the cable is cut\nand more")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        with fails(ModelError, "'nobody/model'", "hub: the cable is cut") as caught:
            unmask.load("nobody/model")
        assert "and more" not in str(caught.value)


class TestConfig:
    """``config.json``."""

    def test_missing(self, copy):
        (copy / "config.json").unlink()
        with fails(ModelError, copy, "has no config.json"):
            unmask.load(copy)

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (b"", "cannot be read"),
            (b'{"d_model": 3', "cannot be read"),
            (b"\xff\xfe\x00", "cannot be read"),
            (b"[1, 2]", "does not hold a JSON object"),
            (b"null", "does not hold a JSON object"),
        ],
    )
    def test_no_json_object(self, copy, content, word):
        (copy / "config.json").write_bytes(content)
        with fails(ModelError, copy / "config.json", word):
            unmask.load(copy)

    @pytest.mark.parametrize("how", ["absent", "null"])
    @pytest.mark.parametrize(
        "key", ["d_model", "n_heads", "n_layers", "max_sequence_length", "mask_token_id", "eos_token_id"]
    )
    def test_a_key_is_needed(self, tmp_path, key, how):
        given = {} if how == "absent" else {key: None}
        write(tmp_path, given, without=(key,) if how == "absent" else (), tensors=weights(CONFIG))
        with fails(ModelError, f"config.json has no '{key}'"):
            unmask.load(tmp_path)

    def test_one_of_two_keys_is_needed(self, tmp_path):
        write(tmp_path, without=("vocab_size", "embedding_size"), tensors=weights(CONFIG))
        with fails(ModelError, "config.json has no 'vocab_size'"):
            unmask.load(tmp_path)

    def test_keys_with_a_default_may_be_absent_or_null(self, tmp_path):
        names = ("embedding_size", "n_kv_heads", "pad_token_id", "rope_theta", "rms_norm_eps", "weight_tying", "rope")
        tensors = weights(CONFIG)
        first = unmask.load(write(tmp_path / "a", without=names, tensors=tensors)).denoiser
        second = unmask.load(write(tmp_path / "b", dict.fromkeys(names), tensors=tensors)).denoiser
        assert replace(first.spec, tokenizer=None) == replace(second.spec, tokenizer=None)
        assert first.network.arch == second.network.arch

    @pytest.mark.parametrize(
        "names", [None, [], "LLaDAModelLM", 7, {}, ["LLaDAMoEModelLM"], ["Qwen2ForCausalLM"], [["x"]]]
    )
    def test_unsupported_architecture(self, tmp_path, names):
        with fails(ModelError, f"architectures {names} are not supported", "supported: LLaDAModelLM"):
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
            ("rope_scaling", {"type": "linear", "factor": 2}, "None"),
        ],
    )
    def test_unsupported_variant(self, tmp_path, key, value, supported):
        with fails(ModelError, f"llada: config.json has {key} = {value!r}", f"supported is {supported}"):
            unmask.load(write(tmp_path, {key: value}))

    @pytest.mark.parametrize("value", ["32", 32.0, True, [32], 0, -4])
    @pytest.mark.parametrize(
        "key",
        ["d_model", "n_heads", "n_kv_heads", "n_layers", "embedding_size", "mlp_hidden_size", "max_sequence_length"],
    )
    def test_sizes_are_positive_integers(self, tmp_path, key, value):
        write(tmp_path, {key: value}, tensors=weights(CONFIG), tokenizer=False)
        with fails(ModelError, f"config.json has {key} = {value!r}", "integer >= 1"):
            unmask.load(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value", "rule"),
        [
            ("rope_theta", "10000", "a number > 0"),
            ("rope_theta", 0, "a number > 0"),
            ("rms_norm_eps", -1e-5, "a number > 0"),
            ("rms_norm_eps", math.nan, "a number > 0"),
            ("mlp_ratio", math.inf, "a number > 0"),
            ("weight_tying", "false", "true or false"),
            ("include_qkv_bias", 1, "true or false"),
            ("multi_query_attention", "no", "true or false"),
            ("mask_token_id", "256", "integer >= 0"),
            ("mask_token_id", -1, "integer >= 0"),
            ("pad_token_id", -1, "integer >= 0"),
            ("eos_token_id", "257", "an integer or a list of integers"),
            ("eos_token_id", [257, None], "an integer or a list of integers"),
            ("eos_token_id", {"id": 1}, "an integer or a list of integers"),
        ],
    )
    def test_other_values(self, tmp_path, key, value, rule):
        write(tmp_path, {key: value}, tensors=weights(CONFIG))
        with fails(ModelError, f"config.json has {key} = {value!r}", rule):
            unmask.load(tmp_path)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"n_heads": 3}, ("width 32 and 3 heads", "even multiple")),
            ({"n_heads": 32, "n_kv_heads": 32}, ("width 32 and 32 heads", "even multiple")),
            ({"n_kv_heads": 3}, ("4 heads", "not a multiple of the 3 key/value heads")),
            ({"mask_token_id": VOCAB}, ("mask id 288", f"0 to {VOCAB - 1}")),
            ({"eos_token_id": [EOS, 9999]}, ("end-of-text id 9999", f"0 to {VOCAB - 1}")),
            ({"eos_token_id": -1}, ("end-of-text id -1", f"0 to {VOCAB - 1}")),
            ({"pad_token_id": 300}, ("pad id 300", f"0 to {VOCAB - 1}")),
            ({"eos_token_id": MASK}, ("end-of-text id other than the mask id 256",)),
            ({"eos_token_id": []}, ("config.json has no 'eos_token_id'",)),
        ],
    )
    def test_values_that_do_not_fit_each_other(self, tmp_path, change, words):
        write(tmp_path, change, tensors=weights(CONFIG))
        with fails(ModelError, *words):
            unmask.load(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "end"}'])
    def test_generation_config(self, copy, content):
        (copy / "generation_config.json").write_text(content)
        with fails(ModelError, "generation_config.json"):
            unmask.load(copy)


class TestWeights:
    """``*.safetensors``."""

    def test_missing(self, copy):
        (copy / "model.safetensors").unlink()
        with fails(ModelError, copy, "no model.safetensors and no model.safetensors.index.json"):
            unmask.load(copy)

    def test_missing_shards(self, tmp_path):
        write(tmp_path, shards=3)
        for part in (1, 3):
            (tmp_path / f"model-0000{part}-of-00003.safetensors").unlink()
        names = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
        with fails(ModelError, tmp_path, f"shards missing: {names}"):
            unmask.load(tmp_path)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
    def test_an_index_without_a_map(self, tmp_path, content):
        write(tmp_path, shards=2)
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with fails(ModelError, "model.safetensors.index.json", "no 'weight_map'"):
            unmask.load(tmp_path)

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -5000])
    def test_truncated(self, copy, keep):
        file = copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with fails(ModelError, file, "not a complete safetensors file"):
            unmask.load(copy)

    @pytest.mark.parametrize("keep", [30, -1])
    def test_truncated_shard(self, tmp_path, keep):
        write(tmp_path, shards=2)
        file = tmp_path / "model-00002-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with fails(ModelError, file, "not a complete safetensors file"):
            unmask.load(tmp_path)

    def test_no_safetensors_at_all(self, copy):
        (copy / "model.safetensors").write_bytes(struct.pack("<Q", 7) + b"garbage" + bytes(100))
        with fails(ModelError, "model.safetensors", "not a complete safetensors file"):
            unmask.load(copy)

    def test_a_folder_in_place_of_the_file(self, copy):
        (copy / "model.safetensors").unlink()
        (copy / "model.safetensors").mkdir()
        with fails(ModelError, "model.safetensors", "not a complete safetensors file"):
            unmask.load(copy)

    @pytest.mark.parametrize("shards", [0, 2])
    def test_missing_tensors(self, tmp_path, shards):
        tensors = weights(CONFIG)
        gone = "model.transformer.blocks.1.k_proj.weight"
        del tensors[gone]
        with fails(ModelError, tmp_path, f"weights missing: {gone}"):
            unmask.load(write(tmp_path, tensors=tensors, shards=shards))

    def test_many_missing_tensors_are_counted(self, tmp_path):
        with fails(ModelError, "weights missing: ", "and 18 more"):
            unmask.load(write(tmp_path, tensors={"something.else": torch.ones(2)}))

    def test_a_tensor_that_the_shard_of_the_index_does_not_hold(self, tmp_path):
        write(tmp_path, shards=2)
        index = tmp_path / "model.safetensors.index.json"
        table = json.loads(index.read_text())
        name = "model.transformer.ln_f.weight"
        here = table["weight_map"][name]
        table["weight_map"][name] = next(s for s in table["weight_map"].values() if s != here)
        index.write_text(json.dumps(table))
        with fails(ModelError, name, "cannot be read"):
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
        with fails(ModelError, "model.safetensors", name, f"shape {wrong}", f"implies {right}"):
            unmask.load(write(tmp_path, tensors=tensors))

    def test_a_config_of_another_size(self, copy):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"n_kv_heads": 2}))
        with fails(ModelError, "k_proj.weight has shape [32, 32]", "implies [16, 32]"):
            unmask.load(copy)

    @pytest.mark.parametrize(
        ("change", "left"),
        [({"n_layers": 1}, "blocks.1.attn_norm.weight"), ({"include_qkv_bias": False}, "blocks.0.k_proj.bias")],
    )
    def test_weights_that_nothing_would_read(self, tmp_path, change, left):
        tensors = weights(CONFIG | {"include_qkv_bias": left.endswith("bias")})
        with fails(ModelError, "config.json does not account for", left, "more"):
            unmask.load(write(tmp_path, change, tensors=tensors))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
    def test_weights_of_a_kind_that_cannot_be_used_as_they_are(self, tmp_path, dtype):
        tensors = weights(CONFIG)
        name = "model.transformer.blocks.0.q_proj.weight"
        tensors[name] = tensors[name].to(dtype)
        with fails(ModelError, name, dtype, "supported are float32, bfloat16, float16, float64"):
            unmask.load(write(tmp_path, tensors=tensors))

    def test_the_good_one_is_good(self, folder):
        tensors = load_file(folder / "model.safetensors")
        assert len(tensors) == 21
        assert unmask.load(folder).generate([[1]], gen_length=2)


class TestDeviceAndDtype:
    @pytest.mark.parametrize("dtype", ["int8", "fp32", "", "Float32", None, torch.float32, ["float32"]])
    def test_unknown_dtype(self, folder, dtype):
        with fails(ModelError, f"unknown dtype {dtype!r}", "auto, float32, bfloat16, float16, float64"):
            unmask.load(folder, dtype=dtype)

    @pytest.mark.parametrize("device", ["gpu", "", "cpu:x", "cuda:99", "meta", None, ["cpu"]])
    def test_unknown_device(self, folder, device):
        with fails(ModelError, f"device {device!r} cannot be used here", "auto, cpu, cuda, cuda:N"):
            unmask.load(folder, device=device)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("device", ["cuda", "cuda:0"])
    def test_no_gpu(self, folder, device):
        with fails(ModelError, f"device '{device}' cannot be used here"):
            unmask.load(folder, device=device)


class TestTokenizer:
    @pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "Nonsense"}}', "\x00"])
    def test_corrupt(self, copy, content):
        (copy / "tokenizer.json").write_text(content)
        with fails(ModelError, copy / "tokenizer.json", "cannot be read"):
            unmask.load(copy)

    def test_text_without_one(self, tmp_path):
        bare = unmask.load(write(tmp_path, tokenizer=False))
        for prompts in ("hello", ["hello"], [{"role": "user", "content": "hello"}]):
            with fails(RequestError, "prompt 0", "no tokenizer.json", "lists of ids"):
                bare.generate(prompts, gen_length=4)
        assert len(bare.generate([1, 2], gen_length=4)[0].tokens) == 4

    def test_a_conversation_without_a_template(self, tmp_path):
        plain = unmask.load(write(tmp_path, template=None))
        for prompts, chat in (([{"role": "user", "content": "hello"}], None), ("hello", True)):
            with fails(RequestError, "prompt 0", "no chat template", "chat=False"):
                plain.generate(prompts, gen_length=4, chat=chat)
        assert plain.generate("hello", gen_length=4)[0].prompt_tokens == plain.text.encode("hello", False)

    @pytest.mark.parametrize(
        "message",
        [{}, {"role": "user"}, {"content": "x"}, {"role": "user", "content": None}, {"role": 1, "content": ""}],
    )
    def test_malformed_messages(self, model, message):
        with fails(RequestError, "prompt 1", "{'role': text, 'content': text}", repr(message)):
            model.generate(["fine", [message]], gen_length=4)
        with fails(RequestError, "{'role': text, 'content': text}", "'oops'"):
            model.generate([{"role": "user", "content": "fine"}, "oops"], gen_length=4)

    def test_a_template_that_refuses(self, tmp_path):
        picky = unmask.load(write(tmp_path, template="{{ raise_exception('roles must alternate') }}"))
        with fails(RequestError, "prompt 0", "chat template does not accept", "roles must alternate"):
            picky.generate("hello", gen_length=4)

    def test_text_that_is_no_unicode(self, model):
        for chat in (True, False):
            with fails(RequestError, "prompt 0", "not valid Unicode"):
                model.generate("bad \ud800 half", gen_length=4, chat=chat)


class TestPrompts:
    @pytest.mark.parametrize("prompts", [[], (), torch.empty(0, dtype=torch.long)])
    def test_empty_batch(self, model, prompts):
        with fails(RequestError, "no prompts", "the batch is empty"):
            model.generate(prompts, gen_length=4)

    @pytest.mark.parametrize(
        ("prompts", "words"),
        [
            ("", ("prompt 0", "empty")),
            (["fine", ""], ("prompt 1", "empty")),
            ([[1, 2], []], ("prompt 1: the prompt is empty", "at least one token")),
            (["fine", [1], ()], ("prompt 2: the prompt is empty",)),
        ],
    )
    @pytest.mark.parametrize("chat", [None, True, False])
    def test_empty_prompt(self, model, prompts, words, chat):
        with fails(RequestError, *words):
            model.generate(prompts, gen_length=4, chat=chat)

    @pytest.mark.parametrize("prompts", [None, 5, 1.5, b"bytes", {"role": "user", "content": "x"}, {1, 2}, iter(["x"])])
    def test_something_else(self, model, prompts):
        with fails(RequestError, "a string, a list of ids or a conversation", "or a list of these"):
            model.generate(prompts, gen_length=4)

    @pytest.mark.parametrize("odd", [None, 5, 1.5, b"bytes", {"role": "user", "content": "x"}])
    def test_something_else_in_a_batch(self, model, odd):
        with fails(RequestError, "prompt 1", "a string, a list of ids or a conversation"):
            model.generate(["fine", odd], gen_length=4)

    @pytest.mark.parametrize("odd", [1.0, 1.5, True, None, "7", [7]])
    def test_ids_are_integers(self, model, odd):
        for prompts in ([1, odd, 2], [[1, odd, 2]], ["fine", [odd, odd]]):
            with fails(RequestError, "an id must be an integer", f"got {odd!r}"):
                model.generate(prompts, gen_length=4)

    def test_ids_out_of_range(self, model):
        for bad in (-1, VOCAB, 10**9, -(10**12), 10**30):
            with fails(RequestError, "prompt 1", f"id {bad}", f"0 to {VOCAB - 1}"):
                model.generate([[1], [2, bad, 3]], gen_length=4)
        assert model.generate([[0, VOCAB - 1]], gen_length=4)

    def test_the_mask_id(self, model):
        with fails(RequestError, "prompt 1", f"the mask id {MASK}", "only allowed in the response"):
            model.generate([[1], [2, MASK]], gen_length=4)

    def test_too_long(self, model):
        with fails(RequestError, "prompt 1: it has 120 tokens", "gen_length is 9", "129", f"context is {CONTEXT}"):
            model.generate([[1], [2] * 120], gen_length=[4, 9])
        with fails(RequestError, "context is 128"):
            model.generate("x" * 500, gen_length=4)
        assert len(model.generate([[2] * 120], gen_length=8)[0].tokens) == 8


class TestParameters:
    @pytest.mark.parametrize("value", [0, -1, -(10**20)])
    def test_gen_length_below_one(self, model, value):
        with fails(RequestError, "prompt 0: gen_length must be at least 1", f"got {value}"):
            model.generate("x", gen_length=value)
        with fails(RequestError, "prompt 1: gen_length must be at least 1", f"got {value}"):
            model.generate(["x", "y"], gen_length=[4, value])

    @pytest.mark.parametrize("value", [4.0, 4.5, "4", None, True, math.nan])
    def test_gen_length_of_another_type(self, model, value):
        for given in (value, [4, value]):
            with fails(RequestError, "gen_length must be an integer", f"got {value!r}"):
                model.generate(["x", "y"], gen_length=given)

    @pytest.mark.parametrize("name", ["gen_length", "seed"])
    @pytest.mark.parametrize("values", [[], [4], [4, 4, 4]])
    def test_the_wrong_number_of_values(self, model, name, values):
        with fails(RequestError, f"{name} has {len(values)} values for 2 prompts"):
            model.generate(["x", "y"], **({"gen_length": 4} | {name: values}))

    @pytest.mark.parametrize("value", [0, -3])
    def test_batch_size_below_one(self, model, value):
        with fails(RequestError, "batch_size must be at least 1", f"got {value}"):
            model.generate("x", gen_length=4, batch_size=value)

    @pytest.mark.parametrize(
        ("name", "values", "words"),
        [
            ("batch_size", [2.0, "2", None, True], ("must be an integer",)),
            ("temperature", [-0.1, math.nan, math.inf, "hot", None, True], ("must be a number >= 0", "0: greedy")),
            ("top_p", [0, -1, 1.01, math.nan, "all", None, True], ("must be a number in (0, 1]", "1: off")),
            ("top_k", [1.0, "3", None, True, math.nan], ("must be an integer",)),
            ("top_k", [-1], ("must be at least 0", "0: off")),
            ("seed", [1.0, "3", None, True, math.nan], ("must be an integer",)),
            ("seed", [1 << 63, -(1 << 63) - 1], ("must fit in 64 bits",)),
            ("eos_stop", [None, 1, "yes"], ("must be True or False",)),
            ("chat", [1, "yes", 0], ("must be True or False or None",)),
        ],
    )
    def test_values(self, model, name, values, words):
        for value in values:
            with fails(RequestError, name, *words, f"got {value!r}"):
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
        with fails(RequestError, "steps must be a multiple of the number of blocks", "= 2", "got 3"):
            model.generate("x", gen_length=8, policy="vanilla(steps=3,block_length=4)")


class TestSpecs:
    @pytest.mark.parametrize("kind", ["policy", "cache"])
    @pytest.mark.parametrize(
        "text", ["", "(", "none(", "none)", "1", "none none", "a=b", "every(dual,", "é", "every(n=1,2)"]
    )
    def test_what_does_not_parse(self, model, kind, text):
        with fails(SpecError, "cannot read spec", repr(text)):
            model.generate("x", 4, **{kind: text})

    def test_unknown_names(self, model):
        with fails(SpecError, "unknown policy 'slowfest'", "slowfast", "threshold", "vanilla"):
            model.generate("x", 4, policy="slowfest")
        with fails(SpecError, "unknown cache 'duel'", "dllm", "dual", "every", "none", "prefix"):
            model.generate("x", 4, cache="duel")
        with fails(SpecError, "unknown cache 'slowfast'"):
            model.generate("x", 4, cache="every(slowfast,3)")

    @pytest.mark.parametrize(
        ("kind", "spec", "words"),
        [
            ("policy", "threshold(tua=0.9)", ("threshold has no parameter 'tua'", "tau, block_length")),
            ("cache", "dual(n=1)", ("dual has no parameter 'n'", "none")),
            ("policy", "factor(0.9,32,exact,1)", ("factor takes at most 3 values", "got 4")),
            ("policy", "threshold(0.9,tau=0.8)", ("tau is given twice",)),
            ("policy", "threshold(tau=0.9,tau=0.8)", ("tau is given twice",)),
            ("policy", "threshold(tau=-0.1)", ("threshold: tau must be a number in [0, 2]", "got -0.1")),
            ("policy", "threshold(tau=high)", ("threshold: tau must be a number in [0, 2]", "got 'high'")),
            ("policy", "threshold(tau=true)", ("tau must be a number", "got True")),
            ("policy", "threshold(tau=none)", ("tau must be a number", "got None")),
            ("policy", "threshold(tau=1e999)", ("tau must be a number", "got inf")),
            ("policy", "threshold(block_length=0)", ("block_length must be an integer >= 1 or none", "got 0")),
            ("policy", "threshold(block_length=2.5)", ("block_length must be an integer >= 1 or none", "got 2.5")),
            ("policy", "threshold(tau=f(1))", ("threshold: tau cannot be f(1)",)),
            ("policy", "adaptive(3)", ("adaptive: policy must be a policy", "got 3")),
            ("policy", "slowfast(suffix=cut)", ("suffix must be one of truncate, cached, full", "got 'cut'")),
            ("policy", "slowfast(preset=3)", ("preset must be one of paper, reference", "got 3")),
            ("policy", "slowfast(sigma2=0)", ("sigma2 must be a number > 0", "got 0")),
            ("cache", "dllm(rho=1.5)", ("rho must be a number in [0, 1]", "got 1.5")),
            ("cache", "dllm(kp=0)", ("kp must be an integer >= 1", "got 0")),
            ("cache", "every", ("every needs a cache", "every(dual,4)")),
            ("cache", "every(n=3)", ("every needs a cache", "every(dual,4)")),
            ("cache", "every(3)", ("every: cache must be a cache", "got 3")),
            ("cache", "every(none(1))", ("none takes at most 0 values",)),
            ("cache", "every(dual,0)", ("n must be an integer >= 1", "got 0")),
        ],
    )
    def test_parameters(self, model, kind, spec, words):
        with fails(SpecError, *words):
            model.generate("x", 4, **{kind: spec})

    def test_quotes(self):
        """Parentheses in them nest nothing; both kinds in one text could not be written down."""
        with fails(SpecError, "no parameter 'b'"):
            registry.policy(f'vanilla(b="{"(" * 20}")')
        with fails(SpecError, "verifier must be a text without both kinds of quotes"):
            Apd(verifier='it\'s "q"')

    @pytest.mark.parametrize("thing", [None, 3, Vanilla, NoCache, ["vanilla"], object()])
    def test_neither_spec_nor_object(self, model, thing):
        with fails(SpecError, "expected a policy or a spec string such as 'slowfast(tau_high=0.9)'"):
            model.generate("x", 4, policy=thing)
        with fails(SpecError, "expected a cache or a spec string such as 'every(dual,4)'"):
            model.generate("x", 4, cache=thing)

    def test_one_in_place_of_the_other(self, model):
        with fails(SpecError, "expected a policy", "NoCache()"):
            model.generate("x", 4, policy=NoCache())
        with fails(SpecError, "expected a cache", "Vanilla("):
            model.generate("x", 4, cache=Vanilla())
        assert model.generate("x", 4, policy=Threshold(), cache=Every(NoCache(), 2))

    def test_a_wrapper_around_something_else(self, model):
        for inner in (None, 3, Vanilla()):
            with fails(SpecError, "expected a cache or a spec string", f"got {inner!r:.80}"):
                model.generate("x", 4, cache=Every(inner, 2))
        with fails(SpecError, "unknown cache 'duel'"):
            model.generate("x", 4, cache=Every("duel", 2))
        assert registry.cache(Every("none", 2)) == Every(NoCache(), 2)

    def test_objects_check_themselves(self):
        with fails(SpecError, "threshold: tau must be a number in [0, 2]", "got 3"):
            Threshold(tau=3)
        with fails(SpecError, "vanilla: remasking must be one of", "got 'best'"):
            Vanilla(remasking="best")

    def test_an_object_of_ones_own_needs_no_base_class(self, model):
        class Mine:
            name, paper, needs, guidance, probes = "mine", "-", frozenset(), 0.0, 0

            def __init__(self):
                inner = Threshold(tau=0.3)
                self.init, self.ask, self.decide = inner.init, inner.ask, inner.decide

        mine = Mine()
        assert registry.policy(mine) is mine
        expected = model.generate("x", 4, policy="threshold(tau=0.3)")[0].tokens
        assert model.generate("x", 4, policy=mine)[0].tokens == expected


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
        with fails(RequestError, "prompt 2: vanilla: steps must be a multiple"):
            watched.stream([[1], [2], [3]], [4, 4, 8], "prophet(vanilla(steps=3,block_length=4))")
        watched.stream([[1], [2], [3]], [4, 4, 8], "prophet(vanilla(steps=4,block_length=4))")

    def test_prepared_requests_too(self, watched):
        requests = [Request(0, [BOS], 4), Request(1, [BOS], 8)]
        with fails(RequestError, "steps must be a multiple"):
            watched.run(requests, "vanilla(steps=3,block_length=4)", "none", 1)

    @pytest.mark.parametrize(
        ("odd", "what"),
        [
            (Request(7, [BOS], CONTEXT), f"together {CONTEXT + 1}"),
            (Request(7, [MASK], 4), "it contains the mask id"),
            (Request(7, [BOS], 4, banned=range(VOCAB)), "banned leaves no token"),
        ],
    )
    def test_prepared_requests_are_named_by_their_row(self, watched, odd, what):
        with fails(RequestError, what) as caught:
            watched.run([Request(3, [BOS], 4), odd], "vanilla", "none", 1)
        assert caught.value.row == 7
        assert str(caught.value) == f"prompt 7: {caught.value.what}"
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.what, again.row) == (str(caught.value), caught.value.what, 7)

    def test_the_model_works_afterwards(self, model):
        before = model.generate("x", 4)[0].tokens
        with pytest.raises(UnmaskError):
            model.generate(["x", [MASK]], 4)
        assert model.generate("x", 4)[0].tokens == before
