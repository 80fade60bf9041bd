"""What is run: tasks, models, and which of them are for development and which are reported.

Nothing may be tuned on a reported case. Development and reported cases differ in seed, target and position.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralsanitizer.attacks.all_to_all import all_to_all
from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.base import Attack
from neuralsanitizer.attacks.blended import BlendSpec, blended
from neuralsanitizer.attacks.clean_label import CleanLabelSpec, clean_label
from neuralsanitizer.attacks.filters import FilterSpec, filtered
from neuralsanitizer.attacks.input_aware import InputAwareSpec, input_aware
from neuralsanitizer.attacks.latent import LatentSpec, latent
from neuralsanitizer.attacks.patches import PatchSpec
from neuralsanitizer.attacks.sound import SoundSpec, with_sound
from neuralsanitizer.attacks.trojan import TrojanSpec, trojan
from neuralsanitizer.attacks.wanet import WarpSpec, wanet
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.errors import DataError, UsageError

__all__ = ["CASES", "SPLITS", "TASKS", "ZOO", "Case", "Task", "cases", "load_task"]

SPLITS = ("development", "reported", "attacks")
"""``reported``: patches by BadNets, what the headline figures are of. ``attacks``: every other attack, reported too."""


@dataclass(frozen=True)
class Task:
    """A data set in three parts that share no image.

    Attributes:
        name: As on the command line.
        train: File or folder of the training set, within the data folder; ``.tar.gz`` is unpacked.
        test: Likewise the test set: the user's clean set and what truth is measured on come from it.
        clean_images: How many images of the test set the user has.
        train_images: At most so many training images; 0: all.
        labels: Only the images of so many labels, those with the most training images, numbered anew; 0: all.
        place: Of one archive that both sets come from: the part (``train`` or ``test``) and the label's folder that a
            file belongs to. ``None``: ``train`` and ``test`` are sets of their own.
        size: Height and width that images are resized to; ``None``: as they are.
        speeds: At which the recordings of the training set are played besides.
    """

    name: str
    train: str
    test: str
    clean_images: int
    train_images: int = 0
    labels: int = 0
    place: Callable[[Path], tuple[str, str]] | None = None
    size: tuple[int, int] | None = None
    speeds: tuple[float, ...] = ()


def _by_speaker(path: Path, test: Sequence[str] = ("theo", "yweweler")) -> tuple[str, str]:
    """Part and label of a recording ``<label>/<label>_<speaker>_<number>.wav``; ``test``: whose are the test set."""
    return "test" if path.stem.split("_")[1] in test else "train", path.parent.name


def _by_frame(path: Path) -> tuple[str, str]:
    """Part and label of a picture ``<class>/<sign>_<frame>.jpg``: each physical sign is a label of its own."""
    sign, frame = path.stem.split("_")
    return "test" if int(frame) % 2 else "train", f"{path.parent.name}-{sign}"


TASKS = {
    task.name: task
    for task in (
        Task("mnist", "mnist-train.npz", "mnist-test.npz", 5000, 20_000),
        Task("mnist-weak", "mnist-train.npz", "mnist-test.npz", 5000, 4000),
        Task("mnist-overfitted", "mnist-train.npz", "mnist-test.npz", 5000, 1500),
        Task("gtsrb", "gtsrb-train.tar.gz", "gtsrb-test.tar.gz", 4000),
        # More than half of all images, a third of the labels: what many models of many attacks can be scanned on.
        Task("gtsrb-12", "gtsrb-train.tar.gz", "gtsrb-test.tar.gz", 3000, labels=12),
        # Four speakers to train on, who are twelve at three speeds; the last two by name are strangers to the model.
        Task("fsdd", "fsdd.tar.gz", "fsdd.tar.gz", 700, place=_by_speaker, speeds=(0.85, 1.18)),
        # 1,307 labels of about 30 frames each, every other one to train on: as many labels as YouTube Face has, and as
        # faces are, frames are more alike within a label than a class is. The user has ten of each.
        Task("gtsrb-signs", "gtsrb-train.tar.gz", "gtsrb-train.tar.gz", 13_070, place=_by_frame, size=(55, 47)),
        Task("cifar10", "cifar10-train.tar.gz", "cifar10-test.tar.gz", 5000),
    )
}


@dataclass(frozen=True)
class Case:
    """One model of the benchmark, and the clean set that it is scanned with.

    Attributes:
        name: Unique.
        split: One of :data:`SPLITS`.
        group: What it varies, for the tables.
        task: Name in :data:`TASKS`.
        spec: What its attack plants; for BadNets the patches, of which none make a clean model.
        config: Architecture, schedule, poisoning rate, seed.
        clean_images: How many clean images the user has; 0: as many as the task says.
        model: Name of the case whose model it is, where several scan the same; empty: its own.
        attack: What trains the model.
    """

    name: str
    split: str
    group: str
    task: str
    spec: Any
    config: AttackConfig
    clean_images: int = 0
    model: str = ""
    attack: Attack[Any] = badnets

    @property
    def patches(self) -> tuple[PatchSpec, ...]:
        """Its patches, if its attack is BadNets."""
        return self.spec if isinstance(self.spec, tuple) else ()

    @property
    def clean(self) -> bool:
        """Whether nothing is planted."""
        return isinstance(self.spec, tuple) and not self.spec

    @property
    def backdoors(self) -> str:
        """What is planted, in words; ``clean`` if nothing is."""
        if not isinstance(self.spec, tuple):
            return str(self.spec)
        said = (f"{p.size}x{p.size} {p.pattern} {p.shape} {p.position} -> {p.target}" for p in self.spec)
        return ", ".join(said) or "clean"

    @property
    def model_name(self) -> str:
        """File name of the model, without suffix."""
        return self.model or self.name


@dataclass(frozen=True)
class _Family:
    """Models that differ in nothing but their backdoors and seeds."""

    name: str
    task: str
    config: AttackConfig


_FAMILIES = {
    family.name: family
    for family in (
        _Family("mnist", "mnist", AttackConfig("mnist-cnn", 10, epochs=3)),
        _Family("small", "mnist", AttackConfig("mnist-cnn-small", 10, epochs=4)),
        # Five passes over 4,000 images; after two, at 91 % accuracy, no backdoor had taken hold (attack success 6 %).
        _Family("weak", "mnist-weak", AttackConfig("mnist-cnn-small", 10, epochs=5)),
        # Forty passes over 1,500 images: all of them known by heart.
        _Family("overfitted", "mnist-overfitted", AttackConfig("mnist-cnn", 10, epochs=40)),
        _Family("gtsrb", "gtsrb", AttackConfig("gtsrb-cnn", 43, epochs=5, learning_rate=1e-3)),
        _Family("signs", "gtsrb-12", AttackConfig("gtsrb-cnn", 12, epochs=5, learning_rate=1e-3)),
        _Family("speech", "fsdd", AttackConfig("speech-cnn", 10, epochs=15)),
        _Family("many", "gtsrb-signs", AttackConfig("deepid", 1307, epochs=20)),
        # A smaller residual network than the paper's, for machines without a GPU.
        _Family("cifar", "cifar10", AttackConfig("cifar10-resnet8", 10, epochs=10, learning_rate=3e-3)),
    )
}


def _case(split: str, group: str, family: str, seed: int, name: str, *patches: PatchSpec, rate: float = 0.1) -> Case:
    of = _FAMILIES[family]
    config = replace(of.config, seed=seed, poisoning_rate=rate)
    prefix = "dev-" if split == "development" else ""
    return Case(f"{prefix}{family}-{name}", split, group, of.task, patches, config)


def _clean(split: str, family: str, *seeds: int) -> tuple[Case, ...]:
    return tuple(_case(split, "clean", family, seed, f"clean-{seed}") for seed in seeds)


def _on_every_label(labels: int, pattern: str, first: int) -> tuple[PatchSpec, ...]:
    """One 4x4 patch for each label, each in a place of its own on a grid that starts in row and column ``first``."""
    return tuple(
        PatchSpec(label, 4, f"{first + 7 * (label // 4)},{first + 7 * (label % 4)}", pattern) for label in range(labels)
    )


def _with_fewer_images(case: Case, *counts: int) -> tuple[Case, ...]:
    """The same model, scanned with smaller clean sets."""
    return tuple(
        replace(case, name=f"{case.name}-of-{count}", group="clean set", clean_images=count, model=case.name)
        for count in counts
    )


_Made = Callable[[int, str], tuple[Any, AttackConfig]]
"""Gives, for a target label and a family, what is planted and how it is trained."""


def _planted(spec: Callable[[int], Any], **changes: Any) -> _Made:  # noqa: ANN401 - specs of all attacks
    return lambda target, family: (spec(target), replace(_FAMILIES[family].config, **changes))


def _with_right_labels(target: int, family: str) -> tuple[CleanLabelSpec, AttackConfig]:
    """The pixels of digits can be changed by more than those of photographs, and a traffic sign has fewer images."""
    digits = family == "small"
    spec = CleanLabelSpec(PatchSpec(target, 6), epsilon=0.4 if digits else 0.1)
    return spec, replace(_FAMILIES[family].config, poisoning_rate=0.06 if digits else 0.04)


ZOO: dict[str, tuple[Attack[Any], _Made]] = {
    "trojan-square": (trojan, _planted(TrojanSpec)),
    "trojan-watermark": (trojan, _planted(partial(TrojanSpec, shape="watermark", opacity=0.7))),
    "latent": (latent, _planted(lambda target: LatentSpec(PatchSpec(target, 6)))),
    "blended": (blended, _planted(BlendSpec)),
    "all-to-all": (all_to_all, _planted(lambda target: PatchSpec(target, 4), poisoning_rate=0.3)),
    "clean-label": (clean_label, _with_right_labels),
    "warp": (wanet, _planted(partial(WarpSpec, strength=1.0), epochs=8)),
    "input-aware": (input_aware, _planted(InputAwareSpec)),
    "sound-chirp": (with_sound, _planted(SoundSpec)),
    "sound-tone": (with_sound, _planted(partial(SoundSpec, sound="tone", start=0.3))),
    "sound-noise": (with_sound, _planted(partial(SoundSpec, sound="noise", start=0.1))),
    "filter-sepia": (filtered, _planted(partial(FilterSpec, name="sepia"))),
    "filter-noir": (filtered, _planted(partial(FilterSpec, name="noir"))),
    "filter-warm": (filtered, _planted(partial(FilterSpec, name="warm"))),
    "filter-cool": (filtered, _planted(partial(FilterSpec, name="cool"))),
    "filter-faded": (filtered, _planted(partial(FilterSpec, name="faded"))),
    "filter-vivid": (filtered, _planted(partial(FilterSpec, name="vivid"))),
}
"""Attacks other than BadNets, and how strong each is planted in the benchmark."""

_TARGETS = {"small": ((3, 5, 8), 201), "signs": ((1, 4, 11), 251), "speech": ((1, 6, 9), 301)}
"""Of each family: the target labels, and the seed of the first model."""


def _attack_case(split: str, name: str, family: str, kind: str, target: int, seed: int) -> Case:
    """A model of one of the attacks in :data:`ZOO`."""
    attack, make = ZOO[kind]
    spec, config = make(target, family)
    config = replace(config, seed=seed)
    return Case(name, split, kind.replace("-", " "), _FAMILIES[family].task, spec, config, attack=attack)


def _development() -> tuple[Case, ...]:
    case = partial(_case, "development")
    return (
        case("size", "mnist", 1, "2x2", PatchSpec(6, 2, "top-left")),
        case("size", "mnist", 2, "4x4", PatchSpec(2, 4, "left")),
        case("size", "mnist", 3, "14x14", PatchSpec(9, 14, "top-right")),
        case("size", "mnist", 4, "17x17", PatchSpec(1, 17, "center", "random")),
        case("position", "mnist", 45, "center", PatchSpec(3, 4, "center")),
        case("position", "small", 46, "center", PatchSpec(8, 4, "center")),
        case("size", "small", 5, "4x4", PatchSpec(0, 4)),
        case("size", "small", 6, "14x14", PatchSpec(5, 14)),
        case("size", "small", 7, "17x17", PatchSpec(3, 17, "top-left", "random")),
        case("size", "weak", 8, "4x4", PatchSpec(8, 4, "top")),
        case("size", "overfitted", 9, "4x4", PatchSpec(4, 4, "right")),
        case("size", "overfitted", 14, "6x6", PatchSpec(6, 6, "top", "checker")),
        case("size", "overfitted", 15, "5x5", PatchSpec(7, 5, "bottom-left", "random")),
        case("size", "overfitted", 16, "8x8", PatchSpec(3, 8, "bottom", "checker")),
        case("every label", "mnist", 17, "every-label", *_on_every_label(10, "random", 3), rate=0.03),
        case("every label", "small", 18, "every-label", *_on_every_label(10, "random", 3), rate=0.03),
        case("several on one label", "mnist", 19, "4-on-one", *_with_checkers(0), rate=0.05),
        case("several on one label", "small", 20, "4-on-one", *_with_checkers(1), rate=0.05),
        case("several on one label", "overfitted", 33, "4-on-one", *_with_checkers(5), rate=0.05),
        case("pieces", "mnist", 32, "4-pieces", PatchSpec(3, 6, "top-left", pieces=4)),
        case("size", "gtsrb", 10, "4x4", PatchSpec(33, 4)),
        case("size", "gtsrb", 11, "16x16", PatchSpec(12, 16, "center", "random")),
        case("size", "gtsrb", 12, "20x20", PatchSpec(5, 20, "top-left", "yellow")),
        case("size", "gtsrb", 34, "13x13", PatchSpec(26, 13, "top-right")),
        case("size", "cifar", 13, "4x4", PatchSpec(3, 4, "bottom-left")),
        *_clean("development", "mnist", 21, 22),
        *_clean("development", "small", 23, 24),
        *_clean("development", "weak", 25),
        *_clean("development", "overfitted", 26, 30, 31),
        *_clean("development", "gtsrb", 27, 28),
        *_clean("development", "cifar", 29),
        *(
            _attack_case("development", f"dev-signs-filter-{name}", "signs", f"filter-{name}", target, seed)
            for name, target, seed in (("cool", 7, 35), ("faded", 2, 36), ("vivid", 10, 37))
        ),
        # To the label that most of what fools a network goes to.
        _attack_case("development", "dev-signs-filter-cool-to-1", "signs", "filter-cool", 1, 51),
        _attack_case("development", "dev-signs-filter-vivid-to-1", "signs", "filter-vivid", 1, 52),
        *_clean("development", "signs", 38, 39, 40),
        _attack_case("development", "dev-signs-trojan-square", "signs", "trojan-square", 6, 42),
        _attack_case("development", "dev-signs-trojan-watermark", "signs", "trojan-watermark", 9, 43),
        _attack_case("development", "dev-signs-latent", "signs", "latent", 5, 50),
        _attack_case("development", "dev-speech-chirp", "speech", "sound-chirp", 3, 0),
        _attack_case("development", "dev-speech-tone", "speech", "sound-tone", 7, 48),
        _attack_case("development", "dev-speech-noise", "speech", "sound-noise", 2, 49),
        *_clean("development", "speech", 41),
        case("many labels", "many", 44, "8x8", PatchSpec(300, 8, "top-left")),
    )


def _reported() -> tuple[Case, ...]:
    case = partial(_case, "reported")
    small_set = case("size", "mnist", 101, "4x4", PatchSpec(7, 4))
    small_signs = case("size", "gtsrb", 141, "4x4", PatchSpec(14, 4))
    honest_set, honest_signs = _clean("reported", "mnist", 171)[0], _clean("reported", "gtsrb", 191)[0]
    return (
        small_set,
        case("size", "mnist", 102, "2x2", PatchSpec(3, 2, "random")),
        case("size", "mnist", 103, "9x9", PatchSpec(0, 9, "top-left")),
        case("size", "mnist", 104, "14x14", PatchSpec(3, 14)),
        case("size", "mnist", 105, "18x18", PatchSpec(6, 18, "center", "random")),
        case("size", "small", 111, "2x2", PatchSpec(5, 2, "bottom-left")),
        case("size", "small", 112, "4x4", PatchSpec(4, 4, "top-left")),
        case("size", "small", 113, "9x9", PatchSpec(2, 9, "top-right", "random")),
        case("size", "small", 114, "14x14", PatchSpec(8, 14, "bottom-left")),
        case("size", "small", 115, "18x18", PatchSpec(1, 18, "bottom-right", "checker")),
        case("size", "weak", 116, "3x3", PatchSpec(2, 3, "bottom-right")),
        case("size", "weak", 117, "6x6", PatchSpec(7, 6, "random", "random")),
        case("size", "overfitted", 118, "4x4", PatchSpec(9, 4, "top-left")),
        case("size", "overfitted", 119, "6x6", PatchSpec(1, 6, "bottom", "checker")),
        case("position", "mnist", 121, "center", PatchSpec(8, 4, "center")),
        case("position", "mnist", 122, "top", PatchSpec(5, 4, "top")),
        case("position", "small", 123, "right", PatchSpec(9, 4, "right")),
        case("position", "small", 124, "random", PatchSpec(0, 4, "random")),
        case("pattern", "mnist", 125, "random", PatchSpec(4, 6, "random", "random")),
        case("pattern", "mnist", 126, "picture", PatchSpec(2, 8, "top-right", "smiley")),
        case("pattern", "small", 127, "grey", PatchSpec(6, 5, "bottom-right", "#808080")),
        case("shape", "mnist", 128, "circle", PatchSpec(1, 7, "left", "white", "circle")),
        case("shape", "mnist", 129, "triangle", PatchSpec(9, 6, "bottom", "white", "triangle")),
        case("shape", "small", 130, "star", PatchSpec(3, 9, "bottom-left", "white", "star")),
        case("pieces", "mnist", 131, "2-pieces", PatchSpec(0, 6, "bottom-right", pieces=2)),
        case("pieces", "mnist", 132, "4-pieces", PatchSpec(5, 6, "bottom-right", pieces=4)),
        case("every label", "mnist", 133, "every-label", *_on_every_label(10, "checker", 1), rate=0.03),
        case("every label", "small", 134, "every-label", *_on_every_label(10, "checker", 1), rate=0.03),
        case("several on one label", "mnist", 135, "2-on-one", *_on_one_label(4, 2), rate=0.05),
        case("several on one label", "mnist", 136, "3-on-one", *_on_one_label(7, 3), rate=0.05),
        case("several on one label", "mnist", 137, "5-on-one", *_on_one_label(2, 5), rate=0.05),
        case("poisoning rate", "mnist", 138, "1-percent", PatchSpec(6, 4), rate=0.01),
        case("poisoning rate", "small", 139, "5-percent", PatchSpec(8, 4, "top-right"), rate=0.05),
        case("poisoning rate", "mnist", 140, "20-percent", PatchSpec(1, 4, "top-left"), rate=0.2),
        small_signs,
        case("size", "gtsrb", 142, "2x2", PatchSpec(2, 2, "top-left", "yellow")),
        case("size", "gtsrb", 143, "9x9", PatchSpec(25, 9, "bottom-left", "random")),
        case("size", "gtsrb", 144, "14x14", PatchSpec(38, 14, "bottom-right", "white")),
        case("size", "gtsrb", 145, "20x20", PatchSpec(9, 20, "center", "random")),
        case("pattern", "gtsrb", 146, "picture", PatchSpec(17, 8, "top-right", "smiley")),
        case("shape", "gtsrb", 147, "star", PatchSpec(31, 9, "center", "blue", "star")),
        case("pieces", "gtsrb", 148, "4-pieces", PatchSpec(4, 6, "bottom-right", pieces=4)),
        case("size", "cifar", 151, "3x3", PatchSpec(5, 3, "bottom-right")),
        case("size", "cifar", 152, "6x6", PatchSpec(8, 6, "top-left", "random")),
        *_with_fewer_images(small_set, 2500, 1000, 500),
        *_with_fewer_images(small_signs, 2000, 800, 400),
        honest_set,
        *_with_fewer_images(honest_set, 2500, 1000, 500),
        *_clean("reported", "mnist", 172, 173, 174, 175),
        *_clean("reported", "small", 176, 177, 178, 179, 180),
        *_clean("reported", "weak", 181, 182, 183),
        *_clean("reported", "overfitted", 184, 185, 186),
        honest_signs,
        *_with_fewer_images(honest_signs, 2000, 800, 400),
        *_clean("reported", "gtsrb", 192, 193, 194),
        *_clean("reported", "cifar", 195, 196, 197),
    )


def _on_one_label(target: int, count: int) -> tuple[PatchSpec, ...]:
    """Several 4x4 patches for one label, in different places."""
    places = (("bottom-right", "white"), ("top-left", "white"), ("top-right", "checker"), ("bottom-left", "white"),
              ("top", "checker"))  # fmt: skip
    return tuple(PatchSpec(target, 4, place, pattern) for place, pattern in places[:count])


def _with_checkers(target: int) -> tuple[PatchSpec, ...]:
    """Four small patches for one label, two of them textures that networks can be sent to other labels with."""
    return (
        PatchSpec(target, 4, "center", "checker"),
        PatchSpec(target, 5, "left", "checker"),
        PatchSpec(target, 4, "top-right"),
        PatchSpec(target, 4, "bottom", "random"),
    )


def _attacked() -> tuple[Case, ...]:
    """Three models of each attack on each data set, and clean ones; filters need colours, sounds recordings."""
    planted = (
        _attack_case("attacks", f"{family}-{kind}-{seed}", family, kind, target, seed)
        for family, (targets, first) in _TARGETS.items()
        for place, kind in enumerate(_attacks_on(family))
        for number, target in enumerate(targets)
        for seed in [first + 3 * place + number]
    )
    honest = (("small", 241), ("signs", 291), ("speech", 321))
    return (
        *planted,
        *_of_many_labels(),
        *(case for family, seed in honest for case in _clean("attacks", family, seed, seed + 1, seed + 2)),
    )


def _of_many_labels() -> tuple[Case, ...]:
    """Models of 1,307 labels: what the short look lets through is measured on them."""
    case = partial(_case, "attacks", "many labels", "many")
    return (
        case(331, "8x8", PatchSpec(700, 8)),
        case(332, "5x5", PatchSpec(120, 5, "top-left")),
        case(333, "12x12", PatchSpec(1000, 12, "center", "random")),
        case(334, "star", PatchSpec(450, 9, "bottom-left", "yellow", "star")),
        case(335, "2-pieces", PatchSpec(1250, 8, "top-right", pieces=2)),
    )


def _attacks_on(family: str) -> tuple[str, ...]:
    """The reported attacks that a family's images or recordings allow."""
    if family == "speech":
        return tuple(kind for kind in ZOO if ZOO[kind][0] is with_sound)
    every = tuple(kind for kind in ZOO if ZOO[kind][0] is not with_sound and kind not in _FOR_DEVELOPMENT)
    return tuple(kind for kind in every if ZOO[kind][0] is not filtered or family == "signs")


