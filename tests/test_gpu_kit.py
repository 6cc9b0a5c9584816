"""The GPU kit's dry run, its records, and the page that is made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import unmask

KIT = Path(__file__).parents[1] / "benchmarks" / "gpu"
PARTS = ["machine", "passes", "pieces", "replay", "tests", "host", "answers", "dream", "quantised", "served"]
WITH_OTHERS = {"dream", "quantised", "served"}  # their records stand in the files of other parts


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module of the kit."""
    monkeypatch.syspath_prepend(str(KIT))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    for name in set(sys.modules) - before:
        if str(KIT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(KIT / "run.sh"), "--dry-run", "--out", str(out), *more]
    return subprocess.run(
        command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    done = run(out, "--budget", "900")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_every_part_leaves_records(records: Path) -> None:
    files = sorted(f.name for f in records.iterdir())
    assert files == sorted(["run.log", *(f"{name}.jsonl" for name in PARTS if name not in WITH_OTHERS)])
    assert len(files) <= 8
    every = [record for file in records.glob("*.jsonl") for record in lines(file)]
    assert not [r for r in every if "failed" in r or "skipped" in r]
    assert {r["key"].get("part") for r in every} >= set(PARTS)


@pytest.mark.slow
def test_replays_take_the_recorded_path(records: Path) -> None:
    found = [r for r in lines(records / "replay.jsonl") if r["key"].get("setting") not in (None, "autoregressive")]
    assert {r["key"]["setting"] for r in found} >= {"vanilla, as published", "slowfast + dllm", "wino", "klass", "apd"}
    for record in found:
        assert record["whole"]
        assert record["path"] == "as recorded"
        assert not record["unrecorded"]
        assert record["steps"] == record["steps_in_all"] == max(record["nfe"])
        assert record["tokens"] == record["tokens_in_all"] > 0
    assert [r["nfe"] for r in found if r["key"]["setting"] == "vanilla, as published"] == [[32, 32]]


@pytest.mark.slow
def test_a_second_run_measures_nothing_again(records: Path, tmp_path: Path) -> None:
    """Nor does one that goes on in another folder."""
    before = len(lines(records / "passes.jsonl"))
    assert run(records, "--parts", "passes", "--budget", "300").returncode == 0
    assert len(lines(records / "passes.jsonl")) == before + 1
    assert run(tmp_path / "more", "--parts", "passes", "--after", str(records), "--budget", "300").returncode == 0
    assert [r["key"]["what"] for r in lines(tmp_path / "more" / "passes.jsonl")] == ["part"]


@pytest.mark.slow
def test_no_part_without_its_ceilings_and_the_others_go_on(tmp_path: Path) -> None:
    done = run(tmp_path, "--parts", "passes,machine", "--budget", "300")
    assert done.returncode == 1
    assert "machine" in (tmp_path / "run.log").read_text()
    assert lines(tmp_path / "machine.jsonl")[0]["bandwidth"] > 0


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--parts", "machine,pases")
    assert done.returncode != 0
    assert "pases" in done.stderr


@pytest.mark.slow
def test_the_page_says_what_was_measured(records: Path, tmp_path: Path, module: Any) -> None:
    page = module("page")
    found = page.Records([records])
    text = page.page(found, page.draw(found, tmp_path))
    for record in lines(records / "passes.jsonl"):
        if "seconds" in record:
            assert f" {1e3 * record['seconds']:.2f} " in text
    for record in lines(records / "replay.jsonl"):
        if record.get("whole") and "setting" in record["key"]:
            assert f" {record['tokens'] / record['seconds']:.1f} " in text
    assert found.device in text
    assert str(found.machine["torch"]) in text
    assert {f.name for f in tmp_path.iterdir()} == {"gpu-passes.png", "gpu-speed.png"}
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("gpu-passes.png", "gpu-speed.png"))


def test_the_page_says_what_is_missing(tmp_path: Path, module: Any) -> None:
    """No figure without a measurement: a decoding cut off has a rate only where every pass costs the same."""
    page, book = module("page"), module("book")
    write(
        book,
        tmp_path,
        "machine",
        {"what": "ceilings"},
        bandwidth=1e12,
        product=1e14,
        product_size=8,
        date="x",
        torch="y",
    )
    cut = {"seconds": 2.0, "steps": 10, "steps_in_all": 100, "whole": False, "tokens": None, "tokens_in_all": 40}
    cut |= {"nfe": [100], "prompt": [7], "network": 1.5}
    for setting, cache in (("vanilla, as published", "none"), ("slowfast + dllm", "dllm"), ("vanilla + dllm", "dllm")):
        key = {"setting": setting, "gen_length": 256, "batch": 1, "how": "graphs"}
        write(book, tmp_path, "replay", key, cache=cache, **cut)
    write(
        book,
        tmp_path,
        "replay",
        {"setting": "klass", "gen_length": 256, "batch": 1, "how": "graphs"},
        failed="out of memory",
    )
    text = page.page(page.Records([tmp_path]))
    assert "| vanilla, as published | 100.0 | 0.40 | 200.0 | 25 % | 2.0 (10 of 100 passes) | 1.0 x |" in text
    assert text.count("cut off (10 of 100 passes)") == 2
    assert "klass" in text and "out of memory" in text
    assert "Forward passes" not in text
    assert "What was expected" not in text


