"""Structured output over HTTP: OpenAI's ``response_format``, and the parameters of the same names as in Python."""

import json

import pytest

from serving import serving
from structured import SCHEMAS, valid

FACTS = "The age of Rosa Reed is 38. There is a snake at home. Home is Prague.\nFill the record: name, age, pet"


@pytest.fixture(scope="module")
def served():
    with serving() as running:
        yield running


def said(served, **more):
    reply = served.post("/v1/chat/completions", {"messages": [{"role": "user", "content": FACTS}], **more})
    return reply.status_code, reply.json()


def test_response_format(served):
    form = {"type": "json_schema", "json_schema": {"name": "record", "schema": SCHEMAS["record"], "strict": True}}
    status, reply = said(served, max_tokens=48, response_format=form)
    assert status == 200
    assert valid({"json_schema": SCHEMAS["record"]}, reply["choices"][0]["message"]["content"])
    status, reply = said(served, max_tokens=48, response_format={"type": "json_object"})
    assert isinstance(json.loads(reply["choices"][0]["message"]["content"]), dict)


def test_choices_and_expressions(served):
    for own, texts in (({"choices": ["cat", "dog"]}, {"cat", "dog"}), ({"regex": "[ab]"}, {"a", "b"})):
        for more in (own, {"unmask": own}):
            status, reply = said(served, max_tokens=8, **more)
            assert status == 200
            assert reply["choices"][0]["message"]["content"] in texts


def nested(depth):
    return {"type": "array", "items": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"regex": "("}, "regex"),
        ({"json_schema": {"not": {}}}, "not"),
        ({"regex": "a", "unmask": {"regex": "b"}}, "unmask.regex"),
        ({"unmask": {"regex": "a", "choices": ["a"]}}, "choices"),
        ({"json_schema": nested(400)}, "deep"),
        ({"choices": ["Prague is the home of Rosa Reed"], "max_tokens": 2}, "at least"),
    ],
)
def test_what_cannot_be_followed_is_refused(served, more, named):
    status, reply = said(served, **{"max_tokens": 8, **more})
    assert status == 400
    assert named in reply["error"]["message"]
