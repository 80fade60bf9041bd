"""Scanning: a model and clean images in, a run out."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from neuralsanitizer.config import NEURAL_CLEANSE_PRESETS, PRESETS, NeuralCleanseConfig, NeuralSanitizerConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import Detector, check_device
from neuralsanitizer.detectors.neural_cleanse import NeuralCleanse
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import RunError, UsageError
from neuralsanitizer.execution.executors import Executor
from neuralsanitizer.execution.progress import Progress
from neuralsanitizer.execution.store import FolderStore, MemoryStore, Store
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import state_dict_hash
from neuralsanitizer.provenance import environment, now, scan_inputs
from neuralsanitizer.records import Run, from_json, to_json
from neuralsanitizer.storage import RunFolder, SavedRun, to_picture

__all__ = ["METHODS", "Cache", "build_detector", "detector_of", "scan"]

METHODS = ("neural-sanitizer", "neural-cleanse")
_EXAMPLES = 8  # clean images that a run folder keeps, for its pictures

Cache = str | os.PathLike[str] | Store | None
"""Where references that do not depend on the suspect are kept: a folder, or a store in memory."""


def build_detector(method: str, preset: str = "default", cache: Cache = None) -> Detector:
    """The detector that a method and a preset stand for.

    Args:
        method: One of :data:`METHODS`.
        preset: ``default`` or ``paper``; of ``neural-cleanse`` also ``stable``.
        cache: Folder for references that do not depend on the model: scans of models that share architecture, clean
            set and seed share them. Neural Cleanse has none.

    Raises:
        UsageError: There is no such method or preset.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    presets: Collection[str] = NEURAL_CLEANSE_PRESETS if method == "neural-cleanse" else PRESETS
    if preset not in presets:
        raise UsageError(f"unknown preset {preset!r} of {method}: choose one of {', '.join(presets)}")
    return (
        NeuralCleanse(NEURAL_CLEANSE_PRESETS[preset])
        if method == "neural-cleanse"
        else NeuralSanitizer(PRESETS[preset], _shared(cache))
    )


def _shared(cache: Cache) -> Store | None:
    return FolderStore(Path(cache)) if isinstance(cache, str | os.PathLike) else cache


def detector_of(run: Run, cache: Cache = None) -> Detector:
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
    cache: Cache = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> SavedRun:
    """Examine a model for backdoors.

    A finished scan that ``resume`` finds in ``output`` is judged again from what it kept. Where that changes nothing,
    it stays as it was written: with its time, its timings and its environment.

    Args:
        model: The model.
        clean: Clean images with labels, of the task that the model was trained for.
        method: One of :data:`METHODS`, or a detector of your own making.
        preset: As for :func:`build_detector`; ignored where ``method`` is a detector.
        seed: Same seed, same machine, same verdict.
        labels: Examine only these; all by default.
        output: Folder to write the run to; nothing is written without.
        resume: Go on with an interrupted scan of ``output``.
        cache: As for :func:`build_detector`; ignored where ``method`` is a detector.
        executor: Where shards of labels are worked on: :func:`neuralsanitizer.execution.executors.executor_named`. The
            findings are the same from all of them.
        progress: Where to say how far it is.

    Raises:
        OutputError: ``output`` holds something already, or cannot be written.
        RunError: ``resume`` on a folder of another model, data set or configuration.
        UsageError: The executor's processes cannot use the device that the model is on.
        NeuralSanitizerError: As :meth:`neuralsanitizer.detectors.base.Detector.scan`.
    """
    detector = method if isinstance(method, Detector) else build_detector(method, preset, cache)
    check_device(model, executor)  # before the folder is taken
    model.sha256 = model.sha256 or state_dict_hash(model.module)
    data = clean.record(model.labels)
    store: Store = MemoryStore()
    before: Run | None = None
    if output is not None:
        folder = RunFolder(output)
        inputs = scan_inputs(model.record(), data, detector.settings, detector.name, seed)
        store = FolderStore(folder.claim(inputs, resume=resume))
        before = _finished(folder)
    found = detector.scan(model, clean, seed=seed, labels=labels, progress=progress, store=store, executor=executor)
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
    if before is not None and _outcome(before) == _outcome(run):
        return SavedRun(before, found.triggers, to_picture(examples.images.numpy()), examples.labels.numpy())
    saved = SavedRun(run, found.triggers, to_picture(examples.images.numpy()), examples.labels.numpy())
    if output is not None:
        RunFolder(output).write_run(run, found.triggers, examples.images.numpy(), examples.labels.tolist())
    return saved


def _finished(folder: RunFolder) -> Run | None:
    """The run that a folder holds whole; ``None`` if there is none, or it is damaged and has to be written anew."""
    try:
        return folder.read().run if folder.exists() else None
    except RunError:
        return None


def _outcome(run: Run) -> tuple[object, ...]:
    """What a run says, whenever and wherever it was made, and whatever the model's file was called."""
    model = replace(run.model, name="", notes=())
    return model, run.method, run.preset, run.seed, run.settings, run.self_check, run.references, run.verdict


def _examples(clean: CleanSet, seed: int) -> CleanSet:
    """A few clean images of as many labels as possible, for pictures."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "examples"))
    order = torch.randperm(len(clean), generator=generator)
    labels = clean.labels[order]
    first = {int(label): int(i) for i, label in reversed(list(zip(order, labels, strict=True)))}
    chosen = list(first.values())[::-1][:_EXAMPLES]
    return replace(clean.subset(torch.tensor(chosen)), name=clean.name)
