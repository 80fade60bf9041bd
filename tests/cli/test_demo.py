"""``demo``: the whole story; whether it comes out is for the acceptance tests to say, with the default settings."""

import re

import pytest

from neuralsanitizer import config
from neuralsanitizer.cli import demo as demo_module
from neuralsanitizer.storage import RunFolder
from program import run
from quick import QUICK


@pytest.mark.acceptance
def test_the_demo_says_of_each_claim_whether_it_came_true_and_leaves_everything_behind(monkeypatch, tmp_path):
    monkeypatch.setitem(config.PRESETS, "default", QUICK)
    outcome = run("demo", "--output", "demo")
    claims = re.findall(r"^(yes|NO ) ", outcome.stdout, re.MULTILINE)
    assert len(claims) == 5
    assert outcome.code == int("NO " in claims)
    assert "backdoored model: clean accuracy" in outcome.stdout
    folder = tmp_path / "demo"
    for name in ("backdoored.safetensors", "clean.safetensors", "repaired.safetensors", "clean-run/report.html",
                 "backdoored-run/report.html", "verify-run/run.json"):  # fmt: skip
        assert (folder / name).is_file(), name
    saved = RunFolder(folder / "backdoored-run").read()
    assert saved.repair is not None
    assert saved.verification is not None
    assert f"Open the report: {folder / 'backdoored-run' / 'report.html'}" in outcome.stdout


@pytest.mark.parametrize(("holds", "code"), [((True, True), 0), ((True, False), 1)])
def test_a_claim_that_does_not_come_true_is_marked_and_ends_with_1(holds, code, monkeypatch):
    steps = [demo_module._Step(f"claim {i}", told) for i, told in enumerate(holds)]
    monkeypatch.setattr(demo_module, "_play", lambda *_args, **_rest: steps)
    outcome = run("demo")
    assert outcome.code == code
    assert re.findall(r"^(?:yes|NO )  claim \d", outcome.stdout, re.MULTILINE) == [
        f"{'yes' if told else 'NO '}  claim {i}" for i, told in enumerate(holds)
    ]


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    outcome = run("demo")
    assert (outcome.code, outcome.stdout) == (3, "")
    assert "demo is not empty" in outcome.stderr
    assert run("demo", "--output", "demo/mine.txt").code == 2
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["mine.txt"]
