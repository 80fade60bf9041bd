"""From numbers to findings: every branch, on made-up evidence."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from neuralsanitizer.config import PAPER, NeuralSanitizerConfig
from neuralsanitizer.detectors.base import Evidence, model_verdict
from neuralsanitizer.detectors.neural_sanitizer.calibrate import stand_ins
from neuralsanitizer.detectors.neural_sanitizer.verdict import (
    CLEAN_SUCCESS,
    CONTRAST,
    EXCESS,
    decide,
    is_candidate,
    is_unclear,
    merged,
)
from neuralsanitizer.models import SuspectModel
from neuralsanitizer.records import Finding, Trigger

DEFAULT = NeuralSanitizerConfig()


def suspect(labels=10):
    return SuspectModel(nn.Flatten(), (1, 20, 20), labels)


def evidence(label=0, *, size=16.0, success=0.99, transfer=(0.0, 0.1), without=0.1):
    mask = np.zeros((20, 20), np.float32)
    mask.flat[: int(size)] = 1
    metrics = {} if without is None else {CLEAN_SUCCESS: without, EXCESS: success - without}
    return Evidence(Trigger(label, mask, np.ones((1, 20, 20), np.float32)), success, transfer, metrics)


@pytest.mark.parametrize(
    ("numbers", "finding", "reason"),
    [
        ({}, Finding.INFECTED, "16 pixels"),
        ({"success": 0.5}, Finding.CLEAN, "no pattern sends more than 50%"),
        ({"transfer": (0.0, 0.6)}, Finding.CLEAN, "works on 1 of 2 clean references too"),
        ({"without": 0.95}, Finding.CLEAN, "95% there on models without a backdoor"),
        ({"without": 0.49}, Finding.INCONCLUSIVE, "too close to tell"),
        ({"size": 200.0, "without": 0.4}, Finding.INFECTED, "200 pixels"),
        ({"without": None}, Finding.INFECTED, "does nothing to clean references"),
    ],
)
def test_a_label_is_judged_by_its_own_numbers(numbers, finding, reason):
    (label,) = decide(suspect(), [evidence(**numbers)], DEFAULT).labels
    assert label.finding is finding
    assert reason in label.reason
    assert is_candidate(evidence(**numbers), 10, DEFAULT) or finding is Finding.CLEAN


def test_with_many_labels_less_transfer_makes_a_patch():
    transferring = evidence(transfer=(0.3,))
    assert decide(suspect(10), [transferring], DEFAULT).finding is Finding.INFECTED
    assert decide(suspect(43), [transferring], DEFAULT).finding is Finding.CLEAN


def test_the_paper_preset_asks_for_success_and_transfer_alone():
    large = evidence(size=390.0, success=0.65, without=None)
    assert decide(suspect(), [large], PAPER).finding is Finding.INFECTED
    assert decide(suspect(), [replace(large, transfer=(0.39, 0.4))], PAPER).finding is Finding.CLEAN
    assert decide(suspect(), [replace(large, attack_success=0.59)], PAPER).finding is Finding.CLEAN


def test_a_model_with_every_label_infected_is_caught():
    verdict = decide(suspect(), [evidence(label) for label in range(10)], DEFAULT)
    assert verdict.infected_labels == tuple(range(10))
    assert "10 infected labels: 0, 1, 2, 3, 4 and others" in verdict.reason


def test_one_open_label_leaves_the_model_open_unless_another_is_infected():
    open_one = evidence(1, without=0.49)
    assert decide(suspect(), [evidence(0, success=0.1), open_one], DEFAULT).finding is Finding.INCONCLUSIVE
    assert decide(suspect(), [evidence(0), open_one], DEFAULT).finding is Finding.INFECTED
    assert decide(suspect(), [evidence(0, success=0.1)], DEFAULT).finding is Finding.CLEAN


def test_a_verdict_states_what_it_assumes():
    verdict = decide(suspect(), [evidence()], DEFAULT)
    assert len(verdict.assumptions) >= 3
    assert model_verdict((), ("x",), "a method").reason == "no backdoor found by a method under the stated assumptions"


def test_stand_ins_are_never_guided_by_themselves():
    guides, tests = ([suspect() for _ in range(n)] for n in (3, 2))
    pairs = stand_ins(guides, tests, 4)
    assert [model for model, _ in pairs] == [tests[0], guides[0], tests[1], guides[1]]
    assert [model for model, _ in stand_ins(guides, tests, 9)] == [tests[0], guides[0], tests[1], guides[1], guides[2]]
    for model, guiding in pairs:
        assert model not in guiding
        assert len(guiding) == 3
    assert stand_ins(guides[:1], [], 2) == ()


def test_a_network_that_is_easily_fooled_raises_the_bar_but_not_for_certain_labels():
    """Every label exceeds clean models by about 0.45: one by 0.6 is not out of the ordinary, one by 0.9 is."""
    fooled = [
        evidence(label, success=0.95, without=without) for label, without in enumerate((0.4, 0.5, 0.55, 0.45, 0.6))
    ]
    doubtful, certain = evidence(5, success=0.95, without=0.35), evidence(6, success=0.95, without=0.05)
    alone = decide(suspect(), [doubtful], DEFAULT)
    verdict = decide(suspect(), [*fooled, doubtful, certain], DEFAULT)
    assert alone.infected_labels == (5,)
    assert verdict.infected_labels == (6,)
    assert verdict.labels[5].finding is Finding.INCONCLUSIVE


def test_labels_that_gain_from_anothers_backdoor_are_left_open():
    """Measured on an overfitted network with a chequered patch for label 2: the others' masks are not small."""
    excesses = (0.78, 0.45, 0.92, 0.78, 0.62, 0.76, 0.55, 0.63, 0.79, 0.44)
    looked_at = [evidence(i, size=50.0, success=0.95, without=0.95 - excess) for i, excess in enumerate(excesses)]
    verdict = decide(suspect(), looked_at, DEFAULT)
    assert verdict.infected_labels == (2,)
    assert verdict.labels[8].finding is Finding.INCONCLUSIVE


