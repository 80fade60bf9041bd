"""Loading a clean set: tell the format, read it, and make the images what the model takes."""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from neuralsanitizer.config import MfccConfig
from neuralsanitizer.data.audio import Recordings, decode_recordings
from neuralsanitizer.data.bundled import BUNDLED, read_mnist5k
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.folder import PICTURES, RECORDINGS, decode_images, find_files, find_inputs, kind_of, readable
from neuralsanitizer.data.idx import find_images, find_labels, read_idx, unfold
from neuralsanitizer.data.npz import read_npz, read_npz_images
from neuralsanitizer.errors import DataError, UsageError

__all__ = ["Inputs", "load_clean_set", "load_inputs"]

_Images = npt.NDArray[Any]  # (N, height, width, channels), raw values
_Scaled = npt.NDArray[np.float32]  # (N, channels, height, width), values in [0, 1]
_Indices = npt.NDArray[np.int64]
_Choose = Callable[[_Indices], _Indices]

_MAX_FLOAT_BYTES = 8 << 30  # of the loaded set: pixel values become float32, four times as large as 8-bit ones
_MAX_LABEL = 1_000_000  # counting images by label takes memory in proportion to the largest
_TOLERANCE = 1e-3  # share of the range by which values may leave it, for rounding's sake
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_EXPECTED = (
    "Expected is a .npz file with arrays x and y, an IDX images file with its labels file beside it, "
    f"a folder with one folder of pictures (or of WAV files) a label, or a bundled set: {', '.join(BUNDLED)}"
)
_IDX = re.compile(rb"\0\0[\x08\x09\x0b-\x0e][\x01-\x04]")
_STRANGERS = (
    (b"\x93NUMPY", "a single numpy array: save images and labels together, numpy.savez(path, x=images, y=labels)"),
    (b"\x89PNG", "a single picture: give a folder with one folder of pictures a label"),
    (b"\xff\xd8\xff", "a single picture: give a folder with one folder of pictures a label"),
    (b"\x80", "a pickle: opening it could run code. Save it again with numpy.savez(path, x=images, y=labels)"),
)
_FILE_ERRORS = (
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class _Raw:
    """What a reader gives: images in their own dtype, range and size, the chosen ones only."""

    images: _Images
    labels: _Indices
    format: str
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recordings: Recordings | None = None

    def chosen(self, choose: _Choose) -> _Raw:
        keep = choose(self.labels)
        return self if len(keep) == len(self) else replace(self, images=self.images[keep], labels=self.labels[keep])

    def __len__(self) -> int:
        return len(self.labels)


def load_clean_set(
    source: str | os.PathLike[str],
    *,
    shape: tuple[int, int, int] | None = None,
    pixel_range: tuple[float, float] | None = None,
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    speech: MfccConfig | None = None,
) -> CleanSet:
    """Load labelled images, or recordings of speech as their MFCC. The format is told by content, never by the name.

    Args:
        source: A ``.npz`` file with ``x`` and ``y``; an IDX images file, plain or gzipped, with its labels file beside
            it; a folder that holds such a pair, or one folder of pictures a label, or one of WAV files; or
            ``"mnist5k"``, the bundled set (write ``./mnist5k`` for a file of that name).
        shape: (channels, height, width) that the model takes. Gray is repeated to RGB, RGB made gray by ITU-R BT.601
            luma, other sizes resized (bilinear, antialiased). ``None``: as the images are.
        pixel_range: The raw values that [0, 1] stands for, where pixels are floats; integers are always 0 to 255.
            ``None``: 0 to 1 if all values fit, else 0 to 255 if all fit.
        label_names: The model's label names, by which folders are matched; labels beyond their number are an error.
        limit: Keep at most so many images, with the same mix of labels and at least one of each label where that fits.
        seed: Which images ``limit`` keeps; without a limit nothing is random.
        speech: How the MFCC of recordings are computed; by default as :class:`neuralsanitizer.config.MfccConfig` says.

    Returns:
        The set; its notes say what was converted, resized or skipped.

    Raises:
        DataError: The source is missing, damaged, refused or of no known format, or its values make no sense.
        MissingExtraError: A bundled set was asked for whose package is not installed.
        UsageError: ``shape``, ``pixel_range`` or ``limit`` is impossible.
    """
    _check_arguments(shape, pixel_range, limit)
    names = tuple(label_names or ())
    choose = partial(_stratified, limit=limit, seed=seed)
    with _failures_named(str(source)):
        raw = _read(source, choose, shape, names, speech or MfccConfig())
        _check_labels(raw.labels, names)
        _check_speech(raw, shape)
        _check_memory(raw.images.shape, shape)
        scaled, range_notes = _scale(raw.images, None if raw.recordings is not None else pixel_range)
        images, shape_notes = _fit(scaled, shape)
    return CleanSet(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(raw.labels),
        name=_name(source),
        format=raw.format,
        label_names=raw.label_names,
        notes=(*raw.notes, *range_notes, *shape_notes),
        recordings=raw.recordings,
    )


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images without labels.

    Attributes:
        images: float32 (N, channels, height, width) in [0, 1].
        names: Where each came from: its path within the folder, or its number in the file.
        notes: What loading had to do.
    """

    images: torch.Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...]


def load_inputs(
    source: str | os.PathLike[str],
    *,
    shape: tuple[int, int, int],
    pixel_range: tuple[float, float] | None = None,
    speech: MfccConfig | None = None,
) -> Inputs:
    """Load images whose labels nobody knows, or recordings as their MFCC: what a model is used on.

    Args:
        source: A ``.npz`` file with ``x``, or a folder of pictures, or of WAV files, however deep.
        shape: (channels, height, width) that the model takes; images are converted as :func:`load_clean_set` does.
        pixel_range: As for :func:`load_clean_set`.
        speech: Likewise.

    Raises:
        DataError: The source is missing, damaged, refused or of no known format, or its values make no sense.
        UsageError: ``shape`` or ``pixel_range`` is impossible.
    """
    _check_arguments(shape, pixel_range, None)
    path, recordings = Path(source), None
    with _failures_named(str(source)):
        if stat.S_ISDIR(_kind(path)):
            kind, files, notes = find_inputs(path)
            names = tuple(readable(str(file.relative_to(path))) for file in files)
            if kind is RECORDINGS:
                recordings, more = decode_recordings(list(files), speech or MfccConfig())
                images: _Images = recordings.pictures().permute(0, 2, 3, 1).numpy()
            else:
                images, more = decode_images(files, shape[1:])
            notes = (*notes, *more)
        else:
            with _open(path) as file:
                if _tell_format(file, path.name) != "npz":
                    raise DataError(f"{path.name!r} is no .npz file: give one with an array x, or a folder of pictures")
                images, notes = read_npz_images(file, path.name)
            names = tuple(map(str, range(len(images))))
        _check_memory(images.shape, shape)
        scaled, range_notes = _scale(images, None if recordings is not None else pixel_range)
        fitted, shape_notes = _fit(scaled, shape)
    return Inputs(torch.from_numpy(fitted), names, (*notes, *range_notes, *shape_notes))


def _check_arguments(
    shape: tuple[int, int, int] | None, pixel_range: tuple[float, float] | None, limit: int | None
) -> None:
    if shape is not None and (len(shape) != 3 or min(shape) < 1):
        raise UsageError(f"the shape needs (channels, height, width), all positive; got {shape}")
    if pixel_range is not None:
        low, high = pixel_range
        if not (math.isfinite(high - low) and low < high):
            raise UsageError(f"the pixel range needs two finite numbers, the lower first; got {pixel_range}")
    if limit is not None and limit < 1:
        raise UsageError(f"the limit needs to be at least 1 image; got {limit}")


@contextmanager
def _failures_named(source: str) -> Iterator[None]:
    """Turn what libraries raise on damaged files into an error that names the file."""
    try:
        yield
    except _FILE_ERRORS as error:
        reason = str(error)[:200] or type(error).__name__
        raise DataError(
            f"the clean set {source!r} cannot be read: {reason}. Check that it is complete, and that you may read it"
        ) from error


def _name(source: str | os.PathLike[str]) -> str:
    path = Path(source)
    return readable(path.name if path.name not in {"", ".."} else path.resolve().name)


def _read(
    source: str | os.PathLike[str],
    choose: _Choose,
    shape: tuple[int, int, int] | None,
    label_names: tuple[str, ...],
    speech: MfccConfig,
) -> _Raw:
    if isinstance(source, str) and source in BUNDLED:
        return _Raw(*read_mnist5k(), format="bundled").chosen(choose)
    path = Path(source)
    kind = _kind(path)
    if stat.S_ISREG(kind):
        return _read_file(path, choose)
    if not stat.S_ISDIR(kind):
        raise DataError(f"{str(path)!r} is neither a file nor a folder. {_EXPECTED}")
    pair = find_images(path)
    if pair is not None:
        return _read_file(pair, choose)
    if kind_of(path) is RECORDINGS:
        return _read_recordings(path, choose, label_names, speech)
    return _read_pictures(path, choose, shape, label_names)


def _kind(path: Path) -> int:
    """Mode bits, asked for before opening: opening a pipe waits for ever."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{str(path)!r} does not exist. {_EXPECTED}") from None


