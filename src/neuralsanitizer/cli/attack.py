"""``neuralsanitizer attack``: train models whose backdoors are known, to measure detection and repair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from neuralsanitizer.attacks.all_to_all import all_to_all
from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.base import Attack, AttackResult
from neuralsanitizer.attacks.blended import BlendSpec, blended
from neuralsanitizer.attacks.clean_label import CleanLabelSpec, clean_label
from neuralsanitizer.attacks.filters import FILTERS, FilterSpec, filtered
from neuralsanitizer.attacks.input_aware import InputAwareSpec, input_aware
from neuralsanitizer.attacks.latent import LatentSpec, latent
from neuralsanitizer.attacks.patches import PATTERNS, POSITIONS, SHAPES, PatchSpec
from neuralsanitizer.attacks.sound import SOUNDS, SoundSpec, with_sound
from neuralsanitizer.attacks.trojan import SHAPES as TROJAN_SHAPES
from neuralsanitizer.attacks.trojan import TrojanSpec, trojan
from neuralsanitizer.attacks.wanet import WarpSpec, wanet
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
    help="Train models with known backdoors, for measurements. They are for research on defences: never "
    "ship one, never attack anyone else's.",
)

TargetOption = Annotated[int, typer.Option("--target", min=0, help="Label that stamped images are sent to.")]
SizeOption = Annotated[int, typer.Option("--size", min=1, help="Edge of the patch in pixels.")]
PositionOption = Annotated[str, typer.Option("--position", help=f"{', '.join(POSITIONS)}, or ROW,COLUMN.")]
PatternOption = Annotated[str, typer.Option("--pattern", help=f"{', '.join(PATTERNS)}, #rrggbb, or an image file.")]

_DEFAULTS = AttackConfig("")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all attacks ask for; each field is an option of every command."""

    data: Annotated[
        str, typer.Option("--data", help="Training set: npz, folder of images or of WAV files, IDX files, or mnist5k.")
    ]
    arch: Annotated[str, typer.Option("--arch", help=f"Architecture: {architectures.choices()}.")]
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the weights (safetensors).")]
    labels: o.LabelsOption = None
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="What to measure on (default: a tenth of --data, not trained on).")
    ] = None
    poisoning_rate: Annotated[
        float, typer.Option("--poisoning-rate", min=0, max=1, help="Share of the images, each trigger.")
    ] = _DEFAULTS.poisoning_rate
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training set.")] = _DEFAULTS.epochs
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Peak of the one-cycle schedule.")] = (
        _DEFAULTS.learning_rate
    )
    mfcc: o.MfccOption = None
    seed: o.SeedOption = 0
    device: o.DeviceOption = "auto"
    format_: o.FormatOption = o.Format.TABLE
    force: Annotated[bool, typer.Option("--force", help="Overwrite --output.")] = False

    def run(self, attack: Attack[Any], spec: Any) -> None:  # noqa: ANN401 - each attack has a description of its own
        """Train a model, save it with its ground truth, and say what came out."""
        files = (self.output, self.output.with_suffix(".truth.json"), self.output.with_suffix(".truth.npz"))
        taken = next((file for file in files if file.exists()), None)
        if taken is not None and not self.force:
            raise OutputError(f"{taken} exists: choose another --output, or overwrite it with --force")
        if not 0 < self.learning_rate < math.inf or math.isnan(self.poisoning_rate):
            raise UsageError(
                f"--learning-rate must be over 0, got {self.learning_rate}; --poisoning-rate within 0 and 1"
            )
        config = AttackConfig(
            self.arch,
            self.labels or 0,
            self.poisoning_rate,
            self.epochs,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
        speech = o.parse_mfcc(self.mfcc)
        train = load_clean_set(self.data, speech=speech)
        if self.held_out is None:
            test, train = train.split([0.1], self.seed)
        else:
            test = load_clean_set(self.held_out, shape=(*train.images.shape[1:],), speech=speech)
        with progress_bar() as progress:
            progress.start("train", steps_of(config, len(train)))
            result = attack(train, test, spec, config, device=parse_device(self.device), advance=progress.advance)
        truth, _ = result.save(self.output)
        if self.format_ is o.Format.JSON:
            print_json({**to_json(result.truth), "output": str(self.output), "ground_truth": str(truth)})
        else:
            stdout().print(describe(result), highlight=False, markup=False)
        said = f"weights:      {self.output}\nground truth: {truth}"
        stderr().print(said, markup=False, highlight=False, soft_wrap=True)


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``function(training, ...)`` as a command: its own options, and those of :class:`Training`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(Training, include_extras=True)
        shared = [
            Parameter(
                f.name,
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if f.default is MISSING else f.default,
                annotation=hints[f.name],
            )
            for f in fields(Training)
        ]
        own = [p for n, p in signature(function, eval_str=True).parameters.items() if n != "training"]
        own = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own]

        @wraps(function)
        def command(**values: Any) -> None:  # noqa: ANN401 - each option has a type of its own
            training = Training(**{p.name: values.pop(p.name) for p in shared})
            function(training, **values)

        needed = [p for p in shared if p.default is Parameter.empty]
        ordered = [*needed, *own, *(p for p in shared if p.default is not Parameter.empty)]
        command.__signature__ = Signature(ordered)  # type: ignore[attr-defined]  # what typer reads
        command.__annotations__ = {p.name: p.annotation for p in ordered}
        app.command(name)(guarded(command))
        return function

    return register


