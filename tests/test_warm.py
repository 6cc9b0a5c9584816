"""Commands in a warm process are what they are in one of their own."""

from pathlib import Path

import unmask


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
