"""The program as a process of its own: what the shell sees."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neuralsanitizer.provenance import tool_version
from program import ARCH, run, scan_of
from quick import TARGET

TESTS = Path(__file__).resolve().parents[1]
# The program with one more preset, which costs seconds.
QUICKLY = (
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a script starts in the background
    "from neuralsanitizer import config\n"
    "from neuralsanitizer.cli.main import main\n"
    "from quick import QUICK\n"
    "config.PRESETS['quick'] = QUICK\n"
    "main()\n"
)


def command(*arguments):
    return [str(argument) for argument in arguments]


def call(*arguments, **environment):
    started = [sys.executable, "-m", "neuralsanitizer", *command(*arguments)]
    return subprocess.run(
        started, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_module_runs_and_knows_its_version():
    done = call("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"neuralsanitizer {tool_version()}\n", "")


def test_exit_codes_and_streams_reach_the_shell(files):
    done = call("scan", files.attacked, "--arch", ARCH, "--data", "nowhere.npz")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: 'nowhere.npz' does not exist")
    done = call("scan", files.attacked, "--frobnicate")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("format_", ["json", "table"])
def test_a_reader_that_leaves_early_changes_nothing(format_, scanned):
    """As in ``... | head -0``: an exit code of 1 would say that a backdoor was found."""
    started = [sys.executable, "-m", "neuralsanitizer", *command("report", scanned[1], "--format", format_)]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (0, b"")


@pytest.mark.parametrize("format_", ["json", "table"])
def test_names_of_any_alphabet_pass_through_a_stream_that_takes_ascii_alone(format_, again, files, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join("äöü漢字→абвг"), encoding="utf-8")
    again(files, "infected", "--label-names", "names.txt")
    done = call("report", "again", "--format", format_, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "\\u6f22" in done.stdout  # of the fourth name, either way


def test_ctrl_c_ends_with_130_and_the_scan_can_go_on(files, tmp_path):
    arguments = ("scan", files.attacked, "--arch", ARCH, "--data", files.clean, "--preset", "quick", "--output", "run")
    process = subprocess.Popen(
        [sys.executable, "-c", QUICKLY, *command(*arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list((tmp_path / "run").glob("state/reference-*.npz")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stdout == ""
    assert "interrupted; " in stderr
    assert "go on with --resume" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "run" / "run.json").exists()
    assert run("report", "run").code == 3  # not finished: no result
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "state").glob("reference-*.npz")}
    done = scan_of(files.attacked, files.clean, "--output", "run", "--resume", "--format", "json")
    assert done.code == 1
    assert [f["label"] for f in done.json["labels"] if f["finding"] == "infected"] == [TARGET]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
