"""``neuralsanitizer attack``: train models whose backdoors are known, to measure detection and repair."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.base import AttackResult
from neuralsanitizer.attacks.patches import PATTERNS, POSITIONS, SHAPES, PatchSpec
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.console import guarded, print_json, progress_bar, stderr, stdout
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data import load_clean_set
from neuralsanitizer.errors import OutputError, UsageError
from neuralsanitizer.models import architectures
from neuralsanitizer.models.loading import parse_device
from neuralsanitizer.records import to_json
from neuralsanitizer.training import steps_of

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Train models with known backdoors, to measure detection and repair. Never ship one.",
)

TrainOption = Annotated[str, typer.Option("--data", help="Training set: npz, image folder, IDX files, or mnist5k.")]
HeldOutOption = Annotated[
    str | None, typer.Option("--held-out", help="What to measure on (default: a tenth of --data, not trained on).")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="File for the weights (safetensors).")]
ArchOption = Annotated[str, typer.Option("--arch", help=f"Architecture: {', '.join(architectures.names())}.")]
EpochsOption = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training set.")]
RateOption = Annotated[float, typer.Option("--learning-rate", help="Peak of the one-cycle schedule.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite --output.")]

_DEFAULTS = AttackConfig("")


@app.command("badnets")
@guarded
def badnets_command(
    data: TrainOption,
    arch: ArchOption,
    output: OutputOption,
    target: Annotated[int, typer.Option("--target", min=0, help="Label that stamped images are sent to.")] = 0,
    size: Annotated[int, typer.Option("--size", min=1, help="Edge of the patch in pixels.")] = 4,
    position: Annotated[
        str, typer.Option("--position", help=f"{', '.join(POSITIONS)}, or ROW,COLUMN.")
    ] = "bottom-right",
    pattern: Annotated[
        str, typer.Option("--pattern", help=f"{', '.join(PATTERNS)}, #rrggbb, or an image file.")
    ] = "white",
    shape: Annotated[str, typer.Option("--shape", help=", ".join(SHAPES))] = "square",
    pieces: Annotated[int, typer.Option("--pieces", help="Cut the patch into 1, 2 or 4 pieces.")] = 1,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger", help="A trigger of several, e.g. target=3,size=4,position=2:20. Repeatable."),
    ] = None,
    rate: Annotated[
        float, typer.Option("--poisoning-rate", min=0, max=1, help="Share of the images, each trigger.")
    ] = (_DEFAULTS.poisoning_rate),
    labels: o.LabelsOption = None,
    held_out: HeldOutOption = None,
    epochs: EpochsOption = _DEFAULTS.epochs,
    learning_rate: RateOption = _DEFAULTS.learning_rate,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    format_: o.FormatOption = o.Format.TABLE,
    force: ForceOption = False,
) -> None:
    """Stamp a patch on some training images and relabel them (BadNets)."""
    single = PatchSpec(target, size, position, pattern, shape, pieces)
    patches = [parse_trigger(text, single) for text in trigger] if trigger else [single]
    config = AttackConfig(arch, labels or 0, rate, epochs, learning_rate=learning_rate, seed=seed)
    _train(data, held_out, patches, config, output, device=device, format_=format_, force=force)


@app.command("none")
@guarded
def none_command(
    data: TrainOption,
    arch: ArchOption,
    output: OutputOption,
    labels: o.LabelsOption = None,
    held_out: HeldOutOption = None,
    epochs: EpochsOption = _DEFAULTS.epochs,
    learning_rate: RateOption = _DEFAULTS.learning_rate,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    format_: o.FormatOption = o.Format.TABLE,
    force: ForceOption = False,
) -> None:
    """Train a clean model the same way, for comparison."""
    config = AttackConfig(arch, labels or 0, epochs=epochs, learning_rate=learning_rate, seed=seed)
    _train(data, held_out, [], config, output, device=device, format_=format_, force=force)


def parse_trigger(text: str, default: PatchSpec) -> PatchSpec:
    """A trigger from ``name=value`` pairs; what is not named is as in ``default``.

    Raises:
        UsageError: A name is unknown or a value of the wrong kind.

    >>> parse_trigger("target=3,size=6", PatchSpec(0)).size
    6
    """
    values: dict[str, str | int] = {f.name: getattr(default, f.name) for f in fields(default)}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        name = name.strip()
        if name not in values or not value:
            raise UsageError(f"--trigger takes {'=..., '.join(values)}=... separated by commas, got {pair!r}")
        try:
            values[name] = int(value) if isinstance(values[name], int) else value.strip()
        except ValueError as error:
            raise UsageError(f"--trigger: {name} is a number, got {value!r}") from error
    return PatchSpec(**values)  # type: ignore[arg-type]  # each value has the type of the default's


def _train(
    data: str,
    held_out: str | None,
    patches: list[PatchSpec],
    config: AttackConfig,
    output: Path,
    *,
    device: str,
    format_: o.Format,
    force: bool,
) -> None:
    files = (output, output.with_suffix(".truth.json"), output.with_suffix(".truth.npz"))
    taken = next((file for file in files if file.exists()), None)
    if taken is not None and not force:
        raise OutputError(f"{taken} exists: choose another --output, or overwrite it with --force")
    if not 0 < config.learning_rate < math.inf or math.isnan(config.poisoning_rate):
        raise UsageError(f"--learning-rate must be over 0, got {config.learning_rate}; --poisoning-rate within 0 and 1")
    train = load_clean_set(data)
    if held_out is None:
        test, train = train.split([0.1], config.seed)
    else:
        test = load_clean_set(held_out, shape=(*train.images.shape[1:],))
    with progress_bar() as progress:
        progress.start("train", steps_of(config, len(train)))
        result = badnets(train, test, patches, config, device=parse_device(device), advance=progress.advance)
    truth, _ = result.save(output)
    if format_ is o.Format.JSON:
        print_json({**to_json(result.truth), "output": str(output), "ground_truth": str(truth)})
    else:
        stdout().print(describe(result), highlight=False, markup=False)
    stderr().print(f"weights:      {output}\nground truth: {truth}", markup=False, highlight=False, soft_wrap=True)


def describe(result: AttackResult) -> str:
    """What was trained, in a few lines."""
    truth = result.truth
    lines = [f"clean accuracy {truth.clean_accuracy:.1%} on {truth.held_out_images} held-out images"]
    lines += [
        f"backdoor to label {t.target}: {t.pixels} pixels, attack success {t.attack_success:.1%}"
        for t in truth.triggers
    ]
    return "\n".join(lines)
