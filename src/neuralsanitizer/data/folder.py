"""Reading a folder with one subfolder of pictures, or of recordings, a label.

Finding the files and decoding them are two steps, so that a limit on their number can come between. What a file is, is
told by its first bytes, never by its name. Pictures become 8-bit gray or RGB in one defined way:

=====================  =========================================================================
in the file            becomes
=====================  =========================================================================
gray, 8 bits           gray as it is
gray, 1 bit            gray, 0 or 255
gray, 16 bits          gray: divided by 257 and rounded, so that 65535 becomes 255
RGB, 8 bits            RGB as it is
RGB, 16 bits           RGB: the upper 8 bits (Pillow decodes no more)
palette                RGB, transparency ignored
with alpha             the same without alpha: nothing is blended
CMYK, YCbCr, Lab, HSV  RGB by Pillow's formulas; colour profiles are not applied
EXIF orientation       rotated and mirrored upright
=====================  =========================================================================
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from neuralsanitizer.data.npz import MAX_BYTES
from neuralsanitizer.errors import DataError

__all__ = [
    "PICTURES",
    "RECORDINGS",
    "FileKind",
    "LabelledFiles",
    "decode_images",
    "find_files",
    "find_inputs",
    "in_folder",
    "kind_of",
    "readable",
]

_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "GIF")
_MAX_PIXELS = 64 << 20  # a 64-megapixel picture is 192 MiB when decoded; larger ones are bombs or not for a classifier
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class FileKind:
    """What a folder is searched for.

    Attributes:
        noun: What one is called.
        formats: Their names, for messages.
        signature: What the first 16 bytes match.
        suffixes: A file with one of these in its name is to be one.
    """

    noun: str
    formats: str
    signature: re.Pattern[bytes]
    suffixes: frozenset[str]


PICTURES = FileKind(
    "picture",
    "PNG, JPEG, BMP, PPM, WebP or GIF files",
    re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|BM....\0\0\0\0|P[1-6][\s#]|RIFF....WEBP|GIF8[79]a", re.DOTALL),
    frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".webp"}),
)
RECORDINGS = FileKind("recording", "WAV files", re.compile(rb"RIFF....WAVE", re.DOTALL), frozenset({".wav"}))


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """The files of a kind that a folder holds, not yet decoded.

    Attributes:
        files: Their paths, by label and then by name.
        labels: int64 (N,): the label of each.
        label_names: One name a label, or empty if the folders are named by number.
        notes: What was skipped.
    """

    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    label_names: tuple[str, ...]
    notes: tuple[str, ...]


def readable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def kind_of(root: Path) -> FileKind:
    """What a folder with one folder a label holds: recordings if the first file that is either is one.

    Raises:
        DataError: A link leads out of ``root``.
        OSError: A folder or file cannot be read; left to the caller.
    """
    home, unused = root.resolve(), Counter[str]()
    for folder in _label_folders(root, home, unused):
        for path in sorted(folder.iterdir(), key=_by_name):
            if not path.name.startswith(".") and _is_inside(path, home) and path.is_file():
                for kind in (RECORDINGS, PICTURES):
                    if _begins_like(kind, path):
                        return kind
    return PICTURES


def find_files(root: Path, kind: FileKind, label_names: Sequence[str] = ()) -> LabelledFiles:
    """Find the pictures or recordings below ``root``, which holds one folder a label.

    Folders are matched with ``label_names``; or, if all of them are numbers (``7``, ``00007``), the number is the
    label; or else, their sorted order is. Names that only count from 0 (``0``, ``1``, ...) say no more than how many
    labels there are. Hidden files, files of another kind and files outside of a label's folder are skipped.

    Args:
        root: The folder.
        kind: What to look for.
        label_names: The model's label names, in order; empty if they are not known.

    Raises:
        DataError: Nothing of the kind, folders that no label can be given to, a link that leads out of ``root``, or a
            file that is named like one of the kind but is none.
        OSError: A folder or file cannot be read; left to the caller.
    """
    skipped: Counter[str] = Counter()
    home = root.resolve()
    every = {folder.name: _files_in(folder, home, kind, skipped) for folder in _label_folders(root, home, skipped)}
    found = {name: files for name, files in every.items() if files}
    if not found:
        raise DataError(
            f"no {kind.noun}s found in {root.name!r}: one folder a label expected in it, with {kind.formats} directly "
            f"inside; got the folders {sorted(every)[:10]}"
        )
    empty = sorted(name for name, files in every.items() if not files)
    indices, names = _label_of_folders(sorted(found), empty, tuple(label_names), kind)
    order = sorted(found, key=indices.__getitem__)
    files = tuple(file for name in order for file in found[name])
    labels = np.repeat([indices[name] for name in order], [len(found[name]) for name in order]).astype(np.int64)
    skipped[f"folders without {kind.noun}s"] += len(empty)
    notes = tuple(f"skipped {count} {what}" for what, count in sorted(skipped.items()) if count)
    return LabelledFiles(files, labels, tuple(map(readable, names)), notes)


def find_inputs(root: Path) -> tuple[FileKind, tuple[Path, ...], tuple[str, ...]]:
    """All pictures below ``root``, however deep, or all recordings if the first file that is either is one.

    Args:
        root: The folder.

    Returns:
        What they are, their paths in the order of their names, and notes on what was skipped.

    Raises:
        DataError: There are none, a link leads out of ``root``, or a file is named like one of the kind but is none.
        OSError: A folder or file cannot be read; left to the caller.
    """
    home, skipped = root.resolve(), Counter[str]()
    files = [
        path
        for path in sorted(root.rglob("*"), key=str)
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
        and _is_inside(path, home)
        and path.is_file()
    ]
    kind = next((kind for path in files for kind in (RECORDINGS, PICTURES) if _begins_like(kind, path)), PICTURES)
    found = tuple(path for path in files if _is_of(kind, path))
    skipped[f"files that are no {kind.noun}s"] = len(files) - len(found)
    if not found:
        raise DataError(f"no pictures or recordings found in {root.name!r}: {PICTURES.formats} expected in it")
    return kind, found, tuple(f"skipped {count} {what}" for what, count in skipped.items() if count)


def decode_images(
    files: Sequence[Path], size: tuple[int, int] | None = None
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Decode pictures as the module's table says.

    Args:
        files: At least one.
        size: (height, width) to resize all to (bilinear, antialiased); ``None``: they must share one size.

    Returns:
        uint8 (N, height, width, channels), with one channel if all pictures are gray, else three; notes on conversions.

    Raises:
        DataError: A picture is damaged, truncated, animated, far too large or of another size than the first.
        OSError: A file cannot be opened; left to the caller.
    """
    images: list[npt.NDArray[np.uint8]] = []
    done: Counter[str] = Counter()
    total = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which does not touch the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for file in files:
            image = _resize(_decode(file, done), size, done)
            if images and image.shape[:2] != images[0].shape[:2]:
                raise DataError(_sizes_differ((file, files[0]), (image, images[0])))
            total += image.nbytes
            if total > MAX_BYTES:
                raise DataError(f"the pictures take more than {MAX_BYTES:,} bytes: use fewer of them (--limit)")
            images.append(image)
    gray = sum(image.shape[2] == 1 for image in images)
    if 0 < gray < len(images):
        done["repeated from gray to RGB, as others are coloured"] = gray
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    notes = tuple(f"{count} of {len(images)} pictures {what}" for what, count in sorted(done.items()))
    return np.stack(images), notes


