"""The server's endpoints: OpenAI's shapes, what is exact in them, and what is refused."""

import json
import math

import pytest

import unmask
from refusals import names
from serving import ANSWER, QUESTION, model, serving
from unmask import registry

MASK = "<|mdm_mask|>"
SAID = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def served():
    with serving() as running:
        yield running
        assert running.idle()


def complete(served, prompt, **more):
    reply = served.post("/v1/completions", {"prompt": prompt, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def text(events):
    """The text of a stream's first choice."""
    parts = [c for e in events for c in e["choices"] if c["index"] == 0]
    return "".join(c["delta"].get("content") or "" if "delta" in c else c["text"] for c in parts)


def test_chat(served):
    reply = served.post("/v1/chat/completions", {"messages": SAID, "max_tokens": 64}).json()
    (alone,) = model().generate(QUESTION, 64)
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["unmask"]["finish_reason"] == "eos"
    assert choice["unmask"]["nfe"] == alone.stats.nfe
    prompt = len(alone.prompt_tokens)
    assert reply["usage"] == {"prompt_tokens": prompt, "completion_tokens": 21, "total_tokens": prompt + 21}
    assert reply["object"] == "chat.completion" and reply["model"] == "unmask-tiny"


def test_an_answer_that_is_begun_is_continued(served):
    said = [*SAID, {"role": "assistant", "content": "11*2="}]
    reply = served.post("/v1/chat/completions", {"messages": said, "max_completion_tokens": 32}).json()
    assert reply["choices"][0]["message"]["content"] == ANSWER.removeprefix("11*2=")


def test_prompts_of_every_form(served):
    lm = model()
    texts = ["3+4=", "11*2=22\n22+7="]
    ids = [lm.text.plain(one, special=True) for one in texts]
    alone = [r.text for r in lm.generate(texts, 8, chat=False)]
    for prompt in (texts, ids):
        reply = complete(served, prompt, max_tokens=8)
        assert [c["text"] for c in reply["choices"]] == alone
        assert [c["index"] for c in reply["choices"]] == [0, 1]
        assert reply["usage"]["prompt_tokens"] == sum(map(len, ids))
    for prompt in (texts[0], ids[0]):
        assert [c["text"] for c in complete(served, prompt, max_tokens=8)["choices"]] == alone[:1]


def test_several_samples_have_seeds_that_count_on(served):
    reply = complete(served, [QUESTION, "3+4="], n=3, seed=5, temperature=1.5, max_tokens=12)
    alone = model().generate([QUESTION, "3+4="], 12, chat=False, n=3, seed=5, temperature=1.5)
    assert [c["text"] for c in reply["choices"]] == [r.text for r in alone]
    assert [c["unmask"]["seed"] for c in reply["choices"]] == [5, 6, 7, 8, 9, 10]
    assert reply["usage"]["prompt_tokens"] == sum(len(r.prompt_tokens) for r in alone[::3])


@pytest.mark.parametrize("length", [1, 7, 30])
def test_max_tokens_is_exact(served, length):
    reply = complete(served, "Queue:", max_tokens=length, ignore_eos=True, suppress=["<|endoftext|>"])
    assert reply["usage"]["completion_tokens"] == length
    assert reply["choices"][0]["finish_reason"] == "length"


def test_stop_strings_end_a_text(served):
    reply = served.post("/v1/chat/completions", {"messages": SAID, "stop": ["\nAnswer", "zebra"]}).json()
    assert reply["choices"][0]["message"]["content"] == "11*2=22\n22+7=29"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["unmask"]["finish_reason"] == "stop"
    assert complete(served, QUESTION, stop="1", max_tokens=16)["choices"][0]["text"].count("1") == 0


def test_logprobs_are_those_of_the_commit(served):
    (alone,) = model().generate("3+4=", 12, chat=False)
    (choice,) = complete(served, "3+4=", max_tokens=12, logprobs=1, echo=True)["choices"]
    logs = choice["logprobs"]
    assert choice["text"] == "3+4=" + alone.text
    count, lead = alone.stats.tokens, len(alone.prompt_tokens)
    assert logs["token_logprobs"][:lead] == [None] * lead
    assert logs["token_logprobs"][lead:] == pytest.approx([math.log(p) for p in alone.confidence[:count]], abs=1e-5)
    assert "".join(logs["tokens"]) == choice["text"]
    assert [choice["text"][at:][: len(t)] for at, t in zip(logs["text_offset"], logs["tokens"], strict=True)] == logs[
        "tokens"
    ]
    assert [top and list(top) for top in logs["top_logprobs"]] == [None] * lead + [[t] for t in logs["tokens"][lead:]]
    chat = served.post("/v1/chat/completions", {"messages": SAID, "logprobs": True}).json()["choices"][0]
    assert "".join(one["token"] for one in chat["logprobs"]["content"]) == ANSWER
    assert bytes(b for one in chat["logprobs"]["content"] for b in one["bytes"]).decode() == ANSWER


def test_streamed_logprobs_are_those_of_the_whole(served):
    for stop in (None, ["swer"]):
        body = {"prompt": "11*2=22\n22+7=", "max_tokens": 24, "logprobs": 1, "stop": stop, "seed": 1}
        whole = complete(served, **body)["choices"][0]
        choices = [c for e in served.events("/v1/completions", body) for c in e["choices"]]
        assert "".join(c["text"] for c in choices) == whole["text"]
        for key in ("tokens", "token_logprobs"):
            assert [one for c in choices for one in c["logprobs"][key]] == whole["logprobs"][key]


def test_a_suffix_makes_it_infilling(served):
    (choice,) = complete(served, "11*2=", suffix="\n22+7=29\nAnswer: 29", max_tokens=2)["choices"]
    (alone,) = model().infill("11*2=[MASK*2]\n22+7=29\nAnswer: 29")
    assert choice["text"] == alone.spans[0].text == "22"
    echoed = complete(served, "11*[MASK]=", suffix="\n", max_tokens=1, echo=True)["choices"][0]["text"]
    assert echoed.startswith("11*[MASK]=")


def test_infill_fills_several_gaps(served):
    gaps = "11*2=[MASK*2]\n22+7=[MASK*2]\nAnswer: [MASK*2]"
    body = {"text": [gaps, "3+4=[MASK]\n"], "prompt": SAID, "n": 2}
    reply = served.post("/v1/infill", body).json()
    alone = model().infill(body["text"], prompts=QUESTION, n=2)
    assert [c["text"] for c in reply["choices"]] == [r.text for r in alone]
    assert reply["choices"][0]["text"] == ANSWER
    assert [s["text"] for s in reply["choices"][0]["unmask"]["spans"]] == ["22", "29", "29"]
    ids = model().text.encode_gaps(["3+4=", 1, "\n"], model().denoiser.spec.mask)
    assert served.post("/v1/infill", {"text": ids}).status_code == 200
    events = served.events("/v1/infill", {"text": gaps, "prompt": QUESTION})
    assert text(events) == ANSWER


def test_each_request_has_its_own_policy_and_cache(served):
    own = {"policy": "vanilla", "cache": "dual", "max_nfe": 3}
    reply = complete(served, "3+4=", max_tokens=16, ignore_eos=True, unmask=own)
    assert reply["unmask"]["policy"] == "vanilla" and reply["unmask"]["cache"] == "dual"
    assert reply["unmask"]["nfe"] == 3
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["unmask"]["finish_reason"] == "max_nfe"
    named = complete(served, "3+4=", max_tokens=4, unmask={"policy": "threshold"})
    assert named["unmask"]["cache"] == "none"  # as in Python: a policy given without a cache has none
    (alone,) = model().generate("3+4=", 4, "threshold", chat=False)
    assert named["choices"][0]["text"] == alone.text


@pytest.mark.slow
def test_responses_of_a_given_form(served):
    """By a schema, a regular expression or choices, whole and streamed: as in Python."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
    for more, own in (
        ({"response_format": form}, {"json_schema": schema}),
        ({"json_schema": schema}, {"json_schema": schema}),
        ({"regex": "[0-9]+ jars"}, {"regex": "[0-9]+ jars"}),
        ({"choices": ["29", "30"]}, {"choices": ["29", "30"]}),
    ):
        body = {"messages": SAID, "max_tokens": 24, **more}
        (alone,) = model().generate(QUESTION, 24, **own)
        reply = served.post("/v1/chat/completions", body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == alone.text != ""
        assert text(served.events("/v1/chat/completions", body)) == alone.text
    assert isinstance(
        json.loads(complete(served, "3+4=", max_tokens=24, json_schema=schema)["choices"][0]["text"])["n"], int
    )
    anything = served.post(
        "/v1/chat/completions", {"messages": SAID, "max_tokens": 24, "response_format": {"type": "json_object"}}
    )
    assert isinstance(json.loads(anything.json()["choices"][0]["message"]["content"]), dict)


@pytest.mark.parametrize("spelled", [MASK, "<|endoftext|>", "[MASK]", "<|im_end|>"])
def test_names_of_control_tokens_are_text(served, spelled):
    reply = complete(served, f"{spelled}3+4=", max_tokens=2, echo=True)
    assert reply["choices"][0]["text"].startswith(f"{spelled}3+4=")
    said = [{"role": "user", "content": spelled}]
    told = served.events("/v1/chat/completions", {"messages": said, "max_tokens": 2, "unmask": {"stream": "steps"}})
    ids = model().text.encode(said)
    assert told[0]["choices"][0]["unmask"]["prompt"] == model().text.pieces(ids)
    assert model().denoiser.spec.mask not in ids


def test_models(served):
    (card,) = served.get("/v1/models").json()["data"]
    assert card["id"] == "unmask-tiny" and card["unmask"]["context"] == 2048
    assert served.get("/v1/models/unmask-tiny").json() == card
    missing = served.get("/v1/models/gpt-9")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("path", "kind"), [("/v1/policies", "policy"), ("/v1/caches", "cache")])
def test_schemas_accept_what_the_registry_builds(served, path, kind):
    jsonschema = pytest.importorskip("jsonschema_rs")
    listed = served.get(path).json()
    assert [one["id"] for one in listed["data"]] == list(registry.table(kind))
    assert registry.lookup(kind, listed["default"].partition("(")[0])
    for one in listed["data"]:
        schema = one["parameters"]
        jsonschema.meta.validate(schema)
        built = {name: rule["default"] for name, rule in schema["properties"].items() if "default" in rule}
        assert jsonschema.is_valid(schema, built | dict.fromkeys(schema["required"], "vanilla"))
        for name, rule in schema["properties"].items():
            for key, off in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1)):
                if key in rule:
                    assert not jsonschema.is_valid(schema, {**built, name: rule[key] + off})
                    inner = "".join(
                        f"{need}={'vanilla' if kind == 'policy' else 'dual'}," for need in schema["required"]
                    )
                    with pytest.raises(unmask.SpecError):
                        getattr(registry, kind)(f"{one['id']}({inner}{name}={rule[key] + off})")


def test_health_and_metrics(served):
    assert served.get("/health").json() == {"status": "ok"}
    assert served.get("/ready").json() == {"status": "ready"}

    def read():
        lines = served.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    before = read()
    reply = complete(served, "3+4=", max_tokens=8, unmask={"policy": "vanilla"})
    after = read()
    told = {
        'unmask_tokens_total{kind="completion",policy="vanilla"}': reply["usage"]["completion_tokens"],
        'unmask_tokens_total{kind="prompt",policy="vanilla"}': reply["usage"]["prompt_tokens"],
        'unmask_nfe_sum{policy="vanilla"}': reply["unmask"]["nfe"],
        'unmask_first_token_seconds_count{policy="vanilla"}': 1,
        'unmask_responses_total{finish_reason="eos",policy="vanilla"}': 1,
        "unmask_forward_passes_total": reply["unmask"]["nfe"],
        'unmask_http_requests_total{path="/v1/completions",status="200"}': 1,
    }
    for name, value in told.items():
        assert after[name] - before.get(name, 0) == value, name
    assert after["unmask_open"] == after["unmask_running"] == 0


BAD = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({}, "prompt"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_k": -2}, "top_k"),
    ({"prompt": "a", "seed": 1 << 64}, "seed"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 1000}, "n"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 4096}, "max_tokens"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stop": ["x"] * 33}, "stop"),
    ({"prompt": "a", "stop": 7}, "stop"),
    ({"prompt": "a", "suppress": ["two tokens"]}, "suppress"),
    ({"prompt": "a", "logprobs": 5}, "logprobs"),
    ({"prompt": "a", "logit_bias": {"3": 1}}, "logit_bias"),
    ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty"),
    ({"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty"),
    ({"prompt": "a", "best_of": 4}, "best_of"),
    ({"prompt": "a", "suffix": "b", "stop": "c"}, "stop"),
    ({"prompt": [1, 2], "suffix": "b"}, "suffix"),
    ({"prompt": "a", "unmask": {"policy": "nope"}}, "unmask.policy"),
    ({"prompt": "a", "unmask": {"policy": "threshold(tau=3"}}, "unmask.policy"),
    ({"prompt": "a", "unmask": {"policy": "threshold(tau=9)"}}, "unmask.policy"),
    ({"prompt": "a", "unmask": {"cache": "nope"}}, "unmask.cache"),
    ({"prompt": "a", "unmask": {"polcy": "vanilla"}}, "unmask.polcy"),
    ({"prompt": "a", "unmask": {"max_nfe": 0}}, "unmask.max_nfe"),
    ({"prompt": "a", "unmask": {"stream": "frames"}}, "unmask.stream"),
    ({"prompt": "a", "unmask": 3}, "unmask"),
    ({"prompt": "a", "unmask": {"policy": 'apd(verifier="/etc/passwd")'}}, "unmask.policy"),
    ({"prompt": "a", "unmask": {"policy": 'lookahead(learned(weights="x.safetensors"),8)'}}, "unmask.policy"),
    ({"prompt": "a\ud800"}, "prompt"),
    ({"prompt": "a" * 3000}, "prompt"),
    ({"prompt": [821]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [0]}, "prompt"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
def test_what_is_wrong_is_named(served, body, param):
    for stream in (False, True):
        reply = served.post("/v1/completions", {**body, "stream": stream})
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param, error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 3}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ("/v1/chat/completions", {"messages": SAID, "tools": [{"type": "function"}]}, "tools"),
        ("/v1/chat/completions", {"messages": SAID, "response_format": {"type": "json_schema"}}, "response_format"),
        ("/v1/chat/completions", {"messages": SAID, "response_format": {"type": "xml"}}, "response_format"),
        ("/v1/chat/completions", {"messages": SAID, "regex": "(a"}, "regex"),
        ("/v1/chat/completions", {"messages": SAID, "regex": "a", "choices": ["b"]}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": SAID, "json_schema": {"type": "integer", "multipleOf": 0.3}},
            "json_schema",
        ),
        (
            "/v1/chat/completions",
            {"messages": SAID, "max_tokens": 3, "max_completion_tokens": 4},
            "max_completion_tokens",
        ),
        ("/v1/chat/completions", {"messages": SAID, "top_logprobs": 5}, "top_logprobs"),
        ("/v1/infill", {"text": "no gap"}, "text"),
        ("/v1/infill", {"text": "[MASK*0]"}, "text"),
        ("/v1/infill", {"text": "[MASK*3000]a"}, "text"),
        ("/v1/infill", {"text": "a[MASK]", "stop": "x"}, "stop"),
        ("/v1/infill", {"text": "a[MASK]b", "unmask": {"policy": "left_to_right"}}, "text"),
    ],
)
def test_what_is_wrong_elsewhere_is_named(served, path, body, param):
    reply = served.post(path, body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_what_asks_for_nothing_is_accepted(served):
    neutral = {
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": None,
        "tools": [],
        "best_of": 1,
        "stop": None,
    }
    assert complete(served, "3+4=", max_tokens=2, **neutral)["choices"]


def test_unknown_fields_are_ignored_and_listed(served):
    reply = served.post("/v1/completions", {"prompt": "3+4=", "max_tokens": 2, "user": "me", "fo\nö": 1})
    assert reply.status_code == 200
    names(reply.headers["x-unmask-ignored"], "user", "fo")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000, b"1" * 9000]
)
def test_what_is_no_object_is_refused(served, data):
    head = {"content-type": "application/json"}
    import httpx2

    reply = httpx2.post(served.url + "/v1/completions", content=data, headers=head)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
    plain = httpx2.post(
        served.url + "/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 400  # a page of another site could send it


@pytest.mark.parametrize("policy", sorted(registry.POLICIES))
def test_deltas_make_the_text(served, policy):
    """Of every policy, those included that re-mask: no delta is taken back."""
    stops = ["9\n", "Answer: 2", "2"]
    spec = {
        "adaptive": "adaptive(threshold)",
        "lookahead": "lookahead(wino(block_length=8),24)",
        "prophet": "prophet(vanilla)",
        "wino": "wino(tau_in=0.3,tau_out=0.95,block_length=8)",
        "saber": "saber(block_length=8)",
    }.get(policy, policy)
    for temperature, stop in [(0, stops), (1.2, None)] if len(policy) % 2 else [(0, None), (1.2, stops)]:
        body = {
            "messages": SAID,
            "max_tokens": 32,
            "stop": stop,
            "temperature": temperature,
            "seed": 3,
            "ignore_eos": policy == "wino",
            "unmask": {"policy": spec, "stream": "steps"},
        }
        reply = served.post("/v1/chat/completions", body)
        if reply.status_code == 400:  # it is for another kind of models: the library refuses it as well
            with pytest.raises(unmask.RequestError):
                model().generate(QUESTION, 32, spec)
            continue
        whole = reply.json()
        events = served.events("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
        assert text(events) == whole["choices"][0]["message"]["content"]
        assert events[-1]["usage"] == whole["usage"] and events[-1]["choices"] == []
        assert played(events) == [one["id"] for one in events[-2]["choices"][0]["unmask"]["canvas"]]


def played(events):
    """The ids of a response as its step events leave them, up to where its last event ends."""
    told = [e["choices"][0]["unmask"] for e in events if e["choices"]]
    assert [one["event"] for one in told] == ["start", *["step"] * (len(told) - 2), "end"]
    assert [one["step"] for one in told[1:-1]] == list(range(len(told) - 2))
    canvas = {one["at"]: one["id"] for one in told[0]["fixed"]}
    for one in told[1:-1]:
        canvas.update({c["at"]: c["id"] for c in one["committed"]})
        for at in one["remasked"]:
            canvas.pop(at, None)
        assert not {p["at"] for p in one["provisional"]} & set(canvas)
        assert {p["at"] for p in one["provisional"]} <= set(range(told[0]["length"]))
    return [canvas[at] for at in sorted(canvas)][: len(told[-1]["canvas"])]


def test_step_events_tell_every_forward_pass(served):
    body = {"prompt": "3+4=", "max_tokens": 12, "unmask": {"policy": "slowfast", "stream": "steps"}}
    told = [e["choices"][0]["unmask"] for e in served.events("/v1/completions", body)]
    start, steps, end = told[0], told[1:-1], told[-1]
    assert start["prompt"] == ["3", "+", "4", "="] and start["length"] == 12
    assert end["nfe"] == len(steps)
    assert {phase for one in steps for phase in one["phases"]} == {"slow", "fast"}
    assert all(0 <= one["notes"]["start"] <= one["notes"]["end"] <= 12 for one in steps)
    assert [one["masked"] for one in steps][-1] == 0
    (alone,) = model().generate("3+4=", 12, "slowfast", chat=False)
    tokens, steps_of = alone.tokens[: alone.stats.tokens], alone.steps[: alone.stats.tokens]
    assert [(c["id"], c["step"]) for c in end["canvas"]] == list(zip(tokens, steps_of, strict=True))
    assert [c["p"] for c in end["canvas"]] == pytest.approx(alone.confidence[: alone.stats.tokens], abs=1e-4)


def test_a_streamed_chat_begins_with_the_role(served):
    events = served.events("/v1/chat/completions", {"messages": SAID, "n": 2})
    for index in (0, 1):
        own = [c for e in events for c in e["choices"] if c["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    assert len({e["id"] for e in events}) == 1


def test_the_schema_of_the_api_names_every_sampling_parameter(served):
    schema = served.get("/openapi.json").json()
    fields = schema["components"]["schemas"]["Completion"]["properties"]
    for name in unmask.SamplingParams.__dataclass_fields__:
        assert fields[name]["description"]
    assert json.dumps(fields["temperature"]).count('"minimum": 0')
