"""Traces: what is in them, what is wrong with them."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import unmask
from unmask.cli import app
from unmask.core.errors import RequestError
from unmask.policies.slowfast import SlowFast
from unmask.traceview.document import page
from unmask.traceview.reader import read

ROOT = Path(__file__).parent.parent
QUESTION = "Tom has 3 apples. He buys 4 more, and then 5 more. How many apples does Tom have?"
SUDOKU = "Solve the sudoku:\n0214\n4132\n1420\n0340"


def run(*args):
    return CliRunner().invoke(app, list(map(str, args)), prog_name="unmask")


def fine(result):
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refused(result, *words):
    assert result.exit_code == 2, result.stdout
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr, result.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A trace of two prompts by the shipped model: SlowFast with dLLM-Cache."""
    folder = tmp_path_factory.mktemp("trace")
    batch = folder / "in.jsonl"
    batch.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (QUESTION, SUDOKU)))
    options = ("-n", 48, "-p", "slowfast(block_length=16)", "-c", "dllm(kp=4,kr=3)", "--trace", folder / "t.jsonl")
    fine(run("generate", "--batch", batch, *options, "-o", folder / "out.jsonl"))
    return folder / "t.jsonl"


# --- what a trace tells


def test_work_is_told_by_position(trace):
    header, *steps = lines(trace)
    assert header["layers"] == 6
    adaptive = 0
    for step in steps:
        for work, ranges in zip(step["work"], step["computed"], strict=True):
            assert sum((last - first) * layers for first, last, layers in ranges) == pytest.approx(6 * work)
            assert all(a[1] <= b[0] for a, b in pairwise(ranges))
            adaptive += any(0 < layers < 6 for _, _, layers in ranges)
    assert adaptive  # between refreshes the layers choose for themselves


@pytest.mark.parametrize(
    ("policy", "cache"), [("vanilla(cfg_scale=0.5)", "none"), ("wino", "dual"), ("slowfast", "d2")]
)
def test_work_of_others_is_told_by_position(policy, cache):
    lm = unmask.load()
    for step in lm.stream([SUDOKU, "Hi"], [24, 13], policy, cache):
        assert (step.computed().sum(1) / lm.denoiser.layers).tolist() == pytest.approx(step.work.tolist())


def test_confidences_are_those_of_the_window(trace):
    header, *steps = lines(trace)
    mask = {r["row"]: set(range(len(r["prompt"]), len(r["prompt"]) + r["gen_length"])) for r in header["rows"]}
    for step in steps:
        for row, window, ranges in zip(step["rows"], step["window"], step["confidence"], strict=True):
            told = {first + i: c for first, values in ranges for i, c in enumerate(values)}
            assert set(told) == {p for low, high in window for p in range(low, high)} & mask[row]
            for r, position, _, confidence in step["committed"]:
                if r == row:
                    assert told[position] == pytest.approx(confidence, abs=1e-3)
        for r, position, *_ in step["committed"]:
            mask[r].discard(position)


def test_slowfast_tells_phase_and_span(trace):
    header, *steps = lines(trace)
    before = {}
    seen = set()
    for step in steps:
        notes = step["notes"]
        for i, row in enumerate(step["rows"]):
            phase = "fast" if notes["fast"][i] else "slow"
            assert notes["slow"][i] is not notes["fast"][i]
            start, end, candidate = (notes[k][i] for k in ("start", "end", "candidate"))
            begin = len(header["rows"][row]["prompt"])
            assert step["window"][i] == [[start, end]]
            assert begin <= start < end <= begin + 48
            assert (end - begin) % 16 == 0 or phase == "fast"
            assert (candidate >= 0) == (phase == "slow")
            assert candidate == -1 or start < candidate <= end
            assert (before.get(row, "slow"), phase) in {
                ("slow", "slow"),
                ("slow", "fast"),
                ("fast", "fast"),
                ("fast", "slow"),
            }
            before[row] = phase
            seen.add(phase)
    assert seen == {"slow", "fast"}