def test_small_masks_are_certain_sooner_because_all_labels_may_be_infected():
    several = [evidence(label, size=6.0, success=0.95, without=0.15) for label in range(10)]
    assert decide(suspect(), several, DEFAULT).infected_labels == tuple(range(10))
    large = [evidence(label, size=60.0, success=0.95, without=0.15 - label / 1000) for label in range(10)]
    assert decide(suspect(), large, DEFAULT).infected_labels == ()


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ((56, 57, 299, 108), (0, 1)),  # alike: both may be planted
        ((36, 52, 133, 80), (0,)),
        ((11, 24, 44, 44), (0,)),
        ((11, 9, 4, 10), (0, 1, 2, 3)),  # small ones are certain whatever the others have
    ],
)
def test_of_labels_that_exceed_alike_the_smaller_masks_are_certain(sizes, found):
    """Measured on overfitted networks with chequered patches: other labels are reached as well, by larger masks."""
    strong = [evidence(i, size=size, success=0.95, without=0.05 + i / 100) for i, size in enumerate(sizes)]
    others = [evidence(4 + i, size=60.0, success=0.95, without=0.09) for i in range(3)]
    verdict = decide(suspect(), [*strong, *(replace(e, metrics={**e.metrics, EXCESS: 0.84}) for e in others)], DEFAULT)
    assert verdict.infected_labels == found
    assert not any(f.finding is Finding.CLEAN for f in verdict.labels)


@pytest.mark.parametrize(
    ("size", "strong", "finding"),
    [
        (206, 0.94, Finding.INCONCLUSIVE),  # measured on a Trojan model of digits
        (206, 0.5, Finding.INFECTED),  # nobody to ride with
        (24, 0.94, Finding.INFECTED),  # as small as the other's
    ],
)
def test_a_label_that_stands_out_beside_a_certain_one_of_a_smaller_mask_is_left_open(size, strong, finding):
    others = [evidence(i, size=200, success=0.95, without=0.85) for i in range(8)]
    certain = evidence(8, size=20, success=0.95, without=0.95 - strong)
    verdict = decide(suspect(), [*others, certain, evidence(9, size=size, success=0.95, without=0.37)], DEFAULT)
    assert verdict.labels[9].finding is finding


