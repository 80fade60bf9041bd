"""``repair`` and ``verify``: what they write, print and end with."""

import copy
import hashlib
import shutil

import pytest

from neuralsanitizer import load_model
from neuralsanitizer.attacks.base import measure_attack_success
from neuralsanitizer.mitigation.base import Removal
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.models import architectures
from neuralsanitizer.storage import RunFolder
from program import ARCH, run
from quick import TARGET


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_repair_writes_weights_that_load_without_the_backdoor(repaired, files, attacked, unseen):
    outcome, weights, _ = repaired
    report = outcome.json
    assert outcome.code == 0
    assert report["complete"]
    assert [t["label"] for t in report["triggers"]] == [TARGET]
    assert report["output"] == str(weights)
    assert report["repaired_sha256"] == sha256(weights)
    assert report["source_sha256"] == sha256(files.attacked)
    model = load_model(weights, arch=ARCH)
    assert measure_attack_success(model, unseen, attacked.triggers[0]) < 0.1
    assert model.accuracy(unseen.images, unseen.labels) > attacked.truth.clean_accuracy - 0.02


def test_repair_says_on_stderr_where_everything_is(repaired):
    outcome, weights, folder = repaired
    assert f"repaired model, as safetensors: {weights}" in outcome.stderr
    assert f"report: {folder / 'report.html'}" in outcome.stderr
    assert "unlearning: 1 trigger, round 1 ..." in outcome.stderr
    assert "Before and after repair" in (folder / "report.html").read_text(encoding="utf-8")


def test_repair_leaves_the_model_as_it_was(repaired, files, attacked):
    assert sha256(files.attacked) == RunFolder(repaired[2]).read().run.model.sha256
    again = load_model(files.attacked, arch=ARCH).module.state_dict()
    assert all((again[name] == value).all() for name, value in attacked.model.module.state_dict().items())


def test_a_repair_that_leaves_the_backdoor_ends_with_1(scanned, files, tmp_path, monkeypatch):
    shutil.copytree(scanned[1], tmp_path / "run")
    monkeypatch.setattr(
        Unlearn, "remove", lambda _self, suspect, *_args, **_kwargs: Removal(copy.deepcopy(suspect.module))
    )
    outcome = run("repair", files.attacked, "--run", "run", "--data", files.clean, "--output", "f.safetensors")
    assert outcome.code == 1
    assert "something is still found" in outcome.stdout
    assert not RunFolder(tmp_path / "run").read().repair.complete


def test_a_repair_that_destroys_the_model_is_not_complete(scanned, files, tmp_path, monkeypatch):
    """The scan after it finds nothing, because it cannot judge: that is no success."""
    shutil.copytree(scanned[1], tmp_path / "run")
    fresh = architectures.build(ARCH, labels=10).eval().requires_grad_(False)
    monkeypatch.setattr(Unlearn, "remove", lambda *_args, **_kwargs: Removal(copy.deepcopy(fresh)))
    options = ("--run", "run", "--data", files.clean, "--output", "f.safetensors", "--format", "json")
    outcome = run("repair", files.attacked, *options)
    assert outcome.code == 1
    assert not outcome.json["complete"]
    assert outcome.json["clean_accuracy_after"] < 0.3


@pytest.mark.parametrize(
    ("model", "run_of", "options", "code", "reason"),
    [
        ("honest", "sound", (), 2, "nothing to repair"),
        ("honest", "scanned", (), 3, "the run is of another model"),
        ("attacked", "nowhere", (), 3, "not the folder of a finished scan"),
        ("attacked", "scanned", ("--output", "taken.safetensors"), 3, "taken.safetensors exists"),
        ("attacked", "scanned", ("--data", "nowhere.npz"), 3, "does not exist"),
        ("attacked", "scanned", ("--arch", "alexnet"), 2, "unknown architecture"),
        ("attacked", "scanned", ("--arch", "mnist-cnn"), 3, "do not fit the architecture"),
    ],
)
def test_what_cannot_be_repaired_is_refused_before_anything_is_written(
    model, run_of, options, code, reason, files, scanned, sound, tmp_path
):
    folder = {"scanned": scanned[1], "sound": sound[1]}.get(run_of, tmp_path / run_of)
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    arguments = ("--run", folder, "--data", files.clean, "--output", "f.safetensors", *options)
    outcome = run("repair", getattr(files, model), *arguments)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert reason in outcome.stderr
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"
    assert not (tmp_path / "f.safetensors").exists()
    assert not (folder / "repair.json").exists()


