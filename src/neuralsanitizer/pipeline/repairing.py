"""Repairing: remove what a scan found, scan again, go on until nothing is found; or try methods until one passes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from neuralsanitizer.config import UNLEARN_PRESETS, RepairConfig, UnlearnConfig, VerifyConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import Scan
from neuralsanitizer.errors import ModelError, UsageError
from neuralsanitizer.execution.progress import NoProgress, Progress
from neuralsanitizer.execution.store import FolderStore, MemoryStore, ReadThroughStore, Store
from neuralsanitizer.mitigation.base import Mitigation
from neuralsanitizer.mitigation.prune import Prune
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import save_state_dict, state_dict_hash
from neuralsanitizer.pipeline.common import before_and_after, check_same_model, open_run, parted
from neuralsanitizer.pipeline.scanning import detector_of
from neuralsanitizer.pipeline.verifying import verify
from neuralsanitizer.provenance import now
from neuralsanitizer.records import Finding, PrunedShare, Repair, RepairAttempt, Run, Trigger, Verification, to_json
from neuralsanitizer.storage import SavedRun

__all__ = ["REPAIRS", "RepairResult", "mitigation_named", "repair"]


def _unlearning(preset: str) -> Callable[[Run], Mitigation]:
    return lambda _: Unlearn(UNLEARN_PRESETS[preset])


_MITIGATIONS: dict[str, Callable[[Run], Mitigation]] = {
    "unlearning": lambda run: Unlearn(UNLEARN_PRESETS.get(run.preset, UnlearnConfig())),
    "unlearning-longer": _unlearning("longer"),
    "unlearning-neural-sanitizer": _unlearning("paper"),
    "unlearning-neural-cleanse": _unlearning("neural-cleanse"),
    "distillation": _unlearning("distillation"),
    "fine-tuning": _unlearning("fine-tuning"),
    "pruning": lambda _: Prune(),
}
_AUTO = ("unlearning", "unlearning-longer", "pruning")
"""What ``auto`` tries, in order of cost: of accuracy first, then of time. Pruning is the quickest, but costs the most
accuracy, and planted triggers survive it in some images (``bench remedies --split attacks --only
small-trojan-square-201``: 5.4 %, unlearning 0.2 %)."""

REPAIRS = (*_MITIGATIONS, "auto")
"""Names of all methods of repair."""


@dataclass(frozen=True, eq=False)
class RepairResult:
    """A repaired model, and what was done to it.

    Attributes:
        model: The repaired model, frozen.
        repair: The record.
        triggers: Every trigger that was removed, in the order of ``repair.triggers``.
        verification: The proof, which ``auto`` makes.
    """

    model: SuspectModel
    repair: Repair
    triggers: tuple[Trigger, ...]
    verification: Verification | None = None


def mitigation_named(method: str, run: Run) -> Mitigation:
    """The mitigation that a name stands for.

    Args:
        method: One of :data:`REPAIRS`, but ``auto``. ``unlearning`` is the recipe of the run's preset.
        run: The scan whose findings are removed.

    Raises:
        UsageError: There is no such method.
    """
    if method not in _MITIGATIONS:
        raise UsageError(f"unknown method of repair {method!r}: choose one of {', '.join(REPAIRS)}")
    return _MITIGATIONS[method](run)


def repair(
    model: SuspectModel,
    run: SavedRun | str | os.PathLike[str],
    clean: CleanSet,
    *,
    method: str | Mitigation = "unlearning",
    output: str | os.PathLike[str] | None = None,
    config: RepairConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> RepairResult:
    """Remove what a scan found, scan the infected labels again, and go on until nothing is found there.

    With ``auto``, methods are tried in order of cost until one passes: nothing is found any more, the clean accuracy
    fell by no more than ``config.largest_accuracy_drop``, and :func:`verify` proves it. The proof is recorded beside
    the repair. Where none passes, the one that leaves no trigger alive at the least loss of accuracy is kept, and the
    repair is not complete.

    Args:
        model: The model that was scanned; it is not changed.
        run: The scan, or its folder; in its folder the repair is recorded too.
        clean: Clean images; the same set as for the scan, or another of the task.
        method: One of :data:`REPAIRS`, or a mitigation of your own making.
        output: File to write the repaired weights to (safetensors).
        config: How often, and at what cost.
        seed: All randomness derives from it.
        progress: Where to say how far it is.

    Raises:
        RunError: The run is of another model.
        UsageError: The run found no infected label, or there is no such method.
        ModelError: The method cannot be applied to the network.
    """
    folder, saved = open_run(run)
    check_same_model(model, saved)
    if not saved.run.verdict.infected_labels:
        raise UsageError("the scan found no infected label: there is nothing to repair")
    progress, config = progress or NoProgress(), config or RepairConfig()
    references: Store = MemoryStore() if folder is None else FolderStore(folder.state)
    job = _Job(model, saved, clean, config, seed, progress, references)
    if method == "auto":
        result = _first_that_passes(job)
    else:
        mitigation = mitigation_named(method, saved.run) if isinstance(method, str) else method
        result = job.removed_by(mitigation, method if isinstance(method, str) else mitigation.name)
    if output is not None:
        digest = save_state_dict(result.model.module, Path(output))
        result.model.sha256 = digest
        record = replace(result.repair, repaired_sha256=digest, output=Path(output).name)
        proof = result.verification and replace(result.verification, repaired_sha256=digest)
        result = replace(result, repair=record, verification=proof)
    if folder is not None:
        folder.write_repair(result.repair, result.triggers)
        if result.verification is not None:
            folder.write_verification(result.verification)
    return result


@dataclass(frozen=True, eq=False)
class _Job:
    """What every method of repair starts from."""

    model: SuspectModel
    saved: SavedRun
    clean: CleanSet
    config: RepairConfig
    seed: int
    progress: Progress
    references: Store

    def removed_by(self, mitigation: Mitigation, name: str) -> RepairResult:
        """Rounds of removal and scan, with one method."""
        started, model, seed = time.perf_counter(), self.model, self.seed
        labels = self.saved.run.verdict.infected_labels
        removed = [(0, self.saved.triggers[label]) for label in labels]
        held_out, work = parted(self.clean, seed)
        clock = {"remove": 0.0, "rescan": 0.0}
        repaired, complete, rounds, curve = model, False, 0, tuple[PrunedShare, ...]()
        while rounds < self.config.rounds and not complete:
            rounds += 1
            what = f"{name}: {len(removed)} trigger{'s' * (len(removed) > 1)}, round {rounds}"
            self.progress.start(what, mitigation.steps(len(work)))
            lap = time.perf_counter()
            triggers = [trigger for _, trigger in removed]
            removal = mitigation.remove(
                model, triggers, work, seed=derive_seed(seed, rounds), advance=self.progress.advance
            )
            repaired, curve = model.with_module(removal.module), removal.curve
            clock["remove"] += time.perf_counter() - lap
            lap = time.perf_counter()
            again = self._scan_again(repaired, derive_seed(seed, "again", rounds))
            clock["rescan"] += time.perf_counter() - lap
            # A scan that could not judge, because the repair spoilt the model, has no labels: it proves nothing.
            complete = bool(again.verdict.labels) and not again.verdict.infected_labels
            removed += [(rounds, again.triggers[label]) for label in again.verdict.infected_labels]
        clock["total"] = time.perf_counter() - started
        repaired.sha256 = state_dict_hash(repaired.module)
        triggers = [trigger for _, trigger in removed]
        record = Repair(
            created=now(),
            method=name,
            seed=seed,
            source_sha256=model.sha256,
            repaired_sha256=repaired.sha256,
            output="",
            settings=to_json(mitigation.settings),
            clean_accuracy_before=model.accuracy(held_out.images, held_out.labels),
            clean_accuracy_after=repaired.accuracy(held_out.images, held_out.labels),
            held_out_images=len(held_out),
            triggers=before_and_after(model, repaired, triggers, [n for n, _ in removed], held_out, seed),
            rounds=rounds,
            complete=complete,
            timings=clock,
            curve=curve,
        )
        return RepairResult(repaired, record, tuple(triggers))

    def _scan_again(self, repaired: SuspectModel, seed: int) -> Scan:
        """Scan the infected labels of a repaired model, or all if the method compares them.

        The references are those of the first scan where they are at hand: they were made from the model before repair,
        on clean images alone, and stand for the repaired model as well.
        """
        detector = detector_of(self.saved.run)
        labels = None if detector.compares_labels else self.saved.run.verdict.infected_labels
        store = ReadThroughStore(self.references, prefix="reference-")
        return detector.scan(repaired, self.clean, seed=seed, labels=labels, progress=self.progress, store=store)


def _first_that_passes(job: _Job) -> RepairResult:
    """Try methods in order of cost, and keep the first that passes; else the best."""
    attempts, results = list[RepairAttempt](), list[RepairResult]()
    shared = MemoryStore()  # the proofs' references: made once, from one seed, and never those of the scan
    for name in _AUTO:
        try:
            result = job.removed_by(mitigation_named(name, job.saved.run), name)
        except ModelError as error:
            attempts.append(RepairAttempt(name, False, 0.0, 1.0, 0, None, str(error), 0.0))  # noqa: FBT003
            job.progress.note(f"{name}: {error}")
            continue
        result, attempt = _proven(job, result, shared)
        attempts.append(attempt)
        results.append(result)
        job.progress.note(f"{name}: {attempt.reason}")
        if attempt.kept:
            break
    if not results:
        raise ModelError("no method of repair can be applied to this network: " + "; ".join(a.reason for a in attempts))
    best = min(results, key=_rank)
    tried = tuple(replace(a, kept=a.method == best.repair.method) for a in attempts)
    record = replace(
        best.repair,
        complete=_passed(best),
        tried=tried,
        timings={**best.repair.timings, "total": sum(a.seconds for a in tried)},
    )
    return replace(best, repair=record)


def _proven(job: _Job, result: RepairResult, shared: Store) -> tuple[RepairResult, RepairAttempt]:
    """Verify a repair that is worth it."""
    record, budget = result.repair, job.config.largest_accuracy_drop
    drop, alive = record.clean_accuracy_before - record.clean_accuracy_after, _alive(record)
    most, seconds, proof = VerifyConfig().largest_attack_success, record.timings["total"], None
    if not record.complete:
        reason = f"a backdoor is still found after {record.rounds} rounds"
    elif alive > most:
        reason = f"a reversed trigger still works on {alive:.1%} of images"
    elif drop > budget + _ROUNDING:
        reason = f"clean accuracy fell by {100 * drop:.2f} points, more than {100 * budget:.2f}"
    else:
        repaired = replace(job.saved, repair=record, repair_triggers=result.triggers)
        proof = verify(job.model, result.model, repaired, job.clean, cache=shared, progress=job.progress)
        seconds += proof.timings["total"]
        reason = proof.reason
    kept = proof is not None and proof.finding is Finding.CLEAN
    attempt = RepairAttempt(
        method=record.method,
        kept=kept,
        clean_accuracy=record.clean_accuracy_after,
        attack_success=alive,
        rounds=record.rounds,
        finding=None if proof is None else proof.finding,
        reason=reason,
        seconds=round(seconds, 1),
    )
    return replace(result, verification=proof), attempt


_ROUNDING = 1e-9


def _rank(result: RepairResult) -> tuple[bool, bool, float]:
    """Smallest for the best: what passed, then what left nothing alive, then what cost the least accuracy."""
    record = result.repair
    dead = record.complete and _alive(record) <= VerifyConfig().largest_attack_success
    return not _passed(result), not dead, record.clean_accuracy_before - record.clean_accuracy_after


def _passed(result: RepairResult) -> bool:
    return result.verification is not None and result.verification.finding is Finding.CLEAN


def _alive(repair: Repair) -> float:
    """Largest attack success of a reversed trigger after a repair."""
    return max((t.attack_success_after for t in repair.triggers), default=0.0)