def _read_pictures(
    path: Path, choose: _Choose, shape: tuple[int, int, int] | None, label_names: tuple[str, ...]
) -> _Raw:
    found = find_files(path, PICTURES, label_names)
    _check_labels(found.labels, label_names)
    keep = choose(found.labels)
    images, notes = decode_images([found.files[i] for i in keep], None if shape is None else shape[1:])
    return _Raw(images, found.labels[keep], "folder", found.label_names, (*found.notes, *notes))


def _read_recordings(path: Path, choose: _Choose, label_names: tuple[str, ...], speech: MfccConfig) -> _Raw:
    found = find_files(path, RECORDINGS, label_names)
    _check_labels(found.labels, label_names)
    keep = choose(found.labels)
    recordings, notes = decode_recordings([found.files[i] for i in keep], speech)
    pictures = recordings.pictures().permute(0, 2, 3, 1).numpy()
    return _Raw(pictures, found.labels[keep], "wav", found.label_names, (*found.notes, *notes), recordings)


def _read_file(path: Path, choose: _Choose) -> _Raw:
    with _open(path) as file:
        if _tell_format(file, path.name) == "npz":
            images, labels, notes = read_npz(file, path.name)
            if path.suffix.lower() not in {".npz", ".zip"}:
                notes = (f"read as .npz by its content, though named {readable(path.name)!r}", *notes)
            return _Raw(images, labels, "npz", notes=notes).chosen(choose)
        beside = find_labels(path)
        with _open(beside) as labels_file:
            return _Raw(*read_idx(file, labels_file, (path.name, beside.name)), format="idx").chosen(choose)


