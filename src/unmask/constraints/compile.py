"""From what a request asks for to an automaton over the model's tokens, made once for each."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np

from ..core.canvas import ModelSpec
from ..core.errors import RequestError
from ..text import Text
from .automaton import Automaton, compiled
from .calls import Calls, calls
from .dfa import Bytes, automaton
from .schema import schema
from .syntax import Alt, Node, regex, text
from .vocabulary import Vocabulary, vocabulary

KINDS: dict[str, Callable[..., Node]] = {
    "regex": regex,
    "json_schema": lambda value: schema(json.loads(value)),
    "choices": lambda values: Alt(tuple(map(text, values))),
    "tools": lambda value: calls(value, KINDS),
}
_KEPT = 64  # automata of a tokenizer
_HELD: WeakKeyDictionary[Text, OrderedDict[Hashable, Automaton]] = WeakKeyDictionary()
_WORDS: WeakKeyDictionary[Text, dict[tuple[ModelSpec, bool], Vocabulary]] = WeakKeyDictionary()
_LOCK = Lock()


def compile_constraint(
    kind: str,
    value: str | tuple[str, ...] | Calls,
    tokenizer: Text | None,
    spec: ModelSpec,
    suppress: Sequence[int] = (),
) -> Automaton:
    """The automaton of a constraint.

    Args:
        kind: ``"regex"``, ``"json_schema"`` (as text), ``"choices"`` or ``"tools"``.
        value: of that kind.
        tokenizer: of the model.
        spec: the model's ids.
        suppress: ids that are not generated.

    Raises:
        RequestError: it cannot be read or followed, is too large, accepts nothing, or needs characters that the
            tokenizer cannot write.
    """
    if tokenizer is None:
        raise RequestError(f"{kind}: the model has no tokenizer.json, so that its responses have no text")
    plain, key = (kind, value, spec), (kind, value, spec, tuple(sorted(suppress)))
    with _LOCK:
        held = _HELD.setdefault(tokenizer, OrderedDict())
        if plain not in held:
            words, which = _WORDS.setdefault(tokenizer, {}), (spec, isinstance(value, Calls))
            if which not in words:
                words[which] = vocabulary(tokenizer, *which)
            held[plain] = _made(kind, KINDS[kind](value), words[which])
        if key not in held:
            held[key] = held[plain].without(suppress) if suppress else held[plain]
        for name in (plain, key):
            held.move_to_end(name)
        while len(held) > _KEPT:
            held.popitem(last=False)
        return held[key]


def _made(kind: str, node: Node, words: Vocabulary) -> Automaton:
    try:
        text = automaton(node)
    except RequestError as error:
        raise RequestError(f"{kind}: {error}") from None
    if text.empty:
        raise RequestError(f"{kind}: it accepts no text")
    made = compiled(text, words)
    if made.least() is None:
        missing = _missing(text, words)
        why = f"the tokenizer cannot write {missing!r}" if missing else "no tokens of the model make up such a text"
        raise RequestError(f"{kind}: no accepted text can be generated: {why}")
    return made


def _missing(text: Bytes, words: Vocabulary) -> str | None:
    """A character of a shortest accepted text that no token writes."""
    before: dict[int, tuple[int, int]] = {}
    order, end = [0], 0 if text.accept[0] else None
    for state in order:  # which grows
        for at in np.flatnonzero(text.table[state] >= 0).tolist() if end is None else ():
            after = int(text.table[state, at])
            if after and after not in before:
                before[after] = (state, at)
                order.append(after)
                end = after if end is None and text.accept[after] else end
    found, known, state = [], words.single, end or 0
    while state:
        state, at = before[state]
        found.append(at)
    shortest = bytes(reversed(found)).decode(errors="replace")
    return next((c for c in shortest if not known.issuperset(c.encode())), None)


def begin(automaton: Automaton, ids: Sequence[int], hidden: frozenset[int]) -> int:
    """The state behind text that is given in front of the response, control tokens aside.

    Raises:
        RequestError: no accepted text begins so.
    """
    state = automaton.walk(i for i in ids if i not in hidden)
    if state == automaton.dead:
        raise RequestError("no text that the constraint accepts begins with the text in front of the first gap")
    return state


def check_fit(automaton: Automaton, start: int, length: int, fixed: Mapping[int, int]) -> None:
    """Refuse a response into which no accepted text fits.

    Args:
        automaton: of the request.
        start: its state at the beginning of the response.
        length: of the response.
        fixed: given tokens by position.

    Raises:
        RequestError: says the least length that fits.
    """
    last = max(fixed, default=-1)
    live = automaton.fits(length - 1 - last)
    for at in range(last, -1, -1):
        token_class = int(automaton.classes[fixed[at]]) if at in fixed else None
        if token_class is not None and token_class >= automaton.step.shape[1]:
            live = np.zeros_like(live)
        else:
            live = automaton.back(live, token_class)
    if live[start]:
        return
    if fixed:
        raise RequestError("no text that the constraint accepts fits the given tokens and gaps of these lengths")
    least = automaton.least(start)
    if least is None:
        raise RequestError("no text that the constraint accepts can be generated without the suppressed tokens")
    if least > length:
        raise RequestError(
            f"gen_length is {length}, but the shortest text that the constraint accepts takes {least} tokens; "
            f"gen_length must be at least {least}"
        )
    raise RequestError(
        f"no text that the constraint accepts has exactly {length} tokens, and ends of text are suppressed"
    )