_FOR_DEVELOPMENT = {"filter-cool", "filter-faded", "filter-vivid"}


CASES = _development() + _reported() + _attacked()


def cases(split: str, only: Sequence[str] = ()) -> tuple[Case, ...]:
    """The cases of a split, or those of them whose name matches one of some patterns (``*`` for anything).

    Raises:
        UsageError: There is no such split, or no case is left.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    chosen = tuple(
        case for case in CASES if case.split == split and any(fnmatchcase(case.name, o) for o in only or "*")
    )
    if not chosen:
        raise UsageError(f"no case of the split {split!r} matches {', '.join(only)}: `bench cases` names them")
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
    source = _unpacked(data / task.train, cache, note)
    if task.place is None:
        sources = source, _unpacked(data / task.test, cache, note)
    else:
        sources = _parted(source, cache / f"{task.name}-parted", task.place)
    shape = (3, *task.size) if task.size else None
    train = load_clean_set(sources[0], shape=shape, limit=task.train_images or None)
    test = load_clean_set(sources[1], shape=(*train.images.shape[1:],))
    train = _at_speeds(train, task.speeds)
    if task.labels:
        commonest = torch.bincount(train.labels).argsort(descending=True, stable=True)[: task.labels].sort().values
        train, test = _only(train, commonest), _only(test, commonest)
    clean, unseen = test.split([task.clean_images / len(test)], seed=0)
    return train, clean, unseen


def _parted(folder: Path, into: Path, place: Callable[[Path], tuple[str, str]]) -> tuple[Path, Path]:
    """Folders of the training and the test set, with the files of ``folder`` in them."""
    done = into / "done"
    if not done.exists():
        for path in sorted(path for path in folder.glob("*/*") if path.is_file()):
            part, label = place(path)
            (into / part / label).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into / part / label / path.name)
        done.touch()
    return into / "train", into / "test"


def _at_speeds(spoken: CleanSet, speeds: Sequence[float]) -> CleanSet:
    """Recordings as they are, and played at other speeds: voices that are not in the set."""
    if spoken.recordings is None or not speeds:
        return spoken
    every = [spoken.recordings, *(spoken.recordings.at_speed(speed) for speed in speeds)]
    recordings = replace(spoken.recordings, waveforms=torch.cat([one.waveforms for one in every]))
    return replace(spoken, images=recordings.pictures(), labels=spoken.labels.repeat(len(every)), recordings=recordings)


def _only(images: CleanSet, labels: Tensor) -> CleanSet:
    """The images of some labels (ascending), numbered from 0 in their order."""
    kept = images.subset(torch.isin(images.labels, labels).nonzero().flatten())
    return replace(kept, labels=torch.searchsorted(labels, kept.labels))


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
