"""``filter fit`` and ``filter apply``: what they write, print and end with."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from neuralsanitizer import load_filter
from program import run
from quick import TARGET


@pytest.fixture(scope="module")
def fitted(files, scanned, tmp_path_factory):
    """Outcome of a fit, the filter's file, and the run folder with the filter's record; do not write to it."""
    root = tmp_path_factory.mktemp("filter")
    shutil.copytree(scanned[1], root / "run")
    options = ("--run", root / "run", "--data", files.clean, "--output", root / "f.safetensors", "--format", "json")
    return run("filter", "fit", files.attacked, *options), root / "f.safetensors", root / "run"


@pytest.fixture(scope="module")
def inputs(attacked, unseen, tmp_path_factory):
    """Pictures of other digits, half of them with the planted trigger, and the same as an npz file."""
    folder = tmp_path_factory.mktemp("inputs")
    others = unseen.subset((unseen.labels != TARGET).nonzero().flatten()[:20])
    stamped = attacked.triggers[0].stamped(others)[10:]
    images = (torch.cat([others.images[:10], stamped]) * 255).round().byte().numpy()
    (folder / "pictures").mkdir()
    for number, image in enumerate(images):
        kind = "clean" if number < 10 else "stamped"
        Image.fromarray(image[0]).save(folder / "pictures" / f"{kind}-{number}.png")
    np.savez(folder / "inputs.npz", x=images)
    return folder


def test_what_was_fitted_is_told_and_kept(fitted):
    outcome, path, folder = fitted
    assert outcome.code == 0
    assert outcome.json["labels"][0]["label"] == TARGET
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["wanted_false_alarms"] == 0.05
    low, high = record["false_alarm_interval"]
    assert low <= record["false_alarms"] <= high
    page = (folder / "report.html").read_text()
    assert "The input filter" in page
    assert "What the filter lets pass" in page


def test_stamped_inputs_are_rejected_by_name(files, fitted, inputs, tmp_path):
    options = ("--run", fitted[2], "--filter", fitted[1], "--data", inputs / "pictures", "--output", "parted")
    outcome = run("filter", "apply", files.attacked, *options)
    assert outcome.code == 1
    parted = tmp_path / "parted"
    rejected, accepted = ((parted / f"{name}.txt").read_text().split() for name in ("rejected", "accepted"))
    assert len(accepted) + len(rejected) == 20
    assert sum("stamped" in name for name in rejected) >= 9
    assert sum("clean" in name for name in accepted) == 10
    assert json.loads((parted / "filter.json").read_text())["rejected"] == rejected


def test_rows_of_an_npz_file_are_named_by_number(files, fitted, inputs):
    options = ("--run", fitted[2], "--filter", fitted[1], "--data", inputs / "inputs.npz", "--format", "json")
    outcome = run("filter", "apply", files.attacked, *options)
    assert outcome.code == 1
    assert len(outcome.json["rejected"]) >= 9
    assert outcome.json["accepted"][0] == "0"


def test_clean_inputs_alone_end_with_0(files, fitted, inputs, tmp_path):
    with np.load(inputs / "inputs.npz") as arrays:
        np.savez(tmp_path / "clean.npz", x=arrays["x"][:10])
    options = ("--run", fitted[2], "--filter", fitted[1], "--data", tmp_path / "clean.npz")
    outcome = run("filter", "apply", files.attacked, *options)
    assert outcome.code == 0


def test_another_model_is_refused(files, fitted, inputs):
    options = ("--run", fitted[2], "--filter", fitted[1], "--data", inputs / "inputs.npz")
    outcome = run("filter", "apply", files.honest, *options)
    assert outcome.code == 3
    assert "another model" in outcome.stderr


def test_nothing_is_overwritten_unasked(files, fitted):
    options = ("--run", fitted[2], "--data", files.clean, "--output", fitted[1])
    outcome = run("filter", "fit", files.attacked, *options)
    assert outcome.code == 3
    assert "--force" in outcome.stderr


def test_neither_the_run_nor_the_model_nor_a_record_is_overwritten(files, fitted, tmp_path):
    folder = shutil.copytree(fitted[2], tmp_path / "run")
    before = {path: path.read_bytes() for path in (*folder.glob("*.*"), files.attacked)}
    (tmp_path / "g.json").write_text("mine")
    options = ("--run", folder, "--data", files.clean, "--output")
    for output, reason in (
        ("g.safetensors", "g.json exists"),
        (folder / "run.safetensors", "run.json exists"),
        (files.attacked, "exists"),
    ):
        outcome = run("filter", "fit", files.attacked, *options, output)
        assert (outcome.code, outcome.stdout) == (3, "")
        assert reason in outcome.stderr
    for output, reason in (
        (folder / "run.safetensors", "a file of the run itself"),
        (folder / "input-filter.safetensors", "a file of the run itself"),
        (files.attacked, "is the model itself"),
    ):
        outcome = run("filter", "fit", files.attacked, *options, output, "--force")
        assert (outcome.code, outcome.stdout) == (3, "")
        assert reason in outcome.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "g.json").read_text() == "mine"


def test_a_filter_may_lie_in_its_run_folder(files, fitted, inputs, tmp_path):
    folder = shutil.copytree(fitted[2], tmp_path / "run")
    fit = ("filter", "fit", files.attacked, "--run", folder, "--data", files.clean, "--output")
    assert run(*fit, folder / "filter.safetensors").code == 0
    assert run(*fit, "another.safetensors", "--score", "neural-cleanse").code == 0
    apply = ("filter", "apply", files.attacked, "--run", folder, "--filter", folder / "filter.safetensors")
    assert run(*apply, "--data", inputs / "inputs.npz", "--output", "parted").code == 1
    outcome = run(*apply, "--data", inputs / "inputs.npz", "--output", folder)
    assert outcome.code == 3
    assert "belongs to the filter itself" in outcome.stderr
    assert load_filter(folder / "filter.safetensors").record.score == "discriminant"


def test_a_run_of_another_model_is_refused(files, fitted, sound, inputs):
    """Its preprocessing would be used in silence."""
    options = ("--run", sound[1], "--filter", fitted[1], "--data", inputs / "inputs.npz")
    outcome = run("filter", "apply", files.attacked, *options)
    assert (outcome.code, outcome.stdout) == (3, "")
    assert "the run is of another model" in outcome.stderr


def test_a_file_s_name_does_not_pass_for_two(files, fitted, inputs, tmp_path):
    (tmp_path / "pictures").mkdir()
    hostile = "a\nstamped.png\u2028b\x1b[31m.png"
    shutil.copy(next((inputs / "pictures").glob("clean-*.png")), tmp_path / "pictures" / hostile)
    options = ("--run", fitted[2], "--filter", fitted[1], "--data", "pictures", "--output", "parted")
    assert run("filter", "apply", files.attacked, *options).code == 0
    lines = (tmp_path / "parted" / "accepted.txt").read_text().splitlines()
    assert lines == [r"a\nstamped.png\u2028b\x1b[31m.png"]
    assert json.loads((tmp_path / "parted" / "filter.json").read_text())["accepted"] == [hostile]


def test_an_unknown_score_is_named_with_the_known(files, fitted):
    options = ("--run", fitted[2], "--data", files.clean, "--output", "g.safetensors", "--score", "vibes")
    outcome = run("filter", "fit", files.attacked, *options)
    assert outcome.code == 2
    assert "discriminant" in outcome.stderr


def test_a_scan_that_found_nothing_has_nothing_to_filter(files, sound):
    options = ("--run", sound[1], "--data", files.clean, "--output", "g.safetensors")
    outcome = run("filter", "fit", files.honest, *options)
    assert outcome.code == 2
    assert "nothing to filter" in outcome.stderr
