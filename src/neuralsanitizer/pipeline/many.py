"""Scanning many models of one task: what the owner of a registry runs at night."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import InputError
from neuralsanitizer.execution.executors import Executor
from neuralsanitizer.execution.progress import NoProgress, Progress
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.pipeline.scanning import build_detector, scan
from neuralsanitizer.records import IndexEntry, Run
from neuralsanitizer.storage import RunFolder

__all__ = ["folder_names", "scan_many"]


def scan_many(
    models: Sequence[Path],
    load: Callable[[Path], tuple[SuspectModel, CleanSet]],
    *,
    output: str | os.PathLike[str],
    method: str = "neural-sanitizer",
    preset: str = "default",
    seed: int = 0,
    cache: Path | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Iterator[IndexEntry]:
    """Scan models one after the other, and yield what became of each; one that cannot be scanned stops no other.

    A model whose finished scan is in its folder already, of the same file, images and settings, is not scanned again;
    an interrupted scan goes on.

    Args:
        models: Weights files.
        load: Opens one, and gives the clean images for it.
        output: Folder of the run folders, one a model: :func:`folder_names` and the first digits of the file's hash.
        method: One of :data:`neuralsanitizer.pipeline.METHODS`.
        preset: Of its settings.
        seed: Of every scan.
        cache: Folder of references that the scans share; by default ``cache`` in ``output``.
        executor: Where shards of labels are worked on.
        progress: Where to say how far it is.

    Raises:
        UsageError: There is no such method or preset.
    """
    output, progress = Path(output), progress or NoProgress()
    detector = build_detector(method, preset, cache or output / "cache")
    for number, (path, name) in enumerate(zip(models, folder_names(models), strict=True), start=1):
        progress.note(f"{number} of {len(models)}: {path}")
        started = time.perf_counter()
        try:
            model, clean = load(path)
            # A file that changed gets a folder of its own: the old run stays as it is.
            folder = output / f"{name}-{model.sha256[:_SHORT]}"
            saved = scan(
                model,
                clean,
                method=detector,
                seed=seed,
                output=folder,
                resume=(RunFolder(folder).state / "key").is_file(),
                executor=executor,
                progress=progress,
            )
        except InputError as error:
            progress.note(f"{path}: {error}")
            yield IndexEntry(str(path), name, "", None, str(error), (), 0.0, _seconds(started))
            continue
        yield _entry(path, folder.name, saved.run, _seconds(started))


_SHORT = 8  # digits of a hash that tell a registry's files apart


def _entry(path: Path, name: str, run: Run, seconds: float) -> IndexEntry:
    return IndexEntry(
        model=str(path),
        folder=name,
        sha256=run.model.sha256,
        finding=run.verdict.finding,
        reason=run.verdict.reason,
        infected=run.verdict.infected_labels,
        clean_accuracy=run.self_check.clean_accuracy,
        seconds=seconds,
    )


def _seconds(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def folder_names(models: Sequence[Path]) -> list[str]:
    """A name for each model's run folder: that of its file, with those of its folders as far as they tell it apart.

    >>> folder_names([Path("a/model.pt"), Path("b/model.pt"), Path("c/other.pt")])
    ['a-model', 'b-model', 'other']
    """
    names = [path.stem for path in models]
    for depth in range(1, max((len(path.parts) for path in models), default=1)):
        doubled = {name for name in names if names.count(name) > 1}
        if not doubled:
            return names
        names = [
            "-".join((*path.parts[-depth - 1 : -1], path.stem)) if name in doubled else name
            for path, name in zip(models, names, strict=True)
        ]
    return [f"{name}-{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]
