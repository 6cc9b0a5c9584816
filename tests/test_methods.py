"""Every registered method has a page in docs/methods, and what the package knows of it stands there as it is now."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from refusals import refuses
from unmask import registry
from unmask.registry import describe

ROOT = Path(__file__).parents[1]
PAGES, PICTURES = ROOT / "docs" / "methods", ROOT / "docs" / "img" / "methods"
METHODS = dict.fromkeys(registry.POLICIES, "policy") | dict.fromkeys(registry.CACHES, "cache")
SCRIPT = ROOT / "examples" / "method_pages.py"
WRITER = runpy.run_path(str(SCRIPT), run_name="writer")


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def part(text: str, mark: str) -> str:
    """What stands between two marks."""
    (found,) = re.findall(rf"<!-- {mark} -->\n(.*?)\n?<!-- /{mark} -->", text, re.DOTALL)
    return found


def section(name: str, title: str) -> str:
    """The text below a heading; "" where there is none."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page(name), re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    assert {file.stem for file in PAGES.glob("*.md")} - {"README"} == set(METHODS)
    assert {file.stem for file in PICTURES.iterdir()} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_those_of_the_registry(name: str) -> None:
    about = describe(registry.lookup(METHODS[name], name))
    assert part(page(name), "parameters") == WRITER["parameters"](about), f"run {SCRIPT.name}"
    assert len(about["parameters"]) <= 8, "more than one meets at a glance: what imitates other programs is hidden"
    hidden = section(name, "Imitating the authors' code")
    assert bool(hidden) == bool(about["hidden"])
    if hidden:
        assert part(hidden, "hidden") == WRITER["parameters"](about, "hidden"), f"run {SCRIPT.name}"


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_what_it_has_to(name: str) -> None:
    text, paper = page(name), registry.lookup(METHODS[name], name).paper
    assert text.splitlines()[4].startswith("Paper: ")
    if paper != "-":
        assert f"](https://arxiv.org/abs/{paper.removeprefix('arXiv ')})" in text.splitlines()[4]
    assert "../../tests/test_" in section(name, "What is tested")
    measured = part(section(name, "What was measured here"), "measured")
    assert measured == WRITER["measured"](name, ROOT / "docs" / "results"), f"run {SCRIPT.name}"
    svg = PICTURES / f"{name}.svg"
    assert f"](../img/methods/{svg.name})" in part(text, "picture" if METHODS[name] == "policy" else "positions")
    assert svg.read_text(encoding="utf-8").startswith("<svg")
    assert svg.stat().st_size < 40_000


@pytest.mark.parametrize(("mark", "table"), [("policies", registry.POLICIES), ("caches", registry.CACHES)])
def test_the_index_is_that_of_the_pages(mark: str, table: dict[str, str]) -> None:
    assert part(page("README"), mark) == WRITER["index"](PAGES, list(table)), f"run {SCRIPT.name}"


def test_what_is_refused_is_said() -> None:
    """By policies that only go forward, and by ``adaptive``."""
    classes = {name: registry.lookup("policy", name) for name in registry.POLICIES}
    forward_only = {name for name, cls in classes.items() if cls.left_to_right is True}
    said = {name for name in METHODS if section(name, "What is refused").startswith("Requests with fixed tokens")}
    assert said == forward_only
    assert all(section(name, "What is refused") for name, cls in classes.items() if cls.refuses)
    none = {name for name, cls in classes.items() if not cls.threshold}
    for text in (section("adaptive", "What is refused"), page("README").partition("## What is refused")[2]):
        (named,) = re.findall(r"policy\s+without a confidence threshold:(.*?)[.|]", text, re.DOTALL)
        assert set(re.findall(r"`(\w+)`", named)) == none


@pytest.mark.slow
def test_pages_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script repairs what has gone stale and leaves the page's own words alone."""
    for folder in (PAGES, ROOT / "docs" / "results"):
        shutil.copytree(folder, tmp_path / folder.name)
    for name in ("threshold", "dual"):
        file = tmp_path / "methods" / f"{name}.md"
        text = page(name)
        for mark in ("parameters", "measured", "picture" if name == "threshold" else "positions"):
            text = text.replace(part(text, mark), "stale")
        file.write_text(text, encoding="utf-8")
    index = tmp_path / "methods" / "README.md"
    index.write_text(page("README").replace("| [`none`]", "| none"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["method_pages.py", "--docs", str(tmp_path), "--only", "threshold", "dual"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert index.read_text(encoding="utf-8") == page("README")
    for name in ("threshold", "dual"):
        text = (tmp_path / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert part(text, "parameters") == part(page(name), "parameters")
        assert (tmp_path / "img" / "methods" / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")
        assert text.partition("## What is tested")[2] == page(name).partition("## What is tested")[2]
    assert "tokens in" in part((tmp_path / "methods" / "threshold.md").read_text(encoding="utf-8"), "picture")


def test_a_page_without_marks_is_refused() -> None:
    with refuses(SystemExit, "<!-- parameters -->"):
        WRITER["between"]("# threshold\n\nAll.\n", "parameters", "None.")
