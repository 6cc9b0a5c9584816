"""OpenAI's ``tools``: arguments valid by construction, whether the chat template writes calls or not."""

import json
import shutil

import jsonschema
import openai
import pytest

import unmask
from serving import serving
from unmask.api import BUNDLED
from unmask.constraints.calls import Calls
from unmask.constraints.compile import compile_constraint
from unmask.server.calls import Offer, Reader, message
from unmask.text.calls import PLAIN, CallFormat

FACTS = "Mia Gray turned 59 this year. The family keeps a cow. Every day is spent as a singer. The flat is in Lyon."
SAID = [{"role": "user", "content": f"{FACTS}\nFill the record: age, who, town"}]
FIELDS = {"age": {"type": "integer"}, "who": {"type": "string"}, "town": {"type": "string"}}
RECORD = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}
SAVE = {"type": "function", "function": {"name": "save", "description": "Saves a record.", "parameters": RECORD}}
NOW = {"type": "function", "function": {"name": "now"}}
NAME = "unmask-tiny"
HERMES = """{%- if tools %}<|user|>Functions:
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' %}<|assistant|>{{ message.content }}
{%- for call in message.tool_calls %}{{ '\\n' if message.content or not loop.first }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|endoftext|>
{%- elif message.role == 'tool' %}<|user|><tool_response>
{{ message.content }}
</tool_response>
{%- else %}<|user|>{{ message.content }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
FORMAT = CallFormat('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled model with a template and control tokens for tools; these are bytes that no text has."""
    path = tmp_path_factory.mktemp("models") / NAME
    shutil.copytree(BUNDLED, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": HERMES}))
    table = json.loads((path / "tokenizer.json").read_text())
    vocab, plain = (
        table["model"]["vocab"],
        {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False},
    )
    for byte, token in (("þ", "<tool_call>"), ("ÿ", "</tool_call>")):
        vocab[token] = vocab.pop(byte)
        table["added_tokens"].append({"id": vocab[token], "content": token, "special": False, **plain})
    (path / "tokenizer.json").write_text(json.dumps(table))
    return path


@pytest.fixture(scope="module")
def hermes(folder):
    return unmask.load(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def clients(hermes):
    """The bundled model as it is, and with the template."""
    with serving() as plain, serving(hermes) as tools:
        made = [openai.OpenAI(base_url=f"{one.url}/v1", api_key="x", max_retries=0) for one in (plain, tools)]
        yield made
        for one in made:
            one.close()
        assert plain.idle() and tools.idle()


def asked(client, extra_body=None, **more):
    own = {"policy": "threshold(tau=0.5)", **(extra_body or {}).get("unmask", {})}
    more = {"max_tokens": 72, "tools": [SAVE], **more}
    return client.chat.completions.create(model=NAME, messages=SAID, extra_body={"unmask": own}, **more)


# --- the format of calls


def test_the_format_is_read_from_the_template(hermes):
    assert hermes.text.takes_tools
    assert hermes.text.calls == FORMAT
    plain = unmask.load().text
    assert not plain.takes_tools and plain.calls is None


def test_a_conversation_with_calls(hermes):
    call = {"id": "c1", "type": "function", "function": {"name": "save", "arguments": '{"age": 1, "b": "<|user|>"}'}}
    said = [*SAID, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "ok"}]
    ids = hermes.text.encode(said, tools=[SAVE])
    shown = "".join(hermes.text.pieces(ids))
    assert shown.endswith(
        '<|assistant|><tool_call>\n{"name": "save", "arguments": {"age": 1, "b": "<|user|>"}}\n</tool_call>'
        "<|endoftext|><|user|><tool_response>\nok\n</tool_response><|assistant|>"
    )
    assert ids.count(hermes.text.control["<|user|>"]) == 3  # what an argument spells is text
    plain = unmask.load().text
    assert '{"name": "save", "arguments": {"age": 1, "b": "<|user|>"}}' in "".join(plain.pieces(plain.encode(said)))
    for calls in ("x", [{"function": {"name": "f", "arguments": "{"}}], [{"function": {"arguments": {}}}], [3]):
        with pytest.raises(unmask.RequestError, match="tool_calls"):
            hermes.text.encode([*SAID, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": ""}])
    with pytest.raises(unmask.RequestError):
        hermes.text.encode(said[:2])  # nothing follows the calls


# --- what is accepted, and how it is taken apart

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
SAVED = '<tool_call>\n{"name": "save", "arguments": {"a": "}\\"{\\\\"}}\n</tool_call>'
TEXTS = [
    ("", None, []),
    ("plain <tool text", "plain <tool text", []),
    (CALL, None, [("now", "{}")]),
    (f"I do.\n\n{SAVED}\n{CALL}", "I do.", [("save", '{"a": "}\\"{\\\\"}'), ("now", "{}")]),
]


def offer(form=FORMAT, text=True, name=None, many=True, free=None):
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})
    return Offer((), Calls(form, (("save", schema), ("now", '{"type": "object"}')), many, text, free), name)


@pytest.mark.parametrize(("text", "content", "calls"), TEXTS)
def test_deltas_make_the_message(text, content, calls):
    """Wherever the text is cut."""
    whole = message(offer(), text)
    assert whole["content"] == content
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in whole.get("tool_calls", [])] == calls
    for size in (1, 2, 3, 7):
        reader = Reader(offer())
        deltas = [reader.push(text[at : at + size]) for at in range(0, len(text), size)] + [reader.finish()]
        assert "".join(d.get("content", "") for d in deltas) == (content or "")
        names, arguments = {}, {}
        for call in (call for d in deltas for call in d.get("tool_calls", [])):
            names.setdefault(call["index"], call["function"].get("name"))
            assert ("id" in call) == ("name" in call["function"])
            arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
        assert [*zip(names.values(), arguments.values(), strict=True)] == calls


