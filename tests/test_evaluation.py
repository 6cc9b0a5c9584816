"""``unmask eval`` and the model behind it, on local tasks: nothing is downloaded."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import unmask
from eval_tasks import write
from unmask import registry
from unmask.cli import app
from unmask.core.errors import UnmaskError
from unmask.evaluation import model as model_of
from unmask.evaluation import register
from unmask.evaluation.bound import Pair, bounds
from unmask.tasks import problems
from unmask.text.template import Template

ROOT = Path(__file__).parents[1]
RECIPES = sorted(set((ROOT / "recipes" / "eval").glob("*.sh")) - {ROOT / "recipes" / "eval" / "settings.sh"})
load = cache(lambda path: unmask.load(path, dtype="float32"))


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    """The model is read once; the harness's log level is put back."""
    monkeypatch.setattr(model_of, "load", lambda path, *_, **__: load(path))
    before = logging.getLogger("lm_eval").level
    yield
    logging.getLogger("lm_eval").setLevel(before)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tasks"))


def run(*args):
    return CliRunner().invoke(app, ["eval", *map(str, args)], prog_name="unmask")


def fine(*args):
    result = run(*args)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stderr == ""
    return result.stdout


def asks(task, *arguments, kind="generate_until"):
    return [Instance(kind, {}, own, 0, (task, i, 1)) for i, own in enumerate(arguments)]


# --- the command


def test_generation(tasks, tmp_path):
    out = fine("--tasks", "words", "--include-path", tasks, "--chat", "-n", 64, "-o", tmp_path / "out", "--limit", 3)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    own = load(None).generate([p.prompt for p in problems("word_problem", "test", 3)], 64)
    right = [p.answer.splitlines()[-1] in r.text for p, r in zip(problems("word_problem", "test", 3), own, strict=True)]
    assert results["results"]["words"]["exact_match,answer"] == pytest.approx(sum(right) / 3)
    assert sum(right) > 0
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples_words.jsonl").read_text().splitlines()]
    assert [s["resps"][0][0] for s in samples] == [r.text for r in own]
    speed = results["speed"]["words"]
    assert speed["requests"] == 3
    assert speed["nfe"] == pytest.approx(sum(r.stats.nfe for r in own) / 3)
    assert speed["tpf"] == pytest.approx(sum(r.stats.tokens for r in own) / sum(r.stats.nfe for r in own))
    assert speed["positions"] == pytest.approx(sum(r.stats.positions for r in own) / 3, abs=0.1)
    assert speed["tokens_per_second"] == pytest.approx(speed["tokens"] * 3 / speed["seconds"])
    assert "exact_match" in out and "tokens/s" in out and f"{speed['tpf']:.2f}".rstrip("0") in out
    assert (results["config"]["policy"], results["config"]["cache"]) == tuple(map(str, load(None).setting()))


def test_choices(tasks):
    out = fine("--tasks", "rows", "--include-path", tasks, "--chat", "--limit", 2, "--mc-num", 4, "--json")
    results = json.loads(out)
    assert results["results"]["rows"]["acc,none"] == 1.0
    assert results["speed"]["rows"]["requests"] == 6
    assert 1 <= results["speed"]["rows"]["nfe"] <= 4
    assert "tokens" not in results["speed"]["rows"]


def test_a_share_of_the_documents(tasks):
    """As for the harness's own command: rounded up."""
    for limit, n in (("0.3", 2), ("0.5", 2), ("1", 1), ("1.0", 1), ("3", 3)):
        out = fine("--tasks", "words", "--include-path", tasks, "-n", 4, "--limit", limit, "--json")
        assert json.loads(out)["speed"]["words"]["requests"] == n, limit


