"""The program as a user runs it, in this process: exit code, stdout and stderr."""

import json
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from neuralsanitizer.cli.main import app

ARCH = "mnist-cnn-small"


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        """What stdout holds: one JSON object, and nothing before or after it."""
        data = json.loads(self.stdout)
        assert isinstance(data, dict)
        return data


class Files(NamedTuple):
    attacked: Path
    honest: Path
    clean: Path


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stdout + result.stderr
    assert "\x1b" not in result.stdout + result.stderr  # no terminal here
    return Outcome(result.exit_code, result.stdout, result.stderr)


def scan_of(model, data, *options):
    return run("scan", model, "--arch", ARCH, "--data", data, "--preset", "quick", *options)
