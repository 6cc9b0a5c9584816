"""Attention in parts, compiled parts, and shapes that stay few."""

import ctypes
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import unmask
from benchmarks.forward import Forward, Size
from helpers import cli
from refusals import refused, refuses
from unmask.core import heap, rows
from unmask.core.rows import bucket, gather
from unmask.models import attention as attending
from unmask.models.attention import attention, attention_weighed
from unmask.models.kernels import compiled
from unmask.models.transformer import EAGER, Norm, TransformerBlock


@pytest.fixture(scope="module")
def lm():
    return unmask.load(dtype="float32")


# --- norms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_norm_in_16_bits_is_rounded_once(dtype):
    """As torch's own, which is computed in float32; and the same for a row alone; gradients are there."""
    draw = torch.Generator().manual_seed(0)
    norm, hidden = Norm(96, 1e-5).to(dtype), (torch.randn(4, 33, 96, generator=draw) * 5).to(dtype)
    norm.weight.data = torch.randn(96, generator=draw).to(dtype)
    found, torchs = norm(hidden), F.rms_norm(hidden, (96,), norm.weight, 1e-5)
    assert found.dtype == dtype
    assert float((found != torchs).double().mean()) < 1e-3
    torch.testing.assert_close(found, torchs, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(norm(hidden[1:2, :1]), found[1:2, :1])
    assert norm(torch.zeros_like(hidden)).eq(0).all()
    found.sum().backward()
    assert bool(norm.weight.grad.isfinite().all())


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


@pytest.mark.slow
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
