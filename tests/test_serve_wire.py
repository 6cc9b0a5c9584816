"""What comes over the wire that no client would send, and what happens to the process."""

import contextlib
import hmac
import json
import logging
import os
import signal
import socket
import time
from types import SimpleNamespace

import httpx2
import pytest

from helpers import cli
from refusals import refused
from serving import ANSWER, QUESTION, process, raw, serving, wait_for
from unmask.server import Settings
from unmask.server.errors import Refused
from unmask.server.guard import Guard
from unmask.server.logs import Text
from unmask.server.metrics import Metrics

BODY = json.dumps({"prompt": "3+4=", "max_tokens": 4}).encode()
LONG = {
    "prompt": "a",
    "max_tokens": 600,
    "ignore_eos": True,
    "unmask": {"policy": "vanilla", "stream": "steps"},
    "stream": True,
}


def head(length, path="/v1/completions"):
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Connection: close"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def answers(served):
    """It still serves."""
    reply = served.post("/v1/completions", json.loads(BODY))
    assert reply.status_code == 200
    return served.idle()


@pytest.fixture(scope="module")
def served():
    with serving(stall=1.0, max_body=0.01) as running:
        yield running
        assert running.idle()


def test_a_whole_request_by_hand(served):
    assert raw(served.port, head(len(BODY)) + BODY).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_slow_loris(served):
    """Connections that send their head or their body never, or byte by byte, are cut off; others are served."""
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(40)]
    slow = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(5)]
    part = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(5)]
    for at in range(8):
        for one in slow:
            one.sendall(head(5)[at : at + 1])
    for one in part:
        one.sendall(head(100) + b"{")
    assert answers(served)
    for one in (*idle, *slow):
        one.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(100) == b""
    for one in part:
        one.settimeout(10)
        assert one.recv(1000).startswith(b"HTTP/1.1 408")
    for one in (*idle, *slow, *part):
        one.close()
    assert answers(served)


def test_half_closed_and_torn_connections(served):
    raw(served.port, head(len(BODY)) + BODY, half=True)
    raw(served.port, head(len(BODY)) + BODY[:3], half=True)
    raw(served.port, b"", half=True)
    raw(served.port, b"POST /v1/comp", half=True)
    assert answers(served)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"A" * 200_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http(served, data):
    reply = raw(served.port, data)
    assert reply == b"" or reply.startswith((b"HTTP/1.1 400", b"HTTP/1.1 4"))
    assert answers(served)


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_a_head_that_does_not_end(before):
    """Its end is not waited for, on a new connection or behind another request."""
    with serving(stall=60.0) as patient, socket.create_connection(("127.0.0.1", patient.port)) as endless:
        endless.sendall(before + b"GET / HTTP/1.1\r\nX-Long: ")
        with pytest.raises(ConnectionError):
            endless.sendall(b"x" * 2**24)
        assert answers(patient)


def test_bodies_that_are_too_long(served):
    big = b"x" * 20_000
    assert raw(served.port, head(10**12)).startswith(b"HTTP/1.1 413")
    assert raw(served.port, head(len(big)) + big).startswith(b"HTTP/1.1 413")
    chunk = b"".join(b"1000\r\n" + b"x" * 0x1000 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    start = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    reply = raw(served.port, start + chunk)
    assert reply.startswith(b"HTTP/1.1 413")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"
    assert answers(served)


def test_a_reader_that_stalls_is_cut_off():
    """It asks for more than the buffers on the way hold and reads nothing; others are served meanwhile."""
    with serving(stall=1.0) as served, socket.socket() as stalled:
        served.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", served.port))
        stalled.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 300)
        open_ = served.server.server_state.connections
        assert wait_for(lambda: any(one.flow and one.flow.write_paused for one in open_))
        assert answers(served)
        assert wait_for(lambda: not any(one.flow and one.flow.write_paused for one in [*open_]))
        got = 0
        while part := stalled.recv(1 << 20):
            got += len(part)
        assert got < 150 * len(served.get("/openapi.json").content)


def test_comments_keep_a_stream_alive():
    body = json.dumps(LONG | {"max_tokens": 64, "unmask": {"policy": "vanilla"}}).encode()
    with serving(keep_alive=0.01) as served:
        reply = raw(served.port, head(len(body)) + body)
    assert reply.count(b"\n: alive\n\n") > 2
    assert b"\ndata: [DONE]\n\n" in reply


