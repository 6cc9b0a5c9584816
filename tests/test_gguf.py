"""Files of llama.cpp: its own converter made those in tests/golden/gguf; see the README there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

import unmask
from helpers import cli
from test_loading import logits
from unmask import inspection
from unmask.models.gguf_tensors import unturned
from unmask.models.loading import blank
from unmask.models.quantised import Quantised
from unmask.models.weights import Checkpoint

ARCHITECTURE = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0"  # the key, that a text follows, and its length
GOLDEN = Path(__file__).parent / "golden"
FILES = GOLDEN / "gguf"
IDS = [3, 5, 70, 126, 12, 126, 40, 126, 126, 31]
MADE = {
    "llada-rand-f16": ("llada-rand", "F16"),
    "dream-rand-g7-bf16": ("dream-rand-g7", "BF16"),
    "llada-rand-q8_0": ("llada-rand", "Q8_0"),
    "dream-rand-q8_0": ("dream-rand", "Q8_0"),
    "llada-moe-rand-q8_0": ("../blocks/checkpoints/llada-moe-rand", "Q8_0"),
    "rnd1-rand-q8_0": ("../blocks/checkpoints/rnd1-rand", "Q8_0"),
}
WIDE = {"q4_0": 0.5, "q4_k_m": 0.35, "q5_k_m": 0.2, "q6_k": 0.1}  # of the logits' standard deviation


def off(found, expected):
    """The root mean square of the difference, in standard deviations of what is expected."""
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """The checkpoint that the files ``llada-wide-*`` were made from: one layer, wide enough for blocks of 256."""
    folder = tmp_path_factory.mktemp("wide")
    config = json.loads((GOLDEN / "checkpoints" / "llada-rand" / "config.json").read_text(encoding="utf-8"))
    config |= {"d_model": 256, "n_kv_heads": 2, "n_layers": 1, "mlp_hidden_size": 256, "weight_tying": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint, draw = Checkpoint(folder, config), torch.Generator().manual_seed(0)
    shapes, tensors = blank(checkpoint.description.arch).shapes(), {}
    for ours, theirs in checkpoint.names.items():
        drawn = torch.ones(shapes[ours]) if "norm" in ours else torch.randn(shapes[ours], generator=draw)
        tensors[theirs] = drawn if "norm" in ours or "embed" in ours else drawn * 0.1
    save_file(tensors, folder / "model.safetensors")
    return folder


def rounded(weight, kind):
    """A weight through a format and back."""
    as_kind = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(weight.float().numpy(), as_kind), as_kind)).to(weight.dtype)


@pytest.mark.parametrize("name", MADE)
def test_logits_are_those_of_the_checkpoint_it_was_made_from(name):
    """The same, once its weights are rounded as the format rounds them: names, permutation, biases and sizes."""
    source, kind = MADE[name]
    expected = unmask.load(GOLDEN / "checkpoints" / source, dtype="float64")
    before = logits(expected, IDS)
    for own, weight in expected.denoiser.network.named_parameters():
        if weight.dim() == 2 and "router" not in own:  # these stay in float32; short rows, in float16
            weight.data = rounded(weight.data, "F16" if weight.shape[1] % 32 and kind == "Q8_0" else kind)
    found = logits(unmask.load(FILES / f"{name}.gguf", dtype="float64", quantize="none"), IDS)
    assert off(found, logits(expected, IDS)) < 1e-6
    assert 1e-5 < off(found, before) < 0.1  # and the format does round


def test_rows_that_are_not_turned_back_show():
    """The measure above sees a wrong permutation: queries and keys as the file has them give other logits."""
    expected = logits(unmask.load(GOLDEN / "checkpoints" / "llada-rand", dtype="float64"), IDS)
    wrong = unmask.load(FILES / "llada-rand-f16.gguf", dtype="float64", quantize="none")
    for block in wrong.denoiser.network.blocks:
        rows = block.qkv_proj.weight[:128].view(2, 4, 2, 8, 64)
        block.qkv_proj.weight.data[:128] = rows.transpose(2, 3).reshape(128, 64)
    assert off(logits(wrong, IDS), expected) > 0.02


def test_turning_undoes_what_the_converter_does():
    rows = torch.arange(24.0).view(12, 2)
    permuted = rows.reshape(2, 2, 3, 2).swapaxes(1, 2).reshape(12, 2)
    assert torch.equal(unturned(permuted, 2), rows)


@pytest.mark.parametrize("kind", WIDE)
def test_every_format_of_few_bits(wide, kind):
    expected = logits(unmask.load(wide, dtype="float32"), IDS)
    plain = logits(unmask.load(FILES / f"llada-wide-{kind}.gguf", dtype="float32", quantize="none"), IDS)
    assert off(plain, expected) < WIDE[kind]
    kept = unmask.load(FILES / f"llada-wide-{kind}.gguf", dtype="float32")
    assert isinstance(kept.denoiser.network.blocks[0].down, Quantised)
    assert off(logits(kept, IDS), plain) < 0.1


def test_a_quantised_file_is_kept_in_8_bits_and_others_are_not():
    assert unmask.load(FILES / "llada-rand-q8_0.gguf").denoiser.network.blocks[0].o.weight.dtype == torch.int8
    assert not isinstance(unmask.load(FILES / "llada-rand-f16.gguf").denoiser.network.blocks[0].o, Quantised)


def test_ids_and_tokenizer_come_from_the_file():
    model, plain = unmask.load(FILES / "llada-rand-q8_0.gguf"), unmask.load(GOLDEN / "checkpoints" / "llada-rand")
    spec, wanted = model.denoiser.spec, plain.denoiser.spec
    assert (spec.mask, spec.eos, spec.pad, spec.context, spec.shift) == (
        wanted.mask, wanted.eos, wanted.pad, wanted.context, False,
    )  # fmt: skip
    assert all(unmask.load(FILES / f"{name}-q8_0.gguf").denoiser.spec.shift for name in ("dream-rand", "rnd1-rand"))
    assert model.text.decode(model.text.plain("cab!")) == "cab!"
    assert model.text.plain("ab") == [model.text.token("ab")]
    assert model.text.control == {"<|mask|>": 126, "<|eos|>": 125}
    assert model.generate("abc", 8)[0].finish_reason in ("eos", "length")


def test_inspect_and_generate_on_the_command_line():
    file = str(FILES / "dream-rand-q8_0.gguf")
    report = json.loads(cli("inspect", file, "--json").stdout)
    assert (report["family"], report["stored"], report["mask"]) == ("dream", "int8", 126)
    assert report["weights"].startswith("complete")
    assert report["bytes"] == (FILES / "dream-rand-q8_0.gguf").stat().st_size
    assert report["files"] == {"dream-rand-q8_0.gguf": report["bytes"]}
    done = cli("generate", "abc", "--model", file, "--gen-length", "8", "--json")
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)["tokens"]) <= 8


def test_a_copy_in_our_own_format(tmp_path):
    file, copy = FILES / "llada-rand-q8_0.gguf", tmp_path / "copy"
    assert cli("quantize", str(file), "--output", str(copy)).exit_code == 0
    assert off(logits(unmask.load(copy), IDS).double(), logits(unmask.load(file), IDS).double()) < 1e-3
    assert unmask.load(copy).text.plain("cab!") == unmask.load(file).text.plain("cab!")


def damaged(tmp_path, change):
    file = tmp_path / "model.gguf"
    file.write_bytes(change((FILES / "llada-rand-q8_0.gguf").read_bytes()))
    return file


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b[:1000], "complete"),
        (lambda b: b[:-5000], "complete"),
        (lambda b: b"{}" + b[2:], "not a GGUF file"),
        (lambda b: b"", "not a GGUF file"),
        (lambda b: b[:8] + b"\xff" * 8 + b[16:], "complete"),
        (lambda b: b.replace(ARCHITECTURE + b"llada", ARCHITECTURE + b"llama"), "'llama'"),
        (lambda b: b.replace(b"llada.block_count", b"llada.block_cound"), "llada.block_count"),
        (lambda b: b.replace(b"tokenizer.ggml.mask_token_id", b"tokenizer.ggml.mesk_token_id"), "mask_token_id"),
        (lambda b: b.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_op.weight"), "blk.1.ffn_up.weight"),
        (lambda b: b.replace(b"llama-bpe", b"llama-bpf"), "llama-bpf"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_get_one_clear_error(tmp_path, change, told):
    file = damaged(tmp_path, change)
    with pytest.raises(unmask.ModelError) as caught:
        unmask.load(file)
    assert told in str(caught.value)
    assert str(file) in str(caught.value) or "config.json" in str(caught.value)
    done = cli("generate", "a", "--model", str(file))
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1


def test_what_is_no_file_or_does_not_go_with_one(tmp_path):
    with pytest.raises(unmask.ModelError, match=r"absent\.gguf"):
        unmask.load(tmp_path / "absent.gguf")
    for name in ("revision", "adapter"):
        with pytest.raises(unmask.ModelError, match=name):
            unmask.load(FILES / "llada-rand-q8_0.gguf", **{name: "main"})


def test_a_file_that_changes_is_read_anew(tmp_path):
    file = shutil.copy(FILES / "llada-rand-q8_0.gguf", tmp_path / "model.gguf")
    assert inspection.inspect(file)["family"] == "llada"
    shutil.copy(FILES / "dream-rand-q8_0.gguf", file)
    assert inspection.inspect(file)["family"] == "dream"
