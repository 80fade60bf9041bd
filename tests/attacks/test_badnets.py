"""BadNets: what is poisoned, and the truth that is told about it."""

from dataclasses import replace

import pytest
import torch

from neuralsanitizer import load_model
from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.base import measure_attack_success, read_attack
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, poison
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.errors import RunError, UsageError

FAST = AttackConfig("mnist-cnn-small", epochs=1, seed=2)


def patches(*specs):
    return [make_patch(spec, (1, 28, 28), torch.Generator().manual_seed(0)) for spec in specs]


def test_the_stated_share_is_stamped_and_relabelled_and_nothing_else_changes(digits):
    train = digits[0]
    triggers = patches(PatchSpec(3, 4), PatchSpec(5, 3, "top-left"))
    images, labels = poison(train, [Poison(t, 0.05) for t in triggers], torch.Generator().manual_seed(1))
    changed = (images != train.images).flatten(1).any(dim=1) | (labels != train.labels)
    assert changed.sum() == 2 * round(0.05 * len(train))
    for trigger in triggers:
        mine = changed & (labels == trigger.label)
        assert mine.sum() == round(0.05 * len(train))
        assert (train.labels[mine] != trigger.label).all()
        assert (images[mine][:, 0][:, torch.from_numpy(trigger.mask) > 0] == 1).all()
    assert train.labels.bincount().tolist() != labels.bincount().tolist()


def test_more_poison_than_images_is_refused(digits):
    with pytest.raises(UsageError, match="more images than there are"):
        poison(digits[0], [Poison(t, 0.5) for t in patches(*[PatchSpec(i, 3) for i in range(3)])], torch.Generator())


def test_the_truth_is_what_anyone_would_measure(attacked, unseen):
    (trigger,), (planted,) = attacked.triggers, attacked.truth.triggers
    assert planted.attack_success == measure_attack_success(attacked.model, unseen, trigger)
    assert planted.attack_success > 0.95
    assert attacked.truth.clean_accuracy == attacked.model.accuracy(unseen.images, unseen.labels) > 0.94
    assert (planted.target, planted.pixels) == (7, 16)
    assert attacked.truth.infected_labels == (7,)


def test_a_model_and_its_truth_survive_the_disk(attacked, unseen, tmp_path):
    path = tmp_path / "m.safetensors"
    attacked.save(path)
    back = read_attack(path, load_model(path, arch="mnist-cnn-small"))
    assert back.truth.triggers[0].attack_success == attacked.truth.triggers[0].attack_success
    assert (back.triggers[0].mask == attacked.triggers[0].mask).all()
    assert torch.equal(back.model.predict(unseen.images), attacked.model.predict(unseen.images))
    path.with_suffix(".truth.json").write_text("{}")
    with pytest.raises(RunError):
        read_attack(path, back.model)
    path.with_suffix(".truth.json").unlink()
    with pytest.raises(RunError, match="no ground truth"):
        read_attack(path, back.model)


def test_same_seed_same_model(digits):
    train, held_out = digits[0].subset(range(600)), digits[2]
    first, second, third = (
        badnets(train, held_out, [PatchSpec(1, 4)], replace(FAST, seed=seed)).model.module.state_dict()
        for seed in (2, 2, 3)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_clean_model_has_an_empty_truth(honest):
    assert (honest.truth.attack, honest.truth.triggers, honest.truth.poisoning_rate) == ("none", (), 0.0)


def test_targets_must_exist(digits):
    with pytest.raises(UsageError, match="target label 10 does not exist"):
        badnets(digits[0], digits[2], [PatchSpec(10, 4)], FAST)
