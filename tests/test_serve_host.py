"""The engine of a server, in a thread and in a process of its own, and what goes between the two."""

import asyncio
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import ANSWER, QUESTION, model, process, serving, wait_for
from unmask.constraints.compile import compile_constraint
from unmask.core.errors import ModelError, RequestError
from unmask.policies import apd
from unmask.server import Settings, worker
from unmask.server.decoder import Decoder
from unmask.server.host import in_process, in_thread
from unmask.server.lanes import Lanes
from unmask.server.wire import Add, Rules, Unpacker, Watch, packed
from unmask.server.worker import Ticket, Worker

LONG = {"prompt": "a", "max_tokens": 600, "ignore_eos": True, "unmask": {"policy": "vanilla", "stream": "steps"}}


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid):
    with suppress(FileNotFoundError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary(max_size=300))), st.lists(st.integers(1, 40), min_size=1))
def test_what_is_sent_comes_in_whatever_pieces(told, sizes):
    wire, found, unpacker, turn = b"".join(map(packed, told)), [], Unpacker(), 0
    while wire:
        size = sizes[turn % len(sizes)]
        found += unpacker.feed(wire[:size])
        wire, turn = wire[size:], turn + 1
    assert found == told


def test_an_error_is_the_same_on_the_other_side():
    error = RequestError("gen_length must be at least 1", 3, "line")
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), found.what, found.row) == (RequestError, str(error), error.what, 3)


def test_an_automaton_is_sent_once():
    """Both sides forget the same ones, and what one does not have is known to be missing."""
    lm = model()
    made = compile_constraint("regex", "[0-9]+", lm.text, lm.spec)
    there = pickle.loads(pickle.dumps(made))
    assert there.number != made.number
    assert there.accepts(lm.text.encode("42", chat=False)) and not there.accepts(lm.text.encode("4a", chat=False))
    here, far, draw = Rules(3), Rules(3), random.Random(0)
    sent = 0
    for _ in range(300):
        number = draw.randrange(5)
        known = here.sent(number, None) is not None
        here.sent(number, made)
        sent += not known
        assert far.sent(number, None if known else there) is there
    assert 5 < sent < 200
    assert far.sent(9, None) is None


async def outcomes(host, requests):
    """What an engine makes of requests, all added at once."""
    passed = []
    worker, loop = Worker(host, passed.append), asyncio.get_running_loop()
    await worker.start()
    news = asyncio.Event()
    tickets = [Ticket(request, Watch.TEXT, None, loop.create_future(), news) for request in requests]
    worker.add(tickets)
    while not all(ticket.ended for ticket in tickets):
        await news.wait()
        news.clear()
    assert not worker.busy and sum(passed) >= sum(ticket.outcome.nfe for ticket in tickets)
    worker.stop()
    await asyncio.to_thread(host.join, 20)
    assert not host.alive
    return tickets


@pytest.mark.parametrize("apart", [False, True])
def test_a_thread_and_a_process_decode_as_the_library_does(apart):
    """Settings, sampling, a constraint, given tokens; and texts are told as they settle."""
    lm, settings = model(), Settings()
    made = [
        *lm.requests([QUESTION], 48, "threshold(tau=0.99)", "dual"),
        *lm.requests([QUESTION], 48, "slowfast", temperature=0.7, seed=3, stop="Answer"),
        *lm.requests(["7-4="], 8, "vanilla", regex="[a-f]{3}"),
        *lm.infill_requests("3+4=[MASK*2]. Yes."),
    ]
    [bound] = [i for i, one in enumerate(made) if one.params.regex]
    made[bound] = replace(made[bound], constraint=compile_constraint("regex", "[a-f]{3}", lm.text, lm.spec))
    made = [replace(one, id=f"r{i}") for i, one in enumerate(made)]
    expected = [lm.result(next(e for e in lm.run([one]) if hasattr(e, "nfe"))) for one in made]
    if apart:
        with in_process(lambda: lm, settings) as host:
            assert host.processor is not lm and host.pid != os.getpid()
            tickets = asyncio.run(outcomes(host, made))
    else:
        tickets = asyncio.run(outcomes(in_thread(lm, settings), made))
    for ticket, right in zip(tickets, expected, strict=True):
        found = lm.result(ticket.outcome)
        assert (found.text, found.tokens, found.steps, found.finish_reason) == (
            right.text, right.tokens, right.steps, right.finish_reason,
        )  # fmt: skip
        told = [i for progress in ticket.told for i in progress.ids]
        assert told[: found.stats.tokens] == found.tokens[: found.stats.tokens]
        assert 0 <= ticket.first <= ticket.seconds


