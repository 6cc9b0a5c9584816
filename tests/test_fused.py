"""Products of weights in few bits as Triton has them, interpreted on a CPU; tests/test_cuda.py runs them on a GPU.

In float32 alone: numpy, by which Triton interprets, has no bfloat16.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmask.models import computing, quantised
from unmask.models.quantised import KINDS, Int4, Int8, Int8Linear, Room, per_token

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("compiled for a GPU here: tests/test_cuda.py", allow_module_level=True)
CPU = torch.device("cpu")
SIZES = [
    (1, 48, 64),
    (17, 100, 192),
    (40, 64, 320),
    (130, 260, 128),
    (5, 36, 48),
    (3, 70, 80),
    (20, 70, 512),
]  # rows, outputs, inputs


@pytest.fixture
def fused() -> Any:
    """The kernels, which tests/conftest.py lets Triton interpret."""
    from unmask.models import fused

    return fused


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inputs", [16, 100, 5000])
def test_tokens_are_rounded_alike(fused: Any, inputs: int) -> None:
    x = drawn(9, inputs) * torch.logspace(-30, 30, 9)[:, None]
    x[3] = 0
    x[4, :12] = torch.arange(12) + 0.5  # ties
    x[4, 12:] = 127
    expected = per_token(x)
    for ours, theirs in zip(fused.rounded(x, quantised._TOKEN, quantised._LEAST), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_not_hidden(fused: Any, value: float) -> None:
    x = drawn(3, 40)
    x[1, 33] = value
    sizes = fused.rounded(x, quantised._TOKEN, quantised._LEAST)[1]
    assert sizes.isfinite().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SIZES)
def test_integers_are_exact(fused: Any, rows: int, outputs: int, inputs: int) -> None:
    draw = torch.Generator().manual_seed(0)
    values, weight = (torch.randint(-127, 128, (n, inputs), generator=draw, dtype=torch.int8) for n in (rows, outputs))
    sizes, scale, bias = drawn(rows, 1).exp(), drawn(outputs).exp(), drawn(outputs, seed=1)
    whole = values.long() @ weight.long().t()
    assert torch.equal(
        fused.product8(values, torch.ones(rows, 1), weight, torch.ones(outputs), None, torch.float32), whole.float()
    )
    for more in (None, bias):
        found = fused.product8(values, sizes, weight, scale, more, torch.float32)
        expected = whole.double() * scale * sizes + (0 if more is None else more)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(found[1:], fused.product8(values[1:], sizes[1:], weight, scale, more, torch.float32))


@pytest.mark.parametrize("begin", [0, 13])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SIZES)
def test_weights_of_four_bits(fused: Any, rows: int, outputs: int, inputs: int, begin: int) -> None:
    layer = Int4.of(drawn(outputs, inputs)).layer(None, torch.float32, CPU)
    stored = [t[0, ..., begin:outputs] for t in (layer.packed, layer.scale, layer.least)]
    weight, x = fused.dense4(*stored), drawn(rows, inputs, seed=2)
    torch.testing.assert_close(weight, Room(layer).dense(0)[:, begin:outputs], rtol=0, atol=1e-6)
    expected = x.double() @ weight.double()
    torch.testing.assert_close(fused.product4(x, *stored).double(), expected, rtol=1e-5, atol=1e-4)


def test_parts_are_summed(fused: Any) -> None:
    assert [fused._parts(columns, 64) for columns in (64, 192, 384, 2000)] == [8, 4, 2, 1]
    assert fused._parts(1, 5) == 1, "five groups are in no equal parts"


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("kind", KINDS)
def test_layers_use_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, bias = KINDS[kind].of(drawn(72, 96)), nn.Parameter(drawn(72, seed=1), requires_grad=False)
    x, plain = drawn(2, 7, 96, seed=3), stored.layer(bias, torch.float32, CPU)
    expected = plain(x), plain.part(x, 13)
    monkeypatch.setattr(quantised, "int8_runs", lambda _: "triton")
    monkeypatch.setattr(quantised, "uses_triton", lambda _: True)
    layer = stored.layer(bias, torch.float32, CPU)
    called = list[str]()
    whole = type(layer).fused
    monkeypatch.setattr(type(layer), "fused", lambda *given: (called.append(kind), whole(*given))[1])
    torch.testing.assert_close((layer(x), layer.part(x, 13)), expected, rtol=1e-5, atol=1e-5)
    assert layer(x[:, :0]).shape == (2, 0, 72)
    assert called == [kind] * 3


@pytest.mark.parametrize("name", ["rounded", "product8", "dense4", "product4"])
def test_a_device_on_which_one_is_wrong_does_without(
    fused: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    works, right = fused.works.__wrapped__, getattr(fused, name)
    assert works(CPU)
    assert not caplog.records

    def wrong(*given: Any) -> Any:
        found = right(*given)
        return (found[0] + 1, found[1]) if name == "rounded" else found + 1

    for faulty, said in ((wrong, "cpu"), (lambda *_: 1 / 0, "ZeroDivisionError")):
        monkeypatch.setattr(fused, name, faulty)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert not works(CPU)
        assert said in caplog.text


def test_as_many_stages_as_fit(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graphics card with less memory of a multiprocessor; what has been found out is kept."""
    tried = list[int]()

    class Kernel:
        fn = staticmethod(lambda: None)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def run(*given: Any, num_warps: int, num_stages: int) -> None:
                tried.append(num_stages)
                if num_stages > given[0]:
                    raise fused.triton.runtime.errors.OutOfResources(200, 100, "shared memory")

            return run

    monkeypatch.setattr(fused, "_fit", {})
    for most, expected in ((2, [4, 3, 2]), (2, [2]), (9, [4])):
        fused._launch(Kernel(), (1,), most, warps=4, stages=4)
        assert tried == expected
        tried.clear()
    with pytest.raises(fused.triton.runtime.errors.OutOfResources):
        fused._launch(Kernel(), (1,), 0, warps=4, stages=4)


