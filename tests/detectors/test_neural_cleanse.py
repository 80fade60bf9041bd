"""Neural Cleanse: the search, and the statistic over labels."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from neuralsanitizer.config import NEURAL_CLEANSE_PRESETS, NeuralCleanseConfig
from neuralsanitizer.detectors.base import SCREENED, Evidence
from neuralsanitizer.detectors.neural_cleanse import NeuralCleanse
from neuralsanitizer.execution.store import FolderStore
from neuralsanitizer.models import SuspectModel
from neuralsanitizer.records import Finding, Trigger
from quick import QUICK_CLEANSE, TARGET


@pytest.fixture(scope="module")
def found(attacked, clean):
    return NeuralCleanse(QUICK_CLEANSE).scan(attacked.model, clean, seed=0)


def test_the_planted_label_has_the_smallest_mask(found):
    sizes = {f.label: f.mask_size for f in found.verdict.labels}
    assert min(sizes, key=sizes.get) == TARGET
    assert found.verdict.labels[TARGET].finding is Finding.INFECTED
    assert found.verdict.labels[TARGET].attack_success > 0.9
    assert found.references == ()


def test_both_thresholds_are_in_the_record(found):
    metrics = found.verdict.labels[TARGET].metrics
    assert metrics["threshold_classic"] == 2.0
    assert metrics["threshold_calibrated"] > 2.0
    assert metrics["anomaly_index"] > metrics["threshold_calibrated"]
    assert metrics["checks"] <= QUICK_CLEANSE.checks


def test_a_label_comes_out_alike_alone_or_with_others(attacked, clean):
    config = replace(QUICK_CLEANSE, checks=4)
    both = NeuralCleanse(config).scan(attacked.model, clean, labels=[1, TARGET])
    alone = NeuralCleanse(config).scan(attacked.model, clean, labels=[TARGET])
    difference = np.abs(both.triggers[TARGET].mask - alone.triggers[TARGET].mask)
    assert difference.mean() < 0.02


def judge(sizes, reached=None, config=None, shifts=({},), screened=()):
    suspect = SuspectModel(nn.Flatten(), (1, 40, 40), len(sizes))
    evidence = []
    for label, size in enumerate(sizes):
        mask = np.zeros((40, 40), np.float32)
        mask.flat[:size] = 1
        hit = 1.0 if reached is None else float(reached[label])
        metrics = {"reached_goal": hit, "checks": 1.0}
        for number, shift in enumerate(shifts):
            if hit and (more := shift.get(label, 0)) is not None:
                metrics[f"size_{number}"] = float(size + more)
        if label in screened:
            metrics[SCREENED] = 1.0
        evidence.append(Evidence(Trigger(label, mask, mask[None]), 0.99, metrics=metrics))
    return NeuralCleanse(config).judge(suspect, evidence)


SIZES = [100, 104, 97, 110, 92, 101, 106, 95, 99]


def test_small_masks_are_outliers_and_large_ones_are_not():
    assert judge([16, *SIZES]).infected_labels == (0,)
    assert judge([400, *SIZES]).finding is Finding.CLEAN
    assert judge(SIZES).finding is Finding.CLEAN


def test_labels_that_never_reach_the_goal_are_left_out():
    verdict = judge([16, *SIZES], reached=[False] + [True] * 9)
    assert verdict.finding is Finding.CLEAN
    assert "left out" in verdict.labels[0].reason
    assert "anomaly_index" not in verdict.labels[0].metrics


def test_the_classic_threshold_is_laxer_for_few_labels():
    borderline = [86, *SIZES]
    index = judge(borderline).labels[0].metrics["anomaly_index"]
    assert 2.0 < index < judge(borderline).labels[0].metrics["threshold_calibrated"]
    assert judge(borderline).finding is Finding.CLEAN
    assert judge(borderline, config=NeuralCleanseConfig(classic=True)).infected_labels == (0,)


def test_too_few_labels_to_compare_is_inconclusive():
    assert judge([16, 100]).finding is Finding.INCONCLUSIVE


def test_the_paper_preset_has_the_authors_schedule():
    paper = NEURAL_CLEANSE_PRESETS["paper"]
    assert (paper.checks, paper.batches_per_check, paper.classic, paper.threshold) == (1000, 31, True, 2.0)


STABLE = NEURAL_CLEANSE_PRESETS["stable"]


def test_with_several_searches_the_median_index_decides_and_its_spread_is_told():
    verdict = judge([16, *SIZES], config=STABLE, shifts=({}, {0: 2}, {0: 4}))
    metrics = verdict.labels[0].metrics
    assert verdict.infected_labels == (0,)
    assert metrics["anomaly_index_lowest"] < metrics["anomaly_index"] < metrics["anomaly_index_highest"]
    assert "over 3 searches" in verdict.labels[0].reason


def test_a_label_whose_index_is_on_both_sides_of_the_threshold_is_left_open():
    verdict = judge([16, *SIZES], config=STABLE, shifts=({}, {0: 84}, {0: 4}))
    assert verdict.labels[0].finding is Finding.INCONCLUSIVE
    assert verdict.finding is Finding.INCONCLUSIVE


def test_a_label_that_not_every_search_could_reach_is_left_open():
    """The searches that found no mask for it speak against the one that did."""
    first = judge([16, *SIZES], config=STABLE, shifts=({}, {0: None}, {0: None})).labels[0]
    assert first.finding is Finding.INCONCLUSIVE
    assert "found in 1 of 3 searches only" in first.reason


def test_every_search_of_a_label_starts_elsewhere(attacked, clean):
    config = replace(QUICK_CLEANSE, checks=12, goal=0.5, restarts=2)
    found = NeuralCleanse(config).scan(attacked.model, clean, labels=[1, TARGET, 3])
    metrics = next(f.metrics for f in found.verdict.labels if f.label == TARGET)
    assert metrics["size_0"] != metrics["size_1"]
    assert found.triggers[TARGET].size == pytest.approx(min(metrics["size_0"], metrics["size_1"]), rel=1e-4)
    assert metrics["checks"] > 12


def test_labels_with_a_short_search_alone_are_clean_and_do_not_count():
    verdict = judge([16, *SIZES, 700, 800], screened=(10, 11))
    assert verdict.infected_labels == (0,)
    assert "short search" in verdict.labels[10].reason
    assert "anomaly_index" not in verdict.labels[10].metrics
    assert (
        verdict.labels[0].metrics["threshold_calibrated"]
        > judge([16, *SIZES]).labels[0].metrics["threshold_calibrated"]
    )  # for twelve labels, not ten


def test_of_many_labels_those_with_the_smallest_masks_are_refined(attacked, clean, tmp_path):
    config, store = replace(QUICK_CLEANSE, many=5, short_checks=8, refined=4), FolderStore(tmp_path)
    found = NeuralCleanse(config).scan(attacked.model, clean, seed=0, store=store)
    refined = [f.label for f in found.verdict.labels if SCREENED not in f.metrics]
    assert len(refined) == 4
    assert TARGET in refined
    assert found.verdict.infected_labels == (TARGET,)
    # What was kept is judged alike: a label with a short search alone is known by it.
    kept = [Evidence.kept(store, label, attacked.model) for label in range(10)]
    known = [one.outlined() if SCREENED in one.metrics else one for one in kept]
    assert NeuralCleanse(config).judge(attacked.model, known) == found.verdict
