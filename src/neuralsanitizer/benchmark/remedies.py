"""What is done about a backdoor once it was found: all methods of repair, the filter; and how like it the find is.

Ground truth meets the remedies here, and only here: none of them sees a planted trigger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralsanitizer.attacks.base import AttackResult
from neuralsanitizer.benchmark.grid import Case
from neuralsanitizer.benchmark.run import DETECTORS, Bench, Scanned
from neuralsanitizer.benchmark.score import RepairScore, score_repair
from neuralsanitizer.config import FilterConfig
from neuralsanitizer.data import CleanSet
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.errors import DataError, ModelError, UsageError
from neuralsanitizer.functional import stamped_with
from neuralsanitizer.mitigation.filtering import SCORES, InputFilter, Score, fit_filter
from neuralsanitizer.models import SuspectModel
from neuralsanitizer.models.activations import penultimate
from neuralsanitizer.pipeline import REPAIRS, repair, verify
from neuralsanitizer.pipeline.repairing import mitigation_named
from neuralsanitizer.records import PrunedShare, RocPoint, Trigger, from_json, to_json
from neuralsanitizer.storage import write_json

__all__ = ["FilterScore", "Likeness", "RemedyScore", "Tried", "read_remedies", "score_remedies"]

_MOST = 500  # images that a rate between two models is measured on
_POINTS = 25  # of an ROC that are kept
_TOP = 0.01  # share of the neurons that are compared: NC section 5


@dataclass(frozen=True)
class Tried:
    """A method of repair on one model.

    Attributes:
        score: What it did to the planted triggers; ``None`` if it cannot be applied to the network.
        complete: Whether its own last scan found nothing any more; of ``auto``, whether a method passed everything.
        kept: The method that ``auto`` kept.
        curve: What pruning did on its way.
        reason: Why it cannot be applied; empty if it can.
    """

    score: RepairScore | None
    complete: bool
    kept: str = ""
    curve: tuple[PrunedShare, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class FilterScore:
    """A filter on one model.

    Attributes:
        false_alarms: Share of unseen clean images that it flags, [0, 1].
        false_alarms_of_judged: The same, of those alone that the model sends to an infected label.
        missed: Of each planted trigger, share of the attacks that succeed and are not flagged, [0, 1].
        attacks: Of each planted trigger, how many attacks succeed.
        curve: Misses (of all planted triggers together) by false alarms of judged images.
        seconds_per_input: Cost of an answer with the filter.
        seconds_per_input_without: Cost of one without.
        reason: Why there is none; empty if there is one.
    """

    false_alarms: float = 0.0
    false_alarms_of_judged: float = 0.0
    missed: tuple[float, ...] = ()
    attacks: tuple[int, ...] = ()
    curve: tuple[RocPoint, ...] = ()
    seconds_per_input: float = 0.0
    seconds_per_input_without: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Likeness:
    """How like a planted trigger the reversed one of its label is (NC section 5.2).

    Attributes:
        label: The label.
        planted_size: L1 norm of the planted mask, in pixels.
        reversed_size: The same of the reversed one.
        overlap: Share of the two masks' union that both cover, [0, 1].
        neurons: Share of the 1 % of neurons that each excites most that are the same, [0, 1].
        planted_left: Attack success of the planted trigger where the reversed one was unlearnt for a round, [0, 1].
        reversed_left: Attack success of the reversed trigger where the planted one was unlearnt, [0, 1].
    """

    label: int
    planted_size: float
    reversed_size: float
    overlap: float
    neurons: float
    planted_left: float
    reversed_left: float


@dataclass(frozen=True)
class RemedyScore:
    """All remedies on one model.

    Attributes:
        case: Name of the model.
        split: One of :data:`neuralsanitizer.benchmark.grid.SPLITS`.
        group: What the case varies.
        seed: Of the remedies.
        clean_accuracy: Of the model on images that neither training nor remedy saw, [0, 1].
        attack_success: Of each planted trigger, [0, 1].
        planted: Labels that are infected in truth.
        found: Labels that the scan found infected.
        repairs: By method.
        filters: By score.
        likenesses: Of planted patches whose label was found.
        detector: METHOD/PRESET of the scan that found them.
    """

    case: str
    split: str
    group: str
    seed: int
    clean_accuracy: float
    attack_success: tuple[float, ...]
    planted: tuple[int, ...]
    found: tuple[int, ...]
    repairs: dict[str, Tried] = field(default_factory=dict)
    filters: dict[str, FilterScore] = field(default_factory=dict)
    likenesses: tuple[Likeness, ...] = ()
    detector: str = DETECTORS[0]


def score_remedies(bench: Bench, cases: Iterable[Case], detector: str, methods: Sequence[str]) -> list[RemedyScore]:
    """Score all remedies on the infected models of some cases; the models are trained and scanned where they were not.

    One JSON a model and detector, in ``remedies/``; what is there is not done again, except repairs without a proof
    where proofs are wanted.

    Raises:
        DataError: A data set is missing.
        UsageError: An unknown detector or method of repair.
    """
    unknown = sorted(set(methods) - set(REPAIRS))
    if unknown:
        raise UsageError(f"unknown method of repair {unknown[0]!r}: choose some of {', '.join(REPAIRS)}")
    scores, loaded = list[RemedyScore](), dict[str, Any]()
    for case in cases:
        if case.clean:
            continue
        path = _path(bench, case, detector)
        score = _read(path) if path.exists() else None
        if score is None or _missing(bench, score, methods):
            score = _completed(bench, case, detector, bench.scanned(case, detector, loaded), score, methods, path)
        scores.append(score)
    return scores


def _path(bench: Bench, case: Case, detector: str) -> Path:
    """Where a case's score is; the first detector's have no detector in their names."""
    of = "" if detector == DETECTORS[0] else f"--{detector.replace('/', '-').replace(':', '-')}"
    return bench.output / "remedies" / f"{case.name}{of}-{bench.seed}.json"


def _missing(bench: Bench, score: RemedyScore, methods: Sequence[str]) -> list[str]:
    """Those of some methods that were not tried, or not proven where a proof is wanted."""
    if not score.found:
        return []

    def done(method: str) -> bool:
        tried = score.repairs.get(method)
        if tried is None:
            return False
        return bench.through != "verify" or tried.score is None or tried.score.proof is not None

    return [method for method in methods if not done(method)]


def _completed(
    bench: Bench,
    case: Case,
    detector: str,
    scanned: Scanned,
    score: RemedyScore | None,
    methods: Sequence[str],
    path: Path,
) -> RemedyScore:
    attacked, unseen = scanned.attacked, scanned.unseen
    if score is None:
        saved = scanned.folder.read()
        found = saved.run.verdict.infected_labels
        triggers = [saved.triggers[label] for label in found]
        score = RemedyScore(
            case=case.name,
            split=case.split,
            group=case.group,
            seed=bench.seed,
            clean_accuracy=attacked.model.accuracy(unseen.images, unseen.labels),
            attack_success=attacked.measure(attacked.model, unseen),
            planted=attacked.truth.infected_labels,
            found=found,
            filters={name: _score_filter(scanned, triggers, name, bench.seed) for name in SCORES if found},
            likenesses=_likenesses(bench, scanned, {t.label: t for t in triggers}),
            detector=detector,
        )
        write_json(path, to_json(score))
    for method in _missing(bench, score, methods):
        bench.progress.note(f"{case.name}: {method}")
        score = replace(score, repairs={**score.repairs, method: _tried(bench, scanned, method)})
        write_json(path, to_json(score))
    return score


def _tried(bench: Bench, scanned: Scanned, method: str) -> Tried:
    """Repair with one method, as a user would who believes the verdict, and prove it."""
    attacked, clean = scanned.attacked, scanned.clean
    try:
        fixed = repair(
            attacked.model, scanned.folder.path, clean, method=method, seed=bench.seed, progress=bench.progress
        )
    except ModelError as error:
        bench.progress.note(f"{method}: {error}")
        return Tried(None, complete=False, reason=str(error))
    proof = fixed.verification
    if proof is None and bench.through == "verify":
        proof = verify(
            attacked.model,
            fixed.model,
            scanned.folder.path,
            clean,
            cache=bench.references,
            progress=bench.progress,
        )
    score = score_repair(attacked, fixed.model, scanned.unseen, fixed.repair, proof)
    kept = next((a.method for a in fixed.repair.tried if a.kept), "")
    return Tried(score, fixed.repair.complete, kept, fixed.repair.curve)


def _score_filter(scanned: Scanned, triggers: Sequence[Trigger], name: Score, seed: int) -> FilterScore:
    """Fit a filter to reversed triggers, and try it on unseen images and planted ones."""
    model, unseen = scanned.attacked.model, scanned.unseen
    try:
        filter_ = fit_filter(model, triggers, scanned.clean, config=FilterConfig(score=name), seed=seed)
    except (DataError, ModelError) as error:
        return FilterScore(reason=str(error))
    clean = _suspicion(filter_, model, unseen.images)
    judged = clean[clean > -torch.inf]
    attacks = [_successful(scanned.attacked, i, unseen) for i in range(len(scanned.attacked.triggers))]
    stamped = [_suspicion(filter_, model, images) for images in attacks]
    every = torch.cat(stamped)
    return FilterScore(
        false_alarms=float((clean > 0).float().mean()),
        false_alarms_of_judged=float((judged > 0).float().mean()) if len(judged) else 0.0,
        missed=tuple(float((scores <= 0).float().mean()) if len(scores) else 0.0 for scores in stamped),
        attacks=tuple(len(scores) for scores in stamped),
        curve=_curve(judged, every),
        seconds_per_input=filter_.record.seconds_per_input,
        seconds_per_input_without=filter_.record.seconds_per_input_without,
    )


def _suspicion(filter_: InputFilter, model: SuspectModel, images: Tensor) -> Tensor:
    """How far images are over a label's threshold, the largest; minus infinity where none judges them: (N,)."""
    if not len(images):
        return torch.empty(0)
    thresholds = torch.tensor([label.threshold for label in filter_.record.labels])
    scores = filter_.scores(penultimate(model, images), model.predict(images)).cpu()
    return (scores - thresholds).amax(dim=1)


