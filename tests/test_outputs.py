"""Files of results: what stood there before, who else writes there, what goes on from where."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
import warm
from helpers import cli, fine, lines
from llada_folder import write
from refusals import refused
from unmask.api import BUNDLED

QUESTION = "Mia has 7 pens. Mia buys 3 pens. How many pens does Mia have now?"
FAST = ("generate", "--dtype", "float32", "-n", "24", "-p", "threshold")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with one weight that is no number, in its third layer."""
    folder = Path(shutil.copytree(BUNDLED, tmp_path_factory.mktemp("broken") / "model"))
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if ".2." in n and "ff_out" in n)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def batch(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("policy", ["vanilla", "klass", "credit", "slowfast", "wino"])
def test_weights_that_are_no_numbers(broken: Path, tmp_path: Path, policy: str) -> None:
    """One line that names dtype and layer, exit code 1, after one forward pass; the file that stood there stays."""
    keep = tmp_path / "keep.txt"
    keep.write_text("precious\n")
    result = cli("generate", QUESTION, "--model", broken, "--dtype", "float32", "-n", 16, "-p", policy, "-o", keep)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "float32" in result.stderr and "layer 2" in result.stderr
    assert keep.read_text() == "precious\n"
    (failed,) = unmask.load(broken, dtype="float32").generate(QUESTION, 16, policy)
    assert (failed.finish_reason, failed.stats.nfe, failed.text) == ("error", 1, "")


def test_a_failed_request_loses_no_other(broken: Path, tmp_path: Path) -> None:
    """float16 overflows in one prompt of a batch: here an id whose embedding is no number."""
    tensors = load_file(BUNDLED / "model.safetensors")
    tensors["model.transformer.wte.weight"][5] = torch.inf
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "model", dirs_exist_ok=True))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    given = batch(tmp_path / "in.jsonl", {"prompt": [2, 9]}, {"prompt": [2, 5, 7]}, {"prompt": [2, 10]})
    out = tmp_path / "out.jsonl"
    result = cli(*FAST, "--model", folder, "--batch", given, "--batch-size", 2, "-o", out)
    assert result.exit_code == 1
    assert "in.jsonl line 2" in result.stderr and "2 of 3" in result.stderr
    found = {line["index"]: line for line in lines(out.read_text())}
    assert {i: line["finish_reason"] for i, line in found.items()}[1] == "error"
    assert found[0]["text"] is not None and "error" not in found[0] and "embedding" in found[1]["error"]


def test_a_file_in_use_is_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out.txt"
    out.write_text("being written\n")
    with out.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(cli(*FAST, "Hi", "-o", out), out)
    assert out.read_text() == "being written\n"
    fine(cli(*FAST, "Hi", "-o", out))
    assert "being written" not in out.read_text()


def test_a_hard_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    given = batch(tmp_path / "in.jsonl", {"prompt": "Hi"})
    before = given.read_text()
    os.link(given, tmp_path / "link.jsonl")
    refused(cli(*FAST, "--batch", given, "-o", tmp_path / "link.jsonl"), "--output", "--batch", "same")
    assert given.read_text() == before


