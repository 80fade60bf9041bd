"""Tables for people, made from scores alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from neuralsanitizer.benchmark.ablations import ABLATIONS, detector_named
from neuralsanitizer.benchmark.papers import fewer_references, survival, thresholds
from neuralsanitizer.benchmark.score import Rate, Score, rates, settings_digest
from neuralsanitizer.errors import UsageError
from neuralsanitizer.records import to_json

__all__ = ["failures", "in_percent", "markdown", "markdown_table", "sections", "with_interval"]


def markdown(scores: Sequence[Score]) -> str:
    """The tables of :func:`sections` that have rows, in Markdown, each under its name."""
    filled = {name: table for name, table in sections(scores).items() if table.count("\n") >= _HEAD_LINES}
    return "\n\n".join(f"## {name.capitalize()}\n\n{table}" for name, table in filled.items())


_HEAD_LINES = 2  # names of the columns, and the line under them


def sections(scores: Sequence[Score]) -> dict[str, str]:
    """The tables by name: error rates, every model, every repair, other attacks, and what each setting is worth.

    Attacks of other kinds have tables of their own: they do not enter the rates of patches.
    """
    attacks = [s for s in _of_first_seeds(scores) if s.split == "attacks" and not _is_ablation(s)]
    scores = [s for s in scores if s.split != "attacks"] or scores
    first = _of_first_seeds(scores)
    main = [s for s in first if not _is_ablation(s)]
    paper = [s for s in main if s.transfer and (s.method, s.preset) == ("neural-sanitizer", "paper")]
    return {
        "settings": _settings([*main, *attacks]),
        "rates": _summary(main, _detector, "detector"),
        "rates of the same models": _summary(_of_all_detectors(main), _detector, "detector"),
        "groups": _summary(main, lambda s: f"{_detector(s)}: {s.group}", "detector: group"),
        "failures": failures(main),
        "models": _detection(main),
        "repairs": _repairs(main),
        "seeds": _seeds([s for s in scores if not _is_ablation(s)]),
        "ablations": _ablations(first),
        "thresholds": _thresholds(paper),
        "lemma": _lemma(paper),
        "survival": _survival(main),
        "attacks": _attacks(attacks),
        "attack rates": _summary([s for s in attacks if s.group.split()[0] in _CLAIMED], _detector, "detector"),
    }


_CLAIMED = ("trojan", "latent", "filter", "sound", "clean")
"""First words of the groups that the detector is made to find, and of clean models ("clean label" too)."""
_COMPARED = ("neural-sanitizer default", "neural-sanitizer paper", "neural-cleanse default")


def _attacks(scores: Sequence[Score]) -> str:
    """Each attack on each kind of model: what is planted, who finds it, what is left after a repair."""
    head = ("attack", "models", "clean acc.", "ASR", *(f"found by {name}" for name in _COMPARED), "ASR after repair",
            "clean acc. after")  # fmt: skip
    rows = []
    for family, group in dict.fromkeys((s.case.partition("-")[0], s.group) for s in scores):
        of = [s for s in scores if (s.case.partition("-")[0], s.group) == (family, group)]
        models = list({s.case: s for s in of}.values())
        repairs = [s.repair for s in of if s.repair is not None and _detector(s) == _COMPARED[0]]
        rows.append(
            (
                f"{group} ({family})",
                str(len(models)),
                _span([s.clean_accuracy for s in models]),
                _span([rate for s in models for rate in s.attack_success]),
                *(_found([s for s in of if _detector(s) == name]) for name in _COMPARED),
                _span([rate for repair in repairs for rate in repair.attack_success]),
                _span([repair.clean_accuracy for repair in repairs]),
            )
        )
    return markdown_table(head, rows)


def _found(scores: Sequence[Score]) -> str:
    """Planted labels found, and false alarms, over some models."""
    if not scores:
        return "-"
    measured = rates(scores)
    hits = (
        f"{measured.missed.total - measured.missed.count} of {measured.missed.total}" if measured.missed.total else ""
    )
    alarms = f"{measured.false_alarms.count} false" if measured.false_alarms.count or not hits else ""
    return ", ".join(filter(None, (hits, alarms)))


def _span(values: Sequence[float]) -> str:
    """The smallest and the largest of some rates."""
    if not values:
        return "-"
    low, high = f"{min(values):.1%}", f"{max(values):.1%}"
    return low if low == high else f"{low} to {high}"


def _settings(scores: Sequence[Score]) -> str:
    """How many scores were made with the settings that the detectors have now."""
    head = ("detector", "models scanned with the present settings", "with those of an earlier version")
    rows = []
    for name, method in dict.fromkeys((_detector(s), f"{s.method}/{s.preset}") for s in scores):
        of, present = [s.settings for s in scores if _detector(s) == name], _present_settings(method)
        rows.append((name, str(of.count(present)), str(len(of) - of.count(present))))
    return markdown_table(head, rows)


def _present_settings(detector: str) -> str:
    """The digest of the settings that ``METHOD/PRESET`` has now; of one that is gone, no score's."""
    try:
        return settings_digest(to_json(detector_named(detector).settings))
    except UsageError:
        return "gone"


def failures(scores: Sequence[Score]) -> str:
    """What went wrong, one line a label, with its numbers."""
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
    return markdown_table(head, rows)


def _detector(score: Score) -> str:
    return f"{score.method} {score.preset}"


