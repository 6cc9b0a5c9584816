"""Batches and servers on Ray, which is started here with two workers. Without Ray (extra `ray`) these are skipped."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import unmask
from helpers import cli

COMMAND = [sys.executable, "-c", "from unmask.cli import main; main()"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture
def batch(tmp_path):
    """60 lines with their own lengths, policies and sampling."""
    lines = []
    for i in range(60):
        line = {"prompt": f"Mia has {i % 8 + 2} pens. Mia buys {i % 7 + 2} pens. How many pens does Mia have now?"}
        line |= {"gen_length": (24, 40, 64)[i % 3], "id": f"q{i}"}
        line |= ({}, {"policy": "threshold(tau=0.95)", "cache": "dual"}, {"temperature": 0.7})[i % 3]
        lines.append(json.dumps(line) + "\n")
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(lines))
    return path


def command(batch, output, *more):
    return [*COMMAND, "generate", "--batch", str(batch), "--dtype", "float32", "--seed", "3", "--batch-size", "8",
            "-o", str(output), *more]  # fmt: skip


def timeless(path):
    """Results of a file without what a clock has said."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for one in found:
        for name in TIMES:
            del one["stats"][name]
    return found


def descendants(of):
    """Ids and command lines of the processes below one."""
    parents, names_ = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names_[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, new = set(), {of}
    while new:
        new = {one for one, parent in parents.items() if parent in new}
        found |= new
    return {one: names_.get(one, "") for one in found}


def until(what, seconds=400):
    """Wait for something to be true."""
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)
    return found


