"""``scan``: what it prints where, its exit codes, and every option."""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from neuralsanitizer.cli.scan import _default_folder
from neuralsanitizer.storage import RunFolder
from program import ARCH, run, scan_of
from quick import QUICK, TARGET


def check_contract(report):
    """What programs that read the JSON rely on."""
    assert report["verdict"] in {"infected", "clean", "inconclusive"}
    assert isinstance(report["labels"], list)
    for number, one in enumerate(report["labels"]):
        assert one["label"] == number
        assert one["finding"] in {"infected", "clean", "inconclusive"}
        assert 0 <= one["attack_success"] <= 1
        assert 0 <= one["mask_size"] <= 28 * 28
        assert isinstance(one["transfer"], list)
        assert all(0 <= rate <= 1 for rate in one["transfer"])


def test_json_holds_the_verdict_and_every_label(scanned):
    outcome, folder = scanned
    report = outcome.json
    check_contract(report)
    assert outcome.code == 1
    assert report["verdict"] == "infected"
    assert [one["label"] for one in report["labels"] if one["finding"] == "infected"] == [TARGET]
    assert len(report["labels"]) == 10
    assert all(len(one["transfer"]) == len(QUICK.references.tests) for one in report["labels"])
    assert (report["run_folder"], report["report"]) == (str(folder), str(folder / "report.html"))
    assert (report["seed"], report["preset"], report["method"]) == (3, "quick", "neural-sanitizer")


def test_neural_cleanse_keeps_the_same_contract(files):
    outcome = scan_of(files.attacked, files.clean, "--method", "neural-cleanse", "--format", "json", "--limit", 600)
    check_contract(outcome.json)
    assert (outcome.code, outcome.json["verdict"], outcome.json["method"]) == (1, "infected", "neural-cleanse")
    assert [one["transfer"] for one in outcome.json["labels"]] == [[]] * 10


def test_progress_and_paths_go_to_stderr(scanned):
    outcome, folder = scanned
    assert "make references ..." in outcome.stderr
    assert f"report:     {folder / 'report.html'}" in outcome.stderr
    assert "make references ..." not in outcome.stdout


def test_the_table_goes_to_stdout_and_progress_does_not(again, files):
    outcome = again(files, "infected")
    assert outcome.code == 1
    assert re.search(rf"^{TARGET} +infected +\d+% +\d+ px", outcome.stdout, re.MULTILINE)
    assert len(re.findall(r"^\d +(infected|clean|inconclusive) ", outcome.stdout, re.MULTILINE)) == 10
    assert "..." not in outcome.stdout
    assert "run folder:" in outcome.stderr


@pytest.mark.parametrize(
    ("finding", "options", "code"),
    [
        ("infected", (), 1),
        ("infected", ("--exit-zero",), 0),
        ("infected", ("--fail-on", "inconclusive"), 1),
        ("clean", (), 0),
        ("clean", ("--fail-on", "inconclusive"), 0),
        ("inconclusive", (), 4),
        ("inconclusive", ("--exit-zero",), 4),
        ("inconclusive", ("--fail-on", "infected"), 4),
        ("inconclusive", ("--fail-on", "inconclusive"), 1),
        ("inconclusive", ("--fail-on", "inconclusive", "--exit-zero"), 0),
    ],
)
def test_the_exit_code_tells_the_finding(finding, options, code, again, files):
    if finding == "inconclusive":  # 30 images are too few
        outcome = scan_of(files.attacked, files.clean, "--limit", 30, "--format", "json", *options)
    else:
        outcome = again(files, finding, "--format", "json", *options)
    assert outcome.json["verdict"] == finding
    assert outcome.code == code


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda labels: np.random.default_rng(0).permutation(labels), (), "preprocessing"),
        (lambda labels: (labels + 1) % 10, (), "another order"),
        (lambda labels: labels, ("--mean", "3", "--std", "1", "--range", 0, 1), "was it trained with these"),
    ],
)
def test_a_model_that_does_not_do_its_job_on_the_data_is_inconclusive(change, options, reason, files, tmp_path):
    with np.load(files.clean) as arrays:
        np.savez(tmp_path / "other.npz", x=arrays["x"], y=change(arrays["y"]))
    outcome = scan_of(files.attacked, "other.npz", "--format", "json", *options)
    assert outcome.code == 4
    assert (outcome.json["verdict"], outcome.json["labels"]) == ("inconclusive", [])
    assert reason in outcome.json["reason"]
    assert not outcome.json["self_check"]["passed"]


