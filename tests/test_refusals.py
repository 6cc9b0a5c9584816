"""The helper for errors accepts names and values, and no sentences."""

import pytest

from refusals import names, refuses

NAMED = "threshold: tau must be a number in [0, 2], got 'very high' (see model/config.json, --top-k 3, at 'no model')"


@pytest.mark.parametrize(
    "thing",
    [
        "tau",
        "threshold: tau",
        "[0, 2]",
        "'very high'",
        "config.json",
        "model/config.json",
        "--top-k",
        3,
        "got 'very high'",
    ],
)
def test_names_and_values(thing):
    names(NAMED, thing)


@pytest.mark.parametrize("thing", ["top_p", "'high'", "[0, 1]", 4, None])
def test_what_is_not_named(thing):
    with pytest.raises(AssertionError):
        names(NAMED, "tau", thing)


@pytest.mark.parametrize("thing", ["must be", "tau must be a number", "a number in", "threshold: tau must be"])
def test_sentences_are_no_names(thing):
    with pytest.raises(ValueError, match="wording"):
        names(NAMED, thing)


def test_kind_and_names():
    with refuses(ValueError, "tau", 3) as caught:
        raise ValueError("tau: 3")
    assert caught.value.args == ("tau: 3",)
    for error, expected in ((ValueError("tau"), AssertionError), (TypeError("tau: 3"), TypeError)):
        with pytest.raises(expected), refuses(ValueError, "tau", 3):
            raise error
    with pytest.raises(pytest.fail.Exception), refuses(ValueError, "tau"):
        pass
