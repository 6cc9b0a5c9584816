"""Clients that nobody here wrote, against the server."""

import asyncio
import json
import os
import subprocess
import sys

import httpx2
import openai
import pytest

from helpers import cli
from serving import ANSWER, QUESTION, model, serving, wait_for

SAID = [{"role": "user", "content": QUESTION}]
KEY = "sk-test"
NAME = "unmask-tiny"


@pytest.fixture(scope="module")
def served():
    with serving(keys=(KEY,)) as running:
        yield running
        assert running.idle()


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_openai_chat(client):
    reply = client.chat.completions.create(model=NAME, messages=SAID, n=2, seed=1, logprobs=True, top_logprobs=1)
    assert [c.message.content for c in reply.choices] == [ANSWER, ANSWER]
    assert reply.usage.completion_tokens == 42
    assert "".join(t.token for t in reply.choices[0].logprobs.content) == ANSWER
    assert reply.unmask["nfe"] == sum(c.unmask["nfe"] for c in reply.choices)


def test_openai_completions(client):
    (alone,) = model().generate("3+4=", 12, "threshold", chat=False, stop="9")
    more = {"unmask": {"policy": "threshold"}}
    reply = client.completions.create(
        model=NAME, prompt="3+4=", max_tokens=12, stop="9", logprobs=1, echo=True, extra_body=more
    )
    assert reply.choices[0].text == "3+4=" + alone.text
    assert reply.usage.completion_tokens == alone.stats.tokens
    filled = client.completions.create(model=NAME, prompt="11*2=", suffix="\n22+7=29", max_tokens=2)
    assert filled.choices[0].text == "22"


def test_openai_streams(client):
    chunks = list(
        client.chat.completions.create(model=NAME, messages=SAID, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == 21
    with client.chat.completions.stream(
        model=NAME, messages=SAID, extra_body={"unmask": {"stream": "steps"}}
    ) as stream:
        seen = [event.chunk.choices[0].unmask["event"] for event in stream if event.type == "chunk"]
        assert stream.get_final_completion().choices[0].message.content == ANSWER
    assert seen[0] == "start" and seen[-1] == "end"
    text = client.completions.create(model=NAME, prompt=["3+4=", "11*2="], max_tokens=8, stream=True)
    parts = {0: "", 1: ""}
    for chunk in text:
        parts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(parts.values()) == [r.text for r in model().generate(["3+4=", "11*2="], 8, chat=False)]


def test_openai_models(client):
    assert [m.id for m in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "unmask"


def test_openai_errors(served, client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="a", logit_bias={"3": 1})
    assert (caught.value.param, caught.value.code) == ("logit_bias", "unsupported_parameter")
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-9", prompt="a")
    for wrong in ("Bearer sk-tes", "Bearer sk-testt", "Bearer", "Basic sk-test", "sk-test", "Bearer ключ"):
        reply = served.get("/v1/models", headers={"authorization": wrong.encode()})
        assert reply.status_code == 401, wrong
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{served.url}/v1", api_key="no") as other:
        other.models.list()
    assert served.get("/health").status_code == 200 and served.get("/metrics").status_code == 401


@pytest.mark.slow
def test_openai_timeouts(served):
    slow = {"unmask": {"policy": "vanilla", "timeout": 0.2}}
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).completions.create(
                model=NAME,
                prompt="a",
                max_tokens=2000,
                extra_body={"ignore_eos": True, "unmask": {"policy": "vanilla"}},
            )
        assert served.idle()  # what the client has given up is not decoded on
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=NAME, prompt="a", max_tokens=2000, extra_body={"ignore_eos": True, **slow})
        assert caught.value.status_code == 504 and caught.value.code == "timeout"
        assert served.idle()
        with pytest.raises(openai.APIError) as told:
            list(
                client.completions.create(
                    model=NAME, prompt="a", max_tokens=2000, stream=True, extra_body={"ignore_eos": True, **slow}
                )
            )
        assert told.value.code == "timeout"
        assert served.idle()


def test_openai_retries_when_the_queue_is_full():
    with (
        serving(batch_size=1, max_queue=1) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client,
    ):
        body = {"prompt": "a", "max_tokens": 300, "ignore_eos": True, "unmask": {"policy": "vanilla"}}
        with (
            httpx2.Client(base_url=served.url) as other,
            other.stream("POST", "/v1/completions", json={**body, "n": 2, "stream": True}),
        ):
            assert wait_for(lambda: served.service.open == 2)
            with pytest.raises(openai.RateLimitError) as caught:
                client.with_options(max_retries=0).completions.create(model=NAME, prompt="3+4=", max_tokens=4)
            assert caught.value.code == "queue_full" and int(caught.value.response.headers["retry-after"]) >= 1
            too_many = served.post("/v1/completions", {"prompt": "a", "n": 3})
            assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")
        assert served.idle()  # the stream was left
        client.with_options(max_retries=3).completions.create(model=NAME, prompt="3+4=", max_tokens=4)
        assert served.idle()


def test_openai_async(served):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:

            def ask(i):
                return client.completions.create(model=NAME, prompt=f"{i}+4=", max_tokens=8, temperature=1, seed=i)

            return [r.choices[0].text for r in await asyncio.gather(*map(ask, range(8)))]

    alone = model().generate([f"{i}+4=" for i in range(8)], 8, chat=False, temperature=1, seed=[*range(8)])
    assert asyncio.run(all_of_them()) == [r.text for r in alone]


@pytest.mark.slow
def test_llm(served, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        json.dumps([{"model_id": "tiny", "model_name": NAME, "api_base": f"{served.url}/v1", "api_key_name": "tiny"}])
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "PYTHONWARNINGS": ""}
    for more in ([], ["--no-stream"]):
        command = [sys.executable, "-m", "llm", "prompt", "-m", "tiny", "--key", KEY, *more, QUESTION]
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.rstrip("\n") == ANSWER, done.stderr


@pytest.mark.slow
def test_lm_eval_has_the_score_of_unmask_eval(served, tmp_path, monkeypatch):
    """One task, by ``local-completions`` with ids and by ``local-chat-completions``: the same score and texts."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from eval_tasks import write
    from unmask.api import BUNDLED

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    tasks = write(tmp_path / "tasks", 6)
    result = cli(
        "eval",
        "--tasks",
        "words",
        "--include-path",
        tasks,
        "--chat",
        "-n",
        64,
        "-o",
        tmp_path / "out",
        "--dtype",
        "float32",
    )
    assert result.exit_code == 0, result.stderr
    own = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["words"]["exact_match,answer"]
    assert own > 0
    common = {"model": NAME, "max_retries": 1, "max_gen_toks": 64}
    for kind, more in (
        (
            "local-completions",
            {"base_url": f"{served.url}/v1/completions", "tokenizer": str(BUNDLED), "tokenized_requests": True},
        ),
        ("local-chat-completions", {"base_url": f"{served.url}/v1/chat/completions", "num_concurrent": 4}),
    ):
        found = lm_eval.simple_evaluate(
            model=kind,
            model_args={**common, **more},
            tasks=["words"],
            apply_chat_template=True,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            verbosity="ERROR",
        )
        assert found["results"]["words"]["exact_match,answer"] == own, kind