# --- what needs no Ray


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("Hi", "--ray", 2), "--batch"),
        (("--batch", "in.jsonl", "--ray", 2, "--trace", "t.jsonl"), "--trace"),
        (("--batch", "in.jsonl", "--ray", 2, "--picture", "p.svg"), "--picture"),
        (("--batch", "in.jsonl", "--ray", 2, "--watch"), "--watch"),
        (("--batch", "in.jsonl", "--ray", 2, "--device", "cuda:1"), "--device"),
        (("--batch", "in.jsonl", "--ray-address", "auto"), "--ray"),
        (("--batch", "in.jsonl", "--ray", 0), "--ray"),
    ],
)
def test_refused_before_anything_is_loaded(options, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    monkeypatch.setattr("unmask.cli.options.Loading.load", lambda _: pytest.fail("the model was loaded"))
    result = cli("generate", *options)
    assert result.exit_code == 2
    assert what in result.stderr


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.cli.cluster.find_spec", lambda _: None)
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    result = cli("generate", "--batch", tmp_path / "in.jsonl", "--ray", 1, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert "unmask[ray]" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


# --- batches


@pytest.fixture
def ray():
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'unmask[ray]'")


@pytest.mark.slow
def test_a_batch_on_two_workers_one_of_which_is_killed(ray, batch, tmp_path):
    """The lines of one process, in the order of the batch, though a worker dies on the way."""
    subprocess.run(command(batch, tmp_path / "one.jsonl"), env=ENVIRONMENT, check=True)
    with subprocess.Popen(
        command(batch, tmp_path / "two.jsonl", "--ray", "2"), env=ENVIRONMENT, stderr=subprocess.PIPE
    ) as process:
        try:
            until(lambda: (tmp_path / "two.jsonl").exists() and (tmp_path / "two.jsonl").read_text().count("\n") >= 1)
            workers = [one for one, name in descendants(process.pid).items() if name.startswith("ray::MapWorker")]
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            _, errors = process.communicate(timeout=400)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    found = timeless(tmp_path / "two.jsonl")
    assert [one["index"] for one in found] == list(range(60))
    assert found == sorted(timeless(tmp_path / "one.jsonl"), key=lambda one: one["index"])


@pytest.mark.slow
def test_a_batch_that_is_killed_is_resumed(ray, batch, tmp_path):
    """No finished line is decoded again, and none is lost; the rest may be decoded by one process."""
    output = tmp_path / "out.jsonl"
    with subprocess.Popen(command(batch, output, "--ray", "2"), env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        until(lambda: output.exists() and output.read_text().count("\n") >= 3)
        started = descendants(process.pid)
        process.kill()
    before = output.read_text().splitlines()
    assert 3 <= len(before) < 60
    workers = [one for one, name in started.items() if name.startswith("ray::MapWorker")]
    assert len(workers) == 2
    until(lambda: not [one for one in workers if Path(f"/proc/{one}").exists()])  # they end with who started them
    done = subprocess.run(
        command(batch, output, "--ray", "1", "--resume"), env=ENVIRONMENT, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    after = output.read_text().splitlines()
    whole = [line for line in before if line.endswith("}")]
    assert after[: len(whole)] == whole
    assert [json.loads(line)["index"] for line in after] == list(range(60))
    again = subprocess.run(command(batch, output, "--resume"), env=ENVIRONMENT, capture_output=True, check=False)
    assert (again.returncode, output.read_text().splitlines()) == (0, after)


@pytest.mark.slow
def test_a_cluster_that_is_too_small_or_not_there(ray, batch, tmp_path):
    for more, words in (
        (("--ray", "999"), ("--ray", "999", "CPUs")),
        (("--ray", "1", "--ray-address", "127.0.0.1:9"), ("--ray-address", "127.0.0.1:9")),
    ):
        done = subprocess.run(
            command(batch, tmp_path / "out.jsonl", *more), env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert all(word in line for word in words)
        assert not (tmp_path / "out.jsonl").exists()


# --- servers


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--replicas", 2), "--ray"),
        (("--ray-address", "auto"), "--ray"),
        (("--ray", "--replicas", "many"), "many"),
        (("--ray", "--replicas", 0), "--replicas"),
        (("--ray", "--device", "cuda:1"), "--device"),
    ],
)
def test_servers_refuse(options, what, monkeypatch):
    monkeypatch.setattr("unmask.cli.options.Loading.load", lambda _: pytest.fail("the model was loaded"))
    result = cli("serve", "--port", 0, *options)
    assert result.exit_code == 2
    assert what in result.stderr


def test_a_signal_writes_nothing_by_itself(caplog):
    """It may come while another line is written, and writing would raise then; the loop writes what it began."""
    uvicorn = pytest.importorskip("uvicorn")
    from unmask.server import Settings
    from unmask.server.run import Server

    caplog.set_level("INFO", "unmask.server")
    killed = []
    service = SimpleNamespace(draining=False, open=3, worker=SimpleNamespace(kill=lambda: killed.append(1)))
    server = Server(uvicorn.Config(lambda: None), service, Settings())
    server.handle_exit(signal.SIGTERM, None)
    assert service.draining and not server.should_exit and not killed
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and server.force_exit and killed
    assert caplog.records == []
    server._tell()
    assert len(caplog.records) == 2


def test_metrics_of_replicas_are_shown_with_their_names():
    """A replica reports beside its replies; what it has counted stays when it is gone, what it was doing does not."""
    pytest.importorskip("uvicorn")
    from prometheus_client.parser import text_string_to_metric_families

    from serving import model
    from unmask.server import Settings
    from unmask.server.metrics import Metrics
    from unmask.server.replicas import Replica
    from unmask.server.reports import KIND, SILENT, Reports

    now = [0.0]
    front = Metrics()
    reports = Reports(front.registry, lambda: now[0])
    front.http.labels("/v1/completions", "200").inc()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions", "scheme": "http",
        "query_string": b"", "root_path": "", "headers": [(b"content-type", b"application/json")], "client": ("a", 1),
        "server": ("a", 1), "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def ask(replica, count):
        for _ in range(count):
            data = json.dumps({"prompt": "3+4=", "max_tokens": 4, "unmask": {"policy": "vanilla"}}).encode()
            found = [message async for message in replica.serve(scope, data)]
            replies = [message for message in found if message["type"] != KIND]  # a report may come first
            assert replies[0]["status"] == 200
            for message in found:
                if message["type"] == KIND:
                    reports.take(message)
            assert found[-1]["type"] == KIND and not found[-1]["busy"]
        await replica.running.__aexit__(None, None, None)

    replicas = [Replica(model, Settings()) for _ in range(2)]
    for count, replica in enumerate(replicas, 1):
        asyncio.run(ask(replica, count))

    def read(name):
        families = {family.name: family for family in text_string_to_metric_families(reports.text().decode())}
        return {(s.name, s.labels.get("replica")): s.value for s in families[name].samples}

    first, second = (replica.name for replica in replicas)
    counted = {("unmask_forward_passes_total", first): 4, ("unmask_forward_passes_total", second): 8}
    assert read("unmask_forward_passes") == counted
    assert read("unmask_http_requests")["unmask_http_requests_total", None] == 1
    assert {name for _, name in read("unmask_running")} == {first, second}
    assert {name for _, name in read("process_resident_memory_bytes")} == {None, first, second}
    reports.take({**replicas[0].report(), "busy": True})
    now[0] += SILENT + 1  # it has not told of its end
    assert {name for _, name in read("unmask_running")} == {second}
    assert read("unmask_forward_passes") == counted


@pytest.fixture
def replicas(ray, tmp_path):
    """A server with two replicas: its process, and a client."""
    httpx2 = pytest.importorskip("httpx2")
    log = tmp_path / "log"
    more = ("--port", "0", "--ray", "--replicas", "2", "--dtype", "float32", "--grace", "20", "--batch-size", "8")
    with log.open("w") as file, subprocess.Popen([*COMMAND, "serve", *more], env=ENVIRONMENT, stderr=file) as process:
        try:
            found = until(lambda: re.search(r"serving on (http://127.0.0.1:\d+)", log.read_text()))
            assert process.poll() is None
            with httpx2.Client(base_url=found[1], timeout=300) as client:
                yield SimpleNamespace(process=process, client=client)
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()


def alive(process):
    """How many replicas run below a process."""
    return sum(name.startswith("ray::ServeReplica") for name in descendants(process.pid).values())


def body(i, **more):
    question = f"Mia has {i % 8 + 2} pens. Mia buys {i % 7 + 2} pens. How many pens does Mia have now?"
    policy = ("vanilla", "threshold(tau=0.95)")[i % 2]
    return {"messages": [{"role": "user", "content": question}], "max_tokens": (64, 256)[i % 2],
            "unmask": {"policy": policy}, **more}  # fmt: skip


@pytest.mark.slow
def test_a_replica_is_killed_under_load(replicas):  # noqa: PLR0915
    """Every reply is whole or says that it is not; none is lost, none hangs; the server goes on."""
    lm = unmask.load(dtype="float32")
    expected = {}
    for i in range(56):
        asked = body(i)
        [result] = lm.generate([asked["messages"]], asked["max_tokens"], asked["unmask"]["policy"])
        expected[i] = result.text
    client, path, begun = replicas.client, "/v1/chat/completions", threading.Event()

    def whole(i):
        reply = client.post(path, json=body(i))
        return i, reply.status_code, reply.json()["choices"][0]["message"]["content"]

    def streamed(i):
        text, last, error = "", "", None
        with client.stream("POST", path, json=body(i, stream=True)) as reply:
            for line in reply.iter_lines():
                if not line.startswith("data: "):
                    continue
                last = line[6:]
                found = json.loads(last) if last != "[DONE]" else {}
                error = found.get("error")
                for choice in found.get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    if text:
                        begun.set()
        return i, text, last, error

    with ThreadPoolExecutor(56) as pool:
        wholes = [pool.submit(whole, i) for i in range(28)]
        streams = [pool.submit(streamed, i) for i in range(28, 56)]
        assert begun.wait(120)
        names = descendants(replicas.process.pid)
        killed = [one for one, name in names.items() if name.startswith("ray::ServeReplica")]
        assert len(killed) == 2
        os.kill(killed[0], signal.SIGKILL)
        for future in wholes:
            i, status, text = future.result(timeout=400)
            assert (status, text) == (200, expected[i])
        ends = {"whole": 0, "lost": 0}
        for future in streams:
            i, text, last, error = future.result(timeout=400)
            if last == "[DONE]":
                assert text == expected[i]
                ends["whole"] += 1
            else:
                assert error["code"] == "replica_lost"
                assert expected[i].startswith(text) and text
                ends["lost"] += 1
    assert ends["whole"] + ends["lost"] == 28
    counted = client.get("/metrics").text
    retried = float(re.search(r"^unmask_retries_total (\S+)", counted, re.MULTILINE)[1])
    assert retried + ends["lost"] > 0  # it was killed with work in its hands
    assert "unmask_open 0.0" in counted
    named = re.findall(r'^unmask_forward_passes_total{replica="(\w+)"} (\S+)', counted, re.MULTILINE)
    assert any(float(value) > 0 for _, value in named)  # the one that was killed may have reported before its first

    # a client that goes is forgotten, a bad request is refused as ever, the page is there
    with client.stream("POST", path, json=body(0, stream=True, max_tokens=1024, ignore_eos=True)) as reply:
        next(reply.iter_lines())
    until(lambda: "unmask_open 0.0" in client.get("/metrics").text)
    bad = client.post(path, json=body(0, unmask={"policy": "nope"}))
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "unmask.policy")
    assert client.post(path, content=b"{" * (5 << 20)).status_code == 413
    assert "<title>unmask" in client.get("/").text
    until(lambda: alive(replicas.process) == 2)  # the one that was killed has a successor

    # SIGTERM: what runs is finished, what comes is refused
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(whole, 0)
        until(lambda: "unmask_open 1.0" in client.get("/metrics").text)
        replicas.process.send_signal(signal.SIGTERM)
        assert until(lambda: client.get("/ready").status_code == 503)
        assert running.result(timeout=60)[1:] == (200, expected[0])
    assert replicas.process.wait(60) == 0
    assert alive(replicas.process) == 0