def _open(path: Path) -> BinaryIO:
    if not stat.S_ISREG(_kind(path)):
        raise DataError(f"{str(path)!r} is not a regular file")
    return path.open("rb")


def _tell_format(file: BinaryIO, name: str) -> str:
    """``npz`` or ``idx``, by the first bytes."""
    head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    head = unfold(file).read(512)
    if _IDX.match(head):
        return "idx"
    if not head:
        raise DataError(f"{name!r} is empty. {_EXPECTED}")
    if head[257:262] == b"ustar":
        raise DataError(f"{name!r} is a tar archive: unpack it and give the folder. {_EXPECTED}")
    for magic, meaning in _STRANGERS:
        if head.startswith(magic):
            raise DataError(f"{name!r} is {meaning}")
    raise DataError(f"{name!r} is of no format that is known here: it begins with {head[:8].hex(' ')}. {_EXPECTED}")


def _stratified(labels: _Indices, limit: int | None, seed: int) -> _Indices:
    """Indices, ascending, of at most ``limit`` images with the same mix of labels.

    Each label's images are numbered 0, 1, ... in random order, and those with the smallest number in proportion to
    their label's count are kept: shares stay what they were, and no label is lost while another still has two.
    """
    count = len(labels)
    if limit is None or limit >= count:
        return np.arange(count)
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    by_label = order[np.argsort(labels[order], kind="stable")]
    _, start, which, size = np.unique(labels[by_label], return_index=True, return_inverse=True, return_counts=True)
    share = (np.arange(count) - start[which]) / size[which]
    kept = by_label[np.lexsort((generator.random(count), share))[:limit]]
    return np.sort(kept)


def _check_labels(labels: _Indices, label_names: tuple[str, ...]) -> None:
    """Refuse labels that the model does not have, by number; negative ones are the clean set's own business."""
    largest = int(labels.max())
    if label_names and largest >= len(label_names):
        raise DataError(
            f"the model has {len(label_names)} labels, 0 to {len(label_names) - 1}; "
            f"the data has {largest} among its labels"
        )
    if largest > _MAX_LABEL:
        raise DataError(f"labels count from 0, without large gaps; got {largest}")


