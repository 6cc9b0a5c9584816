"""Tasks by name, one evaluation of them with lm-evaluation-harness, and what it leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RequestError, UnmaskError
from . import register

if TYPE_CHECKING:
    from .model import UnmaskLM

ANSWERS, RESULTS = "answers.jsonl", "results.json"


@dataclass(frozen=True)
class Tasks:
    """The ``names`` of tasks, groups and tags that are wanted, and the ``manager`` that loads them."""

    names: tuple[str, ...]
    manager: Any

    def about(self) -> list[tuple[str, str, str]]:
        """Name, kind and file of each."""
        entries = [self.manager.task_index[name] for name in self.names]
        return [(e.name, e.kind.name.lower(), str(e.yaml_path or "-")) for e in entries]


def find(names: Sequence[str], include: Sequence[str] = ()) -> Tasks:
    """Look tasks up; nothing of them is loaded.

    Args:
        names: tasks, groups or tags.
        include: folders of own tasks, which come before those of the harness.

    Raises:
        RequestError: lm-eval is not installed, no names, an unknown one, or a folder that is none.
    """
    register()
    from lm_eval.tasks import TaskManager

    if not names:
        raise RequestError("no tasks: give at least one name, as in --tasks gsm8k")
    for folder in include:
        if not Path(folder).is_dir():
            raise RequestError(f"--include-path {folder} is not a folder")
    paths = [str(Path(folder).resolve()) for folder in include]
    try:
        if paths:
            own = TaskManager(include_path=paths, include_defaults=False)  # reading all of the harness's takes seconds
            if all(name in own.all_subtasks for name in names):
                return Tasks(tuple(names), own)
        manager = TaskManager(include_path=paths or None)
    except Exception as error:  # YAML that does not parse, in whichever way
        raise RequestError(f"cannot read the tasks of {', '.join(paths)}: {error}") from None
    for name in names:
        if name not in manager.all_tasks:
            near = " or ".join(get_close_matches(name, manager.all_tasks, 3))
            raise RequestError(
                f"unknown task {name!r}; {f'did you mean {near}? ' if near else ''}"
                "`lm-eval ls tasks` lists what the harness knows, --include-path adds own folders"
            )
    return Tasks(tuple(names), manager)


def evaluate(
    lm: UnmaskLM,
    tasks: Tasks,
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    gen_length: int | None = None,
    chat: bool = False,
    system: str | None = None,
    unsafe_code: bool = False,
) -> dict[str, Any]:
    """Run the harness.

    Args:
        lm: the model.
        tasks: from :func:`find`.
        num_fewshot: examples in front of each question; None: the task's own. A task that says 0 stays at 0.
        limit: of each task, the first so many documents; below 1, that share of them, rounded up.
        gen_length: tokens of a response, whatever the tasks say.
        chat: apply the chat template, examples as turns of the conversation.
        system: system message, or text in front of every prompt without ``chat``.
        unsafe_code: allow tasks that run code the model has written.

    Returns:
        What the harness returns, with ``speed`` of each task (see :meth:`.memory.Memory.speed`) and without what it
        tells of the machine.

    Raises:
        RequestError: a task that cannot be loaded, or runs code and is not allowed to.
    """
    from lm_eval import simple_evaluate

    check_limit(limit)
    loaded = _load(tasks, unsafe_code)
    tasks.manager.load = lambda _: loaded  # what is loaded need not be loaded again
    with _without_machine():
        results: dict[str, Any] = simple_evaluate(
            model=lm,
            tasks=list(tasks.names),
            num_fewshot=num_fewshot,
            limit=limit if limit is None or limit < 1 else int(limit),
            gen_kwargs={"max_gen_toks": gen_length} if gen_length is not None else None,
            apply_chat_template=chat,
            system_instruction=system,
            task_manager=tasks.manager,
            confirm_run_unsafe_code=unsafe_code,
            batch_size=lm.batch_size,
        )
    for name in _MACHINE.values():
        results.pop(name, None)
    asked = {"num_fewshot": num_fewshot, "chat": chat or lm.chat, "system": system}
    results["config"] |= asked | {"device": lm.memory.environment["device"]}  # the harness knows no device
    return results | {"speed": lm.memory.speed()}


def check_limit(limit: float | None) -> None:
    """Refuse what is neither a number of documents nor a share of them.

    Raises:
        RequestError: 0, below it, or above 1 and not whole.
    """
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and float(limit).is_integer())):
        raise RequestError(f"limit must be a whole number of documents, or a share between 0 and 1, got {limit:g}")


_MACHINE = {"add_env_info": "pretty_env_info", "get_git_commit_hash": "git_hash"}


@contextmanager
def _without_machine() -> Iterator[None]:
    """Keep the harness from describing the machine: that takes pip, drivers and git seconds, and git complains on
    standard error where there is no repository.
    """
    from lm_eval import evaluator

    before = {name: getattr(evaluator, name) for name in _MACHINE if hasattr(evaluator, name)}
    for name in before:
        setattr(evaluator, name, lambda *_: None)
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(evaluator, name, own)


def _load(tasks: Tasks, unsafe_code: bool) -> Any:
    if unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric of such tasks asks for it
    try:
        loaded = tasks.manager.load(list(tasks.names))
    except UnmaskError:
        raise
    except Exception as error:  # datasets, hub and task code raise all kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "HF_ALLOW_CODE_EVAL" in str(error):
            raise RequestError(f"{', '.join(tasks.names)}: {_UNSAFE}") from None
        raise RequestError(f"cannot load {', '.join(tasks.names)}: {reason}") from None
    unsafe = [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not unsafe_code:
        raise RequestError(f"{', '.join(unsafe)}: {_UNSAFE}")
    return loaded


_UNSAFE = "runs code that the model writes, on this machine; --run-unsafe-code allows it"


def prepare(folder: Path | None, resume: bool) -> Path | None:
    """The file of answers in a folder for results, neither of which is made.

    Raises:
        RequestError: there are answers and nobody said ``resume``, or there is nothing to resume.
    """
    if folder is None:
        if resume:
            raise RequestError("--resume needs --output DIR, the folder of the run to continue")
        return None
    answers = folder / ANSWERS
    if answers.exists() and not resume:
        raise RequestError(
            f"{folder} holds answers of an earlier run; --resume continues it, another --output begins anew"
        )
    if resume and not answers.exists():
        raise RequestError(f"{folder} holds no {ANSWERS}: there is nothing to resume")
    return answers


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """``results.json``, and ``samples_TASK.jsonl`` with every document, prompt and response."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, samples in results.get("samples", {}).items():
        lines = "".join(dumps(sample, indent=None) + "\n" for sample in samples)
        _replace(folder / f"samples_{task}.jsonl", lines)
    _replace(folder / RESULTS, dumps({k: v for k, v in results.items() if k != "samples"}) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def dumps(value: Any, indent: int | None = 2) -> str:
    """JSON, with what the harness leaves in its results that is none as text."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)


def tables(results: Mapping[str, Any]) -> str:
    """Scores, scores of groups, and speed, as tables in Markdown."""
    from lm_eval.utils import make_table

    parts = [make_table(results)]
    if results.get("groups"):
        parts.append(make_table(results, "groups"))
    return "\n".join([*parts, _speed(results["speed"])])


_COLUMNS = (
    ("requests", "requests", "{:.0f}"),
    ("NFE", "nfe", "{:.1f}"),
    ("tokens", "tokens", "{:.1f}"),
    ("TPF", "tpf", "{:.2f}"),
    ("positions", "positions", "{:.0f}"),
    ("seconds", "seconds", "{:.1f}"),
    ("tokens/s", "tokens_per_second", "{:.1f}"),
)


def _speed(speed: Mapping[str, Mapping[str, float]]) -> str:
    from pytablewriter import MarkdownTableWriter

    headers = ["Speed", *(title for title, _, _ in _COLUMNS)]
    rows = [
        [task, *(form.format(own[name]) if name in own else "" for _, name, form in _COLUMNS)]
        for task, own in speed.items()
    ]
    return str(MarkdownTableWriter(headers=headers, value_matrix=rows).dumps())
