"""Tables of remedies for people, made from scores alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from neuralsanitizer.benchmark.remedies import Likeness, RemedyScore, Tried
from neuralsanitizer.benchmark.score import Rate, RepairScore
from neuralsanitizer.benchmark.tables import in_percent, markdown_table, with_interval
from neuralsanitizer.records import Finding

__all__ = ["remedies_markdown", "remedy_sections"]

_HARMLESS = 0.01  # attack success of a planted trigger up to which it counts as gone


def remedies_markdown(scores: Sequence[RemedyScore]) -> str:
    """The tables of :func:`remedy_sections`, in Markdown, each under its name."""
    return "\n\n".join(f"## {name.capitalize()}\n\n{table}" for name, table in remedy_sections(scores).items())


def remedy_sections(scores: Sequence[RemedyScore]) -> dict[str, str]:
    """The tables by name: each method of repair, every repair, filters, how like the planted triggers the finds are."""
    return {
        "remedies": _methods(scores),
        "every remedy": _every(scores),
        "filters": _filters(scores),
        "likeness": _likeness(scores),
    }


def _methods(scores: Sequence[RemedyScore]) -> str:
    head = ("method", "models", "planted ASR before, mean", "after, mean", "largest", "at most 1 %",
            "clean acc. lost, mean", "most", "last scan finds nothing", "proof: clean", "seconds, mean")  # fmt: skip
    rows = []
    for method in dict.fromkeys(method for s in scores for method in s.repairs):
        of = [(s, s.repairs[method]) for s in scores if method in s.repairs]
        applied = [(s, tried, tried.score) for s, tried in of if tried.score is not None]
        models = (
            str(len(of)) if len(applied) == len(of) else f"{len(applied)} (not applicable to {len(of) - len(applied)})"
        )
        if not applied:
            rows.append((method, models, *["-"] * (len(head) - 2)))
            continue
        left = [_strongest(score) for _, _, score in applied]
        lost = [s.clean_accuracy - score.clean_accuracy for s, _, score in applied]
        proofs = [score.proof for _, _, score in applied if score.proof is not None]
        rows.append(
            (
                method,
                models,
                f"{fmean(max(s.attack_success) for s, _, _ in applied):.1%}",
                f"{fmean(left):.2%}",
                f"{max(left):.1%}",
                with_interval(Rate(sum(rate <= _HARMLESS for rate in left), len(applied))),
                f"{100 * fmean(lost):.2f}",
                f"{100 * max(lost):.2f}",
                f"{sum(tried.complete for _, tried, _ in applied)}/{len(applied)}",
                f"{sum(proof is Finding.CLEAN for proof in proofs)}/{len(proofs)}" if proofs else "-",
                f"{fmean(score.repair_seconds for _, _, score in applied):.0f}",
            )
        )
    return markdown_table(head, rows)


def _strongest(score: RepairScore) -> float:
    return max(score.attack_success, default=0.0)


def _every(scores: Sequence[RemedyScore]) -> str:
    methods = tuple(dict.fromkeys(method for s in scores for method in s.repairs))
    head = ("model", "planted", "found", "before", *methods, "auto kept")
    rows = []
    for s in scores:
        auto = s.repairs.get("auto")
        rows.append(
            (
                s.case,
                ", ".join(map(str, s.planted)),
                ", ".join(map(str, s.found)) or "-",
                f"{max(s.attack_success):.1%}, {s.clean_accuracy:.2%}",
                *(_both(s.repairs.get(method)) for method in methods),
                "-" if auto is None else auto.kept or "none",
            )
        )
    return markdown_table(head, rows)


def _both(tried: Tried | None) -> str:
    if tried is None:
        return "-"
    if tried.score is None:
        return "not applicable"
    return f"{_strongest(tried.score):.1%}, {tried.score.clean_accuracy:.2%}"


def _filters(scores: Sequence[RemedyScore]) -> str:
    head = ("model", "score", "attacks that pass (FNR)", "false alarms, of all images",
            "of those sent to the label", "an answer takes")  # fmt: skip
    rows = []
    for s in scores:
        for name, of in s.filters.items():
            if of.reason:
                rows.append((s.case, name, f"none: {of.reason}", "-", "-", "-"))
                continue
            longer = of.seconds_per_input / of.seconds_per_input_without if of.seconds_per_input_without else 1.0
            rows.append(
                (
                    s.case,
                    name,
                    in_percent(of.missed),
                    f"{of.false_alarms:.1%}",
                    f"{of.false_alarms_of_judged:.1%}",
                    f"{longer:.2f} times as long",
                )
            )
    return markdown_table(head, rows)


def _likeness(scores: Sequence[RemedyScore]) -> str:
    head = ("model", "label", "planted mask, L1", "reversed mask, L1", "overlap", "top 1 % of neurons in common",
            "planted ASR where the reversed one was unlearnt", "reversed ASR where the planted one was")  # fmt: skip
    rows = [(s.case, *_of(one)) for s in scores for one in s.likenesses]
    return markdown_table(head, rows)


def _of(one: Likeness) -> tuple[str, ...]:
    return (
        str(one.label),
        f"{one.planted_size:.0f}",
        f"{one.reversed_size:.0f}",
        f"{one.overlap:.0%}",
        f"{one.neurons:.0%}",
        f"{one.planted_left:.1%}",
        f"{one.reversed_left:.1%}",
    )