@pytest.mark.parametrize("chat", [[], ["--chat"]], ids=["plain", "chat"])
def test_a_document_that_spells_the_mask_is_text(tasks, tmp_path, chat, monkeypatch):
    """It is scored like any other, and the documents beside it as without it."""
    mask = load(None).text.pieces([load(None).denoiser.spec.mask])[0]
    own = tmp_path / "own"
    own.mkdir()
    for name, key in (("words", "prompt"), ("rows", "prompt"), ("roll", "whole")):
        rows = [json.loads(line) for line in (tasks / f"{name}.jsonl").read_text().splitlines()[:3]]
        rows[1][key] = f"a {mask} b"
        if name == "rows":
            rows[2]["choices"][0] += mask
        (own / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = (tasks / f"{name}.yaml").read_text().replace(str(tasks), str(own)).replace("{{answer}}", "{{whole}}")
        (own / f"{name}.yaml").write_text(task)
    only_own(monkeypatch)
    out = fine("--tasks", "words,rows,roll", "--include-path", own, "-n", 16, "--mc-num", 2, *chat, "--json",
               "-o", tmp_path / "out")  # fmt: skip
    speed = json.loads(out)["speed"]
    assert {name: speed[name]["requests"] for name in speed} == {"words": 3, "rows": 9, "roll": 3}
    whole = fine("--tasks", "words", "--include-path", tasks, "-n", 16, "--limit", 3, *chat, "--json", "-o",
                 tmp_path / "whole")  # fmt: skip
    assert json.loads(whole)["speed"]["words"]["requests"] == 3
    one, other = (
        [json.loads(line)["resps"] for line in (tmp_path / f / "samples_words.jsonl").read_text().splitlines()]
        for f in ("out", "whole")
    )
    assert (one[0], one[2]) == (other[0], other[2])


@pytest.mark.slow
def test_a_killed_run_continues(tasks, tmp_path):
    """kill -9 in the middle: what is in the file stays, the rest is added, the scores are those of one run."""
    out = tmp_path / "out"
    args = ["--tasks", "words", "--include-path", str(tasks), "--chat", "-n", "32", "-p", "vanilla"]
    args += ["--batch-size", "1", "--dtype", "float32"]
    command = [sys.executable, "-c", "from unmask.cli import main; main()", "eval", *args, "-o", str(out)]
    answers = out / "answers.jsonl"
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            while process.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < 3):
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    before = answers.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert 2 <= kept.count(b"\n") - 1 < 4
    assert not (out / "results.json").exists()

    assert "--resume continues it" in run(*args, "-o", out).stderr
    assert answers.read_bytes() == before
    fine(*args, "-o", out, "--resume")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert answers.read_bytes().startswith(kept)
    assert len({row["key"] for row in rows if row["kind"] == "answer"}) == 4
    assert len([row for row in rows if row["kind"] == "answer"]) == 4
    results = json.loads((out / "results.json").read_text())
    assert results["speed"]["words"]["requests"] == 4
    assert results["results"] == json.loads(fine(*args, "--json"))["results"]
    fine(*args, "-o", out, "--resume")  # nothing is left to do
    assert len(answers.read_text().splitlines()) == len(rows)


def test_dry_run(tasks):
    out = fine("--tasks", "words,rows", "--include-path", tasks, "--dry-run", "-c", "dllm(kp=2,kr=1)")
    assert out.splitlines() == [
        f"words  task  {tasks / 'words.yaml'}",
        f"rows  task  {tasks / 'rows.yaml'}",
        "the model's policy + dllm(kp=2,kr=1)",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "word"], r"unknown task 'word'; did you mean words"),
        (["--tasks", ","], r"no tasks"),
        (["--tasks", "words", "--include-path", "/absent"], r"--include-path /absent is not a folder"),
        (["--tasks", "words", "--resume"], r"--resume needs --output"),
        (["--tasks", "words", "--resume", "-o", "{tmp}/new"], r"holds no answers.jsonl"),
        (["--tasks", "words", "-o", "{tmp}/file/out"], r"cannot write"),
        (["--tasks", "words", "-o", ""], r"the name of a file to write is empty"),
        (["--tasks", "words", "-o", "{tmp}/new", "-m", "/absent"], r"/absent"),
        (["--tasks", "words", "-p", "fast"], r"unknown policy 'fast'"),
        (["--tasks", "words", "--cfg", "-1"], r"cfg must be in \[0, 100\]"),
        (["--tasks", "words", "--temperature", "-1"], r"temperature must be a number >= 0"),
        (["--tasks", "words", "-m", "/absent"], r"/absent"),
        (["--tasks", "words", "-n", "4000"], r"words document 0: 4000 tokens to generate leave no room"),
        (["--tasks", "gone"], r"cannot load gone: "),
        (["--tasks", "rogue"], r"rogue: runs code that the model writes.*--run-unsafe-code"),
        *((["--tasks", "words", "--limit", limit], rf"limit .* got {limit}") for limit in ("0", "-1", "1.5", "nan")),
    ],
)
def test_bad_input(tasks, tmp_path, monkeypatch, args, message):
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "file").write_text("")
    words = (tasks / "words.yaml").read_text()
    (own / "words.yaml").write_text(words)
    (own / "gone.yaml").write_text(words.replace("words.jsonl", "gone.jsonl").replace("task: words", "task: gone"))
    (own / "rogue.yaml").write_text(words.replace("task: words", "task: rogue\nunsafe_code: true"))
    only_own(monkeypatch)
    args = [a.format(tmp=tmp_path) for a in args]
    args += [] if "--include-path" in args else ["--include-path", own]
    result = run(*args)
    assert result.exit_code == 2, result.exception
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "new").exists()


