"""Model folders as Hugging Face's ``save_pretrained`` writes them: a configuration, safetensors, a preprocessor.

The folder's files are data here. The network is built by the installed ``transformers`` from the configuration's
numbers; the weights go through the same reader as every other file; code that a folder brings along is refused, not
run, and nothing is fetched from anywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from neuralsanitizer.errors import MissingExtraError, ModelError, NeuralSanitizerError, RefusedError
from neuralsanitizer.models.bounds import in_time
from neuralsanitizer.models.formats import MAX_BYTES, Weights, read_weights
from neuralsanitizer.models.handle import Preprocessing

__all__ = [
    "WEIGHTS_FILE",
    "FolderModel",
    "WholeModel",
    "folder_digest",
    "folder_sha256",
    "folder_weights",
    "is_model_folder",
    "load_folder",
]

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_KEPT = (_CONFIG, _PREPROCESSOR)
_LARGEST_JSON = 16 * 1024**2  # bytes: 100,000 tensors of an index at 160 letters each
_LONGEST_EDGE = 100_000  # pixels
_MOST_LABELS = 100_000
_LISTED = 10  # keys that an error lists
_FETCHED = {
    "auto_map": "code of the folder's own",
    "quantization_config": "a quantiser",
    "use_pretrained_backbone": "weights from elsewhere",
    "use_timm_backbone": "weights from elsewhere",
    "use_kernels": "compiled code from elsewhere",
}
"""Keys of a configuration, at any depth, that make the library import or fetch something, and what."""
_COUNTED = re.compile(r"layers$|depths?$|blocks$|stages$")  # keys that number parts, each of which has weights
_IMPLEMENTATIONS = {None, "eager", "sdpa"}  # of attention; other names may be those of kernels that are fetched

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class WholeModel:
    """A network that came with its architecture, and what is said of it there.

    Attributes:
        module: Takes images, gives (N, labels) logits.
        labels: Their number.
        architecture: For the record.
        input_shape: (channels, height, width).
        label_names: From the configuration; empty if it has none but numbers.
        preprocessing: From the folder's preprocessor.
        sha256: Of the file; of a folder, :func:`folder_digest`.
        notes: What loading had to do.
    """

    module: nn.Module
    labels: int
    architecture: str
    input_shape: Shape
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: str
    notes: tuple[str, ...]


class FolderModel(nn.Module):
    """A classifier of ``transformers``, without the wrapping around its logits.

    Args:
        model: The classifier.
        files: By name, what the folder needs beside the weights: a repaired model is written as a folder too.
    """

    def __init__(self, model: nn.Module, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.model = model
        self.files = dict(files)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, labels) of normalised images (N, channels, height, width)."""
        logits: Tensor = self.model(images).logits
        return logits


def is_model_folder(path: Path) -> bool:
    """Whether a folder looks like one that ``save_pretrained`` wrote."""
    return path.is_dir() and (path / _CONFIG).is_file()


def load_folder(path: Path, input_shape: Shape | None = None) -> WholeModel:
    """Build the network of a model folder.

    Args:
        path: The folder.
        input_shape: (channels, height, width); by default what the folder says.

    Raises:
        MissingExtraError: ``transformers`` is not installed.
        ModelError: Something is missing or damaged, or is no image classifier.
        RefusedError: The folder asks for its own code, points outside of itself, or has its weights as pickle alone.
    """
    files = _read_kept(path)
    config = _parsed(files[_CONFIG], path / _CONFIG)
    preprocessor = _parsed(files[_PREPROCESSOR], path / _PREPROCESSOR) if _PREPROCESSOR in files else {}
    for what in (config, preprocessor):
        _refuse_code(what, path.name)
    weights = _read_folder_weights(path)
    module, names = _build(config, weights, path.name)
    shape = input_shape or _shape(config, preprocessor, path.name)
    preprocessing, said = _preprocessing(preprocessor, path.name)
    return WholeModel(
        FolderModel(module, files),
        len(names),
        f"transformers {config['model_type']}",
        shape,
        _own_names(names),
        preprocessing,
        folder_digest(files, weights.sha256),
        (*weights.notes, *said),
    )


def _refuse_code(part: Any, name: str) -> None:  # noqa: ANN401 - from a file
    """Refuse a configuration that makes the library run or fetch more than the numbers in the folder."""
    for inner in _dictionaries(part):
        _refuse_keys(inner, name)


