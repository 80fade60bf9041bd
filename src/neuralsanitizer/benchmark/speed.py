"""How fast a scan is, held against the least that its own work can cost.

A scan shows images to networks: to train references on (forward, and backward to the weights), to search for triggers
(forward, and backward to the images), and to look (forward alone). All are counted while the scan runs. The floor is
the time that the same numbers of images take in a plain loop on the same device, in the same number format, at the best
of several batch sizes: what no scheduling of the same work can beat.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.benchmark.ablations import detector_named
from neuralsanitizer.benchmark.grid import Case
from neuralsanitizer.benchmark.run import Bench
from neuralsanitizer.benchmark.tables import markdown_table
from neuralsanitizer.data import CleanSet
from neuralsanitizer.detectors.base import STAGE, Detector
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.executors import EXECUTORS, executor_named
from neuralsanitizer.execution.progress import Progress
from neuralsanitizer.functional.precision import autocast, fast_dtype
from neuralsanitizer.models import SuspectModel
from neuralsanitizer.provenance import environment, peak_memory_mb
from neuralsanitizer.records import EnvironmentRecord, Finding, from_json, to_json
from neuralsanitizer.storage import write_json

__all__ = [
    "KINDS",
    "Lap",
    "SpeedScore",
    "StageSpeed",
    "bench_speed",
    "count_images",
    "floors",
    "measure_speed",
    "read_speed",
    "speed_markdown",
    "timed_scan",
]

KINDS = ("train", "search", "look")
"""What images are shown to a network for."""

_BATCHES = (32, 64, 128, 256, 512)
_LEAST_SECONDS = 0.4  # that each batch size is timed for
_OTHER = "other"


@dataclass(frozen=True)
class StageSpeed:
    """One stage of a scan.

    Attributes:
        seconds: That it took.
        images: By kind of work, how many were shown to a network.
        floor: Seconds that the same work takes in a plain loop.
    """

    seconds: float
    images: dict[str, int]
    floor: float


@dataclass(frozen=True)
class Lap:
    """Another way to judge the same model, timed in the same run.

    Attributes:
        seconds: That it took.
        infected: Labels that it found infected.
    """

    seconds: float
    infected: tuple[int, ...]


@dataclass(frozen=True)
class SpeedScore:
    """A scan's time beside its floor, and beside others' time.

    Attributes:
        case: Name of the model.
        detector: ``METHOD/PRESET``.
        environment: The machine.
        threads: That torch uses.
        load_before: The machine's load average when it began.
        load_after: And when it ended.
        seconds_per_image: Of the plain loop, by kind of work.
        stages: By name.
        total: Seconds of the whole scan.
        floor: Seconds of all its work in a plain loop.
        finding: The verdict.
        infected: Labels found infected.
        others: By name.
        peak_mb: The process's largest resident set when the scan had ended, in megabytes, data and libraries included;
            ``None`` where the system does not tell.
    """

    case: str
    detector: str
    environment: EnvironmentRecord
    threads: int
    load_before: float
    load_after: float
    seconds_per_image: dict[str, float]
    stages: dict[str, StageSpeed]
    total: float
    floor: float
    finding: Finding
    infected: tuple[int, ...]
    others: dict[str, Lap] = field(default_factory=dict)
    peak_mb: float | None = None


@contextmanager
def count_images(kind: type[nn.Module]) -> Iterator[dict[str, dict[str, int]]]:
    """Count the images that networks of a class are shown while the context lasts: by stage, by kind of work.

    Args:
        kind: The class of the suspect's network; references have it too.
    """
    counts: dict[str, dict[str, int]] = {}

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if type(module) is not kind or not inputs or not isinstance(inputs[0], Tensor):
            return
        if not torch.is_grad_enabled():
            work = "look"
        elif any(parameter.requires_grad for parameter in module.parameters()):
            work = "train"
        else:
            work = "search" if inputs[0].requires_grad else "look"
        stage = counts.setdefault(STAGE.get() or _OTHER, dict.fromkeys(KINDS, 0))
        stage[work] += len(inputs[0])

    handle = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def floors(suspect: SuspectModel, clean: CleanSet) -> dict[str, float]:
    """Seconds an image of each kind of work in a plain loop, at the best batch size."""
    best = dict.fromkeys(KINDS, float("inf"))
    student = suspect.with_module(deepcopy(suspect.module))
    student.module.train().requires_grad_(True)  # noqa: FBT003 - torch's signature
    for size in _BATCHES:
        chosen = torch.arange(size) % len(clean)
        images, labels = clean.images[chosen].to(suspect.device), clean.labels[chosen].to(suspect.device)
        for work, step in _steps(suspect, student, images, labels).items():
            best[work] = min(best[work], _seconds_of(step, suspect.device) / size)
    return best


def _steps(
    suspect: SuspectModel, student: SuspectModel, images: Tensor, labels: Tensor
) -> Mapping[str, Callable[[], object]]:
    dtype = fast_dtype(suspect.device)

    def train() -> None:
        with autocast(suspect.device, dtype):
            loss = F.cross_entropy(student(images), labels)
        torch.autograd.grad(loss, list(student.module.parameters()), allow_unused=True)

    def search() -> None:
        inputs = images.clone().requires_grad_()
        with autocast(suspect.device, dtype):
            loss = F.cross_entropy(suspect(inputs), labels)
        torch.autograd.grad(loss, inputs)

    @torch.no_grad()
    def look() -> None:
        with autocast(suspect.device, dtype):
            suspect(images)

    return {"train": train, "search": search, "look": look}


def _seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Seconds a step, the mean over some time after a first one."""
    step()
    _wait(device)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < _LEAST_SECONDS:
        step()
        steps += 1
        _wait(device)
    return (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench_speed(bench: Bench, case: Case, detector: str, beside: Sequence[str] = ()) -> SpeedScore:
    """Measure one case of the grid, and others beside it, one after the other in this process.

    Args:
        bench: Where models and data are; the score goes to ``speed/``.
        case: The case; its model is trained if it was not yet.
        detector: ``METHOD/PRESET``.
        beside: Other detectors by name, with ``@EXECUTOR`` on that; or ``FILE.py:FUNCTION``, code of your own that is
            run: it is given the network, images, labels and the number of labels, and returns the infected labels.

    Raises:
        DataError: A data set is missing.
        UsageError: An unknown detector, or a file without the function.
    """
    others = {name: _other(name) for name in beside}
    attacked, clean = bench.given(case)
    suspect, progress = attacked.model, bench.progress
    score = measure_speed(case.name, suspect, clean, detector_named(detector), seed=bench.seed, progress=progress)
    for name, other in others.items():
        progress.note(f"beside: {name}")
        lap = (
            _timed_call(other, suspect, clean)
            if callable(other)
            else timed_scan(suspect, clean, other.detector, bench.seed, progress, other.executor)
        )
        score = replace(score, others={**score.others, name: lap})
    name = f"{case.name}--{detector.replace('/', '-')}--{score.environment.dtype}"
    write_json(bench.output / "speed" / f"{name}.json", to_json(score))
    return score


_Function = Callable[[nn.Module, Tensor, Tensor, int], Sequence[int]]


@dataclass(frozen=True, eq=False)
class _Way:
    """A detector, and where its shards are worked on."""

    detector: Detector
    executor: str


def _other(name: str) -> _Way | _Function:
    path, colon, function = name.rpartition(":")
    if not (colon and path.endswith(".py")):
        detector, _, executor = name.partition("@")
        if executor and executor not in EXECUTORS:
            raise UsageError(f"unknown executor {executor!r} in {name}: choose one of {', '.join(EXECUTORS)}")
        return _Way(detector_named(detector), executor or "local")
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UsageError(f"{path} is no Python file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: _Function | None = getattr(module, function, None)
    if found is None:
        raise UsageError(f"{path} has no {function}")
    return found


def _timed_call(other: _Function, suspect: SuspectModel, clean: CleanSet) -> Lap:
    started = time.perf_counter()
    images = suspect.normalise(clean.images.to(suspect.device))
    infected = other(deepcopy(suspect.module), images, clean.labels.to(suspect.device), suspect.labels)
    return Lap(time.perf_counter() - started, tuple(infected))


def measure_speed(
    case: str, suspect: SuspectModel, clean: CleanSet, detector: Detector, *, seed: int, progress: Progress
) -> SpeedScore:
    """Scan a model, and hold the time against its floor.

    Args:
        case: Its name.
        suspect: The model.
        clean: Clean images, as for a scan.
        detector: What scans it; it must keep nothing from scans before, or these count as its own work.
        seed: Of the scan.
        progress: Where to say how far it is.
    """
    before = os.getloadavg()[0]
    with count_images(type(suspect.module)) as counts:
        found = detector.scan(suspect, clean, seed=seed, progress=progress)
    peak = peak_memory_mb()
    progress.start("plain loops", 1)
    each = floors(suspect, clean)
    timings = {name: seconds for name, seconds in found.timings.items() if name != "total"}
    timings[_OTHER] = max(0.0, found.timings["total"] - sum(timings.values()))
    stages = {}
    for name, seconds in timings.items():
        images = counts.get(name, dict.fromkeys(KINDS, 0))
        stages[name] = StageSpeed(seconds, images, sum(each[work] * count for work, count in images.items()))
    return SpeedScore(
        case=case,
        detector=f"{detector.name}/{detector.preset}",
        environment=environment(suspect.device),
        threads=torch.get_num_threads(),
        load_before=round(before, 2),
        load_after=round(os.getloadavg()[0], 2),
        seconds_per_image=each,
        stages=stages,
        total=found.timings["total"],
        floor=sum(stage.floor for stage in stages.values()),
        finding=found.verdict.finding,
        infected=found.verdict.infected_labels,
        peak_mb=peak,
    )


def speed_markdown(score: SpeedScore) -> str:
    """The stages beside their floors, and the others' times, in Markdown."""
    stages = [
        (
            name,
            f"{s.seconds:.1f}",
            *(f"{s.images[work]:,}" for work in KINDS),
            f"{s.floor:.1f}",
            _ratio(s.seconds, s.floor),
        )
        for name, s in score.stages.items()
    ]
    every = {work: sum(s.images[work] for s in score.stages.values()) for work in KINDS}
    total = ("**total**", f"{score.total:.1f}", *(f"{every[work]:,}" for work in KINDS), f"{score.floor:.1f}",
             _ratio(score.total, score.floor))  # fmt: skip
    head = (
        "stage",
        "seconds",
        "images to train on",
        "to search with",
        "to look at",
        "floor, seconds",
        "times the floor",
    )
    page = f"{score.case}, {score.detector}: {score.finding.value}, labels {_labels(score.infected)}\n\n"
    page += markdown_table(head, [*stages, total])
    page += f"\n\nLoad average {score.load_before:.1f} before, {score.load_after:.1f} after; "
    page += f"{score.threads} threads; {score.environment.dtype}."
    if score.peak_mb is not None:
        page += f" Memory at most: {score.peak_mb:,.0f} MB."
    if score.others:
        rows = [
            (name, f"{lap.seconds:.1f}", _ratio(lap.seconds, score.total), _labels(lap.infected))
            for name, lap in score.others.items()
        ]
        page += "\n\n" + markdown_table(("in the same run", "seconds", "times the scan's", "infected labels"), rows)
    return page


def _ratio(seconds: float, floor: float) -> str:
    return f"{seconds / floor:.1f}" if floor > 0 else "-"


def _labels(labels: tuple[int, ...]) -> str:
    return ", ".join(map(str, labels)) or "none"


def read_speed(folder: Path) -> dict[str, SpeedScore]:
    """The measurements in the folder ``speed`` of a benchmark folder, by file name."""
    return {
        path.stem: from_json(SpeedScore, json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((folder / "speed").glob("*.json"))
    }


def timed_scan(
    suspect: SuspectModel, clean: CleanSet, detector: Detector, seed: int, progress: Progress, executor: str = "local"
) -> Lap:
    """A scan's time and finding alone."""
    started = time.perf_counter()
    with closing(executor_named(executor)) as where:
        found = detector.scan(suspect, clean, seed=seed, progress=progress, executor=where)
    return Lap(time.perf_counter() - started, found.verdict.infected_labels)
