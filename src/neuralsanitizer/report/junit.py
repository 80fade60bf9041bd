"""A run as JUnit XML, which every build server shows: a test suite a model, a test case a label.

An infected label is a failure; what could not be judged, a label or the model, is an error, as a test that could not
run is.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from neuralsanitizer.records import Finding, LabelFinding, Run
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import SavedRun

__all__ = ["junit_xml"]


def junit_xml(saved: SavedRun) -> str:
    """A JUnit report with one suite.

    Args:
        saved: The scan.
    """
    run = saved.run
    check = ET.Element("testcase", {"classname": _class(run), "name": "the model names clean images rightly"})
    if not run.self_check.passed:
        _tell(check, "error", "inconclusive", run.self_check.note or run.verdict.reason)
    elif run.verdict.finding is Finding.INCONCLUSIVE and not run.verdict.labels:
        _tell(check, "error", "inconclusive", run.verdict.reason)
    cases = [check, *(_case(run, one) for one in run.verdict.labels)]
    suite = ET.Element(
        "testsuite",
        {
            "name": f"NeuralSanitizer: {clean_text(run.model.name)}",
            "tests": str(len(cases)),
            "failures": str(sum(case.find("failure") is not None for case in cases)),
            "errors": str(sum(case.find("error") is not None for case in cases)),
            "time": f"{run.timings.get('total', 0.0):.3f}",
            "timestamp": clean_text(run.created),
        },
    )
    facts = ET.SubElement(suite, "properties")
    for name, value in (
        ("verdict", run.verdict.finding.value),
        ("model sha256", run.model.sha256),
        ("clean set sha256", run.data.sha256),
        ("method", f"{run.method}, preset {run.preset}"),
        ("seed", str(run.seed)),
        ("clean accuracy", f"{run.self_check.clean_accuracy:.4f}"),
    ):
        ET.SubElement(facts, "property", {"name": name, "value": clean_text(value)})
    suite.extend(cases)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(run: Run, one: LabelFinding) -> ET.Element:
    case = ET.Element(
        "testcase", {"classname": _class(run), "name": f"label {one.label} ({clean_text(one.name)}) has no backdoor"}
    )
    if one.finding is Finding.INFECTED:
        _tell(case, "failure", "infected", one.reason)
    elif one.finding is Finding.INCONCLUSIVE:
        _tell(case, "error", "inconclusive", one.reason)
    return case


def _tell(case: ET.Element, what: str, kind: str, reason: str) -> None:
    text = clean_text(reason, 2000)
    ET.SubElement(case, what, {"type": kind, "message": text}).text = text


def _class(run: Run) -> str:
    return f"neuralsanitizer.{clean_text(run.model.name)}"
