"""Scores: the truth against the verdict; and the tables that are made of them alone."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuralsanitizer.benchmark import grid
from neuralsanitizer.benchmark.ablations import ABLATIONS
from neuralsanitizer.benchmark.papers import infected_by_mad, infected_by_transfer
from neuralsanitizer.benchmark.run import DETECTORS, Bench, read_scores
from neuralsanitizer.benchmark.score import (
    Rate,
    ReferenceScore,
    RepairScore,
    Score,
    rates,
    score_repair,
    score_scan,
    settings_digest,
)
from neuralsanitizer.benchmark.tables import failures, markdown, sections
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.executors import LocalExecutor
from neuralsanitizer.execution.progress import NoProgress
from neuralsanitizer.pipeline import build_detector
from neuralsanitizer.records import Finding, from_json, to_json
from neuralsanitizer.storage import RunFolder, write_json
from quick import TARGET
from tiny import HASTY


@pytest.fixture(scope="module")
def run(quick_folder):
    return RunFolder(quick_folder).read().run


@pytest.fixture(scope="module")
def score(attacked, run):
    return score_scan("a-model", "reported", "size", attacked, run)


def verdict_of(run, **findings):
    """The run, with other findings: ``clean`` but for those named, as ``label_3="infected"``."""
    wanted = {int(name.removeprefix("label_")): Finding(value) for name, value in findings.items()}
    labels = tuple(replace(f, finding=wanted.get(f.label, Finding.CLEAN)) for f in run.verdict.labels)
    worst = next((f for f in (Finding.INFECTED, Finding.INCONCLUSIVE) if f in wanted.values()), Finding.CLEAN)
    return replace(run, verdict=replace(run.verdict, finding=worst, labels=labels))


def test_a_score_holds_the_truth_beside_the_verdict(score, attacked, run):
    assert (score.planted, score.found, score.finding) == ((TARGET,), (TARGET,), Finding.INFECTED)
    assert score.attack_success == (attacked.truth.triggers[0].attack_success,)
    assert score.clean_accuracy == attacked.truth.clean_accuracy
    assert (score.case, score.split, score.method, score.preset, score.seed) == (
        "a-model", "reported", run.method, run.preset, run.seed,
    )  # fmt: skip
    assert len(score.sizes) == len(score.successes) == len(score.transfers) == 10
    assert score.sizes[TARGET] == round(run.verdict.labels[TARGET].mask_size, 1)
    assert score.transfers[1] == max(run.verdict.labels[1].transfer)


@pytest.mark.parametrize(
    ("infected", "findings", "right"),
    [
        (True, {f"label_{TARGET}": "infected"}, True),
        (True, {f"label_{TARGET}": "infected", "label_2": "infected"}, False),
        (True, {f"label_{TARGET}": "infected", "label_2": "inconclusive"}, True),
        (True, {"label_2": "infected"}, False),
        (True, {f"label_{TARGET}": "inconclusive"}, False),
        (True, {}, False),
        (False, {}, True),
        (False, {"label_2": "infected"}, False),
        (False, {"label_2": "inconclusive"}, False),
    ],
)
def test_right_is_every_planted_label_and_no_other(infected, findings, right, attacked, honest, run):
    truth = attacked if infected else honest
    assert score_scan("m", "reported", "size", truth, verdict_of(run, **findings)).right is right


def test_a_repairs_score_is_measured_on_the_planted_trigger(attacked, quick_repair, unseen):
    _, result = quick_repair

    class Proof:
        finding, timings = Finding.CLEAN, {"total": 1.26}

    scored = score_repair(attacked, result.model, unseen, result.repair, Proof())
    assert scored.attack_success[0] < 0.1 < attacked.truth.triggers[0].attack_success
    assert scored.clean_accuracy == result.model.accuracy(unseen.images, unseen.labels)
    assert scored.reversed_success == max(t.attack_success_after for t in result.repair.triggers)
    assert (scored.proof, scored.verify_seconds, scored.rounds) == (Finding.CLEAN, 1.3, result.repair.rounds)


REPAIR = RepairScore(0.987, (0.0123, 0.5), 0.004, 2, 3.4, Finding.CLEAN, 5.6)


def test_scores_survive_their_files(score, tmp_path):
    both = [score, replace(score, case="b-model", repair=REPAIR)]
    for one in both:
        write_json(tmp_path / "scores" / f"{one.case}.json", to_json(one))
    assert read_scores(tmp_path) == both
    assert from_json(Score, json.loads(json.dumps(to_json(both[1])))) == both[1]
    with pytest.raises(UsageError, match="holds no scores"):
        read_scores(tmp_path / "scores")


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_tables_are_markdown_made_of_scores_alone(score):
    wrong = replace(score, case="b-model", found=(1, TARGET), repair=REPAIR, attack_success=(0.9, 0.8))
    told = markdown([score, wrong]).split("\n\n")
    tables = dict(zip((title.removeprefix("## ") for title in told[::2]), told[1::2], strict=True))
    assert list(tables) == ["Settings", "Rates", "Groups", "Failures", "Models", "Repairs"]
    overall, detection, repairs = tables["Rates"], tables["Models"], tables["Repairs"]
    for table in tables.values():
        parsed = rows(table)
        assert len({len(row) for row in parsed}) == 1
        assert set(parsed[1]) == {"---"}
    first, second = (dict(zip(rows(detection)[0], row, strict=True)) for row in rows(detection)[2:])
    assert (first["model"], first["right"], first["found"]) == ("a-model", "yes", str(TARGET))
    assert (second["right"], second["found"], second["ASR"]) == ("**no**", f"1, {TARGET}", "90.0%, 80.0%")
    (rates_row,) = rows(overall)[2:]
    assert rates_row[1:5] == ["2", "0", "0.0% (0/2; 0.0% to 65.8%)", "5.6% (1/18; 1.0% to 25.8%)"]
    ((name, *cells),) = rows(repairs)[2:]
    assert name == "b-model"
    assert "1.2%, 50.0%" in cells
    assert "clean" in cells


def test_no_scores_make_empty_tables():
    assert {len(rows(table)) for table in sections([]).values()} == {2}
    assert markdown([]) == ""


def test_detectors_are_compared_on_the_models_that_all_have_scanned(score):
    other = replace(score, preset="other", found=())
    alone = replace(score, case="b-model", found=())
    table = rows(sections([score, alone, other])["rates of the same models"])[2:]
    assert [row[:2] for row in table] == [["neural-sanitizer quick", "1"], ["neural-sanitizer other", "1"]]
    assert table[1][3].startswith("100.0% (1/1")
    assert len(rows(sections([score, alone])["rates of the same models"])) == 2  # one detector: nothing to compare


def test_seeds_agree_label_by_label(score):
    again = replace(score, seed=1)
    other = replace(score, seed=2, found=(2, TARGET), inconclusive=(3,))
    alone = replace(score, case="b-model")
    (row,) = rows(sections([score, again, other, alone])["seeds"])[2:]
    assert row == ["neural-sanitizer quick", "1", "3", "80.0% (8/10; 49.0% to 94.3%)"]
    (row,) = rows(sections([again, score, alone])["seeds"])[2:]
    assert row[3].startswith("100.0% (10/10")


def test_ablations_stand_beside_the_detector_on_the_same_models(score):
    changed = replace(score, preset=f"{score.preset}:one-guide", found=())
    elsewhere = replace(changed, case="b-model")  # never scanned with the detector as it is
    tables = sections([score, replace(score, case="c-model", found=()), changed, elsewhere])
    (row,) = rows(tables["ablations"])[2:]
    assert row[:5] == [
        "neural-sanitizer quick", ABLATIONS["one-guide"].what, "1",
        "100.0% (1/1; 20.7% to 100.0%)", "0.0% (0/1; 0.0% to 79.3%)",
    ]  # fmt: skip
    assert len(rows(tables["models"])) == 2 + 2
    assert rows(tables["rates"])[2][1] == "2"


def paper_score(score, **changes):
    """A scan of four labels by the published rule: label 1 is infected, label 2 has a patch, 0 and 3 have nothing."""
    of = replace(
        score, preset="paper", labels=4, planted=(1,), found=(1,), inconclusive=(), sizes=(90.0, 10.0, 100.0, 95.0),
        successes=(0.5, 0.95, 0.9, 0.3), transfers=(0.1, 0.2, 0.7, 0.1), excesses=(None,) * 4,
        transfer=((0.1, 0.0), (0.05, 0.2), (0.3, 0.7), (0.1, 0.1)),
    )  # fmt: skip
    return replace(of, **changes)


def test_the_published_rule_is_asked_again_with_other_numbers(score):
    scan = paper_score(score)
    assert infected_by_transfer(scan) == (1,)
    assert infected_by_transfer(scan, references=1) == (1, 2)
    assert infected_by_transfer(scan, transfers_to=2) == (1, 2)
    assert infected_by_transfer(scan, transfer=0.2) == ()
    assert infected_by_transfer(scan, attack_success=0.4) == (0, 1)
    assert infected_by_transfer(scan, attack_success=0.96) == ()
    assert infected_by_mad(scan) == (1,)
    assert infected_by_mad(replace(scan, successes=(0.5,) * 4)) == ()
    told = {(row[0].split(":")[0], row[1]): row[2:] for row in rows(sections([scan])["thresholds"])[2:]}
    assert told["IX", "1"][0] == "1.5 %, 3.9 %"
    assert told["IX", "1"][1:] == ["0.0% (0/1; 0.0% to 79.3%)", "33.3% (1/3; 6.1% to 79.2%)"]
    assert told["XII", "0.1"][1:] == ["-", "-"]  # no model of many labels


def test_many_labels_have_a_threshold_of_their_own(score):
    assert infected_by_transfer(paper_score(score, labels=43)) == ()


def test_patches_transfer_farther_the_more_references_are_asked(score):
    told = rows(sections([paper_score(score, planted=(0,), successes=(0.9, 0.1, 0.9, 0.1))])["lemma"])[2:]
    assert told == [["1", "0.00", "0.00"], ["2", "1.00", "0.00"]]


def test_survival_groups_references_by_how_they_were_made(score):
    made = [
        ReferenceScore("tuned", (1, 3), 0.9, 0.95, (0.4, 0.0)),
        ReferenceScore("tuned", (1, 3), 0.8, 0.85, (0.6,)),
        ReferenceScore("distilled", (), 0.97, 0.99, (0.01,)),
        ReferenceScore("distilled", (), 0.97, 0.99, ()),  # of a clean model
    ]
    told = rows(sections([replace(score, references=tuple(made))])["survival"])[2:]
    assert [row[1:] for row in told] == [
        ["distilled", "1", "97.0%", "99.0%", "1.0%", "1.0%"],
        ["tuned {1, 3}", "2", "85.0%", "90.0%", "33.3%", "60.0%"],
    ]


def test_failures_name_each_wrong_label_with_its_numbers(score):
    accused = replace(score, case="accused", found=(2, TARGET))
    blind = replace(score, case="blind", found=(), inconclusive=(1,))
    _, _, *told = rows(failures([score, accused, blind]))
    assert [row[:4] for row in told] == [
        ["accused", "neural-sanitizer quick", "2", "false alarm"],
        ["blind", "neural-sanitizer quick", str(TARGET), "missed"],
        ["blind", "neural-sanitizer quick", "1", "clean, left open"],
    ]
    assert told[1][5] == f"{score.sizes[TARGET]:.0f}"


def test_rates_count_missed_labels_false_alarms_and_open_labels(score):
    missed = replace(score, found=())
    false_alarm = replace(score, planted=(), found=(2,), finding=Finding.INFECTED)
    open_one = replace(score, found=(), inconclusive=(TARGET,), finding=Finding.INCONCLUSIVE)
    unjudged = replace(open_one, inconclusive=(), sizes=())
    measured = rates([score, missed, false_alarm, open_one, unjudged])
    assert (measured.missed.count, measured.missed.total) == (3, 4)
    assert (measured.false_alarms.count, measured.false_alarms.total) == (1, 46)
    assert (measured.left_open.count, measured.left_open.total) == (1 + 10, 50)
    assert (measured.models_right.count, measured.models_right.total) == (1, 5)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilsons_interval_holds_the_rate_and_narrows(total, share):
    rate, more = Rate(round(share * total), total), Rate(4 * round(share * total), 4 * total)
    low, high = rate.interval
    assert 0 <= low <= rate.value + 1e-9
    assert rate.value - 1e-9 <= high <= 1
    assert more.interval[1] - more.interval[0] < high - low


def test_every_detector_that_is_compared_exists():
    for detector in DETECTORS:
        method, _, preset = detector.partition("/")
        assert build_detector(method, preset).preset == preset


class Watched(LocalExecutor):
    """Works here, and notes what it was given."""

    def __init__(self):
        self.shards = []

    def map(self, job, shards, progress):
        self.shards += shards
        return super().map(job, shards, progress)


def test_scans_of_a_benchmark_are_worked_on_where_it_says(attacked, clean, unseen, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "_data_of", lambda *_: (clean, clean, unseen))
    monkeypatch.setattr(Bench, "_model", lambda *_: attacked)
    monkeypatch.setattr("neuralsanitizer.benchmark.run.detector_named", lambda *_: NeuralSanitizer(HASTY))
    executor = Watched()
    bench = Bench(tmp_path, tmp_path, torch.device("cpu"), 0, NoProgress(), executor=executor)
    scanned = bench.scanned(grid.cases("development")[0], "neural-sanitizer/default", {})
    assert len(scanned.folder.read().run.verdict.labels) == 10
    assert executor.shards == [list(range(10))]


def test_scores_of_earlier_settings_are_told_from_those_of_the_present(score):
    present = settings_digest(to_json(build_detector("neural-sanitizer").settings))
    now = replace(score, preset="default", settings=present)
    before, gone = replace(now, case="b-model", settings=""), replace(now, preset="of-old")
    told = {row[0]: row[1:] for row in rows(sections([now, before, gone])["settings"])[2:]}
    assert told["neural-sanitizer default"] == ["1", "1"]
    assert told["neural-sanitizer of-old"] == ["0", "1"]
    settings = to_json(build_detector("neural-sanitizer").settings)
    assert settings_digest({**settings, "preset": "by any name"}) == present
    assert settings_digest({**settings, "colours": None}) != present


def test_an_unknown_detector_is_refused_before_any_training(tmp_path):
    bench = Bench(tmp_path, tmp_path / "out", "cpu", 0, NoProgress())
    with pytest.raises(UsageError, match="unknown method 'magic'"):
        bench.run([], ["magic/default"])
    assert not (tmp_path / "out").exists()
