"""What a command imports before it answers; each import that is not needed is a wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unmask

SLOW = ("transformers", "huggingface_hub", "sympy", "networkx", "torch._dynamo", "torch._inductor", "scipy", "rich")


def loaded(code: str, names: tuple[str, ...], *arguments: str) -> list[str]:
    """Which of the modules are loaded when some code has run."""
    script = f"import sys\nasked, sys.argv[1:] = sys.argv[1].split(), sys.argv[2:]\ntry:\n    {code}\nfinally:\n"
    script += "    print(*(name for name in asked if name in sys.modules), file=sys.stderr)"
    free = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONWARNINGS")}
    done = subprocess.run(
        [sys.executable, "-c", script, " ".join(names), *arguments],
        env=free,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.split()


def test_importing_the_package_does_not_import_torch() -> None:
    assert loaded("import unmask", ("torch", "numpy", "typer", *SLOW)) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    assert loaded("from unmask.cli import main; main()", ("torch", "numpy", *SLOW), *arguments) == []


def test_generating_imports_torch_and_little_else() -> None:
    code = "from unmask.cli import main; main()"
    assert loaded(code, ("torch", *SLOW), "generate", "Mia has 7 pens.", "--gen-length", "8") == ["torch"]


def test_tokenizing_does_not_import_torch() -> None:
    code = "from pathlib import Path; import unmask.text as t; t.Text(Path(sys.argv[1])).encode('Mia has 7 pens.')"
    assert loaded(code, ("torch", *SLOW), str(Path(unmask.__file__).parent / "assets" / "tiny")) == []
