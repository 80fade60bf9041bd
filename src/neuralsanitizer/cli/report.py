"""``neuralsanitizer report``: look at a run again. It needs the run folder alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli.console import guarded, print_json, stderr, stdout
from neuralsanitizer.cli.scan import write_page
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
    format_: Annotated[ReportFormat, typer.Option("--format", help="table, json, or html: write the page.")] = (
        ReportFormat.TABLE
    ),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where html goes (default: in RUN).")] = None,
) -> None:
    """Show a run: a table or JSON on stdout, or the HTML page."""
    saved = RunFolder(run).read()
    if format_ is ReportFormat.JSON:
        print_json(report.run_json(saved))
    elif format_ is ReportFormat.TABLE:
        report.print_run(saved, stdout())
    else:
        page = write_page(saved, output or run / "report.html")
        stderr().print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