def _dictionaries(part: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """All dictionaries in what a file holds, however deep: no calls in calls."""
    waiting = [part]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
        waiting.extend(part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())


def _refuse_keys(part: Mapping[str, Any], name: str) -> None:
    for key, what in _FETCHED.items():
        if part.get(key):
            raise RefusedError(
                f"{name} is refused: it asks for {what} ({key}). "
                "Use a model of an architecture that transformers itself has, with its weights in the folder"
            )
    for key, value in part.items():
        if key.endswith("_implementation") and (isinstance(value, dict | list) or value not in _IMPLEMENTATIONS):
            raise RefusedError(f"{name} is refused: it asks for compiled code from elsewhere ({key}: {value!r:.80})")
    if part.get("model_type") == "timm_wrapper":
        raise RefusedError(f"{name} is refused: it names a model of another library (timm), which could be fetched")


@contextmanager
def _offline() -> Iterator[None]:
    """The library fetches nothing while this lasts, whatever slipped through, and prints no names from the file."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    told: Any = importlib.import_module("transformers.utils.logging")
    before, verbosity = constants.HF_HUB_OFFLINE, told.get_verbosity()
    constants.HF_HUB_OFFLINE = True
    told.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
        told.set_verbosity(verbosity)


def _build(config: Mapping[str, Any], weights: Weights, name: str) -> tuple[nn.Module, list[str]]:
    """The network with its weights, and its label names.

    The library fits the tensors to its parameters itself: it renamed many of them over the years, and knows the names
    that older files have. It is given tensors, not a path: it opens no file.
    """
    try:
        transformers: Any = importlib.import_module("transformers")  # heavy, and an extra
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "a Hugging Face model folder") from error
    kind = config.get("model_type")
    if kind is None and isinstance(config.get("architecture"), str):
        raise ModelError(
            f"{name} holds a model of timm: give its weights file, with --arch timm/{config['architecture']:.60}"
        )
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ModelError(f"{name} holds a model of type {kind!r}, which the installed transformers does not know")
    try:
        transformers.utils.logging.disable_progress_bar()  # progress is told elsewhere, and only of what takes time
        _check_size(config, weights, name)
        with _offline(), in_time(f"building the network of {name}"):
            settings = transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
            names = [str(settings.id2label[i]) for i in range(len(settings.id2label))]
            made = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(settings)]
            with torch.device("meta"):  # shapes without memory
                _check_weights(made(settings), weights, name)
            module, told = made.from_pretrained(
                None,
                config=settings,
                state_dict=dict(weights.tensors),
                output_loading_info=True,
                local_files_only=True,
                dtype=torch.float32,
            )
    except NeuralSanitizerError:
        raise
    except Exception as error:  # a hostile configuration makes the library raise anything
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ModelError(f"{name} is no image classifier that transformers can build: {reason}") from error
    if not 2 <= len(names) <= _MOST_LABELS:
        raise ModelError(f"{name} has {len(names)} labels; a classifier has from 2 to {_MOST_LABELS}")
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if told[what]:
            which = ", ".join(sorted(map(str, told[what]))[:_LISTED])
            raise ModelError(f"{name}: the weights do not fit the configuration ({what.replace('_', ' ')}: {which})")
    return module.eval(), names


def folder_sha256(path: Path) -> str:
    """The hash of a model folder.

    Raises:
        ModelError: It has no weights, or something in it cannot be read.
        RefusedError: The weights are no safetensors.
    """
    return folder_digest(_read_kept(path), _read_folder_weights(path).sha256)


def folder_digest(files: Mapping[str, bytes], weights: str) -> str:
    """One SHA-256 for all of a folder that changes what its network says.

    Args:
        files: Configuration and preprocessor, by name.
        weights: SHA-256 of the weights file; of several, of their hashes in order.
    """
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return hashlib.sha256(json.dumps({**listed, WEIGHTS_FILE: weights}, sort_keys=True).encode()).hexdigest()


def _read_kept(path: Path) -> dict[str, bytes]:
    return {name: _read_text(path / name) for name in _KEPT if name == _CONFIG or (path / name).exists()}


def _check_size(config: Mapping[str, Any], weights: Weights, name: str) -> None:
    """Refuse numbers that the library would count up to before anybody could compare them with the weights."""
    for key, value in (pair for inner in _dictionaries(config) for pair in inner.items()):
        if key == "num_labels" and isinstance(value, int | float) and value > _MOST_LABELS:
            raise ModelError(f"{name} has {value} labels; a classifier has from 2 to {_MOST_LABELS}")
        counts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
        if _COUNTED.search(key) and sum(counts) > len(weights.tensors):
            raise ModelError(f"{name}: {key} is {value!r:.80}, but the weights are {len(weights.tensors)} tensors")


def _check_weights(sketch: nn.Module, weights: Weights, name: str) -> None:
    """Refuse a network of more weights than there are: the library would make up the rest first, and tell then."""
    claimed = sum(parameter.numel() for parameter in sketch.parameters())
    if claimed > sum(tensor.numel() for tensor in weights.tensors.values()):
        raise ModelError(f"{name}: the weights do not fit the configuration, which is of {claimed:,} weights")


def folder_weights(module: FolderModel) -> bytes:
    """The safetensors file of a folder's weights, with the names that such files have."""
    with TemporaryDirectory() as place:
        module.model.save_pretrained(place, max_shard_size=MAX_BYTES)  # type: ignore[operator]  # transformers' method
        return (Path(place) / WEIGHTS_FILE).read_bytes()


def _own_names(names: list[str]) -> tuple[str, ...]:
    """Label names, unless they are those that the library makes up."""
    return () if names == [f"LABEL_{i}" for i in range(len(names))] else tuple(names)


def _shape(config: Mapping[str, Any], preprocessor: Mapping[str, Any], name: str) -> Shape:
    channels = config.get("num_channels", 3)
    crop = preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None
    if not _is_size(channels):
        raise ModelError(f"{name}: num_channels is {channels!r}, not a number of channels")
    for size in (config.get("image_size"), crop, preprocessor.get("size")):
        edges = _edges(size)
        if edges is not None:
            return channels, *edges
    raise ModelError(f"{name} does not say what size of images it takes: give --input-shape CHANNELS,HEIGHT,WIDTH")


def _edges(size: Any) -> tuple[int, int] | None:  # noqa: ANN401 - from a file
    """Height and width, which these files state in four ways."""
    if isinstance(size, dict):
        shortest = size.get("shortest_edge")
        size = [size.get("height", shortest), size.get("width", shortest)]
    pair = size if isinstance(size, list) else [size, size]
    return (pair[0], pair[1]) if len(pair) == 2 and all(map(_is_size, pair)) else None


def _is_size(value: Any) -> bool:  # noqa: ANN401 - from a file
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LONGEST_EDGE


def _preprocessing(preprocessor: Mapping[str, Any], name: str) -> tuple[Preprocessing, tuple[str, ...]]:
    """Mean and std in units of [0, 1]: the library rescales by ``rescale_factor`` first, and then normalises."""
    if not preprocessor:
        note = f"{name} has no {_PREPROCESSOR}: pixel values from 0 to 1 are given as they are (--mean and --std)"
        return Preprocessing(), (note,)
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    try:
        white = 255.0 * float(factor)  # what the library makes of a white pixel
        mean, std = [0.0], [1.0]
        if preprocessor.get("do_normalize", True):
            mean, std = (
                _numbers(preprocessor.get(key, default)) for key, default in (("image_mean", 0), ("image_std", 1))
            )
        return Preprocessing(tuple(m / white for m in mean), tuple(s / white for s in std)), ()
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{name}: {_PREPROCESSOR} holds no numbers for mean, std and rescale_factor") from error


def _numbers(value: Any) -> list[float]:  # noqa: ANN401 - from a file
    return [float(one) for one in value] if isinstance(value, list) else [float(value)]


def _read_folder_weights(path: Path) -> Weights:
    if (path / _INDEX).is_file():
        return _read_shards(path)
    if (path / WEIGHTS_FILE).exists():
        return read_weights(path / WEIGHTS_FILE)
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"})
    if pickled:
        raise RefusedError(
            f"{path.name} is refused: its weights are in {pickled[0]}, and of such folders only safetensors are read. "
            "Save them anew: model.save_pretrained(folder, safe_serialization=True)"
        )
    raise ModelError(f"{path.name} holds no {WEIGHTS_FILE}")


def _read_shards(path: Path) -> Weights:
    listed = _parsed(_read_text(path / _INDEX), path / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ModelError(f"{path.name}: {_INDEX} holds no weight_map")
    tensors: dict[str, Tensor] = {}
    digest, notes = hashlib.sha256(), list[str]()
    for file in sorted(set(listed.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise RefusedError(f"{path.name} is refused: {_INDEX} points to {file!r}, which is no shard of this folder")
        shard = read_weights(path / file)
        digest.update(bytes.fromhex(shard.sha256))
        notes += shard.notes
        tensors |= shard.tensors
    missing = sorted(set(listed) - set(tensors))
    if missing:
        raise ModelError(
            f"{path.name}: the shards lack {missing[0]!r} and {len(missing) - 1} other tensors of the index"
        )
    return Weights(tensors, digest.hexdigest(), tuple(dict.fromkeys(notes)))


def _read_text(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ModelError(f"there is no file {path}")
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelError(f"{path} is larger than {_LARGEST_JSON // 1024**2} MiB: it is no configuration")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise ModelError(f"{path} holds no JSON object")
    return read
