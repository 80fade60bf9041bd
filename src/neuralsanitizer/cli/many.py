"""``neuralsanitizer scan-many``: all models of a folder, one index page."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import guarded, print_json, progress_bar, stderr, stdout
from neuralsanitizer.cli.scan import write_page
from neuralsanitizer.data import CleanSet
from neuralsanitizer.errors import RunError, UsageError
from neuralsanitizer.execution.executors import executor_named
from neuralsanitizer.execution.progress import Progress
from neuralsanitizer.models import SuspectModel, is_model_folder
from neuralsanitizer.pipeline import scan_many
from neuralsanitizer.records import Finding, IndexEntry, to_json
from neuralsanitizer.storage import RunFolder, write_atomically, write_json

__all__ = ["scan_many_command"]

_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx"}


@guarded
def scan_many_command(
    models: Annotated[list[Path], typer.Argument(help="Weights files, and folders of them.", metavar="MODELS...")],
    data: o.DataOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of all runs, and of the index.", file_okay=False)
    ],
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
    preset: Annotated[str, typer.Option("--preset", help="As for scan.")] = "default",
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    limit: o.LimitOption = None,
    cache: o.CacheOption = None,
    executor: o.ExecutorOption = "local",
    workers: o.WorkersOption = None,
    ray_address: o.RayAddressOption = None,
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Scan all models of a task that have one architecture. What was done before is not done again.

    Exit codes, the first that applies: 1 an infected model, 3 one that cannot be scanned, 4 an inconclusive one, 0.
    """
    files = _files(models)
    speech, clean_sets = o.parse_mfcc(mfcc), dict[tuple[int, ...], CleanSet]()
    if input_shape is None and o.shape_is_of_data(arch, model_def, allow_code=allow_code):
        input_shape = o.shape_of(data, pixel_range, speech)

    # Here, not model by model: what is wrong for all of them ends the command.
    opened = o.model_opener(
        arch=arch,
        model_def=model_def,
        labels=labels,
        input_shape=input_shape,
        mean=mean,
        std=std,
        pixel_range=pixel_range,
        label_names=label_names,
        device=device,
        paths=files,
        allow_code=allow_code,
        require_sandbox=require_sandbox,
    )

    def load(path: Path) -> tuple[SuspectModel, CleanSet]:
        suspect = opened(path)
        key = (*suspect.input_shape, suspect.labels)
        if key not in clean_sets:
            clean_sets[key] = o.clean_set_for(
                suspect, data, pixel_range=pixel_range, limit=limit, seed=seed, speech=speech
            )
        return suspect, clean_sets[key]

    entries: list[IndexEntry] = []
    try:
        with (
            closing(executor_named(executor, workers=workers, address=ray_address)) as where,
            progress_bar() as progress,
        ):
            for entry in scan_many(
                files,
                load,
                output=output,
                method=method,
                preset=preset,
                seed=seed,
                cache=cache,
                executor=where,
                progress=progress,
            ):
                entries.append(entry)
                if entry.finding is not None:
                    _write_report(output / entry.folder, progress)
                # After every model: an interrupted night leaves an index of what is done.
                write_json(output / "index.json", {"models": to_json(entries)})
                write_atomically(output / "index.html", report.render_index(entries).encode("utf-8"))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("what is finished is kept: the same command goes on with the rest") from error
    if format_ is o.Format.JSON:
        print_json({"models": to_json(entries), "index": str(output / "index.html")})
    else:
        report.print_index(entries, stdout())
    stderr().print(f"index: {output / 'index.html'}", markup=False, highlight=False, soft_wrap=True)
    findings = {entry.finding for entry in entries}
    raise typer.Exit(next((code for finding, code in _CODES if finding in findings), 0))


def _write_report(folder: Path, progress: Progress) -> None:
    """Write the page of a run, with what was added to its folder since; damage to that is told, and ends nothing."""
    try:
        write_page(RunFolder(folder).read(), folder / "report.html")
    except RunError as error:
        progress.note(f"no report is written: {error}")


_CODES = ((Finding.INFECTED, 1), (None, 3), (Finding.INCONCLUSIVE, 4))


def _files(models: list[Path]) -> list[Path]:
    """The models of all arguments, each once: weights files, and model folders, whose files are no models of their own.

    Raises:
        UsageError: There is none.
    """
    found: list[Path] = []
    for path in models:
        inside = sorted(path.rglob("*")) if path.is_dir() else []
        folders = [one for one in (path, *inside) if is_model_folder(one)]
        files = [one for one in inside if one.is_file() and one.suffix.lower() in _WEIGHTS]
        found += folders + [one for one in files if not any(folder in one.parents for folder in folders)]
        found += [] if path.is_dir() else [path]
    unique = list(dict.fromkeys(found))
    if not unique:
        raise UsageError(f"no weights file (*{', *'.join(sorted(_WEIGHTS))}) in {', '.join(map(str, models))}")
    return unique
