"""``report``: a run shown again, from its folder alone."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from program import run
from quick import TARGET


@pytest.fixture(scope="module")
def spare(repaired, tmp_path_factory):
    """A run to be damaged and mended, again and again."""
    return shutil.copytree(repaired[2], tmp_path_factory.mktemp("spare") / "run")


@pytest.fixture
def folder(repaired, tmp_path):
    """A run with its repair, moved away from where it was made."""
    return shutil.copytree(repaired[2], tmp_path / "moved")


def test_json_is_what_the_scan_printed_and_the_repair_since(folder, scanned, repaired):
    outcome = run("report", folder, "--format", "json")
    assert (outcome.code, outcome.stderr) == (0, "")
    report = outcome.json
    repair = report.pop("repair")
    printed = scanned[0].json
    assert report == {key: value for key, value in printed.items() if key not in {"run_folder", "report"}}
    assert repair["triggers"] == repaired[0].json["triggers"]


@pytest.mark.parametrize("options", [(), ("--format", "table")])
def test_the_table_is_the_default(options, folder):
    outcome = run("report", folder, *options)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith(f"attacked.safetensors: infected - 1 infected label: {TARGET}")
    assert "repair (unlearning): 1 trigger removed" in outcome.stdout


@pytest.mark.parametrize(
    ("options", "page"),
    [(("--format", "html"), "moved/report.html"), (("--output", "page.html"), "page.html"),
     (("--format", "html", "--output", "sub/page.html"), "sub/page.html")],
)  # fmt: skip
def test_html_goes_to_a_file_and_its_path_to_stderr(options, page, folder, tmp_path):
    (folder / "report.html").unlink()
    outcome = run("report", "moved", *options)
    assert (outcome.code, outcome.stdout) == (0, "")
    assert outcome.stderr.strip() == f"report: {page}"
    assert (tmp_path / page).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_is_the_same_each_time(folder, tmp_path):
    for name in ("a.html", "b.html"):
        run("report", folder, "--output", name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def damage(folder, change):
    path = folder / "run.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def another_shape(run):
    run["model"]["input_shape"] = [1, 14, 14]


def a_flat_input(run):
    run["model"]["input_shape"] = [784]


def an_empty_input(run):
    run["model"]["input_shape"] = [1, 0, 28]


def a_label_without_its_trigger(run):
    run["verdict"]["labels"][0] |= {"label": 99, "finding": "infected"}


def not_a_number(run):
    run["verdict"]["labels"][0]["mask_size"] = float("nan")


def beyond_numbers(run):
    run["timings"]["total"] = 10**400


def another_generation(run):
    run["schema_version"] = "999.0"


def a_surprise(run):
    run["surprise"] = 1


def a_new_verdict(run):
    run["verdict"]["finding"] = "safe"


@pytest.mark.parametrize(
    "change",
    [another_shape, a_flat_input, an_empty_input, a_label_without_its_trigger, not_a_number, beyond_numbers,
     another_generation, a_surprise, a_new_verdict],
)  # fmt: skip
@pytest.mark.parametrize("format_", ["table", "json", "html"])
def test_a_run_that_contradicts_itself_is_refused(change, format_, folder):
    damage(folder, change)
    (folder / "report.html").unlink()
    outcome = run("report", folder, "--format", format_)
    assert (outcome.code, outcome.stdout) == (3, "")
    assert outcome.stderr.startswith("error: ")
    assert not (folder / "report.html").exists()


# The function-scoped fixture only chooses the working folder.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_ends_in_an_internal_error(data, spare):
    name = data.draw(st.sampled_from(["run.json", "arrays.npz", "repair.json", "repair.npz"]))
    path = spare / name
    whole = path.read_bytes()
    try:
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged[: data.draw(st.sampled_from([len(whole), len(whole) // 2, 0]))])
        assert run("report", spare).code in {0, 3}
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("nowhere",), 3, "not the folder of a finished scan"),
        (("file.txt",), 3, "not the folder of a finished scan"),
        (("moved", "--format", "json", "--output", "x.html"), 2, "--output is for files"),
        (("moved", "--format", "table", "--output", "x.html"), 2, "--output is for files"),
        (("moved", "--output", "file.txt/x.html"), 3, "cannot be written"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_shown_or_written_says_why(arguments, code, reason, tmp_path):
    (tmp_path / "file.txt").write_text("")
    outcome = run("report", *arguments)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert reason in outcome.stderr
    assert not (tmp_path / "x.html").exists()


def test_evidence_is_written_and_checked(scanned, files):
    folder = scanned[1]
    assert run("report", folder, "--bundle", "evidence.zip").code == 0
    outcome = run("check-bundle", "evidence.zip", "--model", files.attacked)
    assert (outcome.code, "verdict: infected" in outcome.stdout) == (0, True)
    assert run("check-bundle", "evidence.zip", "--format", "json").json["verdict"] == "infected"
    other = run("check-bundle", "evidence.zip", "--model", files.honest)
    assert (other.code, other.stdout) == (3, "")
    assert "is not of" in other.stderr


def test_files_for_other_tools(scanned):
    folder = scanned[1]
    outcome = run("report", folder, "--format", "sarif", "--format", "junit", "--format", "json", "--output", "out")
    assert outcome.code == 0
    assert outcome.json["verdict"] == "infected"
    assert Path("out", "report.sarif").is_file()
    assert Path("out", "report.junit.xml").is_file()
    assert run("report", folder, "--format", "cyclonedx", "--output", "bom.json").stdout == ""
    assert Path("bom.json").is_file()
    assert run("report", folder, "--format", "table", "--format", "json").code == 2
    assert run("report", folder, "--format", "json", "--output", "x.json").code == 2
