"""A run as a CycloneDX 1.6 bill of materials for machine learning: what the model is, and what is wrong with it.

The suspect is a component with a model card; its infected labels are vulnerabilities that affect it. A repaired model
is a second component with the suspect as its ancestor, which they affect no more once a verification found it clean.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from neuralsanitizer.records import Finding, LabelFinding, Run
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import SavedRun

__all__ = ["cyclonedx_bom"]

_SUSPECT, _REPAIRED, _CLEAN_SET = "model", "repaired-model", "clean-set"
_EMBEDDED_MALICIOUS_CODE = 506  # CWE-506: the nearest entry that the list has for a planted behaviour
_SHA256 = 64  # hexadecimal digits


def cyclonedx_bom(saved: SavedRun) -> dict[str, Any]:
    """A CycloneDX 1.6 document.

    Args:
        saved: The scan, with its repair and verification where there are any.
    """
    run = saved.run
    suspect = _component(_SUSPECT, run.model.name, run.model.sha256)
    suspect["modelCard"] = _model_card(run)
    components = [suspect, _data_component(run)]
    proven_clean = False
    if saved.repair is not None:
        repaired = _component(_REPAIRED, f"{run.model.name}, repaired", saved.repair.repaired_sha256)
        ancestor = _component("ancestor", run.model.name, run.model.sha256)
        repaired["pedigree"] = {"ancestors": [ancestor], "notes": f"repaired by {clean_text(saved.repair.method)}"}
        proven_clean = saved.verification is not None and saved.verification.finding is Finding.CLEAN
        components.append(repaired)
    found = [one for one in run.verdict.labels if one.finding is not Finding.CLEAN]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, repr(run))}",  # one run, one number
        "version": 1,
        "metadata": {
            **_made_at(run),
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "NeuralSanitizer",
                        "version": clean_text(run.environment.neuralsanitizer),
                    }
                ]
            },
        },
        "components": components,
        "vulnerabilities": [_vulnerability(one, proven_clean=proven_clean) for one in found],
    }


def _made_at(run: Run) -> dict[str, str]:
    """The time of the scan, unless a run folder that somebody else made holds none that can be read."""
    try:
        made = dt.datetime.fromisoformat(run.created)
    except ValueError:
        return {}
    return {"timestamp": made.astimezone(dt.UTC).isoformat()} if made.tzinfo else {}


def _component(ref: str, name: str, sha256: str) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": ref, "name": clean_text(name) or ref}
    if len(sha256) == _SHA256 and all(c in "0123456789abcdef" for c in sha256):
        component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return component


def _data_component(run: Run) -> dict[str, Any]:
    component = _component(_CLEAN_SET, run.data.name, run.data.sha256)
    component["type"] = "data"
    component["data"] = [{"type": "dataset", "name": clean_text(run.data.name) or _CLEAN_SET}]
    return component


def _model_card(run: Run) -> dict[str, Any]:
    shape = "x".join(map(str, run.model.input_shape))
    return {
        "modelParameters": {
            "task": "classification",
            "modelArchitecture": clean_text(run.model.architecture) or "unknown",
            "datasets": [{"ref": _CLEAN_SET}],
            "inputs": [{"format": f"image {shape}"}],
            "outputs": [{"format": f"{run.model.labels} labels"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": "accuracy on the clean set",
                    "value": f"{run.self_check.clean_accuracy:.4f}",
                    "slice": f"{run.self_check.images} images",
                },
                {"type": "backdoor scan", "value": run.verdict.finding.value, "slice": "all labels examined"},
            ]
        },
        "considerations": {
            "technicalLimitations": [clean_text(text, 1000) for text in run.verdict.assumptions if clean_text(text)],
        },
        "properties": [
            {"name": "neuralsanitizer:method", "value": clean_text(f"{run.method}, preset {run.preset}")},
            {"name": "neuralsanitizer:seed", "value": str(run.seed)},
            {"name": "neuralsanitizer:reason", "value": clean_text(run.verdict.reason, 2000)},
        ],
    }


def _vulnerability(one: LabelFinding, *, proven_clean: bool) -> dict[str, Any]:
    infected = one.finding is Finding.INFECTED
    affected = [{"ref": _SUSPECT}]
    analysis: dict[str, Any] = {
        "state": "exploitable" if infected else "in_triage",
        "detail": clean_text(one.reason, 2000),
    }
    if proven_clean:
        analysis["response"] = ["update"]
        analysis["detail"] += " A repaired model was verified: its fresh scan is clean."
    return {
        "bom-ref": f"label-{one.label}",
        "id": f"NS-BACKDOOR-LABEL-{one.label}" if infected else f"NS-UNCLEAR-LABEL-{one.label}",
        "source": {"name": "NeuralSanitizer"},
        "ratings": [{"severity": "critical" if infected else "unknown", "method": "other"}],
        "cwes": [_EMBEDDED_MALICIOUS_CODE],
        "description": f"Label {one.label} ({clean_text(one.name)}): "
        + ("a trigger sends images to it" if infected else "it could not be judged"),
        "analysis": analysis,
        "affects": affected,
    }
