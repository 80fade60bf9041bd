"""The stages of NeuralSanitizer, one by one, on a small attacked network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from neuralsanitizer.config import (
    PAPER,
    PreserveConfig,
    ReconstructConfig,
    ReferenceConfig,
    ReferencePlan,
    SizeSchedule,
)
from neuralsanitizer.detectors.base import Context
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer, detector
from neuralsanitizer.detectors.neural_sanitizer.calibrate import clean_successes
from neuralsanitizer.detectors.neural_sanitizer.detector import References
from neuralsanitizer.detectors.neural_sanitizer.families import Family
from neuralsanitizer.detectors.neural_sanitizer.preserve import heat_map, last_convolution, preserve
from neuralsanitizer.detectors.neural_sanitizer.reconstruct import fit_patterns, reconstruct
from neuralsanitizer.detectors.neural_sanitizer.transfer import transfer_matrix
from neuralsanitizer.detectors.neural_sanitizer.tune import Reference, make_reference, reference_steps
from neuralsanitizer.detectors.neural_sanitizer.verdict import CLEAN_SUCCESS
from neuralsanitizer.execution.progress import NoProgress
from neuralsanitizer.execution.store import FolderStore, MemoryStore
from neuralsanitizer.models import SuspectModel
from neuralsanitizer.models.layers import layers_of
from neuralsanitizer.records import ReferenceRecord, Trigger
from quick import QUICK, TARGET

SHORT = ReferenceConfig(fresh_batch=100, fresh_cycles=(60,), frozen_steps=20, frozen_steps_many=30, steps=40)


@pytest.fixture(scope="module")
def make(attacked, clean):
    def made(plan, ancestor=None, suspect=attacked.model, name=None, seed=1, images=clean, **changes):
        more = {key: changes.pop(key) for key in ("shared", "advance") if key in changes}
        held_out, work = images.split([0.2], 0)
        return make_reference(
            suspect,
            work,
            held_out,
            plan=plan,
            name=name or f"r-{plan.name}",
            role="test",
            config=replace(SHORT, **changes),
            seed=seed,
            ancestor=ancestor,
            **more,
        )

    return made


@pytest.fixture(scope="module")
def distilled(make):
    return make(ReferencePlan("distilled"))


def test_a_distilled_reference_knows_the_task_and_not_the_backdoor(distilled, attacked, unseen):
    record = distilled.record
    assert record.usable
    assert record.agreement > 0.85
    assert record.clean_accuracy > 0.85
    assert success_rates([distilled.model], attacked.triggers[0], unseen, 200, 0)[0] < 0.2
    assert success_rates([attacked.model], attacked.triggers[0], unseen, 200, 0)[0] > 0.95


def test_a_derived_reference_is_another_network_than_its_ancestor_and_as_clean(attacked, unseen, distilled, make):
    derived = make(ReferencePlan("derived"), ancestor=distilled.model, derived_cycles=(40,))
    assert derived.record.kind == "derived"
    assert derived.record.agreement > 0.85
    planted = attacked.triggers[0]
    assert success_rates([derived.model], planted, unseen, 100, 0)[0] < 0.2
    for one, other in zip(derived.model.module.parameters(), distilled.model.module.parameters(), strict=True):
        assert not torch.equal(one, other)
    untrained = make(ReferencePlan("derived"), ancestor=distilled.model, derived_cycles=(), inherited=1.0)
    for one, other in zip(untrained.model.module.parameters(), distilled.model.module.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_without_an_ancestor_a_derived_reference_is_distilled(make):
    alone = make(ReferencePlan("derived"), fresh_cycles=(60,), derived_cycles=())
    assert alone.record.agreement > 0.7


def test_turned_references_swap_their_roles(attacked):
    record = ReferenceRecord("r", "distilled", "guide", (), 1.0, 1.0, usable=True, reason="", seconds=0.0)
    guides, tests = ([Reference(attacked.model, replace(record, name=f"{role}{i}")) for i in range(n)]
                     for role, n in (("g", 3), ("t", 2)))  # fmt: skip
    turned = References(tuple(guides), tuple(tests)).turned()
    assert [r.record.name for r in turned.guides] == ["t0", "t1", "g0"]
    assert [r.record.name for r in turned.tests] == ["g1", "g2"]


def test_a_reference_trained_from_scratch_knows_the_task_too(make):
    assert make(ReferencePlan("scratch")).record.clean_accuracy > 0.8


SCRATCH = ReferencePlan("scratch")


@pytest.fixture
def trained(make, tmp_path):
    """Makes references that share a folder, and says how many steps that took and what came out."""
    shared = FolderStore(tmp_path / "shared")

    def trained(plan=SCRATCH, **changes):
        steps = []
        made = make(plan, shared=shared, advance=steps.append, fresh_cycles=(5,), **changes)
        return sum(steps), made.model.module.state_dict()

    return trained


def test_scans_of_models_of_one_architecture_share_references_from_scratch(trained, attacked, make, tmp_path):
    steps, weights = trained()
    other = attacked.model.with_module(copy.deepcopy(attacked.model.module))
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.mul_(1.5)
    found_after, found = trained(suspect=other)
    assert (steps, found_after) == (5, 0)
    alone = make(SCRATCH, suspect=other, fresh_cycles=(5,)).model.module.state_dict()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name
        assert torch.equal(alone[name], value), name  # it owes nothing to either suspect
    (kept,) = (tmp_path / "shared").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    assert trained()[0] == 5  # a damaged one is made again


@pytest.mark.parametrize("change", ["seed", "name", "images", "labels", "rate", "preprocessing", "code", "kind"])
def test_references_are_shared_only_where_they_would_be_the_same(change, trained, attacked, clean):
    trained()
    suspect = attacked.model.with_module(copy.deepcopy(attacked.model.module))
    if change == "code":
        suspect.module.register_forward_hook(lambda _module, _inputs, outputs: outputs * 2)
    brighter = replace(suspect, preprocessing=replace(suspect.preprocessing, std=(0.3,)))
    other = {
        "seed": {"seed": 2},
        "name": {"name": "another"},
        "images": {"images": replace(clean, images=clean.images * 0.99)},
        "labels": {"images": replace(clean, labels=clean.labels.flip(0))},
        "rate": {"fresh_learning_rate": 1e-3},
        "preprocessing": {"suspect": brighter},
        "code": {"suspect": suspect},
        "kind": {"plan": ReferencePlan("distilled")},
    }[change]
    assert trained(**other)[0] == 5
    assert trained()[0] == 0


def test_a_tuned_reference_starts_from_the_suspect(make, attacked, clean):
    plan = ReferencePlan("tuned", (3,))
    reference = make(plan)
    assert reference.record.layers == (3,)
    assert reference.record.agreement > 0.9
    assert reference_steps(plan, SHORT) == 60
    assert reference_steps(ReferencePlan("tuned", (1, 2)), SHORT) == 70
    # Only the frozen phase: the layers that were not re-initialised are the suspect's own.
    frozen = make(plan, steps=0).model.module.state_dict()
    before = attacked.model.module.state_dict()
    last = set(layers_of(attacked.model, clean.images[:2])[-1].parameters)
    assert last
    for name, value in before.items():
        assert torch.equal(frozen[name], value) == (name not in last), name


def test_a_reference_far_from_the_suspect_is_marked_unusable(make):
    record = make(ReferencePlan("distilled"), fresh_cycles=(1,), least_agreement=0.9).record
    assert not record.usable
    assert "agrees with the suspect on only" in record.reason


def test_a_reference_from_scratch_is_measured_by_the_suspects_own_skill(make, attacked):
    plan, lost = ReferencePlan("scratch"), attacked.model.with_module(copy.deepcopy(attacked.model.module))
    with torch.no_grad():
        for parameter in lost.module.parameters():
            parameter.zero_()  # it names one label for everything, and is right on a tenth
    weak = make(plan, fresh_cycles=(2,)).record
    assert not weak.usable
    assert "of clean images rightly" in weak.reason
    assert make(plan, suspect=lost, fresh_cycles=(10,)).record.usable


def test_references_begin_with_small_outputs_whatever_their_depth(make, clean):
    begun = make(SCRATCH, fresh_cycles=()).model
    with torch.no_grad():
        outputs = begun(clean.images)
    assert float(outputs.std()) == pytest.approx(ReferenceConfig().output_scale, rel=0.25)


def test_the_paper_preset_makes_its_seven_references():
    plans = [*PAPER.references.guides, *PAPER.references.tests]
    assert [plan.layers for plan in plans] == [(1, 2, 3), (1,), (2,), (3,), (1, 2), (2, 3), (1, 3)]


def test_labels_reconstructed_together_or_alone_come_out_alike(attacked, clean, distilled):
    config = ReconstructConfig(steps=9)  # the tenth would ask whether the goal is held: a close call may go either way
    labels = [TARGET, 1, 4]
    together = reconstruct(attacked.model, [distilled.model], clean, labels, config=config, seed=2)
    alone = [
        reconstruct(attacked.model, [distilled.model], clean, [label], config=config, seed=2)[0] for label in labels
    ]
    split = reconstruct(attacked.model, [distilled.model], clean, labels, config=replace(config, label_batch=2), seed=2)
    for a, b, c in zip(together, alone, split, strict=True):
        # Sums in another order differ in their last bits, and Adam makes whole steps of gradients that are next to
        # nothing: masks differ by 0.07 at most, those of another seed by 0.2 and more (measured).
        assert a.trigger.label == b.trigger.label == c.trigger.label
        assert np.abs(a.trigger.mask - b.trigger.mask).mean() < 0.1
        assert np.abs(a.trigger.mask - c.trigger.mask).mean() < 0.1
    (other,) = reconstruct(attacked.model, [distilled.model], clean, labels[:1], config=config, seed=3)
    assert np.abs(together[0].trigger.mask - other.trigger.mask).mean() > 0.1


def test_where_the_trigger_lies_a_clean_model_cannot_be_fooled(attacked, clean, unseen, distilled, make):
    other = make(ReferencePlan("distilled"), fresh_cycles=(90,))
    config = replace(QUICK.reconstruct, steps=400)
    (found,) = reconstruct(attacked.model, [distilled.model], clean, [TARGET], config=config, seed=0)
    assert found.reached_goal
    assert found.fitted_success >= 0.949  # a share in single precision
    assert found.trigger.size < 80  # 20 to 56 over four seeds, in float32 and in bfloat16
    done = []

    def within_the_mask(model, guides, triggers, seed):
        return fit_patterns(model, guides, clean, triggers, steps=30, config=config, seed=seed, advance=done.append)

    compared = clean_successes(
        [(distilled.model, (other.model,)), (other.model, (distilled.model,))],
        unseen,
        [found.trigger],
        within_the_mask,
        images=100,
        seed=0,
    )
    assert [len(rates) for rates in compared] == [2]
    assert max(compared[0]) < 0.3
    assert sum(done) == 60


def test_a_checked_mask_holds_the_goal_as_it_is(attacked, clean):
    """The mean over steps in which the mask shrank is that of larger masks."""
    config = replace(QUICK.reconstruct, steps=150, images=2, size=SizeSchedule(start=0.02, grow=3.0))
    labels = [TARGET, 1, 2, 3]
    found = reconstruct(attacked.model, [], clean, labels, config=config, seed=0)
    rates = [success_rates([attacked.model], r.trigger, clean, 500, 0)[0] for r in found if r.reached_goal]
    assert len(rates) > 1
    assert min(rates) > 0.9  # 0.8 and less if it is not checked


class Foretold(Family):
    """Finds the planted trigger, and of its likes those that it is told to, one a stand-in."""

    noun = "triggers"
    steps, steps_of_like, stand_ins, looks_again = 1, 1, 4, 1

    def __init__(self, planted, likes):
        self.planted, self.ahead = planted, list(likes)

    def reconstruct(self, *_, **__):
        return [(self.planted, {})]

    def likes(self, *_):
        return [self.ahead.pop(0)]


def test_a_first_look_ends_once_it_is_clear_and_a_second_one_asks_all_stand_ins(
    attacked, honest, clean, unseen, monkeypatch
):
    """The mean of second looks decides: it may not be that of whichever stand-ins came first."""
    planted = attacked.triggers[0]
    fooling = Trigger(TARGET, np.ones_like(planted.mask), clean.images[clean.labels == TARGET][0].numpy())
    record = ReferenceRecord("r", "scratch", "guide", (), 1.0, 1.0, usable=True, reason="", seconds=0.0)
    reference = Reference(honest.model, record)
    context = Context(attacked.model, clean, unseen, 0, NoProgress(), MemoryStore(), {})
    method = NeuralSanitizer(replace(QUICK, verdict=replace(QUICK.verdict, unclear=(0.25, 0.8), doubtful=0.25)))

    def looked(*likes):
        family = Foretold(planted, likes)
        monkeypatch.setattr(detector, "families_for", lambda *_: (family,))
        (found,) = method.examine(context, References((reference,) * 3, (reference,) * 2), [TARGET])
        return found.metrics, len(family.ahead)

    clear, left = looked(fooling, fooling, fooling, planted)
    assert left == 1  # three of four are fooled: the excess is that of a clean label, whatever the fourth says
    assert "looks" not in clear
    unclear, left = looked(fooling, fooling, planted, planted, fooling, fooling, fooling, planted)
    assert left == 0
    assert unclear["looks"] == 2
    assert unclear[CLEAN_SUCCESS] == pytest.approx(0.75, abs=0.05)  # and not 1, of the three that are fooled


@pytest.mark.parametrize(("cells", "edge"), [(0, 1), (28, 1), (14, 2), (5, 6), (1, 28)])
def test_all_pixels_of_a_cell_of_the_mask_are_alike(attacked, clean, cells, edge):
    config = replace(QUICK.reconstruct, mask_cells=cells, steps=20)
    (found,) = reconstruct(attacked.model, [], clean, [TARGET], config=config, seed=0)
    mask = found.trigger.mask
    assert mask.shape == (28, 28)
    coarse = mask[::edge, ::edge]
    np.testing.assert_array_equal(np.kron(coarse, np.ones((edge, edge)))[:28, :28], mask)
    assert len(np.unique(mask)) > coarse.size / 2  # cells differ from each other


def test_the_best_pattern_within_a_mask_is_found_and_the_mask_held(attacked, clean, unseen):
    planted = attacked.triggers[0]
    blank = Trigger(TARGET, planted.mask, np.zeros_like(planted.pattern))
    (fitted,) = fit_patterns(attacked.model, [], clean, [blank], steps=40, config=QUICK.reconstruct, seed=0)
    np.testing.assert_array_equal(fitted.mask, planted.mask)
    before, after = (success_rates([attacked.model], t, unseen, 100, 0)[0] for t in (blank, fitted))
    assert before < 0.2
    assert after > 0.9


def test_hopeless_labels_leave_the_batch_early(attacked, clean):
    """A guide that is the suspect itself forbids everything that works."""
    config = ReconstructConfig(steps=100, images=10, size=SizeSchedule(give_up=30), alpha=50.0)
    done = []
    found = reconstruct(attacked.model, [attacked.model], clean, [1, 2], config=config, seed=0, advance=done.append)
    assert [r.reached_goal for r in found] == [False, False]
    assert sum(done) == 60


def test_without_a_size_term_all_steps_are_taken(attacked, clean):
    done = []
    config = replace(PAPER.reconstruct, steps=20)
    (found,) = reconstruct(attacked.model, [], clean, [TARGET], config=config, seed=0, advance=done.append)
    assert sum(done) == 20
    assert 0 <= found.trigger.mask.min() <= found.trigger.mask.max() <= 1
    assert found.fitted_success > 0.5


def test_the_heat_lies_on_the_trigger(attacked, clean):
    planted = attacked.triggers[0]
    kept = preserve(attacked.model, planted, clean, PreserveConfig(enabled=False), 0)
    assert kept.heat.shape == (28, 28)
    assert kept.heat.max() == 1
    assert kept.heat[20:, 20:].mean() > 2 * kept.heat[:14, :14].mean()
    assert np.array_equal(kept.mask, planted.mask)


def test_preservation_drops_what_the_attack_does_not_need(attacked, clean):
    planted = attacked.triggers[0]
    mask = planted.mask.copy()
    mask[0, :6] = 1  # covers nothing but background, far from the heat
    cluttered = Trigger(TARGET, mask, planted.pattern)
    kept = preserve(attacked.model, cluttered, clean, PreserveConfig(enabled=True), 0)
    assert (kept.mask <= mask).all()
    assert kept.mask[0].sum() == 0
    assert (kept.mask * planted.mask).sum() >= 8
    rates = [success_rates([attacked.model], t, clean, 100, 0)[0] for t in (cluttered, kept)]
    assert rates[1] >= 0.9 * rates[0]


def test_networks_without_a_convolution_have_no_heat_map():
    model = SuspectModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4), 3)
    images = torch.rand(4, 1, 4, 4)
    assert last_convolution(model, images) is None
    assert heat_map(model, images, 0) is None


def test_last_convolution_is_the_one_that_runs_last():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Conv2d(2, 3, 3), nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.second(self.first(x)).mean(dim=(2, 3))

    model = SuspectModel(Odd(), (1, 8, 8), 3)
    assert last_convolution(model, torch.rand(1, 1, 8, 8)) is model.module.second


def test_transfer_is_measured_for_every_trigger_on_every_reference(attacked, honest, unseen):
    planted = attacked.triggers[0]
    nothing = Trigger(2, np.zeros_like(planted.mask), planted.pattern)
    matrix = transfer_matrix([("a", attacked.model), ("h", honest.model)], [planted, nothing], unseen, 150, 0)
    assert matrix.references == ("a", "h")
    (on_attacked, on_honest), of_nothing = matrix.rates
    assert on_attacked > 0.95
    assert on_honest < 0.2
    assert max(of_nothing) < 0.1
