"""The example plug-in: a policy in a package of its own, found by its entry point in another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import unmask
import warm
from refusals import names

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings tomli there
    import tomli as tomllib

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"
PROJECT = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROMPT = "Nia has 8 pens. Nia gets 3 more pens. How many pens does Nia have?"


def unpacked(folder: Path) -> None:
    """What an installer leaves behind, for environments without the build backend."""
    shutil.copy(PLUGIN / "unmask_outside_in.py", folder)
    info = folder / f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PROJECT['name']}\nVersion: {PROJECT['version']}\n")
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in own.items()) for g, own in PROJECT["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


def built(folder: Path) -> None:
    """By pip, from the source tree; without the network."""
    if not (find_spec("hatchling") and find_spec("pip")):
        pytest.skip("needs pip and hatchling")
    copy = shutil.copytree(PLUGIN, folder / "source")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder, copy]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module", params=[unpacked, built], ids=lambda way: way.__name__)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    request.param(folder)
    return folder


def run(*args: str, extra: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, in a process whose path has the plug-in on it, if any."""
    start = warm.COLD if extra else warm.command()
    path = [str(extra)] * (extra is not None) + [str(Path(unmask.__file__).parents[1])]
    return subprocess.run(
        [*start, *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_it_is_listed(installed: Path) -> None:
    listed = json.loads(run("policies", "--json", extra=installed).stdout)
    assert listed["outside_in"]["summary"] == "Commits the `k` masks that are nearest to either end of the response."
    assert [p["name"] for p in listed["outside_in"]["parameters"]] == ["k"]
    assert "outside_in(k" not in run("policies").stdout


@pytest.mark.slow
def test_it_decodes(installed: Path) -> None:
    args = ("generate", PROMPT, "--gen-length", "16", "--ignore-eos", "--json")
    done = run(*args, "--policy", "outside_in(k=2)", "--cache", "dllm(kp=3,kr=2)", extra=installed)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == [*range(8), *reversed(range(8))]
    assert result["policy"] == "outside_in"
    wide = json.loads(run(*args, "--policy", "outside_in(k=5)", extra=installed).stdout)
    assert (wide["policy"], wide["stats"]["nfe"]) == ("outside_in(k=5)", 4)


def test_its_parameters_are_checked(installed: Path) -> None:
    done = run("generate", PROMPT, "--policy", "outside_in(k=0)", extra=installed)
    assert (done.returncode, done.stdout) == (2, "")
    names(done.stderr, "outside_in", "k", 0)


def test_without_it_the_name_is_unknown() -> None:
    done = run("generate", PROMPT, "--policy", "outside_in")
    assert done.returncode == 2
    names(done.stderr, "policy", "'outside_in'")
