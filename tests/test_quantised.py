"""Weights in 8 and 4 bits: what the layers compute, how models are loaded with them, written and read again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import unmask
from helpers import cli
from llada_folder import CONFIG, write
from llada_folder import weights as made_weights
from test_loading import logits
from unmask import inspection
from unmask.models import onednn, packing, quantised
from unmask.models.computing import int8_runs
from unmask.models.kernels import compiled
from unmask.models.packing import Scheme
from unmask.models.quantised import KINDS, Int4, Int8, Quantised, per_token
from unmask.models.random import random_denoiser, shape
from unmask.models.tensors import DTYPES
from unmask.models.transformer import EAGER
from unmask.models.weights import Checkpoint, parameter_count

CPU = torch.device("cpu")
WIDE = {"d_model": 64, "mlp_hidden_size": 96}


def drawn(*size, seed=0, scale=1.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def layers(weight, dtype, bias=None):
    own = None if bias is None else torch.nn.Parameter(bias.to(dtype), requires_grad=False)
    return {name: (kind.of(weight), kind.of(weight).layer(own, dtype, CPU)) for name, kind in KINDS.items()}


@given(st.integers(1, 40), st.sampled_from([16, 32, 48, 64, 192]), st.integers(1, 70), st.booleans(), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_a_product_is_that_of_the_weights_that_are_meant(rows, inputs, outputs, biased, seed):
    weight, x = drawn(outputs, inputs, seed=seed), drawn(rows, inputs, seed=seed + 100)
    bias = drawn(outputs, seed=7) if biased else None
    for name, (stored, layer) in layers(weight, torch.float32, bias).items():
        values, size = per_token(x)
        given_to_it = values * size if name == "int8" else x
        expected = F.linear(given_to_it.double(), stored.dense().double(), None if bias is None else bias.double())
        torch.testing.assert_close(layer(x).double(), expected, atol=2e-5 * inputs**0.5, rtol=1e-5)
        begin = outputs // 3
        torch.testing.assert_close(
            layer.part(x, begin), layer(x)[:, begin:], atol=0 if name == "int8" else 1e-5, rtol=0
        )


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_in_every_dtype_and_shape(dtype):
    weight, x = drawn(24, 64), drawn(2, 3, 64).to(dtype)
    for stored, layer in layers(weight, dtype).values():
        out = layer(x)
        assert (out.shape, out.dtype) == ((2, 3, 24), dtype)
        expected = F.linear(x.double(), stored.dense().double())
        assert float((out.double() - expected).norm() / expected.norm()) < 0.03
        assert layer(x[:, :0]).shape == (2, 0, 24)


@pytest.mark.parametrize("runs", ["onednn", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_has_the_same_product_alone_and_in_any_batch(monkeypatch, runs, dtype):
    if runs == "onednn" and int8_runs(CPU) != "onednn":
        pytest.skip("no integer products of oneDNN here")
    monkeypatch.setattr(quantised, "int8_runs", lambda device: runs)
    layer = Int8.of(drawn(80, 96)).layer(None, dtype, CPU)
    x = drawn(33, 96, seed=1).to(dtype)
    whole = layer(x)
    for rows in (slice(0, 1), slice(4, 9), slice(16, 33)):
        assert torch.equal(layer(x[rows]), whole[rows])


def test_all_ways_of_computing_agree(monkeypatch):
    """oneDNN, what stands in for it, and torch's own product as CUDA has it: integers are exact in each."""
    stored, x = Int8.of(drawn(64, 96)), drawn(5, 96, seed=1)
    found = {}
    for runs in {"dense", "int_mm", int8_runs(CPU)}:
        monkeypatch.setattr(quantised, "int8_runs", lambda device, runs=runs: runs)
        found[runs] = stored.layer(None, torch.float32, CPU)(x)
    for out in found.values():
        torch.testing.assert_close(out, found["dense"], rtol=1e-6, atol=1e-6)


_BELOW = """
import torch
from unmask.models.onednn import prepacked, product, works
assert works(torch.float32) == {works}
if works(torch.float32):
    x, weight = (torch.randint(-127, 128, size, dtype=torch.int8) for size in ((64, 512), (512, 512)))
    found = product(x, prepacked(weight), torch.ones(512), torch.float32)
    assert torch.equal(found.double(), x.double() @ weight.double().t())
"""


@pytest.mark.parametrize(("isa", "works"), [("AVX512_CORE_VNNI", True), ("AVX512_CORE", False)])
def test_processors_with_fewer_instructions(isa, works):
    """Without AMX signed inputs have no kernel, without VNNI sums saturate."""
    if int8_runs(CPU) != "onednn" or not torch.cpu.get_capabilities().get("avx512_vnni"):
        pytest.skip("no AVX512-VNNI here")
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", _BELOW.replace("{works}", str(works))], env=environment, check=True)