def test_what_a_policy_has_loaded_is_loaded_once(monkeypatch):
    loaded, own = [], apd.load_verifier

    def load(name):
        loaded.append(name)
        return own(name)

    monkeypatch.setattr(apd, "load_verifier", load)
    body = {"prompt": "3+4=", "max_tokens": 8, "unmask": {"policy": "apd"}}
    with serving() as served:
        assert [served.post("/v1/completions", body).status_code for _ in range(3)] == [200] * 3
    assert len(loaded) == 1


def test_requests_that_come_while_the_engine_breaks_are_decoded(monkeypatch):
    """Those it had are lost, no others."""
    body, own, broke = {"prompt": "3+4=", "max_tokens": 8}, Lanes.step, threading.Event()

    def step(lanes):
        if broke.is_set():
            return own(lanes)
        while served.service.open < 2:
            time.sleep(0.01)
        time.sleep(0.05)  # the other request has been sent
        broke.set()
        raise RuntimeError("planted")

    monkeypatch.setattr(Lanes, "step", step)
    with serving() as served, ThreadPoolExecutor(2) as pool:
        asked = []
        for _ in range(2):
            asked.append(pool.submit(served.post, "/v1/completions", body))
            assert wait_for(lambda: served.service.open == len(asked))
        assert [one.result().status_code for one in asked] == [500, 200]
        assert served.idle() and served.service.worker.alive


def test_a_constraint_goes_on_its_way_once(monkeypatch):
    body = {"prompt": "7-4=", "max_tokens": 8, "unmask": {"regex": "[a-f]{3}", "policy": "vanilla"}}
    sent, own = [], worker.packed
    monkeypatch.setattr(worker, "packed", lambda told: sent.append(told) or own(told))
    with serving() as served:
        texts = {served.post("/v1/completions", body | {"seed": i}).json()["choices"][0]["text"] for i in range(3)}
    assert all(re.fullmatch("[a-f]{3}", text) for text in texts)
    jobs = [job for told in sent if isinstance(told, Add) for job in told.jobs]
    assert [job.automaton is not None for job in jobs] == [True, False, False] and len({job.rule for job in jobs}) == 1


def test_a_request_that_cannot_be_added_is_refused_and_others_are_not(monkeypatch):
    """None of several is added; whose fault it is decides the status."""
    body, own = {"prompt": "3+4=", "max_tokens": 8, "n": 2}, Lanes.add
    with serving() as served, monkeypatch.context() as patch:
        for error, status in ((KeyError("planted"), 500), (ModelError("planted"), 400)):
            calls = count(1)

            def add(lanes, request, error=error, calls=calls):
                if next(calls) == 2:
                    raise error
                own(lanes, request)

            patch.setattr(Lanes, "add", add)
            reply = served.post("/v1/completions", body)
            assert (reply.status_code, type(error).__name__ in reply.text or "planted" in reply.text) == (status, True)
            assert served.idle()
        patch.undo()
        assert served.post("/v1/completions", body).status_code == 200


@pytest.mark.parametrize("error", [ModelError("no such model"), MemoryError("full"), OSError(5, "broken", "weights")])
def test_what_loading_raises_is_raised_here(error):
    def load():
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))), in_process(load, Settings()):
        pass


class Fussy(Exception):
    """Can be pickled, and not unpickled."""

    def __init__(self, what, *, why):
        super().__init__(what)
        self.why = why


def test_an_error_of_loading_that_cannot_be_sent_is_told(capfd):
    """And the traceback of one that nobody foresaw is shown."""

    class Odd(Exception):
        pass

    for error in (Odd("planted"), Fussy("planted", why="so")):

        def load(error=error):
            raise error

        with pytest.raises(RuntimeError, match=f"{type(error).__name__}: planted"), in_process(load, Settings()):
            pass
        assert "in load" in capfd.readouterr().err


