"""Ablations: one change each, and a name that tells it from the detector as it is."""

from dataclasses import asdict

import pytest

from neuralsanitizer.benchmark.ablations import ABLATIONS, detector_named
from neuralsanitizer.config import PRESETS
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import UsageError

PUBLISHED = {"no-critical-features", "nc-inversion", *(name for name in ABLATIONS if name.startswith("tuned-at-"))}


def settings(config):
    stages = {stage: values for stage, values in asdict(config).items() if values is None or isinstance(values, dict)}
    return {f"{stage}.{name}": value for stage, values in stages.items() for name, value in (values or {}).items()}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_says_in_one_stage_and_its_name(name):
    preset = "paper" if name in PUBLISHED else "default"
    changed, usual = detector_named(f"neural-sanitizer/{preset}:{name}"), NeuralSanitizer(PRESETS[preset])
    assert changed.preset == f"{preset}:{name}"
    ours, theirs = settings(changed.config), settings(usual.config)
    stages = {key.split(".")[0] for key in theirs if ours.get(key) != theirs[key]}
    assert len(stages) == (2 if name == "nc-inversion" else 1)


def test_without_an_ablation_it_is_the_detector_as_users_have_it():
    assert detector_named("neural-sanitizer/default").settings == NeuralSanitizer().settings
    assert detector_named("neural-cleanse").name == "neural-cleanse"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("magic/default", "unknown method"),
        ("neural-sanitizer/magic", "unknown preset"),
        ("neural-sanitizer/default:magic", "unknown ablation 'magic': choose one of nc-inversion"),
        ("neural-cleanse/default:no-size", "neural-cleanse has no ablations"),
    ],
)
def test_wrong_names_are_told(name, reason):
    with pytest.raises(UsageError, match=reason):
        detector_named(name)


def test_tuned_references_are_as_many_as_the_others_and_all_different():
    references = detector_named("neural-sanitizer/default:tuned-references").config.references
    plans = [*references.guides, *references.tests]
    assert [len(references.guides), len(references.tests)] == [3, 2]
    assert {plan.kind for plan in plans} == {"tuned"}
    assert len({plan.layers for plan in plans}) == 5
