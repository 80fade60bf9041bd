"""Many labels: a short look at all, a long one at the suspicious, and nothing lost between the two."""

from dataclasses import replace

import numpy as np
import pytest

from neuralsanitizer.config import PAPER, ScreenConfig
from neuralsanitizer.detectors.base import Evidence
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.detectors.neural_sanitizer.screen import COLOUR_LEAD, by_suspicion
from neuralsanitizer.detectors.neural_sanitizer.verdict import EXCESS, SCREENED
from neuralsanitizer.execution.store import MemoryStore
from neuralsanitizer.records import Finding, Trigger
from quick import QUICK, TARGET

SCREEN = ScreenConfig(least_labels=2, steps=80, batch=2, least_share=0.1)


def glance(label, size, *, works=True, success=0.9, lead=None):
    mask = np.zeros((10, 10), np.float32)
    mask.flat[:size] = 1
    metrics = {"reached_goal": float(works), "fitted_success": success, SCREENED: 1.0}
    if lead is not None:
        metrics[COLOUR_LEAD] = lead
    return Evidence(Trigger(label, mask, np.zeros((1, 10, 10), np.float32)), success, (), metrics)


def test_small_patches_that_work_come_first_then_those_that_nearly_do():
    glances = [
        glance(0, 40),
        glance(1, 5, works=False, success=0.4),
        glance(2, 90, works=False, success=0.8),
        glance(3, 7),
    ]
    assert by_suspicion(glances) == [3, 0, 2, 1]


def test_patches_and_changes_of_colours_take_turns():
    leads = (0.1, 0.9, 0.0, 0.5)
    assert by_suspicion([glance(i, 10 + i, lead=lead) for i, lead in enumerate(leads)]) == [0, 1, 3, 2]


def screened(attacked, clean, store=None, **changes):
    config = replace(QUICK, screen=replace(SCREEN, **changes))
    return NeuralSanitizer(config).scan(attacked.model, clean, seed=0, store=store)


@pytest.fixture(scope="module")
def store():
    return MemoryStore()


@pytest.fixture(scope="module")
def found(attacked, clean, store):
    return screened(attacked, clean, store)


def test_the_infected_label_gets_the_long_look_and_most_clean_ones_do_not(found, attacked, clean):
    assert found.verdict.infected_labels == (TARGET,)
    short = [f for f in found.verdict.labels if SCREENED in f.metrics]
    assert len(found.verdict.labels) == attacked.model.labels
    assert 5 <= len(short) <= 8
    assert all(f.finding is Finding.CLEAN and "short look" in f.reason and EXCESS not in f.metrics for f in short)
    # A long look is the same with a short one before it and without.
    (whole,) = NeuralSanitizer(QUICK).scan(attacked.model, clean, seed=0, labels=[TARGET]).verdict.labels
    chosen = found.verdict.labels[TARGET]
    assert (whole.attack_success, whole.metrics) == (chosen.attack_success, chosen.metrics)


def test_an_interrupted_scan_keeps_short_and_long_looks(found, store, attacked, clean):
    class Broken(MemoryStore):
        """Loses nothing, takes nothing new."""

        def put(self, key, part):
            raise AssertionError(f"{key} was made again: {part.meta}")

    full = Broken()
    full._parts = store._parts
    again = screened(attacked, clean, full)
    assert [f.reason for f in again.verdict.labels] == [f.reason for f in found.verdict.labels]
    for label in range(attacked.model.labels):
        assert (SCREENED in Evidence.kept(store, label).metrics) == (SCREENED in found.verdict.labels[label].metrics)
    assert Evidence.kept(store, attacked.model.labels) is None


def test_where_every_batch_is_suspicious_all_labels_get_the_long_look(attacked, clean):
    config = replace(QUICK, screen=SCREEN, verdict=replace(QUICK.verdict, clean_excess=-1.0, least_attack_success=0.0))
    config = replace(
        config, transfer=replace(config.transfer, threshold=1.1), reconstruct=replace(QUICK.reconstruct, steps=10)
    )
    found = NeuralSanitizer(config).scan(attacked.model, clean, seed=0)
    assert not any(SCREENED in f.metrics for f in found.verdict.labels)


def test_the_smallest_share_gets_the_long_look_whatever_it_finds(attacked, clean):
    found = screened(attacked, clean, least_share=1.0)
    assert not any(SCREENED in f.metrics for f in found.verdict.labels)


def test_few_labels_and_the_published_method_know_no_short_look(attacked, clean):
    assert PAPER.screen is None
    found = screened(attacked, clean, least_labels=11, steps=1)
    assert not any(SCREENED in f.metrics for f in found.verdict.labels)