def _of_first_seeds(scores: Sequence[Score]) -> list[Score]:
    """One scan of each model by each detector: no model counts more for having been scanned with several seeds."""
    lowest: dict[tuple[str, str], int] = {}
    for s in scores:
        lowest[_detector(s), s.case] = min(s.seed, lowest.get((_detector(s), s.case), s.seed))
    return [s for s in scores if s.seed == lowest[_detector(s), s.case]]


def _of_all_detectors(scores: Sequence[Score]) -> list[Score]:
    """Scores of the models that every detector has scanned; none where there is one detector alone."""
    by_case = {s.case: {_detector(t) for t in scores if t.case == s.case} for s in scores}
    detectors = {_detector(s) for s in scores}
    return [s for s in scores if by_case[s.case] == detectors] if len(detectors) > 1 else []


def _is_ablation(score: Score) -> bool:
    return ":" in score.preset


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
        rows.append((name, str(len(of)), str(clean), *map(with_interval, figures)))
    return markdown_table(head, rows)


def with_interval(rate: Rate) -> str:
    """A share, its counts and its 95 % interval, or a dash."""
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
            in_percent(s.attack_success),
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
    return markdown_table(head, rows)


def _repairs(scores: Sequence[Score]) -> str:
    head = ("model", "detector", "clean acc. before", "after", "planted ASR before", "after", "reversed ASR after",
            "rounds", "proof", "repair s", "verify s")  # fmt: skip
    rows = [
        (
            s.case,
            _detector(s),
            f"{s.clean_accuracy:.2%}",
            f"{s.repair.clean_accuracy:.2%}",
            in_percent(s.attack_success),
            in_percent(s.repair.attack_success),
            f"{s.repair.reversed_success:.1%}",
            str(s.repair.rounds),
            "-" if s.repair.proof is None else s.repair.proof.value,
            f"{s.repair.repair_seconds:.0f}",
            "-" if s.repair.verify_seconds is None else f"{s.repair.verify_seconds:.0f}",
        )
        for s in scores
        if s.repair is not None
    ]
    return markdown_table(head, rows)


def _seeds(scores: Sequence[Score]) -> str:
    """How many labels of a model get the same finding from every seed, where it was scanned with several."""
    looks: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        looks.setdefault((_detector(score), score.case), []).append(score)
    rows = []
    for detector in dict.fromkeys(detector for detector, _ in looks):
        several = [of for (name, _), of in looks.items() if name == detector and len(of) > 1]
        if several:
            same = sum(len({_finding(s, label) for s in of}) == 1 for of in several for label in range(of[0].labels))
            total = sum(of[0].labels for of in several)
            most = max(len(of) for of in several)
            rows.append((detector, str(len(several)), str(most), with_interval(Rate(same, total))))
    return markdown_table(("detector", "models", "seeds", "labels with one finding from all seeds"), rows)


def _finding(score: Score, label: int) -> str:
    if score.unjudged or label in score.inconclusive:
        return "inconclusive"
    return "infected" if label in score.found else "clean"


def _ablations(scores: Sequence[Score]) -> str:
    """Each detector with one thing changed, and as it is, on the same models."""
    head = ("detector", "changed", "models", "missed labels (FNR)", "unchanged", "false alarms (FPR)", "unchanged",
            "left open", "unchanged")  # fmt: skip
    usual = {(_detector(s), s.case): s for s in scores if not _is_ablation(s)}
    rows = []
    for name in dict.fromkeys(_detector(s) for s in scores if _is_ablation(s)):
        base, _, change = name.partition(":")
        pairs = [(s, usual[base, s.case]) for s in scores if _detector(s) == name and (base, s.case) in usual]
        if not pairs:
            continue
        changed, unchanged = (rates([pair[i] for pair in pairs]) for i in (0, 1))
        both = [
            text
            for figure in ("missed", "false_alarms", "left_open")
            for text in (with_interval(getattr(changed, figure)), with_interval(getattr(unchanged, figure)))
        ]
        rows.append((base, ABLATIONS[change].what if change in ABLATIONS else change, str(len(pairs)), *both))
    return markdown_table(head, rows)


def _thresholds(scores: Sequence[Score]) -> str:
    head = ("published table: what is varied", "value", "published FNR, FPR", "our FNR", "our FPR")
    rows = thresholds(scores) if scores else []
    return markdown_table(head, [(*row[:3], *map(with_interval, row[3:])) for row in rows])


def _lemma(scores: Sequence[Score]) -> str:
    head = ("references (l)", "a clean label's patch transfers to", "a planted label's trigger transfers to")
    return markdown_table(
        head, [(str(n), f"{clean:.2f}", f"{planted:.2f}") for n, clean, planted in fewer_references(scores)]
    )


def _survival(scores: Sequence[Score]) -> str:
    head = ("detector", "reference", "made", "clean acc.", "agreement", "planted ASR on it, mean", "largest")
    rows = [
        (detector, kind, str(count), *(f"{figure:.1%}" for figure in figures))
        for detector in dict.fromkeys(map(_detector, scores))
        for kind, count, *figures in survival(s for s in scores if _detector(s) == detector)
    ]
    return markdown_table(head, rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_percent(rates: Sequence[float]) -> str:
    """Several rates of one thing, or a dash."""
    return ", ".join(f"{rate:.1%}" for rate in rates) or "-"


def _labels(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels)) or "-"
