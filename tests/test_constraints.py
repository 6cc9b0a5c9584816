"""Constraints: the languages, the automata over tokens, the exact path, and what a request may ask for."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from jsonschema_specifications import REGISTRY
from scipy.stats import chisquare

import unmask
from helpers import drain, tiny
from refusals import refuses
from structured import CASES, SCHEMAS, model, valid
from unmask import Engine, Request, RequestError, registry
from unmask.constraints import dfa
from unmask.constraints.automaton import Automaton, compiled
from unmask.constraints.batch import Constraints
from unmask.constraints.classes import classes_of
from unmask.constraints.merging import ANNOTATIONS
from unmask.constraints.schema import REFUSED, schema
from unmask.constraints.syntax import regex
from unmask.constraints.vocabulary import Vocabulary
from unmask.core.canvas import Canvas, ModelSpec, Update
from unmask.core.predict import forbid, read
from unmask.core.protocols import Sampling

TOKENS = ("a", "b", "c", "ab", "ba", "aa", "1", "2", "12", " ")
EOS, MASK, PAD, VOCAB = 10, 11, 12, 13
SPEC = ModelSpec(mask=MASK, eos=(EOS,), pad=PAD, vocab=VOCAB, limit=VOCAB, context=64)
WORDS = Vocabulary.of({i: t.encode() for i, t in enumerate(TOKENS)}, VOCAB, (EOS,))
PATTERNS = ("(ab|c)*1?", "[ab]{2,4}12", "a*b*c?", "(aa|b)+ ?[12]+")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lm():
    return model("bundled")


def tokens_of(pattern: str) -> Automaton:
    return compiled(dfa.automaton(regex(pattern)), WORDS)


def sampling(rows: int, temperature: float = 0.0, **more) -> Sampling:
    heat = torch.full((rows,), temperature, dtype=torch.float64)
    own = {"top_p": heat * 0 + 1, "top_k": torch.zeros(rows).long(), "filters": False, **more}
    return Sampling(heat, own.pop("top_p"), own.pop("top_k"), torch.arange(rows), samples=temperature > 0, **own)


def written(ids: tuple[int, ...]) -> str:
    return "".join(TOKENS[i] for i in itertools.takewhile(lambda i: i != EOS, ids))


def accepted(pattern: str, length: int, given: dict[int, int]) -> list[tuple[int, ...]]:
    """All texts of ``length`` tokens that match and have the given ones, by trying every one."""
    every = itertools.product([*range(len(TOKENS)), EOS], repeat=length)
    return [
        ids
        for ids in every
        if all(ids[at] == i for at, i in given.items())
        and not (EOS in ids and any(i != EOS for i in ids[ids.index(EOS) :]))
        and re.fullmatch(pattern, written(ids))
    ]


def paths(automata: list[Automaton], canvas: Canvas, logits: torch.Tensor, how: Sampling, left_out=()) -> dict:
    """What becomes of the logits ``[B, T, V]`` of all masked positions but those left out."""
    want = canvas.masked.clone()
    want[:, list(left_out)] = False
    row, position = want.nonzero(as_tuple=True)
    step = torch.zeros(len(canvas.tokens)).long()
    lines = forbid(logits[row, position].clone(), SPEC)
    found = read(lines, how, frozenset(), row, position, step[row])
    constraints = Constraints.of(automata, [a.start for a in automata], CPU)
    search = constraints.search(canvas, how, frozenset(), row, position, step)
    half = len(row) // 2
    parts = [{k: v[:half] for k, v in found.items()}, {k: v[half:] for k, v in found.items()}]
    search.add(slice(0, half), lines[:half], parts[0])
    search.add(slice(half, len(row)), lines[half:], parts[1])
    search.finish()
    read_now = {name: torch.cat([part[name] for part in parts]) for name in ("token", "confidence")}
    return {"row": row, "position": position, "lines": lines, **read_now}


# --- the path


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("given", [{}, {1: 0}, {0: 3}, {2: 6}, {0: 1, 3: EOS}])
def test_the_path_is_the_most_probable_accepted_text(pattern, given):
    draw = torch.Generator().manual_seed(len(pattern) + len(given))
    for length in (4, 5):
        canvas = Canvas.blank([[0, 1]], [length], SPEC, fixed=[given])
        texts = accepted(pattern, length, given)
        if not texts:
            continue
        logits = 2 * torch.randn(1, length + 2, VOCAB, generator=draw)
        best = max(
            texts, key=lambda ids: sum(logits[0, at + 2, i].item() for at, i in enumerate(ids) if at not in given)
        )
        found = paths([tokens_of(pattern)], canvas, logits, sampling(1))
        got = [best[at] if at in given else -1 for at in range(length)]
        for at, token in zip((found["position"] - 2).tolist(), found["token"].tolist(), strict=True):
            got[at] = token
        assert tuple(got) == best
        expected = found["lines"].double().softmax(-1).gather(1, found["token"][:, None])[:, 0]
        assert torch.allclose(found["confidence"], expected, rtol=1e-5)


def test_rows_of_a_batch_have_paths_of_their_own():
    """Automata, prompts and lengths that differ; a row without a constraint keeps what was read."""
    draw = torch.Generator().manual_seed(1)
    canvas = Canvas.blank([[0], [0, 1, 2], [1, 1]], [5, 4, 5], SPEC)
    logits = 2 * torch.randn(3, 7, VOCAB, generator=draw)
    made = [tokens_of(PATTERNS[0]), tokens_of(PATTERNS[3])]
    both = Constraints.of([made[0], None, made[1]], [made[0].start, 0, made[1].start], CPU)
    row, position = canvas.masked.nonzero(as_tuple=True)
    lines, step = forbid(logits[row, position], SPEC), torch.zeros(3).long()
    plain = read(lines, sampling(3), frozenset(), row, position, step[row])
    found = dict(plain)
    search = both.search(canvas, sampling(3), frozenset(), row, position, step)
    search.add(slice(0, len(row)), lines, found)
    search.finish()
    for at, own in ((0, made[0]), (2, made[1])):
        alone = Canvas.blank([canvas.tokens[at, : canvas.prompt[at]].tolist()], [5], SPEC)
        one = paths([own], alone, logits[at : at + 1, : alone.tokens.shape[1]], sampling(1))
        assert found["token"][row == at].tolist() == one["token"].tolist()
    assert found["token"][row == 1].tolist() == plain["token"][row == 1].tolist()


def test_positions_without_a_prediction_count_by_what_they_can_become():
    """The best text of those positions that are predicted, of all that the others can complete."""
    draw = torch.Generator().manual_seed(5)
    pattern, length, left_out = PATTERNS[3], 5, (3, 4, 6)  # canvas positions; the prompt has 2
    texts = accepted(pattern, length, {})
    for _ in range(5):
        logits = 2 * torch.randn(1, length + 2, VOCAB, generator=draw)
        found = paths([tokens_of(pattern)], Canvas.blank([[0, 1]], [length], SPEC), logits, sampling(1), left_out)
        score = Counter(
            {tuple(ids[p - 2] for p in (2, 5)): sum(logits[0, p, ids[p - 2]].item() for p in (2, 5)) for ids in texts}
        )
        assert tuple(found["token"].tolist()) == score.most_common(1)[0][0]


@pytest.mark.parametrize("given", [{}, {1: 3}])
def test_sampled_paths_follow_the_product(given):
    rows, length, pattern, heat = 8_000, 4, PATTERNS[0], 0.7
    logits = torch.randn(1, length + 1, VOCAB, generator=torch.Generator().manual_seed(3))
    canvas = Canvas.blank([[0]] * rows, [length] * rows, SPEC, fixed=[given] * rows)
    found = paths([tokens_of(pattern)] * rows, canvas, logits.expand(rows, -1, -1), sampling(rows, heat))
    free = [at for at in range(length) if at not in given]
    drawn = Counter(map(tuple, found["token"].view(rows, len(free)).tolist()))
    texts = accepted(pattern, length, given)
    weight = np.exp([sum(logits[0, at + 1, ids[at]].item() for at in free) / heat for ids in texts])
    expected = rows * weight / weight.sum()
    seen = np.array([drawn.pop(tuple(ids[at] for at in free), 0) for ids in texts])
    assert not drawn, "drawn, but not accepted"
    often = expected > 5
    pooled = [np.append(own[often], own[~often].sum()) for own in (seen, expected)]
    assert chisquare(*(own[pooled[1] > 0] for own in pooled)).pvalue > 1e-3


def test_a_path_outside_the_filter_has_as_few_filtered_tokens_as_can_be():
    logits = torch.zeros(1, 4, VOCAB)
    logits[0, 1:, 2] = 9.0  # top-k leaves "c" alone
    canvas = Canvas.blank([[0]], [3], SPEC)
    how = sampling(1, 1.0, top_k=torch.ones(1).long(), filters=True)
    assert paths([tokens_of("ca?c*")], canvas, logits, how)["token"].tolist() == [2, 2, 2]
    assert paths([tokens_of("cac*")], canvas, logits, how)["token"].tolist() == [2, 0, 2]


def test_without_any_effect_sampling_is_as_without_a_constraint():
    logits = torch.randn(4, 6, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[:, :, [EOS, PAD]] = -30.0
    canvas = Canvas.blank([[0]] * 4, [5] * 4, SPEC)
    found = paths([tokens_of(r"[abc12 ]*")] * 4, canvas, logits, sampling(4, 1.0))
    plain = read(found["lines"], sampling(4, 1.0), frozenset(), found["row"], found["position"], torch.zeros(20).long())
    assert found["token"].tolist() == plain["token"].tolist()
    assert torch.allclose(found["confidence"], plain["confidence"])


def test_updates_that_nothing_accepted_has_are_held():
    """A policy that commits tokens of its own keeps them where the row can still be completed."""
    made = [tokens_of("ab[12]"), tokens_of("[abc]*")]
    canvas = Canvas.blank([[0], [0]], [4, 4], SPEC)
    constraints = Constraints.of(made, [own.start for own in made], CPU)
    own = torch.full_like(canvas.tokens, 2)  # "c"
    predicted = torch.tensor([[0, 0, 1, 6, EOS]] * 2)
    update = Update(canvas.masked & (canvas.position < 3), own)
    held = constraints.hold(canvas, update, predicted, chooses=True)
    assert held.token[0, 1:3].tolist() == [0, 1]
    assert held.token[1, 1:3].tolist() == [2, 2]
    always = constraints.hold(canvas, update, predicted, chooses=False)
    assert always.token.tolist() == predicted.tolist()


def test_classes_are_searched_alike_on_any_device():
    made = compiled(dfa.automaton(regex("[ab]*[12]?")), WORDS)
    kind = classes_of(made.without([3]))
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0)).double()
    for one, other in zip(kind.best(logits), kind.best_anywhere(logits), strict=True):
        live = np.broadcast_to(made.open, one.shape)
        assert np.array_equal(one[live], other[live])
    heat, noise = np.linspace(0.3, 2, 6), np.random.default_rng(0).random(6)
    for given in (logits, logits.float(), logits.masked_fill(logits > 0, -torch.inf)):
        (value, token), (other, same) = (draw(given, heat, noise) for draw in (kind.draw, kind.draw_anywhere))
        assert np.allclose(value, other, rtol=1e-7, atol=1e-5)
        assert np.array_equal(token, same)


@pytest.mark.parametrize("heat", [0.3, 1.0, 2.5])
def test_a_token_of_a_class_is_drawn_in_proportion(heat):
    """Of classes of many tokens, few and one, and of one that is far less likely than the others."""
    ways, lines, vocab = {0: range(400), 1: range(400, 417), 2: [417], 3: range(420, 540)}, 6_000, 600
    moves = {0: {i: 1 + way for way, ids in ways.items() for i in ids}}
    kind = classes_of(Automaton.from_transitions(moves, {1, 2, 3, 4}, vocab, (599,)))
    logits = 2 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(2))
    logits[:, 420:] -= 500.0
    noise = np.random.default_rng(0).random(lines)
    value, token = kind.draw(logits.expand(lines, -1), np.full(lines, heat), noise)
    for ids in map(list, ways.values()):
        own = kind.automaton.classes[ids[0]]
        exact = (logits[0, ids].double() / heat).softmax(0).numpy()
        assert np.allclose(value[:, own], torch.logsumexp(logits[0, ids].double() / heat, 0).item(), rtol=1e-5)
        seen = np.bincount(token[:, own], minlength=vocab)[ids]
        assert seen.sum() == lines
        often = lines * exact > 5
        pooled = [np.append(part[often], part[~often].sum()) for part in (seen, lines * exact)]
        full = pooled[1] > 0
        assert full.sum() == 1 or chisquare(*(part[full] for part in pooled)).pvalue > 1e-3


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_stay_out_of_what_is_drawn(odd):
    """Every class has a finite number and a token of its own; what the row becomes is decided elsewhere."""
    kind = classes_of(compiled(dfa.automaton(regex("[ab]*[12]?")), WORDS))
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[0, ::2] = odd
    logits[1] = odd
    for draw in (kind.draw, kind.draw_anywhere):
        value, token = draw(logits, np.full(2, 0.7), np.full(2, 0.4))
        assert np.isfinite(value[:, kind.automaton.open]).all()
        own = kind.automaton.classes[token[:, kind.automaton.open]]
        assert (own == np.flatnonzero(kind.automaton.open)).all()


# --- languages


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"a+b?", ["a", "aab", "b", ""]),
        (r"\w{1,3}", ["é", "日本", "a b", "abcd", "\u0301"]),
        (r"[^\W\d_]+", ["ab", "a1", "ß"]),
        (r"^(?:foo|ba[rz])$", ["foo", "baz", "ba"]),
        (r"^a|b$", ["a", "b", "ab"]),
        (r"(?i)a[b-d]", ["AB", "aD", "ae"]),
        (r"(?s).(?-s:.)", ["\na", "a\n", "😀é"]),
        (r"\s\S", ["\u2003x", " \n", "\x1cx"]),
        (r"(?a:\d)\d", ["1٣", "٣1"]),
        (r"(a|ab)(c|bcd)*?", ["abcd", "ac", "abbcd"]),
        (r"[\u07ff-\u0801\uffff-\U00010001]{2}", ["\u07ff\u0800", "\uffff\U00010000", "\u0802\u0800"]),
    ],
)
def test_regular_expressions_are_those_of_python(pattern, texts):
    made = dfa.automaton(regex(pattern))
    for text in texts:
        assert accepts(made, text) == bool(re.fullmatch(pattern, text)), text


def accepts(made: dfa.Bytes, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = int(made.table[state, byte])
        if state < 0:
            return False
    return bool(made.accept[state])


@pytest.mark.parametrize("pattern", ["(?=a)b", "(a)\\1", "a^b", "a\\bc", "(?>a)b", "a*+b", "(?<!a)b", "(a)?(?(1)b|c)"])
def test_what_no_automaton_follows_is_refused(pattern):
    with pytest.raises(RequestError, match="regex"):
        regex(pattern)


@pytest.mark.parametrize(
    "pattern", ["(ab|c[^x])*", "a*b?(ca){1,2}", "(a|b)*a(a|b)", "(|a)(b|bc)+|c{2,}x?", "[^ab]?x{0,2}(ab|a)+"]
)
def test_every_short_text_is_accepted_as_python_does(pattern):
    made = dfa.automaton(regex(pattern))
    for size in range(6):
        for letters in itertools.product("abcx", repeat=size):
            text = "".join(letters)
            assert accepts(made, text) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_of_a_schema_are_valid(name):
    """Random texts of the automaton over bytes, the shortest among them."""
    made, draw = dfa.automaton(schema(SCHEMAS[name])), random.Random(name)
    away = np.where(made.accept, 0, 10**6)
    for _ in made.table:
        away = np.minimum(away, np.where(made.table >= 0, away[made.table], 10**6).min(1) + 1)
    for most in (0, 0, 5, 10, 20, 20, 40, 40, 80, 80) * 4:
        state, text = 0, b""
        while not made.accept[state] or (draw.random() < 0.8 and len(text) < most and (made.table[state] >= 0).any()):
            ways = np.flatnonzero(made.table[state] >= 0)
            if len(text) >= most:
                ways = ways[away[made.table[state, ways]] == away[made.table[state, ways]].min()]
            byte = int(draw.choice(ways))
            text, state = text + bytes([byte]), int(made.table[state, byte])
        assert valid({"json_schema": SCHEMAS[name]}, text.decode()), text.decode()


ACCEPTED_VALUES = [
    ({"type": "integer", "minimum": 3, "maximum": 21}, range(-5, 40)),
    ({"type": "integer", "exclusiveMinimum": -12, "exclusiveMaximum": 3.5}, range(-20, 12)),
    ({"type": "integer", "maximum": 107}, [-5, 0, 99, 107, 108, 1000]),
    ({"type": "number", "minimum": -2, "exclusiveMaximum": 1}, [-2, -2.5, -1.99, 0, 0.5, 1, 1.5, -0.1]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, [0, 0.25, 1, 1.5, -0.5]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["a", "éé", '"\\', "abc", "abcd"]),
    ({"type": "string", "pattern": "b.d"}, ["abcde", "bd", "b\nd", 'b"d']),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
     [[], [1], [1, 2], [1, 2, 3], ["a"]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "minItems": 2},
     [[1], [1, None], [1, 2], [1, None, None]]),
    ({"enum": [1, "a", None, [1]]}, [1, "a", None, [1], 2, "b"]),
    ({"type": ["integer", "null"], "minimum": 5}, [4, 5, None, "a"]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]},
     [{"b": None}, {"a": 1, "b": None}, {"a": 1}, {}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
     [{}, {"x": 1}, {"x": 1, "y": 2}, {"x": 1, "y": 2, "z": 3}]),
    ({"type": "object", "propertyNames": {"maxLength": 1}, "additionalProperties": {"const": 0}},
     [{"a": 0}, {"ab": 0}]),
    ({"type": "object", "patternProperties": {"^k": {"const": 0}}, "additionalProperties": False},
     [{"k1": 0}, {"l": 0}]),
    ({"anyOf": [{"type": "null"}, {"const": 4}]}, [None, 4, 5]),
    ({"oneOf": [{"type": "null"}, {"type": "integer"}], "description": "x"}, [None, 4, "a"]),
    ({"allOf": [{"type": "string"}, {"maxLength": 1}]}, ["a", "ab", 1]),
    ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer", "maximum": 3}}, "minimum": 2}, [1, 2, 3, 4]),
    ({"type": "string", "format": "date"}, ["2024-02-28", "2024-13-01", "x"]),
    ({"type": "boolean"}, [True, False, None, 0]),
    ({"type": "integer", "multipleOf": 1}, [0, 7, None]),
    ({"$ref": "#/definitions/n", "definitions": {"n": {"type": "null"}}}, [None, 0]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "values"), ACCEPTED_VALUES, ids=lambda v: json.dumps(v)[:50] if isinstance(v, dict) else ""
)
def test_every_keyword_says_what_jsonschema_says(given, values):
    kind = jsonschema.Draft202012Validator
    judge, made = kind(given, format_checker=kind.FORMAT_CHECKER), dfa.automaton(schema(given))
    for value in values:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert accepts(made, text) == judge.is_valid(value), text


def keys_of(value):
    """All keys of a value and of what is in it."""
    inside = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return {*(value if isinstance(value, dict) else ()), *(key for own in inside for key in keys_of(own))}


def test_every_keyword_of_the_drafts_is_followed_or_refused():
    """By the metaschemas of drafts 7, 2019-09 and 2020-12; what says something of validity is in the table above."""
    drafts = [uri for uri in REGISTRY if any(name in uri for name in ("draft-07", "2019-09", "2020-12"))]
    known = {key for uri in drafts for key in REGISTRY.contents(uri).get("properties", {})}
    assert {"unevaluatedItems", "dependencies", "$recursiveAnchor"} <= known
    followed = {key for given, _ in ACCEPTED_VALUES for key in keys_of(given)}
    for key in sorted(known - followed - ANNOTATIONS):
        with refuses(RequestError, key):
            schema({key: {}})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        *(({key: {}}, key) for key in REFUSED),
        ({"minimun": 3}, "minimun"),
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        ({"type": "number", "minimum": 0.5}, "0.5"),
        ({"type": "strin"}, "type"),
        ({"type": "string", "format": "iri"}, "format"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"anyOf": []}, "anyOf"),
        ({"enum": []}, "enum"),
        ({"enum": [1, 2], "minimum": 2}, "minimum"),
        ({"$ref": "#"}, "itself"),
        ({"$ref": "#/absent"}, "$ref"),
        ({"$ref": "other.json"}, "$ref"),
        ({"type": "object", "properties": {"a": {"properties": {"b": 3}}}}, "#/properties/a/properties/b"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "minProperties"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        (
            {"properties": {"a": {}}, "additionalProperties": False, "allOf": [{"properties": {"b": {}}}]},
            "additionalProp",
        ),
        ({"type": "object", "properties": []}, "properties"),
        (3, "json_schema"),
    ],
)
def test_what_a_schema_cannot_say_is_refused_by_name(given, named):
    with pytest.raises(RequestError, match=re.escape(named)):
        schema(given)


def test_the_number_of_states_is_bounded(monkeypatch):
    monkeypatch.setattr(dfa, "STATES", 100)
    with pytest.raises(RequestError, match="100"):
        dfa.automaton(regex("(a|b)*a(a|b){12}"))
    monkeypatch.setattr(dfa, "_PARTS", 1000)
    with pytest.raises(RequestError, match="1000"):
        dfa.automaton(regex("(a{1000}){1000}"))


# --- automata over tokens


def test_every_spelling_of_an_accepted_text_is_accepted():
    made = tokens_of("aab")
    assert [ids for n in (1, 2, 3) for ids in itertools.product(range(10), repeat=n) if made.accepts(ids)] == [
        (0, 3),
        (5, 1),
        (0, 0, 1),
    ]
    assert made.least() == 2
    assert [bool(made.fits(n)[made.start]) for n in (1, 2, 3, 9)] == [False, True, True, True]


def test_characters_of_several_tokens():
    """Bytes of a character may come from any tokens, never half a character at the end."""
    euro = "€".encode()
    words = Vocabulary.of({0: euro[:1], 1: euro[1:], 2: euro[:2], 3: euro[2:], 4: b"a" + euro[:1]}, 8, (7,))
    made = compiled(dfa.automaton(regex("a?€+")), words)
    for ids, right in (
        ((0, 1), True),
        ((2, 3), True),
        ((4, 1, 0, 1), True),
        ((0,), False),
        ((0, 3), False),
        ((2, 1), False),
    ):
        assert made.accepts(ids) == right, ids
    assert made.accepts((0, 1, 7, 7))
    assert not made.accepts((0, 7))


def test_an_automaton_given_by_code(lm):
    text = lm.text
    yes, no, comma = (text.token(word) for word in ("1", "2", ","))
    spec = lm.denoiser.spec
    made = Automaton.from_transitions({0: {yes: 1, no: 1}, 1: {comma: 0}}, {1}, spec.vocab, spec.eos)
    [request] = lm.requests("Count.", 6)
    engine = lm.engine()
    engine.add(replace(request, constraint=made))
    outcomes = []
    while engine.busy:
        outcomes += [e for e in engine.step() if not hasattr(e, "update")]
    assert re.fullmatch("[12](,[12])*", lm.result(outcomes[0]).text)
    with pytest.raises(RequestError, match=str(spec.eos[0])):
        Automaton.from_transitions({0: {spec.eos[0]: 1}}, {1}, spec.vocab, spec.eos)


# --- requests


def test_choices_regex_and_schema_reach_the_text(lm):
    results = lm.generate(
        ["Count."] * 3,
        24,
        "threshold",
        params=[
            unmask.SamplingParams(seed=0, regex="[0-9]{3}"),
            unmask.SamplingParams(seed=0, json_schema={"type": "array", "items": {"type": "integer"}, "maxItems": 3}),
            unmask.SamplingParams(seed=0, choices=("yes", "no")),
        ],
    )
    assert re.fullmatch("[0-9]{3}", results[0].text)
    assert isinstance(json.loads(results[1].text), list)
    assert results[2].text in ("yes", "no")
    assert [r.finish_reason for r in results] == ["eos"] * 3


@pytest.mark.parametrize(
    "policy",
    [
        "wino(tau_in=0.2,tau_out=0.99)",
        "saber(n=4)",
        "credit(tau=0.05)",
        "apd(r=0,preset=reference)",
        "edit(threshold(tau=0.2))",
    ],
)
def test_policies_that_remask_or_choose(policy):
    names = ("record", "anyOf", "phone")
    params = [unmask.SamplingParams(temperature=1.0, seed=3, **CASES[name]) for name in names]
    for name, result in zip(names, model("random").generate(["Fill it."] * 3, 32, policy, params=params), strict=True):
        assert valid(CASES[name], result.text), (name, result.text)


@pytest.mark.parametrize("after", [1, 6])
def test_an_unfinished_response_can_always_be_completed(after):
    """Given up anywhere and filled on from there with another policy: still valid."""
    lm, length, case = model("random"), 32, CASES["record"]
    [request] = lm.requests("Fill it.", length, "hierarchical(low=0)", temperature=1.0, seed=after, **case)
    engine = lm.engine()
    engine.add(request)
    steps = [event for _ in range(after) for event in engine.step()]
    tokens = steps[-1].canvas.tokens[0, len(request.prompt) :].tolist()
    fixed = {at: i for at, i in enumerate(tokens) if i != lm.denoiser.spec.mask}
    assert 0 < len(fixed) < length
    [result] = lm.generate("Fill it.", length, "vanilla(steps=8)", fixed=fixed, **case)
    assert valid(case, result.text)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("policy", "cache"),
    [
        ("threshold(tau=0.2)", "blockwise"),
        ("edit(threshold(tau=0.1),tau_edit=0.1)", "none"),
        ("ahead(threshold(tau=0.1),add=0.5)", "blockwise"),
    ],
)
def test_block_models(policy, cache, whole):
    """Also where the last block is filled beyond the response; no text is shorter than that."""
    lm, length = tiny(block=8, whole=whole), 11
    moves = {at: {7 + (at + i) % 3: at + 1 for i in (0, 1)} for at in range(length)}
    made = Automaton.from_transitions(moves, {length}, lm.spec.vocab, lm.spec.eos)
    for temperature in (0.0, 1.0):
        engine = Engine(lm)
        params = unmask.SamplingParams(seed=1, temperature=temperature)
        engine.add(
            Request(0, [3, 4, 5], length, registry.policy(policy), registry.cache(cache), params, constraint=made)
        )
        [outcome] = drain(engine)
        assert outcome.error is None
        assert made.accepts(outcome.tokens)


def test_infill_matches_as_a_whole(lm):
    text = '{"name": "[MASK*6]", "age": [MASK*2]}[MASK*3]'
    [result] = lm.infill(text, "threshold", json_schema=SCHEMAS["record"])
    assert valid(CASES["record"], result.text)
    assert result.text.startswith('{"name": "')
    with pytest.raises(RequestError, match="front"):
        lm.infill("[1, [MASK*2]]", json_schema=SCHEMAS["record"])
    with pytest.raises(RequestError, match="given tokens"):
        lm.infill('{"name": "[MASK*2]", "years": [MASK*2]}', json_schema=SCHEMAS["record"])


def test_the_least_length_that_fits_is_said_and_fits(lm):
    with pytest.raises(RequestError, match="gen_length") as raised:
        lm.generate(
            "Count.", 3, json_schema=SCHEMAS["strict range"] | {"exclusiveMinimum": 99999, "exclusiveMaximum": 10**6}
        )
    least = int(str(raised.value).rsplit(" ", 1)[-1])
    assert least > 3
    [result] = lm.generate("Count.", least, regex=f"1[0-9]{{{least - 1}}}")
    assert result.finish_reason == "length"


def test_suppressed_tokens_are_never_part_of_a_path(lm):
    [result] = lm.generate("Count.", 8, "threshold", choices=["12", "34"], suppress=["1"])
    assert result.text == "34"
    with pytest.raises(RequestError, match="suppressed"):
        lm.generate("Count.", 8, choices=["12"], suppress=["1"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"regex": "("}, "regex"),
        ({"regex": r"[^\s\S]"}, "no text"),
        ({"regex": 3}, "regex"),
        ({"json_schema": {"not": {}}}, "not"),
        ({"json_schema": False}, "no text"),
        ({"json_schema": "{"}, "json_schema"),
        ({"json_schema": 3}, "json_schema"),
        ({"choices": [""]}, "choices"),
        ({"choices": 3}, "choices"),
        ({"regex": "a", "choices": ["a"]}, "choices"),
    ],
)
def test_bad_constraints_are_refused(lm, given, named):
    with pytest.raises(RequestError, match=named):
        lm.generate("Count.", 8, **given)


def test_a_character_that_no_token_writes_is_named():
    from unmask.constraints.compile import _made
    from unmask.constraints.syntax import text

    with pytest.raises(RequestError, match="é"):
        _made("choices", text("abé"), WORDS)


def test_a_constraint_is_compiled_once(lm, monkeypatch):
    from unmask.constraints import compile as made

    lm.generate("Count.", 8, regex="[a-f]{2}")
    monkeypatch.setattr(made, "compiled", lambda *_: pytest.fail("compiled again"))
    lm.generate("Count.", 8, regex="[a-f]{2}")


def test_unconstrained_rows_do_nothing_more(lm, monkeypatch):
    from unmask.constraints.batch import Constraints as rows

    monkeypatch.setattr(rows, "search", lambda *_: pytest.fail("searched"))
    monkeypatch.setattr(rows, "hold", lambda *_: pytest.fail("held"))
    lm.generate("Count.", 8, "threshold")


# --- reads


def test_choices_are_scored_in_one_forward_pass(lm, monkeypatch):
    calls = []
    monkeypatch.setattr(type(lm.denoiser), "__call__", counted(calls, type(lm.denoiser).__call__))
    question = "Amy has 3 apples. She buys 4 more, and then 5 more. How many apples does Amy have?"
    [[plain], [longer]] = (
        lm.score_choices(question, f"3+4=7\n7+5={end}\nAnswer: [MASK]", choices)
        for end, choices in (("12", ["12", "13", "30"]), ("12", ["12", "1", "120"]))
    )
    assert len(calls) == 2
    assert max(plain, key=plain.get) == "12"
    assert sum(plain.values()) == pytest.approx(1)
    assert set(longer) == {"12", "1", "120"}


def counted(calls, call):
    def run(*args, **given):
        calls.append(1)
        return call(*args, **given)

    return run


def test_each_gap_has_choices_of_its_own(lm):
    found = lm.score_choices(None, "[1, [MASK], [MASK]]", [["2", "3"], ["4", "5", "6"]])
    assert [list(own) for own in found] == [["2", "3"], ["4", "5", "6"]]
    assert lm.score_choices(None, "[1, [MASK], [MASK]]", ["2", "3"])[0] == pytest.approx(found[0])


@pytest.mark.parametrize(
    ("template", "choices", "named"),
    [
        ("no gap", ["a", "b"], "gap"),
        ("[MASK*3]", ["a", "b"], "template"),
        ("x[MASK]", [], "choices"),
        ("x[MASK]", ["a"], "choices"),
        ("x[MASK]", ["a", 3], "choices"),
        ("x[MASK][MASK]", [["a", "b"]], "choices"),
        ("x[MASK][MASK]", ["a", "bcd"], "tokens"),
    ],
)
def test_bad_reads_are_refused(lm, template, choices, named):
    with pytest.raises(RequestError, match=named):
        lm.score_choices("Count.", template, choices)
