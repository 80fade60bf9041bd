"""``neuralsanitizer report``: look at a run again. It needs the run folder alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli.console import guarded, print_json, stderr, stdout
from neuralsanitizer.cli.scan import write_page
from neuralsanitizer.errors import UsageError
from neuralsanitizer.storage import RunFolder

__all__ = ["report_command"]


class ReportFormat(StrEnum):
    """What to make of a run."""

    TABLE = "table"
    JSON = "json"
    HTML = "html"


@guarded
def report_command(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    format_: Annotated[
        ReportFormat | None, typer.Option("--format", help="table (default), json, or html: write the page.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the HTML page (default: in RUN).")
    ] = None,
) -> None:
    """Show a run: a table or JSON on stdout, or the HTML page. ``--output`` alone asks for the page."""
    if output is not None and format_ not in {None, ReportFormat.HTML}:
        raise UsageError(f"--output is for the HTML page; --format {format_} goes to stdout")
    saved = RunFolder(run).read()
    if format_ is ReportFormat.JSON:
        print_json(report.run_json(saved))
    elif format_ is not ReportFormat.HTML and output is None:
        report.print_run(saved, stdout())
    else:
        page = write_page(saved, output or run / "report.html")
        stderr().print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
