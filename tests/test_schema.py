"""Files of JSON lines: one reader, one check. Every error names file, line, field, what was found, what is accepted."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from unmask.core import jsonl
from unmask.core.errors import RequestError
from unmask.core.schema import Count, Name, Schema, parse


class Part(Schema):
    size: Count = Field(description="of the part")


class Strict(Part):
    model_config = Part.model_config | {"extra": "forbid"}


class Thing(Schema):
    name: Name = Field(description="of the thing")
    kind: Literal["a", "b"] = "a"
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    parts: list[Part] = Field([])
    strict: Strict | None = None
    value: str | list[int] = Field("", title="a text or a list of ids")
    mixed: list[bool | float] = Field([])

    @model_validator(mode="after")
    def _fits(self):
        if len(self.parts) > 2:
            raise ValueError(f'"parts" has {len(self.parts)}; accepted: at most 2')
        return self


def test_a_value_that_fits():
    made = parse(Thing, {"name": "x", "parts": [{"size": 3, "else": 1}], "more": 2}, "f line 1")
    assert (made.name, made.kind, made.parts[0].size, made.share) == ("x", "a", 3, 0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ['no "name"', "of the thing"]),
        ({"name": ""}, ['"name" must', "at least 1 character", "got ''"]),
        ({"name": 7}, ['"name" must be a text', "got 7"]),
        ({"name": "x", "kind": "c"}, ['"kind" must be', "'a' or 'b'", "got 'c'"]),
        ({"name": "x", "share": 1.5}, ['"share" must be less than or equal to 1', "got 1.5"]),
        ({"name": "x", "share": True}, ['"share" must be a number', "got True"]),
        ({"name": "x", "share": "0.5"}, ['"share" must be a number', "got '0.5'"]),
        ({"name": "x", "parts": [{"size": 1}, {}]}, ['no "parts[1].size"', "of the part"]),
        ({"name": "x", "parts": [{"size": 1.5}]}, ['"parts[0].size" must be an integer', "got 1.5"]),
        ({"name": "x", "parts": [{"size": -1}]}, ['"parts[0].size" must be greater than or equal to 0', "got -1"]),
        ({"name": "x", "parts": {}}, ['"parts" must be a list', "got {}"]),
        ({"name": "x", "parts": [5]}, ['"parts[0]" must be an object with "size"', "got 5"]),
        ({"name": "x", "parts": [{"size": 1}] * 3}, ['"parts" has 3; accepted: at most 2']),
        ({"name": "x", "strict": {"size": 1, "sise": 2}}, ["unknown key 'sise'; accepted: size"]),
        ({"name": "x", "value": {"a": 1}}, ['"value" must be a text or a list of ids', "got {'a': 1}"]),
        ({"name": "x", "mixed": [1, "y"]}, ['"mixed[1]" must be a boolean or be a number', "got 'y'"]),
        (5, ['it must be an object with "name"', "got 5"]),
        ({"name": "x", "value": ["y" * 900]}, ["got"]),
    ],
)
def test_what_does_not_fit(given, words):
    with pytest.raises(RequestError) as refused:
        parse(Thing, given, "f.jsonl line 4")
    said = str(refused.value)
    assert said.startswith("f.jsonl line 4: ") and "\n" not in said and len(said) < 250
    for word in words:
        assert word in said


def test_lines():
    """A byte order mark, blank lines and Windows' ends of lines are nothing; other separators do not end a line."""
    raw = '\ufeff{"a": "\u2028"}\r\n\n 5\r\n[]'.encode()
    assert [(one.number, one.where, one.value, one.ended) for one in jsonl.lines(raw, "f")] == [
        (1, "f line 1", {"a": "\u2028"}, True),
        (3, "f line 3", 5, True),
        (4, "f line 4", [], False),
    ]


@pytest.mark.parametrize(
    ("raw", "named"),
    [(b"1\n{", "f line 2"), (b"1\nNaN\n", "f line 2"), (b"-Infinity", "f line 1"), (b"1\n\n\xff\n", "f line 3"),
     (b"[" * 10**5, "f line 1"), (b"{\n1", "f line 1")],
)  # fmt: skip
def test_what_is_no_line(raw, named):
    with pytest.raises(RequestError, match=f"^{named}: not"):
        list(jsonl.lines(raw, "f"))


@pytest.mark.parametrize("rest", [b'{"a', b"\xe2\x82", b"[1,"])
def test_a_torn_line_is_the_last_one(rest):
    first, last = jsonl.lines(b"1\n" + rest, "f", torn=True)
    assert (first.torn, last.torn, last.value, last.number) == (False, True, None, 2)
    for raw in (rest, b"1\n" + rest + b"\n", b"1\n" + rest + b"\n2\n"):
        with pytest.raises(RequestError, match="line"):
            list(jsonl.lines(raw, "f", torn=True))


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RequestError, match=f"cannot read {path}"):
            jsonl.read(path)


@pytest.mark.slow
def test_who_decodes_does_without_statistics():
    """Importing scipy takes most of a second; typer needs pydantic itself, the library does not."""
    script = "import sys; from unmask.cli import app; app(['generate', 'Hi', '-n', '2'], prog_name='unmask')"
    script = f"try:\n    {script}\nexcept SystemExit: print()\nprint('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    script = "import sys, unmask; unmask.load().generate('Hi', 2); print({'scipy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
