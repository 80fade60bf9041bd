"""Draw what scans of a benchmark reconstructed beside what was planted: of named cases, or of what went wrong.

Without names, one label of each model that the default preset did not judge rightly. From top to bottom: an image
with a planted trigger, the mask that the scan reconstructed for the label, and the image stamped with what was
reconstructed. Everything is read from the benchmark's folder; no model is loaded::

    .venv/bin/python docs/images/make_triggers_picture.py bench docs/images/failures.png
    .venv/bin/python docs/images/make_triggers_picture.py bench docs/images/originals.png small-4x4 mnist-picture
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from make_trigger_picture import GREY, INK, MARGIN, NOTE, PAPER, enlarge, font, stamp
from PIL import Image, ImageDraw

from neuralsanitizer.benchmark.grid import CASES
from neuralsanitizer.benchmark.run import read_scores
from neuralsanitizer.benchmark.score import Score

DETECTOR = ("neural-sanitizer", "default", 0)
GAP, HEAD = 44, 96
ROW = 8


def main(bench: Path, output: Path, cases: Sequence[str]) -> None:
    """Read the scores and the runs that are wanted, and write the picture."""
    scores = [s for s in read_scores(bench) if (s.method, s.preset, s.seed) == DETECTOR and s.sizes]
    if cases:
        by_name = {s.case: s for s in scores}
        columns = [column(bench, by_name[name], by_name[name].planted[0], "found") for name in cases]
    else:
        columns = [column(bench, score, *what_went_wrong(score)) for score in scores if not score.right]
    width, height = max(c.width for c in columns) + GAP, max(c.height for c in columns) + GAP
    rows = -(-len(columns) // ROW)
    size = (2 * MARGIN + min(len(columns), ROW) * width - GAP, 2 * MARGIN + rows * height - GAP)
    page = Image.new("RGB", size, PAPER)
    for i, one in enumerate(columns):
        page.paste(one, (MARGIN + i % ROW * width, MARGIN + i // ROW * height))
    page.quantize(64, dither=Image.Dither.NONE).save(output, optimize=True)


def what_went_wrong(score: Score) -> tuple[int, str]:
    """A label that was judged wrongly, and how."""
    missed, alarms = sorted(set(score.planted) - set(score.found)), sorted(set(score.found) - set(score.planted))
    if missed:
        return missed[0], "left open" if missed[0] in score.inconclusive else "missed"
    return (alarms[0], "false alarm") if alarms else (score.inconclusive[0], "clean, left open")


def column(bench: Path, score: Score, label: int, what: str) -> Image.Image:
    """The three pictures of one label, under the name of the model."""
    run = bench / "runs" / f"{score.case}--{score.method}-{score.preset}-{score.seed}"
    with np.load(run / "arrays.npz", allow_pickle=False) as arrays:
        mask, pattern = arrays[f"mask_{label}"], arrays[f"pattern_{label}"]
        other = int(np.flatnonzero(~np.isin(arrays["example_labels"], [label, *score.planted[:1]]))[0])
        image = arrays["examples"][other] / np.float32(255)
    planted = image
    model = next(case.model_name for case in CASES if case.name == score.case)
    with np.load(bench / "models" / f"{model}.truth.npz", allow_pickle=False) as truth:
        # The label's own trigger where it has one, else the first of those that the model does have.
        number = score.planted.index(label) if label in score.planted else 0
        if score.planted:
            planted = stamp(image, truth[f"mask_{number}"], truth[f"pattern_{number}"])
    pictures = [enlarge(p) for p in (planted, np.broadcast_to(mask, image.shape), stamp(image, mask, pattern))]
    width, height = pictures[0].size
    page = Image.new("RGB", (max(width, 300), HEAD + 3 * (height + 12) + NOTE), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((0, NOTE), score.case, fill=INK, font=font(NOTE), anchor="ls")
    draw.text((0, 2 * NOTE + 12), f"label {label}: {what}", fill=GREY, font=font(NOTE - 4), anchor="ls")
    for i, picture in enumerate(pictures):
        page.paste(picture, (0, HEAD + i * (height + 12)))
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