def test_wrappers_tell_what_their_policy_tells():
    lm = unmask.load()
    for spec in ("adaptive(slowfast(tau_high=0.9))", "prophet(slowfast)"):
        first = next(iter(lm.stream(SUDOKU, 16, spec)))
        assert {"slow", "fast", "start", "end"} <= set(first.notes())
        assert ("threshold" in first.notes()) == spec.startswith("adaptive")
    assert next(iter(lm.stream(SUDOKU, 16, "vanilla"))).notes() == {}


def test_nothing_is_worked_out_without_a_trace(monkeypatch, tmp_path):
    def never(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(SlowFast, "notes", never)
    monkeypatch.setattr("unmask.models.denoiser.computed", never)
    fine(run("generate", SUDOKU, "-n", 8))
    with pytest.raises(AssertionError, match="asked"):
        raise run("generate", SUDOKU, "-n", 8, "--trace", tmp_path / "t").exception


# --- reading


def test_read(trace):
    found = read(trace)
    header, *steps = lines(trace)
    assert (found.policy, found.cache, found.layers) == ("slowfast(block_length=16)", "dllm(kp=4,kr=3)", 6)
    assert sorted(found.rows) == [0, 1]
    assert not found.truncated
    for r, row in found.rows.items():
        assert row.finished
        assert list(row.prompt) == header["rows"][r]["prompt"]
        assert len(row.forwards) == sum(r in s["rows"] for s in steps)
        assert [c for f in row.forwards for c in f.committed] == [
            tuple(c[1:]) for s in steps for c in s["committed"] if c[0] == r
        ]
    assert list(read(trace, row=1).rows) == [1]


def test_traces_of_earlier_versions(trace, tmp_path):
    """Without what has been added to the format since."""
    header, *steps = lines(trace)
    del header["layers"]
    for step in steps:
        del step["confidence"], step["computed"], step["notes"]
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps(v) + "\n" for v in (header, *steps)))
    found = read(old)
    assert found.layers == 0
    assert {f.confidence for row in found.rows.values() for f in row.forwards} == {None}
    assert "</html>" in page([found])


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_last_line_cut_off(trace, tmp_path, cut):
    content = trace.read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(content[:-cut])
    whole, found = read(trace), read(tmp_path / "cut.jsonl")
    assert found.truncated == (cut > 1)  # without its newline alone a line is whole
    missing = sum(len(whole.rows[r].forwards) - len(found.rows[r].forwards) for r in whole.rows)
    assert missing == (len(lines(trace)[-1]["rows"]) if cut > 1 else 0)


def test_header_alone(trace, tmp_path):
    (tmp_path / "head.jsonl").write_bytes(trace.read_bytes().split(b"\n")[0] + b"\n")
    found = read(tmp_path / "head.jsonl")
    assert [row.forwards for row in found.rows.values()] == [(), ()]
    assert not any(row.finished for row in found.rows.values())


HEADER = {
    "trace": 1, "policy": "p", "cache": "c", "model": "m", "mask": 0, "eos": [1], "layers": 2,
    "rows": [{"row": 3, "prompt": [5, 6], "gen_length": 4}], "pieces": {"5": "a"},
}  # fmt: skip
STEP = {
    "index": 0, "rows": [3], "forward": [0], "window": [[[2, 6]]], "committed": [[3, 2, 7, 0.5]], "remasked": [],
    "confidence": [[[2, [0.5, 0.1]]]], "work": [6.0], "computed": [[[0, 6, 2]]], "notes": {"start": [2]},
    "seconds": 0.1, "finished": [],
}  # fmt: skip


def text(*values):
    return "".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values)


def test_smallest_trace(tmp_path):
    (tmp_path / "t").write_text(text(HEADER, STEP))
    (forward,) = read(tmp_path / "t").rows[3].forwards
    assert forward.committed == ((2, 7, 0.5),)
    assert forward.confidence == ((2, (0.5, 0.1)),)
    assert forward.notes == {"start": 2}


