"""What a test may ask of an error: its type, and the parameter or file and the value that it names. Not its wording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_PROSE = re.compile(r"(?<![\w.=/(-])[a-z]{2,},? [a-z]{2,}(?![\w=/(.-])")  # two plain words in a row


def names(message: object, *things: Any) -> None:
    """Each of the things occurs in the message: a text as it stands, a path, a type or a number as ``str`` gives it.

    A text is a name or a value (``"tau"``, ``"--top-k"``, ``"'hot'"``, ``"[0, 2]"``), no wording: two words in a row
    are refused, so that messages can be improved without touching a test.
    """
    for thing in things:
        text = str(thing)
        if isinstance(thing, str) and _PROSE.search(_QUOTED.sub("", text)):
            raise ValueError(f"{text!r} pins the wording of a message; name the parameter, the file or the value")
        assert text in str(message), f"{text!r} is not named in: {message}"


@contextmanager
def refuses(kind: type[Exception], *things: Any) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The block raises an error of this kind, which names the things."""
    with pytest.raises(kind) as caught:
        yield caught
    names(caught.value, *things)


def refused(result: Any, *things: Any) -> None:
    """A command that ended with code 2 and one line on standard error, which names the things, and did nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    names(result.stderr, *things)
