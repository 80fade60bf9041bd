"""The flow, on one screen: scan -> repair -> verify."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from neuralsanitizer.config import (
    NEURAL_CLEANSE_PRESETS,
    PRESETS,
    UNLEARN_PRESETS,
    NeuralCleanseConfig,
    NeuralSanitizerConfig,
    UnlearnConfig,
    VerifyConfig,
)
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import Detector, Scan
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.detectors.neural_cleanse import NeuralCleanse
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import RunError, UsageError
from neuralsanitizer.execution.progress import NoProgress, Progress
from neuralsanitizer.execution.store import FolderStore, MemoryStore, ReadThroughStore, Store
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import save_state_dict, state_dict_hash
from neuralsanitizer.provenance import environment, now, resume_key
from neuralsanitizer.records import Finding, Repair, RepairedTrigger, Run, Trigger, Verification, from_json, to_json
from neuralsanitizer.storage import RunFolder, SavedRun, to_picture

__all__ = ["METHODS", "RepairResult", "build_detector", "detector_of", "repair", "scan", "verify"]

METHODS = ("neural-sanitizer", "neural-cleanse")
_HELD_OUT = 0.2  # share of the clean set that repairs are measured on
_EXAMPLES = 8  # clean images that a run folder keeps, for its pictures
_EXAMPLES_FOR_MEASURING = 200  # images that attack success is measured on before and after a repair


@dataclass(frozen=True, eq=False)
class RepairResult:
    """A repaired model, and what was done to it.

    Attributes:
        model: The repaired model, frozen.
        repair: The record.
        triggers: Every trigger that was removed, in the order of ``repair.triggers``.
    """

    model: SuspectModel
    repair: Repair
    triggers: tuple[Trigger, ...]


def build_detector(method: str, preset: str = "default", cache: str | os.PathLike[str] | None = None) -> Detector:
    """The detector that a method and a preset stand for.

    Args:
        method: One of :data:`METHODS`.
        preset: ``default`` or ``paper``.
        cache: Folder for references that do not depend on the model: scans of models that share architecture, clean
            set and seed share them. Neural Cleanse has none.

    Raises:
        UsageError: There is no such method or preset.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return (
        NeuralCleanse(NEURAL_CLEANSE_PRESETS[preset])
        if method == "neural-cleanse"
        else NeuralSanitizer(PRESETS[preset], _shared(cache))
    )


def _shared(cache: str | os.PathLike[str] | None) -> Store | None:
    return FolderStore(Path(cache)) if cache is not None else None


def detector_of(run: Run, cache: str | os.PathLike[str] | None = None) -> Detector:
    """The detector that made a run, with the run's own settings.

    Args:
        run: The run.
        cache: As for :func:`build_detector`.

    Raises:
        UsageError: The run was made by a detector that is none of :data:`METHODS`.
        RunError: The settings are not those of this version.
    """
    if run.method not in METHODS:
        raise UsageError(
            f"the run was made by {run.method!r}, not by one of {', '.join(METHODS)}: scan with one of them"
        )
    if run.method == "neural-cleanse":
        return NeuralCleanse(from_json(NeuralCleanseConfig, run.settings))
    return NeuralSanitizer(from_json(NeuralSanitizerConfig, run.settings), _shared(cache))