def test_an_interrupted_scan_goes_on_and_finds_the_same(scanned, files, tmp_path):
    outcome, folder = scanned
    shutil.copytree(folder, tmp_path / "run")
    for lost in ("run.json", "state/label-4.npz"):
        (tmp_path / "run" / lost).unlink()
    options = ("--seed", 3, "--output", "run", "--resume", "--format", "json")
    resumed = scan_of(files.attacked, files.clean, *options)
    assert "9 of 10 labels were examined before the interruption" in resumed.stderr
    assert resumed.code == outcome.code
    assert [f["finding"] for f in resumed.json["labels"]] == [f["finding"] for f in outcome.json["labels"]]


def test_a_scan_of_another_model_finds_the_references_in_the_cache(scanned, files, tmp_path):
    options = ("--seed", 3, "--format", "json", "--cache", "references")
    first = scan_of(files.honest, files.clean, "--output", "first", *options)
    kept = {path: path.read_bytes() for path in (tmp_path / "references").iterdir()}
    second = scan_of(files.attacked, files.clean, "--output", "second", *options)
    assert kept == {path: path.read_bytes() for path in (tmp_path / "references").iterdir()}
    weights = [(tmp_path / run_ / "state").glob("reference-*") for run_ in ("first", "second")]
    names, others = ({path.name for path in found} for found in weights)
    assert names == others
    assert len(names) == len(kept)
    # With and without the cache: the same.
    assert first.code == 0
    assert second.code == scanned[0].code
    assert second.json["labels"] == scanned[0].json["labels"]


def test_a_folder_that_holds_something_is_left_alone(scanned, files, tmp_path):
    shutil.copytree(scanned[1], tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    refused = scan_of(files.attacked, files.clean, "--output", "run")
    assert (refused.code, refused.stdout) == (3, "")
    assert "choose another folder, or go on with --resume" in refused.stderr
    other = scan_of(files.attacked, files.clean, "--output", "run", "--resume", "--seed", 4)
    assert (other.code, other.stdout) == (3, "")
    assert "another model, data set, configuration" in other.stderr
    nothing = scan_of(files.attacked, files.clean, "--output", "elsewhere", "--resume")
    assert nothing.code == 3
    assert "no interrupted scan to resume" in nothing.stderr
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_without_an_output_the_run_goes_to_a_folder_named_after_the_model(files, tmp_path):
    outcome = scan_of(files.attacked, files.clean, "--limit", 30, "--format", "json")
    (folder,) = (tmp_path / "runs").iterdir()
    assert Path(outcome.json["run_folder"]) == Path("runs") / folder.name
    assert re.fullmatch(r"attacked-\d{8}-\d{6}", folder.name)
    assert RunFolder(folder).read().run.data.images == 30


def test_two_scans_within_a_second_get_a_folder_each():
    folders = []
    for _ in range(3):
        folders.append(_default_folder(Path("model.safetensors")))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3


def test_limit_takes_images_evenly_and_the_seed_says_which(files):
    reports = [
        scan_of(files.attacked, files.clean, "--limit", 30, "--seed", seed, "--output", f"run-{i}", "--format", "json")
        for i, seed in enumerate((0, 0, 1))
    ]
    hashes = [report.json["data"]["sha256"] for report in reports]
    assert hashes[0] == hashes[1] != hashes[2]
    assert set(reports[0].json["data"]["images_per_label"]) == {3}


NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, labels=10):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.dense = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, labels))

    def forward(self, images):
        return self.dense(self.convolutions(images).flatten(1))

class Broken(Net):
    def forward(self, images):
        return self.missing(images)

def picky(*, width):
    return Net()

def number():
    return 3
"""
MODULES = {
    "mynets": NETWORK,
    "raises": "raise RuntimeError('no network today')",
    "leaves": "import sys\nsys.exit(0)",  # a script: must not pass for "nothing found"
}


@pytest.fixture
def modules(tmp_path):
    """The user's own modules, in the working folder; forgotten afterwards."""
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


OWN = ("--model-def", "mynets:Net", "--input-shape", "1,28,28", "--mean", "0.5", "--std", "1", "--range", 0, 1)


@pytest.mark.usefixtures("modules")
def test_a_network_of_the_users_own_is_scanned(files, scanned):
    outcome = run("scan", files.attacked, *OWN, "--data", files.clean, "--preset", "tiny", "--format", "json")
    report = outcome.json
    check_contract(report)
    assert report["model"]["architecture"] == "mynets:Net"
    assert report["model"]["mean"] == [0.5]
    assert len(report["labels"]) == 10
    assert any("matched by order and shape" in note for note in report["model"]["notes"])
    assert report["self_check"]["clean_accuracy"] == scanned[0].json["self_check"]["clean_accuracy"]
    # A run folder may come from anywhere: it does not decide what is imported.
    refused = run("repair", files.attacked, "--run", report["run_folder"], "--data", files.clean, "--output", "f.st")
    assert refused.code == 2
    assert "give it again" in refused.stderr