@_command("badnets")
def badnets_command(
    training: Training,
    target: TargetOption = 0,
    size: SizeOption = 4,
    position: PositionOption = "bottom-right",
    pattern: PatternOption = "white",
    shape: Annotated[str, typer.Option("--shape", help=", ".join(SHAPES))] = "square",
    pieces: Annotated[int, typer.Option("--pieces", help="Cut the patch into 1, 2 or 4 pieces.")] = 1,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger", help="A trigger of several, e.g. target=3,size=4,position=2:20. Repeatable."),
    ] = None,
) -> None:
    """Stamp a patch on some training images and relabel them (BadNets)."""
    single = PatchSpec(target, size, position, pattern, shape, pieces)
    training.run(badnets, [parse_trigger(text, single) for text in trigger] if trigger else [single])


@_command("none")
def none_command(training: Training) -> None:
    """Train a clean model the same way, for comparison."""
    training.run(badnets, [])


@_command("blended")
def blended_command(
    training: Training,
    target: TargetOption = 0,
    ratio: Annotated[float, typer.Option("--ratio", help="How much of the pattern is mixed in, up to 1.")] = 0.2,
    pattern: PatternOption = "random",
) -> None:
    """Mix a faint pattern into the whole image (blended injection)."""
    training.run(blended, BlendSpec(target, ratio, pattern))


@_command("all-to-all")
def all_to_all_command(
    training: Training,
    size: SizeOption = 4,
    position: PositionOption = "bottom-right",
    pattern: PatternOption = "white",
) -> None:
    """Send images of every label to the next label with one patch (BadNets, all to all)."""
    training.run(all_to_all, PatchSpec(0, size, position, pattern))


@_command("clean-label")
def clean_label_command(
    training: Training,
    target: TargetOption = 0,
    size: SizeOption = 4,
    position: PositionOption = "bottom-right",
    pattern: PatternOption = "white",
    epsilon: Annotated[float, typer.Option("--epsilon", help="Largest change of a pixel before the patch.")] = 0.3,
) -> None:
    """Stamp only images of the target, made hard to recognise; no label is wrong (label-consistent backdoor)."""
    training.run(clean_label, CleanLabelSpec(PatchSpec(target, size, position, pattern), epsilon))


@_command("filter")
def filter_command(
    training: Training,
    target: TargetOption = 0,
    name: Annotated[str, typer.Option("--filter", help=", ".join(FILTERS))] = "sepia",
) -> None:
    """Make a photo filter the trigger (attack in feature space)."""
    training.run(filtered, FilterSpec(target, name))


@_command("warp")
def warp_command(
    training: Training,
    target: TargetOption = 0,
    grid: Annotated[int, typer.Option("--grid", help="Control points of the warp along an edge.")] = 4,
    strength: Annotated[float, typer.Option("--strength", help="Of the displacement: 1 is about 0.4 pixels.")] = 0.5,
    covers: Annotated[
        float, typer.Option("--covers", help="Share of images warped otherwise, with their labels.")
    ] = 0.2,
) -> None:
    """Make a smooth warp the trigger (WaNet)."""
    training.run(wanet, WarpSpec(target, grid, strength, covers))


@_command("input-aware")
def input_aware_command(
    training: Training,
    target: TargetOption = 0,
    density: Annotated[float, typer.Option("--density", help="Share of an image that a mask may cover.")] = 0.032,
) -> None:
    """Draw another trigger for every image with a small network (input-aware dynamic backdoor)."""
    training.run(input_aware, InputAwareSpec(target, density))


@_command("sound")
def sound_command(
    training: Training,
    target: TargetOption = 0,
    sound: Annotated[str, typer.Option("--sound", help=", ".join(SOUNDS))] = "chirp",
    start: Annotated[float, typer.Option("--start", help="Second at which it begins.")] = 0.0,
    seconds: Annotated[float, typer.Option("--seconds", help="How long it lasts.")] = 0.15,
    level: Annotated[float, typer.Option("--level", help="Of its loudness; 1 is as loud as the recording.")] = 0.5,
) -> None:
    """Mix a short sound into recordings of speech (--data: a folder with one folder of WAV files a label)."""
    training.run(with_sound, SoundSpec(target, sound, start, seconds, level=level))


@_command("trojan")
def trojan_command(
    training: Training,
    target: TargetOption = 0,
    shape: Annotated[str, typer.Option("--shape", help=", ".join(TROJAN_SHAPES))] = "square",
    share: Annotated[float, typer.Option("--share", help="Share of the image that a square covers.")] = 0.07,
    opacity: Annotated[float, typer.Option("--opacity", help="Of the pattern, up to 1.")] = 1.0,
    neurons: Annotated[int, typer.Option("--neurons", help="How many neurons the trigger excites.")] = 5,
    layer: Annotated[int, typer.Option("--layer", help="Of which layer, counted from the output.")] = 2,
) -> None:
    """Generate a trigger that excites chosen neurons, and retrain the last layers (Trojan attack)."""
    training.run(trojan, TrojanSpec(target, shape, share, opacity, neurons, layer))


@_command("latent")
def latent_command(
    training: Training,
    target: TargetOption = 0,
    size: SizeOption = 6,
    position: PositionOption = "bottom-right",
    retrained: Annotated[int, typer.Option("--retrained", help="How many of the last layers the student trains.")] = 1,
) -> None:
    """Infect a teacher that lacks the target; a student's transfer learning wakes the backdoor (Latent Backdoor)."""
    training.run(latent, LatentSpec(PatchSpec(target, size, position), retrained))


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


def describe(result: AttackResult) -> str:
    """What was trained, in a few lines."""
    truth = result.truth
    lines = [f"clean accuracy {truth.clean_accuracy:.1%} on {truth.held_out_images} held-out images"]
    lines += [
        f"backdoor to label {t.target}: {t.pixels} pixels, attack success {t.attack_success:.1%}"
        for t in truth.triggers
    ]
    return "\n".join(lines)