def test_a_product_that_no_kernel_is_made_for_is_not_taken(monkeypatch):
    """oneDNN then computes it by a reference that is right and takes a thousand times as long."""
    if int8_runs(CPU) != "onednn":
        pytest.skip("no integer products of oneDNN here")
    for ratio, taken in ((0.9, True), (1.1, False)):
        seconds = iter([ratio * onednn._SLOW, 1.0])
        monkeypatch.setattr(onednn, "_seconds", lambda call, seconds=seconds: next(seconds))
        assert onednn.works.__wrapped__(torch.float32) == taken


@given(st.integers(0, 50), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(deadline=None)
def test_activations_are_rounded_to_the_nearest(seed, dtype):
    x = (drawn(9, 32, seed=seed) * torch.logspace(-3, 3, 9)[:, None]).to(dtype)
    x[4] = 0
    values, size = per_token(x)
    assert values.dtype == torch.int8
    assert int(values.abs().amax()) <= 127
    wide = x.float() / size.float()
    assert bool(((wide - values).abs() <= 0.5001).all())
    assert bool((values[4] == 0).all())
    most = wide.abs().amax(1)[x.float().abs().amax(1) > 0]
    assert bool((most > 126.4).all())
    assert dtype == torch.bfloat16 or bool((most - 127).abs().max() < 1e-3), "a tie would fall differently elsewhere"


def test_many_activations_are_rounded_some_at_a_time():
    x = drawn(7, 64).bfloat16()
    few, many = per_token(x), per_token(x.repeat(1500, 1))  # 5 pieces, the last one shorter
    assert all(torch.equal(b, a.repeat(1500, 1)) for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_memory_of_its_own(kind):
    layer, x = KINDS[kind].of(drawn(24, 32)).layer(torch.nn.Parameter(drawn(24)), torch.float32, CPU), drawn(3, 32)
    copy, before = deepcopy(layer), layer(x)
    assert torch.equal(copy(x), before)
    copy.scale.data.zero_()
    assert torch.equal(layer(x), before)


def test_what_is_not_finite_stays_so():
    layer = Int8.of(drawn(24, 32)).layer(None, torch.float32, CPU)
    for odd in (torch.inf, torch.nan):
        x = drawn(3, 32, seed=1)
        x[1, 5] = odd
        assert layer(x).isfinite().all(1).tolist() == [True, False, True]


def test_rounding_of_weights():
    weight = drawn(20, 128)
    eight, four = Int8.of(weight), Int4.of(weight)
    assert float((eight.dense() - weight).abs().amax()) <= 0.5001 * float(eight.scale.amax())
    step = four.scale.float().repeat_interleave(64, 1)
    near = (four.dense() - weight).abs() <= 0.51 * step
    assert float(near.float().mean()) > 0.95  # the rest is cut off, where that makes the error of the group less
    plain = weight.view(20, 2, 64)
    low, high = plain.amin(-1, keepdim=True), plain.amax(-1, keepdim=True)
    nearest = ((plain - low) / (high - low) * 15).round() / 15 * (high - low) + low
    assert float((four.dense() - weight).norm()) < float((nearest.flatten(1) - weight).norm())
    assert float((Int8.of(torch.zeros(3, 32)).dense()).abs().amax()) == 0
    assert float((Int4.of(torch.ones(3, 32)).dense() - 1).abs().amax()) < 1e-2


def test_groups_are_as_large_as_the_inputs_allow():
    assert [Int4.of(drawn(4, inputs)).scale.shape[1] for inputs in (128, 96, 48)] == [2, 3, 3]
    with pytest.raises(unmask.ModelError, match="40"):
        Int4.of(drawn(4, 40))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.05), ("int4", 0.4), ("int8+head", 0.05), ("int4+head", 0.45)])
def test_a_model_loaded_with_it(tmp_path, kind, most, dtype):
    folder = write(tmp_path, WIDE, tensors=made_weights(CONFIG | WIDE))
    plain = unmask.load(folder, dtype="float64")
    model = unmask.load(folder, dtype=dtype, quantize=kind)
    network = model.denoiser.network
    held = [name for name, module in network.named_modules() if isinstance(module, Quantised)]
    assert len(held) == 4 * len(network.blocks) + ("head" in kind)
    expected = logits(plain)
    off = float((logits(model).double() - expected).square().mean().sqrt() / expected.std())
    assert 1e-4 < off < most
    for cache in ("none", "dual", "dllm(kp=2,kr=2)"):  # the last computes values alone
        (result,) = model.generate("abc", 16, "threshold(0.5)", cache)
        assert result.finish_reason in ("eos", "length")


def test_a_row_is_decoded_the_same_alone_and_in_a_batch():
    model = unmask.load(quantize="int8")
    prompts = ["Amy has 3 apples.", "In the morning Uma counts 11 jars.", "Solve the sudoku:\n0214\n4132\n1420\n0340"]
    together = model.generate(prompts, 32, "threshold(0.9)", "dual")
    alone = [model.generate(p, 32, "threshold(0.9)", "dual")[0] for p in prompts]
    assert [r.tokens for r in together] == [r.tokens for r in alone]


