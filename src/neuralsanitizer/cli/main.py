"""The program: one file a verb, thin calls into the library."""

from __future__ import annotations

from typing import Annotated

import typer

from neuralsanitizer.cli import attack, bench, filtering
from neuralsanitizer.cli.demo import demo_command
from neuralsanitizer.cli.many import scan_many_command
from neuralsanitizer.cli.repair import repair_command, verify_command
from neuralsanitizer.cli.report import check_bundle_command, report_command
from neuralsanitizer.cli.scan import scan_command
from neuralsanitizer.execution.allocator import keep_freed_memory
from neuralsanitizer.provenance import tool_version

__all__ = ["app", "main"]

app = typer.Typer(
    name="neuralsanitizer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},  # a wide terminal shows the longest help on one screen
    help="Find out whether a neural network hides a backdoor, see the trigger, remove it, and prove that it is gone.",
)
app.command("scan")(scan_command)
app.command("scan-many")(scan_many_command)
app.command("repair")(repair_command)
app.command("verify")(verify_command)
app.command("report")(report_command)
app.command("check-bundle")(check_bundle_command)
app.add_typer(filtering.app, name="filter")
app.add_typer(attack.app, name="attack")
app.add_typer(bench.app, name="bench")
app.command("demo")(demo_command)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's signature
    if wanted:
        typer.echo(f"neuralsanitizer {tool_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Entry point of the ``neuralsanitizer`` program."""
    keep_freed_memory()
    app()
