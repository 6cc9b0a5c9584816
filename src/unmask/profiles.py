"""Profiles: settings that were tuned for one model and one task, with what is guaranteed of them, in a JSON file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from . import registry
from .core.errors import RequestError, SpecError
from .core.schema import Name, Schema, parse

if TYPE_CHECKING:
    from .api import Model

VERSION = 1
_SAMPLES = 64  # values of each weight that a fingerprint looks at


class Profile(Schema):
    """What decoding needs of a profile."""

    path: str = Field(description="where it was read")
    model: Name = Field(description="name of the model it was made with")
    fingerprint: Name = Field(description="fingerprint of that model's weights")
    dtype: Name = Field(description="dtype of these")
    policy: Name = Field(description="spec of a policy")
    cache: Name = Field(description="spec of a cache")
    gen_length: int = Field(ge=1, description="response length in tokens that it was made for")

    def check(self, lm: Model) -> None:
        """Is it of this model?

        Raises:
            RequestError: of another one.
        """
        if fingerprint(lm) != self.fingerprint:
            raise RequestError(
                f"{self.path} is a profile of another model ({self.model}); its guarantee does not hold for this one"
            )

    def differences(self, lm: Model, name: str, gen_length: int) -> str:
        """What is not as the guarantee says, though the weights are the same, in words; "" when nothing is."""
        dtype = str(lm.denoiser.network.dtype).removeprefix("torch.")
        now = {"model": name, "dtype": dtype, "gen_length": gen_length}
        return ", ".join(
            f"{key} {getattr(self, key)}, not {own}" for key, own in now.items() if own != getattr(self, key)
        )


def profile(path: str | Path, model: Model) -> dict[str, Any]:
    """The arguments of :meth:`Model.generate` that a profile of ``unmask tune`` gives.

    >>> lm.generate(prompts, **unmask.profile("profile.json", lm))  # doctest: +SKIP

    Args:
        path: the file.
        model: the model to decode with.

    Returns:
        ``policy``, ``cache`` and ``gen_length``.

    Raises:
        RequestError: no such file, not a profile, or one of another model.
    """
    made = read(path)
    made.check(model)
    return {"policy": made.policy, "cache": made.cache, "gen_length": made.gen_length}


def read(path: str | Path) -> Profile:
    """Read and check a profile.

    Raises:
        RequestError: no such file, not a profile, one of a later version, or a policy or cache that is not known here.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not a profile of unmask tune: {error}") from None
    if not isinstance(data, dict) or "profile" not in data:
        raise RequestError(f'{path} is not a profile of unmask tune: expected a JSON object with "profile": {VERSION}')
    if data["profile"] != VERSION:
        raise RequestError(f"{path}: profile version {data['profile']!r:.20}; this unmask reads version {VERSION}")
    made = parse(Profile, data | {"path": str(path)}, str(path))
    try:
        registry.policy(made.policy), registry.cache(made.cache)
    except SpecError as error:
        raise RequestError(f"{path}: {error}") from None
    return made


def write(path: str | Path, data: dict[str, Any]) -> None:
    """Write a profile, all of it or nothing.

    Raises:
        RequestError: there is something other than a file, such as a device, which must not be replaced by one.
    """
    path = Path(path).resolve()  # a link stays one
    if path.exists() and not path.is_file():
        raise RequestError(f"cannot write {path}: not a regular file")
    half = Path(f"{path}.{os.getpid()}.tmp")
    try:
        half.write_text(json.dumps({"profile": VERSION, **data}, indent=2) + "\n", encoding="utf-8")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def fingerprint(lm: Model) -> str:
    """A name for what a model computes, the same for float32 and bfloat16: of its ids, of the parts of its architecture
    that are not as usual, and of some values of each weight, as bfloat16.
    """
    spec, arch, made = lm.denoiser.spec, lm.denoiser.network.arch, hashlib.sha256()
    made.update(f"{spec.vocab} {spec.mask} {spec.eos} {spec.shift}".encode())
    made.update(f"{[(f.name, v) for f in fields(arch) if (v := getattr(arch, f.name)) != f.default]}".encode())
    for name, weight in sorted(lm.denoiser.network.named_parameters()):
        plain = weight.detach().to_dense() if weight.is_mkldnn else weight.detach()  # a packed weight has no elements
        flat = plain.flatten()
        some = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].to(torch.bfloat16)
        made.update(f"{name} {tuple(weight.shape)}".encode() + some.view(torch.int16).cpu().numpy().tobytes())
    return made.hexdigest()[:16]