def test_texts_and_calls_are_told_apart():
    plain = message(offer(PLAIN), '{"name": "now", "arguments": {}}')
    assert plain["tool_calls"][0]["function"]["name"] == "now"
    for text in ('Say {"name": "now", "arguments": {}}', '{"nam', "  "):
        assert message(offer(PLAIN), text) == {"content": text}
    cut = message(offer(), 'x <tool_call>\n{"name": "save", "arguments": {"a": "b')  # ended by max_nfe
    assert cut["content"] == "x" and cut["tool_calls"][0]["function"]["arguments"] == '{"a": "b'


@pytest.mark.parametrize(
    ("options", "accepted", "not_accepted"),
    [
        ({}, [text for text, _, _ in TEXTS if "\\\\" not in text], ["<tool_call>", "a <tool_call>\n", "<tool_call>x"]),
        ({"many": False}, ["x", CALL], [CALL + "\n" + CALL]),
        ({"text": False}, [CALL, CALL + "\n" + CALL], ["", "x", "x" + CALL]),
        (
            {"form": PLAIN},
            ["", '{"name', '{"nom":', 'a {"name": x', '{"name": "now", "arguments": {}}'],
            ['{"name":', '{"name": "no"}', '{"name": "now", "arguments": {}} '],
        ),
        ({"free": ("regex", "[0-9]+")}, ["12", CALL], ["", "x", "12\n" + CALL]),
    ],
)
def test_what_is_accepted(hermes, options, accepted, not_accepted):
    text, spec = hermes.text, hermes.denoiser.spec
    made = compile_constraint("tools", offer(**options).constraint, text, spec)
    for one in accepted:
        assert made.accepts(text.parse(one)), one  # its marks are control tokens
    for one in not_accepted:
        assert not made.accepts(text.parse(one)), one


# --- the SDK


@pytest.mark.parametrize("which", [0, 1])
def test_a_function_that_must_be_called(clients, which):
    choice = {"type": "function", "function": {"name": "save"}}
    more = {"n": 2, "temperature": 1.0, "seed": 3} if which == 0 else {}
    reply = asked(clients[which], tool_choice=choice, tools=[SAVE, NOW], **more)
    for one in reply.choices:
        assert (one.finish_reason, one.message.content) == ("tool_calls", None)
        (call,) = one.message.tool_calls
        assert (call.type, call.function.name) == ("function", "save") and call.id
        jsonschema.validate(json.loads(call.function.arguments), RECORD)
    if which == 0:  # which is what it has been trained for
        (call,) = asked(clients[0], tool_choice=choice).choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"age": 59, "who": "Mia Gray", "town": "Lyon"}


@pytest.mark.parametrize(("which", "policy"), [(0, "wino"), (1, "slowfast")])
def test_streamed_calls_are_those_of_the_whole(clients, which, policy):
    more = {"tool_choice": "required", "tools": [SAVE, NOW], "seed": 5, "extra_body": {"unmask": {"policy": policy}}}
    whole = asked(clients[which], **more).choices[0]
    chunks = list(asked(clients[which], stream=True, stream_options={"include_usage": True}, **more))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content is None
    assert chunks[-2].choices[0].finish_reason == whole.finish_reason == "tool_calls"
    with clients[which].chat.completions.stream(model=NAME, messages=SAID, max_tokens=72, **more) as stream:
        final = stream.get_final_completion().choices[0].message
    assert [(c.function.name, c.function.arguments) for c in final.tool_calls] == [
        (c.function.name, c.function.arguments) for c in whole.message.tool_calls
    ]
    for call in final.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), RECORD if call.function.name == "save" else {})


@pytest.mark.slow
def test_the_model_may_choose(clients):
    answered = asked(clients[1]).choices[0]  # which it does: it has been trained for texts
    assert answered.finish_reason == "stop" and answered.message.content and answered.message.tool_calls is None
    assert "".join(c.choices[0].delta.content or "" for c in asked(clients[1], stream=True)) == answered.message.content
    called = asked(clients[1], extra_body={"unmask": {"regex": "x{100}"}})  # there is no room for such a text
    assert called.choices[0].finish_reason == "tool_calls"
    silent = asked(clients[1], tool_choice="none", extra_body={"unmask": {"choices": ["no"]}}).choices[0]
    assert (silent.message.content, silent.message.tool_calls) == ("no", None)
    only = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "now"}}]}}  # fmt: skip
    (call,) = (
        asked(clients[1], tools=[SAVE, NOW], tool_choice=only, parallel_tool_calls=False).choices[0].message.tool_calls
    )
    assert (call.function.name, call.function.arguments) == ("now", "{}")


@pytest.mark.slow
def test_a_result_is_given_back(clients):
    for client in clients:
        call = asked(client, tool_choice="required").choices[0].message
        said = [*SAID, call, {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "saved"}]
        assert client.chat.completions.create(model=NAME, messages=said, max_tokens=16).choices[0].finish_reason


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({}, "tool_choice"),  # the bundled model's template shows no tools: it cannot choose
        ({"tool_choice": "required", "stop": "x"}, "stop"),
        ({"tool_choice": "required", "max_tokens": 2}, "max_tokens"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
            },
            "tools",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
            },
            "tools",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(clients, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        asked(clients[0], **more)
    assert caught.value.param == param
