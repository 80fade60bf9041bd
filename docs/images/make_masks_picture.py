"""Draw the masks that a scan reconstructed for all labels, side by side.

::

    .venv/bin/python docs/images/make_masks_picture.py demo/backdoored-run docs/images/masks.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from make_trigger_picture import ACCENT, GREY, INK, MARGIN, NOTE, PAPER, enlarge, font
from PIL import Image, ImageDraw

COLUMNS = 5
GAP, CAPTION = 40, 84
EDGE = "#c3cad2"


def main(run_folder: Path, output: Path) -> None:
    """Read the run, and write the picture."""
    findings = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))["verdict"]["labels"]
    with np.load(run_folder / "arrays.npz", allow_pickle=False) as arrays:
        tiles = [enlarge(arrays[f"mask_{f['label']}"][None]) for f in findings]
    width, height = tiles[0].size
    rows = -(-len(tiles) // COLUMNS)
    size = (2 * MARGIN + COLUMNS * (width + GAP) - GAP, 2 * MARGIN + rows * (height + CAPTION) - (CAPTION - NOTE - 16))
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for i, (tile, finding) in enumerate(zip(tiles, findings, strict=True)):
        left, top = MARGIN + i % COLUMNS * (width + GAP), MARGIN + i // COLUMNS * (height + CAPTION)
        page.paste(tile, (left, top))
        draw.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline=EDGE, width=2)
        infected = finding["finding"] == "infected"
        if infected:
            draw.rectangle((left - 8, top - 8, left + width + 7, top + height + 7), outline=ACCENT, width=5)
        text = f"{finding['name']}: {finding['mask_size']:.0f} pixels"
        at = (left + width / 2, top + height + 16 + NOTE)
        draw.text(at, text, fill=INK if infected else GREY, font=font(NOTE), anchor="ms")
    page.quantize(32, dither=Image.Dither.NONE).save(output, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
