"""From a weights file to a :class:`SuspectModel`, and back.

The architecture comes from the registry, or from a function that the user names and vouches for; never from the file.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from neuralsanitizer.errors import ModelError, NeuralSanitizerError, UsageError
from neuralsanitizer.models.architectures import Architecture, build, choices
from neuralsanitizer.models.architectures import get as get_architecture
from neuralsanitizer.models.bounds import bounded
from neuralsanitizer.models.formats import Weights, read_file, read_weights
from neuralsanitizer.models.handle import Preprocessing, SuspectModel
from neuralsanitizer.models.hub import (
    WEIGHTS_FILE,
    FolderModel,
    WholeModel,
    folder_digest,
    folder_sha256,
    folder_weights,
    is_model_folder,
    load_folder,
)
from neuralsanitizer.models.matching import match
from neuralsanitizer.models.onnx_graph import OnnxModel, is_onnx, read_onnx
from neuralsanitizer.models.programs import kind_of_program, refused, translate
from neuralsanitizer.storage import write_atomically

__all__ = [
    "check_architecture",
    "load_model",
    "names_its_architecture",
    "parse_device",
    "save_state_dict",
    "state_dict_hash",
    "written_as",
]

Shape = tuple[int, int, int]
_EIGHT_BIT = (0.0, 255.0)
_MOST_COUNTS = 20  # numbers of labels that are tried; no network of the registry has as many dense layers
_AS_THEY_ARE = "the network gets pixel values from 0 to 1 as they are (say otherwise with --mean and --std)"


def load_model(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    model_def: str | None = None,
    labels: int | None = None,
    input_shape: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pixel_range: tuple[float, float] | None = None,
    label_names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    allow_code: bool = False,
    require_sandbox: bool = False,
) -> SuspectModel:
    """Load a model from a weights file. No code that comes with the file is run in this process.

    Args:
        path: safetensors, or a state_dict that ``torch.save`` wrote; told apart by content. Or a folder that Hugging
            Face's ``save_pretrained`` wrote (extra ``hf``), or an ONNX file (extra ``onnx``): these name their own
            architecture, and need neither ``arch`` nor ``model_def``. TorchScript and exported programs (.pt2) are
            refused unless ``allow_code``.
        arch: Name in the registry (:func:`neuralsanitizer.models.architectures.names`), or ``timm/NAME`` or
            ``torchvision/NAME`` (extras).
        model_def: ``package.module:function`` that makes the network instead; called with ``labels=...`` if it takes
            that, else without arguments. This imports and runs your code.
        labels: Number of labels; by default what fits the weights.
        input_shape: (channels, height, width); by default what fits the weights. Needed with ``model_def``.
        mean: Subtracted from pixel values, one value a channel or one for all; by default the architecture's.
        std: Divides them afterwards.
        pixel_range: The pixel values that black and white stand for, and the unit of ``mean`` and ``std``. By default
            the unit is (0, 255) where a mean is beyond 1 in size or a std is, else (0, 1).
        label_names: One name a label.
        device: Where it is to run.
        allow_code: Have a program opened by a confined process, which hands back its graph of operations (extra
            ``onnx``). Needs ``input_shape``.
        require_sandbox: Refuse that where the system lacks a barrier of the sandbox.

    Raises:
        UsageError: Options that make no sense together, or ``model_def`` cannot be called.
        ModelError: The file cannot be read, or its weights do not fit.
        RefusedError: Reading the file would run code that came with it.
        TimeLimitError: A program takes too long to open.
        MissingExtraError: What the format needs is not installed.
    """
    path = Path(path)
    program = kind_of_program(path)
    if program is not None and not allow_code:
        raise refused(program, path.name)
    if names_its_architecture(path, allow_code=allow_code):
        if arch is not None or model_def is not None:
            raise UsageError(f"{path} names its own architecture: leave --arch and --model-def out")
        whole = _whole_model(path, program, input_shape, as_they_are=mean is None, full_sandbox=require_sandbox)
        if labels not in {None, whole.labels}:
            raise UsageError(f"{path.name} has {whole.labels} labels, not {labels} (--labels)")
        preprocessing, unit = _preprocessing(whole.preprocessing, mean, std, pixel_range)
        return SuspectModel(
            whole.module,
            whole.input_shape,
            whole.labels,
            preprocessing,
            label_names=tuple(label_names or whole.label_names),
            architecture=whole.architecture,
            name=path.resolve().name,
            sha256=whole.sha256,
            device=torch.device(device),
            notes=(*whole.notes, *unit),
        )
    check_architecture(arch, model_def)
    if labels is not None and labels < 2:
        raise UsageError(f"a classifier has at least two labels, got {labels}")
    weights = read_weights(path)
    if arch is not None:
        known = get_architecture(arch)
        module, labels, input_shape, notes = _from_registry(known, weights, labels, input_shape)
        preset, layer_names, architecture = known.preprocessing, known.layer_names, arch
    else:
        assert model_def is not None  # noqa: S101 - one of the two, checked above
        module, labels, input_shape, notes = _from_definition(model_def, weights, labels, input_shape)
        preset, layer_names, architecture = Preprocessing(), (), model_def
    preprocessing, unit = _preprocessing(preset, mean, std, pixel_range)
    if arch is None and mean is None:
        unit = (_AS_THEY_ARE,)
    return SuspectModel(
        module,
        input_shape,
        labels,
        preprocessing,
        label_names=tuple(label_names or ()),
        architecture=architecture,
        name=path.name,
        sha256=weights.sha256,
        device=torch.device(device),
        notes=(*weights.notes, *notes, *unit),
        layer_names=layer_names,
    )


def _whole_model(
    path: Path, program: str | None, input_shape: Shape | None, *, as_they_are: bool, full_sandbox: bool
) -> WholeModel:
    """What holds a network, not weights alone; with ``as_they_are`` no preprocessing of it was stated."""
    if is_model_folder(path):
        return load_folder(path, input_shape)
    content = graph = read_file(path)
    notes: tuple[str, ...] = ()
    if program is not None:
        graph, note = translate(content, path.name, program, input_shape, full=full_sandbox)
        notes = (note,)
    module, declared = read_onnx(graph, path.name)
    shape = input_shape or declared
    if shape is None:
        raise UsageError(f"{path.name} does not say what size of images it takes: give --input-shape")
    return WholeModel(
        module,
        _count_labels(module, shape),
        "onnx",
        shape,
        (),
        Preprocessing(),
        hashlib.sha256(content).hexdigest(),
        (*notes, *((_AS_THEY_ARE,) if as_they_are else ())),
    )


def names_its_architecture(path: Path, *, allow_code: bool = False) -> bool:
    """Whether a path holds a network that can be read, not its weights alone.

    That is a model folder, an ONNX file, or, with ``allow_code``, a program.
    """
    if is_model_folder(path) or (allow_code and kind_of_program(path) is not None):
        return True
    try:
        with path.open("rb") if path.is_file() else BytesIO() as file:
            return is_onnx(file.read(3))
    except OSError:
        return False  # what is wrong with it is said when it is read


def check_architecture(arch: str | None, model_def: str | None) -> None:
    """Refuse what names no architecture, before any file is read.

    Raises:
        UsageError: Not exactly one of the two is given, or ``arch`` is not in the registry.
    """
    if (arch is None) == (model_def is None):
        raise UsageError(
            f"give the architecture: --arch with one of {choices()}, or --model-def "
            "package.module:function for a network of your own (one of the two)"
        )
    if arch is not None:
        get_architecture(arch)


def save_state_dict(module: nn.Module, path: str | os.PathLike[str]) -> str:
    """Write a network's weights as safetensors, atomically; of a model folder or an ONNX file, one of its kind.

    Returns:
        SHA-256 of the file; of a folder, as :func:`neuralsanitizer.models.hub.folder_digest`.

    Raises:
        OutputError: It cannot be written.
    """
    content, path = _serialise(module), Path(path)
    if isinstance(module, FolderModel):
        for name, file in module.files.items():
            write_atomically(path / name, file)
        path = path / WEIGHTS_FILE  # last: its presence says that the folder is whole
    write_atomically(path, content)
    return _digest(module, content)


def written_as(module: nn.Module) -> str:
    """The format that :func:`save_state_dict` writes a network in, in words."""
    if isinstance(module, FolderModel):
        return "a Hugging Face folder"
    return "ONNX" if isinstance(module, OnnxModel) else "safetensors"


def state_dict_hash(module: nn.Module) -> str:
    """SHA-256 of what :func:`save_state_dict` would write."""
    return _digest(module, _serialise(module))


def _digest(module: nn.Module, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    return folder_digest(module.files, digest) if isinstance(module, FolderModel) else digest


def model_sha256(path: Path) -> str:
    """The hash by which runs know a model: of its file, or of its folder.

    Raises:
        ModelError: It cannot be read.
    """
    if is_model_folder(path):
        return folder_sha256(path)
    return hashlib.sha256(read_file(path)).hexdigest()


def parse_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` (``cuda:1``) or ``mps`` stands for.

    Raises:
        UsageError: Unknown, or not available on this machine.

    >>> parse_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in available or (number and not number.isdigit()):
        raise UsageError(f"unknown device {name!r}: choose auto, cpu, cuda or mps")
    if int(number or 0) >= available[kind]:
        raise UsageError(f"the device {name!r} is not available on this machine: choose --device cpu, or auto")
    return torch.device(name)


def _serialise(module: nn.Module) -> bytes:
    if isinstance(module, FolderModel):
        return folder_weights(module)
    if isinstance(module, OnnxModel):
        return module.to_bytes()
    # Clones: safetensors refuses tensors that share memory, and keeps only contiguous ones.
    state = {name: t.detach().cpu().contiguous().clone() for name, t in module.state_dict().items()}
    return safetensors.torch.save(state)


def _from_registry(
    known: Architecture, weights: Weights, labels: int | None, input_shape: Shape | None
) -> tuple[nn.Module, int, Shape, tuple[str, ...]]:
    """The first shape of the architecture that the weights fit."""
    failures: list[ModelError] = []
    for shape, count in _candidates(known, weights, labels, input_shape):
        channels, *size = shape
        with torch.device("meta"):  # shapes without memory
            sketch = build(known.name, count, channels, (size[0], size[1]))
        try:
            state, notes = match(weights.tensors, sketch)
        except ModelError as error:
            failures.append(error)
            continue
        module = build(known.name, count, channels, (size[0], size[1]))
        module.load_state_dict(state)
        return module, count, shape, notes
    raise failures[0]


def _candidates(
    known: Architecture, weights: Weights, labels: int | None, input_shape: Shape | None
) -> Iterator[tuple[Shape, int]]:
    """Input shapes and numbers of labels to try, the likeliest first."""
    matrices = [len(t) for t in weights.tensors.values() if t.ndim == 2]
    likely = _distinct(n for n in [*matrices[::-1], known.labels] if n >= 2)[:_MOST_COUNTS]
    counts = [labels] if labels is not None else likely
    if input_shape is not None:
        shapes = [input_shape]
    else:
        depths = [t.shape[1] for t in weights.tensors.values() if t.ndim == 4 and t.shape[1] <= 4]
        channels = _distinct([*depths, known.channels])
        shapes = [(c, height, width) for height, width in known.sizes for c in channels]
    return itertools.product(shapes, counts)


def _distinct(numbers: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def _from_definition(
    model_def: str, weights: Weights, labels: int | None, input_shape: Shape | None
) -> tuple[nn.Module, int, Shape, tuple[str, ...]]:
    if input_shape is None:
        raise UsageError("--model-def needs --input-shape CHANNELS,HEIGHT,WIDTH")
    module = _call(_import_function(model_def), model_def, labels)
    state, notes = match(weights.tensors, module)
    module.load_state_dict(state)
    return module, labels or _count_labels(module, input_shape), input_shape, notes


def _import_function(model_def: str) -> Callable[..., object]:
    name, colon, attribute = model_def.partition(":")
    if not colon or not name or not attribute:
        raise UsageError(f"--model-def takes package.module:function, got {model_def!r}")
    try:
        with _working_folder_importable():
            found = getattr(importlib.import_module(name), attribute)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and scripts may exit
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"--model-def {model_def!r} cannot be imported: {reason}") from error
    if not callable(found):
        raise UsageError(f"--model-def {model_def!r} is a {type(found).__name__}, not a function or class")
    return found  # type: ignore[no-any-return]  # any callable; what it returns is checked


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    """As ``python -m`` has it: the installed program would not find a module beside the user."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))


