"""recipes/block: who sees whom in training, and that the trainer's decoders see the same."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.models.hub import BUNDLED

ROOT = Path(__file__).parents[1]
runpy.run_path(str(ROOT / "recipes" / "block" / "accuracy.py"), run_name="accuracy")
data, decode, evaluate, folder, model_, streams = (
    sys.modules[name] for name in ("data", "decode", "evaluate", "folder", "model", "streams")
)
TINY = BUNDLED["unmask-tiny"]
B = 16


@pytest.fixture(scope="module")
def model():
    made = model_.load(TINY).eval()
    made.config["precision"] = "fp32"  # the decoders calculate in float32
    return made


@pytest.fixture(scope="module")
def source():
    mix = {"word_problem": 1.0, "waiting_line": 1.0, "sudoku": 1.0}
    return streams.Streams(data.load_tokenizer(TINY), 2048, 5, mix)


@pytest.fixture(scope="module")
def prompts(source):
    return [source._problem()[0] for _ in range(5)]


def logits(model, stream):
    """Of each entry, ``[T, V]``."""
    ids, _, _, sees, place = streams.stacked([stream])
    with torch.no_grad():
        return model(ids, None, sees, place)[0, : len(stream)]


def changed(stream, entry):
    """The same with another token there."""
    ids = stream.ids.copy()
    ids[entry] = 300 if ids[entry] != 300 else 301
    return streams.Stream(**{**vars(stream), "ids": ids})


def differ(model, stream, entry):
    """Entries whose logits depend on the token of one."""
    return ((logits(model, stream) - logits(model, changed(stream, entry))).abs().amax(-1) > 1e-5).numpy()


# --- who sees whom


def test_visibility_of_a_small_block_stream():
    """Prompt of 3, response of 3, blocks of 2: the first block of queries opens with the prompt's last token."""
    text, masked = np.arange(10, 16), np.array([0, 0, 0, 1, 1, 0], dtype=bool)
    ids = data.Ids(0, 1, 2, 3, 4)
    made = streams.block_stream(text, 3, masked, np.ones(6), 2, ids)
    assert made.ids.tolist() == [10, 11, 12, 13, 12, 0, 0, 15]
    assert made.position.tolist() == [0, 1, 2, 3, 2, 3, 4, 5]
    assert made.weight.tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    sees = streams.visible(*(torch.from_numpy(a) for a in (made.rank, made.limit, made.group)))
    assert sees.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 1],
        [1, 1, 1, 1, 0, 0, 1, 1],
    ]


def test_visibility_of_a_small_order():
    """Places 0, 1 and 3 are given; 2, 4 and 5 follow, the last two at once."""
    text, given = np.arange(10, 16), np.array([1, 1, 0, 1, 0, 0], dtype=bool)
    made = streams.order_stream(text, given, np.array([0, 0, 1]), np.ones(6), data.Ids(0, 1, 2, 3, 4))
    assert made.ids.tolist() == [10, 11, 12, 13, 14, 0, 0, 0]
    assert made.target[-3:].tolist() == [12, 14, 15]
    sees = streams.visible(*(torch.from_numpy(a) for a in (made.rank, made.limit, made.group)))
    assert sees.int().tolist() == [
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 0, 0, 0, 1],
    ]


# --- what the logits depend on


