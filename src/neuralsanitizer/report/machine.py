"""Runs, repairs and verifications as JSON objects for programs."""

from __future__ import annotations

from typing import Any

from neuralsanitizer.records import FilterRecord, Repair, Run, Verification, to_json
from neuralsanitizer.storage import SavedRun

__all__ = ["filter_json", "repair_json", "run_json", "verification_json"]


def run_json(saved: SavedRun) -> dict[str, Any]:
    """A scan, with ``verdict`` as text and ``labels`` as a list at the top.

    Each label has ``label``, ``name``, ``finding``, ``attack_success`` in [0, 1], ``mask_size`` in pixels, ``transfer``
    (a list of rates in [0, 1], one a test reference), ``confidence``, ``reason`` and ``metrics``. All other fields are
    those of :class:`neuralsanitizer.records.Run`; then ``repair``, ``verification`` and ``filter``, where there is one.
    """
    report = _run(saved.run)
    if saved.repair is not None:
        report["repair"] = repair_json(saved.repair)
    if saved.verification is not None:
        report["verification"] = verification_json(saved.verification)
    if saved.filter is not None:
        report["filter"] = filter_json(saved.filter)
    return report


def repair_json(repair: Repair) -> dict[str, Any]:
    """A repair, field by field, as in :class:`neuralsanitizer.records.Repair`."""
    return dict(to_json(repair))


def filter_json(record: FilterRecord) -> dict[str, Any]:
    """An input filter, field by field, as in :class:`neuralsanitizer.records.FilterRecord`."""
    return dict(to_json(record))


def verification_json(verification: Verification) -> dict[str, Any]:
    """A verification, with ``verdict`` as text at the top and its fresh scan as :func:`run_json` has it."""
    fields = to_json(verification)
    return {"verdict": fields.pop("finding"), **fields, "scan": _run(verification.scan)}


def _run(run: Run) -> dict[str, Any]:
    fields = to_json(run)
    verdict = fields.pop("verdict")
    return {
        "verdict": verdict["finding"],
        "reason": verdict["reason"],
        "assumptions": verdict["assumptions"],
        "labels": verdict["labels"],
        **fields,
    }
