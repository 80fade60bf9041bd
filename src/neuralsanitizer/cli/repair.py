"""``neuralsanitizer repair`` and ``neuralsanitizer verify``: both start from the run of a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import exit_code_of, guarded, print_json, progress_bar, stderr, stdout
from neuralsanitizer.cli.scan import write_page
from neuralsanitizer.config import MfccConfig, RepairConfig, VerifyConfig
from neuralsanitizer.data import CleanSet
from neuralsanitizer.errors import DataError, OutputError, UsageError
from neuralsanitizer.models import SuspectModel, load_model, names_its_architecture
from neuralsanitizer.models.loading import parse_device, written_as
from neuralsanitizer.pipeline import REPAIRS, repair, verify
from neuralsanitizer.records import Finding, from_json
from neuralsanitizer.storage import RunFolder, SavedRun

__all__ = [
    "RunOption",
    "clean_set_of_run",
    "model_of_run",
    "repair_command",
    "speech_of_run",
    "verify_command",
]

RunOption = Annotated[Path, typer.Option("--run", help="Run folder of the model's scan.", file_okay=False)]


@guarded
def repair_command(
    model: o.ModelArgument,
    run: RunOption,
    data: o.DataOption,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="For the repaired model: a safetensors file, an ONNX file or a model folder, as it came.",
        ),
    ],
    method: Annotated[str, typer.Option("--method", help=f"{', '.join(REPAIRS)}.")] = "unlearning",
    max_accuracy_drop: Annotated[
        float,
        typer.Option(
            "--max-accuracy-drop", min=0, max=1, help="With auto: what a method may cost of the clean accuracy."
        ),
    ] = RepairConfig().largest_accuracy_drop,
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
    """Remove the backdoors that a scan found. The original file stays as it is.

    Architecture and preprocessing are those of the run. With --method auto, methods are tried in order of cost until
    one passes verification. Exit codes: 0 repaired, 1 a backdoor is still found or no method passed, 2 nothing to
    repair or usage, 3 input unreadable, 5 internal error.
    """
    if output.exists() and not force:
        raise OutputError(f"{output} exists: choose another file, or overwrite it with --force")
    if output.exists() and model.exists() and output.samefile(model):
        raise OutputError(f"{output} is the model itself, which stays as it is: choose another file")
    saved = RunFolder(run).read()
    code = {"allow_code": allow_code, "require_sandbox": require_sandbox}
    suspect = model_of_run(model, saved, arch=arch, model_def=model_def, device=device, **code)
    clean = clean_set_of_run(suspect, saved, data, limit, seed)
    with progress_bar() as progress:
        config = RepairConfig(largest_accuracy_drop=max_accuracy_drop)
        result = repair(suspect, run, clean, method=method, output=output, config=config, seed=seed, progress=progress)
    page = write_page(RunFolder(run).read(), run / "report.html")
    format_written = written_as(result.model.module)
    if format_ is o.Format.JSON:
        written = {"output": str(output), "output_format": format_written, "report": str(page)}
        print_json({**report.repair_json(result.repair), **written})
    else:
        report.print_repair(result.repair, stdout())
    lost = result.repair.clean_accuracy_before - result.repair.clean_accuracy_after
    if lost > VerifyConfig().largest_accuracy_drop:
        stderr().print(
            f"note: the repair cost {100 * lost:.1f} points of clean accuracy, more than verify lets pass: give more "
            "clean images, or try --method auto",
            markup=False,
            highlight=False,
        )
    stderr().print(
        f"repaired model, as {format_written}: {output}\nreport: {page}", markup=False, highlight=False, soft_wrap=True
    )
    raise typer.Exit(0 if result.repair.complete else 1)


@guarded
def verify_command(
    model: o.ModelArgument,
    repaired: Annotated[Path, typer.Argument(help="The repaired weights.", metavar="REPAIRED")],
    run: RunOption,
    data: o.DataOption,
    arch: o.ArchOption = None,
    model_def: o.ModelDefOption = None,
    allow_code: o.CodeOption = False,
    require_sandbox: o.SandboxOption = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the fresh scan (default: a new one).")] = None,
    device: o.DeviceOption = "auto",
    limit: o.LimitOption = None,
    cache: o.CacheOption = None,
    format_: o.FormatOption = o.Format.TABLE,
) -> None:
    """Prove that a repaired model lost its backdoors.

    It looks at the clean accuracy, at every reversed trigger, and scans afresh.

    Exit codes: 0 proven, 1 a backdoor is still there, 4 inconclusive, otherwise as for scan.
    """
    saved = RunFolder(run).read()
    code = {"allow_code": allow_code, "require_sandbox": require_sandbox}
    before = model_of_run(model, saved, arch=arch, model_def=model_def, device=device, **code)
    after = model_of_run(repaired, saved, arch=arch, model_def=model_def, device=device, **code)
    clean = clean_set_of_run(before, saved, data, limit, saved.run.seed)
    with progress_bar() as progress:
        verification = verify(before, after, run, clean, seed=seed, cache=cache, progress=progress)
    page = write_page(RunFolder(run).read(), run / "report.html")
    if format_ is o.Format.JSON:
        print_json({**report.verification_json(verification), "report": str(page)})
    else:
        report.print_verification(verification, stdout())
    stderr().print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code_of(verification.finding, fail_on=Finding.INFECTED, exit_zero=False))


def model_of_run(
    path: Path,
    saved: SavedRun,
    *,
    arch: str | None,
    model_def: str | None,
    device: str,
    allow_code: bool = False,
    require_sandbox: bool = False,
) -> SuspectModel:
    """Load weights with the architecture and preprocessing that a run recorded.

    Raises:
        UsageError: The run's model was of the user's own class, and ``--model-def`` is not given again. A run folder
            may come from anywhere: it must not decide which code is imported.
    """
    record = saved.run.model
    if arch is None and model_def is None and ":" in record.architecture:
        raise UsageError(f"the scan used --model-def {record.architecture}: give it again")
    o.check_sandbox(allow_code=allow_code, require_sandbox=require_sandbox)
    low, high = record.pixel_range
    named = arch or record.architecture
    return load_model(
        path,
        arch=None if model_def or names_its_architecture(path, allow_code=allow_code) else named,
        model_def=model_def,
        labels=record.labels,
        input_shape=record.input_shape,  # type: ignore[arg-type]  # three values: checked when the run was made
        mean=[low + m * (high - low) for m in record.mean],
        std=[s * (high - low) for s in record.std],
        pixel_range=record.pixel_range,
        label_names=record.label_names,
        device=str(parse_device(device)),
        allow_code=allow_code,
        require_sandbox=require_sandbox,
    )


def clean_set_of_run(model: SuspectModel, saved: SavedRun, source: str, limit: int | None, seed: int) -> CleanSet:
    """The clean set, read as the run's was: pixel values in the same range, MFCC computed with the same settings."""
    record = saved.run.model
    clean = o.clean_set_for(
        model,
        source,
        pixel_range=None if record.pixel_range == o.EIGHT_BIT else record.pixel_range,
        limit=limit,
        seed=seed,
        speech=speech_of_run(saved),
    )
    rate = saved.run.data.speech.get("rate")
    if clean.recordings is not None and rate not in {None, clean.recordings.rate}:
        raise DataError(f"the run is of recordings of {rate} samples a second, these have {clean.recordings.rate}")
    return clean


def speech_of_run(saved: SavedRun) -> MfccConfig | None:
    """How the MFCC of a run's recordings were computed; ``None`` of images."""
    speech = {name: value for name, value in saved.run.data.speech.items() if name != "rate"}
    return from_json(MfccConfig, speech) if speech else None
