"""The papers' tables, from our scores: what other thresholds would have said, and what became of the backdoors.

A scan keeps for each label its attack success and how far its trigger transfers to each reference, so the published
rule can be asked again with other numbers, without another scan. NeuralSanitizer's figures stand beside ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from neuralsanitizer.benchmark.score import Rate, ReferenceScore, Score
from neuralsanitizer.config import PAPER, NeuralCleanseConfig
from neuralsanitizer.functional import anomaly_indices

__all__ = ["PUBLISHED", "fewer_references", "infected_by_mad", "infected_by_transfer", "survival", "thresholds"]

PUBLISHED: dict[str, dict[float, tuple[float, float]]] = {
    "VIII": {0.4: (1.9, 9.7), 0.5: (1.9, 4.0), 0.6: (2.1, 0.9), 0.7: (2.9, 0.2), 0.8: (3.5, 0.0)},
    "IX": {1: (1.5, 3.9), 2: (1.5, 3.0), 3: (1.8, 2.0), 4: (2.0, 1.6), 5: (2.0, 1.2), 6: (2.1, 0.9)},
    "X": {1: (2.1, 0.9), 2: (1.4, 1.8), 3: (0.7, 2.8), 4: (0.5, 4.0), 5: (0.0, 4.6), 6: (0.0, 5.1)},
    "XI": {0.2: (8.2, 0.8), 0.3: (3.7, 1.1), 0.4: (1.8, 1.5), 0.5: (0.8, 3.4), 0.6: (0.0, 4.7)},
    "XII": {0.1: (5.2, 0.05), 0.15: (4.9, 0.07), 0.2: (2.4, 0.08), 0.25: (1.9, 1.0), 0.3: (1.5, 1.1)},
}
"""NeuralSanitizer's tables: FNR and FPR in percent, by the value of what is varied."""


def infected_by_transfer(
    score: Score,
    *,
    attack_success: float | None = None,
    transfer: float | None = None,
    references: int | None = None,
    transfers_to: int | None = None,
) -> tuple[int, ...]:
    """The labels that the published rule calls infected: they work on the suspect and transfer to too few references.

    Args:
        score: Of a scan whose score has the transfer to every reference.
        attack_success: Least attack success; published by default, as are all.
        transfer: Attack success on a reference from which a trigger counts as transferred.
        references: Number of test references that are asked, the first ones (``l``).
        transfers_to: Transferred to so many: an adversarial patch (``q``).
    """
    rule = PAPER.transfer
    usual = rule.threshold_many if score.labels >= rule.many else rule.threshold
    least = PAPER.verdict.least_attack_success if attack_success is None else attack_success
    limit, enough = usual if transfer is None else transfer, transfers_to or rule.transfers_to
    return tuple(
        label
        for label, (success, rates) in enumerate(zip(score.successes, score.transfer, strict=True))
        if success >= least and sum(rate >= limit for rate in rates[:references]) < enough
    )


def infected_by_mad(score: Score) -> tuple[int, ...]:
    """The labels that Neural Cleanse's statistic calls infected, on NeuralSanitizer's masks."""
    indices = anomaly_indices(score.sizes)
    least = PAPER.verdict.least_attack_success
    return tuple(
        label
        for label, (index, success) in enumerate(zip(indices, score.successes, strict=True))
        if index > NeuralCleanseConfig().threshold and success >= least
    )


def thresholds(scores: Sequence[Score]) -> list[tuple[str, str, str, Rate, Rate]]:
    """The published rule with other numbers, on the scans of one detector.

    Returns:
        Rows: what is varied, its value, the published FNR and FPR, our rate of missed labels, our false alarms.
    """
    few = [s for s in scores if s.labels < PAPER.transfer.many]
    many = [s for s in scores if s.labels >= PAPER.transfer.many]
    sweeps: tuple[tuple[str, str, Sequence[Score], Callable[[Score, float], tuple[int, ...]]], ...] = (
        ("VIII", "least attack success", scores, lambda s, x: infected_by_transfer(s, attack_success=x)),
        ("IX", "references asked (l)", scores, lambda s, x: infected_by_transfer(s, references=int(x))),
        ("X", "transfers to (q)", scores, lambda s, x: infected_by_transfer(s, transfers_to=int(x))),
        ("XI", "transfer threshold, few labels", few, lambda s, x: infected_by_transfer(s, transfer=x)),
        ("XII", "transfer threshold, many labels", many, lambda s, x: infected_by_transfer(s, transfer=x)),
    )
    rows = []
    for table, what, of, rule in sweeps:
        for value, (missed, alarms) in PUBLISHED[table].items():
            ours = _rates(of, lambda s, rule=rule, value=value: rule(s, value))  # type: ignore[misc]
            rows.append((f"{table}: {what}", f"{value:g}", f"{missed:g} %, {alarms:g} %", *ours))
    rows.append(("MAD of the sizes instead of transfer", "2", "18.1 %, -", *_rates(scores, infected_by_mad)))
    return rows


def fewer_references(scores: Sequence[Score]) -> list[tuple[int, float, float]]:
    """Lemma 1, measured: how much farther patches transfer than planted triggers, by the number of references.

    Returns:
        Rows: number of references ``l``; mean number of them that a clean label's trigger transfers to; likewise for a
        planted label's. Triggers that do not work on the suspect are left out.
    """
    rule, least = PAPER.transfer, PAPER.verdict.least_attack_success
    most = max((len(rates) for s in scores for rates in s.transfer), default=0)
    rows = []
    for count in range(1, most + 1):
        hits: dict[bool, list[int]] = {False: [], True: []}
        for s in scores:
            limit = rule.threshold_many if s.labels >= rule.many else rule.threshold
            for label, (success, rates) in enumerate(zip(s.successes, s.transfer, strict=True)):
                if success >= least:
                    hits[label in s.planted].append(sum(rate >= limit for rate in rates[:count]))
        if hits[False] and hits[True]:
            rows.append((count, fmean(hits[False]), fmean(hits[True])))
    return rows


def survival(scores: Iterable[Score]) -> list[tuple[str, int, float, float, float, float]]:
    """What became of the planted triggers in references, by how these were made.

    Returns:
        Rows: how the reference was made; how many there are, of infected models; their mean clean accuracy; their mean
        agreement with the suspect; mean and largest attack success of the planted triggers.
    """
    made: dict[str, list[ReferenceScore]] = {}
    for score in scores:
        for reference in score.references:
            if reference.attack_success:
                made.setdefault(_kind(reference), []).append(reference)
    rows = []
    for kind, references in sorted(made.items()):
        successes = [rate for r in references for rate in r.attack_success]
        accuracy, agreement = fmean(r.clean_accuracy for r in references), fmean(r.agreement for r in references)
        rows.append((kind, len(references), accuracy, agreement, fmean(successes), max(successes)))
    return rows


def _kind(reference: ReferenceScore) -> str:
    return f"{reference.kind} {{{', '.join(map(str, reference.layers))}}}" if reference.layers else reference.kind


def _rates(scores: Sequence[Score], rule: Callable[[Score], tuple[int, ...]]) -> tuple[Rate, Rate]:
    found = [(set(rule(s)), set(s.planted), s.labels) for s in scores]
    planted = sum(len(truth) for _, truth, _ in found)
    labels = sum(count for _, _, count in found)
    return (
        Rate(sum(len(truth - said) for said, truth, _ in found), planted),
        Rate(sum(len(said - truth) for said, truth, _ in found), labels - planted),
    )
