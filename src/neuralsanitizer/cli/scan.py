"""``neuralsanitizer scan``."""

from __future__ import annotations

import datetime as dt
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import exit_code_of, guarded, print_json, progress_bar, stderr, stdout
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.executors import executor_named
from neuralsanitizer.pipeline import scan
from neuralsanitizer.records import Finding
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import SavedRun, write_atomically

__all__ = ["scan_command", "write_page", "write_report"]


@guarded
def scan_command(
    model: o.ModelArgument,
    data: o.DataOption,
    arch: o.ArchOption = None,
    model_def: o.ModelDefOption = None,
    allow_code: o.CodeOption = False,
    require_sandbox: o.SandboxOption = False,
    labels: o.LabelsOption = None,
    input_shape: o.ShapeOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    pixel_range: o.RangeOption = None,
    label_names: o.NamesOption = None,
    mfcc: o.MfccOption = None,
    method: Annotated[str, typer.Option("--method", help="neural-sanitizer or neural-cleanse.")] = "neural-sanitizer",
    preset: Annotated[
        str,
        typer.Option("--preset", help="default; paper: as published; of neural-cleanse also stable: three searches."),
    ] = "default",
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    limit: o.LimitOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder (default: runs/MODEL-TIME).", file_okay=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted scan of --output.")] = False,
    cache: o.CacheOption = None,
    executor: o.ExecutorOption = "local",
    workers: o.WorkersOption = None,
    ray_address: o.RayAddressOption = None,
    formats: Annotated[
        list[o.RunFormat] | None,
        typer.Option("--format", help="table or json on stdout; sarif, junit, cyclonedx: files in the run folder."),
    ] = None,
    fail_on: Annotated[
        o.FailOn, typer.Option("--fail-on", help="Exit with 1 from this finding on.")
    ] = o.FailOn.INFECTED,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 instead of 1.")] = False,
) -> None:
    """Examine a model for backdoors, label by label.

    Exit codes: 0 nothing found, 1 infected, 2 usage, 3 input unreadable or refused, 4 inconclusive, 5 internal error.
    """
    if resume and output is None:
        raise UsageError("--resume needs the run folder of the interrupted scan: --output DIR")
    shown, files = o.split_formats(formats or [])
    speech = o.parse_mfcc(mfcc)
    if input_shape is None and o.shape_is_of_data(arch, model_def, allow_code=allow_code):
        input_shape = o.shape_of(data, pixel_range, speech)
        stderr().print(f"note: images of shape {input_shape} as in the clean set (say otherwise with --input-shape)")
    suspect = o.model_opener(
        arch=arch,
        model_def=model_def,
        labels=labels,
        input_shape=input_shape,
        mean=mean,
        std=std,
        pixel_range=pixel_range,
        label_names=label_names,
        device=device,
        paths=[model],
        allow_code=allow_code,
        require_sandbox=require_sandbox,
    )(model)
    for note in suspect.notes:
        stderr().print(f"note: {clean_text(note, 1000)}", markup=False, highlight=False)
    clean = o.clean_set_for(suspect, data, pixel_range=pixel_range, limit=limit, seed=seed, speech=speech)
    for note in clean.notes:
        stderr().print(f"note: {clean_text(note, 1000)}", markup=False, highlight=False)
    folder = output or _default_folder(model)
    with closing(executor_named(executor, workers=workers, address=ray_address)) as where, progress_bar() as progress:
        saved = scan(
            suspect,
            clean,
            method=method,
            preset=preset,
            seed=seed,
            output=folder,
            resume=resume,
            cache=cache,
            executor=where,
            progress=progress,
        )
    written = {one: folder / report.FILE_NAMES[one] for one in (report.FileFormat.HTML, *files)}
    for format_, path in written.items():
        write_report(saved, format_, path)
    page = written[report.FileFormat.HTML]
    if shown is o.Format.JSON:
        print_json({**report.run_json(saved), "run_folder": str(folder), "report": str(page)})
    else:
        report.print_run(saved, stdout())
    stderr().print(f"run folder: {folder}\nreport:     {page}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code_of(saved.run.verdict.finding, fail_on=Finding(fail_on.value), exit_zero=exit_zero))


def write_page(saved: SavedRun, path: Path) -> Path:
    """Write the HTML report of a run."""
    write_report(saved, report.FileFormat.HTML, path)
    return path


def write_report(saved: SavedRun, format_: report.FileFormat, path: Path) -> None:
    """Write a run in a format."""
    write_atomically(path, report.rendered(saved, format_).encode("utf-8"))


def _default_folder(model: Path) -> Path:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    names = (f"{model.stem}-{stamp}" + (f"-{number}" if number > 1 else "") for number in count(1))
    return next(folder for name in names if not (folder := Path("runs") / name).exists())