def only_own(monkeypatch):
    """The harness's own tasks are not read: that takes seconds."""
    from lm_eval import tasks as harness

    whole = harness.TaskManager
    monkeypatch.setattr(harness, "TaskManager", lambda **more: whole(**more | {"include_defaults": False}))


def test_yaml_that_does_not_parse(tmp_path, monkeypatch):
    (tmp_path / "bad.yaml").write_text("task: [")
    only_own(monkeypatch)
    result = run("--tasks", "bad", "--include-path", tmp_path)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_without_the_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    result = run("--tasks", "words")
    assert result.exit_code == 2
    assert 'pip install "unmask[eval]"' in result.stderr and result.stderr.count("\n") == 1


# --- recipes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: f.stem)
def test_recipes_resolve(recipe, tmp_path, monkeypatch):
    """Every setting of every recipe is a command that the harness knows the tasks of."""
    import lm_eval.tasks

    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    stub.chmod(0o755)
    usage = subprocess.run(["sh", recipe], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    settings = usage.stderr.split()[3].split("|")
    assert "llada" in settings and "dream" in settings
    whole = Path(lm_eval.tasks.__file__).parent
    parts = {"math": ["minerva_math", "benchmarks"], "mmlu": ["mmlu/default", "mmlu/generative"]}
    folders = [whole / name for name in parts.get(recipe.stem, [recipe.stem])]
    only_own(monkeypatch)
    for setting in settings:
        made = subprocess.run(
            ["sh", recipe, setting, "--limit", "4"],
            env=os.environ | {"UNMASK": str(stub)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert made.stdout.splitlines()[-2:] == ["--limit", "4"]
        where = [part for folder in folders for part in ("--include-path", folder)]
        out = fine(*made.stdout.splitlines()[1:], *where, "--dry-run")
        assert len(out.splitlines()) == 2


# --- the model


def lm(**more):
    return model_of.UnmaskLM(**{"gen_length": 32, **more})


def test_the_harness_finds_it_by_name():
    register()
    register()
    assert get_model("unmask") is model_of.UnmaskLM
    made = get_model("unmask").create_from_arg_string(
        "policy=threshold(tau=0.8),gen_length=16", {"batch_size": "auto", "device": "cpu", "max_batch_size": None}
    )
    assert (made.policy, made.gen_length, made.batch_size) == (registry.policy("threshold(tau=0.8)"), 16, 32)
    assert get_model("unmask").create_from_arg_obj({"batch_size": "4"}, {"device": "cuda:0"}).batch_size == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"mc_num": "few"}, "mc_num must be an integer"),
        ({"policy": "none"}, "unknown policy"),
        ({"top_p": 0}, "top_p"),
    ],
)
def test_bad_arguments(more, message):
    with pytest.raises(UnmaskError, match=message):
        lm(**more)


