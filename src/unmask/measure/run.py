"""Settings x problems, interleaved, each batch one line of results; what is in the file is not run again."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__, registry
from ..api import BUNDLED_NAME, Model
from ..core.config import Configured
from ..core.errors import RequestError, SpecError
from ..profiles import fingerprint
from . import autoregressive, ledger, lines
from .machine import command, commit, device_name, peak, reset_peak
from .problems import Source
from .serving import served

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way to decode.

    Attributes:
        policy, cache: specs, as their objects print them; ``autoregressive(MODEL)`` stands for a policy, too.
        gen_length: response length in tokens.
        batch_size: prompts decoded together, at most; each leaves when it is done.
        eos_stop: whether a response ends early at its end of text.
        temperature: of sampling.
        files: digest of the files that the policy names, see :func:`files`.
        arrivals: when requests arrive, see :class:`.serving.Arrivals`; None: those of a batch start together.
    """

    policy: str
    cache: str
    gen_length: int
    batch_size: int = 1
    eos_stop: bool = True
    temperature: float = 0.0
    files: str | None = None
    arrivals: str | None = None

    @property
    def family(self) -> str:
        """The policy without its parameters, but with the policies inside: ``prophet(threshold)``."""
        try:
            made: Any = registry.policy(self.policy)
        except SpecError:  # of a plug-in or a version that is not here
            return self.policy.partition("(")[0]
        names = []
        while made is not None:
            names.append(made.name)
            made = getattr(made, "policy", None)
        return "(".join(names) + ")" * (len(names) - 1)

    @property
    def label(self) -> str:
        """Policy, cache and what is unusual, for a person."""
        return f"{self.policy}{'' if self.cache == 'none' else f' + {self.cache}'}{self.unusual}"

    @property
    def unusual(self) -> str:
        """What a label has behind policy and cache."""
        hot = f", temperature {self.temperature:g}" if self.temperature else ""
        own = f", files {self.files}" if self.files else ""
        when = f", arrivals {self.arrivals}" if self.arrivals else ""
        return f"{'' if self.eos_stop else ', no early stop'}{hot}{own}{when}"

    def together(self, source: Source) -> int:
        """Problems that one line of results is about."""
        return len(source.items) if self.arrivals else self.batch_size


@dataclass(frozen=True)
class Batch:
    """Problems ``first`` to ``first + n`` of a source, to be decoded together with one setting."""

    setting: Setting
    source: Source
    first: int
    n: int

    @classmethod
    def at(cls, setting: Setting, source: Source, first: int) -> Batch:
        """The one that begins at problem ``first``: as many as one line is about, or as are left."""
        return cls(setting, source, first, min(setting.together(source), len(source.items) - first))

    @property
    def key(self) -> dict[str, Any]:
        """What identifies the batch among the results of one environment."""
        one = self.source
        setting = {name: value for name, value in asdict(self.setting).items() if value is not None}
        return setting | {
            "task": one.name, "split": one.split, "seed": one.seed, "first": self.first, "n": self.n
        }  # fmt: skip

    @property
    def ident(self) -> str:
        """The key as a text, to look it up by."""
        return ident(self.key)


def files(policy: str) -> str | None:
    """A digest of the files and folders that a policy, or one inside it, names; None: it names none that is here."""
    causal = autoregressive.parts_of(policy)
    if causal is None:
        named = list(_named(registry.policy(policy)))
    else:
        named = [causal[0], *(_named(registry.drafter(causal[1])) if causal[1] else ())]
    paths = [path for name in named for path in (Path(name), *sorted(Path(name).glob("*"))) if path.is_file()]
    made = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                made.update(part)
    return made.hexdigest()[:12] if paths else None


def _named(made: Any) -> Iterator[str]:
    for field in fields(made):
        value = getattr(made, field.name)
        if isinstance(value, Configured):
            yield from _named(value)
        elif value is not None and field.metadata.get("file"):
            yield value


def ident(key: dict[str, Any]) -> str:
    """The key of a batch as a text."""
    return json.dumps(key, sort_keys=True)


