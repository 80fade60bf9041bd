"""The grid: what is tuned on and what is reported never meet."""

import tarfile
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from neuralsanitizer.attacks.patches import make_patch
from neuralsanitizer.benchmark.grid import CASES, SPLITS, TASKS, ZOO, Task, _by_frame, _by_speaker, cases, load_task
from neuralsanitizer.data import load_clean_set
from neuralsanitizer.errors import DataError, UsageError
from neuralsanitizer.models import architectures
from speech import say, write

INPUTS = {
    "mnist": (1, 28, 28),
    "gtsrb-signs": (3, 55, 47),
    "gtsrb": (3, 32, 32),
    "cifar10": (3, 32, 32),
    "fsdd": (1, 63, 20),
}


def test_names_are_unique_and_safe_as_file_names():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


def test_development_and_reported_models_share_no_seed():
    development, *others = ({case.config.seed for case in CASES if case.split == split} for split in SPLITS)
    assert development
    assert all(others)
    assert not development & set.union(*others)


def test_development_and_reported_models_share_no_target_at_the_same_position():
    development, reported = (
        {
            (case.config.architecture, patch.target, patch.position)
            for case in CASES
            if case.split == split
            for patch in case.patches
        }
        for split in ("development", "reported")
    )
    assert development
    assert not development & reported


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_can_be_made(case):
    assert case.split in SPLITS
    assert case.name.startswith("dev-") == (case.split == "development")
    shape = INPUTS[case.task if case.task in INPUTS else case.task.partition("-")[0]]
    assert architectures.get(case.config.architecture).channels == shape[0]
    assert 0 < case.config.poisoning_rate * max(1, len(case.patches)) < 0.5
    for patch in case.patches:
        assert patch.target < case.config.labels
        trigger = make_patch(patch, shape, torch.Generator().manual_seed(case.config.seed))
        assert trigger.size > 0


def test_every_case_has_its_task_and_every_split_models_without_a_backdoor():
    assert {case.task for case in CASES} <= set(TASKS)
    for split in ("development", "reported"):
        assert any(case.backdoors == "clean" for case in CASES if case.split == split)


def test_every_attack_is_planted_in_three_models_of_each_data_set_that_it_can_be():
    for name, (attack, _) in ZOO.items():
        of = [case for case in cases("attacks") if case.group == name.replace("-", " ")]
        assert all(case.attack is attack and case.backdoors != "clean" for case in of)
        tasks = Counter(case.task for case in of)
        if name in {"filter-cool", "filter-faded", "filter-vivid"}:
            assert not of  # development models have these: filters of another tone than the reported ones
        elif name.startswith("sound"):
            assert tasks == {"fsdd": 3}
        else:
            assert tasks == ({"gtsrb-12": 3} if name.startswith("filter") else {"mnist": 3, "gtsrb-12": 3})
    clean = Counter(case.task for case in cases("attacks") if case.backdoors == "clean")
    assert clean == {"mnist": 3, "gtsrb-12": 3, "fsdd": 3}
    assert len({case.config.seed for case in cases("attacks")}) == len(cases("attacks"))


def test_cases_are_chosen_by_split_and_patterns_of_the_name():
    assert {case.split for case in cases("reported")} == {"reported"}
    assert all("gtsrb" in case.name for case in cases("development", ["dev-gtsrb-*"]))
    assert sum(len(cases(split)) for split in SPLITS) == len(CASES)
    with pytest.raises(UsageError, match="unknown split 'test'"):
        cases("test")
    with pytest.raises(UsageError, match="no case of the split"):
        cases("reported", ["no such model"])


def test_a_task_of_fewer_labels_keeps_the_commonest_and_numbers_them_anew(tmp_path):
    pixels, labels = np.arange(12, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2), np.repeat([0, 1, 2, 3], 3)
    labels[0] = 3  # two images of label 0, four of label 3
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=pixels, y=labels)
    task = Task("few", "train.npz", "test.npz", 5, labels=2)
    train, clean, unseen = load_task(task, tmp_path, tmp_path / "cache", lambda _: None)
    # Label 3 has four images, 1 and 2 have three each: of these the first is kept.
    assert train.labels.tolist() == [1, 0, 0, 0, 1, 1, 1]
    assert train.images[:, 0, 0, 0].mul(255).round().int().tolist() == [0, 3, 4, 5, 9, 10, 11]
    assert sorted(set(clean.labels.tolist()) | set(unseen.labels.tolist())) == [0, 1]