@pytest.mark.usefixtures("modules")
def test_a_users_network_is_fed_with_images_of_the_clean_sets_shape(files):
    outcome = run("scan", files.attacked, "--model-def", "mynets:Net", "--data", files.clean, "--preset", "tiny",
                  "--mean", 0.5, "--std", 1, "--range", 0, 1, "--format", "json")  # fmt: skip
    assert outcome.json["model"]["input_shape"] == [1, 28, 28]
    assert "images of shape 1,28,28 as in the clean set" in " ".join(outcome.stderr.split())


@pytest.mark.usefixtures("modules")
def test_the_clean_sets_shape_is_read_in_the_range_that_was_stated(files, tmp_path):
    with np.load(files.clean) as clean:
        pixels = clean["x"].astype(np.float32)
        np.savez(tmp_path / "signed.npz", x=pixels / pixels.max() * 6 - 3, y=clean["y"])
    outcome = run("scan", files.attacked, "--model-def", "mynets:Net", "--data", "signed.npz", "--preset", "tiny",
                  "--mean", 0, "--std", 6, "--range", -3, 3, "--format", "json")  # fmt: skip
    assert outcome.json["model"]["input_shape"] == [1, 28, 28]


@pytest.mark.parametrize(
    ("definition", "options", "code", "reason"),
    [
        ("mynets", ("--input-shape", "1,28,28"), 2, "takes package.module:function"),
        ("nowhere:Net", ("--input-shape", "1,28,28"), 2, "No module named 'nowhere'"),
        ("mynets:Nothing", ("--input-shape", "1,28,28"), 2, "no attribute 'Nothing'"),
        ("mynets:picky", ("--input-shape", "1,28,28"), 2, "missing 1 required keyword-only argument: 'width'"),
        ("mynets:number", ("--input-shape", "1,28,28"), 2, "gave a int, not a torch.nn.Module"),
        ("raises:Net", ("--input-shape", "1,28,28"), 2, "RuntimeError: no network today"),
        ("leaves:Net", ("--input-shape", "1,28,28"), 2, "SystemExit: 0"),
        ("mynets:Net", ("--input-shape", "1,40,40"), 3, "does not take images of shape (1, 40, 40)"),
        ("mynets:Net", ("--input-shape", "1,40,40", "--labels", 10), 3, "fails on images of shape (1, 40, 40)"),
        ("mynets:Broken", ("--input-shape", "1,28,28"), 3, "has no attribute 'missing'"),
        ("mynets:Net", ("--input-shape", "1,28,28", "--labels", 12), 3, "dense.2.weight (12, 512)"),
        ("mynets:Net", ("--input-shape", "1,28,28", "--arch", ARCH), 2, "one of the two"),
    ],
)
@pytest.mark.usefixtures("modules")
def test_what_is_wrong_with_a_users_network_is_named(definition, options, code, reason, files):
    outcome = run("scan", files.attacked, "--model-def", definition, "--data", files.clean, *options)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert reason in outcome.stderr


HOSTILE = ["<script>alert(1)</script>", "\x1b[31mred\x1b[0m", "[red]markup[/red]", "a\u202eb", "\x07bell", "zero\u200b"]


def test_hostile_label_names_reach_neither_terminal_nor_page(again, files, tmp_path):
    names = [*HOSTILE, "six", HOSTILE[1], "eight", "nine"]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    outcome = again(files, "infected", "--label-names", "names.txt")
    assert outcome.code == 1
    assert f"{TARGET} red " in outcome.stdout
    assert "2 [red]markup[/re… " in outcome.stdout
    assert "1 infected label: red" in outcome.stdout
    for forbidden in "\x1b\x07\u202e\u200b":
        assert forbidden not in outcome.stdout + outcome.stderr
    page = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not set(page) & set("\x1b\x07\u202e\u200b")
    assert RunFolder(tmp_path / "again").read().run.model.label_names[1] == HOSTILE[1]  # the record is true


def test_file_names_that_are_no_utf_8_are_no_obstacle(files, tmp_path):
    name = os.fsdecode(b"caf\xe9.safetensors")
    try:
        shutil.copy(files.attacked, tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    outcome = scan_of(tmp_path / name, files.clean, "--limit", 30, "--output", "run", "--format", "json")
    assert outcome.code == 4
    assert outcome.json["model"]["name"] == name
    assert RunFolder("run").read().run.model.name == name
    assert run("report", "run").stdout.startswith("caf.safetensors: inconclusive")
