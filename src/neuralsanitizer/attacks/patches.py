"""Making patch triggers: where, how large, of what shape, with what on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator

from neuralsanitizer.attacks.stamps import Patch
from neuralsanitizer.errors import DataError, UsageError
from neuralsanitizer.records import Array

__all__ = ["PATTERNS", "POSITIONS", "SHAPES", "PatchSpec", "make_patch", "make_pattern"]

POSITIONS = (
    "top-left",
    "top",
    "top-right",
    "left",
    "center",
    "right",
    "bottom-left",
    "bottom",
    "bottom-right",
    "random",
)
SHAPES = ("square", "circle", "triangle", "star")
PATTERNS = ("white", "black", "red", "green", "blue", "yellow", "checker", "smiley", "random", "gray-random")

_COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
}
_OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


@dataclass(frozen=True)
class PatchSpec:
    """A patch trigger, described.

    Attributes:
        target: The label that it sends images to.
        size: Edge length in pixels (the diameter of a circle).
        position: One of :data:`POSITIONS`, or ``ROW,COLUMN`` (or ``ROW:COLUMN``) of the top left corner.
        pattern: One of :data:`PATTERNS`, ``#rrggbb``, or the path of an image file.
        shape: One of :data:`SHAPES`.
        pieces: 1, 2 or 4: the patch is cut into so many pieces, which go to opposite sides or to the four corners.
        margin: Distance from the border in pixels.
    """

    target: int
    size: int = 4
    position: str = "bottom-right"
    pattern: str = "white"
    shape: str = "square"
    pieces: int = 1
    margin: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.margin < 0 or self.target < 0:
            raise UsageError(f"a patch needs a size of 1 or more, a margin and a target of 0 or more; got {self}")
        if self.shape not in SHAPES:
            raise UsageError(f"unknown patch shape {self.shape!r}: choose one of {', '.join(SHAPES)}")
        if self.pieces not in {1, 2, 4}:
            raise UsageError(f"a patch is cut into 1, 2 or 4 pieces, not {self.pieces}")


def make_patch(spec: PatchSpec, shape: tuple[int, int, int], generator: Generator) -> Patch:
    """The trigger that a description stands for.

    Args:
        spec: The description.
        shape: (channels, height, width) of the images.
        generator: CPU generator of random positions and patterns.

    Raises:
        UsageError: The patch does not fit, or the position or pattern is unknown.
        DataError: The pattern's image file cannot be read.
    """
    channels, height, width = shape
    if spec.size + spec.margin > min(height, width):
        raise UsageError(f"a patch of {spec.size} pixels with a margin of {spec.margin} does not fit {height}x{width}")
    patch = _outline(spec.shape, spec.size)
    pattern = make_pattern(spec.pattern, channels, (spec.size, spec.size), generator)
    mask = np.zeros((height, width), np.float32)
    canvas = np.zeros(shape, np.float32)
    for rows, columns, position in _pieces(spec):
        piece = patch[rows, columns]
        top, left = _corner(position, piece.shape, (height, width), spec.margin, generator)
        where = np.s_[top : top + piece.shape[0], left : left + piece.shape[1]]
        mask[where] = np.maximum(mask[where], piece)
        canvas[:, *where] = pattern[:, rows, columns]
    return Patch(spec.target, mask, canvas * mask)


def _outline(shape: str, size: int) -> Array:
    """float32 (size, size): 1 inside the shape."""
    centre = (size - 1) / 2
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    if shape == "circle":
        inside = (rows - centre) ** 2 + (columns - centre) ** 2 <= (size / 2) ** 2
    elif shape == "triangle":
        inside = np.abs(columns - centre) <= (rows + 1) / 2
    elif shape == "star":
        angle = np.arctan2(columns - centre, centre - rows)
        # Five points: the radius swings between the tips and 40 % of them, every 72 degrees.
        swing = np.abs(np.mod(angle, 2 * math.pi / 5) / (math.pi / 5) - 1)
        inside = np.hypot(rows - centre, columns - centre) <= size / 2 * (0.4 + 0.6 * swing)
    else:
        inside = np.ones((size, size), dtype=bool)
    outline: Array = inside.astype(np.float32)
    return outline


def make_pattern(name: str, channels: int, size: tuple[int, int], generator: Generator) -> Array:
    """A pattern by name.

    Args:
        name: One of :data:`PATTERNS`, ``#rrggbb``, or the path of an image file.
        channels: Of the images; 3 are red, green and blue.
        size: (height, width).
        generator: CPU generator of random patterns.

    Returns:
        float32 (channels, height, width) in [0, 1].

    Raises:
        UsageError: There is no such pattern.
        DataError: The image file cannot be read.
    """
    if name in _COLOURS or name.startswith("#"):
        colour = _COLOURS.get(name) or _hex_colour(name)
        values = colour if channels == 3 else (float(np.mean(colour)),) * channels
        return np.broadcast_to(np.asarray(values, np.float32)[:, None, None], (channels, *size)).copy()
    if name == "checker":
        board = np.indices(size).sum(axis=0) % 2
        return np.broadcast_to(board.astype(np.float32), (channels, *size)).copy()
    if name == "smiley":
        return np.broadcast_to(_smiley(size), (channels, *size)).copy()
    if name in {"random", "gray-random"}:
        drawn: Array = torch.rand(channels if name == "random" else 1, *size, generator=generator).numpy()
        return np.broadcast_to(drawn, (channels, *size)).copy()
    return _picture(name, channels, size)


def _smiley(size: tuple[int, int]) -> Array:
    """A picture that needs no file: a white face with black eyes and mouth, float32 (height, width)."""
    rows, columns = (np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32) + 0.5) / np.array(size).reshape(2, 1, 1)
    face = np.hypot(rows - 0.5, columns - 0.5) <= 0.5
    eyes = (np.abs(rows - 0.35) <= 0.1) & (np.abs(np.abs(columns - 0.5) - 0.18) <= 0.08)
    mouth = (np.abs(np.hypot(rows - 0.5, columns - 0.5) - 0.28) <= 0.07) & (rows > 0.6)
    picture: Array = (face & ~eyes & ~mouth).astype(np.float32)
    return picture


def _hex_colour(name: str) -> tuple[float, ...]:
    digits = name.removeprefix("#")
    try:
        return tuple(value / 255 for value in bytes.fromhex(digits.zfill(6) if len(digits) == 6 else "x"))
    except ValueError as error:
        raise UsageError(f"a colour is written #rrggbb, got {name!r}") from error


def _picture(name: str, channels: int, size: tuple[int, int]) -> Array:
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"unknown pattern {name!r}: choose one of {', '.join(PATTERNS)}, #rrggbb, or an image file")
    try:
        with Image.open(path) as image:
            scaled = image.convert("RGB" if channels == 3 else "L").resize(size[::-1])
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"the pattern {path} cannot be read as an image ({error})") from error
    values: Array = np.asarray(scaled, np.float32) / np.float32(255)
    return values.transpose(2, 0, 1) if channels == 3 else np.broadcast_to(values, (channels, *size)).copy()


def _pieces(spec: PatchSpec) -> list[tuple[slice, slice, str]]:
    """Rows and columns of each piece within the patch, and where it goes."""
    whole, first, second = slice(None), slice(0, spec.size // 2), slice(spec.size // 2, None)
    if spec.pieces == 1:
        return [(whole, whole, spec.position)]
    if spec.pieces == 2:
        return [(whole, first, spec.position), (whole, second, _across(spec.position))]
    corners = ("top-left", "top-right", "bottom-left", "bottom-right")
    quarters = [(r, c) for r in (first, second) for c in (first, second)]
    return [(rows, columns, corner) for (rows, columns), corner in zip(quarters, corners, strict=True)]


def _across(position: str) -> str:
    if position in {"random", "center"}:
        return "random"
    if "," in position or ":" in position:
        raise UsageError("a patch in two pieces needs a named position: the second piece goes to the other side")
    return "-".join(_OPPOSITE[word] for word in position.split("-"))


def _corner(
    position: str, piece: tuple[int, ...], image: tuple[int, int], margin: int, generator: Generator
) -> tuple[int, int]:
    """Row and column of a piece's top left corner."""
    last = (image[0] - piece[0], image[1] - piece[1])
    if position == "random":
        row, column = (int(torch.randint(0, end + 1, (1,), generator=generator)) for end in last)
        return row, column
    if position in POSITIONS:
        rows = margin if "top" in position else last[0] - margin if "bottom" in position else last[0] // 2
        columns = margin if "left" in position else last[1] - margin if "right" in position else last[1] // 2
        return rows, columns
    row_text, _, column_text = position.replace(":", ",").partition(",")
    if not (row_text.strip().isdecimal() and column_text.strip().isdecimal()):
        raise UsageError(f"unknown position {position!r}: choose one of {', '.join(POSITIONS)}, or ROW,COLUMN")
    row, column = int(row_text), int(column_text)
    if row > last[0] or column > last[1]:
        raise UsageError(f"a patch at {position} does not fit an image of {image[0]}x{image[1]}")
    return row, column
