"""The command ``unmask``. Standard output carries results, standard error everything else."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..core.errors import UnmaskError
from ..core.heap import keep_freed
from ..core.waiting import bound_waiting
from .bench import bench
from .chat import chat
from .evaluate import evaluate
from .generate import generate
from .infill import infill
from .quantize import quantize
from .report import report
from .serve import serve
from .show import caches, drafters, inspect, policies
from .speculate import speculate
from .trace import trace
from .tune import tune

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Group(TyperGroup):
    """One clear line on standard error and an exit code for everything that can go wrong; no traceback for users."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and exit with 0 (done), 1 (the machine failed), 2 (bad usage or input) or 130 (interrupted)."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
            sys.stdout.flush()
        except UnmaskError as error:
            code = _fail(error, USAGE)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except OSError as error:
            code = _system(error)
        except MemoryError as error:
            code = _fail(error or "out of memory", FAILED)
        except Exception as error:
            code = _other(error)
        sys.exit(code if isinstance(code, int) else DONE)


def _fail(message: object, code: int) -> int:
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return code


def _system(error: OSError) -> int:
    if error.errno == errno.EPIPE:  # whoever read our output has left; that is no news
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    name = f"{error.filename}: " if error.filename else ""
    return _fail(f"{name}{error.strerror or error}", FAILED)


def _other(error: Exception) -> int:
    if hasattr(error, "format_message"):  # click's and typer's own errors, whichever of the two defines them
        return _fail(error.format_message() or error, USAGE)
    if type(error).__name__ == "OutOfMemoryError" or "Cannot allocate memory" in str(error):  # on CUDA, on a CPU
        return _fail("the device is out of memory; try a smaller --batch-size or --gen-length", FAILED)
    raise error


app = typer.Typer(
    cls=Group, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings={
        "help_option_names": ["-h", "--help"], "max_content_width": 100}
)  # fmt: skip
for command in (
    generate, infill, chat, serve, speculate, bench, report, tune, quantize, inspect, policies, caches, drafters,
):  # fmt: skip
    app.command()(command)
app.add_typer(trace, name="trace")
app.command("eval")(evaluate)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"unmask {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Decode masked diffusion language models (LLaDA and its kin) fast."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run ``unmask`` with the arguments of this process, whose memory and threads are its own business."""
    for number, name in ((0, ""), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed by the shell: no file of ours may take the place
            os.open(os.devnull, os.O_RDWR)
        if name and getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    keep_freed()
    bound_waiting(os.environ)
    gc.set_threshold(50_000, 20, 20)  # imports make a million objects that stay: looking for garbage among them is slow
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets its code
    try:
        app(prog_name="unmask")
    finally:
        gc.freeze()  # nor need the interpreter look for it at its end
