"""What every detector, attack and mitigation keeps to, whatever its method: one table each."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuralsanitizer import load_model
from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.base import measure_attack_success, read_attack
from neuralsanitizer.attacks.patches import PatchSpec
from neuralsanitizer.attacks.stamps import Patch
from neuralsanitizer.config import PAPER, UNLEARN_PRESETS, AttackConfig, PruneConfig, UnlearnConfig
from neuralsanitizer.data import CleanSet
from neuralsanitizer.detectors.neural_cleanse import NeuralCleanse
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import DataError, UsageError
from neuralsanitizer.execution.store import MemoryStore
from neuralsanitizer.mitigation.prune import Prune
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.pipeline import METHODS
from neuralsanitizer.records import Finding, Trigger, Verdict, from_json, to_json
from quick import QUICK, QUICK_CLEANSE, TARGET

SHORT_PAPER = replace(
    PAPER,
    references=replace(PAPER.references, frozen_steps=20, frozen_steps_many=30, steps=40),
    reconstruct=replace(PAPER.reconstruct, steps=30),
    preserve=replace(PAPER.preserve, images=20),
)
DETECTORS = {
    "neural-sanitizer": NeuralSanitizer(QUICK),
    "neural-sanitizer, paper": NeuralSanitizer(SHORT_PAPER),
    "neural-cleanse": NeuralCleanse(QUICK_CLEANSE),
}
SOME = [1, TARGET]


class Recorder:
    """Progress that adds up."""

    def __init__(self):
        self.stages = []

    def start(self, stage, total):
        self.stages.append([stage, total, 0])

    def advance(self, steps=1):
        self.stages[-1][2] += steps

    def note(self, message):
        assert message


def state_of(model):
    """Everything of a model that a scan could spoil."""
    module = model.module
    return (
        {name: value.clone() for name, value in module.state_dict().items()},
        [part.training for part in module.modules()],
        [p.requires_grad for p in module.parameters()],
        [p.grad for p in module.parameters()],
        sum(len(part._forward_hooks) + len(part._backward_hooks) for part in module.modules()),
    )


@contextmanager
def unchanged(model, *data):
    """Neither the model nor the images nor the global random state are another afterwards."""
    before, images, random = state_of(model), [d.images.clone() for d in data], torch.get_rng_state()
    yield
    after = state_of(model)
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert after[1:] == before[1:]
    assert all(torch.equal(d.images, old) for d, old in zip(data, images, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request):
    return DETECTORS[request.param]


@pytest.fixture(scope="module")
def whole(detector, attacked, clean):
    """A scan of all labels, and its progress."""
    progress = Recorder()
    with unchanged(attacked.model, clean):
        return detector.scan(attacked.model, clean, seed=0, progress=progress), progress


@pytest.fixture(scope="module")
def part(detector, attacked, clean):
    """A scan of some labels with the same seed, and its store."""
    store = MemoryStore()
    return detector.scan(attacked.model, clean, seed=0, labels=SOME, store=store), store


def test_every_method_of_the_program_is_in_the_table():
    assert {detector.name for detector in DETECTORS.values()} == set(METHODS)


def test_every_label_has_a_finding_in_label_order(whole):
    verdict = whole[0].verdict
    assert [f.label for f in verdict.labels] == list(range(10))
    assert [f.name for f in verdict.labels] == [str(i) for i in range(10)]
    assert all(f.reason for f in verdict.labels)
    assert verdict.reason
    assert verdict.assumptions


def test_every_number_is_in_its_range(whole):
    scan = whole[0]
    tests = sum(r.role == "test" and r.usable for r in scan.references)
    for f in scan.verdict.labels:
        assert 0 <= f.attack_success <= 1
        assert 0 <= f.mask_size <= 28 * 28
        assert len(f.transfer) == tests
        assert all(0 <= rate <= 1 for rate in f.transfer)
        assert f.confidence is None or 0 <= f.confidence <= 1
        assert all(np.isfinite(value) for value in f.metrics.values())
    for r in scan.references:
        assert 0 <= r.clean_accuracy <= 1
        assert 0 <= r.agreement <= 1
        assert r.role in {"guide", "test"}
    assert len({r.name for r in scan.references}) == len(scan.references)
    assert 0 <= scan.self_check.chance <= scan.self_check.clean_accuracy <= 1
    assert all(seconds >= 0 for seconds in scan.timings.values())
    assert sum(seconds for stage, seconds in scan.timings.items() if stage != "total") <= scan.timings["total"]


def test_every_label_has_a_trigger_that_fits_the_input(whole):
    scan = whole[0]
    assert sorted(scan.triggers) == list(range(10))
    for f in scan.verdict.labels:
        trigger = scan.triggers[f.label]
        assert f.has_trigger
        assert trigger.label == f.label
        assert trigger.size == f.mask_size
        assert (trigger.mask.shape, trigger.pattern.shape) == ((28, 28), (1, 28, 28))
        arrays = [trigger.mask, trigger.pattern] + ([] if trigger.heat is None else [trigger.heat])
        for array in arrays:
            assert array.dtype == np.float32
            assert 0 <= array.min() <= array.max() <= 1


def test_the_models_verdict_follows_from_its_labels(whole):
    verdict = whole[0].verdict
    findings = {f.finding for f in verdict.labels}
    order = (Finding.INFECTED, Finding.INCONCLUSIVE, Finding.CLEAN)
    assert verdict.finding is next(finding for finding in order if finding in findings)


def test_the_attack_success_is_that_of_the_trigger_on_the_suspect(whole, attacked, unseen):
    """Measured on other images by other code: within what 500 images scatter."""
    for f in whole[0].verdict.labels:
        reversed_ = whole[0].triggers[f.label]
        patch = Patch(f.label, reversed_.mask, reversed_.pattern)
        again = measure_attack_success(attacked.model, unseen, patch)
        assert abs(f.attack_success - again) < 0.2


def test_verdict_and_settings_are_plain_json(whole, detector):
    verdict = whole[0].verdict
    assert from_json(Verdict, json.loads(json.dumps(to_json(verdict), allow_nan=False))) == verdict
    assert json.dumps(to_json(detector.settings), allow_nan=False)
    assert detector.preset


def test_progress_never_overshoots(whole):
    assert whole[1].stages
    for stage, total, done in whole[1].stages:
        assert 0 <= done <= total, stage
        assert total > 0


def test_same_seed_same_verdict(part, detector, attacked, clean):
    again = detector.scan(attacked.model, clean, seed=0, labels=SOME)
    assert again.verdict == part[0].verdict
    for label in SOME:
        np.testing.assert_array_equal(again.triggers[label].mask, part[0].triggers[label].mask)


def test_a_label_is_found_alike_with_all_others_or_with_some(whole, part, detector):
    assert [f.label for f in part[0].verdict.labels] == SOME
    for f in part[0].verdict.labels:
        with_all = whole[0].verdict.labels[f.label]
        allowed = {with_all.finding} | ({Finding.INCONCLUSIVE} if detector.compares_labels else set())
        assert f.finding in allowed
        # The sums of larger batches differ in their last bits, and the steps amplify that.
        assert abs(f.attack_success - with_all.attack_success) < 0.2


def test_what_is_finished_is_not_done_again(part, detector, attacked, clean):
    scan, store = part
    progress = Recorder()
    again = detector.scan(attacked.model, clean, seed=0, labels=SOME, store=store, progress=progress)
    assert again.verdict == scan.verdict
    assert sum(done for _, _, done in progress.stages) == 0


def test_data_that_does_not_fit_is_refused(detector, attacked, clean):
    small = CleanSet(clean.images[:, :, :14, :14].contiguous(), clean.labels)
    colour = CleanSet(clean.images.expand(-1, 3, -1, -1), clean.labels)
    for wrong in (small, colour):
        with pytest.raises(DataError, match="takes images of shape"):
            detector.scan(attacked.model, wrong)
    with pytest.raises(DataError, match="only has labels 0 to 9"):
        detector.scan(attacked.model, CleanSet(clean.images, clean.labels + 1))
    with pytest.raises(UsageError, match="within 0 and 9"):
        detector.scan(attacked.model, clean, labels=[3, 10])


def test_a_model_that_does_not_do_its_job_is_inconclusive(detector, attacked, clean):
    shuffled = clean.labels[torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))]
    store = MemoryStore()
    scan = detector.scan(attacked.model, CleanSet(clean.images, shuffled), store=store)
    assert scan.verdict.finding is Finding.INCONCLUSIVE
    assert scan.verdict.reason == scan.self_check.note != ""
    assert (scan.verdict.labels, dict(scan.triggers), scan.references) == ((), {}, ())
    assert store._parts == {}


ATTACKS = {
    "none": [],
    "badnets": [PatchSpec(TARGET, 4)],
    "badnets, several": [PatchSpec(3, 4, "top-left", "checker"), PatchSpec(3, 3, "random", "random"), PatchSpec(5, 5)],
}
BRIEF = AttackConfig("mnist-cnn-small", epochs=2, seed=3, poisoning_rate=0.1)


@pytest.fixture(scope="module", params=ATTACKS)
def patches(request):
    return ATTACKS[request.param]


@pytest.fixture(scope="module")
def train(digits):
    return digits[0].subset(range(0, len(digits[0]), 4))


@pytest.fixture(scope="module")
def result(patches, train, unseen):
    return badnets(train, unseen, patches, BRIEF)


def test_an_attack_leaves_its_data_and_the_global_random_state_alone(patches, train, unseen, attacked):
    with unchanged(attacked.model, train, unseen):
        badnets(train, unseen, patches, replace(BRIEF, epochs=1))


def test_an_attack_gives_a_frozen_model_of_its_task(result):
    assert not result.model.module.training
    assert not any(p.requires_grad for p in result.model.module.parameters())
    assert (result.model.labels, result.model.input_shape) == (10, (1, 28, 28))


def test_an_attack_tells_the_measured_truth(result, patches, unseen):
    truth = result.truth
    assert [t.target for t in truth.triggers] == [p.target for p in patches]
    assert truth.infected_labels == tuple(sorted({p.target for p in patches}))
    assert truth.clean_accuracy == result.model.accuracy(unseen.images, unseen.labels)
    assert truth.held_out_images == len(unseen)
    assert bool(truth.poisoning_rate) == bool(patches)
    for trigger, told in zip(result.triggers, truth.triggers, strict=True):
        assert told.pixels == round(trigger.size)
        assert told.attack_success == measure_attack_success(result.model, unseen, trigger)
        assert (trigger.mask.shape, trigger.pattern.shape) == ((28, 28), (1, 28, 28))
        assert trigger.mask.dtype == trigger.pattern.dtype == np.float32
        assert 0 <= trigger.pattern.min() <= trigger.pattern.max() <= 1
        assert set(np.unique(trigger.mask)) == {0.0, 1.0}


def test_an_attack_depends_on_its_seed_alone(result, patches, train, unseen):
    same, other = (badnets(train, unseen, patches, replace(BRIEF, seed=seed)) for seed in (3, 4))
    weights = [r.model.module.state_dict() for r in (result, same, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())
    assert same.truth == result.truth


def test_an_attack_survives_the_disk(result, tmp_path):
    path = tmp_path / "m.safetensors"
    result.save(path)
    back = read_attack(path, load_model(path, arch=BRIEF.architecture))
    assert to_json(back.truth) == to_json(result.truth)
    assert [t.label for t in back.triggers] == [t.label for t in result.triggers]
    assert all((a.mask == b.mask).all() for a, b in zip(back.triggers, result.triggers, strict=True))


MITIGATIONS = {
    "unlearning": Unlearn(UnlearnConfig(steps=30)),
    **{f"unlearning, {name}": Unlearn(replace(UNLEARN_PRESETS[name], steps=30)) for name in UNLEARN_PRESETS},
    "pruning": Prune(PruneConfig(step=0.1)),
}


@pytest.fixture(scope="module", params=MITIGATIONS)
def mitigation(request):
    return MITIGATIONS[request.param]


@pytest.fixture(scope="module")
def triggers(attacked):
    """The true one, one that does nothing, and one that covers everything."""
    true = attacked.triggers[0]
    return [
        true,
        Trigger(2, np.zeros_like(true.mask), true.pattern),
        Trigger(2, np.ones_like(true.mask), np.full_like(true.pattern, 0.5)),
    ]


def test_a_mitigation_repairs_a_copy_and_leaves_the_rest_alone(mitigation, attacked, triggers, clean):
    steps = []
    with unchanged(attacked.model, clean):
        module = mitigation.remove(attacked.model, triggers, clean, seed=0, advance=steps.append).module
    before = attacked.model.module.state_dict()
    after = module.state_dict()
    assert module is not attacked.model.module
    assert {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not all(torch.equal(value, before[name]) for name, value in after.items())
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert 0 < sum(steps) <= mitigation.steps(len(clean))
    assert attacked.model.with_module(module).accuracy(clean.images, clean.labels) > 0.8


def test_a_mitigation_depends_on_its_seed_alone(mitigation, attacked, triggers, clean):
    first, same, other = (
        mitigation.remove(attacked.model, triggers[:1], clean, seed=seed).module.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    if mitigation.name != "pruning":  # which draws only the images that it measures on
        assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_a_mitigation_says_its_settings_as_plain_json(mitigation):
    assert json.loads(json.dumps(to_json(mitigation.settings), allow_nan=False)) == to_json(mitigation.settings)
    assert mitigation.name
