"""Tables for people, made from scores alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from neuralsanitizer.benchmark.score import Rate, Score, rates

__all__ = ["failures", "markdown", "sections"]


def markdown(scores: Sequence[Score]) -> str:
    """All tables of :func:`sections`, in Markdown, one after the other."""
    return "\n\n".join(sections(scores).values())


def sections(scores: Sequence[Score]) -> dict[str, str]:
    """The tables by name: error rates by detector and by group, every model, every repair."""
    return {
        "rates": _summary(scores, _detector, "detector"),
        "groups": _summary(scores, lambda s: f"{_detector(s)}: {s.group}", "detector: group"),
        "models": _detection(scores),
        "repairs": _repairs(scores),
    }


def failures(scores: Sequence[Score]) -> str:
    """What went wrong, one line a model, with the numbers of the labels concerned."""
    head = ("model", "detector", "label", "what happened", "attack success", "mask px", "largest transfer", "excess")
    rows = [
        (
            s.case,
            _detector(s),
            str(label),
            what,
            f"{s.successes[label]:.0%}",
            f"{s.sizes[label]:.0f}",
            f"{s.transfers[label]:.0%}",
            "-" if s.excesses[label] is None else f"{s.excesses[label]:.2f}",
        )
        for s in scores
        for what, labels in (
            ("missed", sorted(set(s.planted) - set(s.found) - set(s.inconclusive))),
            ("missed: left open", sorted(set(s.planted) & set(s.inconclusive))),
            ("false alarm", sorted(set(s.found) - set(s.planted))),
            ("clean, left open", sorted(set(s.inconclusive) - set(s.planted))),
        )
        for label in labels
        if label < len(s.sizes)
    ]
    return _table(head, rows)


def _detector(score: Score) -> str:
    return f"{score.method} {score.preset}"


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
            _detector(s),
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
            _detector(s),
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