WRONG = [
    ("", "is empty"),
    ("\n\n", "is empty"),
    ("hello\n", "line 1: not JSON"),
    ('{"trace": 1, "pol', "line 1: not JSON"),
    (text({"prompt": "Hi"}), "line 1: no header"),
    (text([1]), "line 1: no header"),
    (text(HEADER | {"trace": 2}), 'line 1: "trace" is version 2'),
    (text(HEADER | {"trace": True}), 'line 1: "trace" is version True'),
    (text(HEADER | {"rows": []}), 'line 1: "rows" must'),
    (text(HEADER | {"rows": HEADER["rows"] * 2}), 'line 1: "rows" must differ'),
    (text(HEADER | {"rows": [{"row": 0, "prompt": []}]}), 'line 1: no "rows[0].gen_length"'),
    (text(HEADER | {"rows": [{"row": 0, "prompt": "a", "gen_length": 4}]}), 'line 1: "rows[0].prompt" must be a list'),
    (text(HEADER | {"policy": 3}), 'line 1: "policy" must be a text, got 3'),
    (text(HEADER | {"pieces": {"a": "b"}}), 'line 1: "pieces.a" must be an integer'),
    (text(HEADER | {"rows": [{"row": 0, "prompt": [], "gen_length": 9**9}]}), '"rows[0].gen_length" must be less'),
    (text(HEADER | {"rows": [HEADER["rows"][0] | {"fixed": [[4, 1]]}]}), '"fixed" has position 4; accepted: 0 to 3'),
    (text(HEADER, "{", STEP), "line 2: not JSON"),
    (text(HEADER, "", "{"), "line 3: not JSON"),
    (text(HEADER, STEP, 7), "line 3: it must be an object with"),
    (text(HEADER, STEP | {"rows": [0]}), 'line 2: "rows" has 0; the rows of this trace are 3'),
    (text(HEADER, {k: v * 2 if k != "remasked" and isinstance(v, list) else v for k, v in STEP.items()}
          | {"notes": {}}), 'line 2: "rows" has row 3'),
    (text(HEADER, STEP | {"work": []}), 'line 2: "work" has 0 values for 1 rows'),
    (text(HEADER, STEP | {"work": [float("nan")]}), "line 2: not JSON (NaN"),
    (text(HEADER, STEP | {"work": [True]}), 'line 2: "work[0]" must be a number, got True'),
    (text(HEADER, STEP | {"work": [10**40]}), 'line 2: "work[0]" must be less'),
    (text(HEADER, STEP | {"work": [-1]}), 'line 2: "work[0]" must be greater'),
    (text(HEADER, STEP | {"forward": [1]}), 'line 2: "forward" of row 3 is 1, but 0'),
    (text(HEADER, STEP, STEP), 'line 3: "forward" of row 3 is 0, but 1'),
    (text(HEADER, STEP | {"committed": [[3, 6, 7, 0.5]]}), 'line 2: "committed" has 6; accepted: 2 to 5'),
    (text(HEADER, STEP | {"committed": [[3, 2, 7, 1.5]]}), 'line 2: "committed[0][3]" must be less'),
    (text(HEADER, STEP | {"committed": [[4, 2, 7, 0.5]]}), 'line 2: "committed" or "remasked" has row 4'),
    (text(HEADER, STEP | {"committed": [[[], 2, 7, 0.5]]}), 'line 2: "committed[0][0]" must be an integer'),
    (text(HEADER, STEP | {"remasked": [[3, 1]]}), 'line 2: "remasked" has 1; accepted: 2 to 5'),
    (text(HEADER, STEP | {"confidence": [[[4, [0.1, 0.2, 0.3]]]]}), 'line 2: "confidence" has 6; accepted: 2 to 5'),
    (text(HEADER, STEP | {"confidence": [7]}), 'line 2: "confidence[0]" must be a list, got 7'),
    (text(HEADER, STEP | {"computed": [[[3, 3, 1]]]}), 'line 2: "computed" has the range 3 to 3'),
    (text(HEADER, STEP | {"window": [[[3, 2]]]}), 'line 2: "window" has the range 3 to 2'),
    (text(HEADER, STEP | {"window": [[[2]]]}), 'line 2: no "window[0][0][1]"'),
    (text(HEADER, STEP | {"notes": {"start": []}}), 'line 2: "start" has 0 values'),
    (text(HEADER, STEP | {"notes": {"start": ["x"]}}), 'line 2: "notes.start[0]" must be a boolean or be a number'),
    (text(HEADER, {k: v for k, v in STEP.items() if k != "seconds"}), 'line 2: no "seconds"'),
    (text(HEADER, {k: v for k, v in STEP.items() if k != "window"}), 'line 2: no "window"'),
    (text(HEADER, "[" * 100_000), "line 2: not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_is_no_trace(content, message, tmp_path):
    """One line that names the file, the line and the field."""
    file, out = tmp_path / "t.jsonl", tmp_path / "page.html"
    file.write_text(content)
    refused(run("trace", "view", file, "-o", out), str(file), message)
    assert not out.exists()


def test_files_that_cannot_be_used(trace, tmp_path):
    out = tmp_path / "page.html"
    refused(run("trace", "view", tmp_path / "absent", "-o", out), f"cannot read {tmp_path / 'absent'}: No such file")
    refused(run("trace", "view", tmp_path, "-o", out), "Is a directory")
    refused(run("trace", "view", trace, tmp_path / "absent", "-o", out), "cannot read")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    refused(run("trace", "view", tmp_path / "bytes", "-o", out), "line 1: not UTF-8")
    refused(run("trace", "view", trace, "-o", out, "--row", 7), f"{trace} has no row 7; its rows are 0, 1")
    refused(run("trace", "view", trace, "-o", out, "--row", -1), "--row")
    refused(run("trace", "view", trace, "-o", tmp_path / "no" / "p.html"), "No such file")
    refused(run("trace", "view", trace, "-o", trace), "are the same file")
    refused(run("trace", "view", trace), "--output")
    refused(run("trace", "frobnicate"), "No such command 'frobnicate'")
    assert not out.exists()
    assert lines(trace)


def test_too_large_a_page_is_refused(monkeypatch, trace):
    monkeypatch.setattr("unmask.traceview.document._MOST", 100)
    with pytest.raises(RequestError, match="choose one row with --row"):
        page([read(trace)])


# --- the command and its page


def test_page_on_standard_output(trace, tmp_path):
    out = tmp_path / "page.html"
    assert fine(run("trace", "view", trace, "-o", out)) == ""
    assert fine(run("trace", "view", trace, "-o", "-")) == out.read_text()
    assert fine(run("trace")).count("view") == 1


def test_page_fetches_nothing(trace):
    """No address, no import, nothing but its own script and style."""
    text = page([read(trace)])
    assert re.findall(r"https?:|@import|url\(|\bsrc=|fetch\(|XMLHttp|WebSocket|import\(", text) == []
    assert sorted(re.findall(r'href="([^"]*)"', text)) == ["#panels", "data:,"]
    assert "default-src 'none'" in text
    assert text.count("<script") == text.count("</script") == 2


def test_documented():
    docs = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")
    help_ = run("trace", "view", "--help").stdout
    options = set(re.findall(r"--[a-z][a-z-]+", help_)) - {"--help"}
    assert options == {"--output", "--row"}
    assert all(f"`{o}" in docs for o in options)


def test_commands_of_the_documentation(tmp_path, shell):
    docs = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")
    script, printed = re.search(r"```sh\n(.*?)```.*?```\n(.*?)```", docs, re.DOTALL).groups()
    done = shell(script, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", printed * 2)
    fast, plain = (read(tmp_path / f"{name}.jsonl").rows[0].forwards for name in ("fast", "plain"))
    assert len(plain) == 112 > 4 * len(fast)  # the exact number of the page depends on the machine's last bits
    shown = json.loads(re.search(r"```json\n(.*?)```", docs, re.DOTALL)[1])
    assert set(shown) == {k for k in lines(tmp_path / "fast.jsonl")[11] if k != "pieces"}
    assert (tmp_path / "decoding.html").read_text().endswith("</html>\n")


def test_every_field_is_documented(trace):
    docs = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")
    header, *steps = lines(trace)
    for name in {*header, *header["rows"][0], *(k for s in steps for k in s), *steps[0]["notes"]}:
        assert f"`{name}`" in docs, name
