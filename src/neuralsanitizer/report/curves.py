"""Line plots of a report, as inline SVG: how a pruning went, and what a filter lets pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from neuralsanitizer.records import FilteredLabel, PrunedShare
from neuralsanitizer.report.text import clean_text

__all__ = ["pruning_svg", "roc_svg"]

_LEFT, _TOP, _SIDE, _RIGHT, _BOTTOM = 64, 24, 320, 190, 56


@dataclass(frozen=True)
class _Line:
    """Points in [0, 1] x [0, 1], told from other lines by colour, dashes and the word at its end."""

    name: str
    kind: str
    points: tuple[tuple[float, float], ...]


def pruning_svg(curve: Sequence[PrunedShare]) -> str:
    """Attack success and clean accuracy by the share of neurons silenced, layer by layer."""
    lines = []
    for layer in dict.fromkeys(point.layer for point in curve):
        of = [point for point in curve if point.layer == layer]
        where = "neurons" if layer == "dense" else "channels"
        lines += [
            _Line(f"attack success, {where}", "infected", tuple((p.share, p.attack_success) for p in of)),
            _Line(f"clean accuracy, {where}", "clean", tuple((p.share, p.clean_accuracy) for p in of)),
        ]
    most = max((point.share for point in curve), default=1.0) or 1.0
    return _plot("What pruning did", "share of neurons silenced", "rate", lines, most)


def roc_svg(labels: Sequence[FilteredLabel]) -> str:
    """Share of stamped images that pass, by the share of clean images flagged, a line a label."""
    kinds = ("infected", "clean", "inconclusive")
    lines = [
        _Line(f"label {label.label}", kinds[i % len(kinds)], tuple((p.false_alarms, p.missed) for p in label.curve))
        for i, label in enumerate(labels[:_LINES])
    ]
    return _plot("What the filter lets pass", "clean images flagged", "stamped images that pass", lines, 1.0)


_LINES = 6  # more labels than these cannot be told apart


def _plot(title: str, across: str, upwards: str, lines: Sequence[_Line], most: float) -> str:
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" class="plot">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in range(5):
        x, y = _LEFT + _SIDE * tick / 4, _TOP + _SIDE * (1 - tick / 4)
        parts += [
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + _SIDE}"/>',
            f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text class="tick" x="{x:.1f}" y="{_TOP + _SIDE + 20}" text-anchor="middle">{most * tick / 4:.0%}</text>',
            f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick / 4:.0%}</text>',
        ]
    taken: list[float] = []
    for number, line in enumerate(lines):
        if not line.points:
            continue
        places = [(_LEFT + _SIDE * x / most, _TOP + _SIDE * (1 - y)) for x, y in line.points]
        dashes = f' stroke-dasharray="{4 + 3 * (number // 2)} 3"' if number > 1 else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        beside = _free(places[-1][1] + 4, taken)
        taken.append(beside)
        parts += [
            f'<polyline class="line {line.kind}" points="{path}"{dashes}/>',
            f'<text class="said" x="{_LEFT + _SIDE + 10}" y="{beside:.1f}">{escape(clean_text(line.name, 24))}</text>',
        ]
    parts += [
        f'<text class="tick" x="{_LEFT}" y="{height - 12}">{escape(across)}</text>',
        f'<text class="tick" x="{_LEFT}" y="{_TOP - 10}">{escape(upwards)}</text></svg>',
    ]
    return "".join(parts)


def _free(y: float, taken: Sequence[float]) -> float:
    """The nearest place below ``y`` where a line's name covers no other's."""
    while any(abs(y - other) < _SPACE for other in taken):
        y += 1
    return y


_SPACE = 16
