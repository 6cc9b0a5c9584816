"""The setting that a model is decoded with where nobody says otherwise: its folder's word, or its family's.

A folder recommends by the key ``unmask`` of its ``generation_config.json``::

    {"unmask": {"policy": "slowfast(tau_high=0.998)", "cache": "dllm(kp=2,kr=1)", "gen_length": 256}}

What it leaves out is as the family was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..core.errors import ModelError
from .config import Config
from .family import Recommended
from .weights import Checkpoint

KEY = "unmask"
_KEYS = ("policy", "cache", "gen_length")


def recommended(checkpoint: Checkpoint) -> Recommended:
    """What a checkpoint's ``generation_config.json`` says, and where it says nothing what its family was published
    with, no longer than half of the context.

    Whether there are such a policy and cache is for the registry to say.

    Raises:
        ModelError: a key that is not known, or a value of another kind than it should be.
    """
    d, config = checkpoint.description, checkpoint.generation
    family = replace(d.published, gen_length=min(d.published.gen_length, max(1, d.context // 2)))
    given = config.get(KEY)
    if given is None:
        return family
    if not isinstance(given, Mapping):
        raise config.wrong(KEY, f"an object with some of {', '.join(_KEYS)}")
    inner, file = config.inside(KEY, given), str(checkpoint.folder / config.file)
    odd = sorted(set(given) - set(_KEYS))
    if odd:
        raise ModelError(f"{file}: {KEY} has {odd[0]!r}; accepted: {', '.join(_KEYS)}")
    length = inner.integer("gen_length", family.gen_length)
    if length >= d.context:
        raise inner.wrong("gen_length", f"less than the context of {d.context}")
    return Recommended(_spec(inner, "policy", family.policy), _spec(inner, "cache", family.cache), length, file)


def _spec(config: Config, key: str, default: str) -> str:
    value = config.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise config.wrong(key, "a spec such as 'slowfast(tau_high=0.9)' or 'dllm(kp=25,kr=5)'")
    return default if value is None else str(value)
