"""Reading the IDX pair of files, plain or gzipped, that MNIST and its kin are published as.

An IDX file is two zero bytes, one byte for the number type, one for the number of axes, a big-endian uint32 an axis,
and the values. Images and labels are two files; their names differ only in ``images-idx3`` and ``labels-idx1``.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from neuralsanitizer.data.npz import check_claim, read_exactly
from neuralsanitizer.errors import DataError

__all__ = ["find_images", "find_labels", "read_idx", "unfold"]

_GZIP = b"\x1f\x8b"
_UBYTE = 0x08
_IMAGES = re.compile(r"images[-.]idx3-ubyte(\.gz)?$")


def find_images(folder: Path) -> Path | None:
    """The IDX images file in a folder, or ``None``; of a file and its gzipped twin, the plain one.

    Raises:
        DataError: There are several, for example of a training and of a test set.
    """
    files = sorted(file for file in folder.iterdir() if _IMAGES.search(file.name) and file.is_file())
    plain = {file.name for file in files}
    files = [file for file in files if not (file.suffix == ".gz" and file.name.removesuffix(".gz") in plain)]
    if len(files) > 1:
        names = [file.name for file in files]
        raise DataError(f"{folder.name!r} holds several IDX images files, {names}: give the path of one of them")
    return files[0] if files else None


def find_labels(images: Path) -> Path:
    """The labels file beside an IDX images file: ``train-images-idx3-ubyte`` has ``train-labels-idx1-ubyte``.

    Raises:
        DataError: There is none, or the images file is not named in this way.
    """
    name = images.name
    if "labels" in name and "idx1" in name:
        raise DataError(f"{name!r} is named like a labels file: give the path of the images file beside it")
    if not _IMAGES.search(name):
        raise DataError(
            f"an IDX images file is named like 'train-images-idx3-ubyte', so that its labels can be found in "
            f"'train-labels-idx1-ubyte' beside it; {name!r} is not: rename it"
        )
    head, tail = name[: name.rindex("images")], name[name.rindex("images") :]
    expected = head + tail.replace("images", "labels").replace("idx3", "idx1")
    twin = expected.removesuffix(".gz") if expected.endswith(".gz") else f"{expected}.gz"
    for candidate in (images.with_name(expected), images.with_name(twin)):
        if candidate.exists():
            return candidate
    raise DataError(f"the labels of {name!r} are missing: {expected!r} expected beside it")


def unfold(file: BinaryIO) -> BinaryIO:
    """The file from its beginning, decompressed while it is read if it is gzipped."""
    file.seek(0)
    magic = file.read(2)
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if magic == _GZIP else file


def read_idx(
    images: BinaryIO, labels: BinaryIO, names: tuple[str, str]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images and labels of an IDX pair.

    Args:
        images: The open images file, seekable, gzipped or not.
        labels: The open labels file, likewise.
        names: Names of the two, for messages.

    Returns:
        uint8 (N, height, width, 1) images in 0..255, and int64 (N,) labels.

    Raises:
        DataError: Not IDX, other types or axes than these, or sizes that do not add up.
        OSError: Damaged; like EOFError and zlib.error from gzip, left to the caller.
    """
    pixels = _read_values(images, names[0], axes=3)
    indices = _read_values(labels, names[1], axes=1)
    if len(pixels) != len(indices):
        raise DataError(
            f"one label an image expected; "
            f"{names[0]!r} holds {len(pixels)} images and {names[1]!r} {len(indices)} labels"
        )
    return pixels[..., np.newaxis], indices.astype(np.int64)


def _read_values(file: BinaryIO, name: str, axes: int) -> npt.NDArray[np.uint8]:
    """The values of one file, uint8 with ``axes`` axes, none of them empty."""
    stored = file.seek(0, os.SEEK_END)
    stream = unfold(file)
    header = stream.read(4 + 4 * axes)
    expected = bytes((0, 0, _UBYTE, axes))
    if header[:4] != expected:
        raise DataError(
            f"{name!r} should begin with {expected.hex(' ')} (IDX, unsigned bytes, {axes} axes); "
            f"it begins with {header[:4].hex(' ') or 'nothing'}"
        )
    if len(header) < 4 + 4 * axes:
        raise DataError(f"{name!r} is truncated: it ends within its header")
    shape = struct.unpack(f">{axes}I", header[4:])
    if 0 in shape:
        raise DataError(f"{name!r} holds nothing: its shape is {shape}")
    size = math.prod(shape)
    if stream is file and size > stored:  # the cheaper check first, and the clearer message
        raise DataError(f"{name!r} is truncated: its header claims {size:,} bytes, the file has {stored:,}")
    check_claim(size, stored, repr(name))
    return read_exactly(stream, size, repr(name)).reshape(shape)