def test_a_constraint_that_could_not_be_sent_is_sent_anew(monkeypatch):
    body = {"prompt": "7-4=", "max_tokens": 8, "unmask": {"regex": "[a-f]{3}", "policy": "vanilla"}}

    def full(_):
        raise MemoryError

    with serving() as served:
        with monkeypatch.context() as patch:
            patch.setattr(worker, "packed", full)
            assert served.post("/v1/completions", body).status_code == 500
        assert served.idle()
        assert re.fullmatch("[a-f]{3}", served.post("/v1/completions", body).json()["choices"][0]["text"])


def test_a_prompt_is_sent_once_for_all_its_responses():
    [one] = model().requests([[1, 2] * 500], 8)
    many = [replace(one, id=i).bare() for i in range(50)]
    assert len(packed(many)) < 4 * len(packed(many[:1]))


@pytest.mark.parametrize("way", [lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_a_process_that_ends_before_its_model_is_there(way):
    with pytest.raises(ChildProcessError, match=r"3|SIGKILL"), in_process(way, Settings()):
        pass


def test_a_process_ends_with_its_block():
    """Though it has not been told to, and ignores signals that a terminal sends to both."""
    with in_process(model, Settings()) as host:
        pid = host.pid
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert host.alive and running(pid)
    assert not running(pid)


@pytest.mark.slow
def test_a_server_whose_engine_is_killed_says_so_and_ends():
    with process(cold=True) as (served, url):
        [engine] = children(served.pid)
        with httpx2.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as reply:
            lines = reply.iter_lines()
            while not next(lines).startswith("data: "):
                pass
            os.kill(engine, signal.SIGKILL)
            told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert told[-1]["error"]["code"] == "internal_error"
        assert served.wait(20) == 1
        assert "SIGKILL" in served.stderr.read().splitlines()[-1]


@pytest.mark.slow
def test_an_engine_does_not_outlive_its_server():
    with process(cold=True) as (served, url):
        [engine] = children(served.pid)
        reply = httpx2.post(f"{url}/v1/completions", json={"prompt": QUESTION, "max_tokens": 48})
        assert reply.json()["choices"][0]["text"].strip() == ANSWER
        assert running(engine)
        os.kill(served.pid, signal.SIGKILL)
        assert wait_for(lambda: not running(engine))


def test_a_server_whose_engine_breaks_beyond_repair_ends(monkeypatch):
    """Outside of a step: nobody waits for it for ever."""

    def broken(self, events):
        raise RuntimeError("planted")

    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with serving() as served, monkeypatch.context() as patch:
        patch.setattr(Decoder, "_tell", broken)
        reply = served.post("/v1/completions", {"prompt": "3+4=", "max_tokens": 8})
        assert reply.status_code == 500
        assert wait_for(lambda: not served.thread.is_alive()) and served.server.lost


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_while_the_model_loads(number, tmp_path):
    """Nothing goes on loading for a server that has gone, and its end is quiet."""
    code = (
        "import os, signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it\n"
        "import unmask, unmask.api\n"
        f"there = pathlib.Path({str(tmp_path / 'pid')!r})\n"
        "def load(*_, **__):\n    there.write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "unmask.load = unmask.api.load = load\n"
        "from unmask.cli import main\nmain()\n"
    )
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        engine = int((tmp_path / "pid").read_text())
        server.send_signal(number)
        server.wait(20)
        assert wait_for(lambda: not running(engine))
        assert "Traceback" not in server.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.1, 1.5])
def test_a_second_signal_ends_an_engine_in_a_long_pass(after):
    """While what runs may finish, and when the time for that is over."""
    with process("--grace", "0.5", cold=True) as (served, url), ThreadPoolExecutor(1) as pool:
        [engine] = children(served.pid)
        body = {**LONG, "n": 8, "max_tokens": 1500}
        asked = pool.submit(httpx2.post, f"{url}/v1/completions", json=body, timeout=60)
        assert wait_for(lambda: "unmask_running 8.0" in httpx2.get(f"{url}/metrics").text)
        os.kill(engine, signal.SIGSTOP)  # a pass that does not end
        began = time.monotonic()
        served.send_signal(signal.SIGTERM)
        time.sleep(after)
        served.send_signal(signal.SIGTERM)
        assert served.wait(20) == 0
        assert time.monotonic() - began < after + 6
        assert asked.result().status_code >= 500
