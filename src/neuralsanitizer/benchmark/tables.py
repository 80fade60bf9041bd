"""Tables for people, made from scores alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuralsanitizer.benchmark.score import Score

__all__ = ["markdown"]


def markdown(scores: Sequence[Score]) -> str:
    """Two Markdown tables: what was found, and what repair did; wrong verdicts are marked."""
    return f"{_detection(scores)}\n\n{_repairs(scores)}"


def _detection(scores: Sequence[Score]) -> str:
    head = ("model", "clean acc.", "ASR", "detector", "planted", "found", "verdict", "right", "seconds by stage",
            "total")  # fmt: skip
    rows = [
        (
            s.case,
            f"{s.clean_accuracy:.2%}",
            _rates(s.attack_success),
            f"{s.method} {s.preset}",
            _labels(s.planted),
            _labels(s.found),
            s.finding.value,
            "yes" if s.right else "**no**",
            ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in s.timings.items() if stage != "total"),
            f"{s.timings.get('total', 0):.0f}",
        )
        for s in scores
    ]
    return _table(head, rows)


def _repairs(scores: Sequence[Score]) -> str:
    head = ("model", "detector", "clean acc. before", "after", "planted ASR before", "after", "reversed ASR after",
            "rounds", "proof", "repair s", "verify s")  # fmt: skip
    rows = [
        (
            s.case,
            f"{s.method} {s.preset}",
            f"{s.clean_accuracy:.2%}",
            f"{s.repair.clean_accuracy:.2%}",
            _rates(s.attack_success),
            _rates(s.repair.attack_success),
            f"{s.repair.reversed_success:.1%}",
            str(s.repair.rounds),
            "-" if s.repair.proof is None else s.repair.proof.value,
            f"{s.repair.repair_seconds:.0f}",
            "-" if s.repair.verify_seconds is None else f"{s.repair.verify_seconds:.0f}",
        )
        for s in scores
        if s.repair is not None
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.1%}" for rate in rates) or "-"


def _labels(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels)) or "-"
