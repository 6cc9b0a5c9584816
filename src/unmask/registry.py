"""Every policy, cache and drafter by name; loaded when asked for.

Another package adds its own through the entry points ``unmask.policies``, ``unmask.caches`` and ``unmask.drafters``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from functools import cache as memoise
from importlib.metadata import entry_points
from typing import Any

from .core.cache import Cache
from .core.config import Configured, Spec, accepted, parse, types
from .core.errors import SpecError
from .core.policy import Policy
from .speculative.drafter import Drafter

POLICIES = {
    "vanilla": "unmask.policies.vanilla:Vanilla",
    "threshold": "unmask.policies.threshold:Threshold",
    "factor": "unmask.policies.factor:Factor",
    "entropy_bound": "unmask.policies.entropy_bound:EntropyBound",
    "klass": "unmask.policies.klass:Klass",
    "wino": "unmask.policies.wino:Wino",
    "left_to_right": "unmask.policies.left_to_right:LeftToRight",
    "apd": "unmask.policies.apd:Apd",
    "hierarchical": "unmask.policies.hierarchical:Hierarchical",
    "credit": "unmask.policies.credit:Credit",
    "dream": "unmask.policies.dream:Dream",
    "learn2pd": "unmask.policies.learn2pd:Learn2pd",
    "learned": "unmask.policies.learned:Learned",
    "saber": "unmask.policies.saber:Saber",
    "adaptive": "unmask.policies.adaptive:Adaptive",
    "lookahead": "unmask.policies.lookahead:Lookahead",
    "prophet": "unmask.policies.prophet:Prophet",
    "refine": "unmask.policies.refine:Refine",
    "cascade": "unmask.policies.cascade:Cascade",
    "assd": "unmask.policies.assd:Assd",
    "slowfast": "unmask.policies.slowfast:SlowFast",
    "sdar": "unmask.policies.sdar:Sdar",
    "edit": "unmask.policies.edit:Edit",
    "rnd1": "unmask.policies.rnd1:Rnd1",
    "ahead": "unmask.policies.ahead:Ahead",
    "renoise": "unmask.policies.renoise:Renoise",
    "localleap": "unmask.policies.localleap:LocalLeap",
    "pc_sampler": "unmask.policies.pc_sampler:PcSampler",
    "suffix": "unmask.policies.suffix:Suffix",
    "mask_ratio": "unmask.policies.mask_ratio:MaskRatio",
    "adablock": "unmask.policies.adablock:AdaBlock",
    "window": "unmask.policies.window:Window",
    "multiblock": "unmask.policies.multiblock:MultiBlock",
    "dawn": "unmask.policies.dawn:Dawn",
    "lopa": "unmask.policies.lopa:Lopa",
    "verified": "unmask.policies.verified:Verified",
    "flexible": "unmask.policies.flexible:Flexible",
    "daedal": "unmask.policies.daedal:Daedal",
}
CACHES = {
    "none": "unmask.caches.none:NoCache",
    "prefix": "unmask.caches.block:PrefixCache",
    "dual": "unmask.caches.block:DualCache",
    "dllm": "unmask.caches.interval:IntervalCache",
    "trailing": "unmask.caches.trailing:TrailingCache",
    "d2": "unmask.caches.attention_guided:D2Cache",
    "every": "unmask.caches.every:Every",
    "blockwise": "unmask.caches.blockwise:BlockwiseCache",
    "window_cache": "unmask.caches.window_cache:WindowCache",
    "entropy_cache": "unmask.caches.entropy_cache:EntropyCache",
    "elastic": "unmask.caches.elastic:ElasticCache",
}
DRAFTERS = {
    "ngram": "unmask.speculative.drafters.ngram:Ngram",
    "specdiff": "unmask.speculative.drafters.specdiff:SpecDiff",
    "swift": "unmask.speculative.drafters.swift:Swift",
    "space": "unmask.speculative.drafters.space:Space",
    "chimera": "unmask.speculative.drafters.chimera:Chimera",
    "aded": "unmask.speculative.drafters.aded:Aded",
}
_BASES: dict[str, type[Configured]] = {"policy": Policy, "cache": Cache, "drafter": Drafter}
_EXAMPLE = {"policy": "slowfast(tau_high=0.9)", "cache": "every(dual,4)", "drafter": "ngram(n=3)"}
_NESTED = {"policy": "prophet(threshold)", "cache": "every(dual,4)"}


def policy(spec: str | Spec | Policy) -> Policy:
    """Build a policy from a spec such as ``"slowfast(tau_high=0.9)"``; a policy is returned as it is.

    Raises:
        SpecError: unknown name or parameter, or a value out of range.
    """
    made: Policy = _build("policy", spec)
    return made


def cache(spec: str | Spec | Cache) -> Cache:
    """Build a cache from a spec such as ``"every(dual,4)"``; a cache is returned as it is.

    Raises:
        SpecError: unknown name or parameter, or a value out of range.
    """
    made: Cache = _build("cache", spec)
    return made


def drafter(spec: str | Spec | Drafter) -> Drafter:
    """Build a drafter from a spec such as ``"ngram(n=3)"``; a drafter is returned as it is.

    Raises:
        SpecError: unknown name or parameter, or a value out of range.
    """
    made: Drafter = _build("drafter", spec)
    return made


@memoise
def table(kind: str) -> Mapping[str, str]:
    """Names of ``kind`` ("policy", "cache" or "drafter") and where their classes are, entry points included."""
    own = {"policy": POLICIES, "cache": CACHES, "drafter": DRAFTERS}[kind]
    group = {"policy": "unmask.policies", "cache": "unmask.caches", "drafter": "unmask.drafters"}[kind]
    return own | {point.name: point.value for point in entry_points(group=group) if point.name not in own}


def lookup(kind: str, name: str) -> type[Configured]:
    """The class behind a name."""
    known = table(kind)
    if name not in known:
        raise SpecError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
    module, _, attribute = known[name].partition(":")
    try:
        found: type[Configured] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the import of another package does
        if module.startswith(f"{__package__}."):
            raise
        raise SpecError(f"{kind} {name!r} of {module} cannot be imported: {type(error).__name__}: {error}") from None
    return found


def _build(kind: str, spec: Any) -> Any:
    if isinstance(spec, str):
        spec = parse(spec)
    if not isinstance(spec, Spec):
        if not isinstance(spec, _BASES[kind]):
            raise SpecError(f"expected a {kind} or a spec string such as {_EXAMPLE[kind]!r}, got {spec!r:.80}")
        inner = {name: _build(part, getattr(spec, name)) for name, part in parts(type(spec)).items()}
        return dataclasses.replace(spec, **inner) if inner else spec
    cls = lookup(kind, spec.name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if len(spec.args) > len(fields):
        raise SpecError(f"{spec.name} takes at most {len(fields)} values, got {len(spec.args)}")
    given = dict(zip(fields, spec.args, strict=False))
    for key, value in spec.kwargs:
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise SpecError(f"{spec.name} has no parameter {key!r}; it has: {known}")
        if key in given:
            raise SpecError(f"{spec.name}: {key} is given twice")
        given[key] = value
    nested = parts(cls)
    for key, part in nested.items():
        if key in given and given[key] is None and "none" in table(part):
            given[key] = Spec("none")  # the grammar's none, here the name of a cache
        elif given.get(key, fields[key].default) is None:
            raise SpecError(f"{spec.name} needs a {part}, as in {_NESTED[part]!r}")
        else:
            given.setdefault(key, fields[key].default)
    return cls(**{key: _resolve(nested.get(key), f"{spec.name}: {key}", value) for key, value in given.items()})


def parts(cls: type[Configured]) -> dict[str, str]:
    """The parameters of a class that hold a policy or a cache themselves, and which of the two."""
    kinds = {base: kind for kind, base in _BASES.items()}
    return {name: kinds[held] for name, held in types(cls).items() if held in kinds}


def _resolve(kind: str | None, parameter: str, value: Any) -> Any:
    """A nested spec becomes what the parameter holds: a cache, a policy, or (a bare word) a string."""
    if kind:
        if not isinstance(value, (Spec, Configured)):
            raise SpecError(f"{parameter} must be a {kind}, got {value!r}")
        return _build(kind, value)
    if isinstance(value, Spec):
        if value.args or value.kwargs:
            raise SpecError(f"{parameter} cannot be {value}")
        return value.name
    return value


def describe(cls: type[Any]) -> dict[str, Any]:
    """What there is to know of a policy or cache: paper, summary (from its docstring), what it refuses, parameters."""
    summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
    return {
        "paper": cls.paper,
        "summary": summary,
        "refuses": cls.refuses,
        "parameters": [_parameter(cls, f) for f in dataclasses.fields(cls) if not f.metadata.get("hidden")],
        "hidden": [_parameter(cls, f) for f in dataclasses.fields(cls) if f.metadata.get("hidden")],
    }


def _parameter(cls: type[Any], field: dataclasses.Field[Any]) -> dict[str, Any]:
    nested = field.name in parts(cls)
    default = field.default if nested else getattr(cls(), field.name)
    about = {
        "name": field.name,
        "required": nested and default is None,
        "default": str(default) if nested and default is not None else default,
        "accepted": accepted(cls, field.name),
        "doc": field.metadata.get("doc", ""),
    }
    presets = next((f.metadata["choices"] for f in dataclasses.fields(cls) if f.name == "preset"), ())
    values = {name: getattr(cls(preset=name), field.name) for name in presets if field.name != "preset"}
    return about | ({"presets": values} if len(set(values.values())) > 1 else {})


def json_schema(cls: type[Configured]) -> dict[str, Any]:
    """The parameters of a policy or cache as a JSON schema; what holds another one is a text, its spec."""
    about = describe(cls)
    kinds, inside = types(cls), parts(cls)
    made: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        rule = field.metadata
        (known,) = (one for one in (*about["parameters"], *about["hidden"]) if one["name"] == field.name)
        words = {bool: "boolean", int: "integer", float: "number"}.get(kinds[field.name], "string")
        own: dict[str, Any] = {"type": [words, "null"] if rule.get("optional") else words}
        bounds = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
        own |= {theirs: rule[ours] for ours, theirs in bounds.items() if rule.get(ours) is not None}
        if rule.get("choices"):
            own["enum"] = [*rule["choices"], *([None] if rule.get("optional") else [])]
        own |= {"description": known["doc"], "accepted": known["accepted"]}
        own |= {} if known["required"] else {"default": known["default"]}
        own |= {key: known[key] for key in ("presets",) if key in known}
        own |= {"spec": inside[field.name]} if field.name in inside else {}
        own |= {"hidden": True} if rule.get("hidden") else {}
        own |= {"file": True} if rule.get("file") else {}
        made[field.name] = own
    required = [one["name"] for one in about["parameters"] if one["required"]]
    return {"type": "object", "additionalProperties": False, "properties": made, "required": required}
