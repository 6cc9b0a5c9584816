"""Thirty constraints, what says independently whether a text is valid, and a model of random weights."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import lru_cache
from typing import Any

import jsonschema
import torch

import unmask
from unmask.models.denoiser import Denoiser

LENGTH = 64
_POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"]}
_NAMED = {"type": "object", "properties": {"kind": {"const": "a"}, "n": {"type": "integer"}}, "required": ["kind"]}
_OTHER = {"type": "object", "properties": {"kind": {"const": "b"}, "t": {"type": "string"}}, "required": ["kind", "t"]}
_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 20, "maximum": 79},
        "pet": {"enum": ["cat", "dog", "snake"]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "record": _RECORD,
    "nested": {"type": "object", "properties": {"p": _POINT, "q": {"properties": {"r": _POINT}, "type": "object"}}},
    "array": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5},
    "array of records": {"type": "array", "items": _POINT, "maxItems": 2},
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False, "minItems": 2},
    "enum": {"enum": ["red", "green", 3, None, {"k": [1, 2.5]}]},
    "const": {"const": {"answer": "é€"}},
    "range": {"type": "integer", "minimum": -37, "maximum": 1204},
    "strict range": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
    "number": {"type": "number"},
    "decimal": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "anyOf": {"anyOf": [{"type": "null"}, {"type": "boolean"}, _POINT]},
    "oneOf": {"oneOf": [_NAMED, _OTHER]},
    "types": {"type": ["string", "null", "integer"], "maxLength": 4},
    "optional": {
        "type": "object",
        "properties": {k: {"type": "integer"} for k in "abcd"},
        "additionalProperties": False,
    },
    "long string": {"type": "string", "minLength": 30, "maxLength": 50},
    "any string": {"type": "string"},
    "pattern": {"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)*$", "maxLength": 30},
    "quotes": {"type": "string", "pattern": '^["\\\\\n]{2,4}$'},
    "unicode": {"type": "string", "pattern": "^[à-þ]{1,3}[Ѐ-ӿ]{1,3}[\U0001f600-\U0001f64f]$"},
    "date": {"type": "string", "format": "date"},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "reference": {"$ref": "#/$defs/p", "$defs": {"p": _POINT}},
    "anything": {"type": "object"},
}
REGEXES = {
    "words": r"[A-Z][a-z]+( [a-z]+){1,4}\.",
    "phone": r"\(\d{3}\) \d{3}-\d{4}",
    "unicode words": r"\w{2,8} — [αβγδ]+",
    "lines": r"(\d+[+*]\d+=\d+\n)*Answer: \d+",
}
CHOICES = {"choices": ("yes", "no", "perhaps not"), "prefixes": ("a", "ab", "abc", "naïve")}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"json_schema": own} for name, own in SCHEMAS.items()},
    **{name: {"regex": own} for name, own in REGEXES.items()},
    **{name: {"choices": own} for name, own in CHOICES.items()},
}


def valid(case: dict[str, Any], text: str) -> bool:
    """Whether a text is what a constraint says, by ``jsonschema`` or ``re``."""
    if "regex" in case:
        return re.fullmatch(case["regex"], text) is not None
    if "choices" in case:
        return text in case["choices"]
    kind = jsonschema.Draft202012Validator
    try:
        kind(case["json_schema"], format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


@lru_cache(maxsize=4)
def model(weights: str) -> unmask.Model:
    """A bundled model (``"bundled"``, ``"blocks"``), or its shape with random weights (``"random"``, ``"random
    blocks"``): there every token is about as likely as any other.
    """
    lm = unmask.load("unmask-tiny-block" if "blocks" in weights else "unmask-tiny", dtype="float32", device="cpu")
    if "random" not in weights:
        return lm
    network, draw = deepcopy(lm.denoiser.network), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=draw)
    return unmask.Model(Denoiser(network, lm.denoiser.spec), lm.text)
