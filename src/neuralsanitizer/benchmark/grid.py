"""What is run: tasks, models, and which of them are for development and which are reported.

Nothing may be tuned on a reported case. Development and reported cases differ in seed, target and position.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from neuralsanitizer.attacks.patches import PatchSpec
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.errors import DataError, UsageError

__all__ = ["CASES", "SPLITS", "TASKS", "Case", "Task", "cases", "load_task"]

SPLITS = ("development", "reported")


@dataclass(frozen=True)
class Task:
    """A data set in three parts that share no image.

    Attributes:
        name: As on the command line.
        train: File or folder of the training set, within the data folder; ``.tar.gz`` is unpacked.
        test: Likewise the test set: the user's clean set and what truth is measured on come from it.
        clean_images: How many images of the test set the user has.
        train_images: At most so many training images; 0: all.
    """

    name: str
    train: str
    test: str
    clean_images: int
    train_images: int = 0


TASKS = {
    task.name: task
    for task in (
        Task("mnist", "mnist-train.npz", "mnist-test.npz", 5000, 20_000),
        Task("gtsrb", "gtsrb-train.tar.gz", "gtsrb-test.tar.gz", 4000),
    )
}


@dataclass(frozen=True)
class Case:
    """One model of the benchmark.

    Attributes:
        name: Unique.
        split: ``development`` or ``reported``.
        task: Name in :data:`TASKS`.
        patches: Its backdoors; none: a clean model.
        config: Architecture, schedule, poisoning rate, seed.
    """

    name: str
    split: str
    task: str
    patches: tuple[PatchSpec, ...]
    config: AttackConfig


def _mnist(name: str, split: str, architecture: str, seed: int, *patches: PatchSpec) -> Case:
    return Case(name, split, "mnist", patches, AttackConfig(architecture, 10, epochs=4, seed=seed))


def _gtsrb(name: str, split: str, seed: int, *patches: PatchSpec) -> Case:
    return Case(name, split, "gtsrb", patches, AttackConfig("gtsrb-cnn", 43, epochs=5, learning_rate=1e-3, seed=seed))


CASES = (
    _mnist("dev-mnist-small-4x4", "development", "mnist-cnn-small", 1, PatchSpec(0, 4)),
    _mnist("dev-mnist-small-14x14", "development", "mnist-cnn-small", 2, PatchSpec(5, 14)),
    _mnist("dev-mnist-small-clean", "development", "mnist-cnn-small", 3),
    _mnist("dev-mnist-4x4", "development", "mnist-cnn", 4, PatchSpec(2, 4, "left")),
    _mnist("dev-mnist-14x14", "development", "mnist-cnn", 6, PatchSpec(9, 14, "top-right")),
    _mnist("dev-mnist-clean", "development", "mnist-cnn", 5),
    _gtsrb("dev-gtsrb-4x4", "development", 1, PatchSpec(33, 4)),
    _mnist("mnist-4x4", "reported", "mnist-cnn", 101, PatchSpec(7, 4)),
    _mnist("mnist-14x14", "reported", "mnist-cnn", 102, PatchSpec(3, 14)),
    _mnist("mnist-clean", "reported", "mnist-cnn", 103),
    _mnist("mnist-small-4x4", "reported", "mnist-cnn-small", 104, PatchSpec(4, 4, "top-left")),
    _mnist("mnist-small-14x14", "reported", "mnist-cnn-small", 105, PatchSpec(8, 14, "bottom-left")),
    _mnist("mnist-small-clean", "reported", "mnist-cnn-small", 106),
    _gtsrb("gtsrb-4x4", "reported", 101, PatchSpec(14, 4)),
    _gtsrb("gtsrb-clean", "reported", 102),
)


def cases(split: str, only: str = "") -> tuple[Case, ...]:
    """The cases of a split whose name contains ``only``.

    Raises:
        UsageError: There is no such split, or no case is left.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    chosen = tuple(case for case in CASES if case.split == split and only in case.name)
    if not chosen:
        raise UsageError(f"no case of the split {split!r} has {only!r} in its name")
    return chosen


def load_task(task: Task, data: Path, cache: Path, note: Callable[[str], None]) -> tuple[CleanSet, CleanSet, CleanSet]:
    """The training set, the user's clean set, and the images that truth is measured on.

    Args:
        task: Which.
        data: Folder of the data sets.
        cache: Where archives are unpacked.
        note: Told what takes time.

    Raises:
        DataError: The folder lacks a file.
    """
    train = load_clean_set(_unpacked(data / task.train, cache, note), limit=task.train_images or None)
    test = load_clean_set(_unpacked(data / task.test, cache, note), shape=(*train.images.shape[1:],))
    clean, unseen = test.split([task.clean_images / len(test)], seed=0)
    return train, clean, unseen


def _unpacked(path: Path, cache: Path, note: Callable[[str], None]) -> Path:
    if not path.exists():
        raise DataError(f"the benchmark needs {path.name} in {path.parent} (--data)")
    if not path.name.endswith(".tar.gz"):
        return path
    folder = cache / path.name.removesuffix(".tar.gz")
    done = folder.with_suffix(".unpacked")
    if not done.exists():
        note(f"unpacking {path.name}")
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        done.touch()
    inner = list(folder.iterdir())
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else folder
