"""Pictures and plots of a report, as data URIs and inline SVG."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from neuralsanitizer.records import Finding, LabelFinding, Trigger, colour_chart
from neuralsanitizer.report.speech import spectrogram, upright
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import to_picture

__all__ = ["Figure", "TriggerPictures", "index_svg", "picture_uri", "ranking_svg", "trigger_pictures"]

_ROWS = 40  # labels that the ranking shows one a row: the smallest masks, and all that are not clean
_LARGEST = 32  # pictures of smaller edges are stored as they are; larger ones are scaled down to 8 times this

# Inferno's anchor colours: dark to bright in lightness too, so that it reads without colour vision
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows.

    Attributes:
        uri: PNG, as a data URI.
        caption: A few words.
    """

    uri: str
    caption: str


@dataclass(frozen=True)
class TriggerPictures:
    """A trigger in pictures.

    Attributes:
        figures: The trigger itself.
        examples: Pairs of a clean image and the same one stamped, as data URIs.
    """

    figures: tuple[Figure, ...]
    examples: tuple[tuple[str, str], ...]


def trigger_pictures(
    trigger: Trigger,
    examples: npt.NDArray[np.uint8],
    labels: Sequence[int],
    count: int,
    speech: Mapping[str, Any] | None = None,
) -> TriggerPictures:
    """Draw a trigger.

    Args:
        trigger: What to draw.
        examples: uint8 (N, channels, height, width).
        labels: Their labels; examples of the trigger's own label are passed over.
        count: How many examples to stamp.
        speech: If the images are MFCC, how they were computed: they are drawn as spectrograms.
    """
    clean = [x.astype(np.float32) / 255 for x, y in zip(examples, labels, strict=True) if y != trigger.label][:count]
    stamped = [trigger.onto(x) for x in clean]

    def draw(picture: npt.NDArray[np.float32]) -> str:
        return picture_uri(_heat_colours(spectrogram(picture, speech)[0]) if speech else picture)

    if speech:
        figures = _of_sound(trigger, draw)
    elif trigger.colours is not None:
        figures = _of_colours(trigger)
    else:
        figures = _of_patch(trigger, stamped)
    pairs = tuple((draw(a), draw(b)) for a, b in zip(clean, stamped, strict=True))
    return TriggerPictures(figures, pairs)


def _of_patch(trigger: Trigger, stamped: Sequence[npt.NDArray[np.float32]]) -> tuple[Figure, ...]:
    mask, pattern = trigger.mask, trigger.pattern
    figures = (
        Figure(picture_uri(mask[None]), "mask: where"),
        Figure(picture_uri(pattern), "pattern"),
        Figure(picture_uri(pattern * mask), "trigger: pattern in mask"),
    )
    if trigger.heat is None or not stamped:
        return figures
    grey = stamped[0].mean(axis=0, keepdims=True)
    over = picture_uri((0.35 * grey + 0.65 * _heat_colours(trigger.heat)).astype(np.float32))
    return (*figures, Figure(over, "evidence (Grad-CAM)"))


def _of_colours(trigger: Trigger) -> tuple[Figure, ...]:
    channels, height, width = trigger.pattern.shape
    chart = colour_chart(channels, (height, width))
    return (
        Figure(picture_uri(chart), "colours as they are"),
        Figure(picture_uri(trigger.pattern), "what the trigger makes of them"),
    )


def _of_sound(trigger: Trigger, draw: Callable[[npt.NDArray[np.float32]], str]) -> tuple[Figure, ...]:
    """Mask and pattern as MFCC, and how the stamped silence would sound."""
    silence = np.full_like(trigger.pattern, 0.5)
    silence[..., 0] = 0
    return (
        Figure(picture_uri(upright(trigger.mask[None])), "mask over time (to the right) and MFCC (upwards)"),
        Figure(picture_uri(upright(trigger.pattern * trigger.mask)), "trigger: MFCC in mask"),
        Figure(draw(trigger.onto(silence)), "spectrogram of the trigger in silence"),
    )


