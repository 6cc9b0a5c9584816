"""Commands in a warm process are what they are in one of their own."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

import unmask
import warm
from serving import wait_for

LONG = ("generate", "Hi", "-n", "1024", "-p", "vanilla", "--ignore-eos", "--trace")


def test_streams_folder_and_exit_codes(shell, tmp_path):
    done = shell('unmask --version; cd /; unmask inspect "$OLDPWD/absent" || echo "code $?"', tmp_path)
    assert done.stdout == f"unmask {unmask.__version__}\ncode 2\n"
    assert done.stderr.startswith("error: ") and str(tmp_path / "absent") in done.stderr


def test_input_variables_and_files(shell, tmp_path):
    script = (
        "echo Hi | unmask generate - -n 4 --json -o out.json; COLUMNS=300 unmask --help | head -n 1; unmask caches >x"
    )
    done = shell(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert '"index": 0' in (tmp_path / "out.json").read_text() and "dual" in (tmp_path / "x").read_text()


def test_a_failing_command_ends_the_script(shell, tmp_path):
    done = shell("unmask generate; touch after", tmp_path)
    assert done.returncode == 2 and not Path(tmp_path / "after").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_signals(tmp_path, number, code):
    if number == signal.SIGKILL and not hasattr(os, "pidfd_open"):
        pytest.skip("only Linux can wait for a process and a connection at once")
    trace = tmp_path / "trace"
    with subprocess.Popen([*warm.command(), *LONG, trace], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert wait_for(lambda: trace.exists() and trace.read_bytes().count(b"\n") > 2)
        process.send_signal(number)
        process.communicate(timeout=20)  # until nobody holds its streams any more
    assert process.returncode == code


def test_streams_that_are_closed(shell, tmp_path):
    done = shell("unmask generate - <&- || echo $?; unmask policies >&-", tmp_path)
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert "standard input" in done.stderr and "Traceback" not in done.stderr
