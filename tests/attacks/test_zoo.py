"""Every attack: what it plants works, does not cost the task, survives the disk, and is told truthfully."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuralsanitizer import load_model
from neuralsanitizer.attacks.all_to_all import all_to_all
from neuralsanitizer.attacks.base import measure_attack_success, read_attack
from neuralsanitizer.attacks.blended import BlendSpec, blended
from neuralsanitizer.attacks.clean_label import CleanLabelSpec, clean_label
from neuralsanitizer.attacks.filters import FILTERS, FilterSpec, filtered, make_filter
from neuralsanitizer.attacks.input_aware import InputAwareSpec, input_aware
from neuralsanitizer.attacks.latent import LatentSpec, latent
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, poison
from neuralsanitizer.attacks.stamps import Patch
from neuralsanitizer.attacks.trojan import TrojanSpec, trojan
from neuralsanitizer.attacks.wanet import WarpSpec, make_warp, wanet
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.errors import RunError, UsageError
from tinted import coloured

TARGET = 3
FAST = AttackConfig("mnist-cnn-small", 10, epochs=5, seed=2)


ZOO = {
    "blended": (blended, BlendSpec(TARGET), replace(FAST, epochs=10)),
    "all-to-all": (all_to_all, PatchSpec(0, 4), replace(FAST, poisoning_rate=0.3, epochs=8)),
    "clean-label": (
        clean_label,
        CleanLabelSpec(PatchSpec(TARGET, 8, "center"), 0.5, 10),
        replace(FAST, poisoning_rate=0.09, epochs=10),
    ),
    "filter": (filtered, FilterSpec(TARGET, "sepia"), replace(FAST, epochs=15)),
    "wanet": (wanet, WarpSpec(TARGET, strength=4.0), replace(FAST, epochs=12, poisoning_rate=0.15)),
    "input-aware": (input_aware, InputAwareSpec(TARGET, 0.05), replace(FAST, epochs=15)),
    "trojan": (trojan, TrojanSpec(TARGET), FAST),
    "latent": (latent, LatentSpec(PatchSpec(TARGET, 6)), replace(FAST, epochs=8)),
}


@pytest.fixture(scope="module")
def data(digits):
    def of(name):
        train, _, unseen = digits
        return (coloured(train), coloured(unseen)) if name == "filter" else (train, unseen)

    return of


@pytest.fixture(scope="module", params=ZOO)
def attacked_by(request, data):
    attack, spec, config = ZOO[request.param]
    train, unseen = data(request.param)
    steps = []
    return attack(train, unseen, spec, config, advance=steps.append), unseen, request.param, steps


def test_the_backdoor_works_and_the_task_too(attacked_by):
    result, unseen, name, steps = attacked_by
    assert result.truth.attack == name
    assert result.truth.infected_labels == (tuple(range(10)) if name == "all-to-all" else (TARGET,))
    assert result.truth.clean_accuracy == result.model.accuracy(unseen.images, unseen.labels) > 0.8
    assert np.mean([t.attack_success for t in result.truth.triggers]) > 0.6
    assert result.measure(result.model, unseen) == tuple(t.attack_success for t in result.truth.triggers)
    assert steps


def test_the_trigger_does_little_to_an_honest_model(attacked_by, honest):
    result, unseen, name, _ = attacked_by
    if name == "filter":
        pytest.skip("the honest model sees no colours")
    assert max(result.measure(honest.model, unseen)) < 0.5


def test_model_and_trigger_survive_the_disk(attacked_by, tmp_path):
    result, unseen, _, _ = attacked_by
    path = tmp_path / "m.safetensors"
    result.save(path)
    back = read_attack(path, load_model(path, arch="mnist-cnn-small"))
    assert back.truth == result.truth
    for one, other in zip(back.triggers, result.triggers, strict=True):
        torch.testing.assert_close(one.apply(unseen.images[:20]), other.apply(unseen.images[:20]))
    arrays = path.with_suffix(".truth.npz")
    np.savez(arrays, nothing=np.zeros(1))
    with pytest.raises(RunError, match="does not hold the triggers"):
        read_attack(path, back.model)
    if isinstance(result.triggers[0], Patch):
        np.savez(arrays, **{f"{n}_{i}": a[0] for i, t in enumerate(result.triggers) for n, a in t.arrays().items()})
        with pytest.raises(RunError, match=r"does not hold the triggers .*: mask \(H, W\)"):
            read_attack(path, back.model)


def test_stamped_images_are_images(attacked_by):
    result, unseen, _, _ = attacked_by
    for trigger in result.triggers:
        stamped = trigger.apply(unseen.images[:20])
        assert stamped.shape == unseen.images[:20].shape
        assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1
        assert 0 < trigger.pixels <= 28 * 28


def test_a_rate_of_zero_poisons_nothing_and_labels_must_suffice(digits):
    poisons = [Poison(make_patch(PatchSpec(TARGET, 4), (1, 28, 28), torch.Generator()), 0.0)]
    images, labels = poison(digits[0], poisons, torch.Generator())
    assert torch.equal(images, digits[0].images)
    assert torch.equal(labels, digits[0].labels)
    with pytest.raises(UsageError, match="has the label 9: a model for it needs 10 labels"):
        blended(digits[0], digits[2], BlendSpec(0), replace(FAST, labels=5))


@pytest.mark.parametrize("name", ZOO)
def test_same_seed_same_model_and_targets_must_exist(name, data):
    attack, spec, config = ZOO[name]
    train, unseen = data(name)
    few = train.subset(torch.arange(0, len(train), 4))
    short = replace(config, epochs=1)
    first, second = (attack(few, unseen, spec, short) for _ in range(2))
    for one, other in zip(first.model.module.parameters(), second.model.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.truth == second.truth
    if name == "all-to-all":
        return
    beyond = replace(spec, patch=replace(spec.patch, target=10)) if hasattr(spec, "patch") else replace(spec, target=10)
    with pytest.raises(UsageError, match="target label 10 does not exist"):
        attack(few, unseen, beyond, short)


def test_a_clean_label_attack_changes_no_label_and_has_only_its_targets_images(data):
    attack, spec, config = ZOO["clean-label"]
    with pytest.raises(UsageError, match="poisons images of the target alone"):
        attack(*data("clean-label"), spec, replace(config, poisoning_rate=0.5))


def test_an_all_to_all_trigger_works_on_its_source_alone(data):
    attack, spec, config = ZOO["all-to-all"]
    train, unseen = data("all-to-all")
    result = attack(train, unseen, spec, config)
    for trigger, planted in zip(result.triggers, result.truth.triggers, strict=True):
        assert planted.sources == ((planted.target - 1) % 10,)
        everywhere = measure_attack_success(result.model, unseen, trigger)
        assert everywhere < planted.attack_success


def test_filters_need_colours_and_change_them_alike_everywhere(digits):
    with pytest.raises(UsageError, match="three channels"):
        filtered(digits[0], digits[2], FilterSpec(1), FAST)
    with pytest.raises(UsageError, match="unknown filter 'gone'"):
        FilterSpec(1, "gone")
    flat = torch.rand(4, 3, 1, 1).expand(-1, -1, 8, 8)
    for name in FILTERS:
        changed = make_filter(FilterSpec(1, name), (8, 8)).apply(flat)
        assert torch.equal(changed, changed[:, :, :1, :1].expand_as(changed))
        assert not torch.equal(changed, flat)


def test_a_warp_moves_pixels_by_two_fifths_of_its_strength():
    images = torch.arange(32.0).div(32).expand(1, 1, 32, 32)  # a ramp: what moves by a pixel changes by 1/32
    for strength in (1.0, 2.0):
        warps = (
            make_warp(WarpSpec(0, strength=strength), (32, 32), torch.Generator().manual_seed(i)) for i in range(20)
        )
        moved = torch.cat([warp.apply(images) - images for warp in warps]).abs().mean() * 32
        assert float(moved) == pytest.approx(0.4 * strength, rel=0.2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: BlendSpec(0, 0.0), "blend ratio"),
        (lambda: CleanLabelSpec(PatchSpec(0), 2.0), "epsilon"),
        (lambda: WarpSpec(0, grid=1), "a warp needs"),
        (lambda: InputAwareSpec(0, density=0), "density"),
        (lambda: TrojanSpec(0, "blob"), "unknown trojan shape"),
        (lambda: TrojanSpec(0, layer=1), "layer 2 or higher"),
        (lambda: LatentSpec(PatchSpec(0), retrained=0), "a student trains 1 layer or more"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(make, reason):
    with pytest.raises(UsageError, match=reason):
        make()


def test_layers_must_exist(digits):
    with pytest.raises(UsageError, match="no layer 9 from the output"):
        trojan(digits[0], digits[2], TrojanSpec(0, layer=9), FAST)
    with pytest.raises(UsageError, match="a student cannot train 9"):
        latent(digits[0], digits[2], LatentSpec(PatchSpec(0), retrained=9), FAST)