def order(settings: Sequence[Setting], sources: Sequence[Source], seed: int = 0) -> list[Batch]:
    """All batches: a few problems of each source with every setting in a random order, then the next problems.

    What slows the machine for a while slows every setting alike.
    """
    rng = random.Random(seed)
    stride = max(s.together(one) for s in settings for one in sources)
    batches = []
    for start in range(0, max(len(s.items) for s in sources), stride):
        for one in sources:
            stop = min(start + stride, len(one.items))
            for setting in rng.sample(settings, len(settings)):
                size = setting.together(one)
                begins = range(-(-start // size) * size, stop, size)  # whole batches, wherever the stretch ends
                batches += [Batch.at(setting, one, at) for at in begins]
    return batches


def check(lm: Model, settings: Sequence[Setting], sources: Sequence[Source]) -> None:
    """Refuse, before anything is decoded, what cannot be.

    Raises:
        UnmaskError: a setting that is out of range, or that a prompt does not fit.
    """
    for one in sources:
        made: dict[Any, list[Any]] = {}  # encoding is what takes long
        for setting in settings:
            try:
                _check(lm, setting, one, made)
            except RequestError as error:
                raise RequestError(f"{one.name}: {error}") from None


def _check(lm: Model, setting: Setting, source: Source, made: dict[Any, list[Any]]) -> None:
    """One setting with one source; ``made`` keeps the requests that several settings share."""
    baseline = _baseline(lm, setting)
    if baseline is not None:
        baseline.check(source, setting.gen_length, setting.cache, setting.temperature)
        return
    shape = setting.gen_length, setting.temperature, setting.eos_stop
    made[shape] = made.get(shape) or _requests(lm, setting, source, 0, len(source.items))
    how, kept = lm.setting(setting.policy, setting.cache)
    for request in made[shape]:
        replace(request, policy=how, cache=kept).check(lm.denoiser.spec)


def held(path: Path, run: str) -> dict[str, dict[str, Any]]:
    """The lines of the batches that a file holds of one environment, by :attr:`Batch.ident`.

    Raises:
        RequestError: the file holds something else.
    """
    rows = [row for row in lines.read(path) if row["kind"] == "batch" and row["run"] == run]
    return {ident(row["key"]): row for row in rows}


class Decoder:
    """Decodes batches, each into a line of a file; what that holds of this environment is not decoded again.

    A line of kind ``run`` with environment, commit and command comes before the first.
    """

    def __init__(self, lm: Model, name: str | None, path: Path) -> None:
        """Read the file.

        Raises:
            RequestError: it holds something else.
        """
        self.lm, self.path, self.header, self.begun = lm, path, header(lm, name), False
        self.have: dict[str, Row] = held(path, self.header["run"])
        self.warm: set[Setting] = set()

    def missing(self, batches: Sequence[Batch]) -> list[Batch]:
        """Those that the file does not hold."""
        return [b for b in batches if b.ident not in self.have]

    def __call__(self, batch: Batch, timed: bool = True) -> Row:
        """The line of a batch, which is on the disk by then.

        ``timed``: the setting decodes a problem unmeasured before its first batch.
        """
        if batch.ident not in self.have:
            if timed and batch.setting not in self.warm:
                decode(self.lm, replace(batch, n=1))
            self.warm.add(batch.setting)
            row = line(self.header, batch, decode(self.lm, batch))
            for one in (row,) if self.begun else (self.header, row):
                ledger.append(self.path, one)
            self.begun, self.have[batch.ident] = True, row
        return self.have[batch.ident]


def header(lm: Model, model: str | None) -> dict[str, Any]:
    """The line that says what the lines after it ran on, and by which command."""
    here = environment(lm, model)
    return {
        "kind": "run",
        "version": lines.VERSION,
        "run": identity(here),
        **here,
        "commit": commit(),
        "command": command(),
    }


def line(header: dict[str, Any], batch: Batch, result: dict[str, Any]) -> dict[str, Any]:
    """The line of a batch."""
    return {"kind": "batch", "version": lines.VERSION, "run": header["run"], "key": batch.key, **result}


def decode(lm: Model, batch: Batch) -> dict[str, Any]:
    """Decode one batch.

    Returns:
        Of each problem ``correct``, ``digest`` (of the text), ``nfe``, ``tokens`` (before the first end of text),
        ``positions`` (computed, averaged over the layers) and ``first_token`` (seconds to the commit of the response's
        first token that held); of the batch ``seconds``, ``cpu_seconds``, ``model_seconds``, ``peak_bytes`` and what
        :func:`.serving.served` adds.
    """
    device = lm.denoiser.network.device
    setting, source, first, n = batch.setting, batch.source, batch.first, batch.n
    baseline = _baseline(lm, setting)
    fresh = reset_peak(device)
    began, cpu = time.perf_counter(), time.process_time()
    if baseline is not None:
        answers, model = baseline.answers(source, setting.gen_length, first, n, setting.eos_stop)
        more: dict[str, Any] = {}
    else:
        requests = _requests(lm, setting, source, first, n)
        answers, model, more = served(lm, setting, requests, f"{source.name} problem", first)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    items = source.items[first : first + n]
    most = more.pop("peak_bytes", None) if setting.arrivals else peak(device)
    return {
        "correct": [int(item.check(one.text)) for item, one in zip(items, answers, strict=True)],
        "digest": [hashlib.sha256(one.text.encode()).hexdigest()[:16] for one in answers],
        "nfe": [one.nfe for one in answers],
        "tokens": [one.tokens for one in answers],
        "positions": [round(one.positions, 1) for one in answers],
        "first_token": [round(one.first_token, 4) for one in answers],
        "seconds": round(seconds, 5),
        "cpu_seconds": round(cpu, 5),
        "model_seconds": round(model, 5),
        "peak_bytes": most if fresh else None,
        **more,
    }


def _baseline(lm: Model, setting: Setting) -> autoregressive.Autoregressive | None:
    """The autoregressive model that a setting names in place of a policy, if it does."""
    causal = autoregressive.parts_of(setting.policy)
    return None if causal is None else autoregressive.Autoregressive.beside(lm, *causal)


def _requests(lm: Model, setting: Setting, source: Source, first: int, n: int) -> list[Any]:
    prompts = [item.prompt for item in source.items[first : first + n]]
    return lm.requests(prompts, setting.gen_length, setting.policy, setting.cache, temperature=setting.temperature,
                       ignore_eos=not setting.eos_stop, seed=first)  # fmt: skip


def environment(lm: Model, model: str | None) -> dict[str, Any]:
    """What figures depend on beside setting and problems: model, device, dtype, threads, versions.

    The model that ships (None) goes with the version; of others weights and tokenizer count, for a folder can hold new
    ones.
    """
    network = lm.denoiser.network
    return {
        "model": model or BUNDLED_NAME,
        **({"fingerprint": fingerprint(lm)} if model else {}),
        **({"tokenizer": lm.text.fingerprint} if model and lm.text else {}),
        "device": device_name(network.device),
        "dtype": str(network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **({"compile": True} if network.kernels.compiled else {}),
        "torch": torch.__version__,
        "unmask": __version__,
    }


def identity(environment: dict[str, Any]) -> str:
    """A short name for an environment."""
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:12]
