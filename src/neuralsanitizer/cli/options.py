"""Options that several verbs share, and how their texts become values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer.config import MfccConfig
from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.errors import UsageError
from neuralsanitizer.models import SuspectModel, architectures, load_model, names_its_architecture
from neuralsanitizer.models.loading import check_architecture, parse_device
from neuralsanitizer.models.programs import kind_of_program, refused
from neuralsanitizer.report import FileFormat

__all__ = [
    "EIGHT_BIT",
    "FailOn",
    "Format",
    "RunFormat",
    "check_sandbox",
    "clean_set_for",
    "model_opener",
    "numbers",
    "parse_mfcc",
    "shape_is_of_data",
    "shape_of",
    "split_formats",
]

EIGHT_BIT = (0.0, 255.0)
"""What images of integers have anyway: floats of any range are then told by their values."""

_LONGEST_EDGE = 100_000  # pixels
_LARGEST_NAMES = 16 * 1024**2  # bytes of a file of label names
_LARGEST_SEED = 2**63 - 1  # that torch takes


class RunFormat(StrEnum):
    """How a run is told: the first two on stdout, the others in files."""

    TABLE = "table"
    JSON = "json"
    HTML = "html"
    SARIF = "sarif"
    JUNIT = "junit"
    CYCLONEDX = "cyclonedx"


class Format(StrEnum):
    """How results are printed on stdout."""

    TABLE = "table"
    JSON = "json"


class FailOn(StrEnum):
    """From which finding on the exit code is 1."""

    INFECTED = "infected"
    INCONCLUSIVE = "inconclusive"


ModelArgument = Annotated[
    Path,
    typer.Argument(
        help="Weights (safetensors, a PyTorch state_dict), ONNX, a Hugging Face folder; see also --allow-code.",
        metavar="MODEL",
    ),
]
ArchOption = Annotated[str | None, typer.Option("--arch", help=f"Architecture: {architectures.choices()}.")]
ModelDefOption = Annotated[
    str | None,
    typer.Option("--model-def", help="package.module:function that makes your own network. Runs your code."),
]
CodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Have TorchScript and .pt2 files opened by a sandbox, which may run their code."),
]
SandboxOption = Annotated[
    bool, typer.Option("--require-sandbox", help="With --allow-code: refuse where the system lacks a barrier.")
]
LabelsOption = Annotated[
    int | None, typer.Option("--labels", min=2, help="Number of labels (default: from the weights).")
]
DataOption = Annotated[
    str,
    typer.Option("--data", help="Clean set: npz, folder of images or of WAV files, IDX, or mnist5k (bundled digits)."),
]
MfccOption = Annotated[
    str | None,
    typer.Option("--mfcc", help="How MFCC of WAV files are computed, e.g. seconds=1,hop=0.016,coefficients=20."),
]
ShapeOption = Annotated[
    str | None,
    typer.Option("--input-shape", help="CHANNELS,HEIGHT,WIDTH (default: what fits the weights, or the data)."),
]
MeanOption = Annotated[str | None, typer.Option("--mean", help="One value a channel, in the units of --range.")]
StdOption = Annotated[str | None, typer.Option("--std", help="One value a channel, in the units of --range.")]
RangeOption = Annotated[
    tuple[float, float] | None,
    typer.Option("--range", help="Pixel values that black and white stand for, e.g. 0 1 or 0 255.", metavar="LOW HIGH"),
]
NamesOption = Annotated[
    Path | None, typer.Option("--label-names", help="Text file with one label name a line, in label order.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder of references that scans of like models share.", file_okay=False),
]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="Where shards of labels are worked on: local, processes, or ray (extra).")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Of processes and ray: shards at once (default: one a core).")
]
RayAddressOption = Annotated[
    str | None, typer.Option("--ray-address", help="A running cluster's, host:port or auto (default: start one here).")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=_LARGEST_SEED, help="Same seed, same machine, same verdict.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use at most so many clean images, of the same mix of labels.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="What stdout gets.")]


def split_formats(formats: Sequence[RunFormat]) -> tuple[Format | None, list[FileFormat]]:
    """What goes to stdout, if it was said, and what is written to files, each once.

    Raises:
        UsageError: Both a table and JSON are to go to stdout.
    """
    shown = [Format(one.value) for one in dict.fromkeys(formats) if one.value in set(Format)]
    if len(shown) > 1:
        raise UsageError("--format table and --format json both go to stdout: ask for one of them")
    files = [FileFormat(one.value) for one in dict.fromkeys(formats) if one.value in set(FileFormat)]
    return (shown[0] if shown else None), files


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Numbers separated by commas or spaces.

    Raises:
        UsageError: One of them is no number.

    >>> numbers("0.5, 0.25", "--mean")
    (0.5, 0.25)
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError as error:
        raise UsageError(f"{option} takes numbers separated by commas, got {text!r}") from error


def model_opener(
    *,
    arch: str | None,
    model_def: str | None,
    labels: int | None,
    input_shape: str | None,
    mean: str | None,
    std: str | None,
    pixel_range: tuple[float, float] | None,
    label_names: Path | None,
    device: str,
    paths: Sequence[Path],
    allow_code: bool = False,
    require_sandbox: bool = False,
) -> Callable[[Path], SuspectModel]:
    """What loads models as the shared options say; some of ``paths`` may name their architecture themselves.

    Raises:
        UsageError: An option makes no sense, whatever the model is.
        RefusedError: The only model is a program, and nobody asked to open it.
    """
    check_sandbox(allow_code=allow_code, require_sandbox=require_sandbox)
    alone = partial(names_its_architecture, allow_code=allow_code)
    themselves = [path for path in paths if alone(path)]
    if len(paths) == 1 and not allow_code and (program := kind_of_program(paths[0])) is not None:
        raise refused(program, paths[0].name)  # before it is asked for an architecture, which it has
    if len(themselves) < len(paths):
        check_architecture(arch, model_def)
    shape = numbers(input_shape, "--input-shape")
    if shape is not None and (len(shape) != 3 or any(not (1 <= s <= _LONGEST_EDGE and s.is_integer()) for s in shape)):
        raise UsageError(f"--input-shape takes CHANNELS,HEIGHT,WIDTH, got {input_shape!r}")
    opened = partial(
        load_model,
        arch=arch,
        model_def=model_def,
        labels=labels,
        input_shape=(int(shape[0]), int(shape[1]), int(shape[2])) if shape is not None else None,
        mean=numbers(mean, "--mean"),
        std=numbers(std, "--std"),
        pixel_range=pixel_range,
        label_names=_read_names(label_names),
        device=str(parse_device(device)),
        allow_code=allow_code,
        require_sandbox=require_sandbox,
    )
    if len(paths) > len(themselves) > 0:  # the architecture that was given is the others'
        return lambda path: opened(path, arch=None, model_def=None) if alone(path) else opened(path)
    return opened


def check_sandbox(*, allow_code: bool, require_sandbox: bool) -> None:
    """Refuse a demand that nothing would meet.

    Raises:
        UsageError: A sandbox is required, and nothing is to run in it.
    """
    if require_sandbox and not allow_code:
        raise UsageError("--require-sandbox is about what --allow-code opens: give both, or neither")


def parse_mfcc(text: str | None) -> MfccConfig | None:
    """Settings of MFCC from ``name=value`` pairs; what is not named has its default.

    Raises:
        UsageError: A name is unknown, or a value is none that MFCC can have.

    >>> parse_mfcc("hop=0.01,mels=40").mels
    40
    """
    if text is None:
        return None
    values: dict[str, int | float] = asdict(MfccConfig())
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        name = name.strip()
        if name not in values or not value:
            raise UsageError(f"--mfcc takes {'=..., '.join(values)}=... separated by commas, got {pair!r}")
        try:
            values[name] = int(value) if isinstance(values[name], int) else float(value)
        except ValueError as error:
            raise UsageError(f"--mfcc: {name} is a number, got {value!r}") from error
    return MfccConfig(**values)  # type: ignore[arg-type]  # each value has the type of the default's


def clean_set_for(
    model: SuspectModel,
    source: str,
    *,
    pixel_range: tuple[float, float] | None,
    limit: int | None,
    seed: int,
    speech: MfccConfig | None = None,
) -> CleanSet:
    """Load the clean set in the shape and with the labels of a model."""
    return load_clean_set(
        source,
        shape=model.input_shape,
        pixel_range=pixel_range,
        label_names=model.label_names,
        limit=limit,
        seed=seed,
        speech=speech,
    )


def shape_is_of_data(arch: str | None, model_def: str | None, *, allow_code: bool) -> bool:
    """Whether nothing but the clean set says what size of images a network takes: the weights of most fit any."""
    return model_def is not None or allow_code or (arch is not None and architectures.is_of_library(arch))


def shape_of(source: str, pixel_range: tuple[float, float] | None, speech: MfccConfig | None = None) -> str:
    """The shape of a clean set's images as ``--input-shape`` takes it: what a network of the user's own is fed with.

    Raises:
        DataError: It cannot be read, or its images differ in size.
    """
    return ",".join(map(str, load_clean_set(source, pixel_range=pixel_range, speech=speech).images.shape[1:]))


def _read_names(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_NAMES:  # a pipe would be waited for
            raise UsageError(
                f"--label-names {path} cannot be read: it is no file of at most {_LARGEST_NAMES >> 20} MiB"
            )
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--label-names {path} cannot be read: {error}") from error
