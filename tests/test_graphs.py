"""Graphs of the layers, with a tape in the place of CUDA's: it replays operations on fixed addresses, as CUDA does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import unmask
from helpers import CACHES, POLICIES, SHIFT, Request, Row, assert_same, decode, tiny
from pairwise import combined
from unmask import registry
from unmask.core import rows
from unmask.models.denoiser import Denoiser
from unmask.models.graphs import Graphs, Rerun

aten = torch.ops.aten
WAITING = {
    aten.item.default,
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten._unique2.default,
}
REQUESTS = [
    Request(0, [1, 2, 3], 12),
    Request(1, [5, 6, 7, 8, 9, 10, 11], 9),
    Request(2, [4], 15),
    Request(3, [9, 3, 2, 4, 5], 14, ignore_eos=True),
]
CAPTURING = [spec for spec in CACHES if registry.cache(spec).captures]
SOME = ["threshold(tau=0.4,block_length=4)", *(p for p in POLICIES if p.startswith("slowfast"))][:5] + [
    p for p in POLICIES if p.startswith("wino")
][:1]


class Tape(TorchDispatchMode):
    """Records operations, with the tensors they were given and gave; undoes what they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        picks = args[1] if func.overloadpacket in {aten.index, aten.index_put, aten.index_put_} else ()
        if func in WAITING or any(p is not None and p.dtype == torch.bool for p in picks):
            raise RuntimeError(f"{func} waits for the device")
        if func._schema.is_mutable:
            self._before += [(a, a.clone()) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        out = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)

    def play(self) -> None:
        for func, args, kwargs, out in self.steps:
            fresh = func(*args, **kwargs)
            if func._schema.is_mutable:
                continue
            places = {storage(a) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}
            pairs = zip(out, fresh, strict=True) if isinstance(out, (tuple, list)) else [(out, fresh)]
            for old, new in pairs:
                if isinstance(old, Tensor) and storage(old) not in places:  # else a view: it shows what there is
                    old.copy_(new)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass
class Taped:
    """The backend: recordings made and played."""

    recorded: int = 0
    played: int = 0
    refuse: bool = False

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        return run()

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tape = Tape()
        if self.refuse:
            raise RuntimeError("not today")
        with tape:
            out = run()
        tape.undo()
        self.recorded += 1
        address = out.data_ptr()

        def play() -> Tensor:
            self.played += 1
            tape.play()
            assert out.data_ptr() == address
            return out

        return play

    def place(self) -> Hashable:
        return None


def with_graphs(backend: Any, shift: bool = False, **how: int) -> Denoiser:
    plain = tiny(shift)
    model = Denoiser(plain.network, plain.spec)
    model.graphs = Graphs(backend, **how)
    return model


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: slots and extents are rounded up."""
    monkeypatch.setattr(rows, "bucket", lambda count, total, _: min(-(-count // 8) * 8, total))


def plain(policy: str, cache: str, shift: bool) -> dict[int, Row]:
    return decode(tiny(shift), policy, cache, REQUESTS)


@combined(apart=("cache", "shift"), cache=CAPTURING, shift=SHIFT)
def test_graphs_change_nothing(cache: str, shift: bool) -> None:
    """Not what is committed, nor what is said to have been computed."""
    backend = Taped()
    model = with_graphs(backend, shift)
    for policy in SOME:
        assert_same(decode(model, policy, cache, REQUESTS), plain(policy, cache, shift))
    assert backend.recorded > 0
    assert backend.played >= backend.recorded
    assert model.graphs is not None
    assert model.graphs.hits == backend.played


@pytest.mark.parametrize("cache", CACHES)
def test_rerunning_changes_nothing(cache: str) -> None:
    model = with_graphs(Rerun())
    for policy in SOME[:3]:
        assert_same(decode(model, policy, cache, REQUESTS), plain(policy, cache, False))


def test_caches_that_do_not_say_so_run_eagerly() -> None:
    backend = Taped()
    model = with_graphs(backend)
    decode(model, SOME[0], "d2(k=4,p=0.4)", REQUESTS)
    assert backend.recorded == 0
    assert model.graphs is not None
    assert model.graphs.misses > 0


def test_what_cannot_be_recorded_runs_eagerly() -> None:
    backend = Taped(refuse=True)
    model = with_graphs(backend)
    assert_same(decode(model, SOME[0], "dual", REQUESTS), plain(SOME[0], "dual", False))
    assert model.graphs is not None
    assert model.graphs.hits == model.graphs.captured == 0
    assert model.graphs.failure == "not today"


def test_a_cache_that_waits_for_the_device_is_not_recorded() -> None:
    """It says that it may be, wrongly: the recording fails and the answers are right."""
    kept = copy(registry.cache("dual"))
    layer = type(kept).layer

    class Waits(type(kept)):  # type: ignore[misc]
        def layer(self, index: int, block: Any, hidden: Tensor, rows: Any, state: Any) -> Tensor:
            assert float(hidden.sum()) < float("inf")
            return layer(self, index, block, hidden, rows, state)

    backend = Taped()
    got = decode(with_graphs(backend), SOME[0], Waits(), REQUESTS)
    assert backend.recorded == 0
    assert_same(got, plain(SOME[0], "dual", False))


def test_the_number_of_graphs_is_bounded() -> None:
    model = with_graphs(Taped(), most=2)
    decode(model, SOME[1], "dual", REQUESTS)
    assert model.graphs is not None
    assert 0 < len(model.graphs._graphs) <= 2


def test_many_positions_run_eagerly() -> None:
    model = with_graphs(Taped(), positions=4)
    decode(model, SOME[0], "none", REQUESTS)
    assert model.graphs is not None
    assert model.graphs.hits == 0


def test_other_kernels_are_other_graphs() -> None:
    from unmask.models.kernels import Kernels
    from unmask.models.transformer import EAGER

    backend = Taped()
    model = with_graphs(backend)
    decode(model, SOME[0], "dual", REQUESTS)
    before = backend.recorded
    model.network.use(Kernels(EAGER.project, EAGER.feed, compiled=True))
    try:
        decode(model, SOME[0], "dual", REQUESTS)
    finally:
        model.network.use(EAGER)
    assert backend.recorded == 2 * before


def test_threads_share_graphs() -> None:
    model, found, failed = with_graphs(Taped()), {}, []

    def work(request: Request) -> None:
        try:
            found.update(decode(model, SOME[0], "dual", [request]))
        except Exception as error:
            failed.append(error)

    requests = [Request(i, [1, 2, 3], 12) for i in range(4)]
    threads = [threading.Thread(target=work, args=(r,)) for r in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    expected = decode(tiny(), SOME[0], "dual", requests[:1])[0]
    assert [found[i].commits for i in range(4)] == [expected.commits] * 4


def test_a_graph_is_played_again_and_again() -> None:
    backend = Taped()
    decode(with_graphs(backend), "vanilla(block_length=8)", "dual", [Request(0, [1, 2, 3], 32, ignore_eos=True)])
    assert backend.played > 5 * backend.recorded


def test_graphs_are_for_cuda() -> None:
    assert unmask.load(device="cpu").denoiser.graphs is None
    with pytest.raises(unmask.ModelError, match="cuda_graphs"):
        unmask.load(cuda_graphs="always")