def test_recordings_are_parted_by_speaker(tmp_path):
    made = tmp_path / "made" / "set"
    generator = np.random.default_rng(0)
    for label in range(2):
        for speaker in ("ann", "bob", "eve"):
            for number in range(3):
                write(made / str(label) / f"{label}_{speaker}_{number}.wav", say(label, generator))
    with tarfile.open(tmp_path / "words.tar.gz", "w:gz") as archive:
        archive.add(made, "set")
    task = Task("words", "words.tar.gz", "words.tar.gz", 4, place=partial(_by_speaker, test=("eve",)))
    train, clean, unseen = load_task(task, tmp_path, tmp_path / "cache", lambda _: None)
    assert (len(train), len(clean), len(unseen)) == (12, 4, 2)
    strangers = load_clean_set(made).subset(torch.tensor([6, 7, 8, 15, 16, 17]))  # eve's, by file name
    found = torch.cat([clean.recordings.waveforms, unseen.recordings.waveforms])
    assert {w.numpy().tobytes() for w in found} == {w.numpy().tobytes() for w in strangers.recordings.waveforms}
    faster, *others = load_task(replace(task, speeds=(1.2,)), tmp_path, tmp_path / "cache", lambda _: None)
    assert [len(part) for part in (faster, *others)] == [24, 4, 2]
    assert torch.equal(faster.images[:12], train.images)
    assert torch.equal(faster.images[12:], train.recordings.at_speed(1.2).pictures())
    assert torch.equal(faster.labels, train.labels.repeat(2))


def test_every_physical_sign_is_a_label_of_its_own(tmp_path):
    folder = tmp_path / "made" / "set"
    for sign, value in (("00000/00000", 10), ("00000/00001", 90), ("00007/00000", 170)):
        for frame in range(6):
            path = folder / f"{sign}_{frame:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), value + frame, np.uint8)).save(path)
    with tarfile.open(tmp_path / "signs.tar.gz", "w:gz") as archive:
        archive.add(folder, "set")
    task = Task("signs", "signs.tar.gz", "signs.tar.gz", 6, place=_by_frame, size=(11, 9))
    train, clean, unseen = load_task(task, tmp_path, tmp_path / "cache", lambda _: None)
    assert train.images.shape == (9, 3, 11, 9)
    assert (len(clean), len(unseen)) == (6, 3)
    for part, frames in ((train, {0, 2, 4}), (clean, {1, 3, 5}), (unseen, {1, 3, 5})):
        values = part.images[:, 0, 0, 0].mul(255).round().int()
        assert part.labels.tolist() == ((values - 10) // 80).tolist()  # the same label for a sign in all parts
        assert {int(v) % 80 - 10 for v in values} <= frames
    assert task.place is TASKS["gtsrb-signs"].place


@pytest.fixture
def data(tmp_path):
    """Twenty bright and dark pictures as an archive of folders, and as npz."""
    folder = tmp_path / "made" / "set"
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8), 100 * label + i, np.uint8)).save(folder / str(label) / f"{i}.png")
    with tarfile.open(tmp_path / "set-test.tar.gz", "w:gz") as archive:
        archive.add(folder, "set")
    images = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8) + 1
    np.savez(tmp_path / "set-train.npz", x=images, y=np.arange(20) % 2)
    return tmp_path


def test_a_task_comes_in_three_parts_that_share_no_image(data):
    notes = []
    task = Task("set", "set-train.npz", "set-test.tar.gz", clean_images=12, train_images=10)
    for _ in range(2):  # unpacked once
        train, clean, unseen = load_task(task, data, data / "cache", notes.append)
        assert (len(train), len(clean), len(unseen)) == (10, 12, 8)
        both = {float(image.mean()) for part in (clean, unseen) for image in part.images}
        assert len(both) == 20
    assert notes == ["unpacking set-test.tar.gz"]


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"needs mnist-train\.npz"):
        load_task(TASKS["mnist"], tmp_path, tmp_path, print)