def test_a_block_depends_on_no_later_one_and_on_no_masked_copy_of_an_earlier_one(model, source):
    prompt, answer = source._problem()
    stream = source._block(prompt, answer)
    content, block = stream.rank >= 0, stream.position // B
    for lower in range(len(prompt) // B, block.max() + 1):
        masked_copy = np.flatnonzero(~content & (block == lower))[-1]
        assert (differ(model, stream, masked_copy) == (~content & (block == lower))).all()
        if lower < block.max():
            clean = np.flatnonzero(content & (block == lower))[0]
            assert (differ(model, stream, clean) == ((block > lower) | (content & (block == lower)))).all()


def test_an_order_depends_on_what_comes_before(model, source):
    prompt, answer = source._problem()
    for _ in range(4):
        stream = source._order(prompt, answer)
        content = np.flatnonzero(stream.rank >= 0)
        query = stream.rank < 0
        assert (stream.limit[query] < np.arange(1, query.sum() + 1)).all()  # never what it is to predict, or later
        for entry in content[[0, len(content) // 2, -1]]:
            moved = differ(model, stream, entry)
            assert (moved == (stream.limit >= stream.rank[entry])).all()
        masked = np.flatnonzero(query)[0]
        assert np.flatnonzero(differ(model, stream, masked)).tolist() == [masked]  # no other sees a query


def test_all_blocks_at_once_are_each_block_by_itself(model, source):
    prompt, answer = source._problem()
    stream = source._block(prompt, answer)
    content, block, together = stream.rank >= 0, stream.position // B, logits(model, stream)
    for lower in range(len(prompt) // B, block.max() + 1):
        inside = ~content & (block == lower)
        tokens = np.concatenate([stream.ids[content & (block < lower)], stream.ids[inside]])
        number = torch.arange(len(tokens)) // B
        with torch.no_grad():
            alone = model(torch.from_numpy(tokens)[None], None, (number <= number[:, None])[None])[0, lower * B :]
        assert (alone - together[torch.from_numpy(inside)]).abs().max() < 1e-4


def test_padding_changes_nothing(model, source):
    made = [source._block(*source._problem()) for _ in range(3)]
    ids, _, weight, sees, place = streams.stacked(made)
    assert ids.shape[1] % streams.STEP == 0
    with torch.no_grad():
        together = model(ids, None, sees, place)
    for row, stream in enumerate(made):
        assert (together[row, : len(stream)] - logits(model, stream)).abs().max() < 1e-4
        assert not weight[row, len(stream) :].any()


# --- what a batch holds


def test_batches_of_every_kind(source):
    seen = {}
    for batch in source:
        seen.setdefault(batch.kind, batch)
        if len(seen) == len(streams.KINDS):
            break
    mask = source.ids.mask
    for kind, batch in seen.items():
        ids, targets, weights, *attention = batch
        assert ids.numel() >= 0.5 * source.tokens
        assert len(attention) == (0 if kind == "full" else 2)
        learnt = weights > 0
        assert kind == "full" or learnt.any(1).all()
        assert (ids[learnt] == mask).all()
        assert not (targets[learnt] == mask).any()


def test_each_block_of_a_response_has_something_to_learn(source):
    for _ in range(50):
        prompt, answer = source._problem()
        stream = source._block(prompt, answer)
        learnt = stream.weight > 0
        first, last = len(prompt) // B, (len(prompt) + len(answer)) // B
        assert set(stream.position[learnt] // B) == set(range(first, last + 1))
        assert stream.position[learnt].min() >= len(prompt)
        assert stream.position.max() < (last + 1) * B


# --- decoders


def test_one_long_block_is_full_attention(model, source, prompts):
    length = 24
    theirs = evaluate.decode(model, source.ids, prompts, length, None)
    ours = decode.by_block(model, source.ids, prompts, length, 4096)
    assert (ours.answers, ours.passes) == theirs


def test_blocks_of_one_follow_the_order_of_the_text(model, source, prompts):
    """Blocks of one position: what autoregressive decoding under a causal mask writes, a masked token asking."""
    made = decode.by_block(model, source.ids, prompts[:2], 12, 1)
    for prompt, answer in zip(prompts, made.answers, strict=False):
        text = list(prompt)
        for _ in range(12):
            ids = torch.tensor([[*text, source.ids.mask]])
            causal = torch.ones(1, len(text) + 1, len(text) + 1, dtype=torch.bool).tril()
            with torch.no_grad():
                row = model(ids, None, causal)[0, -1]
            row[source.ids.mask] = -torch.inf
            text.append(int(row.argmax()))
        told = text[len(prompt) :]
        assert answer == (told[: told.index(source.ids.eos)] if source.ids.eos in told else told)


@pytest.mark.parametrize("kind", ["by_block", "by_order"])
def test_a_row_alone_is_the_row_in_a_batch(model, source, prompts, kind):
    more = (B,) if kind == "by_block" else ()
    run = getattr(decode, kind)
    together = run(model, source.ids, prompts, 20, *more)
    for row, prompt in enumerate(prompts):
        alone = run(model, source.ids, [prompt], 20, *more)
        assert (alone.answers[0], alone.passes[0]) == (together.answers[row], together.passes[row])


def test_what_by_order_asks_is_what_was_trained(model, source):
    """The first token of a response, of the oracle's row."""
    prompt, answer = source._problem()
    text, weight = source._text(prompt, answer, len(prompt) + len(answer) + 2)
    given = np.arange(len(text)) < len(prompt)
    stream = streams.order_stream(text, given, np.zeros(int((~given).sum()), dtype=np.int64), weight, source.ids)
    row = logits(model, stream)[torch.from_numpy(stream.rank < 0)]
    row[:, source.ids.mask] = -torch.inf
    first = decode.by_order(model, source.ids, [prompt], 1).answers[0]
    token = int(row[0].argmax())
    assert first == ([] if token == source.ids.eos else [token])


# --- the folder


def test_the_folder_reads_back(model, tmp_path):
    folder.write(model, TINY, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["block_size"]) == (["StableDiffcoderForCausalLM"], B)
    again = folder.read(tmp_path)
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
    assert (tmp_path / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


def test_it_learns(tmp_path, monkeypatch):
    """A minute's thousandth: steps of every kind, a checkpoint, and on from there."""
    learn = runpy.run_path(str(ROOT / "recipes" / "block" / "learn.py"), run_name="learn")
    args = ["learn", "--run", str(tmp_path), "--tokens", "512", "--minutes", ".01", "--threads", "1", "--no-compile"]
    monkeypatch.setattr(sys, "argv", [*args, "--init", str(TINY), "--tokenizer", str(TINY)])
    options = sys.modules["train"].parse("", "")
    monkeypatch.setattr(learn["BlockRun"], "evaluate", lambda self: None)
    learn["train"](learn["BlockRun"], options)
    run = learn["BlockRun"](options)
    assert run.step >= 1
    assert run.seconds >= 0.6
    assert folder.read(tmp_path / "export").config["mask_token_id"] == 0