def test_nothing_is_left_where_nothing_came_of_it(broken: Path, tmp_path: Path) -> None:
    cli("generate", "Hi", "--model", broken, "--dtype", "float32", "-n", 8, "-o", tmp_path / "new", "--trace",
        tmp_path / "trace")  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_resume(tmp_path: Path) -> None:
    """What is there of the same requests stays as it is; what is missing or was asked otherwise is decoded."""
    rows = [{"prompt": f"Question {i}", "id": f"q{i}"} for i in range(5)]
    given, out = batch(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    args = (*FAST, "--batch", given, "-o", out)
    fine(cli(*args))
    whole = lines(out.read_text())
    kept = [json.dumps({**line, "mark": "kept"}) for line in whole if line["index"] in (0, 3)]
    out.write_text("\n".join(kept) + '\n{"index": 1, "te')  # cut off by a kill
    fine(cli(*args, "--resume"))
    found = {line["index"]: line for line in lines(out.read_text())}
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert {i for i, line in found.items() if line.get("mark") == "kept"} == {0, 3}
    assert {i: line["text"] for i, line in found.items()} == {line["index"]: line["text"] for line in whole}
    fine(cli(*args, "--resume", "-n", 20))  # other requests: all is decoded again
    assert {len(line["tokens"]) for line in lines(out.read_text())} == {20}
    refused(cli(*FAST, "Hi", "--resume"), "--resume", "--batch", "--output")
    out.write_text("no results\n{}\n")
    refused(cli(*args, "--resume"), out, "line 1", "--resume")
    assert out.read_text() == "no results\n{}\n"


def test_keys_of_the_users_own_and_openais_lines(tmp_path: Path) -> None:
    given = batch(
        tmp_path / "in.jsonl",
        {"prompt": "Hi", "id": 7, "split": {"a": [1]}, "policy": "vanilla", "cache": "dual", "gen_length": 8, "n": 2},
        {"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "x", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0.5,
                  "seed": 3, "stop": "\n"}},
    )  # fmt: skip
    found = {line["index"]: line for line in lines(fine(cli(*FAST, "--batch", given)))}
    assert [found[i]["id"] for i in (0, 1)] == [7, 7] and found[0]["split"] == {"a": [1]}
    assert (found[0]["policy"], found[0]["cache"], len(found[0]["tokens"])) == ("vanilla", "dual", 8)
    assert (found[2]["custom_id"], len(found[2]["tokens"]), found[2]["seed"]) == ("c1", 6, 3)
    assert found[2]["policy"] == "threshold"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi", "temperatur": 1}, ["'temperatur'", "temperature"]),
        ({"prompt": "Hi", "stats": 1}, ["'stats'"]),
        ({"prompt": "Hi", "top_p": 2}, ["top_p", "2"]),
        ({"prompt": "Hi", "policy": "fast"}, ["'fast'"]),
        ({"prompt": "Hi", "max_tokens": 5, "gen_length": 5}, ["max_tokens", "gen_length"]),
        ({"prompt": "Hi", "seed": "x"}, ["seed", "x"]),
        ({"messages": "Hi", "prompt": "Hi"}, ["messages", "prompt"]),
        ({"text": "Hi"}, ["prompt"]),
    ],
)
def test_bad_lines(tmp_path: Path, row: dict[str, object], words: list[str]) -> None:
    given = batch(tmp_path / "in.jsonl", {"prompt": "Hi"}, row)
    refused(cli(*FAST, "--batch", given, "-o", tmp_path / "out"), given, "line 2", *words)
    assert not (tmp_path / "out").exists()


def test_fresh_seeds_and_given_ones(tmp_path: Path) -> None:
    lm = unmask.load(write(tmp_path / "llada"), dtype="float64")
    hot = {"policy": "vanilla", "temperature": 1.0, "chat": False}
    one, two = (lm.generate("Hello", 12, n=8, **hot) for _ in range(2))
    assert len({r.text for r in one}) > 1, "samples of one prompt are the same"
    assert {r.seed for r in one}.isdisjoint({r.seed for r in two})
    given = lm.generate(["Hello", "Hello"], 12, n=2, seed=5, **hot)
    assert [r.seed for r in given] == [5, 6, 7, 8]
    again = lm.generate("Hello", 12, seed=7, **hot)
    assert again[0].tokens == given[2].tokens


def _shell(command: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    line = f"{shlex.join(warm.command())} {command}"
    return subprocess.run(["bash", "-c", line], capture_output=True, check=False, timeout=120, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
def test_closed_standard_streams(tmp_path: Path) -> None:
    options = "--dtype float32 -n 8 -p threshold"
    closed = _shell(f"generate - {options} <&-")
    assert closed.returncode == 2 and b"standard input" in closed.stderr and b"Traceback" not in closed.stderr
    silent = _shell(f"generate Hi {options} 2>&-")
    assert silent.returncode == 0 and silent.stdout == _shell(f"generate Hi {options}").stdout
    unheard = _shell(f"generate Hi {options} -o {tmp_path}/out >&- 2>&-")
    assert unheard.returncode == 0 and (tmp_path / "out").read_bytes() == silent.stdout


def test_newlines_at_the_end_of_a_text_come_back(tmp_path: Path) -> None:
    done = _shell("infill - --dtype float32 -p threshold", input=b"1+1=[MASK]\n\n")
    assert done.returncode == 0 and done.stdout.endswith(b"\n\n\n")
