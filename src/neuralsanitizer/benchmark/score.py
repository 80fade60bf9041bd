"""The only place where ground truth meets a verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuralsanitizer.attacks.base import AttackResult
from neuralsanitizer.data import CleanSet
from neuralsanitizer.functional import wilson
from neuralsanitizer.models import SuspectModel
from neuralsanitizer.records import Finding, ReferenceRecord, Repair, Run, Verification

__all__ = [
    "Rate",
    "Rates",
    "ReferenceScore",
    "RepairScore",
    "Score",
    "rates",
    "score_reference",
    "score_repair",
    "score_scan",
    "settings_digest",
]


@dataclass(frozen=True)
class RepairScore:
    """What a repair did to the planted triggers, which it never saw.

    Attributes:
        clean_accuracy: Of the repaired model on images that neither training nor repair saw, [0, 1].
        attack_success: Of each planted trigger on the repaired model, [0, 1].
        reversed_success: Largest attack success of a reversed trigger on the repaired model, [0, 1].
        rounds: How often the infected labels were scanned again.
        proof: Finding of the verification, if it was made.
        repair_seconds: What the repair cost.
        verify_seconds: What the verification cost.
    """

    clean_accuracy: float
    attack_success: tuple[float, ...]
    reversed_success: float
    rounds: int
    repair_seconds: float
    proof: Finding | None = None
    verify_seconds: float | None = None


@dataclass(frozen=True)
class ReferenceScore:
    """What became of the backdoor in one reference.

    Attributes:
        kind: How it was made.
        layers: For ``tuned``: which layers were re-initialised.
        clean_accuracy: On images that neither training nor scan saw, [0, 1].
        agreement: With the suspect, on the scan's held-out images, [0, 1].
        attack_success: Of each planted trigger on the reference, [0, 1].
    """

    kind: str
    layers: tuple[int, ...]
    clean_accuracy: float
    agreement: float
    attack_success: tuple[float, ...]


@dataclass(frozen=True)
class Score:
    """One scan of one model, held against the truth.

    Attributes:
        case: Name of the model.
        split: One of :data:`neuralsanitizer.benchmark.grid.SPLITS`.
        group: What the case varies.
        method: Name of the detector.
        preset: Its settings.
        seed: Of the scan.
        clean_accuracy: Of the model, [0, 1].
        attack_success: Of each planted trigger, [0, 1].
        planted: Labels that are infected in truth.
        labels: How many labels the model has.
        finding: Verdict on the model.
        found: Labels found infected.
        inconclusive: Labels left open.
        sizes: Mask size in pixels of each label's reconstructed trigger.
        successes: Attack success of each label's reconstructed trigger, [0, 1].
        transfers: Largest attack success of it on a test reference, [0, 1].
        excesses: Attack success less that of clean models in the same place, where it was compared.
        timings: Seconds by stage.
        load_average: Of the machine when the scan ended.
        repair: What the repair did, if something was found.
        transfer: Attack success of each label's trigger on every test reference, [0, 1].
        references: What became of the backdoor in each reference.
        settings: Of the scan, as :func:`settings_digest` has them; empty in scores of before it was kept.
    """

    case: str
    split: str
    group: str
    method: str
    preset: str
    seed: int
    clean_accuracy: float
    attack_success: tuple[float, ...]
    planted: tuple[int, ...]
    labels: int
    finding: Finding
    found: tuple[int, ...]
    inconclusive: tuple[int, ...]
    sizes: tuple[float, ...]
    successes: tuple[float, ...]
    transfers: tuple[float, ...]
    excesses: tuple[float | None, ...]
    timings: dict[str, float]
    load_average: float | None
    repair: RepairScore | None = None
    transfer: tuple[tuple[float, ...], ...] = ()
    references: tuple[ReferenceScore, ...] = ()
    settings: str = ""

    @property
    def unjudged(self) -> bool:
        """Whether the scan could not judge the model at all."""
        return self.finding is Finding.INCONCLUSIVE and not self.sizes

    @property
    def right(self) -> bool:
        """Whether the verdict is right: exactly the planted labels found, nothing left open in a clean model."""
        return self.found == self.planted and (bool(self.planted) or self.finding is Finding.CLEAN)


@dataclass(frozen=True)
class Rate:
    """A share of cases.

    Attributes:
        count: How many it happened in.
        total: Of how many.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (:func:`neuralsanitizer.functional.wilson`)."""
        return wilson(self.count, self.total)


@dataclass(frozen=True)
class Rates:
    """How often a detector is wrong.

    Attributes:
        missed: Planted labels that it did not find infected (FNR); those left open count as missed.
        false_alarms: Other labels that it found infected (FPR).
        left_open: Labels of all kinds that it left open.
        models_right: Models that it judged rightly: exactly the planted labels found.
    """

    missed: Rate
    false_alarms: Rate
    left_open: Rate
    models_right: Rate


def rates(scores: Sequence[Score]) -> Rates:
    """Error rates over the labels and models of some scores."""
    planted = sum(len(s.planted) for s in scores)
    labels = sum(s.labels for s in scores)
    return Rates(
        missed=Rate(sum(len(set(s.planted) - set(s.found)) for s in scores), planted),
        false_alarms=Rate(sum(len(set(s.found) - set(s.planted)) for s in scores), labels - planted),
        left_open=Rate(sum(s.labels if s.unjudged else len(s.inconclusive) for s in scores), labels),
        models_right=Rate(sum(s.right for s in scores), len(scores)),
    )


def score_scan(
    case: str,
    split: str,
    group: str,
    attacked: AttackResult,
    run: Run,
    references: tuple[ReferenceScore, ...] = (),
    repair: RepairScore | None = None,
) -> Score:
    """Hold a scan against the truth."""
    truth, labels = attacked.truth, run.verdict.labels
    return Score(
        case=case,
        split=split,
        group=group,
        method=run.method,
        preset=run.preset,
        seed=run.seed,
        clean_accuracy=truth.clean_accuracy,
        attack_success=tuple(t.attack_success for t in truth.triggers),
        planted=truth.infected_labels,
        labels=run.model.labels,
        finding=run.verdict.finding,
        found=run.verdict.infected_labels,
        inconclusive=tuple(f.label for f in labels if f.finding is Finding.INCONCLUSIVE),
        sizes=tuple(round(f.mask_size, 1) for f in labels),
        successes=tuple(f.attack_success for f in labels),
        transfers=tuple(max(f.transfer, default=0.0) for f in labels),
        excesses=tuple(f.metrics.get("excess") for f in labels),
        timings={stage: round(seconds, 1) for stage, seconds in run.timings.items()},
        load_average=run.environment.load_average,
        repair=repair,
        transfer=tuple(tuple(round(rate, 4) for rate in f.transfer) for f in labels),
        references=references,
        settings=settings_digest(run.settings),
    )


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Which settings a scan was made with, in twelve hexadecimal digits; the preset's name does not count."""
    named = {name: value for name, value in settings.items() if name != "preset"}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]


def score_reference(
    attacked: AttackResult, model: SuspectModel, record: ReferenceRecord, unseen: CleanSet
) -> ReferenceScore:
    """Measure the planted triggers on a reference."""
    return ReferenceScore(
        kind=record.kind,
        layers=record.layers,
        clean_accuracy=model.accuracy(unseen.images, unseen.labels),
        agreement=record.agreement,
        attack_success=attacked.measure(model, unseen),
    )


def score_repair(
    attacked: AttackResult, repaired: SuspectModel, unseen: CleanSet, repair: Repair, proof: Verification | None
) -> RepairScore:
    """Measure the planted triggers on a repaired model."""
    return RepairScore(
        clean_accuracy=repaired.accuracy(unseen.images, unseen.labels),
        attack_success=attacked.measure(repaired, unseen),
        reversed_success=max((t.attack_success_after for t in repair.triggers), default=0.0),
        rounds=repair.rounds,
        repair_seconds=round(repair.timings["total"], 1),
        proof=None if proof is None else proof.finding,
        verify_seconds=None if proof is None else round(proof.timings["total"], 1),
    )
