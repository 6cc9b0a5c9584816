"""The server under load: every response is what it is alone, and nobody suffers from others."""

import asyncio
import logging
import random

import httpx2
import pytest

from recipes.serve import client, mix
from serving import QUESTION, model, serving, wait_for
from unmask.engine.scheduler import Engine
from unmask.server.wire import Abort, packed

LONG = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "unmask": {"policy": "vanilla"}}


@pytest.fixture(scope="module")
def served():
    with serving() as running:
        yield running
        assert running.idle()


def crowd(served, jobs, concurrency, leave=lambda number: None):
    return asyncio.run(client.crowd(served.port, jobs, concurrency, leave))


@pytest.mark.slow
def test_every_response_under_load_is_what_it_is_alone(served):
    """Mixed policies, caches, lengths, temperatures, stop strings and streams; some clients leave."""
    draw = random.Random(0)
    made = mix.jobs(24, 1)
    numbers = [draw.randrange(len(made)) for _ in range(72)]
    leaving = set(draw.sample(range(72), 7))
    replies = crowd(served, [made[n] for n in numbers], 16, lambda n: 0.15 if n in leaving else None)
    expected = mix.alone(model(), made)
    stayed = [(expected[at], reply) for at, reply in zip(numbers, replies, strict=True) if not reply.left]
    assert len(stayed) >= 65
    assert {r.status for _, r in stayed} == {200}
    assert [r.text for _, r in stayed] == [text for text, _ in stayed]
    assert all(r.finish for _, r in stayed)
    assert served.idle()


@pytest.mark.slow
def test_a_budget_of_memory_lets_in_what_fits():
    made = [
        ("/v1/completions", {"prompt": "3+4=", "max_tokens": n, "unmask": {"cache": "dual", "policy": "vanilla"}})
        for n in range(8, 24)
    ]
    with serving(memory=0.4) as small:
        seen = set()
        small.service.worker.passed = seen.add
        replies = crowd(small, made, 16)
        assert [r.text for r in replies] == [
            r.text for r in model().generate(["3+4="] * 16, [*range(8, 24)], "vanilla", "dual", chat=False)
        ]
        assert max(seen) < 16
        big = small.post("/v1/completions", {**made[0][1], "max_tokens": 1500})
        assert (big.status_code, big.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_client_that_leaves_is_aborted_before_the_next_forward_pass(served):
    """Whether its reply is streamed or not."""
    for stream in (True, False):
        with httpx2.Client(base_url=served.url) as one:
            if stream:
                with one.stream(
                    "POST",
                    "/v1/completions",
                    json={**LONG, "stream": True, "unmask": {**LONG["unmask"], "stream": "steps"}},
                ) as reply:
                    next(reply.iter_bytes())
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    one.post("/v1/completions", json=LONG, timeout=0.3)
        assert served.idle()


def test_a_client_that_leaves_a_stream_is_in_the_log(served, caplog):
    logging.getLogger("unmask.server").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, logger="unmask.server"):
        asyncio.run(client.ask(served.port, "/v1/completions", {**LONG, "stream": True}, leave=0.3))
        assert wait_for(lambda: [r.getMessage() for r in caplog.records].count("request") == 1)
    (noted,) = [vars(r)["fields"] for r in caplog.records if r.getMessage() == "request"]
    assert (noted["status"], noted["error"]) == (200, "client_closed_request")
    assert served.idle()


def test_a_stream_whose_time_is_over_says_nothing_twice(served):
    body = {**LONG, "unmask": {"policy": "vanilla", "stream": "steps", "timeout": 0.4}}
    *events, last = served.events("/v1/completions", body)
    told = [event["choices"][0]["unmask"] for event in events]
    assert [one["event"] for one in told] == ["start"] + ["step"] * (len(told) - 1)
    assert [one["step"] for one in told[1:]] == [*range(len(told) - 1)] and len(told) > 1
    assert last["error"]["code"] == "timeout"
    assert served.idle()


