"""``neuralsanitizer bench``: run the benchmark, or print its table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer.benchmark import grid
from neuralsanitizer.benchmark.ablations import ABLATIONS
from neuralsanitizer.benchmark.remedies import score_remedies
from neuralsanitizer.benchmark.remedy_tables import remedies_markdown
from neuralsanitizer.benchmark.run import DETECTORS, STAGES, Bench, read_scores
from neuralsanitizer.benchmark.score import Score
from neuralsanitizer.benchmark.speed import bench_speed, speed_markdown
from neuralsanitizer.benchmark.tables import markdown
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import guarded, print_json, progress_bar
from neuralsanitizer.execution.executors import executor_named
from neuralsanitizer.models import parse_device
from neuralsanitizer.pipeline import REPAIRS
from neuralsanitizer.records import to_json

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Measure detection and repair on models with known backdoors.")

FolderOption = Annotated[Path, typer.Option("--output", "-o", help="Benchmark folder.", file_okay=False)]
DataOption = Annotated[Path, typer.Option("--data", help="Folder with mnist-*.npz, gtsrb-*.tar.gz.", file_okay=False)]
SplitOption = Annotated[str, typer.Option("--split", help=", ".join(grid.SPLITS))]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="Only cases that match, e.g. small-* or mnist-4x4. Repeatable.")
]
DetectorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--detector",
        help=f"METHOD/PRESET, repeatable ({', '.join(DETECTORS)}), or METHOD/PRESET:ABLATION ({', '.join(ABLATIONS)}).",
    ),
]


@app.command("run")
@guarded
def run_command(
    data: DataOption,
    output: FolderOption = Path("bench"),
    split: SplitOption = "reported",
    only: OnlyOption = None,
    detector: DetectorOption = None,
    through: Annotated[
        str, typer.Option("--through", help=f"How far each case is taken: {', '.join(STAGES)}.")
    ] = "verify",
    train_only: Annotated[bool, typer.Option("--train-only", help="Train the models, scan nothing.")] = False,
    executor: o.ExecutorOption = "local",
    workers: o.WorkersOption = None,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Train, scan, repair, verify and score the models of a split. What was done before is not done again."""
    with closing(executor_named(executor, workers=workers)) as where, progress_bar() as progress:
        bench = Bench(data, output, parse_device(device), seed, progress, through, where)
        scores = bench.run(grid.cases(split, tuple(only or ())), () if train_only else tuple(detector or DETECTORS))
    _show(scores, format_)


@app.command("rejudge")
@guarded
def rejudge_command(
    data: DataOption,
    output: FolderOption = Path("bench"),
    split: SplitOption = "reported",
    only: OnlyOption = None,
    detector: DetectorOption = None,
    seed: o.SeedOption = 0,
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Judge anew what earlier runs measured: what a change of the thresholds does, without a new scan."""
    with progress_bar() as progress:
        bench = Bench(data, output, parse_device("cpu"), seed, progress)
        scores = bench.rejudge(grid.cases(split, tuple(only or ())), tuple(detector or DETECTORS))
    _show(scores, format_)


@app.command("remedies")
@guarded
def remedies_command(
    data: DataOption,
    output: FolderOption = Path("bench"),
    split: SplitOption = "reported",
    only: OnlyOption = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help=f"Of repair, repeatable: {', '.join(REPAIRS)}; all by default.")
    ] = None,
    detector: Annotated[str, typer.Option("--detector", help="METHOD/PRESET of the scans.")] = DETECTORS[0],
    prove: Annotated[
        bool, typer.Option("--prove", help="Verify every repair; `auto` verifies its own anyway.")
    ] = False,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Repair the infected models of a split with every method, fit filters, and compare triggers with the planted."""
    with progress_bar() as progress:
        bench = Bench(data, output, parse_device(device), seed, progress, "verify" if prove else "repair")
        scores = score_remedies(bench, grid.cases(split, tuple(only or ())), detector, tuple(method or REPAIRS))
    if format_ is o.Format.JSON:
        print_json(to_json(scores))
    else:
        typer.echo(remedies_markdown(scores))


@app.command("speed")
@guarded
def speed_command(
    data: DataOption,
    output: FolderOption = Path("bench"),
    split: SplitOption = "reported",
    only: Annotated[str, typer.Option("--only", help="The case.")] = "mnist-4x4",
    detector: Annotated[str, typer.Option("--detector", help="METHOD/PRESET that is held against its floor.")] = (
        DETECTORS[0]
    ),
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--beside", help="METHOD/PRESET[@EXECUTOR] to time in the same run, or FILE.py:FUNCTION. Repeat it."
        ),
    ] = None,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Time a scan stage by stage, beside the least time that its own work can take; one JSON a model in speed/."""
    with progress_bar() as progress:
        bench = Bench(data, output, parse_device(device), seed, progress)
        score = bench_speed(bench, grid.cases(split, (only,))[0], detector, tuple(beside or ()))
    if format_ is o.Format.JSON:
        print_json(to_json(score))
    else:
        typer.echo(speed_markdown(score))


@app.command("cases")
@guarded
def cases_command(split: SplitOption = "reported") -> None:
    """List the cases of a split: name, what it varies, architecture, backdoors."""
    for case in grid.cases(split):
        typer.echo(f"{case.name}: {case.group}; {case.config.architecture}; {case.backdoors}")


@app.command("table")
@guarded
def table_command(output: FolderOption = Path("bench"), format_: o.FormatOption = o.Format.TABLE) -> None:
    """Print the table of a benchmark folder (Markdown)."""
    _show(read_scores(output), format_)


def _show(scores: Sequence[Score], format_: o.Format) -> None:
    if format_ is o.Format.JSON:
        print_json(to_json(scores))
    else:
        typer.echo(markdown(scores))
