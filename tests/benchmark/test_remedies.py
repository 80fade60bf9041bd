"""``bench remedies``: what methods, filters and reversed triggers are worth, measured on planted triggers."""

import shutil
from dataclasses import replace

import pytest
import torch

from neuralsanitizer import config
from neuralsanitizer.benchmark import grid
from neuralsanitizer.benchmark.remedies import read_remedies, score_remedies
from neuralsanitizer.benchmark.remedy_tables import remedies_markdown, remedy_sections
from neuralsanitizer.benchmark.run import Bench, Scanned
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.progress import NoProgress
from neuralsanitizer.mitigation.prune import Prune
from neuralsanitizer.pipeline.repairing import _MITIGATIONS
from neuralsanitizer.storage import RunFolder
from quick import TARGET

METHODS = ("pruning", "unlearning")
CASE = grid.cases("development")[:1]


@pytest.fixture(scope="module")
def bench(attacked, clean, unseen, quick_folder, tmp_path_factory):
    """A benchmark whose only case is the attacked model, scanned quickly."""
    root = tmp_path_factory.mktemp("bench")
    shutil.copytree(quick_folder, root / "run")
    scanned = Scanned(attacked, RunFolder(root / "run"), clean, unseen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "scanned", lambda *_: scanned)
        patch.setitem(config.UNLEARN_PRESETS, "quick", config.UnlearnConfig(steps=150))
        yield Bench(root, root, torch.device("cpu"), 0, NoProgress(), "repair")


@pytest.fixture(scope="module")
def score(bench):
    (score,) = score_remedies(bench, CASE, "neural-sanitizer/default", METHODS)
    return score


def test_every_method_is_measured_on_the_planted_trigger(score):
    assert (score.planted, score.found) == ((TARGET,), (TARGET,))
    assert score.attack_success[0] > 0.9
    assert tuple(score.repairs) == METHODS
    unlearnt = score.repairs["unlearning"].score
    assert unlearnt.attack_success[0] < 0.2
    assert unlearnt.clean_accuracy > score.clean_accuracy - 0.03
    assert score.repairs["unlearning"].complete
    assert next(point.share for point in score.repairs["pruning"].curve) == 0


def test_filters_are_tried_on_attacks_that_succeed(score, unseen):
    published, ours = score.filters["neural-cleanse"], score.filters["discriminant"]
    others = int((unseen.labels != TARGET).sum())
    assert published.attacks == ours.attacks == (round(score.attack_success[0] * others),)
    assert ours.missed[0] < 0.1
    assert ours.false_alarms < ours.false_alarms_of_judged < 0.2
    alarms = [point.false_alarms for point in ours.curve]
    missed = [point.missed for point in ours.curve]
    assert alarms == sorted(alarms)
    assert missed == sorted(missed, reverse=True)


def test_the_reversed_trigger_is_compared_with_the_planted(score):
    (one,) = score.likenesses
    assert (one.label, one.planted_size) == (TARGET, 16)
    assert 0 <= one.overlap <= 1
    assert one.neurons > 0
    assert one.planted_left < score.attack_success[0]
    assert one.reversed_left < 0.9


def test_nothing_is_done_twice_and_a_method_can_be_added(bench, score, monkeypatch):
    def fail(*_args):
        raise AssertionError("scanned again")

    monkeypatch.setattr(Bench, "scanned", fail)
    assert score_remedies(bench, CASE, "neural-sanitizer/default", METHODS) == [score]
    assert read_remedies(bench.output) == [score]
    with pytest.raises(AssertionError, match="scanned again"):
        score_remedies(bench, CASE, "neural-sanitizer/default", (*METHODS, "fine-tuning"))


def test_another_detector_has_scores_of_its_own(bench, score):
    cleanse = "neural-cleanse/default"
    (other,) = score_remedies(bench, CASE, cleanse, ())
    assert (other.detector, score.detector) == (cleanse, "neural-sanitizer/default")
    assert other.repairs == {}
    assert read_remedies(bench.output) == [score]
    assert read_remedies(bench.output, cleanse) == [other]


def test_where_proofs_are_wanted_a_repair_without_one_is_done_again(bench, score):
    assert score.repairs["pruning"].score.proof is None
    proving = replace(bench, output=bench.output / "proven", through="verify")
    shutil.copytree(bench.output / "remedies", proving.output / "remedies")
    (proven,) = score_remedies(proving, CASE, "neural-sanitizer/default", ("pruning",))
    assert proven.repairs["pruning"].score.proof is not None
    assert proven.repairs["unlearning"] == score.repairs["unlearning"]
    assert tuple(proven.repairs) == METHODS


def test_a_method_that_cannot_be_applied_has_no_score_and_counts_in_no_mean(bench, score, monkeypatch):
    monkeypatch.setitem(_MITIGATIONS, "fine-tuning", lambda _: Prune(config.PruneConfig(layers=())))
    (with_it,) = score_remedies(bench, CASE, "neural-sanitizer/default", ("fine-tuning",))
    tried = with_it.repairs["fine-tuning"]
    assert (tried.score, tried.kept, tried.complete) == (None, "", False)
    assert "no layer that can be pruned" in tried.reason
    assert read_remedies(bench.output) == [with_it]
    alone, both = (
        remedy_sections([replace(with_it, repairs={"pruning": p}) for p in of])
        for of in ((score.repairs["pruning"],), (score.repairs["pruning"], tried))
    )
    (row,) = alone["remedies"].splitlines()[2:]
    assert both["remedies"].splitlines()[2:] == [row.replace("| 1 |", "| 1 (not applicable to 1) |", 1)]
    assert "not applicable" in both["every remedy"]
    assert "| fine-tuning | 0 (not applicable to 1) | - |" in remedy_sections([with_it])["remedies"]


def test_clean_models_are_not_even_scanned(bench, monkeypatch):
    def fail(*_args):
        raise AssertionError("scanned")

    monkeypatch.setattr(Bench, "scanned", fail)
    clean_cases = [case for case in grid.cases("development") if case.backdoors == "clean"]
    assert clean_cases
    assert score_remedies(bench, clean_cases, "neural-sanitizer/default", METHODS) == []


def test_an_unknown_method_is_refused_before_any_work(bench):
    with pytest.raises(UsageError, match="pruning"):
        score_remedies(bench, CASE, "neural-sanitizer/default", ("prayer",))


def test_tables_are_made_of_scores_alone(score):
    page = remedies_markdown([score])
    tables = remedy_sections([score])
    assert page.count("## ") == 4
    for method in METHODS:
        assert f"| {method} | 1 |" in tables["remedies"]
    assert f"{max(score.attack_success):.1%}, {score.clean_accuracy:.2%}" in tables["every remedy"]
    assert "discriminant" in tables["filters"]
    assert f"| {TARGET} | 16 |" in tables["likeness"]
    assert all(table.count("\n") == 1 for table in remedy_sections([]).values())