def test_far_over_clean_models_a_larger_mask_is_no_rider():
    """Measured on a model with a patch for every label: masks of 12 to 31 pixels, excesses of 0.96 to 1.0."""
    excesses = (0.99, 0.93, 0.98, 0.97, 0.98, 0.98, 0.97, 0.98)
    sizes = (31, 31, 16, 20, 12, 13, 13, 17)
    looked_at = [
        evidence(i, size=size, success=1.0, without=1.0 - excess)
        for i, (size, excess) in enumerate(zip(sizes, excesses, strict=True))
    ]
    assert 1 not in decide(suspect(), looked_at, DEFAULT).infected_labels
    assert 0 in decide(suspect(), looked_at, DEFAULT).infected_labels


@pytest.mark.parametrize(
    ("size", "excess", "found"),
    [
        (104, 0.71, (9,)),  # measured on a 14x14 patch: the others' deviation would ask for 0.8
        (150, 0.71, ()),  # not the smallest by a clear distance
        (104, 0.66, ()),
    ],
)
def test_the_smallest_mask_of_all_is_certain_sooner(size, excess, found):
    others = [evidence(i, size=164, success=0.95, without=0.95 - i / 18) for i in range(9)]
    looked_at = [*others, evidence(9, size=size, success=0.95, without=0.95 - excess)]
    verdict = decide(suspect(), looked_at, DEFAULT)
    assert verdict.infected_labels == found
    assert verdict.labels[9].finding is not Finding.CLEAN


@pytest.mark.parametrize(
    ("size", "excess", "second", "finding"),
    [
        (56, 0.46, 0.06, Finding.INFECTED),  # measured on a Trojan model of twelve signs
        (56, 0.46, 0.25, Finding.INCONCLUSIVE),  # another label exceeds its references too
        (90, 0.46, 0.06, Finding.INCONCLUSIVE),  # of no smaller mask
        (56, 0.44, 0.06, Finding.CLEAN),
    ],
)
def test_a_label_that_leads_in_size_and_excess_is_infected_sooner(size, excess, second, finding):
    others = [evidence(1, size=96, success=0.95, without=0.95 - second)]
    others += [evidence(i, size=200, success=0.95, without=0.95) for i in range(2, 12)]
    verdict = decide(suspect(12), [evidence(0, size=size, success=0.95, without=0.95 - excess), *others], DEFAULT)
    assert verdict.labels[0].finding is finding
    assert verdict.infected_labels == ((0,) if finding is Finding.INFECTED else ())
    if finding is Finding.INFECTED:
        assert verdict.labels[0].confidence >= 0.5


def test_a_label_does_not_raise_the_bar_for_itself():
    """Measured on a 14x14 patch: one label of ten exceeds clean models by 0.68, four had nothing to compare."""
    excesses = (None, 0.33, 0.33, None, 0.14, None, None, 0.11, 0.22, 0.68)
    looked_at = [
        evidence(i, size=90.0, success=0.94, without=0.94 - excess)
        if excess
        else evidence(i, success=0.3, without=None)
        for i, excess in enumerate(excesses)
    ]
    assert decide(suspect(), looked_at, DEFAULT).infected_labels == (9,)


@pytest.mark.parametrize(
    ("excess", "first", "later"),
    [
        (0.05, False, False),
        (0.15, False, False),
        (0.3, True, False),
        (0.4, True, True),
        (0.7, True, True),
        (0.85, False, False),
    ],
)
def test_what_is_neither_trigger_nor_patch_is_looked_at_again(excess, first, later):
    look = evidence(success=0.9, without=0.9 - excess)
    assert is_unclear(look, DEFAULT) is first
    assert is_unclear(merged([evidence(success=0.9, without=0.6), look], DEFAULT.verdict), DEFAULT) is later
    assert not is_unclear(evidence(without=None), DEFAULT)