def _check_speech(raw: _Raw, shape: tuple[int, int, int] | None) -> None:
    """A picture of coefficients over time cannot be resized to what the model takes."""
    come = (raw.images.shape[3], *raw.images.shape[1:3])
    if raw.recordings is not None and shape is not None and shape != come:
        raise DataError(
            f"the model takes {'x'.join(map(str, shape))}, the MFCC of the recordings are {'x'.join(map(str, come))} "
            "(1 x frames x coefficients): state how the model's were computed (--mfcc)"
        )


def _check_memory(come: tuple[int, ...], shape: tuple[int, int, int] | None) -> None:
    needed = 4 * max(math.prod(come), come[0] * math.prod(shape or (1,)))
    if needed > _MAX_FLOAT_BYTES:
        raise DataError(
            f"{come[0]:,} images would take {needed:,} bytes in memory; at most {_MAX_FLOAT_BYTES:,} are loaded. "
            f"Use fewer of them (--limit)"
        )


def _scale(images: _Images, pixel_range: tuple[float, float] | None) -> tuple[_Scaled, tuple[str, ...]]:
    """Raw values to float32 in [0, 1], channels first, and notes."""
    least, most = float(images.min()), float(images.max())
    if images.dtype.kind == "f":
        (low, high), notes = _float_range(least, most, pixel_range)
    else:
        (low, high), notes = (0.0, 255.0), ()
        if least < low or most > high:
            raise DataError(
                f"integer pixels are expected in 0 to 255, got {least:g} to {most:g}: save them as uint8, or as floats "
                f"and state their range (--range)"
            )
    scaled: _Scaled = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    if low:
        scaled -= low
    scaled /= high - low
    np.clip(scaled, 0, 1, out=scaled)
    if scaled.max() <= 1 / 255:
        notes = (*notes, f"the images are black: no pixel value is above {most:g}, and {high:g} is white")
    return scaled, notes


def _float_range(
    least: float, most: float, pixel_range: tuple[float, float] | None
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Which range float pixels are in, and notes."""
    if not (math.isfinite(least) and math.isfinite(most)):
        raise DataError("the images hold NaN or infinite pixel values")
    if pixel_range is not None:
        if not _fits(least, most, pixel_range):
            low, high = pixel_range
            raise DataError(
                f"pixel values are expected in {low:g} to {high:g}, as stated, got {least:g} to {most:g}: "
                f"state the range that the file has (--range)"
            )
        return pixel_range, ()
    if _fits(least, most, (0.0, 1.0)):
        return (0.0, 1.0), ()
    if _fits(least, most, (0.0, 255.0)):
        return (0.0, 255.0), (f"took the float pixels, {least:g} to {most:g}, to be in the range 0 to 255",)
    raise DataError(
        f"float pixels are expected in 0 to 1 or 0 to 255, got {least:g} to {most:g}: state their range (--range)"
    )


def _fits(least: float, most: float, pixel_range: tuple[float, float]) -> bool:
    low, high = pixel_range
    slack = _TOLERANCE * (high - low)
    return low - slack <= least and most <= high + slack


def _fit(images: _Scaled, shape: tuple[int, int, int] | None) -> tuple[_Scaled, tuple[str, ...]]:
    """Images (N, channels, height, width) in [0, 1] to the shape that the model takes, and notes."""
    if shape is None or images.shape[1:] == shape:
        return images, ()
    notes: tuple[str, ...] = ()
    channels = images.shape[1]
    if (channels, shape[0]) == (3, 1):  # before resizing: a third of the work
        images, notes = np.tensordot(images, _LUMA, axes=(1, 0))[:, np.newaxis], ("made gray from RGB",)
    if images.shape[2:] != shape[1:]:
        come, wanted = "x".join(map(str, images.shape[2:])), "x".join(map(str, shape[1:]))
        images, notes = _resize(images, shape[1:]), (*notes, f"resized from {come} to {wanted}")
    if (channels, shape[0]) == (1, 3):
        images, notes = np.repeat(images, 3, axis=1), (*notes, "repeated gray to RGB")
    if images.shape[1] != shape[0]:
        raise DataError(
            f"the model takes {shape[0]} channels, the images have {channels}: only 1 and 3 can be converted"
        )
    return np.clip(images, 0, 1, out=np.empty(images.shape, np.float32)), notes  # rounding may leave the range


def _resize(images: _Scaled, size: tuple[int, ...]) -> _Scaled:
    height, width = size
    resized = np.empty((*images.shape[:2], height, width), dtype=np.float32)
    for image, result in zip(images, resized, strict=True):
        for channel, plane in enumerate(image):
            result[channel] = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
    return resized
