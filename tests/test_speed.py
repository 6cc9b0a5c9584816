"""What a forward costs and how that is told; attention in parts, compiled parts, and shapes that stay few."""

import ctypes
import json
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import unmask
from helpers import cli, fine, lines, tiny
from refusals import refused, refuses
from unmask.core import heap, rows
from unmask.core.precision import cpu_has_bfloat16
from unmask.core.rows import bucket, gather
from unmask.measure import forward as measured
from unmask.measure import memory, speed
from unmask.measure.forward import ASKED, PARTS, Forward, Parts, Products, Size
from unmask.models import attention as attending
from unmask.models import random as made
from unmask.models.attention import attention, attention_weighed
from unmask.models.kernels import compiled
from unmask.models.transformer import EAGER, TransformerBlock
from unmask.models.weights import parameter_count

CPU = torch.device("cpu")
SMALL = {**made.SHAPES["dream-7b"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
         "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 300, "mask_token_id": 299, "eos_token_id": 298,
         "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    return unmask.load(dtype="float32")


# --- the command


def test_json_lines(tmp_path):
    """Of a config.json with random weights: every combination, and figures that fit each other."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    out = lines(fine(cli("speed", "--shape", path, "--device", "cpu", "--length", 48, "--length", 96, "--computed", 16,
                         "--computed", 40, "--batch-size", 2, "--repeats", 1, "--peak-flops", "1e12", "--bandwidth",
                         "2e10", "--json")))  # fmt: skip
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


def test_table_and_a_canvas_longer_than_the_context():
    """The model that ships was made for 2048 positions."""
    out = fine(cli("speed", "--length", 2100, "--computed", 8, "--repeats", 1))
    head, _, line = [[c.strip() for c in row.split("|")] for row in out.splitlines() if row.startswith("| ")]
    row = dict(zip(head, line, strict=True))
    assert (row["T"], row["rows"], row["computed"]) == ("2100", "1", "8")
    assert row["ratio"].endswith(" %") and float(row["products, ms"]) > 0
    assert out.startswith("shipped, ")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--length", "64", "--computed", "65"], ["--computed", 65, "--length", 64]),
        (["--length", "1"], ["--length"]),
        (["--batch-size", "0"], ["--batch-size"]),
        (["--repeats", "0"], ["--repeats"]),
        (["--peak-flops", "0"], ["--peak-flops", 0]),
        (["--bandwidth", "nan"], ["--bandwidth", "nan"]),
        (["--shape", "llada-9b"], ["'llada-9b'", "llada-8b", "dream-7b"]),
        (["--shape", "dream-7b", "--model", "x"], ["--model", "--shape"]),
        (["--shape", "dream-7b", "--dtype", "int8"], ["dtype", "'int8'"]),
        (["--model", "nowhere"], ["'nowhere'"]),
        (["--device", "toaster"], ["device", "'toaster'"]),
    ],
)
def test_bad_usage(args, named):
    refused(cli("speed", *args), *named)


def test_weights_larger_than_the_machine_are_refused(monkeypatch):
    monkeypatch.setattr(made, "_memory", lambda: 10**9)
    refused(cli("speed", "--shape", "llada-8b", "--device", "cpu", "--dtype", "bfloat16"), "16.0 GB", "1.0 GB")


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


# --- attention


def reference(query, key, value, keys):
    """In float64, one row, head and query at a time as a softmax over the keys that count."""
    q, k, v = (x.double() for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    score = torch.einsum("bqhd,bshd->bhqs", q, k) / q.shape[3] ** 0.5
    if keys is not None:
        score = score.masked_fill(~(keys[:, None, None] if keys.dim() == 2 else keys[:, None]), -torch.inf)
    return torch.einsum("bhqs,bshd->bqhd", score.softmax(-1), v).flatten(2)


@pytest.mark.parametrize("at_once", [1 << 12, 1 << 21], ids=["pieces", "whole"])
@pytest.mark.parametrize("keys", ["all", "row", "query"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_in_parts_is_attention(dtype, heads, kv_heads, keys, at_once, monkeypatch):
    """Against float64, to what 16 bits hold; ragged rows, and empty slots that see nothing stay finite."""
    draw = torch.Generator().manual_seed(heads)
    query = torch.randn(3, 140, heads, 16, generator=draw).to(dtype)
    key, value = (torch.randn(3, 170, kv_heads, 16, generator=draw).to(dtype) for _ in range(2))
    mask = None
    if keys == "row":
        mask = torch.arange(170) < torch.tensor([[170], [31], [1]])
    elif keys == "query":
        mask = torch.rand(3, 140, 170, generator=draw) < 0.3
        mask[:, :, 5] = True
        mask[1, 100:] = False  # empty slots
    taken = []

    def by_parts(*given, run=attending._by_parts):
        taken.append(given)
        return run(*given, at_once=at_once, least=50)

    monkeypatch.setattr(attending, "_by_parts", by_parts)
    out = attention(query, key, value, mask)
    assert taken, "the parts were not asked"
    assert out.shape == (3, 140, heads * 16) and out.dtype == dtype and out.isfinite().all()
    real = torch.ones(3, 140, dtype=torch.bool) if mask is None or mask.dim() == 2 else mask.any(2)
    tolerance = 4 * torch.finfo(dtype).eps
    assert torch.allclose(out[real].double(), reference(query, key, value, mask)[real], atol=tolerance, rtol=tolerance)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        shared = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        for made_ in (t for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if made_.untyped_storage()._cdata not in shared:
                self.elements = max(self.elements, made_.untyped_storage().nbytes() // made_.element_size())
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_memory_of_attention_grows_with_the_canvas_not_its_square(masked):
    """Scores of 512 queries of one head, or 2 million of them; d2's mean over the heads is [Q, S] by what it is."""
    heads, size, total = 4, 8, 4096
    for dtype in (torch.bfloat16, torch.float32):
        query, key, value = (torch.zeros(1, total, heads, size, dtype=dtype) for _ in range(3))
        keys = torch.ones(1, total, dtype=torch.bool) if masked else None
        with Largest() as largest:
            attention(query, key, value, keys)
        assert largest.elements <= max(attending._QUERIES_AT_ONCE * total, attending._WEIGHTS_AT_ONCE)
    with Largest() as largest:
        attention_weighed(query[:, :512], key, value, keys)
    assert largest.elements <= max(512 * total, attending._WEIGHTS_AT_ONCE, total) < 512 * heads * total


# --- memory


def test_keep_freed_does_nothing_where_there_is_no_mallopt(monkeypatch):
    class Library:
        def __init__(self, name):
            self.asked = name

    monkeypatch.setattr(ctypes, "CDLL", Library)
    heap.keep_freed()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("there is no such thing here"))
    monkeypatch.setattr(sys, "platform", "darwin")
    heap.keep_freed()


# --- compiled parts


def test_one_graph_serves_all_layers_and_sizes(lm):
    """One for a single row, one for several, one for rotary rows that differ by row; however many slots there are."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    network = lm.denoiser.network
    network.use(compiled(EAGER, "cpu", backend))
    try:
        for total, many in ((40, 1), (70, 1), (33, 2), (90, 5), (64, 3)):
            Forward(lm.denoiser, Size(total, many, total))()
        for total, many, part in ((40, 1, 9), (50, 3, 12), (60, 4, 30)):
            Forward(lm.denoiser, Size(total, many, part))()
    finally:
        network.use(EAGER)
    assert 1 <= len(graphs) <= 4, f"{len(graphs)} graphs for {len(network.blocks)} layers"


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # what inductor imports uses old parts of torch
def test_compiled_is_eager(lm):
    """The model that ships, in float32: the same numbers to 1e-5, the same text."""
    torch._dynamo.reset()
    fast = unmask.load(dtype="float32", compile=True)
    assert fast.denoiser.network.kernels.compiled and not lm.denoiser.network.kernels.compiled
    with torch.inference_mode():
        hidden = torch.randn(1, 48, 256, generator=torch.Generator().manual_seed(0))
        rotary = lm.denoiser.network.rotary[None, :48]
        for plain, block in zip(lm.denoiser.network.blocks, fast.denoiser.network.blocks, strict=True):
            for got, expected in zip(block.qkv(hidden, rotary), plain.qkv(hidden, rotary), strict=True):
                assert torch.allclose(got, expected, atol=1e-5, rtol=1e-5)
    options = "Solve the sudoku:\n0214\n4132\n1420\n0340", 32, "slowfast", "dllm(kp=2,kr=2)"
    (got,), (expected,) = fast.generate(*options), lm.generate(*options)
    assert got.tokens == expected.tokens and got.steps == expected.steps


def test_compile_is_refused_where_nothing_compiles(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused(cli("generate", "Hi", "-n", 4, "--device", "cpu", "--compile"), "compile", "C++")
    with refuses(unmask.ModelError, "compile", "'yes'"):
        unmask.load(compile="yes")


# --- shapes


def shapes_of(lm, monkeypatch, rule):
    """Tokens of a ragged batch, and the shapes (B, Q, extent) that its layers saw."""
    seen = set()
    plain = TransformerBlock.attend

    def attend(self, query, key, value, keys):
        seen.add((*query.shape[:2], key.shape[1]))
        return plain(self, query, key, value, keys)

    monkeypatch.setattr(rows, "bucket", rule)
    monkeypatch.setattr(TransformerBlock, "attend", attend)
    prompts = [[5 + (7 * i + j) % 800 for j in range(4 + 5 * i)] for i in range(4)]
    found = []
    for policy, cache in (
        ("slowfast(tau_high=0.7,block_length=16,suffix=truncate)", "dllm(kp=7,kr=3)"),
        ("slowfast(tau_high=0.7,suffix=cached)", "dllm(kp=5,kr=4,rho=0.5)"),
    ):
        results = lm.generate(prompts, [20, 31, 47, 25], policy, cache, ignore_eos=True, batch_size=3)
        found += [r.tokens for r in results]
    monkeypatch.undo()
    return found, seen


def test_shapes_are_few_where_they_are_rounded(monkeypatch):
    """CUDA's rule, on this CPU: the same texts, from a few shapes.

    Slots are multiples of 8 up to 64, of 32 up to 512, or the whole canvas: of fewer than 97 positions that makes 10.
    Rows are those of the batch or a part of it, 3 at the most.
    """
    lm = unmask.load(dtype="float64")
    exact, many = shapes_of(lm, monkeypatch, lambda count, total, device: count)
    rounded, few = shapes_of(lm, monkeypatch, lambda count, total, device: bucket(count, total, torch.device("cuda")))
    assert rounded == exact
    assert len({q for _, q, _ in few}) <= 10 < len({q for _, q, _ in many})
    assert len(few) < len(many)


def test_extents_are_rounded_only_where_there_is_a_mask(monkeypatch):
    rule = lambda count, total, device: bucket(count, total, torch.device("cuda"))  # noqa: E731
    monkeypatch.setattr(rows, "bucket", rule)
    compute = torch.ones(2, 200, dtype=torch.bool)
    keys = torch.arange(200) < torch.tensor([[70], [70]])
    assert gather(compute, keys).keys is None and gather(compute, keys).extent == 70
    keys = torch.arange(200) < torch.tensor([[70], [31]])
    laid = gather(compute, keys)
    assert laid.extent == 96 and laid.keys.equal(keys[:, :96])
    assert F.pad(laid.keys, (0, 104)).equal(keys)
