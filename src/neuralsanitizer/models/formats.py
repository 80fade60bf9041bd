"""Weights files: told apart by their first bytes, checked before anything parses them, and read without running code.

Two formats are read: safetensors, and what ``torch.save`` writes, through ``torch.load`` with an explicit
``weights_only=True`` (a default could be overridden by the environment). Formats that carry code are refused.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from neuralsanitizer.errors import InputError, ModelError, RefusedError
from neuralsanitizer.models.pickles import check_pickles
from neuralsanitizer.models.programs import program_entries, refused

__all__ = ["MAX_BYTES", "Weights", "parse_weights", "read_file", "read_weights"]

MAX_BYTES = 8 * 1024**3
"""Larger files are not read: the largest network of the registry has half a gigabyte of weights."""

_MAX_ENTRIES = 100_000  # of a zip archive; the largest published checkpoints have a few thousand tensors
_MAX_HEADER = 16 * 1024**2  # bytes of a safetensors file; 100,000 tensors need 10 MB
_MAX_NAME = 1000  # characters of a tensor's name; published ones stay below 200
_MAX_CLAIM = 4  # bytes that tensors may stand for, for each of the file: several may share what is stored
_LEGACY_PICKLES = 5  # that a file of torch.save before 1.6 begins with
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_TORCH_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl"}
_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER = 30  # bytes of a zip entry before its name


@dataclass(frozen=True, eq=False)
class Weights:
    """What a weights file holds.

    Attributes:
        tensors: By name, in the file's order, on the CPU; floating-point ones are float32 and finite.
        sha256: Of the file's bytes, the same that were parsed.
        notes: What reading had to do, one sentence each.
    """

    tensors: dict[str, Tensor]
    sha256: str
    notes: tuple[str, ...]


def read_weights(path: Path) -> Weights:
    """Read a weights file.

    Raises:
        ModelError: There is no such file, it is damaged, of an unknown format, or holds something else than weights.
        RefusedError: Reading it would run code that came with it.
    """
    return parse_weights(read_file(path), path)


def parse_weights(content: bytes, path: Path) -> Weights:
    """The weights in a file that was read.

    Args:
        content: The file.
        path: Where it was, for its name.

    Raises:
        ModelError: As of :func:`read_weights`.
        RefusedError: Likewise.
    """
    _check_length(content, path)
    loaded, notes = _parse(content, path)
    state, wrapped = _unwrap(loaded, path.name)
    _check_claims(state, len(content), path.name)
    tensors, converted = _as_float32(state, path.name)
    return Weights(tensors, hashlib.sha256(content).hexdigest(), (*notes, *wrapped, *converted))


def read_file(path: Path) -> bytes:
    """A whole file, read once: what is hashed is what is parsed.

    Raises:
        ModelError: There is no such file, it is no regular one, too large, too small, or cannot be read.
    """
    try:
        if not path.exists():
            raise ModelError(f"there is no file {path}")
        if not path.is_file():  # a named pipe would block for ever
            kind = "a folder" if path.is_dir() else "no regular file"
            raise ModelError(f"{path} is {kind}: give a weights file (safetensors, or a PyTorch state_dict)")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{path.name} has {size / 1024**3:.1f} GiB; at most {MAX_BYTES // 1024**3} are read")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    _check_length(content, path)
    return content


def _check_length(content: bytes, path: Path) -> None:
    if len(content) < 16:
        raise ModelError(f"{path.name} has {len(content)} bytes: too few for any weights; was it downloaded whole?")


def _parse(content: bytes, path: Path) -> tuple[Any, tuple[str, ...]]:
    if content.startswith(_ZIP):
        _check_zip(content, path.name)
        return _torch_load(content, path.name), _named(path, _TORCH_SUFFIXES, "PyTorch")
    (length,) = struct.unpack("<Q", content[:8])
    if content[8:9] == b"{" and (length <= len(content) or not content.startswith(_PICKLE)):
        _check_safetensors(content, length, path.name)
        try:
            return safetensors.torch.load(content), _named(path, {".safetensors"}, "safetensors")
        except Exception as error:  # a hostile file makes the parser raise anything
            raise ModelError(f"{path.name} is a damaged safetensors file ({error})") from error
    if content.startswith(_PICKLE):
        check_pickles(content, path.name, _LEGACY_PICKLES)
        return _torch_load(content, path.name), _named(path, _TORCH_SUFFIXES, "PyTorch")
    raise ModelError(
        f"{path.name} is of no format that can be read: its first bytes are {content[:4]!r}. "
        "Save the network's state_dict with safetensors.torch.save_file or torch.save"
    )


def _named(path: Path, usual: set[str], format_: str) -> tuple[str, ...]:
    """A note if the extension says otherwise than the content, which decides."""
    if path.suffix.lower() in usual or not path.suffix:
        return ()
    return (f"the file is named {path.suffix} but holds {format_} weights",)


def _check_safetensors(content: bytes, length: int, name: str) -> None:
    """What the safetensors library lets through or could stumble over."""
    if length > min(_MAX_HEADER, len(content) - 8):
        raise ModelError(f"{name} is a damaged safetensors file: its header claims {length} bytes")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ModelError(f"{name} is a damaged safetensors file: a name stands twice in its header")
        return dict(pairs)

    try:
        json.loads(content[8 : 8 + length], object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is a damaged safetensors file: its header is no JSON ({error})") from error


def _check_zip(content: bytes, name: str) -> None:
    """Limits on the archive's structure, and refusal of the kinds that carry code."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) <= _MAX_ENTRIES:
                _check_entries(archive, entries, name)
    except InputError:
        raise
    except Exception as error:  # a hostile file makes the zip reader raise anything
        raise ModelError(f"{name} is a damaged zip archive ({error})") from error
    inner = {"/".join(entry.filename.split("/")[1:]) for entry in entries}  # torch puts all under one folder
    if len(entries) > _MAX_ENTRIES or len({entry.filename for entry in entries}) < len(entries):
        raise ModelError(f"{name} is a damaged archive: too many entries, or two of one name")
    if any(entry.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", entry.filename) for entry in entries):
        raise RefusedError(f"{name} is refused: an entry of the archive points outside of it")
    kind = program_entries(inner)
    if kind is not None:
        raise refused(kind, name)
    if any(entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise RefusedError(f"{name} is refused: its entries are compressed or encrypted, which PyTorch never writes")
    if "data.pkl" not in inner:
        raise ModelError(f"{name} is a zip archive, but not one that torch.save wrote")


def _check_entries(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], name: str) -> None:
    """What lies where in the archive: nothing twice, and pickles that build no more than weights need."""
    end = 0
    for entry in sorted(entries, key=lambda one: one.header_offset):
        if entry.header_offset < end:
            raise ModelError(f"{name} is a damaged archive: its entries overlap")
        end = entry.header_offset + _LOCAL_HEADER + len(entry.orig_filename) + entry.compress_size
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if stored and entry.filename.split("/")[1:] == ["data.pkl"]:
            check_pickles(archive.read(entry), name)


def _torch_load(content: bytes, name: str) -> Any:  # noqa: ANN401 - whatever it holds: checked next
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual but readable files; what cannot be read raises
            return torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|global:?) (?!GLOBAL\b)([\w.]+)", str(error))
        if wanted is None:
            raise ModelError(f"{name} is damaged: it holds no state_dict that can be read") from error
        raise RefusedError(
            f"{name} is refused: opening it would run code (it asks for {wanted[1]}). "
            "If you trust its author, ask for the state_dict alone: torch.save(model.state_dict(), ...)"
        ) from error
    except InputError:
        raise
    except Exception as error:  # a hostile file makes the parser raise anything
        raise ModelError(f"{name} is a damaged PyTorch file ({type(error).__name__})") from error