def test_order_lengths_and_stop_strings():
    made = lm(chat=True, batch_size=2)
    prompts = [p.prompt for p in problems("word_problem", "test", 3)] + [problems("sudoku", "test", 1)[0].prompt]
    kwargs = [{"until": ["<never>"]}, {"until": ["Answer", "="]}, {"max_gen_toks": 5}, {"until": "\n"}]
    whole = made.lm.generate(prompts, [32, 32, 5, 32])
    texts = [r.text for r in whole]
    assert "=" in texts[1] and "\n" in texts[3]
    expected = [texts[0], texts[1][: min(texts[1].index("="), texts[1].index("Answer"))], texts[2]]
    expected.append(texts[3].split("\n")[0])
    assert made.generate_until(asks("t", *zip(prompts, kwargs, strict=True)), True) == expected
    assert made.memory.speed()["t"]["requests"] == 4


def test_a_row_leaves_at_its_stop_string():
    """What it costs is told of the tokens in front of it."""
    made, prompt = lm(chat=True, policy="threshold(block_length=8)"), problems("word_problem", "test", 1)[0].prompt
    texts = made.generate_until(asks("t", (prompt, {"until": ["<never>"]}), (prompt, {"until": ["", "Answer"]})), True)
    assert texts[1] == texts[0][: texts[0].index("Answer")]
    costs = sorted(made.memory.costs["t"], key=lambda cost: cost["tokens"])
    assert costs[0]["nfe"] < costs[1]["nfe"] and costs[0]["tokens"] < costs[1]["tokens"]


@pytest.mark.slow
def test_sampling_as_the_task_says_and_as_the_command_says():
    prompt, same = problems("word_problem", "test", 1)[0].prompt, {"until": [], "do_sample": True, "temperature": 9.0}
    made, greedy = lm(chat=True), lm(chat=True, temperature=0.0)
    plain = made.lm.generate(prompt, 32)[0].text
    hot = made.generate_until(asks("t", *[(prompt, same)] * 3), True)
    assert hot == [made.lm.generate(prompt, 32, temperature=9.0, seed=s)[0].text for s in range(3)]
    assert len(set(hot)) > 1
    assert made.generate_until(asks("t", (prompt, {"temperature": 9.0, "do_sample": False})), True) == [plain]
    assert greedy.generate_until(asks("t", (prompt, same)), True) == [plain]
    warm = lm(chat=True, temperature=9.0)
    assert warm.generate_until(asks("t", (prompt, {"do_sample": False})), True) == hot[:1]


def test_long_prompts_lose_their_beginning(monkeypatch, caplog):
    made = lm(gen_length=8)
    monkeypatch.setattr(model_of.UnmaskLM, "max_length", 30)
    text = " ".join(p.prompt for p in problems("word_problem", "test", 3))
    (job,) = (made._job(0, request, Counter()) for request in asks("t", (text, {})))
    assert list(job.request.prompt) == made.tok_encode(text)[-22:]
    assert "are left out" in caplog.text


def test_likelihoods_are_the_bound():
    made = lm(mc_num=4, mc_seed=7, mc_batch_size=3)
    p = problems("word_problem", "test", 1)[0]
    context, answer = made.apply_chat_template([{"role": "user", "content": p.prompt}]), p.answer
    found = made.loglikelihood(asks("t", (context, answer), (context, "0"), ("", "1 2"), kind="loglikelihood"), True)
    ids, whole = made.tok_encode(context), made.tok_encode(context + answer)
    texts = (ids, whole[len(ids) :]), (ids, made.tok_encode(context + "0")[len(ids) :])
    pairs = [Pair(tuple(c), tuple(a)) for c, a in (*texts, ([made.prefix_token_id], made.text.parse("1 2")))]
    alone = [next(bounds(made.lm.denoiser, [pair], 4, 7, 99))[1].value for pair in pairs]
    assert [value for value, _ in found] == pytest.approx(alone, abs=1e-4)
    greedy = made.lm.generate(p.prompt, len(pairs[0].continuation), "vanilla(block_length=none)", ignore_eos=True)[0]
    assert found[0][1] == (tuple(greedy.tokens) == pairs[0].continuation)
    assert made.loglikelihood(asks("t", (context, answer), kind="loglikelihood"), True) == found[:1]  # from memory
    said = made.text.decode(greedy.tokens)
    assert made.loglikelihood(asks("t", (context, said), kind="loglikelihood"), True)[0][1] is True
    off = lm(mc_num=4, is_check_greedy=False)
    assert off.loglikelihood(asks("t", (context, said), kind="loglikelihood"), True)[0][1] is False


