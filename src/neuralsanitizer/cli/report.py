"""``neuralsanitizer report``: look at a run again. It needs the run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import guarded, print_json, stderr, stdout
from neuralsanitizer.cli.scan import write_report
from neuralsanitizer.errors import UsageError
from neuralsanitizer.storage import RunFolder

__all__ = ["report_command"]


@guarded
def report_command(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    formats: Annotated[
        list[o.RunFormat] | None,
        typer.Option("--format", help="table (default) or json on stdout; html, sarif, junit, cyclonedx: files."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, or folder of several (default: in RUN)."),
    ] = None,
) -> None:
    """Show a run: a table or JSON on stdout, or files for people and tools. ``--output`` alone asks for the page."""
    shown, files = o.split_formats(formats or [])
    if output is not None and not formats:
        files = [report.FileFormat.HTML]
    if output is not None and not files:
        raise UsageError(f"--output is for files; --format {shown} goes to stdout")
    saved = RunFolder(run).read()
    if shown is o.Format.JSON:
        print_json(report.run_json(saved))
    elif shown is o.Format.TABLE or not files:
        report.print_run(saved, stdout())
    for format_ in files:
        name = report.FILE_NAMES[format_]
        path = run / name if output is None else output if len(files) == 1 and not output.is_dir() else output / name
        write_report(saved, format_, path)
        stderr().print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
