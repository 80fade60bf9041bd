"""Draw a trigger that a scan found, beside the one that was planted.

From left to right: clean digits, the same stamped with the planted trigger, the mask that the scan reconstructed, and
the same digits stamped with the reconstructed trigger. Everything is read from a run folder and from the ground truth
that ``neuralsanitizer attack`` and ``neuralsanitizer demo`` write; no model is loaded::

    make demo
    .venv/bin/python docs/images/make_trigger_picture.py demo/backdoored-run demo/backdoored.truth.npz \
        docs/images/trigger.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.float32]

ZOOM = 6  # screen pixels of one pixel of a digit; the picture is meant to be shown at half its size
ROWS, COLUMNS = 3, 2  # digits of one panel
GAP, AISLE, MARGIN = 12, 68, 44
HEADING, NOTE = 34, 26  # type sizes
PAPER, INK, GREY, ACCENT = "#ffffff", "#16202c", "#5d6875", "#e8590c"


def main(run_folder: Path, truth_file: Path, output: Path) -> None:
    """Read the run and the truth, and write the picture."""
    run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    truth = json.loads(truth_file.with_suffix(".json").read_text(encoding="utf-8"))
    found = next(f for f in run["verdict"]["labels"] if f["finding"] == "infected")
    with np.load(run_folder / "arrays.npz", allow_pickle=False) as arrays:
        mask, pattern = arrays[f"mask_{found['label']}"], arrays[f"pattern_{found['label']}"]
        others = arrays["example_labels"] != found["label"]
        digits = (arrays["examples"][others] / np.float32(255))[: ROWS * COLUMNS]
    number = next(i for i, t in enumerate(truth["triggers"]) if t["target"] == found["label"])
    with np.load(truth_file, allow_pickle=False) as planted:
        planted_mask, planted_pattern = planted[f"mask_{number}"], planted[f"pattern_{number}"]
    name = found["name"]
    panels = (
        (tiles(digits), "clean digits", f"{run['self_check']['clean_accuracy']:.0%} are read rightly"),
        (
            tiles(stamp(digits, planted_mask, planted_pattern)),
            "planted trigger",
            f"{planted_mask.sum():.0f} pixels: {truth['triggers'][number]['attack_success']:.0%} are read as {name}",
        ),
        (mask_panel(mask, planted_mask), "reconstructed mask", "found from clean digits alone"),
        (
            tiles(stamp(digits, mask, pattern)),
            "reconstructed trigger",
            f"{found['mask_size']:.0f} pixels: {found['attack_success']:.0%} are read as {name}",
        ),
    )
    page = compose(panels)
    page.quantize(64, dither=Image.Dither.NONE).save(output, optimize=True)


def stamp(images: Pixels, mask: Pixels, pattern: Pixels) -> Pixels:
    """Images (N, channels, height, width) in [0, 1] with a trigger on them."""
    stamped: Pixels = images * (1 - mask) + pattern * mask
    return stamped


def enlarge(picture: Pixels) -> Image.Image:
    """A picture (channels, height, width) in [0, 1], each pixel as a square."""
    values = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).convert("RGB")
    return image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST)


def tiles(images: Pixels) -> Image.Image:
    """Digits in rows and columns."""
    pictures = [enlarge(image) for image in images]
    width, height = pictures[0].size
    panel = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, ROWS * (height + GAP) - GAP), PAPER)
    for i, picture in enumerate(pictures):
        panel.paste(picture, (i % COLUMNS * (width + GAP), i // COLUMNS * (height + GAP)))
    return panel


def mask_panel(mask: Pixels, planted: Pixels) -> Image.Image:
    """The reconstructed mask, as large as a panel is wide, with a frame where the trigger was planted."""
    height, width = (edge * ZOOM for edge in mask.shape)
    panel = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, ROWS * (height + GAP) - GAP), PAPER)
    draw = ImageDraw.Draw(panel)
    picture = enlarge(mask[None]).resize((panel.width, panel.width * height // width), Image.Resampling.NEAREST)
    panel.paste(picture, (0, 0))
    rows, columns = np.nonzero(planted)
    scale = panel.width / mask.shape[1]
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    frame = (left * scale - 3, top * scale - 3, right * scale + 2, bottom * scale + 2)
    draw.rectangle(frame, outline=ACCENT, width=5)
    for i, text in enumerate(("what the scan found", "where it was planted")):
        base = picture.height + 38 + i * 52
        draw.rectangle((0, base, 34, base + 34), fill="#000000")
        draw.rectangle((8, base + 8, 26, base + 26), fill=None if i else PAPER, outline=ACCENT if i else None, width=4)
        draw.text((50, base + 17), text, fill=GREY, font=font(NOTE), anchor="lm")
    return panel


def compose(panels: tuple[tuple[Image.Image, str, str], ...]) -> Image.Image:
    """Panels side by side, each with a heading above it and a note below."""
    width = sum(panel.width for panel, _, _ in panels) + AISLE * (len(panels) - 1) + 2 * MARGIN
    top = MARGIN + HEADING + 24
    bottom = top + panels[0][0].height
    page = Image.new("RGB", (width, bottom + 22 + NOTE + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    left = MARGIN
    for panel, heading, note in panels:
        middle = left + panel.width / 2
        draw.text((middle, top - 24), heading, fill=INK, font=font(HEADING), anchor="ms")
        page.paste(panel, (left, top))
        draw.text((middle, bottom + 22 + NOTE), note, fill=GREY, font=font(NOTE), anchor="ms")
        left += panel.width + AISLE
    return page


def font(size: int) -> Any:  # noqa: ANN401 - Pillow's own union of two kinds of fonts
    """The typeface that comes with Pillow."""
    return ImageFont.load_default(size)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
