"""``neuralsanitizer filter fit`` and ``filter apply``: a guard for a model that must stay as it is."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import guarded, print_json, stderr, stdout
from neuralsanitizer.cli.repair import RunOption, clean_set_of_run, model_of_run, speech_of_run
from neuralsanitizer.cli.scan import write_page
from neuralsanitizer.config import FilterConfig
from neuralsanitizer.data import load_inputs
from neuralsanitizer.errors import OutputError, UsageError
from neuralsanitizer.mitigation.filtering import SCORES, GuardedModel, filter_files, load_filter
from neuralsanitizer.pipeline import guard
from neuralsanitizer.pipeline.common import check_same_model
from neuralsanitizer.records import to_json
from neuralsanitizer.storage import RunFolder, write_atomically, write_json

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Guard a model that must stay as it is. Inputs that bear a reversed trigger are told.",
)


@app.command("fit")
@guarded
def fit_command(
    model: o.ModelArgument,
    run: RunOption,
    data: o.DataOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="NAME.safetensors; NAME.json is written beside it.")],
    false_alarms: Annotated[
        float, typer.Option("--false-alarms", help="Share of the clean inputs judged that may be flagged.")
    ] = FilterConfig().false_alarms,
    score: Annotated[str, typer.Option("--score", help=f"{', '.join(SCORES)}.")] = FilterConfig().score,
    arch: o.ArchOption = None,
    model_def: o.ModelDefOption = None,
    allow_code: o.CodeOption = False,
    require_sandbox: o.SandboxOption = False,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    limit: o.LimitOption = None,
    format_: o.FormatOption = o.Format.TABLE,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --output.")] = False,
) -> None:
    """Fit a filter to the triggers that a scan reversed.

    Exit codes: 0 fitted, 2 nothing to filter or usage, 3 input unreadable, 5 internal error.
    """
    if score not in SCORES:
        raise UsageError(f"unknown score {score!r}: choose one of {', '.join(SCORES)}")
    for path in filter_files(output):
        if path.exists() and not force:
            raise OutputError(f"{path} exists: choose another file, or overwrite it with --force")
        if path.exists() and model.exists() and path.samefile(model):
            raise OutputError(f"{path} is the model itself, which stays as it is: choose another file")
    saved = RunFolder(run).read()
    code = {"allow_code": allow_code, "require_sandbox": require_sandbox}
    suspect = model_of_run(model, saved, arch=arch, model_def=model_def, device=device, **code)
    clean = clean_set_of_run(suspect, saved, data, limit, seed)
    config = FilterConfig(false_alarms=false_alarms, score=score)
    record = guard(suspect, run, clean, output=output, config=config, seed=seed).record
    page = write_page(RunFolder(run).read(), run / "report.html")
    if format_ is o.Format.JSON:
        print_json({**report.filter_json(record), "output": str(output), "report": str(page)})
    else:
        report.print_filter(record, stdout())
    stderr().print(f"filter: {output}\nreport: {page}", markup=False, highlight=False, soft_wrap=True)


@app.command("apply")
@guarded
def apply_command(
    model: o.ModelArgument,
    run: RunOption,
    filter_: Annotated[Path, typer.Option("--filter", help="What filter fit wrote, NAME.safetensors.", dir_okay=False)],
    data: Annotated[str, typer.Option("--data", help="Inputs: npz with x, folder of pictures or of WAV files.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for accepted.txt, rejected.txt and filter.json.", file_okay=False),
    ] = None,
    arch: o.ArchOption = None,
    model_def: o.ModelDefOption = None,
    allow_code: o.CodeOption = False,
    require_sandbox: o.SandboxOption = False,
    device: o.DeviceOption = "auto",
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Part inputs into accepted ones and rejected ones.

    Exit codes: 0 all accepted, 1 some rejected, 2 usage, 3 input unreadable, 5 internal error.
    """
    _, described = filter_files(filter_)
    parted_into = None if output is None else output / "filter.json"
    if parted_into is not None and parted_into.exists() and described.exists() and parted_into.samefile(described):
        raise OutputError(f"{parted_into} belongs to the filter itself: choose another folder")
    saved = RunFolder(run).read()
    code = {"allow_code": allow_code, "require_sandbox": require_sandbox}
    suspect = model_of_run(model, saved, arch=arch, model_def=model_def, device=device, **code)
    check_same_model(suspect, saved)  # another run's preprocessing would make other inputs of the same pictures
    guarded_model = GuardedModel(suspect, load_filter(filter_))
    stated = saved.run.model.pixel_range
    inputs = load_inputs(
        data,
        shape=suspect.input_shape,
        pixel_range=None if stated == o.EIGHT_BIT else stated,
        speech=speech_of_run(saved),
    )
    flagged: list[bool] = []
    for part in inputs.images.split(_BATCH):
        flagged += guarded_model(part).flagged.tolist()
    parted = {
        "accepted": [name for name, bad in zip(inputs.names, flagged, strict=True) if not bad],
        "rejected": [name for name, bad in zip(inputs.names, flagged, strict=True) if bad],
    }
    if output is not None and parted_into is not None:
        for name, listed in parted.items():
            write_atomically(output / f"{name}.txt", "".join(f"{_on_one_line(line)}\n" for line in listed).encode())
        write_json(parted_into, {**parted, "filter": to_json(guarded_model.record)})
    if format_ is o.Format.JSON:
        print_json({**parted, "notes": list(inputs.notes)})
    else:
        report.print_parted(parted["accepted"], parted["rejected"], stdout())
    raise typer.Exit(1 if parted["rejected"] else 0)


_BATCH = 500


def _on_one_line(name: str) -> str:
    """A file's name with control characters and line breaks as escapes: it must not pass for two."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in name
    )