def test_no_part_of_a_continuation_is_left_out():
    """A continuation whose first letters merge with the end of the context is scored like the others, whole."""
    made = lm(mc_num=4)
    for context in ("What now? Ans", "What is in the fol"):
        for text in ("wer", "xyz", "low", "ders", "lder!"):
            head, own = made._encode_pair(context, text)
            assert head == made.tok_encode(context)
            assert made.text.decode(own) == text, "what is scored is the continuation"
    merged = next(
        (c, t) for c in ("the bel", "the pen", "Answ", "the num") for t in ("ls", "s", "er", "ber")
        if made.tok_encode(c + t)[: len(made.tok_encode(c))] != made.tok_encode(c)
    )  # fmt: skip
    found = made.loglikelihood(asks("t", merged, kind="loglikelihood"), True)
    assert found[0][0] < 0


def test_blanks_that_end_a_context_belong_to_the_continuation():
    made = lm(mc_num=4)
    assert made._encode_pair("Hi  ", "you") == made._encode_pair("Hi", "  you")
    for blank in ("", " ", "\n\n"):
        assert made._encode_pair(blank, "you") == ([made.prefix_token_id], made.text.plain(blank + "you"))
    found = made.loglikelihood(asks("t", ("   ", "you"), ("", "   you"), kind="loglikelihood"), True)
    assert found[0] == found[1] and found[0][0] < 0
    for chat in (True, False):
        assert len(lm(chat=chat).generate_until(asks("t", ("  ", {}), ("", {})), True)) == 2


def test_a_continuation_without_tokens_is_certain_and_says_so(caplog):
    made = lm(mc_num=4)
    assert made.loglikelihood(asks("t", ("Hi", ""), kind="loglikelihood"), True) == [(0.0, True)]
    assert "t document 0" in caplog.text


@pytest.mark.parametrize("templated", [False, True])
def test_names_of_control_tokens_are_text_unless_the_template_writes_them(templated):
    made = lm()
    mask = made.text.pieces([made.lm.denoiser.spec.mask])[0]
    messages = [{"role": "user", "content": f"a {mask} b"}]
    context = made.apply_chat_template(messages) if templated else f"a {mask} b"
    ids = made.tok_encode(context)
    assert made.lm.denoiser.spec.mask not in ids
    if templated:
        assert ids == made.text.encode(messages)
    head, own = made._encode_pair(context, f" {mask}")
    assert made.lm.denoiser.spec.mask not in [*head, *own]
    assert mask in "".join(made.text.pieces(own))


def test_rolling_predicts_every_token_once(monkeypatch):
    made = lm(mc_num=2)
    monkeypatch.setattr(model_of.UnmaskLM, "max_length", 9)
    text = problems("word_problem", "test", 1)[0].prompt
    ids = made.text.parse(text)
    assert len(ids) > 20
    seen = []
    whole = model_of.bounds
    monkeypatch.setattr(model_of, "bounds", lambda d, pairs, *rest: (seen.extend(pairs), whole(d, pairs, *rest))[1])
    (value,) = made.loglikelihood_rolling(asks("t", (text,), kind="loglikelihood_rolling"), True)
    assert [i for pair in seen for i in pair.continuation] == ids
    assert all(len(pair) <= 9 for pair in seen) and seen[0].context == (made.prefix_token_id,)
    assert seen[1].context == tuple(ids[7:8])
    assert value == pytest.approx(sum(b.value for _, b in bounds(made.lm.denoiser, seen, 2, 0, 32)), abs=1e-4)
    assert made.loglikelihood_rolling(asks("t", ("",), kind="loglikelihood_rolling"), True) == [0.0]


