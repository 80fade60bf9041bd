"""Scanning many models of one task: what the owner of a registry runs at night."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import MissingExtraError, NeuralSanitizerError
from neuralsanitizer.execution.executors import Executor
from neuralsanitizer.execution.progress import NoProgress, Progress
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import state_dict_hash
from neuralsanitizer.pipeline.scanning import build_detector, scan
from neuralsanitizer.records import IndexEntry, Run
from neuralsanitizer.storage import RunFolder

__all__ = ["folder_name", "scan_many"]


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
    an interrupted scan goes on. Whatever goes wrong with one model, its entry says.

    Args:
        models: Weights files.
        load: Opens one, and gives the clean images for it.
        output: Folder of the run folders, one a model: :func:`folder_name`.
        method: One of :data:`neuralsanitizer.pipeline.METHODS`.
        preset: Of its settings.
        seed: Of every scan.
        cache: Folder of references that the scans share; by default ``cache`` in ``output``.
        executor: Where shards of labels are worked on.
        progress: Where to say how far it is.

    Raises:
        UsageError: There is no such method or preset.
        MissingExtraError: An optional dependency is needed, for all models alike.
    """
    output, progress = Path(output), progress or NoProgress()
    detector = build_detector(method, preset, cache or output / "cache")
    for number, path in enumerate(models, start=1):
        progress.note(f"{number} of {len(models)}: {path}")
        started = time.perf_counter()
        try:
            model, clean = load(path)
            model.sha256 = model.sha256 or state_dict_hash(model.module)
            # A file that changed gets a folder of its own: the old run stays as it is.
            folder = output / folder_name(path, model.sha256)
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
        except MissingExtraError:
            raise
        except Exception as error:  # noqa: BLE001 - hostile weights, the user's network and a full memory raise anything
            reason = str(error) if isinstance(error, NeuralSanitizerError) else f"{type(error).__name__}: {error}"
            progress.note(f"{path}: {reason}")
            yield IndexEntry(str(path), "", "", None, reason, (), 0.0, _seconds(started))
            continue
        yield _entry(path, folder.name, saved.run, _seconds(started))


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


def folder_name(model: Path, sha256: str) -> str:
    """The name of a model's run folder: that of its file and the first digits of its hash.

    It depends on nothing else: whatever other models are scanned, and from wherever, a finished scan is found again.
    Copies of one file share a folder, and so a scan. A file's name may be hostile: letters and digits of any alphabet,
    ``_``, ``.`` and ``-`` are kept, and no name leads out of the folder that it is put in.

    >>> folder_name(Path("/registry/a/model.pt"), "0123456789abcdef")
    'model-01234567'
    >>> folder_name(Path("../..pt"), "0123456789abcdef")
    'model-01234567'
    """
    name = re.sub(r"[^\w.-]+", "-", model.stem).strip(".-")[:_LONGEST]
    return f"{name or 'model'}-{sha256[:_SHORT]}"


_SHORT = 8  # digits of a hash that tell files of one name apart
_LONGEST = 60  # letters of a file's name: file systems take 255 bytes, a letter has up to four