def _unwrap(loaded: Any, name: str) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:  # noqa: ANN401
    """The state_dict within what was loaded: itself, or under one of the usual names of training scripts."""
    if isinstance(loaded, Mapping) and not _is_state(loaded):
        for key in _WRAPPERS:
            if _is_state(loaded.get(key)):
                return loaded[key], (f"the weights stood under {key!r}",)
    if _is_state(loaded):
        return loaded, ()
    if isinstance(loaded, Mapping):
        odd = [
            f"{_shown(key)} ({type(value).__name__})" for key, value in loaded.items() if not isinstance(value, Tensor)
        ]
        raise ModelError(f"{name} holds no state_dict: {', '.join(odd[:5]) or 'it is empty'}")
    raise ModelError(f"{name} holds a {type(loaded).__name__} instead of a state_dict (tensors by name)")


def _shown(key: Any) -> str:  # noqa: ANN401
    """A name; of anything else only what it is: its text could go on for ever."""
    return repr(key[:_MAX_NAME]) if isinstance(key, str) else f"a {type(key).__name__}"


def _is_state(candidate: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(candidate, Mapping)
        and bool(candidate)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items())
    )


def _check_claims(state: Mapping[str, Tensor], stored: int, name: str) -> None:
    """Tensors may be views that repeat what is stored: what they stand for is made whole next."""
    if len(state) > _MAX_ENTRIES or max(map(len, state)) > _MAX_NAME:
        raise ModelError(f"{name} holds more than {_MAX_ENTRIES:,} tensors, or names of more than {_MAX_NAME} letters")
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > _MAX_CLAIM * stored:
        raise ModelError(f"{name} is damaged: its tensors claim more than the file holds")


def _as_float32(state: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    tensors, converted = {}, set()
    for key, tensor in state.items():
        if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
            raise ModelError(f"{name}: {key!r} is quantised, sparse, complex or empty: only dense weights can be read")
        dense = tensor.detach()
        if dense.is_floating_point():
            if dense.dtype is not torch.float32:
                converted.add(str(dense.dtype).removeprefix("torch."))
                dense = dense.float()
            if not bool(torch.isfinite(dense).all()):
                raise ModelError(f"{name} is damaged: {key!r} holds NaN or infinite weights")
        tensors[key] = dense
    return tensors, tuple(f"weights converted from {kind} to float32" for kind in sorted(converted))