def _call(function: Callable[..., object], model_def: str, labels: int | None) -> nn.Module:
    try:
        takes_labels = "labels" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        takes_labels = False
    try:
        module = function(labels=labels) if takes_labels and labels is not None else function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(f"--model-def {model_def!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"--model-def {model_def!r} gave a {type(module).__name__}, not a torch.nn.Module")
    return module


@torch.no_grad()
def _count_labels(module: nn.Module, input_shape: Shape) -> int:
    try:
        with bounded("the network's answer to two images"):
            outputs = module.eval()(torch.zeros(2, *input_shape))
    except NeuralSanitizerError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"the network does not take images of shape {input_shape} (--input-shape): {error}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ModelError("the network should give one row of at least two logits an image")
    return int(outputs.shape[1])


def _preprocessing(
    preset: Preprocessing,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    pixel_range: tuple[float, float] | None,
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The architecture's preprocessing, or the user's, and a note if its unit had to be guessed."""
    stored = pixel_range or _EIGHT_BIT
    if mean is None and std is None:
        return Preprocessing(preset.mean, preset.std, stored), ()
    if mean is None or std is None:
        raise UsageError("mean and std go together: give both (--mean and --std)")
    means, stds = tuple(mean), tuple(std)
    if pixel_range is not None:
        return Preprocessing.from_raw(means, stds, pixel_range), ()
    large = max(abs(m) for m in means) > 1 or max(stds) > 1
    unit = _EIGHT_BIT if large else (0.0, 1.0)
    raw = Preprocessing.from_raw(means, stds, unit)
    note = f"mean and std were taken in units of pixel values from {unit[0]:g} to {unit[1]:g} (say so with --range)"
    return Preprocessing(raw.mean, raw.std, stored), (note,)
