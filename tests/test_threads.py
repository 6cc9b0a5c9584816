"""How many threads an operation gets, and who has the last word."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unmask
from unmask.core import threads
from unmask.core.pace import Pace
from unmask.core.threads import WORK, count, fix, for_work
from unmask.core.waiting import SPINS, bound_waiting


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which torch takes four threads by itself and nobody has chosen a number."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_fixed", False)
    monkeypatch.setattr(threads, "_defaults", lambda: frozenset({4}))
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


def inside(work: float) -> int:
    with for_work(work):
        return torch.get_num_threads()


@pytest.mark.parametrize(
    ("work", "most", "expected"),
    [(0, 8, 1), (1.9, 8, 1), (2, 8, 2), (3.9, 8, 2), (4, 8, 4), (7, 8, 4), (8, 8, 8), (99, 8, 8), (7, 6, 6), (9, 1, 1)],
)
def test_a_thread_for_each_portion_of_work(work: float, most: int, expected: int) -> None:
    assert count(work * WORK, most) == expected


@pytest.mark.usefixtures("four")
def test_the_number_is_restored() -> None:
    assert (inside(0), inside(2 * WORK), inside(1e15)) == (1, 2, 4)
    assert torch.get_num_threads() == 4
    with pytest.raises(ZeroDivisionError), for_work(0):
        _ = 1 / 0
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four")
def test_inside_another_the_inner_one_counts() -> None:
    with for_work(0):
        assert inside(1e15) == 4
        assert torch.get_num_threads() == 1
        with for_work(2 * WORK):
            assert inside(0) == 1
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four")
def test_fewer_where_they_are_faster() -> None:
    now, taken = 0.0, list[int]()
    pace = Pace(clock=lambda: now)
    for _ in range(50):
        with for_work(2 * WORK, pace):
            taken.append(torch.get_num_threads())
            now += 0.01 * taken[-1]
    assert taken[:3] == [1, 1, 2]
    assert taken[3:].count(1) > 40
    assert torch.get_num_threads() == 4
    with for_work(0, pace):
        assert torch.get_num_threads() == 1
    assert len(pace.levels) == 1, "what one thread does is not measured"


@pytest.mark.usefixtures("four")
def test_layers_head_and_reading_find_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unmask.load()
    monkeypatch.setattr(threads, "WORK", 1e4)
    model.generate([[5, 6]], 32, "vanilla", "none", ignore_eos=True)
    model.generate([[5, 6]], 32, "vanilla", "none", ignore_eos=True, temperature=0.7)
    model.generate([[5, 6]], 32, "vanilla", "dual", ignore_eos=True)
    paces = model.denoiser.network._paces
    layers = {("layers", cache, False) for cache in ("none", "dual")}
    assert set(paces) == layers | {("head",), ("reading",), ("sampling",)}
    assert {kind for kind, pace in paces.items() if pace.alarms} == layers
    assert all(level.warm for pace in paces.values() for level in pace.levels.values())


def test_compiled_code_keeps_its_number() -> None:
    network = unmask.load().denoiser.network
    assert network.pace("layers") is network.pace("layers") is not network.pace("head")
    network.use(replace(network.kernels, compiled=True))
    assert network.pace("layers") is None


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "4")
    assert inside(0) == 4


@pytest.mark.usefixtures("four")
def test_the_users_number_wins() -> None:
    torch.set_num_threads(3)
    assert inside(0) == inside(1e15) == 3
    fix(4)
    assert inside(0) == inside(1e15) == 4


@pytest.mark.usefixtures("four")
def test_layers_get_what_they_are_worth_and_the_rest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unmask.load()
    seen: dict[str, set[int]] = {"layer": set(), "policy": set()}
    block = model.denoiser.network.blocks[0]
    policy, cache = model.setting("threshold", "none")
    forward, decide = type(block).mlp, type(policy).decide

    def layer(*given: object) -> object:
        seen["layer"].add(torch.get_num_threads())
        return forward(*given)

    def decided(*given: object) -> object:
        seen["policy"].add(torch.get_num_threads())
        return decide(*given)

    monkeypatch.setattr(type(block), "mlp", layer)
    monkeypatch.setattr(type(policy), "decide", decided)
    monkeypatch.setattr(type(model.denoiser.network), "pace", lambda *_: None)  # always as many as it is worth
    model.generate([[5, 6]], 8, policy, cache)
    assert seen == {"layer": {1}, "policy": {1}}
    each = 130 * model.denoiser.layer_weights
    model.generate([[5, 6]] * (1 + int(4 * WORK / each)), 128, policy, cache, ignore_eos=True)
    assert max(seen["layer"]) == 4
    assert seen["policy"] == {1}
    assert torch.get_num_threads() == 4


def test_cores_are_counted_once(tmp_path: Path) -> None:
    for one, siblings in ((0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")):
        folder = tmp_path / f"cpu{one}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert threads._cores({0, 1, 2, 3}, tmp_path) == 2
    assert threads._cores({0, 1}, tmp_path) == 2
    assert threads._cores({0, 2}, tmp_path) == 1
    assert threads._cores({0, 9}, tmp_path) == 2, "a processor that the system tells nothing of"


def test_torch_takes_one_of_the_numbers_by_itself() -> None:
    code = "import torch; from unmask.core.threads import _defaults; assert torch.get_num_threads() in _defaults()"
    free = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    subprocess.run([sys.executable, "-c", code], env=free, check=True)


@pytest.mark.parametrize("name", [*SPINS, "OMP_WAIT_POLICY"])
def test_waiting_is_bounded_unless_the_user_says_how(name: str) -> None:
    free: dict[str, str] = {"PATH": "/bin"}
    bound_waiting(free)
    assert free == {"PATH": "/bin", **SPINS}
    chosen = {name: "7"}
    bound_waiting(chosen)
    assert chosen == {name: "7"}