def picture_uri(values: npt.NDArray[np.floating]) -> str:
    """A PNG data URI of pixel values in [0, 1], (channels, height, width); not 1 or 3 channels: their mean."""
    picture = to_picture(values.astype(np.float32))
    if picture.shape[0] not in {1, 3}:
        picture = picture.mean(axis=0, keepdims=True).astype(np.uint8)
    image = Image.fromarray(picture[0] if picture.shape[0] == 1 else picture.transpose(1, 2, 0))
    image.thumbnail((8 * _LARGEST, 8 * _LARGEST))
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _heat_colours(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    place = np.clip(heat, 0, 1) * (len(_HEAT) - 1)
    colours = [np.interp(place, range(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)]
    return (np.stack(colours) / 255).astype(np.float32)


def ranking_svg(labels: Sequence[LabelFinding], pixels: int) -> str:
    """All labels by mask size, smallest first: a row a label, its finding told by shape, colour and word.

    Args:
        labels: Findings.
        pixels: Of one image.

    Returns:
        An ``<svg>`` element; colours come from the page's classes.
    """
    ranked = sorted(labels, key=lambda f: f.mask_size)
    marked = [f for f in ranked if f.finding is not Finding.CLEAN]
    shown = (
        ranked if len(ranked) <= _ROWS else sorted({id(f): f for f in [*marked, *ranked]}.values(), key=_first)[:_ROWS]
    )
    shown = sorted(shown, key=lambda f: f.mask_size)
    # Room for the longest name and for what is said beside the last dot, in the type of narrow screens (report.css).
    left, right, row, top = 24 + 10 * max(len(_row_name(f)) for f in shown), 190, 24, 30
    width, height = left + 320 + right, top + row * len(shown) + 34
    largest = _round_up(max([f.mask_size for f in ranked] + [1.0]))
    scale = (width - left - right) / largest
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" class="plot">',
        "<title>Mask size of every label's reconstructed trigger</title>",
    ]
    for tick in range(5):
        x = left + scale * largest * tick / 4
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 30}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{top - 12}" text-anchor="middle">{largest * tick / 4:g}</text>'
        )
    for i, f in enumerate(shown):
        parts += _row(f, top + row * i + row / 2, left, scale, pixels)
    note = "pixels that the mask covers"
    if len(shown) < len(ranked):
        note += f" (the {len(shown)} smallest and marked of {len(ranked)} labels)"
    parts.append(f'<text class="tick" x="{left}" y="{height - 8}">{note}</text></svg>')
    return "".join(parts)


def index_svg(labels: Sequence[LabelFinding]) -> str:
    """All labels' anomaly indices on one line, and both thresholds; empty if the detector has none.

    Args:
        labels: Findings.

    Returns:
        An ``<svg>`` element, or nothing.
    """
    shown = [f for f in labels if "anomaly_index" in f.metrics]
    if not shown:
        return ""
    thresholds = {name: shown[0].metrics[f"threshold_{name}"] for name in ("classic", "calibrated")}
    width, height, left, top, bottom = 660, 200, 24, 44, 150
    low = min(0.0, *(f.metrics["anomaly_index"] for f in shown))
    high = max(1.25 * max(thresholds.values()), *(f.metrics["anomaly_index"] for f in shown))
    low, high = max(low, -high), min(high, _FARTHEST * max(thresholds.values()))
    scale = (width - 2 * left) / (high - low)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" class="plot">',
        "<title>Anomaly index of every label, and the two thresholds</title>",
        f'<line class="stem" x1="{left}" x2="{width - left}" y1="{bottom}" y2="{bottom}"/>',
    ]
    for (name, value), y in zip(thresholds.items(), (18, 36), strict=True):
        x = left + scale * (value - low)
        said = f"{name} threshold {value:.1f}"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 4}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{said}</text>')
    for number, f in enumerate(sorted(shown, key=lambda f: f.label)):
        index = f.metrics["anomaly_index"]
        x = left + scale * (min(max(index, low), high) - low)
        y = top + 16 + 11 * (number % _STAGGERED)
        parts.append(_dot(f.finding, x, y))
        if f.finding is not Finding.CLEAN and len(shown) <= _ROWS:
            named = f'x="{x - 12:.1f}" y="{y + 4:.1f}" text-anchor="end"'
            parts.append(f'<text class="name {f.finding.value}" {named}>{escape(_row_name(f))}: {index:.1f}</text>')
    for value in (low, 0.0, high):
        x = left + scale * (value - low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:.3g}</text>')
    note = "anomaly index: how many robust deviations the mask is smaller than the median label's"
    parts.append(f'<text class="tick" x="{left}" y="{height - 10}">{note}</text></svg>')
    return "".join(parts)


_FARTHEST = 6  # times the threshold: an index beyond is drawn at the edge, and its number says where it is
_STAGGERED = 8  # heights that dots take in turn, so that few cover another


def _dot(finding: Finding, x: float, y: float) -> str:
    """A finding's mark, told by shape and colour."""
    kind = finding.value
    return {
        Finding.INFECTED: f'<path class="{kind}" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7-7z"/>',
        Finding.CLEAN: f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
        Finding.INCONCLUSIVE: f'<path class="{kind}" d="M{x:.1f} {y - 7:.1f}l7 12h-14z"/>',
    }[finding]


def _first(finding: LabelFinding) -> tuple[bool, float]:
    return finding.finding is Finding.CLEAN, finding.mask_size


def _row(f: LabelFinding, y: float, left: float, scale: float, pixels: int) -> list[str]:
    x = left + scale * f.mask_size
    kind = f.finding.value
    said = f"{f.mask_size:.0f} px ({f.mask_size / pixels:.0%}), {f.attack_success:.0%}"
    word = "" if f.finding is Finding.CLEAN else f" {kind}"
    return [
        f'<line class="stem" x1="{left}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
        _dot(f.finding, x, y),
        f'<text class="name {kind}" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(_row_name(f))}</text>',
        f'<text class="said" x="{x + 12:.1f}" y="{y + 4:.1f}">{said}{word}</text>',
    ]


def _row_name(f: LabelFinding) -> str:
    return str(f.label) if f.name == str(f.label) else f"{f.label} {clean_text(f.name, 16)}"


def _round_up(value: float) -> float:
    """The next number of one or two figures that four divides evenly enough for ticks."""
    step = 10 ** max(0, len(str(int(value))) - 2)
    return float(-(-value // (4 * step)) * 4 * step)