def scan(
    model: SuspectModel,
    clean: CleanSet,
    *,
    method: str | Detector = "neural-sanitizer",
    preset: str = "default",
    seed: int = 0,
    labels: Sequence[int] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SavedRun:
    """Examine a model for backdoors.

    Args:
        model: The model.
        clean: Clean images with labels, of the task that the model was trained for.
        method: One of :data:`METHODS`, or a detector of your own making.
        preset: ``default`` or ``paper``; ignored where ``method`` is a detector.
        seed: Same seed, same machine, same verdict.
        labels: Examine only these; all by default.
        output: Folder to write the run to; nothing is written without.
        resume: Go on with an interrupted scan of ``output``.
        cache: As for :func:`build_detector`; ignored where ``method`` is a detector.
        progress: Where to say how far it is.

    Raises:
        OutputError: ``output`` holds something already, or cannot be written.
        RunError: ``resume`` on a folder of another model, data set or configuration.
        NeuralSanitizerError: As :meth:`neuralsanitizer.detectors.base.Detector.scan`.
    """
    detector = method if isinstance(method, Detector) else build_detector(method, preset, cache)
    model.sha256 = model.sha256 or state_dict_hash(model.module)
    data = clean.record(model.labels)
    store: Store = MemoryStore()
    if output is not None:
        key = resume_key(model.record(), data, detector.settings, detector.name, seed)
        store = FolderStore(RunFolder(output).claim(key, resume=resume))
    found = detector.scan(model, clean, seed=seed, labels=labels, progress=progress, store=store)
    run = Run(
        created=now(),
        method=detector.name,
        preset=detector.preset,
        seed=seed,
        model=model.record(),
        data=data,
        settings=to_json(detector.settings),
        environment=environment(model.device),
        self_check=found.self_check,
        references=found.references,
        verdict=found.verdict,
        timings=dict(found.timings),
    )
    examples = _examples(clean, seed)
    saved = SavedRun(run, found.triggers, to_picture(examples.images.numpy()), examples.labels.numpy())
    if output is not None:
        RunFolder(output).write_run(run, found.triggers, examples.images.numpy(), examples.labels.tolist())
    return saved


def repair(
    model: SuspectModel,
    run: SavedRun | str | os.PathLike[str],
    clean: CleanSet,
    *,
    output: str | os.PathLike[str] | None = None,
    config: UnlearnConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> RepairResult:
    """Remove what a scan found, scan the infected labels again, and go on until nothing is found there.

    Args:
        model: The model that was scanned; it is not changed.
        run: The scan, or its folder; in its folder the repair is recorded too.
        clean: Clean images; the same set as for the scan, or another of the task.
        output: File to write the repaired weights to (safetensors).
        config: Settings of the unlearning; by default those of the scan's preset.
        seed: All randomness derives from it.
        progress: Where to say how far it is.

    Raises:
        RunError: The run is of another model.
        UsageError: The run found no infected label.
    """
    started, progress = time.perf_counter(), progress or NoProgress()
    folder, saved = _open(run)
    config = config or UNLEARN_PRESETS.get(saved.run.preset, UnlearnConfig())
    _check_same_model(model, saved)
    removed = [(0, saved.triggers[label]) for label in saved.run.verdict.infected_labels]
    if not removed:
        raise UsageError("the scan found no infected label: there is nothing to repair")
    mitigation = Unlearn(config)
    held_out, work = _parted(clean, seed)
    references = _references_of(folder)
    clock = {"unlearn": 0.0, "rescan": 0.0}
    complete = False
    repaired = model
    rounds = 0
    while rounds < config.rounds and not complete:
        rounds += 1
        progress.start(f"remove {len(removed)} trigger{'s' * (len(removed) > 1)}, round {rounds}", mitigation.steps)
        lap = time.perf_counter()
        triggers = [trigger for _, trigger in removed]
        module = mitigation.remove(model, triggers, work, seed=derive_seed(seed, rounds), advance=progress.advance)
        repaired = model.with_module(module)
        clock["unlearn"] += time.perf_counter() - lap
        lap = time.perf_counter()
        again = _scan_again(repaired, saved, clean, references, derive_seed(seed, "again", rounds), progress)
        clock["rescan"] += time.perf_counter() - lap
        # A scan that could not judge, because the repair spoilt the model, has no labels: it proves nothing.
        complete = bool(again.verdict.labels) and not again.verdict.infected_labels
        removed += [(rounds, again.triggers[label]) for label in again.verdict.infected_labels]
    clock["total"] = time.perf_counter() - started
    digest = save_state_dict(repaired.module, Path(output)) if output is not None else state_dict_hash(repaired.module)
    repaired.sha256 = digest
    triggers = [trigger for _, trigger in removed]
    record = Repair(
        created=now(),
        method=mitigation.name,
        seed=seed,
        source_sha256=model.sha256,
        repaired_sha256=digest,
        output=Path(output).name if output is not None else "",
        settings=to_json(config),
        clean_accuracy_before=model.accuracy(held_out.images, held_out.labels),
        clean_accuracy_after=repaired.accuracy(held_out.images, held_out.labels),
        held_out_images=len(held_out),
        triggers=_before_and_after(model, repaired, triggers, [n for n, _ in removed], held_out, seed),
        rounds=rounds,
        complete=complete,
        timings=clock,
    )
    if folder is not None:
        folder.write_repair(record, triggers)
    return RepairResult(repaired, record, tuple(triggers))


def verify(
    model: SuspectModel,
    repaired: SuspectModel,
    run: SavedRun | str | os.PathLike[str],
    clean: CleanSet,
    *,
    config: VerifyConfig | None = None,
    seed: int | None = None,
    output: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Prove, without ground truth, that a repaired model lost the backdoors and kept its skill.

    Args:
        model: The model before repair.
        repaired: The model after it.
        run: The scan of ``model``, or its folder; in its folder the proof is recorded too.
        clean: Clean images.
        config: What counts as proven.
        seed: Of the fresh scan; by default one that the scan of ``model`` did not use.
        output: Folder to write the fresh scan to.
        cache: As for :func:`build_detector`.
        progress: Where to say how far it is.

    Raises:
        RunError: The run is of another model than ``model``.
    """
    started, config = time.perf_counter(), config or VerifyConfig()
    folder, saved = _open(run)
    _check_same_model(model, saved)
    seed = derive_seed(saved.run.seed, "verify") if seed is None else seed
    repaired.recognise_output(clean.images[:8])
    # What the repair did not train on, if it was given the same clean set.
    held_out, _ = _parted(clean, saved.repair.seed if saved.repair else seed)
    triggers = list(saved.repair_triggers) or [saved.triggers[label] for label in saved.run.verdict.infected_labels]
    origin = [t.round for t in saved.repair.triggers] if saved.repair else [0] * len(triggers)
    fresh = scan(repaired, clean, method=detector_of(saved.run, cache), seed=seed, output=output, progress=progress)
    before = model.accuracy(held_out.images, held_out.labels)
    after = repaired.accuracy(held_out.images, held_out.labels)
    measured = _before_and_after(model, repaired, triggers, origin, held_out, seed)
    finding, reason = _proof(measured, _least_drop(model, repaired, held_out), fresh.run, config)
    verification = Verification(
        created=now(),
        finding=finding,
        reason=reason,
        source_sha256=model.sha256,
        repaired_sha256=repaired.sha256,
        clean_accuracy_before=before,
        clean_accuracy_after=after,
        held_out_images=len(held_out),
        triggers=measured,
        scan=fresh.run,
        timings={**fresh.run.timings, "total": time.perf_counter() - started},
    )
    if folder is not None:
        folder.write_verification(verification)
    return verification


def _least_drop(model: SuspectModel, repaired: SuspectModel, held_out: CleanSet) -> float:
    """By how much accuracy fell at least, at 95 % confidence: 3 of 200 images prove no loss of 1.5 points.

    Only the images that one of the two models names rightly and the other wrongly tell them apart (McNemar).
    """
    right, still = (m.predict(held_out.images).cpu() == held_out.labels for m in (model, repaired))
    lost, won = int((right & ~still).sum()), int((still & ~right).sum())
    return (lost - won - _ONE_SIDED * math.sqrt(lost + won)) / len(held_out)


_ONE_SIDED = 1.645  # standard deviations that 95 % of a normal distribution lie over


def _proof(
    triggers: Sequence[RepairedTrigger], accuracy_drop: float, fresh: Run, config: VerifyConfig
) -> tuple[Finding, str]:
    alive = [t for t in triggers if t.attack_success_after > config.largest_attack_success]
    if fresh.verdict.finding is Finding.INFECTED:
        return Finding.INFECTED, f"a fresh scan of the repaired model still finds it infected: {fresh.verdict.reason}"
    if alive:
        worst = max(alive, key=lambda t: t.attack_success_after)
        return Finding.INFECTED, (
            f"{len(alive)} of {len(triggers)} reversed triggers still work on the repaired model "
            f"(label {worst.label}: {worst.attack_success_after:.1%})"
        )
    if fresh.verdict.finding is Finding.INCONCLUSIVE:
        return Finding.INCONCLUSIVE, f"the fresh scan could not judge: {fresh.verdict.reason}"
    if accuracy_drop > config.largest_accuracy_drop:
        return (
            Finding.INCONCLUSIVE,
            f"the triggers are gone, but clean accuracy fell, by {100 * accuracy_drop:.1f} points at least",
        )
    return Finding.CLEAN, "every reversed trigger is dead, accuracy held, and a fresh scan found no backdoor"


def _scan_again(
    repaired: SuspectModel, saved: SavedRun, clean: CleanSet, references: Store, seed: int, progress: Progress
) -> Scan:
    """Scan the infected labels of a repaired model, or all if the method compares them.

    The references are those of the first scan where they are at hand: they were made from the model before repair, on
    clean images alone, and stand for the repaired model as well.
    """
    detector = detector_of(saved.run)
    labels = None if detector.compares_labels else saved.run.verdict.infected_labels
    store = ReadThroughStore(references, prefix="reference-")
    return detector.scan(repaired, clean, seed=seed, labels=labels, progress=progress, store=store)


def _before_and_after(
    model: SuspectModel,
    repaired: SuspectModel,
    triggers: Sequence[Trigger],
    rounds: Sequence[int],
    held_out: CleanSet,
    seed: int,
) -> tuple[RepairedTrigger, ...]:
    rates = [success_rates([model, repaired], t, held_out, _EXAMPLES_FOR_MEASURING, seed) for t in triggers]
    return tuple(
        RepairedTrigger(t.label, number, t.size, before, after)
        for t, number, (before, after) in zip(triggers, rounds, rates, strict=True)
    )


def _open(run: SavedRun | str | os.PathLike[str]) -> tuple[RunFolder | None, SavedRun]:
    if isinstance(run, SavedRun):
        return None, run
    folder = RunFolder(run)
    return folder, folder.read()


def _check_same_model(model: SuspectModel, saved: SavedRun) -> None:
    model.sha256 = model.sha256 or state_dict_hash(model.module)
    if model.sha256 != saved.run.model.sha256:
        raise RunError(
            f"the run is of another model (SHA-256 {saved.run.model.sha256[:12]}..., "
            f"this one is {model.sha256[:12]}...): scan this model first"
        )
    if model.output != saved.run.model.output:
        model.output = saved.run.model.output


def _parted(clean: CleanSet, seed: int) -> tuple[CleanSet, CleanSet]:
    """What a repair is measured on, and what it trains on."""
    held_out, work = clean.split([_HELD_OUT], derive_seed(seed, "held-out"))
    return held_out, work


def _references_of(folder: RunFolder | None) -> Store:
    return MemoryStore() if folder is None else FolderStore(folder.state)


def _examples(clean: CleanSet, seed: int) -> CleanSet:
    """A few clean images of as many labels as possible, for pictures."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "examples"))
    order = torch.randperm(len(clean), generator=generator)
    labels = clean.labels[order]
    first = {int(label): int(i) for i, label in reversed(list(zip(order, labels, strict=True)))}
    chosen = list(first.values())[::-1][:_EXAMPLES]
    return replace(clean.subset(torch.tensor(chosen)), name=clean.name)
