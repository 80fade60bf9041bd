"""``bench``: one model through training, scan and score; and nothing twice."""

from dataclasses import replace

import numpy as np
import pytest

from neuralsanitizer import config
from neuralsanitizer.benchmark import grid
from neuralsanitizer.benchmark.run import read_scores
from neuralsanitizer.records import Finding
from program import run
from tiny import TINY


@pytest.fixture
def data(digits, tmp_path, monkeypatch):
    """A folder of data sets as the benchmark has it, with few digits."""
    (tmp_path / "data").mkdir()
    for name, part in (("train", digits[0]), ("test", digits[1])):
        pixels = (part.images * 255).round().byte().numpy()
        np.savez(tmp_path / "data" / f"mnist-{name}.npz", x=pixels, y=part.labels.numpy())
    monkeypatch.setitem(grid.TASKS, "mnist", replace(grid.TASKS["mnist"], clean_images=1000, train_images=600))
    monkeypatch.setitem(config.PRESETS, "tiny", TINY)
    monkeypatch.setitem(config.UNLEARN_PRESETS, "tiny", config.UnlearnConfig(steps=10))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def small_case():
    """Some development model of the small network with one patch."""
    return next(
        case
        for case in grid.cases("development")
        if (case.task, case.config.architecture, len(case.patches)) == ("mnist", "mnist-cnn-small", 1)
    )


def test_a_case_is_trained_scanned_and_scored_once(data, tmp_path):
    case = small_case()
    options = ("--data", data, "--output", "bench", "--split", "development", "--only", case.name,
               "--detector", "neural-sanitizer/tiny")  # fmt: skip
    first = run("bench", "run", *options)
    assert first.code == 0
    assert case.name in first.stdout
    assert f"train {case.name} ..." in first.stderr
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "bench").rglob("*") if path.is_file()}
    assert any(path.suffix == ".safetensors" for path in files)
    second = run("bench", "run", *options)
    assert (second.code, second.stdout) == (0, first.stdout)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    table = run("bench", "table", "--output", "bench")
    assert (table.code, table.stdout) == (0, first.stdout)


def test_an_ablation_is_scored_beside_the_detector_with_what_became_of_the_backdoor(data, tmp_path):
    case = small_case()
    done = run("bench", "run", "--data", data, "--output", "bench", "--split", "development", "--only", case.name,
               "--detector", "neural-sanitizer/tiny", "--detector", "neural-sanitizer/tiny:no-size",
               "--through", "scan")  # fmt: skip
    assert done.code == 0
    assert "| neural-sanitizer tiny | no size term | 1 |" in done.stdout
    usual, changed = sorted(read_scores(tmp_path / "bench"), key=lambda s: s.preset)
    assert (usual.preset, changed.preset) == ("tiny", "tiny:no-size")
    for score in (usual, changed):
        assert [r.kind for r in score.references] == ["scratch", "scratch"]
        assert {len(r.attack_success) for r in score.references} == {1}
        assert all(0 <= r.clean_accuracy <= 1 for r in score.references)
        assert [len(rates) for rates in score.transfer] == [1] * 10


def test_what_was_measured_is_judged_anew_with_other_thresholds(data, tmp_path, monkeypatch):
    case = small_case()
    options = ("--data", data, "--output", "bench", "--split", "development", "--only", case.name,
               "--detector", "neural-sanitizer/tiny")  # fmt: skip
    nothing = run("bench", "rejudge", *options)
    assert (nothing.code, case.name in nothing.stdout) == (0, False)
    assert run("bench", "run", *options, "--through", "scan").code == 0
    (before,) = read_scores(tmp_path / "bench")

    monkeypatch.setitem(config.PRESETS, "tiny", replace(TINY, verdict=replace(TINY.verdict, least_attack_success=1.01)))
    again = run("bench", "rejudge", *options)
    assert (again.code, case.name in again.stdout) == (0, True)
    (after,) = read_scores(tmp_path / "bench")
    assert after.settings != before.settings
    assert after == replace(before, finding=Finding.CLEAN, found=(), inconclusive=(), settings=after.settings)
    assert run("bench", "run", *options).code == 0  # what goes on from there, goes on from the new verdict
    assert read_scores(tmp_path / "bench") == [after]

    monkeypatch.setitem(config.PRESETS, "tiny", TINY)
    assert run("bench", "rejudge", *options).code == 0
    assert read_scores(tmp_path / "bench") == [before]

    monkeypatch.setitem(config.PRESETS, "tiny", replace(TINY, transfer=replace(TINY.transfer, images=7)))
    refused = run("bench", "rejudge", *options)
    assert (refused.code, "was measured with other settings" in refused.stderr) == (2, True)
    looks = replace(TINY, verdict=replace(TINY.verdict, restarts=TINY.verdict.restarts + 1))  # measured, not judged
    monkeypatch.setitem(config.PRESETS, "tiny", looks)
    assert run("bench", "rejudge", *options).code == 2
    assert run("bench", "rejudge", *options, "--detector", "magic/default").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("run", "--data", "data", "--split", "magic"), 2, "unknown split 'magic'"),
        (("run", "--data", "data", "--only", "no such model"), 2, "no case of the split"),
        (("run", "--data", "data", "--detector", "magic/default"), 2, "unknown method"),
        (("run", "--data", "elsewhere", "--only", "mnist-clean-172"), 3, "the benchmark needs mnist-train.npz"),
        (("table", "--output", "elsewhere"), 2, "holds no scores"),
    ],
)
@pytest.mark.usefixtures("data")
def test_what_cannot_be_run_says_why(arguments, code, reason):
    outcome = run("bench", *arguments)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert reason in outcome.stderr