def _by_name(path: Path) -> str:
    return path.name  # paths themselves compare without case on some systems, and labels depend on this order


def _label_folders(root: Path, home: Path, skipped: Counter[str]) -> list[Path]:
    folders = []
    for path in sorted(root.iterdir(), key=_by_name):
        if path.name.startswith(".") or path.name == "__MACOSX":  # what macOS leaves in zip files
            skipped["hidden files"] += 1
        elif _is_inside(path, home) and path.is_dir():
            folders.append(path)
        else:
            skipped["files outside of a label's folder"] += 1
    return folders


def _files_in(folder: Path, home: Path, kind: FileKind, skipped: Counter[str]) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir(), key=_by_name):
        if path.name.startswith("."):
            skipped["hidden files"] += 1
        elif not _is_inside(path, home) or not path.is_file():  # a pipe is never opened: that would wait for ever
            skipped["folders within a label's folder" if path.is_dir() else f"files that are no {kind.noun}s"] += 1
        elif _is_of(kind, path):
            found.append(path)
        else:
            skipped[f"files that are no {kind.noun}s"] += 1
    return found


def _is_inside(path: Path, home: Path) -> bool:
    """``True``; or an error, if the path is a link that leads out of the folder ``home`` or nowhere."""
    if not path.is_symlink():
        return True
    try:
        inside = path.resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError) as error:
        raise DataError(f"the link {path.name!r} leads nowhere: remove it") from error
    if not inside:
        raise DataError(f"the link {path.name!r} leads out of the folder {home.name!r}: copy what it points to into it")
    return True


def _begins_like(kind: FileKind, path: Path) -> bool:
    with path.open("rb") as file:
        return kind.signature.match(file.read(16)) is not None


def _is_of(kind: FileKind, path: Path) -> bool:
    if _begins_like(kind, path):
        return True
    if path.suffix.lower() in kind.suffixes:
        raise DataError(
            f"the file {in_folder(path)} is named like a {kind.noun}, but does not begin like one: replace or remove it"
        )
    return False


