"""The model ``unmask`` of lm-evaluation-harness."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, warning_once
from tqdm import tqdm

from .. import __version__, registry
from ..api import BUNDLED_NAME, Model, load
from ..core.errors import ModelError, RequestError
from ..core.values import integer
from ..engine.loop import Step
from ..engine.request import Request, SamplingParams
from ..measure.run import environment, files
from ..text import Text
from .bound import Pair, bounds, greedy
from .memory import Memory, hash_of

_LOG = logging.getLogger("lm_eval.unmask")
_GENERATION = {"do_sample", "until", "max_gen_toks", "temperature", "top_p", "top_k"}
AUTO_BATCH = 32


@dataclass(frozen=True)
class Job:
    """One request to generate: its place in the harness's list, its task, what it asks for, its name in memory."""

    index: int
    task: str
    arguments: tuple[Any, ...]
    request: Request
    key: str


class UnmaskLM(TemplateLM):  # type: ignore[misc]
    """Any policy and cache on any model that unmask loads; see docs/eval.md.

    Args:
        pretrained: folder or hub id; None: the model that ships.
        policy, cache: specs; None: the model's recommendation, without a cache where a policy is given.
        gen_length: tokens of a response where the task has no ``max_gen_toks``.
        batch_size: most requests decoded at a time; ``"auto"``: 32.
        temperature, top_p: of sampling, whatever the task says; None: as the task says, greedy where it says nothing.
        seed: of the sampling noise; repeats of a request take the next ones.
        mc_num: most masks per continuation for the likelihood bound.
        mc_batch_size: most rows in a forward of the likelihood bound.
        mc_seed: of the masks.
        cfg: classifier-free guidance scale of likelihoods (of generation: the policy's ``cfg_scale``).
        is_check_greedy: whether likelihoods tell if greedy decoding gives the continuation; False: they say no.
        chat: give each context as a user's message in the chat template. Not together with the harness's own
            ``apply_chat_template``.
        add_bos_token: put the begin-of-text token before every prompt, as Dream's evaluation does.
        ignore_eos: fill all of a response, as the published code does, do not stop at its end of text.
        device, dtype, revision, adapter, block_length, quantize: as in :func:`unmask.load`.
        ledger: file of answers that a later run with the same arguments continues; None: none.
        max_batch_size: not used; the harness's command hands it over.

    Raises:
        UnmaskError: no such model, policy or cache, a value out of range, or a model without tokenizer.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        policy: str | None = None,
        cache: str | None = None,
        gen_length: int = 256,
        batch_size: int | str = AUTO_BATCH,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        mc_num: int = 128,
        mc_batch_size: int = 32,
        mc_seed: int = 0,
        cfg: float = 0.0,
        is_check_greedy: bool = True,
        chat: bool = False,
        add_bos_token: bool = False,
        ignore_eos: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        adapter: str | None = None,
        block_length: int | None = None,
        quantize: str = "auto",
        ledger: str | Path | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = AUTO_BATCH if str(batch_size).startswith("auto") else _count("batch_size", batch_size)
        self.gen_length = _count("gen_length", gen_length)
        self.mc_num, self.mc_batch_size = _count("mc_num", mc_num), _count("mc_batch_size", mc_batch_size)
        self.mc_seed, self.seed = integer("mc_seed", mc_seed), integer("seed", seed)
        self.temperature, self.top_p, self.cfg, self.add_bos = temperature, top_p, float(cfg), add_bos_token
        SamplingParams(0.0 if temperature is None else temperature, 1.0 if top_p is None else top_p)
        if not 0 <= self.cfg <= 100:
            raise RequestError(f"cfg must be in [0, 100] (0: off), got {cfg}")
        self.check_greedy, self.chat, self.ignore_eos = is_check_greedy, chat, ignore_eos
        for known, spec in ((registry.policy, policy), (registry.cache, cache)):
            if spec is not None:
                known(spec)  # before the model is loaded, which takes long
        self.name = pretrained or BUNDLED_NAME
        more: Any = {"revision": revision, "adapter": adapter, "block_length": block_length, "quantize": quantize}
        self.lm: Model = load(pretrained, device, dtype, **more)
        self.policy, self.cache = self.lm.setting(policy, cache)
        self.files = files(str(self.policy))
        if self.lm.text is None:
            raise ModelError(f"{self.name} has no tokenizer.json; tasks are texts")
        self.text: Text = self.lm.text
        if chat and not self.text.chat:
            raise RequestError(f"{self.name} has no chat template; leave out chat")
        if add_bos_token and self.text.bos is None:
            raise RequestError(f"the tokenizer of {self.name} has no begin-of-text token; leave out add_bos_token")
        self.templated = False
        self.memory = Memory(None if ledger is None else Path(ledger), environment(self.lm, pretrained))

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> UnmaskLM:
        """As the harness's command makes one, which says ``cuda:0`` for who says nothing, even where there is none."""
        more = dict(additional_config or {})
        if more.get("device") == "cuda:0" and not torch.cuda.is_available():
            more["device"] = "auto"
        made: UnmaskLM = super().create_from_arg_obj(arg_dict, more)
        return made

    # --- what the harness asks of a model

    @property
    def max_length(self) -> int:
        """The context, in tokens."""
        return self.lm.denoiser.spec.context

    @property
    def eot_token_id(self) -> int:
        """The end of text."""
        return self.lm.denoiser.spec.eos[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands in for an empty context: the begin of text, or the end of text where there is none."""
        return self.eot_token_id if self.text.bos is None else self.text.bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self.name.replace("/", "__")

    @property
    def device(self) -> Any:
        """Of the weights."""
        return self.lm.denoiser.network.device

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template, for the harness's records."""
        return str(self.text.template) if self.text.chat else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text that :meth:`tok_encode` reads.

        Raises:
            RequestError: the model has no chat template, or ``chat`` wraps contexts already.
        """
        if self.chat:
            raise RequestError("both chat and apply_chat_template are set: the template would be applied twice")
        self.templated = True
        return self.text.render(chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text. Names of control tokens are text, except those that the chat template has written."""
        if add_special_tokens is False:
            return self.text.plain(string)
        return self._begun(self.text.parse(string) if self.templated else self.text.plain(string, special=True))

    def _begun(self, ids: list[int]) -> list[int]:
        """With the begin of text in front, where that is asked for and not there."""
        bos = self.text.bos
        return [bos, *ids] if self.add_bos and bos is not None and ids[:1] != [bos] else ids

    def get_model_info(self) -> dict[str, Any]:
        """The settings, for the harness's records."""
        names = ("gen_length", "batch_size", "temperature", "top_p", "seed", "mc_num", "mc_batch_size", "mc_seed")
        own = {name: getattr(self, name) for name in (*names, "cfg", "ignore_eos")}
        own |= {"is_check_greedy": self.check_greedy, "add_bos_token": self.add_bos, "chat": self.chat}
        return {"policy": str(self.policy), "cache": str(self.cache), **own, **self.memory.environment}

    # --- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Responses in the order of the requests, each up to its first stop string."""
        seen: Counter[str] = Counter()
        jobs = [self._job(i, request, seen) for i, request in enumerate(requests)]
        found: dict[int, str] = {}
        tasks: dict[str, list[Job]] = {}
        for job in jobs:
            answer = self.memory.recall(job.task, job.key)
            if answer is None:
                tasks.setdefault(job.task, []).append(job)
            else:
                found[job.index] = answer
        with _bar(len(jobs), len(found), "generate_until", disable_tqdm) as bar:
            for group in tasks.values():  # one after the other, so that each has a time of its own
                for index, text in self._decoded(group):
                    found[index] = text
                    bar.update()
        return [found[job.index] for job in jobs]

    def _job(self, index: int, request: Any, seen: Counter[str]) -> Job:
        context, given = request.args
        task = request.task_name or "unknown"
        asked: dict[str, Any] = dict(normalize_gen_kwargs(given, self.gen_length))
        for name in sorted(set(asked) - _GENERATION):
            warning_once(_LOG, f"{task}: {name} is not used")
        sampled = asked if asked["do_sample"] else {}
        temperature = sampled.get("temperature", 0.0) if self.temperature is None else self.temperature
        top_p = asked.get("top_p", 1.0) if self.top_p is None else self.top_p
        top_k, length = asked.get("top_k") or 0, asked["max_gen_toks"]
        where = f"{task} document {request.doc_id}"
        ids = self._fitting(where, self._context(context), length)
        hot = temperature > 0
        what = [ids, length, not self.ignore_eos, asked["until"], *([temperature, top_p, top_k] if hot else [])]
        seen[hash_of(what)] += 1
        seed = self.seed + (seen[hash_of(what)] - 1) * hot
        try:
            (made,) = self.lm.requests(
                [ids],
                length,
                self.policy,
                self.cache,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                ignore_eos=self.ignore_eos,
                stop=[one for one in asked["until"] if one],
            )
        except RequestError as error:
            raise RequestError(f"{where}: {error.what}") from None
        key = hash_of(["generate_until", __version__, str(self.policy), self.files, str(self.cache), *what, seed * hot])
        return Job(index, task, request.args, replace(made, id=index), key)

    def _context(self, text: str) -> list[int]:
        if self.chat:
            return self._begun(self.text.encode([{"role": "user", "content": text}]))
        return self.tok_encode(text) or [self.prefix_token_id]

    def _fitting(self, where: str, ids: list[int], length: int) -> list[int]:
        """The end of a prompt that fits in front of ``length`` tokens."""
        room = self.max_length - length
        if room < 1:
            raise RequestError(
                f"{where}: {length} tokens to generate leave no room for a prompt in the context of {self.max_length}"
            )
        if len(ids) > room:
            _LOG.warning("%s: the prompt's first %d of %d tokens are left out", where, len(ids) - room, len(ids))
        return ids[-room:]

    def _decoded(self, jobs: Sequence[Job]) -> Iterator[tuple[int, str]]:
        """Index and text of each job, as they finish, those with long prompts first."""
        by_row = {job.index: job for job in jobs}
        order = sorted(jobs, key=lambda job: -len(job.request.prompt) - job.request.gen_length)
        self.memory.start()
        for event in self.lm.run([job.request for job in order], self.batch_size):
            if isinstance(event, Step):
                continue
            job, result = by_row[event.request.id], self.lm.result(event)
            if result.error is not None:
                raise RequestError(f"{job.task}: {result.error}")
            stats = result.stats
            cost = {"nfe": stats.nfe, "tokens": stats.tokens, "positions": round(stats.positions, 1)}
            self.memory.keep(job.task, job.key, result.text, cost)
            self.cache_hook.add_partial("generate_until", job.arguments, result.text)
            yield job.index, result.text

    # --- likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The likelihood bound of each continuation, and whether greedy decoding gives it."""
        found = []
        for request in requests:
            context, continuation = request.args
            if self.chat and context:
                encoded = self._context(context), self.text.plain(continuation)
            else:
                encoded = self._encode_pair(context, continuation)
            if not encoded[1]:
                where = f"{request.task_name or 'unknown'} document {request.doc_id}"
                _LOG.warning("%s: %r has no tokens, its likelihood is 1", where, continuation)
            found.append((request.args, *encoded))
        tasks = [request.task_name or "unknown" for request in requests]
        return self._loglikelihood_tokens(found, disable_tqdm, tasks)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context, never empty, and of what is scored behind it.

        As the harness does it: blanks that end the context belong to the continuation, both are encoded together and
        split where the context alone ends. Where a token reaches over that place, or the chat template's text precedes
        a continuation that spells a control token, the continuation is encoded for itself instead: no part of it is
        left out of the likelihood.
        """
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        own = self.tok_encode(continuation, add_special_tokens=False)
        if not kept:
            return [self.prefix_token_id], own
        head, whole = self.tok_encode(kept), self.tok_encode(kept + continuation)
        spells = self.templated and own != self.text.parse(continuation)
        together = whole[: len(head)] == head and len(whole) > len(head) and not spells
        return head, whole[len(head) :] if together else own

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, tasks: Sequence[str] = (), kind: str = "loglikelihood"
    ) -> list[tuple[float, bool]]:
        tasks = tasks or ["unknown"] * len(requests)
        pairs = [self._pair(task, *ids) for task, (_, *ids) in zip(tasks, requests, strict=True)]
        how = [kind, __version__, self.mc_num, self.mc_seed, self.cfg, self.check_greedy]
        keys = [hash_of([*how, pair.context, pair.continuation]) for pair in pairs]
        found: dict[int, tuple[float, bool]] = {}
        groups: dict[str, list[int]] = {}
        for i, (task, key) in enumerate(zip(tasks, keys, strict=True)):
            answer = self.memory.recall(task, key)
            if answer is None:
                groups.setdefault(task, []).append(i)
            else:
                found[i] = (float(answer[0]), bool(answer[1]))
        with _bar(len(pairs), len(found), kind, disable_tqdm) as bar:
            for task, group in groups.items():
                for i, value, is_greedy, cost in self._scored([(i, pairs[i]) for i in group], kind):
                    found[i] = value, is_greedy
                    self.memory.keep(task, keys[i], [value, is_greedy], cost)
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial(kind, requests[i][0], found[i])
                    bar.update()
        return [found[i] for i in range(len(pairs))]

    def _pair(self, task: str, context: list[int], continuation: list[int]) -> Pair:
        spec = self.lm.denoiser.spec
        if len(continuation) >= spec.context:
            raise RequestError(
                f"{task}: a continuation has {len(continuation)} tokens; with a context of at least one token "
                f"{spec.context} fit"
            )
        if spec.mask in context or spec.mask in continuation:
            raise RequestError(f"{task}: a text contains the mask token {self.text.pieces([spec.mask])[0]!r}")
        return Pair(tuple(context[len(continuation) - spec.context :]), tuple(continuation))

    def _scored(
        self, many: Sequence[tuple[int, Pair]], kind: str
    ) -> Iterator[tuple[int, float, bool, dict[str, float]]]:
        """Index, bound, whether greedy, and cost of each pair, as they finish."""
        denoiser, pairs, size = self.lm.denoiser, [pair for _, pair in many], self.mc_batch_size
        self.memory.start()
        scored = bounds(denoiser, pairs, self.mc_num, self.mc_seed, size, self.cfg)
        while some := list(islice(scored, size)):
            same = [False] * len(some)
            if self.check_greedy and kind == "loglikelihood":
                same = greedy(denoiser, [pairs[at] for at, _ in some], size, self.cfg)
            for (at, bound), own in zip(some, same, strict=True):
                yield many[at][0], bound.value, own, {"nfe": bound.masks, "positions": bound.positions}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The likelihood bound of whole texts, in windows of the context's length; every token is predicted once."""
        windows, tasks, owner = [], [], []
        for i, request in enumerate(requests):
            ids = self.text.plain(request.args[0])
            most = self.max_length - 1
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=most, context_len=1):
                windows.append((None, *make_disjoint_window(pair)))
                tasks.append(request.task_name or "unknown")
                owner.append(i)
        total = [0.0] * len(requests)
        answers = self._loglikelihood_tokens(windows, disable_tqdm, tasks, "loglikelihood_rolling")
        for i, (value, _) in zip(owner, answers, strict=True):
            total[i] += value
        for request, value in zip(requests, total, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return total


def _bar(total: int, done: int, what: str, off: bool) -> Any:
    return tqdm(total=total, initial=done, desc=what, disable=off or None)  # None: off where nobody watches


def _count(name: str, value: Any) -> int:
    """An integer of at least 1; the harness hands over texts too."""
    number = integer(name, int(value) if isinstance(value, str) and value.isdecimal() else value)
    if number < 1:
        raise RequestError(f"{name} must be at least 1, got {number}")
    return number
