"""Before a model is called clean, labels of any excess are looked at again: which, when, and what is kept of it."""

from dataclasses import replace

import numpy as np
import pytest

from neuralsanitizer.config import PAPER
from neuralsanitizer.detectors.base import AGAIN, Evidence
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer, detector
from neuralsanitizer.detectors.neural_sanitizer.detector import References
from neuralsanitizer.detectors.neural_sanitizer.families import Family
from neuralsanitizer.detectors.neural_sanitizer.tune import Reference
from neuralsanitizer.detectors.neural_sanitizer.verdict import CLEAN_SUCCESS, EXCESS, doubtful, with_patch
from neuralsanitizer.execution.store import FolderStore
from neuralsanitizer.records import ReferenceRecord, Trigger
from quick import QUICK, TARGET

LABELS = (0, 1, 2, TARGET)


def first_look(label, excess, **metrics):
    """What the first look at a label is said to have found: a patch of a quarter of the picture."""
    mask = np.zeros((28, 28), np.float32)
    mask[:14, :14] = 1
    known = {} if excess is None else {EXCESS: excess, CLEAN_SUCCESS: 0.95 - excess}
    success = 0.3 if excess is None else 0.95  # what works on nothing is compared with nothing
    return Evidence(Trigger(label, mask, np.ones((1, 28, 28), np.float32)), success, (0.0,), {**known, **metrics})


class Planted(Family):
    """Finds the planted trigger whenever it looks, and knows no better one for other networks."""

    noun = "triggers"
    steps, steps_of_like, stand_ins, looks_again = 1, 1, 2, 1

    def __init__(self, planted):
        self.planted, self.looked_at = planted, []

    def reconstruct(self, _, __, labels, *___, **____):
        self.looked_at += labels
        return [(replace(self.planted, label=label), {}) for label in labels]

    def likes(self, _, __, ___, triggers, ____):
        return list(triggers)


@pytest.fixture
def scanned(attacked, honest, clean, monkeypatch):
    """Scans the attacked model; what the first look at its labels says is given."""
    record = ReferenceRecord("r", "scratch", "guide", (), 1.0, 1.0, usable=True, reason="", seconds=0.0)
    references = (Reference(honest.model, record),) * 2
    family = Planted(attacked.triggers[0])
    monkeypatch.setattr(detector, "families_for", lambda *_: (family,))

    def scanned(excesses, store=None, config=QUICK):
        class Told(NeuralSanitizer):
            def prepare(self, _):
                return References(references, references), ()

            def examine(self, _, __, labels):
                known = {label: one if isinstance(one, tuple) else (one, {}) for label, one in excesses.items()}
                return [first_look(label, known[label][0], **known[label][1]) for label in labels]

        family.looked_at = []
        found = Told(config).scan(attacked.model, clean, labels=LABELS, store=store)
        return found.verdict, family.looked_at

    return scanned


def test_a_trigger_that_the_first_look_missed_is_found_by_the_second(scanned, tmp_path):
    store = FolderStore(tmp_path)
    missed = {0: 0.1, 1: 0.2, 2: None, TARGET: 0.15}
    verdict, looked_at = scanned(missed, store)
    assert looked_at == [1, TARGET]  # the others have none, or hardly any
    assert verdict.infected_labels == (TARGET,)
    finding = verdict.labels[-1]
    assert finding.metrics["looks"] == 2
    assert finding.metrics[EXCESS] > 0.9  # of the second look alone
    assert finding.mask_size == 16
    assert store.get(f"{AGAIN}-{TARGET}") is not None
    resumed, looked_at = scanned(missed, store)
    assert looked_at == []
    assert resumed == verdict


def test_nobody_looks_again_where_a_label_is_infected_or_nothing_is_compared(scanned):
    verdict, looked_at = scanned({0: 0.0, 1: 0.97, 2: None, TARGET: 0.15})
    assert verdict.infected_labels == (1,)
    assert looked_at == []
    assert scanned(dict.fromkeys(LABELS, -0.05))[1] == []
    assert scanned(dict.fromkeys(LABELS), config=PAPER)[1] == []


def test_a_label_whose_second_look_found_less_than_the_first_gets_another(scanned, tmp_path):
    """Measured on signs: the first look at the infected label had 0.43, the second, at another patch, nothing."""
    twice = {"looks": 2.0, "highest_excess": 0.43, "excess_spread": 0.43}
    looks = {0: (-0.1, {}), 1: (0.0, {}), 2: (None, {}), TARGET: (0.0, twice)}
    verdict, looked_at = scanned(looks, FolderStore(tmp_path))
    assert looked_at == [TARGET]
    assert verdict.infected_labels == (TARGET,)
    assert verdict.labels[-1].metrics["looks"] == 3
    resumed, looked_at = scanned(looks, FolderStore(tmp_path))
    assert looked_at == []
    assert resumed == verdict


def test_what_was_looked_at_twice_or_is_a_change_of_colours_is_in_no_doubt_at_first():
    look = first_look(0, 0.2)
    assert doubtful([look], 1, QUICK) == [0]
    twice = first_look(0, 0.2, looks=2.0, highest_excess=0.3)
    assert doubtful([twice], 1, QUICK) == []
    assert doubtful([twice], 2, QUICK) == [0]
    assert doubtful([first_look(0, 0.2, looks=2.0, highest_excess=0.25)], 2, QUICK) == []
    tone = Trigger.of_colours(0, np.eye(1, 2, dtype=np.float32), (28, 28))
    for number in (1, 2):
        assert doubtful([replace(look, trigger=tone)], number, QUICK) == []


def test_later_doubts_are_few():
    config = replace(QUICK, verdict=replace(QUICK.verdict, doubtful_least=2, doubtful_share=0.1))
    looks = [first_look(label, label / 100) for label in range(40)]
    assert doubtful(looks, 1, config) == [*range(11, 26)]  # from 0.25 on they are not clear, and were looked at again
    assert doubtful(looks, 2, config) == [39, 38, 37, 36]
    assert doubtful(looks[20:30], 3, config) == [29, 28]
    assert doubtful([first_look(0, 0.0), first_look(1, None)], 2, config) == []


def test_what_is_known_of_colours_stays_beside_another_look_for_patches():
    before = first_look(0, 0.2, patch_excess=0.2, colour_excess=0.1, colour_success=0.9)
    after = with_patch(before, first_look(0, 0.6, looks=2.0))
    assert after.metrics[EXCESS] == after.metrics["patch_excess"] == 0.6
    assert (after.metrics["colour_excess"], after.metrics["colour_success"]) == (0.1, 0.9)
    assert "patch_excess" not in with_patch(first_look(0, 0.2), first_look(0, 0.6)).metrics
