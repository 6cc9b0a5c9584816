"""The command that times forward passes (benchmarks/speed.py), and what it measures."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import unmask
from benchmarks import experts, memory, speed
from benchmarks import forward as measured
from benchmarks.forward import ASKED, PARTS, Forward, Parts, Products, Size
from benchmarks.llamacpp.build import instructions
from helpers import tiny
from unmask.api import BUNDLED_NAME
from unmask.core.precision import cpu_has_bfloat16
from unmask.models import random as made
from unmask.models.transformer import TransformerBlock
from unmask.models.weights import parameter_count

CPU = torch.device("cpu")
SMALL = {**made.SHAPES["dream-7b"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
         "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 300, "mask_token_id": 299, "eos_token_id": 298,
         "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    return unmask.load(dtype="float32")


# --- the command


def test_json_lines(tmp_path, capsys):
    """Of a config.json with random weights: every combination, and figures that fit each other."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    given = "--device cpu --length 48 96 --computed 16 40 --batch-size 2 --repeats 1 --peak-flops 1e12 --bandwidth 2e10"
    assert speed.main(["--shape", str(path), *given.split(), "--json"]) == 0
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(v["length"], v["batch_size"], v["computed"]) for v in out] == [
        (48, 2, 16), (48, 2, 40), (96, 2, 16), (96, 2, 40)]  # fmt: skip
    for value in out:
        assert value["dtype"] == ("bfloat16" if cpu_has_bfloat16() else "float32") and value["model"] == str(path)
        assert value["ratio"] == pytest.approx(value["products_ms"] / value["ms"])
        assert set(value["parts_ms"]) == {*PARTS, "other"} and min(value["parts_ms"].values()) >= 0
        assert value["quartiles"][0] <= value["ms"] <= value["quartiles"][1]
        seconds = value["ms"] / 1e3
        assert value["share_of_peak_flops"] == pytest.approx(value["operations"] / seconds / 1e12)
        assert value["share_of_bandwidth"] == pytest.approx(value["bytes"] / seconds / 2e10)
        assert value["peak_bytes"] > 0 and value["operations"] > 0
    assert out[1]["operations"] > 2 * out[0]["operations"]


def test_table_and_a_canvas_longer_than_the_context(capsys):
    """The bundled model was made for 2048 positions."""
    assert speed.main(["--length", "2100", "--computed", "8", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    head, _, line = [[c.strip() for c in row.split("|")] for row in out.splitlines() if row.startswith("| ")]
    row = dict(zip(head, line, strict=True))
    assert (row["T"], row["rows"], row["computed"]) == ("2100", "1", "8")
    assert row["ratio"].endswith(" %") and float(row["products, ms"]) > 0
    assert out.startswith(f"{BUNDLED_NAME}, ")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--length 64 --computed 65", "--computed 65"),
        ("--length 1", "--length"),
        ("--batch-size 0", "--batch-size"),
        ("--computed 0", "--computed"),
        ("--repeats 0", "--repeats"),
        ("--peak-flops 0", "--peak-flops"),
        ("--bandwidth nan", "--bandwidth"),
        ("--shape llada-9b", "llada-9b"),
        ("--shape dream-7b --model x", "--model"),
        ("--shape dream-7b --dtype int8", "int8"),
        ("--model nowhere", "nowhere"),
        ("--device toaster", "toaster"),
    ],
)
def test_bad_usage(given, named, capsys):
    try:
        code = speed.main(given.split())
    except SystemExit as left:  # argparse's own
        code = left.code
    said = capsys.readouterr()
    assert code == 2 and not said.out and named in said.err


def test_weights_larger_than_the_machine_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(made, "_memory", lambda: 10**9)
    assert speed.main(["--shape", "llada-8b", "--device", "cpu", "--dtype", "bfloat16"]) == 2
    assert "16.0 GB" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "count"), [("llada-8b", 8_015_581_184), ("dream-7b", 7_615_616_512)])
def test_shapes_are_the_published_ones(name, count):
    assert parameter_count(made.shape(name).description) == count


# --- what is measured


@pytest.mark.parametrize("size", [Size(40, 2, 40), Size(90, 1, 12), Size(300, 3, 150)], ids=str)
def test_operations_are_those_that_torch_counts(size, monkeypatch):
    monkeypatch.setattr(measured, "_SCORES_AT_ONCE", {False: 20000, True: 0})  # several heads and pieces of queries
    monkeypatch.setattr(measured, "_LEAST_QUERIES", 7)
    network = tiny(dtype=torch.float32).network
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        Products(network, size)()
    assert counter.get_total_flops() == speed.operations(network, size)


