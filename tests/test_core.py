"""Canvas, rows, picks, stores and the spec grammar against naive versions of themselves."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import CACHES, EOS, MASK, PAD, POLICIES, SPEC, Chaos, Request, admit, decode, drain, laid_out, tiny
from pairwise import combined
from refusals import refuses
from unmask import RequestError, SpecError, UnmaskError, registry
from unmask.caches.none import NoCache
from unmask.core import pick
from unmask.core.canvas import Canvas, ModelSpec, Update
from unmask.core.config import Configured, Spec, accepted, param, parse
from unmask.core.rows import Rows, bucket, gather, partition
from unmask.core.state import Slab, append, row_bytes, select
from unmask.core.store import Store, put
from unmask.engine.loop import step
from unmask.engine.scheduler import Engine

CPU = torch.device("cpu")

# --- canvas ---------------------------------------------------------------------------------------------------

WORDS = list(range(10))
row_texts = st.tuples(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
    st.lists(st.sampled_from([MASK, MASK, 1, 2, EOS, 59]), min_size=1, max_size=9),
    st.booleans(),
)


def canvas_of(rows: list[tuple[list[int], list[int], bool]]) -> Canvas:
    """A canvas in the middle of decoding: prompts, and responses with masks left."""
    blank = Canvas.blank([p for p, _, _ in rows], [len(r) for _, r, _ in rows], SPEC, eos_stop=[e for *_, e in rows])
    tokens = blank.tokens.clone()
    for i, (prompt, response, _) in enumerate(rows):
        tokens[i, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    return replace(blank, tokens=tokens)


def true(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


@given(st.lists(row_texts, min_size=1, max_size=4), st.one_of(st.none(), st.integers(1, 12)))
def test_canvas_derives(rows: list[tuple[list[int], list[int], bool]], size: int | None) -> None:
    canvas = canvas_of(rows)
    total = canvas.tokens.shape[1]
    assert total == max(len(p) + len(r) for p, r, _ in rows)
    for i, (prompt, response, stop) in enumerate(rows):
        text = prompt + response
        start = len(prompt)
        assert canvas.tokens[i].tolist() == text + [PAD] * (total - len(text))
        assert true(canvas.valid[i]) == list(range(len(text)))
        assert true(canvas.response[i]) == list(range(start, len(text)))
        masks = [at for at, token in enumerate(text) if token == MASK]
        ends = [at for at, token in enumerate(text) if token in SPEC.eos and at >= start]
        assert int(canvas.eos_at[i]) == (ends[0] if ends else total)
        if stop and ends and (not masks or ends[0] < masks[0]):
            masks = []
        assert true(canvas.masked[i]) == masks
        assert bool(canvas.done[i]) == (not masks)
        assert int(canvas.frontier[i]) == (masks[0] if masks else total)
        block: list[int] = []
        if masks:
            low = start if size is None else start + (masks[0] - start) // size * size
            block = list(range(low, len(text) if size is None else min(len(text), low + size)))
            assert int(canvas.block_start(size)[i]) == low
        assert true(canvas.block(size)[i]) == block


@given(st.lists(row_texts, min_size=1, max_size=3), st.data())
def test_canvas_applies_updates(rows: list[tuple[list[int], list[int], bool]], data: st.DataObject) -> None:
    canvas = canvas_of(rows)
    shape = canvas.tokens.shape
    bits = st.lists(st.booleans(), min_size=shape.numel(), max_size=shape.numel())
    write, remask = (torch.tensor(data.draw(bits)).view(shape) for _ in range(2))
    token = torch.arange(shape.numel()).view(shape) % 50
    _ = canvas.valid, canvas.masked, canvas.done
    before = canvas.tokens.clone()
    after = canvas.apply(Update(write, token, remask if data.draw(st.booleans()) else None))
    assert torch.equal(canvas.tokens, before), "a canvas is immutable"
    fresh = replace(after, tokens=after.tokens.clone())
    for name in ("valid", "response", "masked", "done", "frontier", "eos_at", "position"):
        assert torch.equal(getattr(after, name), getattr(fresh, name)), f"{name} is stale"
    plain = canvas.apply(Update(write, token))
    assert torch.equal(plain.tokens[write], token[write])
    assert torch.equal(plain.tokens[~write], before[~write])
    again = canvas.apply(Update(write, token, remask))
    assert (again.tokens[remask] == MASK).all()
    assert torch.equal(again.tokens[~remask], plain.tokens[~remask])


@pytest.mark.parametrize(
    ("prompt", "length", "words"),
    [
        ([], 1, ["prompt", "empty"]),
        ([1], 0, ["gen_length", "0"]),
        ([1] * 60, 5, ["65", "64"]),
        ([-1, 3], 1, ["-1", "0 to 63"]),
        ([1, 64], 1, ["64", "0 to 63"]),
        ([2, MASK], 1, ["mask", str(MASK)]),
    ],
)
def test_the_engine_refuses(prompt: list[int], length: int, words: list[str]) -> None:
    """One error that names the request; nothing is queued, and the engine goes on."""
    engine = Engine(tiny())
    with refuses(RequestError, *words) as error:
        engine.add(Request("odd", prompt, length).to("vanilla", "none"))
    assert error.value.row == "odd"
    assert not engine.busy
    engine.add(Request("odd", [1, 2], 3).to("vanilla", "none"))
    assert [outcome.finish_reason for outcome in drain(engine)] in (["eos"], ["length"])


def test_canvas_fills_the_context_exactly() -> None:
    row = decode(tiny(), "threshold(tau=0)", "dual", [Request(0, [1] * 60, 4), Request(1, [2], 63)])
    assert [len(r.tokens) for r in row.values()] == [64, 64]


# --- rows -----------------------------------------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn, rows: int | None = None, total: int | None = None) -> Tensor:
    rows, total = rows or draw(st.integers(1, 4)), total or draw(st.integers(1, 9))
    bits = draw(st.lists(st.booleans(), min_size=rows * total, max_size=rows * total))
    return torch.tensor(bits).view(rows, total)


@given(st.data())
def test_gather_lays_out_every_position_once(data: st.DataObject) -> None:
    compute = data.draw(masks())
    total = compute.shape[1]
    keys = data.draw(masks(len(compute), total))
    rows = gather(compute, keys)
    assert rows.total == total
    assert rows.position.shape == (len(compute), rows.slots)
    assert rows.slots == max(1, int(compute.sum(1).max()))
    for i in range(len(compute)):
        real = rows.position[i].tolist() if rows.real is None else rows.position[i][rows.real[i]].tolist()
        assert real == true(compute[i])
        assert all(p == total for p in rows.position[i].tolist()[len(real) :])
        seen = list(range(rows.extent)) if rows.keys is None else true(rows.keys[i])
        assert seen == true(keys[i])
    assert rows.whole == bool(compute.all())
    reach = [p + 1 for p in true(keys.any(0))]
    assert rows.extent == max(reach, default=0)


@given(st.lists(st.integers(0, 40).map(float), min_size=1, max_size=5), st.sampled_from([0.0, 3.0, 48.0, 1e9]))
def test_partition_is_the_cheapest_there_is(work: list[float], tile_cost: float) -> None:
    def cost(groups: list[list[int]]) -> float:
        return sum(tile_cost + len(group) * max(work[i] for i in group) for group in groups)

    groups = partition(work, tile_cost)
    assert sorted(i for group in groups for i in group) == list(range(len(work)))
    for labels in product(range(3), repeat=len(work)):
        other = [[i for i, label in enumerate(labels) if label == group] for group in set(labels)]
        assert cost(groups) <= cost(other)


@given(st.lists(st.integers(0, 40).map(float), min_size=1, max_size=20), st.sampled_from([1.0, 50.0, 120.0]))
def test_partition_keeps_groups_small(work: list[float], most: float) -> None:
    groups = partition(work, 10.0, most)
    assert sorted(i for group in groups for i in group) == list(range(len(work)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(work[i] for i in group) <= most


def plain_partition(work: list[float], tile_cost: float, most: float) -> list[list[int]]:
    """Every beginning of a group tried for every end; the first of equals."""
    order = sorted(range(len(work)), key=work.__getitem__)
    best, begin = [0.0], [0]
    for end, row in enumerate(order, start=1):
        fitting = [s for s in range(end) if s == end - 1 or (end - s) * work[row] <= most]
        cost, start = min((best[s] + tile_cost + (end - s) * work[row], s) for s in fitting)
        best.append(cost)
        begin.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[begin[end] : end]))
        end = begin[end]
    return groups


@given(
    st.one_of(
        st.lists(st.integers(0, 9).map(float), max_size=60),
        st.lists(st.integers(0, 4000).map(lambda quarters: quarters / 4), max_size=60),
        st.lists(st.integers(0, 12).map(lambda power: 2.0**power), max_size=60),
    ),
    st.sampled_from([0.0, 0.5, 3.0, 48.0, 256.0, 1e9]),
    st.sampled_from([1.0, 30.0, 500.0, 4096.0, math.inf]),
)
def test_partition_is_the_plain_one(work: list[float], tile_cost: float, most: float) -> None:
    """The same groups, ties included."""
    assert partition(work, tile_cost, most) == plain_partition(work, tile_cost, most)


def test_partition_of_many_rows_is_the_plain_one() -> None:
    draw = random.Random(0)
    for scale, tile_cost, most in product((8, 366), (1.0, 48.0), (4096.0, math.inf)):
        work = [draw.randrange(scale) ** 2 / scale for _ in range(500)]
        assert partition(work, tile_cost, most) == plain_partition(work, tile_cost, most)


@given(st.data())
def test_tiles_split_the_rows_and_lay_out_each_as_gather_does(data: st.DataObject) -> None:
    compute = data.draw(masks())
    keys = compute | data.draw(masks(*compute.shape))
    parts = laid_out(compute, keys, 30.0 * compute.sum(1))
    busy = [i for i, row in enumerate(compute) if row.any()]  # the others are in no part
    assert sorted(i for part in parts for i in part.members) == (busy or [0])
    for part in parts:
        members = list(part.members)
        assert part.of(compute).equal(compute[members])
        assert len(parts) == 1 if part.row is None else part.row.tolist() == members
        alone = gather(compute[members], keys[members])
        assert part.position.equal(alone.position) and part.extent == alone.extent
        slab = Slab(len(compute), compute.shape[1] + 3, (1,), torch.zeros(0))
        put(slab, part, torch.ones(len(members), part.slots, 1))
        store = slab.data[:, : compute.shape[1] + 1]
        assert set(true((store[:, :-1, 0] > 0).any(1))) <= set(members)
        assert (store[members, :-1, 0] > 0).equal(compute[members])


@given(st.data())
def test_put_writes_where_the_slots_are(data: st.DataObject) -> None:
    compute = data.draw(masks())
    batch, total = compute.shape
    rows = gather(compute, compute)
    slab = Slab(batch, total + 2, (2,), torch.zeros(0))
    store = slab.data
    fresh = torch.arange(1.0, batch * rows.slots * 2 + 1).view(batch, rows.slots, 2)
    put(slab, rows, fresh)
    for i in range(batch):
        slots = {p: j for j, p in enumerate(rows.position[i].tolist()) if p < total}
        for position in range(total):
            expected = fresh[i, slots[position]].tolist() if position in slots else [0.0, 0.0]
            assert store[i, position].tolist() == expected
    at = torch.arange(batch)[:, None].flip(0) % total
    put(slab, rows, -torch.ones(batch, 1, 2), at)
    assert all(store[i, int(at[i])].tolist() == [-1.0, -1.0] for i in range(batch))


@pytest.mark.parametrize(
    ("count", "total", "cuda"), [(1, 999, 8), (8, 999, 8), (9, 12, 12), (65, 999, 96), (513, 9999, 640), (70, 70, 70)]
)
def test_bucket(count: int, total: int, cuda: int) -> None:
    assert bucket(count, total, CPU) == count
    assert bucket(count, total, torch.device("cuda")) == cuda


@dataclass(frozen=True)
class Inner:
    wide: Tensor
    deep: list[Tensor]
    name: str = "x"


@dataclass(frozen=True)
class Outer:
    row: Tensor
    inner: Inner
    more: list[Inner]
    nothing: None = None
    number: int = 3


def state_of(rows: range, total: int) -> Outer:
    """Leaves that tell their row and position, widths that follow T, and widths that do not."""
    row = torch.tensor(list(rows))
    wide = row[:, None] * 100 + torch.arange(total) + 1
    inner = Inner(wide, [wide[:, :, None].repeat(1, 1, 2), row[:, None].repeat(1, 4)])
    return Outer(row, inner, [inner, inner])


def leaves(state: Outer) -> list[Tensor]:
    return [state.row, *(leaf for i in [state.inner, *state.more] for leaf in (i.wide, *i.deep))]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.data())
def test_rows_move_in_and_out_of_any_state(a: int, b: int, t1: int, t2: int, data: st.DataObject) -> None:
    first, second = state_of(range(a), t1), state_of(range(a, a + b), t2)
    both = append(first, second)
    assert both.row.tolist() == list(range(a + b))
    assert both.inner.wide.shape == (a + b, max(t1, t2))
    assert both.more[1].deep[0].shape == (a + b, max(t1, t2), 2)
    assert both.inner.deep[1].shape == (a + b, 4)
    for row in range(a + b):
        width = t1 if row < a else t2
        expected = [row * 100 + t + 1 for t in range(width)]
        assert both.inner.wide[row].tolist() == expected + [0] * (max(t1, t2) - width)
    keep = data.draw(st.lists(st.integers(0, a + b - 1), min_size=1, max_size=6))
    some = select(both, keep)
    for before, after in zip(leaves(both), leaves(some), strict=True):
        assert torch.equal(after, before[keep])
    assert (some.nothing, some.number, some.inner.name) == (None, 3, "x")
    back = select(both, range(a))
    if t1 >= t2:
        assert all(torch.equal(x, y) for x, y in zip(leaves(back), leaves(first), strict=True))


def test_unlike_states_do_not_mix() -> None:
    state = state_of(range(2), 3)
    with refuses(TypeError, "NoneType", "Tensor"):
        append(state, replace(state, row=None))
    with refuses(TypeError, "Inner", "Outer"):
        append(state, state.inner)


@combined(apart=("policy", "kept"), policy=POLICIES, kept=CACHES)
def test_every_leaf_of_every_state_is_a_row(policy: str, kept: str) -> None:
    """What continuous batching rests on."""
    requests = [Request(i, [1] * (i + 1), 6 + i, ignore_eos=True) for i in range(3)]
    model, cache, how = tiny(), registry.cache(kept), registry.policy(policy)
    state = admit(model, cache, how, requests)
    for index in range(2):
        assert {len(leaf) for leaf in tensors(state)} == {3}
        state, _ = step(model, cache, how, state, index)


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Slab):
        return [state.data.unflatten(0, (-1, state.copies))]
    if dataclasses.is_dataclass(state):
        return [leaf for f in dataclasses.fields(state) for leaf in tensors(getattr(state, f.name))]
    return [leaf for part in state for leaf in tensors(part)] if isinstance(state, list) else []


def test_store_grows_and_learns() -> None:
    canvas = Canvas.blank([[1, 2]], [3], SPEC)
    like = torch.zeros(0, dtype=torch.float64)
    store = Store.empty(canvas, tiny(), like)
    assert (store.key[0].data.shape[1], len(store.key), store.key[0].data.dtype) == (6, 2, torch.float64)
    store.key[0].data[0, :5] = 1.0
    for slab in (*store.key, *store.value):
        slab.reserve(1, 9)
    assert store.key[0].data.shape == (1, 9, *store.key[0].tail)
    assert (store.key[0].data[0, :5] == 1).all() and (store.key[0].data[0, 5:] == 0).all()
    assert not store.known.any()
    assert store.learn(canvas, canvas.valid).known.tolist() == [[True] * 5]


# --- picks ----------------------------------------------------------------------------------------------------

scores = st.lists(
    st.lists(st.sampled_from([-torch.inf, 0.0, 0.25, 0.5, 0.5, 0.75, 1.0]), min_size=5, max_size=5),
    min_size=1,
    max_size=4,
)


@given(scores, st.lists(st.integers(0, 7), min_size=4, max_size=4))
def test_picks(values: list[list[float]], counts: list[int]) -> None:
    score = torch.tensor(values, dtype=torch.float64)
    for i, line in enumerate(values):
        order = sorted((j for j, v in enumerate(line) if v > -torch.inf), key=lambda j: (-line[j], j))
        assert true(pick.best(score)[i]) == order[:1]
        for count in (0, 1, 3):
            assert true(pick.top(score, count)[i]) == sorted(order[:count])
        per_row = torch.tensor(counts[: len(values)])
        assert true(pick.top(score, per_row)[i]) == sorted(order[: counts[i]])
        for threshold in (-1.0, 0.0, 0.5, 0.6, 2.0):
            reach = [j for j, v in enumerate(line) if v > -torch.inf and v >= threshold]
            assert true(pick.at_least(score, threshold)[i]) == reach
        limits = torch.linspace(0, 1, len(values), dtype=torch.float64)
        reach = [j for j, v in enumerate(line) if v > -torch.inf and v >= float(limits[i])]
        assert true(pick.at_least(score, limits)[i]) == reach


# --- specs ----------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_\-]{0,8}", fullmatch=True).filter(
    lambda n: n not in ("true", "false", "none")
)
atoms = st.one_of(
    st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()
)


def specs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Spec]:
    pairs = st.lists(st.tuples(names, values), max_size=3, unique_by=lambda pair: pair[0]).map(tuple)
    return st.builds(Spec, names, st.lists(values, max_size=3).map(tuple), pairs)


any_spec = st.recursive(atoms, lambda inner: st.one_of(atoms, specs(inner)), max_leaves=8)


@given(specs(any_spec), st.data())
def test_specs_survive_being_written_down(spec: Spec, data: st.DataObject) -> None:
    text = str(spec)
    assert parse(text) == spec
    spaced = "".join(f" {c} " if c in "(),=" else c for c in text)
    assert parse(spaced) == spec
    assert str(parse(spaced)) == text


@given(st.text(alphabet="ab1.(),=- nonetrue", max_size=14))
def test_any_text_parses_or_says_why(text: str) -> None:
    try:
        spec = parse(text)
    except SpecError as error:
        assert repr(text) in str(error)  # noqa: PT017
    else:
        assert parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["dual", "dual()", " dual ( ) ", "every(dual,4)", "every(cache=dual,n=4,)"])
def test_grammar_accepts(text: str) -> None:
    assert parse(text).name in ("dual", "every")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        ("(", "'('"),
        ("3", "'3'"),
        ("a(", "')'"),
        ("a(1", "')'"),
        ("a(1))", "')'"),
        ("a b", "'b'"),
        ("a(b=1,2)", "name"),
        ("a(b=1,b=2)", "b"),
        ("a(1 2)", "found '2'"),
        ("a(b=)", "found ')'"),
        ("a(,)", "found ','"),
        ("a(b=1;c=2)", "';c=2)'"),
        ("a(b=%)", "'%)'"),
    ],
)
def test_grammar_refuses(text: str, found: str) -> None:
    with refuses(SpecError, repr(text), found) as error:
        parse(text)
    assert isinstance(error.value, UnmaskError)


@pytest.mark.parametrize("kind", ["policy", "cache"])
def test_registered_things_round_trip(kind: str) -> None:
    build = {"policy": registry.policy, "cache": registry.cache}[kind]
    for text in POLICIES if kind == "policy" else CACHES:
        made = build(text)
        assert build(str(made)) == made
        assert build(parse(text)) == made
        assert build(made) is made or build(made) == made
        assert made.name == text.partition("(")[0]
        assert made.paper
        assert type(made).__doc__
        assert registry.lookup(kind, made.name) is type(made)
        for field in dataclasses.fields(made):
            assert field.metadata["doc"]
            assert accepted(type(made), field.name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.name = "other"


def test_defaults_are_not_written_down() -> None:
    assert str(registry.policy("slowfast(tau_min=0.1,preset=paper,suffix=cached,sigma2=1.0)")) == "slowfast"
    assert str(registry.policy("slowfast(preset=reference,tau_min=0.3)")) == "slowfast(preset=reference)"
    assert str(registry.policy("threshold(0.9,32)")) == "threshold"
    assert str(registry.policy("threshold(0.9,none)")) == "threshold(block_length=none)"
    assert str(registry.cache("every(none,2)")) == "every(cache=none,n=2)"
    assert registry.cache("every(none,2)").cache == NoCache()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("policy", "vanila", ["policy", "'vanila'", "slowfast", "threshold", "vanilla"]),
        ("cache", "dualcache", ["cache", "'dualcache'", "dllm", "dual", "every", "none", "prefix"]),
        ("policy", "threshold(theta=1)", ["threshold", "'theta'", "tau", "block_length"]),
        ("policy", "factor(1,2,exact,3)", ["factor", 3, 4]),
        ("policy", "threshold(1,tau=2)", ["threshold", "tau"]),
        ("policy", "threshold(tau=2.5)", ["threshold", "tau", 2.5]),
        ("policy", "threshold(tau=-0.1)", ["threshold", "tau", -0.1]),
        ("policy", "threshold(tau=true)", ["threshold", "tau", True]),
        ("policy", "threshold(block_length=0)", ["threshold", "block_length", "none", "got 0"]),
        ("policy", "threshold(block_length=1.5)", ["threshold", "block_length", "none", 1.5]),
        ("policy", "slowfast(suffix=cut)", ["slowfast", "suffix", "truncate", "cached", "full", "'cut'"]),
        ("policy", "slowfast(suffix=cut(1))", ["slowfast", "suffix", "cut(1)"]),
        ("policy", "slowfast(sigma2=0)", ["slowfast", "sigma2", "got 0"]),
        ("cache", "dllm(kp=none)", ["dllm", "kp", None]),
        ("cache", "dllm(rho=1.01)", ["dllm", "rho", 1.01]),
        ("cache", "every(threshold,2)", ["cache", "'threshold'"]),
        ("cache", "every(dual,n=0)", ["every", "n", "got 0"]),
        ("cache", "every", ["every", "cache"]),
    ],
)
def test_bad_specs_say_what_is_accepted(kind: str, text: str, words: list[Any]) -> None:
    with refuses(SpecError, *words):
        {"policy": registry.policy, "cache": registry.cache}[kind](text)


@pytest.mark.parametrize("text", [*POLICIES, *CACHES])
def test_every_number_is_checked(text: str) -> None:
    """Whatever has a range refuses what lies outside it, NaN, infinities and other types."""
    kind = "policy" if text in POLICIES else "cache"
    made = {"policy": registry.policy, "cache": registry.cache}[kind](text)
    for field in dataclasses.fields(made):
        rule = field.metadata
        numeric = str(field.type).startswith(("int", "float"))
        wrong: list[Any] = ["word", float("nan"), float("inf"), True, [1]] if numeric else []
        wrong += [rule["ge"] - 1] if rule["ge"] is not None else []
        wrong += [rule["gt"]] if rule["gt"] is not None else []
        wrong += [rule["le"] + 1] if rule["le"] is not None else []
        wrong += ["word", 1] if rule["choices"] else []
        wrong += [] if rule["optional"] or not (numeric or rule["choices"]) else [None]
        for value in wrong:
            with refuses(SpecError, made.name, field.name):
                replace(made, **{field.name: value})


def test_accepted_words() -> None:
    @dataclass(frozen=True)
    class Thing(Configured):
        name = "thing"
        flag: bool = param(False, "a flag")
        part: float = param(0.5, "a part", gt=0, le=1)
        free: float = param(1.0, "anything")
        maybe: int | None = param(None, "maybe", ge=2, le=5)

    words = {f.name: accepted(Thing, f.name) for f in dataclasses.fields(Thing)}
    assert words == {
        "flag": "true or false",
        "part": "a number in (0, 1]",
        "free": "a number",
        "maybe": "an integer in [2, 5] or none",
    }
    assert str(Thing(flag=True, maybe=3)) == "thing(flag=true,maybe=3)"
    with refuses(SpecError, "thing", "flag", 1):
        Thing(flag=1)


def test_types_need_not_be_postponed() -> None:
    """A module without ``from __future__ import annotations`` has classes for types, not their names."""
    kinds = (
        (bool, "true or false", 1),
        (int, "an integer >= 0", 0.5),
        (float, "a number >= 0", "1"),
        (str, "a text without both kinds of quotes", 3),
    )
    for kind, words, wrong in kinds:
        field = ("value", kind, param(kind(), "it", ge=None if kind in (bool, str) else 0))
        made = dataclasses.make_dataclass("Made", [field], bases=(Configured,), namespace={"name": "made"}, frozen=True)
        assert accepted(made, "value") == words
        with refuses(SpecError, "made", "value"):
            made(wrong)


# --- the loop -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Idle(Chaos):
    """Never commits anything."""

    name = "idle"

    def decide(self, canvas: Canvas, prediction: Any, state: Any) -> tuple[Update, Any]:
        return Update(torch.zeros_like(canvas.valid), prediction.token), state


def test_a_policy_that_never_commits_is_stopped() -> None:
    """Its rows end with an error; a row of another policy beside them is what it is alone."""
    engine = Engine(tiny())
    engine.add(Request("stuck", [1], 3).to(Idle(), "none"))
    engine.add(Request("fine", [1, 2], 9).to("vanilla", "none"))
    outcomes = {event.request.id: event for event in drain(engine)}
    assert (outcomes["stuck"].finish_reason, outcomes["stuck"].tokens) == ("error", [MASK] * 3)
    assert "idle" in str(outcomes["stuck"].error)
    assert outcomes["stuck"].nfe == 4 * 3 + 16 + 1
    alone = decode(tiny(), "vanilla", "none", [Request(0, [1, 2], 9)])[0]
    assert outcomes["fine"].tokens[: alone.nfe] == alone.tokens[2:][: alone.nfe]


def test_no_requests_no_steps() -> None:
    engine = Engine(tiny())
    assert not engine.busy
    assert engine.step() == []


@pytest.mark.parametrize("kept", ["none", "dual", "dllm"])
def test_the_record_tells_each_tokens_forward(kept: str) -> None:
    requests = [Request(7, [1, 2], 9, ignore_eos=True), Request(3, [4], 5, ignore_eos=True), Request(5, [6, 7], 7)]
    rows = decode(tiny(), "threshold(tau=0.5,block_length=4)", kept, requests, batch_size=2)
    model, policy = tiny(), registry.policy("threshold(tau=0.5,block_length=4)")
    engine = Engine(model, batch_size=2)
    for request in requests:
        engine.add(request.to(policy, kept))
    for outcome in drain(engine):
        start = len(outcome.request.prompt)
        for forward, commit in enumerate(rows[outcome.request.id].commits):
            assert all(outcome.steps[position - start] == forward for position, _ in commit)
        assert outcome.nfe == rows[outcome.request.id].nfe
        assert engine.clock >= outcome.seconds > 0


@combined(apart=("policy", "kept"), policy=[p for p in POLICIES if "steps=" not in p], kept=CACHES, length=[1, 2, 3])
def test_shortest_responses(policy: str, kept: str, length: int) -> None:
    """dLLM-Cache's share of so few positions is none."""
    row = decode(tiny(), policy, kept, [Request(0, [1, 2, 3, 4], length, ignore_eos=True)])[0]
    assert MASK not in row.tokens


def test_specs_of_models_are_values() -> None:
    assert ModelSpec(1, (2,), 2, 9, 9, 8) == ModelSpec(1, (2,), 2, 9, 9, 8, shift=False)


def test_rows_know_their_slots() -> None:
    rows = gather(torch.tensor([[True, False, True]]), torch.tensor([[True, True, True]]))
    assert isinstance(rows, Rows)
    assert (rows.slots, rows.extent, rows.whole, rows.keys) == (2, 3, False, None)
    assert rows.index(4).tolist() == [0, 2]


def test_a_slab_that_stands_in_a_state_twice_is_one() -> None:
    """It joins, keeps and counts once, as its rows do."""
    first, second = (Slab(rows, 3, (2,), torch.zeros(0)) for rows in (2, 1))
    first.data[:], second.data[:] = torch.tensor([1.0, 2.0])[:, None, None], 3.0
    both = append([first, (first, torch.arange(2))], [second, (second, torch.arange(2, 3))])
    assert first.rows == first.capacity == 3
    assert row_bytes(both) == 3 * 2 * 4 + 8
    kept, (again, _) = select(both, [2, 0])
    assert kept is again is first
    assert first.data[:, 0, 0].tolist() == [3.0, 1.0]
