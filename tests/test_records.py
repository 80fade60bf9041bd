import json

import numpy as np
import pytest

from neuralsanitizer.errors import RunError
from neuralsanitizer.records import (
    SCHEMA_VERSION,
    Finding,
    LabelFinding,
    Run,
    SelfCheck,
    Trigger,
    Verdict,
    from_json,
    to_json,
)


def test_round_trip_through_json_text():
    finding = LabelFinding(3, "three", Finding.INFECTED, 0.99, 12.5, (0.0, 0.1), None, "why", {"index": 3.0}, True)
    verdict = Verdict(Finding.INFECTED, "because", ("one",), (finding,))
    assert from_json(Verdict, json.loads(json.dumps(to_json(verdict)))) == verdict


def test_findings_are_written_as_plain_words():
    assert to_json(Finding.INFECTED) == "infected"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passed": "yes"}, "passed: expected bool"),
        ({"images": 1.5}, "images: expected int"),
        ({"images": True}, "images: expected int"),
        ({"surprise": 1}, "no other fields"),
        ({"chance": None}, "chance: expected a number"),
    ],
)
def test_wrong_fields_are_named(change, message):
    data = to_json(SelfCheck(0.9, 0.1, 100, True)) | change
    with pytest.raises(RunError, match=message):
        from_json(SelfCheck, data)


def test_missing_fields_are_named():
    with pytest.raises(RunError, match="clean_accuracy"):
        from_json(SelfCheck, {"chance": 0.1, "images": 3, "passed": True})


def test_another_generation_of_the_schema_is_refused():
    generation = int(SCHEMA_VERSION.partition(".")[0]) + 1
    with pytest.raises(RunError, match="scan the model again"):
        from_json(Run, {"schema_version": f"{generation}.0"})


def test_a_trigger_checks_its_shapes_and_knows_its_size():
    trigger = Trigger(0, np.full((2, 3), 0.5, np.float32), np.zeros((1, 2, 3), np.float32))
    assert trigger.size == pytest.approx(3.0)
    with pytest.raises(ValueError, match="expected"):
        Trigger(0, np.zeros((2, 3), np.float32), np.zeros((1, 3, 2), np.float32))


def test_infected_labels_follow_from_the_findings():
    labels = tuple(LabelFinding(i, str(i), f, 0.0, 0.0) for i, f in enumerate([Finding.CLEAN, Finding.INFECTED]))
    assert Verdict(Finding.INFECTED, "", (), labels).infected_labels == (1,)