def test_memory_is_of_one_environment_and_one_kind_of_file(tmp_path):
    file = tmp_path / "answers.jsonl"
    prompt = problems("word_problem", "test", 1)[0].prompt
    first = lm(chat=True, ledger=file).generate_until(asks("t", (prompt, {})), True)
    assert len(file.read_text().splitlines()) == 2
    again = lm(chat=True, ledger=file)
    assert again.generate_until(asks("t", (prompt, {})), True) == first
    assert len(file.read_text().splitlines()) == 2
    lm(chat=True, ledger=file, policy="threshold").generate_until(asks("t", (prompt, {})), True)
    assert len(file.read_text().splitlines()) == 3
    whole = file.read_text()
    for damaged in (whole.replace('"nfe"', '"nfx"'), whole.replace('"answer":"', '"answer":5,"x":"')):
        file.write_text(damaged)
        with pytest.raises(UnmaskError, match=r'line \d: (no )?"(cost.nfe|answer)"'):
            lm(ledger=file)
    file.write_text('{"kind": "batch"}\n')
    with pytest.raises(UnmaskError, match="line 1 is not a line of `unmask eval`"):
        lm(ledger=file)


def test_the_chat_template_is_applied_once():
    made = lm()
    message = [{"role": "user", "content": "Hi there"}]
    assert made.tok_encode(made.apply_chat_template(message)) == made.text.encode(message)
    opened = made.apply_chat_template([*message, {"role": "assistant", "content": "Hel"}], add_generation_prompt=False)
    assert opened.endswith("Hel")
    with pytest.raises(UnmaskError, match="applied twice"):
        lm(chat=True).apply_chat_template(message)
    assert lm(add_bos_token=True).tok_encode("Hi")[0] == made.text.bos


@pytest.mark.parametrize("chat", [False, True])
def test_the_begin_of_text_is_there_with_a_chat_template_too(chat, monkeypatch):
    """Once, whether the harness applies the template or the model; not in what goes on behind a prompt."""
    made = lm(add_bos_token=True, chat=chat)
    monkeypatch.setattr(made.text, "_template", Template("{{ messages[0].content }}", {}, lambda text: text))
    text = "Hi" if chat else made.apply_chat_template([{"role": "user", "content": "Hi"}])
    plain = made.text.encode("Hi", chat=False)
    plain = plain[1:] if plain[0] == made.text.bos else plain
    assert made._context(text) == [made.text.bos, *plain]
    assert made.tok_encode("Hi", add_special_tokens=False) == plain


def test_the_record_tells_the_settings(tasks, tmp_path):
    more = ("--chat", "--system", "Be brief.", "--add-bos-token", "--num-fewshot", 1, "--mc-batch-size", 8)
    fine("--include-path", tasks, "--tasks", "words", "--limit", 1, "-n", 16, "--output", tmp_path / "out", *more)
    told = json.loads((tmp_path / "out" / "results.json").read_text())["config"]
    expected = {"chat": True, "system": "Be brief.", "add_bos_token": True, "num_fewshot": 1, "mc_batch_size": 8}
    assert told | expected == told
    assert told["device"]


def test_the_page_does_what_it_says(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "eval.md", "exec"), {})
    (task,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    cached = task.replace("dataset_kwargs: {", f"dataset_kwargs: {{cache_dir: {tmp_path / 'cache'}, ")
    (tmp_path / "words.yaml").write_text(cached)
    (line,) = re.findall(r"^unmask eval (.*)$", page, re.MULTILINE)
    own = fine(*line.split())
    shown, got = (
        [c.strip() for c in re.findall(r"^\|words.*$", text, re.MULTILINE)[-1].split("|")] for text in (page, own)
    )
    assert got[1:6] == shown[1:6] == ["words", "8", "5.4", "27.8", "5.16"]  # not what depends on the clock
    assert "|words" in own and "exact_match" in own
    options = {o for p in get_command(app).commands["eval"].params for o in p.opts}
    assert {o for o in options if o.startswith("--") and f"`{o}" not in page} == set()