@pytest.mark.parametrize("kind", ["int8", "int4", "int8+head"])
def test_written_and_read_again(tmp_path, monkeypatch, kind):
    source, copy = write(tmp_path / "a", WIDE, tensors=made_weights(CONFIG | WIDE)), tmp_path / "b"
    monkeypatch.setattr("unmask.models.quantised_writer._SHARD", 40_000)
    done = cli("quantize", source, "--output", copy, "--kind", kind)
    assert done.exit_code == 0
    assert "bytes" in done.stderr
    assert len(list(copy.glob("*.safetensors"))) > 1
    read, fresh = unmask.load(copy), unmask.load(source, quantize=kind)
    assert torch.equal(logits(read), logits(fresh))
    assert read.text.fingerprint == fresh.text.fingerprint
    report = json.loads(cli("inspect", copy, "--json").stdout)
    assert (report["stored"], report["weights"][:8]) == (kind, "complete")
    assert report["products"].startswith(kind)
    assert report["bytes"] < 0.8 * inspection.inspect(source)["bytes"]
    dense = unmask.load(copy, quantize="none", dtype="float32")
    assert not any(isinstance(m, Quantised) for m in dense.denoiser.network.modules())
    assert float((logits(dense) - logits(fresh).float()).std()) < 0.1 * float(logits(fresh).std())


def test_refusals(tmp_path):
    folder = write(tmp_path / "a", WIDE, tensors=made_weights(CONFIG | WIDE))
    for kind in ("int3", "", "head", None):
        with pytest.raises(unmask.ModelError, match="quantize"):
            unmask.load(folder, quantize=kind)
    assert cli("generate", "a", "--quantize", "int5").exit_code == 2
    for output, named in (("", "--output"), (str(folder), str(folder))):
        done = cli("quantize", folder, "--output", output)
        assert done.exit_code == 2
        assert named in done.stderr
    for kind in ("none", "auto", "int5"):
        assert cli("quantize", folder, "--output", tmp_path / "c", "--kind", kind).exit_code == 2
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("change", ["version", "kind", "dtype", "rows", "missing"])
def test_damaged_copies_get_one_clear_error(tmp_path, change):
    copy = tmp_path / "b"
    assert cli("quantize", write(tmp_path / "a", WIDE, tensors=made_weights(CONFIG | WIDE)), "-o", copy).exit_code == 0
    config, tensors = json.loads((copy / "config.json").read_text()), load_file(copy / "model.safetensors")
    name = "model.transformer.blocks.0.q_proj.weight"
    if change in ("version", "kind"):
        config["quantization_config"][change] = "2"
    elif change == "dtype":
        tensors[name] = tensors[name].int()
    elif change == "rows":
        tensors[f"{name}_scale"] = tensors[f"{name}_scale"][:-1].clone()
    else:
        del tensors[f"{name}_scale"]
    (copy / "config.json").write_text(json.dumps(config))
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(unmask.ModelError) as caught:
        unmask.load(copy)
    assert ("quantization_config" if change in ("version", "kind") else name) in str(caught.value)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_floating_point_weights_never_exist_as_a_whole(monkeypatch, kind):
    """What is quantised is let go before much more is read."""
    alive, most = set(), []

    class Watched(KINDS[kind]):
        @staticmethod
        def of(weight):
            alive.add(id(weight))
            weakref.finalize(weight, alive.discard, id(weight))
            most.append(len(alive))
            return KINDS[kind].of(weight)

    monkeypatch.setattr(packing, "KINDS", {kind: Watched})
    model = unmask.load(quantize=kind)
    assert len(most) == 7 * len(model.denoiser.network.blocks)
    assert max(most) <= 2


def test_random_weights_are_quantised_as_they_are_drawn():
    checkpoint = shape("llada-220m")
    assert 2.1e8 < parameter_count(checkpoint.description) < 2.3e8
    small = Checkpoint(checkpoint.folder, checkpoint.config | {"n_layers": 2, "d_model": 128, "n_heads": 2})
    plain = random_denoiser(small, CPU, torch.bfloat16)
    eight = random_denoiser(small, CPU, torch.bfloat16, Scheme("int8"))
    for a, b in zip(plain.network.blocks, eight.network.blocks, strict=True):
        torch.testing.assert_close(
            b.down.weight.to_dense().t().float() * b.down.scale[:, None], a.down.weight.float(), atol=1e-3, rtol=0
        )


@pytest.mark.slow
def test_compiled_parts_compute_the_same():
    """By a backend that compiles nothing: parts can be traced, and products are left to themselves."""
    model, prompt = unmask.load(quantize="int8", dtype="float32"), "Amy has 3 apples."
    plain = model.generate(prompt, 32, "threshold(0.9)", "dual")[0]
    quantised.left_to_itself()
    model.denoiser.network.use(compiled(EAGER, "cpu", backend="eager", rounds=True))
    assert model.generate(prompt, 32, "threshold(0.9)", "dual")[0].tokens == plain.tokens
