"""Tables for people, made from scores alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from neuralsanitizer.benchmark.score import Rate, Score, rates

__all__ = ["markdown"]


def markdown(scores: Sequence[Score]) -> str:
    """Markdown tables: error rates by detector and group, then every model; wrong verdicts are marked."""
    by_detector = _summary(scores, lambda s: f"{s.method} {s.preset}", "detector")
    by_group = _summary(scores, lambda s: f"{s.method} {s.preset}: {s.group}", "detector: group")
    return "\n\n".join((by_detector, by_group, _detection(scores), _repairs(scores)))


def _summary(scores: Sequence[Score], key: Callable[[Score], str], heading: str) -> str:
    """Rates of all scores that share a key, each with its Wilson interval."""
    head = (
        heading,
        "models",
        "clean ones",
        "missed labels (FNR)",
        "false alarms (FPR)",
        "left open",
        "models judged rightly",
    )
    rows = []
    for name in dict.fromkeys(key(s) for s in scores):
        of = [s for s in scores if key(s) == name]
        measured = rates(of)
        clean = sum(not s.planted for s in of)
        figures = (measured.missed, measured.false_alarms, measured.left_open, measured.models_right)
        rows.append((name, str(len(of)), str(clean), *map(_with_interval, figures)))
    return _table(head, rows)


def _with_interval(rate: Rate) -> str:
    if not rate.total:
        return "-"
    low, high = rate.interval
    return f"{rate.value:.1%} ({rate.count}/{rate.total}; {low:.1%} to {high:.1%})"


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
