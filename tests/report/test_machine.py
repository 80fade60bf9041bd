"""JSON for programs: whole, strict, and back again."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from hostile import poisoned
from neuralsanitizer.records import Finding, Repair, Run, Verification, from_json, to_json
from neuralsanitizer.report import repair_json, run_json, verification_json
from neuralsanitizer.storage import RunFolder
from quick import TARGET

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "reference" / "scan.schema.json").read_text())
RUNS = ["infected", "repaired", "verified", "clean_run", "open_run"]


def through_text(data):
    return json.loads(json.dumps(data, allow_nan=False))


def run_of(report):
    """A scan's record, rebuilt from what a program was given."""
    verdict = {key: report[key] for key in ("reason", "assumptions", "labels")} | {"finding": report["verdict"]}
    moved = {"verdict", "reason", "assumptions", "labels", "repair", "verification"}
    return from_json(Run, {**{key: value for key, value in report.items() if key not in moved}, "verdict": verdict})


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_lost_on_the_way_to_a_program_and_back(name, request):
    saved = request.getfixturevalue(name)
    report = through_text(run_json(saved))
    assert run_of(report) == saved.run
    assert ("repair" in report) == (saved.repair is not None)
    assert ("verification" in report) == (saved.verification is not None)
    if saved.repair is not None:
        assert from_json(Repair, report["repair"]) == saved.repair
    if saved.verification is not None:
        proof = report["verification"]
        assert run_of(proof["scan"]) == saved.verification.scan
        fields = {key: value for key, value in proof.items() if key not in {"verdict", "scan"}}
        rebuilt = {**fields, "finding": proof["verdict"], "scan": to_json(saved.verification.scan)}
        assert from_json(Verification, rebuilt) == saved.verification


def test_the_verdict_is_a_word_and_the_labels_a_list_at_the_top(infected):
    report = through_text(run_json(infected))
    assert report["verdict"] == "infected"
    assert [one["finding"] for one in report["labels"]].count("infected") == 1
    assert report["labels"][TARGET]["finding"] == "infected"
    assert set(report["labels"][0]) >= {"label", "name", "finding", "attack_success", "mask_size", "transfer"}


def test_a_proof_has_its_verdict_at_the_top_too(verified):
    report = through_text(verification_json(verified.verification))
    assert (report["verdict"], report["scan"]["verdict"]) == ("clean", "clean")
    assert "finding" not in report


def test_a_repair_is_told_field_by_field(repaired):
    assert through_text(repair_json(repaired.repair)) == through_text(to_json(repaired.repair))


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(), max_size=40))
def test_programs_get_every_text_as_it_is(text, verified):
    """JSON has its own escapes: nothing is cleaned, nothing breaks out."""
    report = through_text(run_json(poisoned(verified, text)))
    assert report["reason"] == text
    assert {one["name"] for one in report["labels"]} == {text}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_survives_its_folder(name, request, tmp_path):
    saved = request.getfixturevalue(name)
    folder = RunFolder(tmp_path / "run")
    folder.write_run(saved.run, saved.triggers, saved.examples / 255, saved.example_labels.tolist())
    if saved.repair is not None:
        folder.write_repair(saved.repair, saved.repair_triggers)
    if saved.verification is not None:
        folder.write_verification(saved.verification)
    back = folder.read()
    assert through_text(run_json(back)) == through_text(run_json(saved))
    assert (back.examples == saved.examples).all()
    assert sorted(back.triggers) == sorted(saved.triggers)
    assert back.run.verdict.finding in set(Finding)


@pytest.mark.parametrize("name", RUNS)
def test_the_published_schema_is_kept_and_leaves_nothing_out(name, request):
    report = through_text(run_json(request.getfixturevalue(name)))
    Draft202012Validator.check_schema(SCHEMA)
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(report)] == []
    assert set(report) <= set(SCHEMA["properties"])
    for one in report["labels"]:
        assert set(one) <= set(SCHEMA["$defs"]["LabelFinding"]["properties"])


def test_the_published_schema_refuses_what_is_no_scan(infected):
    report = through_text(run_json(infected))
    for broken in (
        {**report, "verdict": "safe"},
        {**report, "seed": "0"},
        {k: report[k] for k in report if k != "labels"},
    ):
        assert not Draft202012Validator(SCHEMA).is_valid(broken)