def test_a_stream_whose_connection_is_lost_is_aborted(served):
    """As when a client is cut off."""
    body = json.dumps(LONG).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as left:
        left.sendall(head(len(body)) + body)
        assert left.recv(100).startswith(b"HTTP/1.1 200")
        [one] = [c for c in served.server.server_state.connections if c.client == left.getsockname()]
        one.loop.call_soon_threadsafe(one.transport.abort)
        assert served.idle()


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/static/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/v1/models/../../../../etc/passwd",
        "/..\\..\\etc\\passwd",
        "/v1/models/%00",
    ],
)
def test_path_traversal(served, path):
    reply = raw(served.port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"root:" not in reply


def test_headers_that_protect_browsers(served):
    for reply in (served.get("/v1/models"), served.get("/nope"), served.post("/v1/completions", {}), served.get("/")):
        policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
        assert (
            policy["default-src"] == "'none'"
            and policy["script-src"] == "'self'"
            and policy["frame-ancestors"] == "'none'"
        )
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in reply.headers
    assert served.get("/v1/models").headers["cache-control"] == "no-store"


def test_other_sites_may_not_call_it_unless_they_are_named(served):
    asks = {
        "origin": "https://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    refused = httpx2.options(served.url + "/v1/completions", headers=asks)
    assert "access-control-allow-origin" not in refused.headers
    for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:80"):
        rebound = served.get("/v1/models", headers={"host": name})
        assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host_not_allowed")
    assert served.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200
    with serving(allow_origin="https://good.example") as other:
        allowed = httpx2.options(other.url + "/v1/completions", headers={**asks, "origin": "https://good.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://good.example"
        assert "access-control-allow-origin" not in httpx2.options(other.url + "/v1/completions", headers=asks).headers


def test_request_ids_and_no_prompts_in_the_log(served, caplog, capsys):
    log = logging.getLogger("unmask.server")
    log.setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, logger="unmask.server"):
        own = served.post(
            "/v1/completions", {"prompt": "a secret", "max_tokens": 2}, headers={"x-request-id": "mine-1"}
        )
        odd = served.post(
            "/v1/completions",
            {"prompt": "a secret", "secret": 1, "max_tokens": "secret"},
            headers={"x-request-id": "a b\tc"},
        )
        assert wait_for(lambda: [r.getMessage() for r in caplog.records].count("request") == 2)
    assert own.headers["x-request-id"] == "mine-1" and odd.headers["x-request-id"].startswith("req-")
    noted = [vars(r)["fields"] for r in caplog.records if r.getMessage() == "request"]
    assert [n["request"] for n in noted] == ["mine-1", odd.headers["x-request-id"]]
    assert [n["status"] for n in noted] == [200, 400]
    assert noted[0]["tokens"] == own.json()["usage"]["completion_tokens"] and noted[0]["nfe"]
    assert "secret" not in json.dumps(noted)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3, "3"), ("threshold(tau:0.9)", "threshold(tau:0.9)"), ("", '""'), ("a b", '"a b"'), ("a=b", '"a=b"'),
     ('a"', '"a\\""'), ("a\n", '"a\\n"'), ("a\u2028", '"a\\u2028"'), ("\x1b", '"\\u001b"'), ("é", "é")],
)  # fmt: skip
def test_values_in_the_log_are_quoted_where_they_could_be_mistaken(value, shown):
    record = logging.LogRecord("unmask", logging.INFO, "", 0, "request", (), None)
    record.fields = {"key": value}
    assert Text().format(record).endswith(f" INFO request key={shown}")


def test_paths_that_are_made_up_are_counted_as_one(served):
    for name in ("/v1/a", "/v1/b", "/c"):
        assert served.get(name).status_code == 404
    told = [
        line
        for line in served.get("/metrics").text.splitlines()
        if line.startswith("unmask_http_requests_total") and 'status="404"' in line
    ]
    assert len(told) == 1 and 'path="other"' in told[0]


# --- the process


