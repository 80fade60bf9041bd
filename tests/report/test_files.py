"""What other tools read: held against these formats' own readers and schemas, and never led astray by hostile text."""

import json
from pathlib import Path

import pytest
import xmlschema
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml
from pydantic import BaseModel
from sarif_pydantic import Sarif

from hostile import HOSTILE, hidden_in, poisoned
from neuralsanitizer.records import Finding
from neuralsanitizer.report import FILE_NAMES, FileFormat, rendered
from quick import TARGET

RUNS = ["infected", "repaired", "verified", "clean_run", "open_run"]


def unknown_fields(model):
    """Fields that the format does not have, anywhere in a document; property bags may hold anything."""
    found = list(model.model_extra or {})
    for value in dict(model).values():
        for one in value if isinstance(value, list) else [value]:
            found += unknown_fields(one) if isinstance(one, BaseModel) else []
    return found


def sarif_of(saved):
    log = Sarif.model_validate(json.loads(rendered(saved, FileFormat.SARIF)))
    assert set(unknown_fields(log)) <= {"$schema"}
    (run,) = log.runs
    return run


JENKINS = xmlschema.XMLSchema(Path(__file__).parents[1] / "schemas" / "jenkins-junit.xsd")


def junit_of(saved):
    text = rendered(saved, FileFormat.JUNIT)
    JENKINS.validate(text)
    (suite,) = JUnitXml.fromstring(text.encode())
    return suite


def bom_of(saved):
    text = rendered(saved, FileFormat.CYCLONEDX)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


def labels_found(saved, finding):
    return [one.label for one in saved.run.verdict.labels if one.finding is finding]


@pytest.mark.parametrize("name", RUNS)
def test_code_scanning_is_told_of_what_is_not_clean(name, request):
    saved = request.getfixturevalue(name)
    run = sarif_of(saved)
    told = [(one.level.value, one.properties.get("label")) for one in run.results]
    expected = [("error", label) for label in labels_found(saved, Finding.INFECTED)]
    expected += [("warning", label) for label in labels_found(saved, Finding.INCONCLUSIVE)]
    if name == "open_run":
        expected = [("warning", None)]
        assert run.results[0].message.text == saved.run.verdict.reason
    assert sorted(told, key=str) == sorted(expected, key=str)
    rules = [rule.id for rule in run.tool.driver.rules]
    for one in run.results:
        assert rules[one.rule_index] == one.rule_id
        assert one.locations[0].physical_location.artifact_location.uri == run.artifacts[0].location.uri
    assert run.artifacts[0].hashes == {"sha-256": saved.run.model.sha256}


def test_the_same_alert_keeps_its_name(infected):
    """However often the same weights are scanned, code scanning shows one alert a label."""
    again = json.loads(rendered(infected, FileFormat.SARIF))["runs"][0]["results"]
    assert [one["partialFingerprints"] for one in again] == [
        {"modelAndLabel/v1": f"{infected.run.model.sha256}:label-{TARGET}"}
    ]


@pytest.mark.parametrize("name", RUNS)
def test_a_build_server_sees_a_test_a_label(name, request):
    saved = request.getfixturevalue(name)
    suite = junit_of(saved)
    cases = list(suite)
    failed = [case.name for case in cases if any(isinstance(r, Failure) for r in case.result)]
    unclear = [case.name for case in cases if any(isinstance(r, Error) for r in case.result)]
    infected, inconclusive = (labels_found(saved, f) for f in (Finding.INFECTED, Finding.INCONCLUSIVE))
    assert [name.split()[1] for name in failed] == [str(label) for label in infected]
    assert len(unclear) == len(inconclusive) + (name == "open_run")
    assert (suite.tests, suite.failures, suite.errors) == (len(cases), len(failed), len(unclear))
    assert len(cases) == 1 + len(saved.run.verdict.labels)
    facts = {one.name: one.value for one in suite.properties()}
    assert (facts["verdict"], facts["model sha256"]) == (saved.run.verdict.finding.value, saved.run.model.sha256)


@pytest.mark.parametrize("name", RUNS)
def test_a_bill_of_materials_names_model_data_and_backdoors(name, request):
    saved = request.getfixturevalue(name)
    bom = bom_of(saved)
    components = {one["bom-ref"]: one for one in bom["components"]}
    assert components["model"]["hashes"] == [{"alg": "SHA-256", "content": saved.run.model.sha256}]
    assert ("repaired-model" in components) == (saved.repair is not None)
    infected, inconclusive = (labels_found(saved, f) for f in (Finding.INFECTED, Finding.INCONCLUSIVE))
    assert {one["id"] for one in bom["vulnerabilities"]} == {
        *(f"NS-BACKDOOR-LABEL-{label}" for label in infected),
        *(f"NS-UNCLEAR-LABEL-{label}" for label in inconclusive),
    }
    assert {ref["ref"] for one in bom["vulnerabilities"] for ref in one["affects"]} <= {"model"}
    if saved.repair is not None:
        assert components["repaired-model"]["hashes"][0]["content"] == saved.repair.repaired_sha256
        (ancestor,) = components["repaired-model"]["pedigree"]["ancestors"]
        assert ancestor["hashes"] == components["model"]["hashes"]


def test_one_run_has_one_serial_number(infected, clean_run):
    assert bom_of(infected)["serialNumber"] == bom_of(infected)["serialNumber"] != bom_of(clean_run)["serialNumber"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text, verified):
    run = sarif_of(poisoned(verified, text))
    suite = junit_of(poisoned(verified, text))
    bom = bom_of(poisoned(verified, text))
    told = [one.message.text for one in run.results] + [case.name for case in suite]
    told += [one["description"] for one in bom["vulnerabilities"]]
    assert not hidden_in("".join(told))
    assert len(list(suite)) == 1 + len(verified.run.verdict.labels)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_gives_files_that_can_be_read(text, verified):
    sarif_of(poisoned(verified, text))
    junit_of(poisoned(verified, text))
    bom_of(poisoned(verified, text))


def test_every_format_has_a_file_of_its_own():
    assert set(FILE_NAMES) == set(FileFormat)
    assert len(set(FILE_NAMES.values())) == len(FILE_NAMES)
