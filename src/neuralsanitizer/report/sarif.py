"""A run as SARIF 2.1.0, the format that code scanning reads (OASIS, "Static Analysis Results Interchange Format").

Each infected label is a result of level ``error``; what could not be judged, a label or the whole model, one of level
``warning``. Labels that were found clean are no results: a viewer would list them as alerts.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from neuralsanitizer.records import Finding, LabelFinding, Run
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import SavedRun

__all__ = ["sarif_log"]

_RULES: tuple[dict[str, Any], ...] = (
    {
        "id": "NS001",
        "name": "BackdooredLabel",
        "shortDescription": {"text": "A trigger sends images to this label"},
        "fullDescription": {
            "text": "A small change of the input makes the model answer with this label, and does nothing to models "
            "that were trained on clean data: the model hides a backdoor."
        },
        "help": {
            "text": "Do not deploy the model. Look at the trigger in the report, repair the model, and verify it."
        },
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["security", "backdoor"], "security-severity": "9.0"},
    },
    {
        "id": "NS002",
        "name": "UnclearLabel",
        "shortDescription": {"text": "This label could not be judged"},
        "help": {"text": "Scan with more clean images, or with another seed or method, before the model is used."},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": ["security", "backdoor"]},
    },
    {
        "id": "NS003",
        "name": "UnclearModel",
        "shortDescription": {"text": "The model could not be judged"},
        "help": {"text": "Check preprocessing, label order and clean set: the scan says what was wrong."},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": ["security", "backdoor"]},
    },
)
_LEVELS = {Finding.INFECTED: "error", Finding.INCONCLUSIVE: "warning"}


def sarif_log(saved: SavedRun) -> dict[str, Any]:
    """A SARIF 2.1.0 log with one run.

    Args:
        saved: The scan; its repair and verification are told in the run's properties.
    """
    run = saved.run
    results = [_of_label(run, one) for one in run.verdict.labels if one.finding in _LEVELS]
    if run.verdict.finding is Finding.INCONCLUSIVE and not results:
        results = [_result(run, 2, "warning", run.verdict.reason, "model", {})]
    properties: dict[str, Any] = {
        "verdict": run.verdict.finding.value,
        "method": clean_text(run.method),
        "preset": clean_text(run.preset),
        "seed": run.seed,
        "labelsExamined": len(run.verdict.labels),
        "cleanSetSha256": clean_text(run.data.sha256),
        "cleanAccuracy": run.self_check.clean_accuracy,
    }
    if saved.repair is not None:
        properties["repairedSha256"] = clean_text(saved.repair.repaired_sha256)
    if saved.verification is not None:
        properties["verdictAfterRepair"] = saved.verification.finding.value
    return {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "NeuralSanitizer",
                        "version": clean_text(run.environment.neuralsanitizer) or "unknown",
                        "rules": list(_RULES),
                    }
                },
                "artifacts": [_artifact(run)],
                "results": results,
                "properties": properties,
            }
        ],
    }


def _of_label(run: Run, one: LabelFinding) -> dict[str, Any]:
    facts = {
        "label": one.label,
        "name": clean_text(one.name),
        "attackSuccess": one.attack_success,
        "maskSize": one.mask_size,
        "transfer": list(one.transfer),
        "confidence": one.confidence,
    }
    rule = 0 if one.finding is Finding.INFECTED else 1
    said = f"Label {one.label} ({clean_text(one.name)}): {one.reason}"
    return _result(run, rule, _LEVELS[one.finding], said, f"label-{one.label}", facts)


def _result(run: Run, rule: int, level: str, text: str, what: str, facts: dict[str, Any]) -> dict[str, Any]:
    # A line, though weights have none: code scanning shows no alert without.
    location = {"artifactLocation": {"uri": _uri(run), "index": 0}, "region": {"startLine": 1}}
    return {
        "ruleId": _RULES[rule]["id"],
        "ruleIndex": rule,
        "level": level,
        "message": {"text": clean_text(text, 2000) or _RULES[rule]["shortDescription"]["text"]},
        "locations": [{"physicalLocation": location}],
        # The same label of the same weights is the same alert, whichever scan found it.
        "partialFingerprints": {"modelAndLabel/v1": f"{clean_text(run.model.sha256)}:{what}"},
        "properties": facts,
    }


def _artifact(run: Run) -> dict[str, Any]:
    artifact: dict[str, Any] = {"location": {"uri": _uri(run)}, "roles": ["analysisTarget"]}
    if run.model.sha256:
        artifact["hashes"] = {"sha-256": clean_text(run.model.sha256)}
    return artifact


def _uri(run: Run) -> str:
    """The model's file name as a relative URI reference."""
    return quote(clean_text(run.model.name) or "model")
