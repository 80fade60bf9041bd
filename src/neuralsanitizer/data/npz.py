"""Reading images and labels from a ``.npz`` file that may be hostile.

Nothing is allocated, and nothing decompressed beyond a header of a few hundred bytes, before the zip's own directory
and the array's header agree on a size that the file can really hold. Pickled (object) arrays are refused: unpickling
runs code.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
from io import BytesIO
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from neuralsanitizer.errors import DataError

__all__ = ["MAX_BYTES", "check_claim", "read_exactly", "read_npz", "read_npz_images"]

MAX_BYTES = 4 << 30
"""Largest array that is read, in bytes, before any conversion."""

_MAX_RATIO = 250  # digits shrink about 5-fold, photographs less than 2-fold: 250-fold is blank or a bomb ...
_BOMB_BYTES = 64 << 20  # ... which matters only if it unfolds to more than this: sorted labels shrink 1000-fold
_CHUNK = 1 << 18
_MAX_DIRECTORY = 1 << 20
_MAX_HEADER = 10_000  # numpy's own limit for the text that it parses as a Python literal
_KEYS = (("x", "y"), ("images", "labels"))
_ENCRYPTED = 0x1


def check_claim(claimed: int, stored: int, what: str) -> None:
    """Refuse a size that a header claims but that should not be allocated.

    Args:
        claimed: Bytes that the header says there are.
        stored: Bytes that they take in the file, compressed or not.
        what: Names the data in the message.

    Raises:
        DataError: More than :data:`MAX_BYTES`, or so much more than is stored that it is a decompression bomb.
    """
    if claimed > MAX_BYTES:
        raise DataError(f"{what} claims {claimed:,} bytes; at most {MAX_BYTES:,} are read. Save fewer images")
    if claimed > _BOMB_BYTES and claimed > _MAX_RATIO * stored:
        raise DataError(
            f"{what} unfolds from {stored:,} to {claimed:,} bytes, as a decompression bomb does. "
            f"If it is real, save it uncompressed (numpy.savez)"
        )


def read_exactly(stream: BinaryIO, size: int, what: str) -> npt.NDArray[np.uint8]:
    """Read the rest of a stream, which must be ``size`` bytes: uint8 (size,).

    Args:
        stream: What to read.
        size: Bytes expected; checked with :func:`check_claim` before, because they are allocated at once.
        what: Names the data in the message.

    Raises:
        DataError: The stream is shorter or longer.
    """
    buffer = np.empty(size, dtype=np.uint8)
    filled = 0
    while filled < size:
        part = stream.read(min(_CHUNK, size - filled))
        if not part:
            raise DataError(f"{what} is truncated: {size:,} bytes expected, {filled:,} came")
        buffer[filled : filled + len(part)] = np.frombuffer(part, dtype=np.uint8)
        filled += len(part)
    if stream.read(1):  # also makes zip and gzip compare their checksums
        raise DataError(f"{what} holds more than the {size:,} bytes that its header states")
    return buffer


def read_npz(file: BinaryIO, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], tuple[str, ...]]:
    """Images and labels of a ``.npz`` file with the arrays ``x`` and ``y`` (or ``images`` and ``labels``).

    Args:
        file: The open file, seekable.
        name: Its name, for messages.

    Returns:
        Images (N, height, width, channels), 1 or 3 channels, in their own dtype (integers or float16, 32 or 64) and
        range; int64 (N,) labels; notes on what was left out.

    Raises:
        DataError: Other arrays, dtypes or shapes than these, or sizes that do not add up.
        zipfile.BadZipFile: Damaged; like OSError, zlib.error and others from the zip reader, left to the caller.
    """
    stored = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(_BoundedReads(file)) as archive:
        entries = _entries(archive, name)
        for images_key, labels_key in _KEYS:
            if images_key in entries and labels_key in entries:
                x = _read_array(archive, entries[images_key], stored, f"array {images_key!r} of {name!r}")
                y = _read_array(archive, entries[labels_key], stored, f"array {labels_key!r} of {name!r}")
                break
        else:
            raise DataError(
                f"arrays 'x' and 'y' (or 'images' and 'labels') expected in {name!r}; it holds {sorted(entries)[:20]}. "
                "Save a clean set with numpy.savez(path, x=images, y=labels)"
            )
    images, notes = _channels_last(x, name)
    labels = _label_indices(y, name)
    if len(images) != len(labels):
        raise DataError(f"one label an image expected in {name!r}; got {len(images)} images and {len(labels)} labels")
    return images, labels, notes


def read_npz_images(file: BinaryIO, name: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Images alone, of a ``.npz`` file with the array ``x`` (or ``images``); labels may be missing.

    Args:
        file: The open file, seekable.
        name: Its name, for messages.

    Returns:
        As :func:`read_npz`, without labels.

    Raises:
        DataError: As :func:`read_npz`.
        zipfile.BadZipFile: Likewise.
    """
    stored = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(_BoundedReads(file)) as archive:
        entries = _entries(archive, name)
        key = next((images for images, _ in _KEYS if images in entries), None)
        if key is None:
            raise DataError(
                f"an array 'x' (or 'images') expected in {name!r}; it holds {sorted(entries)[:20]}. "
                "Save images with numpy.savez(path, x=images)"
            )
        x = _read_array(archive, entries[key], stored, f"array {key!r} of {name!r}")
    return _channels_last(x, name)


