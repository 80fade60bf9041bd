"""What the command line says, and where: data on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from neuralsanitizer.errors import NeuralSanitizerError
from neuralsanitizer.records import Finding
from neuralsanitizer.report.text import clean_text

__all__ = ["RichProgress", "exit_code_of", "guarded", "print_json", "progress_bar", "stderr", "stdout"]

P = ParamSpec("P")
R = TypeVar("R")

INTERNAL_ERROR = 5
INTERRUPTED = 130
_LONGEST = 2000  # characters of an error: its text may quote what stands in a hostile file


class _Console(Console):
    """A console whose reader may leave early (``| head``): the exit code still says what was found."""

    def on_broken_pipe(self) -> None:
        """Say nothing more, where rich would end the program with 1, which means infected here."""
        self.quiet = True
        _drop_stdout()


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout() -> Console:
    """Where data goes. Made anew each time: tests and pipes change the stream."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name must not end a scan on a stream without its letters
    return _Console()


def stderr() -> Console:
    """Where everything else goes."""
    return Console(stderr=True)


def print_json(data: Any) -> None:  # noqa: ANN401 - anything that JSON can hold
    """One JSON object on stdout, and nothing else."""
    try:
        sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")  # ASCII: any stream can take it
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left: the exit code still says what was found
        _drop_stdout()


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """End a command with the exit code of what went wrong, and one line that says it; no traceback.

    A command may raise a ``KeyboardInterrupt`` of its own, whose message says how to go on.
    Set ``NEURALSANITIZER_DEBUG`` to see the traceback of an internal error.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except NeuralSanitizerError as error:
            message = clean_text(str(error), _LONGEST)
            stderr().print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            advice = str(error) or "a scan with --output keeps its finished labels: go on with --resume"
            stderr().print(f"interrupted; {escape(advice)}", highlight=False, soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from error
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:  # the one place that may catch everything: users get no traceback
            if os.environ.get("NEURALSANITIZER_DEBUG"):
                traceback.print_exc()
            message = f"internal error: {type(error).__name__}: {clean_text(str(error), _LONGEST)}"
            message += " (set NEURALSANITIZER_DEBUG=1 for the traceback)"
            stderr().print(f"[bold red]{escape(message)}[/]", soft_wrap=True, highlight=False)
            raise typer.Exit(INTERNAL_ERROR) from error

    return run


def exit_code_of(finding: Finding, *, fail_on: Finding, exit_zero: bool) -> int:
    """0 nothing found, 1 a finding at or over ``fail_on``, 4 inconclusive; ``exit_zero`` masks 1 only."""
    failing = {Finding.INFECTED} if fail_on is Finding.INFECTED else {Finding.INFECTED, Finding.INCONCLUSIVE}
    if finding in failing:
        return 0 if exit_zero else 1
    return 4 if finding is Finding.INCONCLUSIVE else 0


class RichProgress:
    """Draws a job's stages as bars with the time left, on stderr; plain lines where stderr is no terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, stage: str, total: int) -> None:
        """A stage begins; the one before is done."""
        self._finish()
        if not self._bars.console.is_terminal:
            self._bars.console.print(f"{stage} ...", highlight=False)
        self._task = self._bars.add_task(stage, total=total)

    def advance(self, steps: int = 1) -> None:
        """The current stage did ``steps`` more steps."""
        if self._task is not None:
            self._bars.advance(self._task, steps)

    def note(self, message: str) -> None:
        """Say something above the bars."""
        self._bars.console.print(escape(clean_text(message, _LONGEST)), highlight=False)

    def _finish(self) -> None:
        if self._task is not None:  # a stage may end early: what it did not need counts as done
            self._bars.update(self._task, completed=self._bars.tasks[self._task].total)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[RichProgress]:
    """Bars on stderr for the time of a job."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield RichProgress(bars)