def test_second_looks_count_as_their_mean_with_the_smallest_trigger():
    first, second = evidence(size=60.0, success=0.9, without=0.3), evidence(size=40.0, success=1.0, without=0.2)
    third = evidence(size=50.0, success=1.0, without=0.4)
    assert merged([first], DEFAULT.verdict) is first
    both = merged([first, second], DEFAULT.verdict)
    assert both.trigger is second.trigger
    assert both.metrics[EXCESS] == pytest.approx(0.8)  # the first chose the label: it does not count
    assert both.metrics["excess_spread"] == pytest.approx(0.2)
    assert both.metrics["looks"] == 2
    every = merged([first, second, third], DEFAULT.verdict)
    assert every.metrics[EXCESS] == pytest.approx(0.7)
    assert every.attack_success - every.metrics[CLEAN_SUCCESS] == pytest.approx(0.7)
    nothing = evidence(size=20.0, success=0.9, without=None)  # transferred: no comparison was made
    assert merged([first, second, nothing], DEFAULT.verdict).metrics[EXCESS] == pytest.approx(0.4)
    assert merged([first, nothing], DEFAULT.verdict).metrics[EXCESS] == 0
    assert merged([first, nothing], DEFAULT.verdict).trigger is first.trigger
    assert merged([nothing, nothing], DEFAULT.verdict).trigger is nothing.trigger


def test_a_further_look_that_is_clear_speaks_alone_if_its_trigger_is_the_smallest():
    """Measured on signs with a planted 4x4 patch: a search ends at 70 to 130 pixels, and then at 20."""
    first, nothing = evidence(size=130.0, success=0.95, without=0.6), evidence(size=70.0, success=0.95, without=None)
    found, larger = (evidence(size=size, success=0.95, without=0.0) for size in (20.0, 200.0))
    said = merged([first, nothing, found], DEFAULT.verdict)
    assert said.metrics[EXCESS] == pytest.approx(0.95)
    assert said.trigger is found.trigger
    assert said.metrics["highest_excess"] == pytest.approx(0.95)
    assert said.metrics["excess_spread"] == pytest.approx(0.95)  # the second look had nothing to compare
    assert decide(suspect(), [said], DEFAULT).infected_labels == (said.trigger.label,)
    assert merged([first, nothing, larger], DEFAULT.verdict).metrics[EXCESS] == pytest.approx(0.95 / 2)
    one_by_one = merged([merged([first, nothing], DEFAULT.verdict), larger], DEFAULT.verdict)
    assert one_by_one.metrics == merged([first, nothing, larger], DEFAULT.verdict).metrics


def test_nothing_to_compare_in_any_look_is_nothing_to_compare():
    nothing = evidence(size=20.0, success=0.9, without=None)
    found = evidence(size=30.0, success=0.9, without=0.5)
    twice = merged([nothing, nothing], DEFAULT.verdict)
    assert EXCESS not in twice.metrics
    assert merged([twice, found], DEFAULT.verdict).trigger is found.trigger  # though it is the largest
    assert merged([twice, found], DEFAULT.verdict).metrics[EXCESS] == pytest.approx(0.2)


def test_confidence_grows_with_the_distance_from_the_threshold():
    certain, barely, patch = (decide(suspect(), [evidence(without=w)], DEFAULT).labels[0] for w in (0.05, 0.42, 0.95))
    assert certain.confidence == 1.0
    assert 0.5 <= barely.confidence < 0.7
    assert 0.9 < patch.confidence <= 1.0
    assert decide(suspect(), [evidence(without=0.49)], DEFAULT).labels[0].confidence is None
    assert decide(suspect(), [evidence(without=None)], PAPER).labels[0].confidence is None


@pytest.mark.parametrize(("contrast", "finding"), [(0.6, Finding.INCONCLUSIVE), (0.89, Finding.INFECTED)])
def test_a_change_of_colours_that_keeps_less_contrast_than_filters_do_is_left_open(contrast, finding):
    one = evidence(without=0.0, transfer=(0.0,))
    colours = np.zeros((1, 2), np.float32)
    coloured = replace(one, trigger=replace(one.trigger, colours=colours), metrics={**one.metrics, CONTRAST: contrast})
    (label,) = decide(suspect(), [coloured], DEFAULT).labels
    assert label.finding is finding
    assert (f"{contrast:.0%} of the contrast" in label.reason) is (finding is Finding.INCONCLUSIVE)