class _BoundedReads:
    """A file that gives at most ``_MAX_DIRECTORY`` bytes at once.

    The zip reader loads a whole central directory in one read and builds an object for each of its entries, so a file
    with millions of entries would fill the memory before anyone could count them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(_MAX_DIRECTORY + 1 if size < 0 else min(size, _MAX_DIRECTORY + 1))
        if len(data) > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory is larger than {_MAX_DIRECTORY:,} bytes")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _entries(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy")
        if key in entries:
            raise DataError(f"{name!r} holds two entries named {key!r}: which one is meant cannot be told")
        entries[key] = info
    return entries


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, stored: int, what: str) -> npt.NDArray[Any]:
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"{what} is encrypted: save it without a password")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise DataError(f"{what} is compressed by method {info.compress_type}; numpy writes methods 0 and 8")
    with archive.open(info) as entry:
        stream = cast(BinaryIO, entry)
        shape, fortran_order, dtype = _read_header(stream, what)
        _check_dtype(dtype, what)
        if min(shape, default=1) < 0:
            raise DataError(f"{what} has the impossible shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        check_claim(size, min(info.compress_size, stored), what)
        if size > info.file_size:
            raise DataError(f"the header of {what} claims {size:,} bytes, but the entry has {info.file_size:,}")
        array: npt.NDArray[Any] = read_exactly(stream, size, what).view(dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _read_header(stream: BinaryIO, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype from an array's header. Its length is checked here: numpy reads first, and checks then."""
    try:
        version = npy_format.read_magic(stream)
        prefix = stream.read(2 if version == (1, 0) else 4)
        length = struct.unpack("<H" if version == (1, 0) else "<I", prefix)[0]
        if length > _MAX_HEADER:
            raise ValueError(f"header of {length:,} bytes")  # noqa: TRY301 - every way of being wrong ends below
        header = BytesIO(prefix + stream.read(length))
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote, and reads them
            shape, fortran_order, dtype = read(header)
    except Exception as error:  # the header is parsed as a Python literal: hostile ones raise anything
        reason = str(error)[:200]
        raise DataError(f"{what} is not a numpy array ({type(error).__name__}: {reason}): save it again") from error
    return shape, fortran_order, dtype


def _check_dtype(dtype: np.dtype[Any], what: str) -> None:
    if dtype.hasobject:
        raise DataError(
            f"{what} is a pickled object array: reading it could run code. Save plain numbers (uint8, float32)"
        )
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise DataError(f"integers or floats of at most 64 bits expected in {what}, got {dtype}")


def _channels_last(x: npt.NDArray[Any], name: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Images as (N, height, width, channels), and notes. The axis of 1, 3 or 4 is the channels; the last axis wins."""
    if x.dtype.kind == "b":
        raise DataError(f"the images of {name!r} are true-or-false values; save them as uint8, 0 to 255")
    if not x.size:
        raise DataError(f"{name!r} holds no images: their shape is {x.shape}")
    if x.ndim == 3:
        return x[..., np.newaxis], ()
    if x.ndim == 4 and x.shape[3] in {1, 3}:
        return x, ()
    if x.ndim == 4 and x.shape[3] == 4:
        return x[..., :3], ("dropped the alpha channel",)
    if x.ndim == 4 and x.shape[1] in {1, 3}:
        return x.transpose(0, 2, 3, 1), ()
    raise DataError(
        f"images of shape (N, height, width), (N, height, width, 1, 3 or 4) or (N, 1 or 3, height, width) expected "
        f"in {name!r}, got {x.shape}"
    )


def _label_indices(y: npt.NDArray[Any], name: str) -> npt.NDArray[np.int64]:
    """Labels as int64 (N,), from indices (N,) or (N, 1), or from one-hot rows (N, labels)."""
    if y.ndim == 2 and y.shape[1] > 1:
        if not (((y == 0) | (y == 1)).all() and ((y == 1).sum(axis=1) == 1).all()):
            raise DataError(f"the labels of {name!r}, shape {y.shape}, are not one-hot rows: one 1 a row, the rest 0")
        hot: npt.NDArray[np.int64] = y.argmax(axis=1).astype(np.int64)
        return hot
    if y.dtype.kind not in "ui" or y.shape not in {(y.size,), (y.size, 1)}:
        raise DataError(
            f"labels expected in {name!r} as integers (N,) or one-hot rows (N, labels), got {y.dtype} {y.shape}"
        )
    if y.size and int(y.max()) > np.iinfo(np.int64).max:
        raise DataError(f"labels count from 0; {name!r} holds {int(y.max())}")
    return y.reshape(-1).astype(np.int64)