@pytest.mark.parametrize("computed", [64, 20])
def test_the_forward_is_the_engines(lm, computed):
    """What it answers of a whole canvas is what the model says; of a part it computes that part alone."""
    size = Size(64, 2, computed)
    forward = Forward(lm.denoiser, size)
    answer = forward()
    assert answer.work.tolist() == [computed] * 2
    assert int((answer.prediction.confidence > 0).sum()) == 2 * min(ASKED, computed)
    assert answer.computed().sum() == 2 * computed * lm.denoiser.layers
    if computed == size.length:
        network, hidden = lm.denoiser.network, lm.denoiser.network.embed(forward.canvas.tokens)
        for block in network.blocks:
            hidden = hidden + block.attend(*block.qkv(hidden, network.rotary[None, :64]), None)
            hidden = hidden + block.mlp(hidden)
        logits = network.logits(hidden[:, -ASKED:].flatten(0, 1))
        logits[:, lm.denoiser.spec.mask] = -torch.inf
        got = answer.prediction.token[:, -ASKED:].flatten()
        assert got.equal(logits[:, : lm.denoiser.spec.limit].argmax(-1))


def test_the_parts_run_every_layer(lm, monkeypatch):
    seen = []
    plain = TransformerBlock.mlp
    monkeypatch.setattr(TransformerBlock, "mlp", lambda self, hidden: (seen.append(self), plain(self, hidden))[1])
    size = Size(32, 2, 8)
    calls = Parts(lm.denoiser.network, size, Forward(lm.denoiser, size).rows).calls()
    assert tuple(calls) == PARTS
    for call in calls.values():
        call()
    assert seen == list(lm.denoiser.network.blocks)


def test_what_is_compared_takes_turns(monkeypatch):
    monkeypatch.setattr(speed, "_AT_LEAST", 0.0)  # one call is one measurement
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    found = speed.interleaved(calls, CPU, 4)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys("abc", 4)
    turns = [order[i : i + 3] for i in range(len(order) - 12, len(order), 3)]
    assert all(sorted(turn) == list("abc") for turn in turns)
    assert len({*map(tuple, turns)}) > 1, "always in the same order"


def test_peak_bytes_counts_what_is_alive():
    held = torch.zeros(1000)

    def call():
        first = held + 1  # 4000 bytes
        second = torch.cat([first, first])  # 8000 more
        view = second.view(2, -1)  # none
        del first, second, view
        return held * 2  # 4000, when nothing else is there

    assert memory.peak_bytes(call, CPU) == 12000


# --- llama.cpp


def test_llamacpp_is_built_without_amx():
    """Its products with AMX crash; what else the processor has is named then, and no more than that."""
    assert instructions({"avx2", "avx512f", "avx512_vnni"}) == ["GGML_NATIVE=ON"]
    told = dict(option.split("=") for option in instructions({"amx_tile", "avx2", "avx512f", "avx512_vnni"}))
    on = {"GGML_AVX2", "GGML_AVX512", "GGML_AVX512_VNNI"}
    assert {name for name, value in told.items() if value == "ON"} == on
    assert told["GGML_NATIVE"] == told["GGML_AVX512_BF16"] == "OFF"
    assert not any("AMX" in name for name in told)


# --- mixtures of experts


def test_experts(capsys):
    """Both ways give the same numbers, which is checked; every pair of sizes has a figure."""
    given = "--experts 4 6 --positions 1 9 --chosen 2 --width 16 --hidden 8 --repeats 2"
    assert experts.main([*given.split(), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(v["experts"], v["positions"], v["chosen"]) for v in lines] == [(4, 1, 2), (4, 9, 2), (6, 1, 2), (6, 9, 2)]
    assert all(v["sorted_ms"] > 0 and v["all_ms"] > 0 for v in lines)
    assert experts.main(given.split()) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_experts_of_random_weights_are_measured(tmp_path, capsys):
    """A mixture, with heads of a size of their own."""
    path = tmp_path / "config.json"
    small = {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 12, "num_hidden_layers": 2, "num_experts": 4,
             "num_experts_per_tok": 2, "moe_intermediate_size": 16, "vocab_size": 300, "mask_token_id": 299,
             "eos_token_id": 298, "max_position_embeddings": 64}  # fmt: skip
    path.write_text(json.dumps(made.SHAPES["rnd1-30b-a3b"] | small))
    given = "--device cpu --length 48 --computed 16 --repeats 1 --json"
    assert speed.main(["--shape", str(path), *given.split()]) == 0
    (value,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    each = 32 * 12 * (2 * 4 + 2 * 4) + 3 * 2 * 32 * 16 + 4 * 32  # attention, two experts, the router
    scores = 2 * 48 * 4 * 12
    assert value["operations"] == 2 * (2 * 16 * (each + scores) + 16 * 300 * 32)
