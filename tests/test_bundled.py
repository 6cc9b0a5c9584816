"""Models that come with the package, by name."""

from __future__ import annotations

import pytest

import unmask
from refusals import refuses
from unmask.api import BUNDLED_NAME
from unmask.inspection import inspect
from unmask.models.hub import BUNDLED, find_folder


@pytest.mark.parametrize("name", BUNDLED)
def test_names_stand_for_folders(name, tmp_path, monkeypatch):
    assert find_folder(name) == BUNDLED[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert find_folder(name).resolve() == tmp_path / name  # what is there goes first


@pytest.mark.parametrize("name", BUNDLED)
def test_folders_are_whole_and_small(name):
    """Weights, tokenizer and chat template, a recommended setting, a card; at most 9 MiB."""
    found = inspect(name)
    assert found["weights"].startswith("complete")
    assert found["chat_template"]
    assert found["recommended"]["source"].endswith("generation_config.json")
    assert found["tokenizer"] == found["sizes"]["vocabulary"]
    assert (BUNDLED[name] / "README.md").stat().st_size > 0
    assert sum(found["files"].values()) < 9 << 20


def test_the_default_has_a_name():
    assert inspect(BUNDLED_NAME) == inspect()


@pytest.mark.parametrize("name", ["unmask-large", "unmask-tiny-blocks", "assets/tiny/config.json/x"])
def test_unknown_names(name):
    with refuses(unmask.ModelError, name, *BUNDLED):
        find_folder(name)


def test_no_revisions():
    with refuses(unmask.ModelError, "revision", "main"):
        find_folder(BUNDLED_NAME, revision="main")
