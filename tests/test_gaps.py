"""Texts with gaps from outside: Python, the command line, and one clear error for everything that is wrong."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unmask
from helpers import cli, fine, lines
from llada_folder import BOS, CONTEXT, EOS, MASK, VOCAB, write
from refusals import refused, refuses
from unmask import RequestError, SpecError
from unmask.engine.request import SamplingParams
from unmask.text import split_gaps

QUESTION = "Amy has 3 apples. She buys 4 more, and then 5 more. How many apples does Amy have?"
ANSWER = "3+4=7\n7+5=12\nAnswer: 12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "llada")


@pytest.fixture(scope="module")
def model(folder):
    return unmask.load(folder, dtype="float64")


@pytest.fixture(scope="module")
def shipped():
    return unmask.load()


def run(*args, **more):
    return cli("infill", *args, **more)


# --- gaps in a string


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a[MASK]b", ["a", 1, "b"]),
        ("[MASK*12][MASK] x", [12, 1, " x"]),
        (r"\[MASK] [MASK*2]", ["[MASK] ", 2]),
        (r"\\[MASK]", ["\\", 1]),
        (r"\\\[MASK*4][MASK]", [r"\[MASK*4]", 1]),
        (r"\n \ [MASKED] [mask] [MASK]\ ", [r"\n \ [MASKED] [mask] ", 1, "\\ "]),
    ],
)
def test_gaps_are_found(text, parts):
    assert split_gaps(text) == parts


@given(st.lists(st.sampled_from(["[MASK]", "[MASK*3]", "[MASK", "\\", "x", "[", "MASK]"]), max_size=9).map("".join))
def test_any_text_can_be_written(text):
    """With every run of backslashes in front of what would be a gap doubled, and one more."""
    written = re.sub(r"(\\*)\[MASK\b", lambda found: found[1] * 2 + "\\[MASK", text)
    assert split_gaps(written + "|[MASK]") == [text + "|", 1]


# --- Python


def test_what_is_given_stays(model):
    (result,) = model.infill("Hello [MASK*5] world, [MASK]!", chat=False)
    parts = [model.text.encode(part, False) for part in ("Hello ", " world, ", "!")]
    text = [*parts[0], *[MASK] * 5, *parts[1], MASK, *parts[2]]
    got = result.prompt_tokens + result.tokens
    assert [new for new, old in zip(got, text, strict=True) if old != MASK] == [old for old in text if old != MASK]
    assert MASK not in got
    assert EOS not in got
    assert result.prompt_tokens == parts[0]
    assert [(s.start, len(s.tokens)) for s in result.spans] == [(0, 5), (13, 1)]
    for span in result.spans:
        assert span.tokens == result.tokens[span.start : span.start + len(span.tokens)]
        assert span.text == model.text.decode(span.tokens)
    assert result.text == model.text.decode(got)
    assert result.text.startswith("Hello ")
    assert [at for at, step in enumerate(result.steps) if step < 0] == [*range(5, 13), 14]
    assert result.stats.tokens == 6
    assert result.stats.nfe <= 6


def test_ids_and_text_are_the_same(model):
    ids = [*model.text.encode("abc", False), MASK, MASK, *model.text.encode("de", False), MASK]
    expected = model.infill("abc[MASK*2]de[MASK]")[0]
    for value in (ids, [ids], np.array(ids), tuple(ids)):
        assert model.infill(value)[0].tokens == expected.tokens


def test_a_gap_at_the_end_alone_is_a_response(model):
    for whole in (False, True):
        filled = model.infill("Hello[MASK*20]", "threshold(0.3)", "dual", ignore_eos=whole)[0]
        response = model.generate("Hello", 20, "threshold(0.3)", "dual", chat=False, ignore_eos=whole)[0]
        assert (filled.tokens, filled.steps) == (response.tokens, response.steps)
        assert filled.text == "Hello" + response.text
        assert filled.spans == response.spans == (unmask.Span(0, response.text, response.tokens),)


def test_one_gap_at_the_end_is_filled_from_left_to_right(model):
    """As docs/cli.md and docs/python.md say; what is given behind a gap, or in a response, is refused."""
    filled = model.infill("Hello[MASK*6]", "left_to_right")[0]
    assert filled.tokens == model.generate("Hello", 6, "left_to_right", chat=False)[0].tokens
    for call in (
        lambda: model.infill("Hello[MASK*6]x", "left_to_right"),
        lambda: model.infill("a[MASK]b[MASK]", "left_to_right"),
        lambda: model.generate("Hello", 6, "left_to_right", fixed={0: 65}),
    ):
        with refuses(RequestError, "left_to_right"):
            call()


def test_a_prompt_in_front_of_a_text(model):
    with_template, (a,) = model.infill("a[MASK]b", prompts="Hi")[0], model.text.encode("a", False)
    assert with_template.prompt_tokens == [*model.text.encode("Hi"), a]
    assert with_template.text[0] + with_template.text[-1] == "ab"
    assert model.infill("a[MASK]b", prompts="Hi", chat=False)[0].prompt_tokens == model.text.encode("Hia", False)
    assert model.infill("a[MASK]b", prompts=[BOS, 5])[0].prompt_tokens == [BOS, 5, a]
    talk = [{"role": "user", "content": "Hi"}]
    assert model.infill("a[MASK]b", prompts=talk)[0].tokens == with_template.tokens
    whole = model.infill("[MASK*6]", prompts="Hi")[0]
    assert whole.tokens == model.generate("Hi", 6)[0].tokens
    one, two = model.infill(["a[MASK]b", "[MASK]c"], prompts=["Hi", [7, 8]])
    assert one.tokens == with_template.tokens
    assert two.prompt_tokens == [7, 8]
    assert [r.prompt_tokens[:-1] for r in model.infill(["a[MASK]b", "x[MASK]"], prompts="Hi")] == [
        model.text.encode("Hi")
    ] * 2


def test_control_tokens_of_a_text_are_text(model):
    (result,) = model.infill("<|eot_id|>[MASK]<|mdm_mask|>")
    assert result.prompt_tokens == model.text.encode("<|eot_id|>", False)
    assert len(result.prompt_tokens) == 10
    assert result.text.endswith("<|mdm_mask|>")


def test_a_batch_is_its_texts(model):
    texts = ["ab[MASK*9]c", "x[MASK]y[MASK*3]z[MASK*7]", "[MASK*4]q"]
    options = {"temperature": 1.2, "top_p": 0.9, "suppress": ["c", 7]}
    together = model.infill(texts, "slowfast(tau_high=0.4)", "dllm(kp=2,kr=2)", seed=[1, 2, 3], batch_size=2, **options)
    for seed, (text, result) in enumerate(zip(texts, together, strict=True), 1):
        alone = model.infill(text, "slowfast(tau_high=0.4)", "dllm(kp=2,kr=2)", seed=seed, **options)[0]
        assert (result.text, result.tokens, result.steps) == (alone.text, alone.tokens, alone.steps)


def test_without_tokenizer(tmp_path):
    bare = unmask.load(write(tmp_path, tokenizer=False))
    (result,) = bare.infill([1, 2, MASK, MASK, 5], suppress=[3])
    assert result.tokens[2] == 5
    assert (result.text, [s.text for s in result.spans]) == ("", [""])
    for call, named in (
        (lambda: bare.infill("a[MASK]"), ["text 0", "tokenizer.json"]),
        (lambda: bare.infill([1, MASK], suppress=["x"]), ["suppress", "tokenizer.json"]),
        (lambda: bare.infill([1, MASK], prompts="x"), ["prompt 0", "tokenizer.json"]),
    ):
        with refuses(RequestError, *named):
            call()


def test_suppressed_and_fixed_in_generate(model):
    free = model.generate(["Hi", "Hello"], 16, ignore_eos=True)
    each = [SamplingParams(suppress=free[0].tokens, ignore_eos=True), SamplingParams(ignore_eos=True)]
    for options in ({"suppress": [*free[0].tokens], "ignore_eos": True}, {"params": each}):
        barred = model.generate(["Hi", "Hello"], 16, **options)
        assert not set(barred[0].tokens) & set(free[0].tokens)
    assert barred[1].tokens == free[1].tokens
    it = model.text.token("F")
    expected = model.generate("Hi", 64, suppress=[it], temperature=3.0, seed=0, policy="slowfast")[0].tokens
    assert it in model.generate("Hi", 64, temperature=3.0, seed=0, policy="slowfast")[0].tokens
    assert it not in expected
    for suppress in ("F", it, ["F", it], np.array([it]), np.int64(it)):
        assert (
            model.generate("Hi", 64, suppress=suppress, temperature=3.0, seed=0, policy="slowfast")[0].tokens
            == expected
        )
    fixed = model.generate(["Hi", "Hello"], 8, fixed=[{2: 65, 5: 66}, None])
    assert (fixed[0].tokens[2], fixed[0].tokens[5]) == (65, 66)
    assert [(s.start, len(s.tokens)) for s in fixed[0].spans] == [(0, 2), (3, 2), (6, 2)]
    assert fixed[1].tokens == model.generate("Hello", 8)[0].tokens
    assert model.generate("Hi", 8, fixed={2: 65, 5: 66})[0].tokens == fixed[0].tokens
    steps = list(model.stream("Hi", 8, fixed={2: 65}, suppress=["e"]))
    assert sum(len(s.committed()) for s in steps) <= 7


@pytest.mark.parametrize(
    ("texts", "options", "named"),
    [
        ("no gap", {}, ["text 0", "[MASK]", "[MASK*12]"]),
        (r"\[MASK]", {}, ["text 0", "gap"]),
        ("", {}, ["text 0", "gap"]),
        (["a[MASK]", "b[MASK*0]"], {}, ["text 1", "[MASK*0]"]),
        ("a[MASK*]", {}, ["text 0", "'[MASK*]'"]),
        ("a[MASK*-1]", {}, ["text 0", "'[MASK*-1]'"]),
        ("a[MASK*x]", {}, ["text 0", "'[MASK*x]'"]),
        ("a[MASK 3]", {}, ["text 0", "'[MASK 3]'"]),
        ("a[MASK", {}, ["text 0", "'[MASK'"]),
        ("[MASK*4]", {}, ["text 0", "gaps"]),
        ([MASK, MASK], {}, ["text 0", "gaps"]),
        ([1, 2], {}, ["text 0", "gap", MASK]),
        ([[1, MASK], []], {}, ["text 1", "gap"]),
        ([1, MASK, VOCAB], {}, [VOCAB, VOCAB - 1]),
        ([-1, MASK], {}, [-1]),
        ([1, MASK, 1.5], {}, [1.5]),
        (f"a[MASK*{CONTEXT}]", {}, ["text 0", CONTEXT + 1, CONTEXT]),
        (f"a[MASK*{10**30}]", {}, ["text 0", "gaps", CONTEXT]),
        ("a[MASK*120]", {"prompts": "Hello there"}, ["text 0", "gaps", "prompt", CONTEXT]),
        ("bad \ud800[MASK]", {}, ["text 0", "Unicode"]),
        ([], {}, ["texts"]),
        (5, {}, ["text", "got 5"]),
        (["a[MASK]", 5], {}, ["text 1", "got 5"]),
        ([{"role": "user", "content": "[MASK]"}], {}, ["text 0"]),
        (["a[MASK]"] * 3, {"prompts": ["x", "y"]}, ["prompts", 2, 3]),
        ("a[MASK]", {"prompts": ""}, ["prompt 0"]),
        ("a[MASK]", {"chat": "yes"}, ["chat", "'yes'"]),
        ("a[MASK]b", {"policy": "left_to_right"}, ["left_to_right", "slowfast", "threshold"]),
        ("a[MASK]b", {"suppress": list(range(VOCAB))}, ["prompt 0", "suppress"]),
        ("a[MASK]", {"suppress": [VOCAB]}, ["prompt 0", "suppress", VOCAB]),
        ("a[MASK]", {"suppress": ["two"]}, ["suppress", "'two'", 3]),
        ("a[MASK]", {"suppress": [""]}, ["suppress", "''", 0]),
        ("a[MASK]", {"suppress": [1.5]}, ["suppress", 1.5]),
        ("a[MASK]", {"suppress": 1.5}, ["suppress", 1.5]),
        ("a[MASK]", {"suppress": [[1], 2]}, ["suppress", "[1]"]),
    ],
)  # fmt: skip
def test_bad_input(model, texts, options, named):
    with refuses(RequestError, *named):
        model.infill(texts, **options)


@pytest.mark.parametrize(
    ("fixed", "named"),
    [
        ({4: 1}, ["prompt 0", "fixed", 4, 3]),
        ({0: MASK}, ["prompt 0", "fixed", "mask", MASK]),
        ({0: "a"}, ["fixed", "'a'"]),
        ({"0": 1}, ["fixed", "'0'"]),
        ([1, 2], ["fixed"]),
        ([{}, {}], ["fixed", 2, 1]),
        (dict.fromkeys(range(4), 1), ["prompt 0"]),
    ],
)
def test_bad_fixed_tokens(model, fixed, named):
    with refuses(RequestError, *named):
        model.generate("Hi", 4, fixed=fixed)


def test_unknown_names(model):
    with refuses(SpecError, "policy", "'slowfest'"):
        model.infill("a[MASK]", "slowfest")
    accepted = ("temperature", "top_p", "top_k", "seed", "ignore_eos", "suppress")
    for option in ({"gen_length": 3}, {"fixed": {0: 1}}, {"temprature": 1.0}):
        with refuses(RequestError, "infill", f"'{next(iter(option))}'", *accepted):
            model.infill("a[MASK]", **option)
    with refuses(RequestError, "'prompt'", "suppress", "stop"):
        model.stream("a", 4, prompt="b")


# --- the shipped model, by the command line


@pytest.mark.parametrize(
    "text",
    [
        "3+4=[MASK]\n7+5=[MASK*2]\nAnswer: [MASK*2]",
        "3+[MASK]=7\n[MASK]+5=12\nAnswer: 12",
        "[MASK*5]\n[MASK*6]\nAnswer: 12",
    ],
)
@pytest.mark.parametrize("options", [(), ("-c", "dual"), ("-p", "threshold(tau=0.95)", "-c", "dllm(kp=4,kr=2)")])
def test_working_is_filled_in(text, options):
    assert fine(run("--prompt", QUESTION, text, *options)) == ANSWER + "\n"


def test_json_trace_and_picture(tmp_path):
    trace, picture = tmp_path / "t.jsonl", tmp_path / "p.svg"
    text = "3+4=[MASK]\n7+[MASK]=[MASK*2]\nAnswer: 12"
    out = fine(run("--prompt", QUESTION, text, "--json", "--trace", trace, "--picture", picture))
    (value,) = lines(out)
    assert value["text"] == ANSWER
    assert [s["text"] for s in value["spans"]] == ["7", "5", "12"]
    assert all(value["tokens"][s["start"] :][: len(s["tokens"])] == s["tokens"] for s in value["spans"])
    header, *steps = lines(trace.read_text())
    (row,) = header["rows"]
    canvas = row["prompt"] + [header["mask"]] * row["gen_length"]
    for at, token in row["fixed"]:
        canvas[len(row["prompt"]) + at] = token
    for step in steps:
        for _, position, token, _ in step["committed"]:
            assert canvas[position] == header["mask"]
            canvas[position] = token
    assert canvas[len(row["prompt"]) :] == value["tokens"]
    chips = ElementTree.fromstring(picture.read_text()).findall("{http://www.w3.org/2000/svg}g")
    assert len(chips) == 4


def test_batch(tmp_path, shipped):
    given = [
        {"text": "3+4=[MASK]\n7+5=[MASK*2]\nAnswer: [MASK*2]", "prompt": QUESTION},
        {"text": [2, 3, 0, 5, 0, 0], "seed": 4, "suppress": [7, "a"]},
        {"text": "a [MASK]", "prompt": [{"role": "user", "content": "Hi"}]},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in given))
    values = sorted(lines(fine(run("--batch", file, "--temperature", 1, "--seed", 2))), key=lambda v: v["index"])
    for i, (value, line) in enumerate(zip(values, given, strict=True)):
        seed, suppress = line.get("seed", 2 + i), line.get("suppress")
        alone = shipped.infill(line["text"], prompts=line.get("prompt"), temperature=1, seed=seed, suppress=suppress)[0]
        assert (value["text"], value["tokens"], value["seed"]) == (alone.text, alone.tokens, seed)


def test_suppress_and_standard_input(folder):
    model = unmask.load(folder)
    out = fine(
        run(
            "-m",
            folder,
            "-",
            "--suppress",
            "e",
            "--suppress",
            "t",
            "--temperature",
            2,
            "--seed",
            3,
            input="a[MASK*9]b\n",
        )
    )
    assert out == model.infill("a[MASK*9]b\n", temperature=2.0, seed=3, suppress=["e", "t"])[0].text + "\n"
    generated = cli("generate", "-m", folder, "Hi", "-n", 9, "--suppress", "e", "--json")
    assert lines(fine(generated))[0]["tokens"] == model.generate("Hi", 9, suppress=["e"])[0].tokens


def test_watch_shows_the_whole_text(folder):
    result = run("-m", folder, "Hello [MASK*3]you", "--watch", "--prompt", "Hi")
    assert result.exit_code == 0
    shown = "".join(result.stderr.splitlines()[1:])
    assert shown.startswith("Hello ")
    assert shown.endswith("you")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], ["TEXT", "--batch"]),
        (["a[MASK]", "--batch", "x"], ["TEXT", "--batch"]),
        (["no gap"], ["text", "[MASK]"]),
        (["[MASK]"], ["text", "gaps"]),
        (["a[MASK*0]"], ["text", "[MASK*0]"]),
        (["a[MASK*x]"], ["text", "[MASK*x]"]),
        (["a[MASK*99999]"], ["text", 99999]),
        (["a[MASK]b", "-p", "left_to_right"], ["left_to_right"]),
        (["a[MASK]b", "-p", "nobody"], ["policy", "'nobody'"]),
        (["a[MASK]b", "--suppress", "several tokens"], ["suppress", "'several tokens'", 14]),
        (["a[MASK]b", "--gen-length", "3"], ["--gen-length"]),
        (["a[MASK]b", "--prompt", ""], ["prompt"]),
        (["a[MASK]b", "--temperature", "-1"], ["temperature", -1]),
    ],
)
def test_bad_usage(folder, args, named):
    refused(run("-m", folder, *args), *named)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"prompt": "x"}', ["text"]),
        ('{"text": "x[MASK]", "temprature": 3}', ["'temprature'", "'temperature'"]),
        ('{"text": "x[MASK]", "tokens": [3]}', ["'tokens'"]),
        ('{"text": [{"role": "user", "content": "x"}]}', ["text"]),
        ('{"text": "x[MASK]", "prompt": 3}', ["prompt"]),
        ('{"text": "x[MASK]", "suppress": 1.5}', ["suppress"]),
        ('{"text": "x[MASK]", "suppress": [true]}', ["suppress"]),
        ('{"text": "x[MASK]", "seed": 1.5}', ["seed", 1.5]),
        ('{"text": "x"}', ["gap"]),
        ('{"text": [1, 2]}', ["gap"]),
    ],
)
def test_bad_batch_lines(folder, tmp_path, line, named):
    batch = tmp_path / "in.jsonl"
    batch.write_text('{"text": "a[MASK]"}\n\n' + line + "\n")
    refused(run("-m", folder, "--batch", batch), batch, "line 3", *named)


def test_a_line_that_the_policy_cannot_fill_is_named(folder, tmp_path):
    """A gap at the end can be filled from left to right, one in front of given text cannot."""
    batch = tmp_path / "in.jsonl"
    batch.write_text('{"text": "a[MASK]"}\n\n{"text": "a[MASK]b"}\n')
    refused(run("-m", folder, "--batch", batch, "-p", "left_to_right"), batch, "line 3", "left_to_right")
