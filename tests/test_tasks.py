"""The problem families: determinism, disjoint splits, checkers that accept the right and refuse the wrong."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

import unmask.tasks
from refusals import refuses
from unmask.tasks import FAMILIES, SPLITS, Problem, problems, split_of
from unmask.tasks import sudoku as sudoku_module

TINY = Path(unmask.tasks.__file__).parents[1] / "assets" / "tiny"
NAMES = list(FAMILIES)


def samples(family: str, n: int = 300, seed: int = 1) -> list[Problem]:
    rng = random.Random(seed)
    return [FAMILIES[family].generate(rng) for _ in range(n)]


@pytest.mark.parametrize("family", NAMES)
def test_same_arguments_give_the_same_problems(family: str) -> None:
    first = problems(family, "valid", 20, seed=3)
    assert first == problems(FAMILIES[family], "valid", 20, seed=3)
    assert first != problems(family, "valid", 20, seed=4)
    assert first[:5] == problems(family, "valid", 5, seed=3)


@pytest.mark.parametrize("family", NAMES)
def test_splits_never_share_a_problem(family: str) -> None:
    keys: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed in range(3):
            found = problems(family, split, 200, seed=seed)
            assert len({problem.key for problem in found}) == 200
            assert all(problem.split == split for problem in found)
            keys[split] |= {problem.key for problem in found}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not keys[a] & keys[b]


@pytest.mark.parametrize("family", NAMES)
def test_splits_have_their_shares(family: str) -> None:
    shares = [problem.split for problem in samples(family, 2000)]
    assert 0.80 < shares.count("train") / 2000 < 0.90
    assert 0.06 < shares.count("test") / 2000 < 0.14


def test_wording_does_not_decide_the_split() -> None:
    by_key: dict[str, set[str]] = {}
    for problem in samples("word_problem", 4000):
        by_key.setdefault(problem.key, set()).add(problem.prompt)
    reworded = [key for key, prompts in by_key.items() if len(prompts) > 1]
    assert reworded, "the samples hold problems that differ in wording only"
    assert all(split_of("word_problem", key) in SPLITS for key in reworded)


@pytest.mark.parametrize("family", NAMES)
def test_reference_answers_are_right(family: str) -> None:
    check = FAMILIES[family].check
    for problem in samples(family, 1000):
        assert check(problem, problem.answer), problem
        assert check(problem, f"\n  {problem.answer} \n\n")


@pytest.mark.parametrize("family", NAMES)
def test_broken_answers_are_refused(family: str) -> None:
    check = FAMILIES[family].check
    rng = random.Random(5)
    for problem in samples(family, 200):
        text = problem.answer
        for broken in (
            "",
            "   ",
            text[:-1],
            text[1:] if family != "word_problem" else "",
            f"{text} ok",
            f"{text}\n{text}x",
        ):
            assert not check(problem, broken), (problem, broken)
        digits = [i for i, c in enumerate(text) if c.isdigit()]
        if digits and family in ("sudoku", "record"):
            i = rng.choice(digits)
            changed = text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :]
            assert not check(problem, changed), (problem, changed)


def test_word_problem_wants_the_final_value_on_its_own_line() -> None:
    problem = problems("word_problem", "train", 1)[0]
    result = problem.meta["result"]
    check = FAMILIES["word_problem"].check
    assert check(problem, f"Answer: {result}")
    assert not check(problem, f"Answer: {result + 1}")
    assert not check(problem, str(result))
    assert not check(problem, f"The answer is Answer: {result}")


@pytest.mark.parametrize("family", ["word_problem", "multi"])
def test_every_calculation_is_true_and_small(family: str) -> None:
    for problem in samples(family, 300):
        calculations = re.findall(r"(\d+[-+*/]\d+)=(\d+)", problem.answer)
        assert len(calculations) == problem.answer.count("=") >= 2
        for left, right in calculations:
            assert eval(left.replace("/", "//")) == int(right)
            assert 0 <= int(right) <= 29


def test_multi_refuses_a_wrong_missing_or_repeated_line() -> None:
    check = FAMILIES["multi"].check
    for problem in samples("multi", 100):
        lines = problem.answer.splitlines()
        assert check(problem, "\n".join(reversed(lines)))
        assert not check(problem, "\n".join(lines[:-1]))
        assert not check(problem, "\n".join([*lines, lines[0]]))
        head, _, tail = lines[3].rpartition("=")
        lines[3] = f"{head}=1{tail}"
        assert not check(problem, "\n".join(lines))


def test_multi_chains_carry_each_result_on() -> None:
    chains = [problem for problem in samples("multi", 100) if problem.meta["kind"] == "chain"]
    assert chains and len(chains) < 100
    for problem in chains:
        for line, following in pairwise(problem.answer.splitlines()):
            assert f", {line.rpartition('=')[2]}{'+' if '+' in following else '-'}" in following


@pytest.mark.parametrize("operation", ["copy", "reverse", "sort", "insert", "remove", "replace"])
def test_waiting_line_operations_with_one_answer(operation: str) -> None:
    check = FAMILIES["waiting_line"].check
    for problem in [p for p in samples("waiting_line", 1000) if p.meta["operation"] == operation]:
        line, new, at = problem.meta["line"], problem.meta["new"], problem.meta["at"]
        expected = list(line)
        if operation == "reverse":
            expected.reverse()
        elif operation == "sort":
            expected.sort(key=lambda name: name.split()[0])
        elif operation == "insert":
            expected.insert(at - 1, new)
        elif operation == "remove":
            del expected[at - 1]
        elif operation == "replace":
            expected[at - 1] = new
        assert json.loads(problem.answer) == expected
        assert check(problem, json.dumps(expected)), "spaces after commas are fine"
        assert not check(problem, json.dumps([*expected, "Zed Zorn"]))
        if operation != "copy":
            wrong = json.dumps(line)
            assert check(problem, wrong) == (expected == line)


def test_waiting_line_random_operations_accept_every_valid_answer() -> None:
    check = FAMILIES["waiting_line"].check
    for problem in samples("waiting_line", 1500):
        line, new = list(problem.meta["line"]), problem.meta["new"]
        kind = problem.meta["operation"]
        if kind == "insert_random":
            assert all(check(problem, json.dumps([*line[:i], new, *line[i:]])) for i in range(len(line) + 1))
            assert not check(problem, json.dumps([new, *line[::-1]]))
        elif kind == "remove_random":
            assert all(check(problem, json.dumps(line[:i] + line[i + 1 :])) for i in range(len(line)))
        elif kind == "replace_random":
            assert all(check(problem, json.dumps([*line[:i], new, *line[i + 1 :]])) for i in range(len(line)))
            assert not check(problem, json.dumps([new, new, *line[2:]]))
        elif kind == "shuffle":
            assert check(problem, json.dumps(line[1:] + line[:1]))
            assert not check(problem, json.dumps([line[1], line[1], *line[2:]]))
        if kind.endswith("random") or kind == "shuffle":
            assert not check(problem, json.dumps(line))


def test_waiting_line_refuses_what_is_not_a_list_of_names() -> None:
    problem = problems("waiting_line", "train", 1)[0]
    for text in ("null", "{}", "[1,2,3]", '"a"', "[[]]", f"```{problem.answer}```", "[" * 100_000):
        assert not FAMILIES["waiting_line"].check(problem, text)


def test_sudoku_knows_all_grids_and_accepts_any_solution() -> None:
    assert len(set(sudoku_module.GRIDS)) == 288
    several = 0
    for problem in samples("sudoku", 300):
        clues = problem.meta["clues"]
        assert 4 <= clues.count("0") <= 10
        fits = [g for g in sudoku_module.GRIDS if all(c in ("0", d) for c, d in zip(clues, g, strict=True))]
        several += len(fits) > 1
        for grid in sudoku_module.GRIDS[::7]:
            text = "\n".join(grid[i : i + 4] for i in range(0, 16, 4))
            assert FAMILIES["sudoku"].check(problem, text) == (grid in fits)
    assert several


def test_record_wants_the_fields_in_order_with_their_types() -> None:
    check = FAMILIES["record"].check
    for problem in samples("record", 200):
        record = dict(problem.meta["record"])
        assert check(problem, json.dumps(record))
        assert not check(problem, json.dumps(dict(reversed(record.items()))))
        assert not check(problem, json.dumps(list(map(list, record.items()))))
        assert not check(problem, json.dumps({key: str(value) + "x" for key, value in record.items()}))
        first = next(iter(record))
        assert not check(problem, json.dumps({**record, first: [record[first]]}))


def test_bad_arguments_are_named() -> None:
    with refuses(ValueError, "family", "'chess'"):
        problems("chess", "test", 1)
    with refuses(ValueError, "split", "'dev'"):
        problems("sudoku", "dev", 1)
    with refuses(ValueError, -1):
        problems("sudoku", "test", -1)
    assert problems("sudoku", "test", 0) == []


def test_a_family_with_too_few_problems_says_so() -> None:
    fixed = unmask.tasks.Family("one", "a single problem", lambda _: Problem("one", "?", "!", "key"), lambda *_: True)
    with refuses(ValueError, "one"):
        problems(fixed, split_of("one", "key"), 2)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(TINY)


def test_tokenizer_keeps_any_text(tokenizer) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(7)
    texts = [
        "",
        " ",
        "héllo wörld",
        "世界 🎉\u200d🔥",
        "a\tb\r\n\n  c",
        '{"k": [1, 2.5, null]}',
        "\x00\x7f\ufeff\ufffd",
    ]
    for _ in range(200):
        points = (rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(30))
        texts.append("".join(map(chr, points)))
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert max(ids, default=0) < len(tokenizer)


def test_tokenizer_writes_the_template_with_single_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    chat = [{"role": "user", "content": "Reverse 12."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:2] == ["<|startoftext|>", "<|user|>"] and tokens[-1] == "<|assistant|>"
    assert tokens[-4:-1] == ["1", "2", "."], "digits are tokens of their own"
    assert tokenizer.mask_token == "<|mdm_mask|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"


def test_tokenizer_knows_the_words_of_the_tasks(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for family in NAMES:
        for problem in samples(family, 100):
            for word in re.findall(" ?[A-Za-z]+", f"{problem.prompt} {problem.answer}"):
                assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word


def test_multi_answers_are_long_but_fit_256_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    lengths = [len(tokenizer.encode(p.answer, add_special_tokens=False)) for p in samples("multi", 300)]
    assert max(lengths) < 255
    assert sum(length > 200 for length in lengths) > 0.95 * len(lengths)
