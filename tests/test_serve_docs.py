"""The examples of the server's page, and what the README says of it, against a server."""

import re
from pathlib import Path

import pytest

import unmask
from docpages import Example, examples, fits
from helpers import cli, fine
from serving import serving

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
SDK = re.compile(r"^```python\n(from openai import OpenAI\n.*?)^```\n+```text\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def port():
    with serving(unmask.load()) as served:  # as `unmask serve` has it
        yield str(served.port)


@pytest.mark.parametrize("one", examples(PAGE, "sh"), ids=lambda one: one.code.splitlines()[0][:40])
def test_shell_examples(one, port, shell, tmp_path):
    done = shell(one.code.replace("8000", port), tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), one.code
    assert fits(one.output, done.stdout), done.stdout


def test_python_examples(port, capsys):
    names = {"__name__": "example"}
    for one in examples(PAGE, "python"):
        run(one, port, names)
        printed = capsys.readouterr().out
        assert fits(one.output, printed), f"{one.code}prints\n{printed}"


def test_the_readme(port, capsys):
    """Its lines of the SDK, whatever stands in front of them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for code, output in SDK.findall(readme) + SDK.findall(PAGE):
        run(Example("python", code, output, True), port, {"__name__": "example"})
        assert fits(output, capsys.readouterr().out)


def run(one, port, names):
    exec(compile(one.code.replace("8000", port), "docs/serve.md", "exec"), names)


def test_options_are_documented():
    missing = {o for o in re.findall(r"--[a-z][a-z-]+", fine(cli("serve", "--help"))) if f"`{o}`" not in PAGE} - {
        "--help"
    }
    assert not missing


def test_metrics_are_documented(port):
    import httpx2

    told = re.findall(r"^# TYPE (unmask_\w+)", httpx2.get(f"http://127.0.0.1:{port}/metrics").text, re.MULTILINE)
    missing = {name for name in told if not name.endswith("_created") and f"`{name}`" not in PAGE}
    assert not missing
