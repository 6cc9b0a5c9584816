"""The command line: results, traces, pictures, and one clear line for everything that is wrong."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from typer.main import get_command

import unmask
import warm
from helpers import cli as run
from helpers import fine, lines
from llada_folder import CONFIG, CONTEXT, EOS, LLADA_8B, MASK, VOCAB, weights, write
from refusals import names, refused
from unmask import registry
from unmask.cli import app, outputs
from unmask.cli.outputs import spans

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "llada"))


@pytest.fixture
def unmask_(model, monkeypatch):
    """Run ``unmask generate --model MODEL ...`` in this process."""
    loaded = unmask.load(model)
    monkeypatch.setattr("unmask.api.load", lambda path, *_: loaded if path == model else unmask.api.load(path))
    monkeypatch.setitem(unmask.__dict__, "load", lambda path, *rest, **more: loaded)
    return lambda *args, **more: run("generate", "--model", model, *args, **more)


def jsonl(path, *values):
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


# --- results


def test_text(unmask_, model):
    expected = unmask.load(model).generate("Hi", gen_length=9)[0].text
    assert fine(unmask_("Hi", "-n", 9)) == expected + "\n"


def test_json_is_the_result(unmask_, model):
    out = fine(unmask_("Hi", "-n", 12, "--json", "-p", "slowfast(tau_high=0.5)", "-c", "dllm(kr=2)", "--seed", 3))
    (value,) = lines(out)
    expected = unmask.load(model).generate("Hi", 12, "slowfast(tau_high=0.5)", "dllm(kr=2)", seed=3)[0]
    assert value["tokens"] == expected.tokens
    assert value["steps"] == expected.steps
    assert value["text"] == expected.text
    assert value["prompt_tokens"] == len(expected.prompt_tokens)
    assert value["stats"]["nfe"] == expected.stats.nfe
    assert set(value["stats"]) == {"nfe", "tokens", "tpf", "positions", "seconds", "tokens_per_second"}
    assert (value["policy"], value["cache"]) == ("slowfast(tau_high=0.5)", "dllm(kr=2)")
    assert (value["model"], value["seed"], value["index"]) == (model, 3, 0)


def test_standard_input(unmask_):
    assert fine(unmask_("-", "-n", 8, input="Hi there\n")) == fine(unmask_("Hi there", "-n", 8))


def test_sampling_options_reach_the_model(unmask_, model):
    out = fine(unmask_("Hi", "-n", 16, "--temperature", 1.5, "--top-p", 0.9, "--top-k", 20, "--seed", 7, "--json"))
    expected = unmask.load(model).generate("Hi", 16, temperature=1.5, top_p=0.9, top_k=20, seed=7)[0]
    assert lines(out)[0]["tokens"] == expected.tokens
    assert lines(fine(unmask_("Hi", "-n", 16, "--json")))[0]["tokens"] != expected.tokens


def test_no_chat_and_ignore_eos(unmask_, model):
    lm = unmask.load(model)
    plain = lm.generate("Hi", 16, chat=False, ignore_eos=True)[0]
    (value,) = lines(fine(unmask_("Hi", "-n", 16, "--no-chat", "--ignore-eos", "--json")))
    assert value["tokens"] == plain.tokens
    assert value["prompt_tokens"] == 2
    assert min(value["steps"]) >= 0


def test_batch(unmask_, model, tmp_path):
    batch = jsonl(
        tmp_path / "prompts.jsonl",
        {"prompt": "Hello", "gen_length": 20},
        {"prompt": [65, 66, 67]},
        {"prompt": [{"role": "user", "content": "Hi"}], "seed": 5},
        {"prompt": "Last", "gen_length": 5, "seed": None},
    )
    values = lines(fine(unmask_("--batch", batch, "-n", 8, "--temperature", 1, "--seed", 0, "--batch-size", 2)))
    assert sorted(v["index"] for v in values) == [0, 1, 2, 3]
    by_index = {v["index"]: v for v in values}
    lm = unmask.load(model)
    for index, prompt, length, seed in (
        (0, "Hello", 20, 0),
        (1, [65, 66, 67], 8, 1),
        (2, "Hi", 8, 5),
        (3, "Last", 5, 3),
    ):
        alone = lm.generate(prompt, length, temperature=1.0, seed=seed)[0]
        assert by_index[index]["tokens"] == alone.tokens
        assert by_index[index]["seed"] == seed
    assert values[-1]["index"] != 1  # written as they finish: the long first one does not hold back the others


def test_batch_from_standard_input_skips_empty_lines(unmask_):
    out = fine(unmask_("--batch", "-", "-n", 4, input='\ufeff{"prompt": "a"}\r\n\r\n{"prompt": "b"}'))
    assert [v["index"] for v in lines(out)] == [0, 1]


def test_output_file(unmask_, tmp_path):
    file = tmp_path / "out.jsonl"
    file.write_text("old")
    assert fine(unmask_("Hi", "-n", 6, "--json", "-o", file)) == ""
    assert lines(file.read_text())[0]["index"] == 0


# --- traces


def test_trace_replays_to_the_tokens(unmask_, tmp_path):
    trace = tmp_path / "trace.jsonl"
    batch = jsonl(tmp_path / "in.jsonl", {"prompt": "Hello"}, {"prompt": "Go", "gen_length": 30}, {"prompt": "And"})
    options = ("--batch", batch, "-n", 12, "--batch-size", 2, "--trace", trace, "-c", "dual", "-p", "threshold(0.2,8)")
    results = {v["index"]: v for v in lines(fine(unmask_(*options)))}
    header, *steps = lines(trace.read_text())
    assert (header["trace"], header["policy"], header["cache"]) == (1, "threshold(tau=0.2,block_length=8)", "dual")
    assert (header["mask"], header["eos"][0]) == (MASK, EOS)
    assert [s["index"] for s in steps] == list(range(len(steps)))
    pieces = {int(i): text for line in (header, *steps) for i, text in line.get("pieces", {}).items()}
    canvas = {r["row"]: r["prompt"] + [MASK] * r["gen_length"] for r in header["rows"]}
    for step in steps:
        assert len(step["rows"]) == len(step["window"]) == len(step["work"]) == len(step["forward"])
        for row, position, token, confidence in step["committed"]:
            inside = step["window"][step["rows"].index(row)]
            assert canvas[row][position] == MASK
            assert any(low <= position < high for low, high in inside)
            assert 0 <= confidence <= 1
            canvas[row][position] = token
            assert token in pieces
    for row, result in results.items():
        prompt = header["rows"][row]["prompt"]
        ended = [EOS if t == MASK else t for t in canvas[row][len(prompt) :]]
        assert ended == result["tokens"]
        assert sum(row in s["rows"] for s in steps) == result["stats"]["nfe"]
        assert [row in s["finished"] for s in steps if row in s["rows"]][-1]
        assert sum(s["work"][s["rows"].index(row)] for s in steps if row in s["rows"]) == pytest.approx(
            result["stats"]["positions"]
        )


def test_spans():
    assert spans(torch.tensor([1, 1, 0, 1, 0, 0, 1]).bool()) == [[0, 2], [3, 4], [6, 7]]
    assert spans(torch.zeros(4).bool()) == []


# --- pictures


def test_picture(unmask_, tmp_path):
    file = tmp_path / "p.svg"
    out = fine(unmask_("Hi <&>", "-n", 20, "--ignore-eos", "--json", "--picture", file, "-p", "threshold(0.3)"))
    count = lines(out)[0]["stats"]["tokens"]
    root = ElementTree.fromstring(file.read_text())
    space = "{http://www.w3.org/2000/svg}"
    chips = root.findall(f"{space}g")
    assert len(chips) == min(count + 1, 20)
    numbers = [int(chip.findall(f"{space}text")[1].text) for chip in chips]
    assert numbers == [s + 1 for s in lines(out)[0]["steps"][: len(chips)]]
    assert "keyframes" not in file.read_text()
    fills = {chip.find(f"{space}rect").get("fill") for chip in chips}
    assert len(fills) == len(set(numbers))


def test_animated_picture(unmask_, tmp_path):
    file = tmp_path / "p.svg"
    nfe = lines(fine(unmask_("Hi", "-n", 10, "--json", "--picture", file, "--animate")))[0]["stats"]["nfe"]
    assert len(re.findall(r"@keyframes", file.read_text())) == nfe
    ElementTree.fromstring(file.read_text())


def test_picture_without_tokenizer(tmp_path):
    folder = write(tmp_path / "bare", tokenizer=False)
    batch = jsonl(tmp_path / "in.jsonl", {"prompt": [1, 2, 3]})
    out = run("generate", "-m", folder, "--batch", batch, "-n", 6, "--picture", tmp_path / "p.svg")
    assert lines(fine(out))[0]["text"] == ""
    ElementTree.parse(tmp_path / "p.svg")


def test_watch_without_a_terminal_prints_the_last_frame(unmask_):
    result = unmask_("Hi", "-n", 6, "--watch", "--ignore-eos")
    assert result.exit_code == 0
    assert "forward pass 6" in result.stderr
    assert result.stdout == fine(unmask_("Hi", "-n", 6, "--ignore-eos"))


def in_a_terminal(*args):
    """Exit code, standard output, and what a terminal gets as standard error."""
    pty = pytest.importorskip("pty")  # Windows has none
    here, there = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80", "LINES": "24"}
    command = [*warm.command(), "generate", *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=there, env=environment) as process:
        os.close(there)
        seen = b""
        with suppress(OSError):  # Linux says EIO where others say the end
            while chunk := os.read(here, 1 << 16):
                seen += chunk
        out = process.stdout.read()
    os.close(here)
    return process.returncode, out.decode(), seen.decode(errors="replace")


def test_watch_in_a_terminal(model):
    code, out, seen = in_a_terminal("-m", model, "Hi", "-n", 6, "--watch", "--ignore-eos")
    assert code == 0, seen
    assert [f"forward pass {i}" in seen for i in range(1, 7)] == [True] * 6
    assert "\x1b[38;2;" in seen
    assert "·" in seen
    assert "[38;2" not in out


@pytest.mark.slow
def test_progress_bar_in_a_terminal(model, tmp_path):
    batch = jsonl(tmp_path / "in.jsonl", *({"prompt": f"prompt {i}", "gen_length": 40} for i in range(30)))
    code, out, seen = in_a_terminal("-m", model, "--batch", batch, "--batch-size", 4, "--ignore-eos")
    assert code == 0, seen
    assert len(lines(out)) == 30
    assert "decoding" in seen
    assert "/30" in seen
    assert "1200 tokens in " in seen


# --- inspect, policies, caches


def test_inspect_shipped():
    report = json.loads(fine(run("inspect", "--json")))
    assert report["family"] == "llada"
    assert report["weights"].startswith("complete")
    assert report["chat_template"] is True
    assert report["bytes"] <= 16 << 20
    text = fine(run("inspect"))
    assert f"{report['parameters']:,} (" in text


def test_inspect_llada_8b_from_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLADA_8B))
    report = json.loads(fine(run("inspect", tmp_path, "--json")))
    assert report["parameters"] == 8_015_581_184
    assert (report["dtype"], report["tokenizer"], report["mask"]) == ("bfloat16", None, 126336)
    assert "has no model.safetensors" in report["weights"]
    assert "8,015,581,184 (8.02 B)" in fine(run("inspect", tmp_path))


def test_inspect_of_a_hub_id_leaves_the_weights_there(tmp_path, monkeypatch):
    folder = write(tmp_path / "hub")
    (folder / "model.safetensors").unlink()
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda _, revision, allow_patterns: asked.extend(allow_patterns) or folder
    )
    assert "has no model.safetensors" in json.loads(fine(run("inspect", "some/model", "--json")))["weights"]
    assert "*.json" in asked
    assert "*.safetensors" not in asked


def test_inspect_tells_what_is_wrong_with_the_weights(tmp_path):
    whole = weights(CONFIG)
    missing = {k: v for k, v in whole.items() if "blocks.1.q_proj" not in k}
    report = json.loads(fine(run("inspect", write(tmp_path / "a", tensors=missing), "--json")))
    assert report["weights"] == (
        f"incomplete: 1 of {len(whole)} weights missing, the first is model.transformer.blocks.1.q_proj.weight"
    )
    thin = whole | {"model.transformer.ln_f.weight": torch.ones(3)}
    report = json.loads(fine(run("inspect", write(tmp_path / "b", tensors=thin), "--json")))
    assert report["weights"] == "wrong: model.transformer.ln_f.weight has shape [3], config.json implies [32]"
    folder = write(tmp_path / "c", shards=3)
    assert json.loads(fine(run("inspect", folder, "--json")))["weights"].endswith("weights in 3 files")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "shards missing" in json.loads(fine(run("inspect", folder, "--json")))["weights"]


def test_what_is_refused_is_listed() -> None:
    """And is refused: the words are those of the method that says no."""
    about = json.loads(fine(run("policies", "--json")))
    for name in registry.POLICIES:
        forward = bool(registry.lookup("policy", name).left_to_right is True)
        assert forward == ("text behind a gap" in about[name]["refuses"])
    assert "no confidence threshold" in about["adaptive"]["refuses"]
    assert "Refuses text behind a gap" in fine(run("policies"))


@pytest.mark.parametrize(("command", "kind"), [("policies", "policy"), ("caches", "cache")])
def test_lists(command, kind):
    known = json.loads(fine(run(command, "--json")))
    text = fine(run(command))
    assert set(known) == set(registry.table(kind))
    for name, about in known.items():
        assert about["summary"]
        assert name in text
        for parameter in about["parameters"]:
            assert parameter["doc"]
            assert parameter["accepted"]
            assert parameter["name"] in text


def test_lists_tell_presets():
    parameters = {p["name"]: p for p in json.loads(fine(run("policies", "--json")))["slowfast"]["parameters"]}
    assert parameters["tau_min"]["presets"] == {"paper": 0.1, "reference": 0.3, "reference_dream": 0.1}
    assert "tau_min = 0.1 (paper), 0.3 (reference), 0.1 (reference_dream); a number in [0, 2]" in fine(run("policies"))


def test_help_and_version():
    assert "generate" in fine(run())
    assert "generate" in fine(run("--help"))
    assert fine(run("--version")) == f"unmask {unmask.__version__}\n"
    assert "--watch" in fine(run("generate", "--help"))


def test_commands_that_decode_share_their_options():
    """In the same order with the same defaults, each in the docs; only what a gap or a prompt is differs."""
    commands = get_command(app).commands
    generate, infill = (
        {p.opts[0]: (p.opts, p.default) for p in commands[name].params if p.opts[0][0] == "-"}
        for name in ("generate", "infill")
    )
    own = {"--gen-length", "--profile", "--stop"}
    assert set(generate) - set(infill) == own
    assert list(infill.items())[1:] == [item for item in generate.items() if item[0] not in own]
    assert next(iter(infill)) == "--prompt"
    docs = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    for option in {*generate, *infill} - {"--help"}:
        assert f"`{option}" in docs
    assert "gap" in fine(run("infill", "--help")) and "gap" not in fine(run("generate", "--help"))


@pytest.mark.parametrize(
    ("args", "forbidden"),
    [(["--help"], ("torch", "transformers")), (["policies"], ("transformers",)), (["caches"], ("transformers",))],
)
def test_what_is_not_imported(args, forbidden):
    script = "import sys; from unmask.cli import app\ntry: app(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += "print(*(m for m in ('torch', 'transformers') if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    assert not set(forbidden) & set(done.stderr.split())


@pytest.mark.slow
def test_output_that_is_not_unicode(model):
    for extra in ([], ["--json"]):
        command = [*warm.COLD, "generate", "-m", model, "h\u00e9", "-n", "12", "--ignore-eos", *extra]
        environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.isascii()
    assert json.loads(done.stdout)["index"] == 0


# --- what is refused

USAGE = [
    ([], ["PROMPT", "--batch"]),
    (["Hi", "--batch", "x.jsonl"], ["PROMPT", "--batch"]),
    (["Hi", "--nonsense"], ["--nonsense"]),
    (["Hi", "--gen-length", "0"], ["--gen-length"]),
    (["Hi", "--gen-length", "many"], ["--gen-length"]),
    (["Hi", "--batch-size", "0"], ["--batch-size"]),
    (["Hi", "--seed", str(1 << 63)], ["seed"]),
    (["Hi", "--policy", "fastest"], ["policy", "'fastest'", "slowfast"]),
    (["Hi", "--policy", "slowfast(tau=1)"], ["slowfast", "'tau'"]),
    (["Hi", "--policy", "threshold(tau=3)"], ["threshold", "tau", 3]),
    (["Hi", "--policy", "threshold(tau=0.9"], ["'threshold(tau=0.9'", "')'"]),
    (["Hi", "--policy", "vanilla(steps=7)", "-n", "64"], ["vanilla", "steps", 7]),
    (["Hi", "--cache", "magic"], ["cache", "'magic'", "dllm"]),
    (["Hi", "--cache", "every"], ["every", "cache"]),
    (["Hi", "--temperature", "-1"], ["temperature", -1]),
    (["Hi", "--temperature", "nan"], ["temperature", "nan"]),
    (["Hi", "--top-p", "0"], ["top_p", 0]),
    (["Hi", "--top-k", "-1"], ["top_k", -1]),
    (["Hi", "--device", "toaster"], ["device", "'toaster'"]),
    (["Hi", "--dtype", "int8"], ["dtype", "'int8'", "float32"]),
    (["Hi", "--animate"], ["--animate", "--picture"]),
    (["Hi", "--picture", "p.png"], ["p.png", ".svg"]),
    (["Hi", "--trace", "same", "--output", "same"], ["--trace", "--output", "same"]),
    (["Hi", "--trace", "/nowhere/at/all.jsonl"], ["/nowhere/at/all.jsonl"]),
    (["Hi", "--output", "/"], ["/:"]),
    (["", "-n", "4"], ["prompt"]),
    (["-", "-n", "4"], ["prompt"]),
    (["Hi", "-n", str(CONTEXT)], ["gen_length", CONTEXT]),
    (["--batch", ""], ["--batch"]),
    (["Hi", "--output", ""], ["--output"]),
    (["Hi", "--trace", ""], ["--trace"]),
    (["Hi", "--picture", ""], ["--picture"]),
    (["--batch", "absent.jsonl"], ["absent.jsonl"]),
]


@pytest.mark.parametrize(("args", "named"), USAGE, ids=[" ".join(a) or "nothing" for a, _ in USAGE])
def test_bad_usage(model, args, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(run("generate", "-m", model, *args), *named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", ["JSON"]),
        ("[1]", ["{"]),
        ('{"text": "x"}', ["prompt"]),
        ('{"prompt": "x", "gen_lenght": 3}', ["'gen_lenght'", "'gen_length'"]),
        ('{"prompt": 3}', ["prompt"]),
        ('{"prompt": []}', ["prompt"]),
        ('{"prompt": [1, "a"]}', ["prompt"]),
        ('{"prompt": [1.5]}', ["prompt"]),
        ('{"prompt": [true]}', ["prompt"]),
        ('{"prompt": [{"role": "user"}]}', ["prompt"]),
        ('{"prompt": "x", "gen_length": 0}', ["gen_length", 0]),
        ('{"prompt": "x", "gen_length": "8"}', ["gen_length", 8]),
        ('{"prompt": "x", "seed": true}', ["seed"]),
        ('{"prompt": ""}', ["prompt"]),
        (f'{{"prompt": [{MASK}]}}', ["mask", MASK]),
        ('{"prompt": [99999]}', [99999]),
        (f'{{"prompt": "x", "gen_length": {CONTEXT}}}', ["gen_length", CONTEXT]),
        ('{"prompt": "x", "suppress": [99999]}', ["suppress", 99999]),
        (json.dumps({"prompt": "x", "suppress": list(range(VOCAB))}), ["suppress"]),
        ('{"prompt": "x", "suppress": ["two"]}', ["suppress", "'two'"]),
    ],
)
def test_bad_batch_line(model, tmp_path, line, named):
    batch = tmp_path / "in.jsonl"
    batch.write_text(f'{{"prompt": "fine"}}\n\n{line}\n{{"prompt": "fine"}}\n')
    out, trace = tmp_path / "out", tmp_path / "trace"
    out.write_text("kept")
    refused(run("generate", "-m", model, "--batch", batch, "-n", 4, "-o", out, "--trace", trace), batch, "line 3")
    names(run("generate", "-m", model, "--batch", batch, "-n", 4).stderr, *named)
    assert out.read_text() == "kept"
    assert not trace.exists()


def test_a_line_that_the_policy_refuses_is_named(model, tmp_path):
    batch = jsonl(tmp_path / "in.jsonl", {"prompt": "a"}, {"prompt": "b", "gen_length": 8})
    command = ("generate", "-m", model, "--batch", batch, "-n", 4, "-p", "vanilla(steps=3,block_length=4)")
    refused(run(*command), batch, "line 2", "vanilla", "steps")


def test_bad_batch_files(model, tmp_path):
    empty, latin = tmp_path / "empty.jsonl", tmp_path / "latin.jsonl"
    empty.write_text("\n")
    latin.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    refused(run("generate", "-m", model, "--batch", empty), empty)
    refused(run("generate", "-m", model, "--batch", latin), latin, "line 2", "UTF-8")
    refused(run("generate", "-m", model, "--batch", tmp_path), tmp_path)
    refused(run("generate", "-m", model, "--batch", latin, "-o", latin), "--batch", "--output", latin)
    assert latin.stat().st_size > 0


def test_bad_models(tmp_path):
    refused(run("generate", "-m", tmp_path / "none", "Hi"), tmp_path / "none")
    refused(run("inspect", tmp_path / "none"), tmp_path / "none")
    refused(run("inspect", tmp_path), tmp_path, "config.json")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["Other"]}))
    refused(run("inspect", tmp_path), "Other", "LLaDAModelLM")
    folder = write(tmp_path / "cut")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    refused(run("generate", "-m", folder, "Hi"), folder / "model.safetensors")
    refused(run("frobnicate"), "'frobnicate'")


def test_text_prompt_without_tokenizer(tmp_path):
    refused(run("generate", "-m", write(tmp_path / "bare", tokenizer=False), "Hi"), "tokenizer.json")


# --- the machine fails, the user leaves


def test_an_interrupt_while_a_response_is_written_waits_until_it_counts(monkeypatch):
    """Else the last line says one response less than there is."""
    file = io.StringIO()
    kept = outputs.Results(outputs.Output(file, fresh=False), as_json=False, model="m", spans=False, held={})
    monkeypatch.setattr(file, "flush", lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            kept.add(None, SimpleNamespace(text="said", error=None))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (file.getvalue(), kept.count) == ("said\n", 1)


@pytest.mark.slow
def test_interrupt_keeps_what_was_written(model, tmp_path):
    batch = jsonl(tmp_path / "in.jsonl", *({"prompt": f"prompt {i}", "gen_length": 64} for i in range(1500)))
    out, trace = tmp_path / "out.jsonl", tmp_path / "trace.jsonl"
    command = [*warm.command(), "generate", "-m", model, "--batch", batch, "--batch-size", "2", "-p", "vanilla"]
    command += ["-o", out, "--trace", trace, "--ignore-eos"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        limit = time.monotonic() + 120
        while not (out.exists() and out.read_text().count("\n") >= 3):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = lines(out.read_text())
    assert 3 <= len(kept) < 1500
    assert stderr.startswith("interrupted") and stderr.count("\n") == 1
    names(stderr, f"{len(kept)} of 1500")
    assert stdout == ""
    assert out.read_text().endswith("\n")
    assert trace.read_text().endswith("\n")
    assert len(lines(trace.read_text())) > 100


def test_reader_that_leaves(model, tmp_path):
    batch = jsonl(tmp_path / "in.jsonl", *({"prompt": f"prompt {i}", "gen_length": 60} for i in range(400)))
    command = [*warm.COLD, "generate", "-m", model, "--batch", batch, "--batch-size", "4"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        json.loads(process.stdout.readline())
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_full_disk(model):
    result = run("generate", "-m", model, "Hi", "-n", 4, "-o", "/dev/full")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_standard_output_closed(model):
    command = [*warm.COLD, "generate", "-m", model, "Hi", "-n", "4"]
    script = 'exec "$@" >&-'
    done = subprocess.run(["sh", "-c", script, "sh", *command], stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] Cannot allocate memory")]
)
def test_out_of_device_memory_is_told(error, unmask_, monkeypatch):
    def full(*_args, **_more):
        raise error

    monkeypatch.setattr("unmask.models.denoiser.Denoiser.__call__", full)
    result = unmask_("Hi", "-n", 4)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    names(result.stderr, "memory", "batch_size", "gen_length")
