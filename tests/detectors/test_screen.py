"""Many labels: a short look at all, a long one at the suspicious, and nothing lost between the two."""

from dataclasses import replace

import numpy as np
import pytest

from neuralsanitizer.config import PAPER, ScreenConfig
from neuralsanitizer.detectors.base import SCREENED, Evidence
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.detectors.neural_sanitizer.screen import COLOUR_LEAD, by_suspicion
from neuralsanitizer.detectors.neural_sanitizer.verdict import EXCESS
from neuralsanitizer.execution.store import FolderStore, MemoryStore
from neuralsanitizer.records import Finding, Trigger
from quick import QUICK, TARGET

SCREEN = ScreenConfig(least_labels=2, steps=80, batch=2, least_share=0.1)
LABELS = (0, 1, 2, 3, TARGET)


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


@pytest.fixture(scope="module")
def scanned(attacked, clean):
    """Scans some labels with changed settings; all scans share their references."""
    shared = MemoryStore()

    def scanned(config=QUICK, labels=LABELS, store=None, **changes):
        config = replace(config, screen=replace(SCREEN, **changes))
        return NeuralSanitizer(config, shared).scan(attacked.model, clean, seed=0, labels=labels, store=store)

    return scanned


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FolderStore(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def found(scanned, store):
    return scanned(store=store)


def test_the_infected_label_gets_the_long_look_and_most_clean_ones_do_not(found, scanned):
    assert found.verdict.infected_labels == (TARGET,)
    short = [f for f in found.verdict.labels if SCREENED in f.metrics]
    assert [f.label for f in found.verdict.labels] == list(LABELS)
    assert 1 <= len(short) <= 3
    assert all(f.finding is Finding.CLEAN and "short look" in f.reason and EXCESS not in f.metrics for f in short)
    # A short look's trigger is remembered by its size alone: of thousands of labels they would fill the memory.
    assert {f.label: f.has_trigger for f in found.verdict.labels} == {x: x in found.triggers for x in LABELS}
    assert not any(f.has_trigger for f in short)
    assert all(f.mask_size > 0 for f in short)
    # A long look is the same with a short one before it and without.
    (whole,) = scanned(labels=[TARGET], least_labels=2).verdict.labels
    chosen = found.verdict.labels[-1]
    assert whole.attack_success == pytest.approx(chosen.attack_success, abs=0.05)  # sums in another order
    assert whole.metrics == pytest.approx(chosen.metrics, abs=0.05)


def test_what_ends_with_the_process_is_not_filled_with_short_looks(scanned, found):
    store, kept = MemoryStore(), []
    put = store.put
    store.put = lambda key, part: (kept.append(key), put(key, part))
    again = scanned(store=store)
    assert [f.finding for f in again.verdict.labels] == [f.finding for f in found.verdict.labels]
    assert not any(key.startswith("glance") for key in kept)
    assert any(key.startswith("label") for key in kept)


def test_an_interrupted_scan_keeps_short_and_long_looks(found, store, scanned, attacked):
    class Kept(MemoryStore):
        """Has what the other store has, and takes nothing new."""

        get = store.get

        def put(self, key, part):
            raise AssertionError(f"{key} was made again: {part.meta}")

    again = scanned(store=Kept())
    assert [f.reason for f in again.verdict.labels] == [f.reason for f in found.verdict.labels]
    for one in found.verdict.labels:
        assert (SCREENED in Evidence.kept(store, one.label, attacked.model).metrics) == (SCREENED in one.metrics)
    assert Evidence.kept(store, 9, attacked.model) is None


EVERYTHING_MAY_BE = replace(
    QUICK,
    verdict=replace(QUICK.verdict, clean_excess=-1.0, least_attack_success=0.0, restarts=0),
    transfer=replace(QUICK.transfer, threshold=1.1),
    reconstruct=replace(QUICK.reconstruct, steps=10),
)
"""No label is clean, whatever is measured of it."""


def test_where_every_batch_holds_an_infected_label_all_get_the_long_look(scanned):
    every = dict.fromkeys(("infected_excess", "certain_excess", "certain_excess_of_small"), -1.0)
    config = replace(EVERYTHING_MAY_BE, verdict=replace(EVERYTHING_MAY_BE.verdict, rides_along=1e9, **every))
    assert not any(SCREENED in f.metrics for f in scanned(config).verdict.labels)


def test_labels_that_are_left_open_do_not_send_for_others(scanned):
    never = dict.fromkeys(("infected_excess", "certain_excess", "certain_excess_of_small"), 2.0)
    config = replace(EVERYTHING_MAY_BE, verdict=replace(EVERYTHING_MAY_BE.verdict, **never))
    labels = scanned(config).verdict.labels
    assert any(f.finding is Finding.INCONCLUSIVE for f in labels)
    assert any(SCREENED in f.metrics for f in labels)


def test_the_smallest_share_gets_the_long_look_whatever_it_finds(scanned):
    quick = replace(QUICK, reconstruct=replace(QUICK.reconstruct, steps=10))
    found = scanned(quick, labels=(0, 1, 2, 3), least_share=1.0)
    assert not any(SCREENED in f.metrics for f in found.verdict.labels)
    assert any(SCREENED in f.metrics for f in scanned(quick, labels=(0, 1, 2, 3), least_share=0.1).verdict.labels)


def test_few_labels_and_the_published_method_know_no_short_look(scanned):
    assert PAPER.screen is None
    quick = replace(QUICK, reconstruct=replace(QUICK.reconstruct, steps=10))
    assert not any(SCREENED in f.metrics for f in scanned(quick, least_labels=len(LABELS) + 1).verdict.labels)
