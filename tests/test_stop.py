"""Stop strings: the text ends before the first, the row leaves as soon as that is certain, and nothing else changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unmask
from helpers import cli, fine, lines
from llada_folder import write
from refusals import refused, refuses
from unmask import RequestError, registry
from unmask.stop import Ending, StopStrings

QUESTION = "In the morning Uma counts 11 jars. Then the number of jars doubles. Then 7 jars are added. How many jars?"
SUDOKU = "Solve the sudoku:\n0214\n4132\n1420\n0340"
FEWER = ["vanilla(block_length=8)", "left_to_right", "threshold(tau=0.99,block_length=8)"]  # these fill the front first
EARLY = [*FEWER, "slowfast", "prophet(adaptive(threshold))"]
LATE = ["wino(block_length=8)", "saber(n=4)", "prophet(saber(n=4))"]


@pytest.fixture(scope="module")
def lm():
    return unmask.load(dtype="float32")


def cut(text, stops):
    return text[: min((text.index(s) for s in stops if s in text), default=len(text))]


# --- where a text ends


class Letters:
    """A tokenizer: token i is the i-th piece; "<end>" is a control token without text."""

    def __init__(self, *pieces):
        self.all = pieces

    def decode(self, ids):
        return "".join(self.all[i] for i in ids if self.all[i] != "<end>")

    def parse(self, text):
        return [self.all.index(text)] if text in self.all else [0, 0]


PIECES = ("a", "b", "ab", "ba", "c", "<end>")


def ending(ids, stops, whole):
    text = Letters(*PIECES)
    return StopStrings(text, stops).find(ids, whole)


@pytest.mark.parametrize(
    ("ids", "stops", "whole", "expected"),
    [
        ([0, 4], ["c"], False, Ending(1, 0)),
        ([2, 4], ["bc"], False, Ending(1, 1)),  # "a" is said by a token that says more
        ([0, 0], ["c"], True, None),
        ([2, 4], ["abca", "b"], False, None),  # the longer one may have begun before
        ([2, 4, 1], ["abca", "b"], False, Ending(1, 1)),  # it has not
        ([2, 4], ["abca", "b"], True, Ending(1, 1)),
        ([2, 4, 0], ["abca", "b"], False, Ending(0, 0)),
        ([0, 5, 4], ["<end>"], False, Ending(1, 0)),
        ([0, 5, 1], ["b", "<end>"], False, Ending(1, 0)),
        ([0, 5, 1], ["b"], False, Ending(1, 0)),  # in the text there is no control token
    ],
)
def test_where_a_text_ends(ids, stops, whole, expected):
    assert ending(ids, stops, whole) == expected


@given(
    st.lists(st.integers(0, 4), max_size=9), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_what_is_certain_of_a_prefix_holds_for_the_whole(ids, stops):
    text = Letters(*PIECES)
    whole = text.decode(ids)
    for count in range(len(ids) + 1):
        for one in filter(None, [ending(ids[:count], stops, False), ending(ids, stops, True)]):
            said = text.decode(ids[: one.tokens])
            assert said[: len(said) - one.over] == cut(whole, stops) != whole
            assert one.tokens == 0 or not text.decode(ids[: one.tokens - 1]).startswith(cut(whole, stops))


def test_half_a_character_stops_nothing(lm):
    """Bytes that are no character yet decode to U+FFFD; as a stop string that is looked for in whole texts alone."""
    ids = lm.text.encode("é", chat=False)
    assert len(ids) > 1
    half = ids[:-1]
    assert "\ufffd" in lm.text.decode(half)
    assert StopStrings(lm.text, ["\ufffd"]).find(half, False) is None
    assert StopStrings(lm.text, ["\ufffd"]).find(half, True) is not None


def test_a_control_token_that_is_said(lm):
    name = lm.text.pieces([lm.text.bos])[0]
    assert StopStrings(lm.text, [name, "a", "<a>"]).control == {lm.text.bos}
    ids = lm.text.encode("12 jars", chat=False)
    said = [*ids, lm.text.bos, *ids]
    assert StopStrings(lm.text, [name]).find(said, False) == Ending(len(ids), 0)


# --- decoding


@pytest.mark.parametrize("policy", [*EARLY, *LATE])
def test_the_text_is_the_one_that_is_cut(lm, policy):
    """In a batch whose rows stop at different times; forwards are saved where no token is taken back."""
    prompts, stops = [QUESTION, SUDOKU, "Hi"], ["\n", "2="]
    plain, stopped = (lm.generate(prompts, 32, policy, batch_size=2, stop=stop) for stop in (None, stops))
    assert any(cut(r.text, stops) != r.text for r in plain)
    for old, new in zip(plain, stopped, strict=True):
        assert new.text == cut(old.text, stops)
        if new.text == old.text:
            assert (new.tokens, new.steps, new.stats.tokens) == (old.tokens, old.steps, old.stats.tokens)
            continue
        said, eos = new.stats.tokens, lm.denoiser.spec.eos[0]
        assert new.tokens == old.tokens[:said] + [eos] * (32 - said)
        assert new.steps == old.steps[:said] + [-1] * (32 - said)
        assert lm.text.decode(new.tokens[:said]).startswith(new.text)
        assert said == 0 or len(lm.text.decode(new.tokens[: said - 1])) < len(new.text)
        assert [span.text for span in new.spans] == [new.text]
        assert new.stats.tpf == said / new.stats.nfe
    nfe = [sum(r.stats.nfe for r in results) for results in (plain, stopped)]
    assert nfe[1] < nfe[0] if policy in FEWER else nfe[1] == nfe[0] if policy in LATE else nfe[1] <= nfe[0]


def test_what_is_known_to_take_back_is_in_the_registry():
    said = {name for name in registry.table("policy") if registry.lookup("policy", name).remasks is True}
    assert said == {"wino", "saber", "edit", "refine", "daedal"}
    assert registry.policy("prophet(wino)").remasks and not registry.policy("prophet(vanilla)").remasks


def test_no_early_stop_fills_everything(lm):
    one, other = (lm.generate(QUESTION, 48, "threshold", ignore_eos=True, stop=stop)[0] for stop in (None, ["\n"]))
    assert other.text == cut(one.text, ["\n"])
    assert one.stats.nfe == other.stats.nfe
    assert other.stats.tokens < one.stats.tokens


def test_a_row_leaves_with_the_step_that_completes_the_stop_string(lm):
    """From left to right, one token a forward: with the token that has the newline."""
    (result,) = lm.generate(QUESTION, 48, "left_to_right", stop="\n")
    steps = list(lm.stream(QUESTION, 48, "left_to_right", stop=["\n"]))
    assert len(steps) == result.stats.nfe == result.stats.tokens + 1
    assert steps[-1].finished == (0,)
    assert result.finish_reason == "stop"
    assert [len(s.committed()) for s in steps] == [1] * len(steps)


def test_given_tokens_count_as_text(lm):
    """A stop string in them ends the response, whatever is given behind it."""
    (newline,) = lm.text.encode("\n", chat=False)
    (result,) = lm.generate(QUESTION, 24, "threshold", fixed={4: newline, 12: newline}, stop="\n")
    assert "\n" not in result.text and result.stats.tokens <= 4
    assert result.tokens[4:] == [lm.denoiser.spec.eos[0]] * 20


def test_a_control_token_by_its_name(lm):
    """The end of text, where nothing stops at it: the same text, and all positions are still filled."""
    name = lm.text.pieces([lm.denoiser.spec.eos[0]])[0]
    one, other = (lm.generate(QUESTION, 48, "threshold", ignore_eos=True, stop=s)[0] for s in (None, name))
    assert (one.text, one.stats.nfe) == (other.text, other.stats.nfe)


@pytest.mark.parametrize("stop", ["", [""], [1], 5, ["a", None], {"a": 1}, b"a"])
def test_what_is_no_stop_string(lm, stop):
    with refuses(RequestError, "stop"):
        lm.generate("Hi", 8, stop=stop)


def test_without_a_tokenizer_there_is_no_text(lm):
    bare = unmask.Model(lm.denoiser, None)
    with refuses(RequestError, "stop", "tokenizer.json"):
        bare.generate([5, 6], 8, stop="a")
    assert len(bare.generate([5, 6], 8, stop=[])[0].tokens) == 8


def test_gaps_take_none(lm):
    with refuses(RequestError, "infill", "'stop'"):
        lm.infill("1[MASK]", stop="a")


# --- the command line


def test_command(lm, tmp_path):
    args = ("generate", "--dtype", "float32", "-n", 48)
    (plain,) = lm.generate(QUESTION, 48)
    assert fine(cli(*args, QUESTION, "--stop", "\n", "--stop", "=")) == cut(plain.text, ["\n", "="]) + "\n"
    batch = tmp_path / "in.jsonl"
    own = [{"stop": ["\n"]}, {}, {"stop": []}]
    batch.write_text("".join(json.dumps({"prompt": QUESTION, **more}) + "\n" for more in own))
    trace, picture = tmp_path / "t.jsonl", tmp_path / "p.svg"
    out = fine(cli(*args, "--batch", batch, "--stop", "=", "--trace", trace, "--picture", picture))
    texts = {line["index"]: line["text"] for line in lines(out)}
    assert texts == {0: cut(plain.text, ["\n"]), 1: cut(plain.text, ["="]), 2: plain.text}
    assert sorted(row for step in lines(trace.read_text())[1:] for row in step["finished"]) == [0, 1, 2]
    page = tmp_path / "t.html"
    fine(cli("trace", "view", trace, "-o", page))
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize("stop", ["", [""], [1], {}])
def test_bad_lines(tmp_path, stop):
    batch = tmp_path / "in.jsonl"
    batch.write_text(json.dumps({"prompt": "Hi", "stop": stop}))
    refused(cli("generate", "--batch", batch), batch, "line 1", "stop")


def test_an_empty_stop_string(tmp_path):
    refused(cli("generate", "Hi", "--stop", "", "-o", tmp_path / "o"), "stop")
    assert list(tmp_path.iterdir()) == []


def test_other_models_and_shifted_ones(tmp_path, lm):
    """A model that says nonsense: every stop string that it happens to say is found."""
    other = unmask.load(write(tmp_path / "llada"), dtype="float64")
    (plain,) = other.generate("Hello", 40, "vanilla", chat=False)
    middle = plain.text[len(plain.text) // 2 :][:2]
    (stopped,) = other.generate("Hello", 40, "vanilla", stop=middle, chat=False)
    assert stopped.text == cut(plain.text, [middle])


def test_watching_shows_what_is_kept(lm):
    result = cli(
        "generate",
        "--dtype",
        "float32",
        "-n",
        32,
        "-p",
        "slowfast",
        QUESTION,
        "--stop",
        "=",
        "--watch",
    )
    assert result.exit_code == 0
    last = result.stderr.splitlines()[-1]
    assert last.endswith("∎") and "=" not in last and "·" not in last