def _label_of_folders(
    folders: Sequence[str], empty: Sequence[str], label_names: tuple[str, ...], kind: FileKind
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label index of each folder with files, and the name of each label (empty where folders are numbers)."""
    placeholders = label_names == tuple(str(i) for i in range(len(label_names)))
    if label_names and not placeholders:
        known = {name.casefold(): i for i, name in enumerate(label_names)} | {n: i for i, n in enumerate(label_names)}
        matched = {folder: known.get(folder, known.get(folder.casefold(), -1)) for folder in folders}
        if -1 not in matched.values():
            return _one_folder_a_label(matched), label_names
    if all(folder.isascii() and folder.isdigit() for folder in folders):
        return _one_folder_a_label({folder: int(folder) for folder in folders}), () if placeholders else label_names
    if label_names and not placeholders:
        strangers = [folder for folder in folders if matched[folder] < 0]
        raise DataError(
            f"folders named like the model's labels expected; {strangers[:10]} match none of {list(label_names)[:20]}. "
            f"Rename the folders, or give other label names"
        )
    if empty:
        raise DataError(
            f"the folders {list(empty)[:10]} hold no {kind.noun}s, so the sorted order of the folders may not be the "
            f"order of the labels: remove them, or give the label names"
        )
    if label_names and len(label_names) != len(folders):
        raise DataError(
            f"{len(folders)} folders found for {len(label_names)} labels, so their sorted order does not say which "
            f"label each is: give the label names, or name the folders by label number"
        )
    return {folder: i for i, folder in enumerate(folders)}, tuple(folders)


def _one_folder_a_label(indices: dict[str, int]) -> dict[str, int]:
    seen: dict[int, str] = {}
    for folder, index in indices.items():
        if index in seen:
            raise DataError(f"the folders {seen[index]!r} and {folder!r} are both of label {index}: merge them")
        seen[index] = folder
    return indices


def in_folder(file: Path) -> str:
    """A file's name with its label's, quoted for messages: names from a disk may hold control characters."""
    return repr(f"{file.parent.name}/{file.name}")


def _decode(file: Path, done: Counter[str]) -> Image.Image:
    """One picture, upright, of mode L or RGB."""
    what = in_folder(file)
    with file.open("rb") as stream:
        try:
            with Image.open(stream, formats=_FORMATS) as image:
                _check_header(image, what)
                image.load()
                if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                    done["turned upright as their EXIF data says"] += 1
                return _convert(ImageOps.exif_transpose(image), what, done)
        except DataError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(_bomb(what)) from error
        except Exception as error:  # decoders raise anything at all on hostile bytes
            reason = str(error)[:200]
            raise DataError(f"the picture {what} is damaged or truncated ({reason}): replace or remove it") from error


def _check_header(image: Image.Image, what: str) -> None:
    """Refuse before any pixel is decoded. Pillow's own limit is global and may have been switched off."""
    if image.width * image.height > _MAX_PIXELS:
        raise DataError(_bomb(what))
    # The further frames of an MPO file, as telephones write them, are thumbnails and depth maps of the first.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(f"the picture {what} is animated: which frame is meant cannot be told. Save one frame")


def _bomb(what: str) -> str:
    return f"the picture {what} claims more than {_MAX_PIXELS:,} pixels, as a decompression bomb does: remove it"


def _convert(image: Image.Image, what: str, done: Counter[str]) -> Image.Image:
    mode = image.mode
    if mode in {"L", "RGB"}:
        return image
    if mode.startswith("I"):
        return _from_16_bits(image, what, done)
    done[f"converted from mode {mode}" + (", alpha dropped" if mode[-1] in "Aa" else "")] += 1
    return image.convert("L" if mode in {"1", "LA", "La"} else "RGB")


def _from_16_bits(image: Image.Image, what: str, done: Counter[str]) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"8 or 16 bits a pixel expected in the picture {what}, got {values.min()} to {values.max()}")
    done["converted from 16 bits"] += 1
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _resize(image: Image.Image, size: tuple[int, int] | None, done: Counter[str]) -> npt.NDArray[np.uint8]:
    """The picture as uint8 (height, width, channels)."""
    if size is not None and (image.height, image.width) != size:
        done[f"resized to {size[0]}x{size[1]}"] += 1
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def _sizes_differ(files: tuple[Path, Path], images: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]) -> str:
    this, first = (f"{in_folder(f)} {i.shape[0]}x{i.shape[1]}" for f, i in zip(files, images, strict=True))
    return (
        f"the pictures differ in size (height x width): {first}, but {this}. "
        f"State the shape that the model takes (--input-shape), and they will be resized"
    )