def test_no_kernels_on_a_cpu() -> None:
    assert not computing.uses_triton(CPU)
    assert isinstance(Int8.of(drawn(8, 16)).layer(None, torch.float32, CPU), Int8Linear)


_COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from unmask.models import fused

def made(capability, kernel, kinds, warps, stages, **constants):
    signature = dict(zip(kernel.arg_names, [*kinds.split(), *["constexpr"] * 9]))
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    options = {"num_warps": warps, "num_stages": stages}
    return compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", capability, 32), options=options)

for capability, kind in ((80, "*bf16"), (90, "*fp32")):
    made(capability, fused._round_row, f"{kind} *i8 {kind}", 8, 1, inputs=4096, MOST=127, LEAST=2.0**-120, BLOCK=4096)
    for rows, outputs in ((8, 4096), (32, 24576), (128, 4096), (999, 4096)):
        *tile, warps, stages = fused._tile8(rows, outputs)
        names = dict(zip(("ROWS", "OUTPUTS", "INPUTS"), tile)) | {"outputs": outputs, "inputs": 4096, "BIASED": True}
        found = made(capability, fused._product8, f"*i8 {kind} *i8 *fp32 {kind} {kind} i32", warps, stages, **names)
        assert "mma" in found.asm["ptx"], "no matrix unit is used"
    made(capability, fused._dense4, f"*u8 {kind} {kind} {kind} i32 i32", 4, 1, HALF=32, OUTPUTS=256)
    names = {"groups": 64, "parts": 4, "HALF": 32, "ROWS": 32, "OUTPUTS": 64}
    made(capability, fused._product4, f"{kind} *u8 {kind} {kind} *fp32 i32 i32 i32", 4, 5, **names)
"""


def test_they_compile_for_graphics_cards() -> None:
    """Of two generations, without one: what the interpreter takes, the compiler may not."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", _COMPILED], env=env, check=True)