def _successful(attacked: AttackResult, number: int, unseen: CleanSet) -> Tensor:
    """Stamped images that a planted trigger sends to its label, of those that are of another one."""
    trigger, sources = attacked.triggers[number], attacked.truth.triggers[number].sources
    others = unseen.labels != trigger.label
    if sources:
        others &= torch.isin(unseen.labels, torch.tensor(sources))
    stamped = trigger.stamped(unseen.subset(others.nonzero().flatten()))
    return stamped[(attacked.model.predict(stamped) == trigger.label).cpu()]


def _curve(clean: Tensor, stamped: Tensor) -> tuple[RocPoint, ...]:
    if not len(clean) or not len(stamped):
        return ()
    thresholds = torch.quantile(clean, 1 - torch.linspace(0, 1, _POINTS).square())  # most points where alarms are few
    points = ((float((clean > t).float().mean()), float((stamped <= t).float().mean())) for t in thresholds)
    return tuple(dict.fromkeys(RocPoint(round(x, 4), round(y, 4)) for x, y in points))


def _likenesses(bench: Bench, scanned: Scanned, found: dict[int, Trigger]) -> tuple[Likeness, ...]:
    planted = [t for t in scanned.attacked.triggers if isinstance(t, Trigger) and t.label in found]
    return tuple(_likeness(bench, scanned, trigger, found[trigger.label]) for trigger in planted)


