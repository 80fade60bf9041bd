"""``neuralsanitizer report``: look at a run again. It needs the run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import guarded, print_json, stderr, stdout
from neuralsanitizer.cli.scan import write_report
from neuralsanitizer.errors import OutputError, RunError, UsageError
from neuralsanitizer.models.loading import model_sha256
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import RunFolder, write_atomically

__all__ = ["check_bundle_command", "report_command"]


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
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Write all of the run as one zip with hashes, as evidence.")
    ] = None,
) -> None:
    """Show a run, or write files for people and tools. ``--output`` alone asks for the page."""
    shown, files = o.split_formats(formats or [])
    if output is not None and not formats:
        files = [report.FileFormat.HTML]
    if output is not None and not files:
        raise UsageError(f"--output is for files; --format {shown} goes to stdout")
    saved = RunFolder(run).read()
    if shown is o.Format.JSON:
        print_json(report.run_json(saved))
    elif shown is o.Format.TABLE or not (files or bundle):
        report.print_run(saved, stdout())
    if bundle is not None:
        content = report.bundle_of(saved, run)
        if bundle.exists() and not (bundle.is_file() and bundle.read_bytes() == content):
            raise OutputError(f"{bundle} exists, and is another: evidence is not overwritten, choose another file")
        write_atomically(bundle, content)
        stderr().print(f"bundle: {bundle}", markup=False, highlight=False, soft_wrap=True)
    for format_ in files:
        name = report.FILE_NAMES[format_]
        path = run / name if output is None else output if len(files) == 1 and not output.is_dir() else output / name
        write_report(saved, format_, path)
        stderr().print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)


@guarded
def check_bundle_command(
    bundle: Annotated[Path, typer.Argument(help="What report --bundle wrote.", metavar="BUNDLE")],
    model: Annotated[
        Path | None, typer.Option("--model", help="A file that must be the scanned model, or the repaired one.")
    ] = None,
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Check that a bundle is whole, and of which model it is.

    Exit codes: 0 it is, 3 it is not. Who made it is told by a signature of the file, not by this.
    """
    manifest = report.check_bundle(bundle)
    known = {manifest[name]["sha256"]: name for name in ("model", "repaired_model") if name in manifest}
    if model is not None:
        digest = model_sha256(model)
        if digest not in known:
            raise RunError(f"{bundle} is not of {model}: that has the SHA-256 {digest}")
    if format_ is o.Format.JSON:
        print_json(manifest)
        return
    facts = {
        "verdict": manifest["verdict"],
        "after repair": manifest.get("verdict_after_repair"),
        "model": f"{manifest['model']['name']}, SHA-256 {manifest['model']['sha256']}",
        "clean set": f"{manifest['clean_set']['name']}, SHA-256 {manifest['clean_set']['sha256']}",
        "scanned": f"{manifest['scanned']}, {manifest['method']}, preset {manifest['preset']}, seed {manifest['seed']}",
        "files": f"{len(manifest['files'])}, all as they were",
    }
    for name, value in facts.items():
        if value is not None:
            stdout().print(clean_text(f"{name}: {value}", 400), markup=False, highlight=False, soft_wrap=True)
