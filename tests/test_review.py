"""Odd input, files and numbers, and engines that are short of memory."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unmask
import warm
from helpers import cli, fine, lines
from refusals import names, refused, refuses
from unmask.core import threads
from unmask.core.canvas import Canvas, Update
from unmask.core.protocols import Prediction, Sampling
from unmask.core.state import slabs
from unmask.engine.admission import state_bytes
from unmask.engine.outcome import Outcome
from unmask.engine.request import Request, SamplingParams
from unmask.engine.scheduler import Engine
from unmask.policies.threshold import Threshold

FAST = ("generate", "--dtype", "float32", "-n", "8", "-p", "threshold")


@pytest.fixture(scope="module")
def lm() -> unmask.Model:
    return unmask.load(dtype="float32")


def batch(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- the command line -----------------------------------------------------------------------------------------


def test_resume_tells_lines_with_the_same_prompt_apart(tmp_path: Path) -> None:
    """Each has its own id in the results, whichever of them was finished; what is finished stays."""
    given = batch(tmp_path / "in", {"prompt": "ab", "id": "a"}, {"prompt": "ab", "id": "b"}, {"prompt": "ab"},
                  {"prompt": "ab"})  # fmt: skip
    out = tmp_path / "out"
    fine(cli(*FAST, "--batch", given, "-o", out))
    whole = out.read_text().splitlines()
    for kept in whole:
        out.write_text(kept + "\n")
        fine(cli(*FAST, "--batch", given, "-o", out, "--resume"))
        assert sorted(str(line.get("id")) for line in lines(out.read_text())) == ["None", "None", "a", "b"]
        assert sorted(line["index"] for line in lines(out.read_text())) == [0, 1, 2, 3]
        assert out.read_text().startswith(kept + "\n")
    before = out.read_text()
    fine(cli(*FAST, "--batch", given, "-o", out, "--resume"))
    assert out.read_text() == before


def test_resume_of_a_batch_in_another_order(tmp_path: Path) -> None:
    """The index of a result is its place in the batch as it is now."""
    rows, out = [{"prompt": f"Question {i}", "id": i} for i in range(3)], tmp_path / "out"
    fine(cli(*FAST, "--batch", batch(tmp_path / "in", *rows[:2]), "-o", out))
    fine(cli(*FAST, "--batch", batch(tmp_path / "in", *rows[::-1]), "-o", out, "--resume"))
    assert sorted((line["index"], line["id"]) for line in lines(out.read_text())) == [(0, 2), (1, 1), (2, 0)]


def test_resume_behind_a_kill_in_the_middle_of_a_character(tmp_path: Path) -> None:
    given, out = batch(tmp_path / "in", {"prompt": "ab", "id": "ä"}, {"prompt": "cd", "id": "ö"}), tmp_path / "out"
    fine(cli(*FAST, "--batch", given, "-o", out))
    raw = out.read_bytes()
    out.write_bytes(raw[: raw.rindex("ö".encode()) + 1])
    fine(cli(*FAST, "--batch", given, "-o", out, "--resume"))
    assert [line["id"] for line in lines(out.read_text())] == ["ä", "ö"]


@pytest.mark.parametrize("held", [b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_resume_refuses_what_holds_no_results(tmp_path: Path, held: bytes) -> None:
    given, out = batch(tmp_path / "in", {"prompt": "ab"}), tmp_path / "out"
    out.write_bytes(held)
    refused(cli(*FAST, "--batch", given, "-o", out, "--resume"), out, "line 1", "--resume")
    assert out.read_bytes() == held


def test_resume_with_lines_of_others(tmp_path: Path) -> None:
    given, out = batch(tmp_path / "in", {"prompt": "ab"}), tmp_path / "out"
    out.write_text('{"request": {"url": "/v1"}}\n[1]\n')
    fine(cli(*FAST, "--batch", given, "-o", out, "--resume"))
    assert len(lines(out.read_text())) == 1


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="no such devices")
def test_output_to_devices_and_pipes(tmp_path: Path) -> None:
    fine(cli(*FAST, "ab", "-o", "/dev/null"))
    full = cli(*FAST, "ab", "-o", "/dev/full")
    assert full.exit_code == 1 and full.stderr.count("\n") == 1
    names(full.stderr, "/dev/full", "0 of 1")
    given = batch(tmp_path / "in", {"prompt": "ab"})
    refused(cli(*FAST, "--batch", given, "-o", "/dev/null", "--resume"), "/dev/null")
    pipe, got = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    fine(cli(*FAST, "ab", "--json", "-o", pipe))
    reader.join()
    assert len(lines(got[0])[0]["tokens"]) == 8


def test_half_a_surrogate_in_a_key_of_the_users_own(tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    given.write_text('{"prompt": "ab", "id": "\\ud800"}\n')
    fine(cli(*FAST, "--batch", given, "-o", out))
    assert lines(out.read_text())[0]["id"] == "\ud800"


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_memory_is_a_number_above_0(value: str) -> None:
    refused(cli(*FAST, "ab", "--memory", value), "--memory", value)


def test_lines_that_no_reader_of_json_takes_are_refused(tmp_path: Path) -> None:
    given = tmp_path / "in"
    given.write_text('{"prompt": "ab", "id": NaN}\n')
    refused(cli(*FAST, "--batch", given), given, "line 1", "NaN")


@pytest.mark.parametrize("key", ["stop", "gen_length", "max_tokens"])
def test_what_infill_does_not_take_is_no_key_of_the_users_own(tmp_path: Path, key: str) -> None:
    given = batch(tmp_path / "in", {"text": "ab [MASK*3]", key: 4})
    refused(cli("infill", "--batch", given), given, "line 1", key)


def test_seeds_wrap_on_the_command_line_too(tmp_path: Path, lm: unmask.Model) -> None:
    given, most = batch(tmp_path / "in", {"prompt": "ab"}, {"prompt": "cd"}), (1 << 63) - 1
    found = lines(fine(cli(*FAST, "--batch", given, "--seed", most)))
    assert [line["seed"] for line in found] == [most, -most - 1]
    assert [r.seed for r in lm.generate(["ab", "cd"], 2, "threshold", seed=most)] == [most, -most - 1]


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="no such device")
def test_standard_input_is_not_the_output(tmp_path: Path) -> None:
    given = batch(tmp_path / "in", {"prompt": "ab"})
    before = given.read_text()
    with given.open() as file:
        run = subprocess.run(
            [*warm.command(), *FAST, "--batch", "-", "-o", given],
            stdin=file,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (run.returncode, given.read_text()) == (2, before)
    assert "--batch" in run.stderr and "--output" in run.stderr


# --- numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 10**12])
def test_samples_are_bounded(lm: unmask.Model, n: int) -> None:
    with refuses(unmask.RequestError, "n", n):
        lm.requests("ab", n=n)


@pytest.mark.parametrize("seed", [np.int64(5), torch.tensor(5)])
def test_a_seed_of_any_integer_type_counts_over_the_prompts(lm: unmask.Model, seed: Any) -> None:
    assert [r.seed for r in lm.generate(["ab", "cd"], 2, "threshold", seed=seed)] == [5, 6]
    assert [r.seed for r in lm.generate(["ab", "cd"], 2, "threshold", seed=np.array([5, 5]))] == [5, 5]


# --- engines --------------------------------------------------------------------------------------------------


def held(engine: Engine) -> int:
    """Bytes of the slabs that are allocated."""
    every = (slab for group in engine._groups for slab in slabs(group.state))
    return sum(slab.capacity * slab.row_bytes for slab in every)


def ask(lm: unmask.Model, name: object, policy: str, prompt: int, length: int) -> Request:
    how, kept = lm.setting(policy, "dual")
    return Request(name, [5] * prompt, length, how, kept, SamplingParams(seed=0, ignore_eos=True))


def decoded(engine: Engine) -> tuple[dict[object, Outcome], int]:
    """Outcomes by id, and the most bytes held on the way."""
    found, most = {}, 0
    while engine.busy:
        found |= {event.request.id: event for event in engine.step() if isinstance(event, Outcome)}
        most = max(most, held(engine))
    return found, most


@pytest.mark.slow
def test_memory_of_rows_that_left_counts(lm: unmask.Model) -> None:
    """What was made for eight rows is not kept beside seven others, nor widened for a long one."""
    one = state_bytes(lm.denoiser, ask(lm, 0, "vanilla", 20, 20))
    for policy, length in (("threshold", 20), ("vanilla", 60)):
        rows = [ask(lm, i, "vanilla", 20, 8) for i in range(7)] + [ask(lm, 7, "vanilla", 20, 20)]
        rows += [ask(lm, i, policy, 20, length) for i in range(8, 14)]
        engine = lm.engine(memory=8 * one)
        for row in rows:
            engine.add(row)
        found, most = decoded(engine)
        assert 0 < most <= 8 * one
        alone = lm.engine(1)
        kinds = {(row.policy, row.gen_length): row for row in rows}
        for row in kinds.values():
            alone.add(row)
        others, _ = decoded(alone)
        assert {i: o.tokens for i, o in found.items()} == {
            row.id: others[kinds[row.policy, row.gen_length].id].tokens for row in rows
        }


class Begins(Threshold):
    """Cannot begin with prompts of three tokens."""

    def init(self, canvas: Canvas, sampling: Sampling) -> Any:
        if 3 in canvas.prompt.tolist():
            raise RuntimeError("cannot begin")
        return super().init(canvas, sampling)


class Grows(Threshold):
    """Has another kind of state once it has begun, so that no row can enter later."""

    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        update, after = super().decide(canvas, prediction, state[0] if isinstance(state, list) else state)
        return update, [after]


@pytest.mark.parametrize("memory", [None, 1 << 30])
def test_a_policy_that_cannot_begin_ends_its_request_alone(lm: unmask.Model, memory: int | None) -> None:
    results = lm.generate([[5, 6], [5, 6, 7]], 4, Begins(), memory=memory)
    assert results[0].finish_reason in ("eos", "length") and results[1].finish_reason == "error"
    assert "cannot begin" in str(results[1].error)


def test_a_row_that_cannot_enter_takes_no_other_with_it(lm: unmask.Model) -> None:
    engine, (_, kept) = lm.engine(2), lm.setting("threshold", "dual")
    for i, length in enumerate((4, 20, 8, 8)):
        engine.add(Request(i, [5, 6], length, Grows(), kept, SamplingParams(seed=0, ignore_eos=True)))
    found, _ = decoded(engine)
    assert {i: o.finish_reason for i, o in found.items()} == {0: "length", 1: "length", 2: "error", 3: "length"}
    assert (engine.running, engine.waiting, engine.busy) == (0, 0, False)


@pytest.mark.parametrize("policy", ["vanilla", "entropy_bound", "klass", "wino"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_one_logit_that_is_not_finite(lm: unmask.Model, monkeypatch: pytest.MonkeyPatch, policy: str,
                                      value: float) -> None:  # fmt: skip
    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found = own(hidden)
        found[:, 37] = value
        return found

    own = lm.denoiser.network.logits
    monkeypatch.setattr(lm.denoiser.network, "logits", logits)
    (result,) = lm.generate("ab", 8, policy)
    assert (result.finish_reason, result.stats.nfe) == ("error", 1)
    monkeypatch.setattr(lm.denoiser, "first_not_finite", lambda tokens: torch.zeros(1 << 60))  # no memory for it
    assert "float32" in str(lm.generate("ab", 8, policy)[0].error)


# --- threads --------------------------------------------------------------------------------------------------


def test_a_thread_that_begins_while_another_decodes_gets_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives a new thread the number that was set last, which is that of the other's small operations."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_fixed", False)
    monkeypatch.setattr(threads, "_defaults", lambda: frozenset({4}))
    before, inside, leave, found = torch.get_num_threads(), threading.Event(), threading.Event(), list[int]()

    def first() -> None:
        with threads.for_work(0):
            inside.set()
            leave.wait()

    def second() -> None:
        with threads.for_work(1e15):
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    torch.set_num_threads(4)
    try:
        one = threading.Thread(target=first)
        one.start()
        inside.wait()
        two = threading.Thread(target=second)
        two.start()
        two.join()
        leave.set()
        one.join()
    finally:
        torch.set_num_threads(before)
    assert found == [4, 4]