def _likeness(bench: Bench, scanned: Scanned, planted: Trigger, reverse: Trigger) -> Likeness:
    model, unseen, seed = scanned.attacked.model, scanned.unseen, bench.seed
    mine, theirs = planted.mask > _COVERED, reverse.mask > _COVERED
    mitigation = mitigation_named("unlearning", scanned.folder.read().run)

    def without(trigger: Trigger) -> SuspectModel:
        return model.with_module(mitigation.remove(model, [trigger], scanned.clean, seed=seed).module)

    (planted_left,) = success_rates([without(reverse)], planted, unseen, _MOST, seed)
    (reversed_left,) = success_rates([without(planted)], reverse, unseen, _MOST, seed)
    return Likeness(
        label=planted.label,
        planted_size=planted.size,
        reversed_size=reverse.size,
        overlap=float((mine & theirs).sum() / max(1, (mine | theirs).sum())),
        neurons=_in_common(model, [planted, reverse], unseen.images[:_MOST]),
        planted_left=planted_left,
        reversed_left=reversed_left,
    )


_COVERED = 0.1  # of a mask's value, from which a pixel counts as covered


def _in_common(model: SuspectModel, triggers: Sequence[Trigger], images: Tensor) -> float:
    """Share of the neurons that one of two triggers excites most which the other excites most, too."""
    try:
        usual = penultimate(model, images).mean(dim=0)
        gaps = [penultimate(model, stamped_with(t, images)).mean(dim=0) - usual for t in triggers]
    except ModelError:
        return 0.0
    count = max(1, round(_TOP * len(usual)))
    first, second = (set(gap.argsort(descending=True)[:count].tolist()) for gap in gaps)
    return len(first & second) / count


def read_remedies(folder: Path, detector: str = DETECTORS[0]) -> list[RemedyScore]:
    """The scores of remedies of a benchmark folder after one detector's scans, in the order of their file names."""
    scores = [_read(path) for path in sorted((folder / "remedies").glob("*.json"))]
    return [score for score in scores if score.detector == detector]


def _read(path: Path) -> RemedyScore:
    return from_json(RemedyScore, json.loads(path.read_text(encoding="utf-8")))