def test_connections_are_used_again(served, monkeypatch):
    """By requests that come one after the other, after an error too; not the one of a client that left."""
    opened = []

    async def opening(*args, own=asyncio.open_connection, **more):
        opened.append(await own(*args, **more))
        return opened[-1]

    monkeypatch.setattr(asyncio, "open_connection", opening)
    body = {"prompt": "3+4=", "max_tokens": 8}
    jobs = [("/v1/completions", one) for one in (body, {**body, "stream": True}, {**body, "max_tokens": 0}, body)]
    assert [r.status for r in crowd(served, jobs, 1)] == [200, 200, 400, 200] and len(opened) == 1
    assert [r.left for r in crowd(served, jobs[:2], 1, lambda n: 0.001 if n == 0 else None)] == [True, False]
    assert len(opened) == 3
    assert served.idle()


def test_an_abort_comes_before_the_next_forward_pass(served, monkeypatch):
    """What the engine has been asked for is done before each step."""
    line, steps, own = served.service.worker.host.line, [], Engine.step

    def first(engine):
        steps.append(1)
        assert wait_for(lambda: served.service.worker.busy)
        line.send(packed(Abort([*served.service.worker._tickets])))
        return own(engine)

    monkeypatch.setattr(Engine, "step", first)
    reply = served.post("/v1/completions", {**LONG, "n": 3})
    assert len(steps) == 2  # a forward pass, and the outcomes
    assert {c["unmask"]["nfe"] for c in reply.json()["choices"]} == {1}
    assert reply.status_code == 200 and {c["unmask"]["finish_reason"] for c in reply.json()["choices"]} == {"abort"}


def test_a_failed_request_fails_alone(served, monkeypatch):
    """Its policy raises; what runs beside it is what it is alone."""
    from unmask.policies.factor import Factor

    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(Factor, "decide", broken)
    made = mix.jobs(6, 3, streams=(None, "text"))
    bad = [
        ("/v1/completions", {"prompt": "3+4=", "max_tokens": 8, "stream": stream, "unmask": {"policy": "factor"}})
        for stream in (False, True)
    ]
    replies = crowd(served, [*made, *bad], 8)
    assert [r.text for r in replies[:6]] == mix.alone(model(), made)
    assert [(r.status, r.error) for r in replies[6:]] == [(500, "decoding_failed"), (200, "decoding_failed")]


def test_an_engine_that_breaks_is_replaced(served, monkeypatch):
    def broken(self):
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", broken)
        reply = served.post("/v1/completions", {"prompt": "3+4=", "max_tokens": 8})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert served.idle()
    assert served.post("/v1/completions", {"prompt": "3+4=", "max_tokens": 8}).status_code == 200


def test_a_reader_of_steps_that_is_far_behind_is_told_so(served, monkeypatch):
    from unmask.server import worker

    monkeypatch.setattr(worker, "BEHIND", -1)
    told = served.events(
        "/v1/completions", {"prompt": "3+4=", "max_tokens": 40, "unmask": {"stream": "steps", "policy": "vanilla"}}
    )
    assert told[-1]["error"]["code"] == "stalled"


@pytest.mark.slow
def test_a_short_request_does_not_wait_for_long_ones(served):
    """It is decoded beside them: it ends while all of them run."""

    def both():
        async def run():
            long = [asyncio.ensure_future(client.ask(served.port, "/v1/completions", LONG, 30)) for _ in range(4)]
            while served.service.worker.load.running < 4:
                await asyncio.sleep(0.01)
            reply = await client.ask(served.port, "/v1/completions", {"prompt": "3+4=", "max_tokens": 8})
            running = served.service.worker.load.running
            for one in long:
                one.cancel()
            await asyncio.gather(*long, return_exceptions=True)
            return reply, running

        return asyncio.run(run())

    reply, running = both()
    assert reply.status == 200 and reply.text == model().generate("3+4=", 8, chat=False)[0].text
    assert running == 4
    assert served.idle()


def test_deltas_come_before_the_end(served):
    """Of policies that re-mask too, as soon as a block is full: while positions behind it are masked."""
    for policy in ("vanilla(block_length=8)", "wino(block_length=8)", "saber(block_length=8)"):
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 48,
            "unmask": {"policy": policy, "stream": "steps"},
        }
        chunks = [e["choices"][0] for e in served.events("/v1/chat/completions", body)]
        early = [c for c in chunks if c["delta"].get("content") and c["unmask"].get("masked")]
        assert early, policy