def write(book: Any, folder: Path, part: str, key: dict[str, Any], **values: Any) -> None:
    book.Book(folder / f"{part}.jsonl", "a device").write(key, **values)


def test_the_page_shows_expectations_met_and_missed(tmp_path: Path, module: Any) -> None:
    page, book = module("page"), module("book")
    write(
        book,
        tmp_path,
        "machine",
        {"what": "ceilings"},
        bandwidth=1e12,
        product=1e14,
        product_size=8,
        date="x",
        torch="y",
    )
    for how, seconds in (("eager", 0.012), ("graphs", 0.006)):
        key = {"model": "llada-8b", "how": how, "length": 1024, "rows": 1, "computed": 32}
        write(
            book,
            tmp_path,
            "passes",
            key,
            seconds=seconds,
            least=0.005,
            share=0.005 / seconds,
            network=0.0055,
            peak=16e9,
        )
    text = page.page(page.Records([tmp_path]))
    assert "| 1.3 | 1.20 (graphs) |" in text
    assert "| 1024 | 1 | 32 | 12.00 | 6.00 |  |  | 5.50 | 5.00 | 83 % | 16.0 |" in text


def test_records_of_another_device_are_measured_again(tmp_path: Path, module: Any) -> None:
    book = module("book")
    first = book.Book(tmp_path / "passes.jsonl", "one")
    first.write({"a": 1}, seconds=1.0)
    first.write({"a": 2}, skipped="no time")
    assert book.Book(tmp_path / "passes.jsonl", "one").has({"a": 1})
    assert not book.Book(tmp_path / "passes.jsonl", "one").has({"a": 2})
    assert not book.Book(tmp_path / "passes.jsonl", "another").has({"a": 1})
    assert book.Book(tmp_path / "new" / "passes.jsonl", "one", (tmp_path,)).has({"a": 1})


def test_a_line_cut_off_is_left_out(tmp_path: Path, module: Any) -> None:
    book = module("book")
    path = tmp_path / "passes.jsonl"
    path.write_text('{"key": {"a": 1}, "device": "one"}\n{"key": {"a"', encoding="utf-8")
    assert [r["key"] for r in book.read(path)] == [{"a": 1}]
    path.write_text('{"key": {"a"\n{"key": {"a": 1}, "device": "one"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"passes\.jsonl:1"):
        list(book.read(path))


def test_counts_of_a_trace(module: Any) -> None:
    """Kernels that overlap are counted once as time; two steps."""
    events = [
        {"cat": "kernel", "name": "a", "ts": 0.0, "dur": 10.0},
        {"cat": "kernel", "name": "b", "ts": 5.0, "dur": 10.0},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pageable)", "ts": 30.0, "dur": 5.0},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0.0, "dur": 1.0},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0.0, "dur": 1.0},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 0.0, "dur": 1.0},
        {"cat": "cpu_op", "name": "aten::add", "ts": 0.0, "dur": 1.0},
    ]
    assert module("host").counts(events, 2) == {
        "device_seconds_per_step": pytest.approx(10e-6),
        "kernels_per_step": 1.5,
        "launches_per_step": 1.0,
        "waits_per_step": 0.5,
        "copies_to_host_per_step": 0.5,
        "operations_per_step": 0.5,
    }


@pytest.mark.slow
def test_a_part_past_its_deadline_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(tmp_path, "--parts", "replay", "--budget", "-60")  # less than it takes to begin
    assert done.returncode == 1
    assert time.monotonic() - began < 100
    assert "stopped at its deadline" in (tmp_path / "run.log").read_text()


def test_the_verifier_of_random_weights_can_be_used(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoregressive = module("autoregressive")
    sizes = {"num_hidden_layers": 2, "vocab_size": 900, "hidden_size": 64, "intermediate_size": 96, "eos_token_id": 7}
    monkeypatch.setattr(autoregressive, "VERIFIER", autoregressive.VERIFIER | sizes | {"num_attention_heads": 4})
    spec = f'apd(verifier="{autoregressive.verifier(str(tmp_path), torch.device("cpu"))}")'
    (result,) = unmask.load(device="cpu").generate("The age of", 16, spec, "trailing(window=16)")
    assert len(result.tokens) == 16
