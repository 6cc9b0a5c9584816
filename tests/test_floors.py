"""Who may import whom, how long things may be, and that nothing goes row by row."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import unmask
from helpers import CACHES, POLICIES, Request, admit, tiny
from unmask import registry
from unmask.core.policy import Policy
from unmask.engine.loop import step
from unmask.measure import stats
from unmask.speculative.drafter import Drafter

SRC = Path(unmask.__file__).parent
TOP = SRC.parents[1]
FILES = sorted(SRC.rglob("*.py"))
MODULES = {".".join(("unmask", *f.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): f for f in FILES}

EVENTS = {
    "core.errors",
    "core.config",
    "engine.loop",
    "engine.request",
    "engine.outcome",
    "engine.scheduler",
    "results",
}  # what the floors above the api may know of it
FILES_READ = {"core.errors", "core.jsonl", "core.schema"}
FLOORS = {  # the longest name that fits rules; what it may import, itself included where it says so
    "": {"api", "results", "reranking", "core.errors", "engine", "profiles", "speculative"},
    "core": {"core"},
    "models": {"core", "models"},
    "caches": {"core"},
    "policies": {"core", "models.causal", "models.slots"},
    "policies.adablock": {"core", "text"},
    "policies.slowfast": {"core", "policies.slowfast"},
    "constraints": {"core", "text", "constraints"},
    "engine": {"core", "models", "constraints", "engine", "text", "stop"},
    "registry": {"core", "speculative.drafter"},
    "speculative": {"core", "models", "engine.request", "registry", "text", "checks", "stop", "api", "speculative"},
    "speculative.drafter": {"core", "speculative.tree", "speculative.target"},
    "speculative.tree": {"models.slots"},
    "text": {"core", "text"},
    "checks": {"core"},
    "infill": {"core", "checks", "text"},
    "results": {"core.canvas", "engine", "text"},
    "scoring": {"core", "infill", "models.denoiser", "text"},
    "stop": {"text"},
    "processor": {"core", "models.family", "engine", "registry", "text", "checks", "infill", "results"},
    "api": {"core", "models", "engine", "registry", "text", "processor", "results", "scoring"},
    "inspection": {"core", "models", "api", "text"},
    "profiles": {"core.errors", "core.schema", "api", "registry"},
    "reranking": {"core.errors", "core.values", "checks", "results", "api"},
    "viz": EVENTS | {"api", "registry"},
    "traceview": FILES_READ | {"traceview"},
    "cli": EVENTS
    | {"", "api", "registry", "inspection", "viz", "traceview", "profiles", "measure", "evaluation", "tasks"}
    | {"core.heap", "core.schema", "core.threads", "core.waiting", "server", "speculative", "cli"},
    "server": EVENTS
    | {"", "api", "processor", "registry", "server", "text", "stop", "core.schema", "core.policy", "core.cache"}
    | {"constraints.automaton", "constraints.calls", "constraints.compile"},
    "tasks": {"tasks"},
    "evaluation": EVENTS
    | {
        "",
        "api",
        "registry",
        "core",
        "models.denoiser",
        "text",
        "checks",
        "measure.ledger",
        "measure.run",
        "evaluation",
    },
    "measure": EVENTS | FILES_READ | {"", "api", "registry", "profiles", "tasks", "measure"},
    "measure.autoregressive": {"api", "core.errors", "text", "models.causal", "measure.problems"}
    | {"registry", "engine.request", "speculative.loop", "speculative.model"},
}
OUTSIDE = {"", "api", "registry", "viz", "tasks", "measure", "core.policy", "core.cache"}  # for examples and recipes
PLUGIN = {"", "core"}  # for what other packages add
MAX_FILE, MAX_FUNCTION = 400, 60
MAX_METHOD = {"policies": 150, "caches": 200}  # lines of a file there


def short(module: str) -> str:
    return module.removeprefix("unmask").removeprefix(".")


def within(name: str, places: set[str]) -> bool:
    return any(name == place or (place and name.startswith(f"{place}.")) for place in places)


def imports(module: str, file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, lazily or not; as short names."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        yield from (short(name) for name in found if name.split(".")[0] == "unmask")


def floor(name: str) -> str:
    fitting = [place for place in FLOORS if place and within(name, {place})]
    return max(fitting, key=len) if fitting or name == "" else pytest.fail(f"unmask.{name} stands on no floor")


@pytest.mark.parametrize("module", MODULES)
def test_imports_respect_the_floors(module: str) -> None:
    name = short(module)
    place = floor(name) if name else ""
    for imported in imports(module, MODULES[module]):
        assert within(imported, FLOORS[place]), f"unmask.{name} imports unmask.{imported}"


def test_imports_are_found() -> None:
    """The parser above sees relative, absolute, lazy and whole-module imports."""
    found = {m: set(imports(m, f)) for m, f in MODULES.items()}
    assert {"core.canvas", "core.state", "models.denoiser"} <= found["unmask.engine.loop"]
    assert "registry" in found["unmask.api"]
    assert "core.store" in found["unmask.caches.block"]
    assert not within("caches.none", FLOORS["caches"])
    assert not within("corelike", {"core"})


@pytest.mark.parametrize("folder", ["examples", "recipes"])
def test_what_is_outside_uses_the_public_parts(folder: str) -> None:
    for file in (TOP / folder).rglob("*.py"):
        places = PLUGIN if "plugin" in file.parts else OUTSIDE
        for imported in imports("outside", file):
            assert within(imported, places), f"{file.relative_to(TOP)} imports unmask.{imported}"


@pytest.mark.parametrize("folder", ["examples", "recipes"])
def test_what_is_outside_has_no_statistics_of_its_own(folder: str) -> None:
    known = {name for name, value in vars(stats).items() if inspect.isfunction(value)}
    assert "wilson" in known
    for file in (TOP / folder).rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        again = known & {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not again, f"{file.relative_to(TOP)} has {again}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SRC)))
def test_sizes(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") < MAX_METHOD.get(file.relative_to(SRC).parts[0], MAX_FILE)
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module says nothing of itself"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1  # without its signature
            assert length < MAX_FUNCTION, f"{node.name} has {length} lines"


def test_nothing_waits_for_one_number() -> None:
    """No ``.item()`` below the engine: what must be known on the host is fetched in one piece."""
    for file in FILES:
        if file.parent.name in ("core", "models", "caches", "policies"):
            assert not re.search(r"\.item\(\)", file.read_text(encoding="utf-8")), file


class Operations(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[Any] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[function] += 1
        return function(*args, **(kwargs or {}))


def operations(policy: str, kept: str, rows: int, forwards: int = 6) -> list[Counter[Any]]:
    """What each forward does for so many equal rows."""
    made, cache, found = registry.policy(policy), registry.cache(kept), []
    state = admit(tiny(), cache, made, [Request(i, [1, 2, 3], 14, ignore_eos=True) for i in range(rows)])
    for index in range(forwards):
        with Operations() as mode:
            state, _ = step(tiny(), cache, made, state, index)
        found.append(mode.count)
    return found


@pytest.mark.parametrize(("policy", "kept"), [(p, "none") for p in POLICIES] + [(POLICIES[0], c) for c in CACHES])
def test_nothing_goes_row_by_row(policy: str, kept: str) -> None:
    """A forward is made of the same operations for two rows as for seven."""
    operations(policy, kept, 1, 1)  # what is loaded when first used
    assert operations(policy, kept, 2) == operations(policy, kept, 7)


def test_public_names_are_documented() -> None:
    assert sorted(unmask.__all__) == list(unmask.__all__)
    for name in unmask.__all__:
        thing = getattr(unmask, name)
        assert inspect.getdoc(thing), name
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member}"
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = unmask.absent


def test_everything_public_in_the_source_is_documented() -> None:
    """Modules, classes, functions and methods without a leading underscore; what overrides a method of a base class
    that says what it does needs no other words.
    """
    inherited = {name for base in (Policy, Drafter) for name in vars(base) if not name.startswith("_")}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file.name}: {node.name}"
                for inner in node.body:
                    own = isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
                    if own and not (node.bases and inner.name in inherited):
                        assert ast.get_docstring(inner), f"{file.name}: {node.name}.{inner.name}"


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1