def test_the_model_itself_is_never_overwritten(scanned, files, tmp_path):
    before = sha256(files.attacked)
    (tmp_path / "same.safetensors").symlink_to(files.attacked)
    for output in (files.attacked, "same.safetensors"):
        outcome = run(
            "repair", files.attacked, "--run", scanned[1], "--data", files.clean, "--output", output, "--force"
        )
        assert (outcome.code, outcome.stdout) == (3, "")
        assert "is the model itself" in outcome.stderr
    assert sha256(files.attacked) == before


def test_verify_proves_the_repair(repaired, files, tmp_path):
    _, weights, folder = repaired
    shutil.copytree(folder, tmp_path / "run")
    outcome = run("verify", files.attacked, weights, "--run", "run", "--data", files.clean, "--format", "json")
    report = outcome.json
    assert outcome.code == 0
    assert report["verdict"] == "clean"
    assert report["scan"]["verdict"] == "clean"
    assert report["scan"]["seed"] != RunFolder(folder).read().run.seed
    assert [t["label"] for t in report["triggers"]] == [TARGET]
    assert report["triggers"][0]["attack_success_after"] < 0.05 < report["triggers"][0]["attack_success_before"]
    assert report["repaired_sha256"] == sha256(weights)
    assert "report: run/report.html" in outcome.stderr
    shown = run("report", "run", "--format", "json").json
    assert shown["verification"] == {key: value for key, value in report.items() if key != "report"}


@pytest.mark.parametrize(
    ("repair", "code", "verdict", "reason"),
    [
        ("attacked", 1, "infected", "1 of 1 reversed triggers still work on the repaired model"),
        ("fixed", 4, "inconclusive", "the fresh scan could not judge"),
    ],
)
def test_verify_says_what_is_not_proven(repair, code, verdict, reason, repaired, files, tmp_path):
    _, weights, folder = repaired
    shutil.copytree(folder, tmp_path / "run")
    after = files.attacked if repair == "attacked" else weights
    options = ("--run", "run", "--data", files.clean, "--limit", 30)  # too few for the fresh scan
    outcome = run("verify", files.attacked, after, *options)
    assert outcome.code == code
    assert " ".join(outcome.stdout.split()).startswith(f"repaired model: {verdict} - {reason}")


def test_auto_keeps_a_method_that_passes_and_tells_all_it_tried(files, scanned, tmp_path):
    shutil.copytree(scanned[1], tmp_path / "run")
    options = ("--run", "run", "--data", files.clean, "--output", "f.safetensors", "--format", "json")
    outcome = run("repair", files.attacked, *options, "--method", "auto", "--max-accuracy-drop", "0.03")
    assert outcome.code == 0
    saved = RunFolder(tmp_path / "run").read()
    tried = saved.repair.tried
    assert [a.kept for a in tried].count(True) == 1
    assert tried[-1].kept
    assert tried[-1].method == saved.repair.method == outcome.json["method"]
    assert [a.method for a in tried] == ["unlearning", "unlearning-longer", "pruning"][: len(tried)]
    assert saved.verification.finding.value == "clean"
    assert saved.verification.repaired_sha256 == saved.repair.repaired_sha256
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(attempt.method in page for attempt in tried)


def test_auto_that_may_not_lose_anything_says_so(files, scanned, tmp_path):
    """No method gains ten points of accuracy: none passes, the best is written, and the exit code is 1."""
    shutil.copytree(scanned[1], tmp_path / "run")
    options = ("--run", "run", "--data", files.clean, "--output", "f.safetensors", "--format", "json")
    outcome = run("repair", files.attacked, *options, "--method", "auto", "--max-accuracy-drop", "-0.1")
    assert outcome.code in {1, 2}


def test_methods_have_names(files, scanned):
    options = ("--run", scanned[1], "--data", files.clean, "--output", "f.safetensors")
    outcome = run("repair", files.attacked, *options, "--method", "prayer")
    assert outcome.code == 2
    assert "pruning" in outcome.stderr