def test_who_may_listen(tmp_path):
    refused(cli("serve", "--host", "0.0.0.0"), "--host", "0.0.0.0", "--api-key")
    refused(cli("serve", "--port", "70000"), "port", 70000)
    refused(cli("serve", "--host", "not a host"), "not a host")
    refused(cli("serve", "--batch-size", "0"), "batch_size", 0)
    refused(cli("serve", "--api-key-file", str(tmp_path / "none")), "--api-key-file", tmp_path / "none")
    (tmp_path / "empty").write_text("# nothing\n")
    refused(cli("serve", "--api-key-file", str(tmp_path / "empty")), "--api-key-file")
    refused(cli("serve", "--api-key", "with space "), "--api-key")
    refused(cli("serve", "--policy", "nope", "--port", "0"), "nope")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(cli("serve", "--port", str(taken.getsockname()[1])), taken.getsockname()[1])


def stream(url, body):
    """An open stream, the first event of which has been read."""
    client = httpx2.Client(base_url=url, timeout=60)
    reply = client.stream("POST", "/v1/completions", json=body)
    found = reply.__enter__()
    lines = found.iter_lines()
    next(lines)
    return client, reply, lines


@pytest.mark.slow
def test_sigterm_drains_and_a_second_one_stops():
    body = {**LONG, "max_tokens": 60}
    with process("--log-format", "json") as (running, url):
        client, reply, lines = stream(url, body)
        running.send_signal(signal.SIGTERM)
        assert wait_for(lambda: httpx2.get(f"{url}/ready").status_code == 503)
        late = httpx2.post(f"{url}/v1/completions", json={"prompt": "a"})
        assert late.status_code == 503 and late.json()["error"]["code"] == "stopping" and late.headers["retry-after"]
        assert [line for line in lines if line][-1] == "data: [DONE]"
        reply.__exit__(None, None, None)
        client.close()
        assert running.wait(20) == 0
    with process("--grace", "60") as (running, url):
        client, reply, lines = stream(url, LONG)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
        client.close()


@pytest.mark.slow
def test_grace_ends():
    with process("--grace", "0.5") as (running, url):
        client, _reply, lines = stream(url, LONG)
        running.send_signal(signal.SIGTERM)
        told = [line for line in lines if line]
        assert json.loads(told[-1].removeprefix("data: "))["error"]["code"] == "stopping"
        assert running.wait(20) == 0
        client.close()


@pytest.mark.slow
def test_kill_and_restart():
    """Nothing is left behind that the next server, on the same port, would stumble over."""
    with process(cold=True) as (running, url):
        client, _, _ = stream(url, LONG)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait(20) == -signal.SIGKILL
        client.close()
    with process(port=int(url.rpartition(":")[2])) as (_, again):
        assert again == url
        reply = httpx2.post(
            f"{again}/v1/chat/completions", json={"messages": [{"role": "user", "content": QUESTION}]}, timeout=60
        )
        assert reply.json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.slow
def test_a_key_from_a_file_and_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("# ours\nsk-one\nsk-two\n")
    with process("--api-key-file", str(tmp_path / "keys"), "--host", "0.0.0.0") as (_, anywhere):
        url = anywhere.replace("0.0.0.0", "127.0.0.1")
        found = [
            httpx2.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code
            for key in ("sk-one", "sk-two", "x")
        ]
        assert found == [200, 200, 401]
    monkeypatch.setenv("UNMASK_API_KEY", "sk-env")
    with process() as (_running, url):
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        assert httpx2.get(f"{url}/v1/models", headers={"authorization": "Bearer sk-env"}).status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch):
    """Whatever a client sends, all keys are looked at, by digests of one length, with ``hmac.compare_digest``."""
    seen = []

    def compared(first, second):
        seen.append((len(first), len(second)))
        return hmac.compare_digest(first, second)

    monkeypatch.setattr("unmask.server.guard.hmac", SimpleNamespace(compare_digest=compared))
    guard = Guard(lambda *_: None, Settings(keys=("first", "second", "a third one")), Metrics())
    for given in (b"Bearer first", b"Bearer second", b"Bearer x", b"Bearer " + b"x" * 5000, b"", b"Basic first"):
        seen.clear()
        known = given in (b"Bearer first", b"Bearer second")
        with contextlib.nullcontext() if known else pytest.raises(Refused):
            guard._key({"method": "GET", "path": "/v1/models"}, {b"authorization": given})
        assert seen == [(32, 32)] * 3
