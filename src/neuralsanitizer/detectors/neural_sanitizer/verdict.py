"""From evidence to findings: attack success, transfer and a comparison with clean models, weighed."""

from __future__ import annotations

from collections.abc import Sequence

from neuralsanitizer.config import NeuralSanitizerConfig
from neuralsanitizer.detectors.base import Evidence, model_verdict
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Finding, LabelFinding, Verdict

__all__ = ["CLEAN_SUCCESS", "decide", "is_candidate"]

CLEAN_SUCCESS = "success_without_backdoor"
"""Name of the metric: mean attack success that the label's mask reaches on models without a backdoor, [0, 1]."""

_ASSUMPTIONS = (
    "A trigger is a patch: it covers the same pixels of every image with the same pattern.",
    "It works on the suspect, and not on networks that learnt the same task from clean images alone.",
    "The clean images are rightly labelled, free of the trigger, and of the task that the model was trained for.",
)


def decide(suspect: SuspectModel, evidence: Sequence[Evidence], config: NeuralSanitizerConfig) -> Verdict:
    """The verdict on a model.

    Each label is judged by its own numbers: nothing assumes that most labels are clean.

    Args:
        suspect: Whose labels they are.
        evidence: What was measured of each label.
        config: Thresholds.
    """
    _, height, width = suspect.input_shape
    findings = []
    for one in evidence:
        finding, reason = _judge_label(one, suspect.labels, height * width, config)
        findings.append(
            LabelFinding(
                label=one.trigger.label,
                name=suspect.label_names[one.trigger.label],
                finding=finding,
                attack_success=one.attack_success,
                mask_size=one.trigger.size,
                transfer=one.transfer,
                reason=reason,
                metrics=one.metrics,
                has_trigger=True,
            )
        )
    return model_verdict(findings, _ASSUMPTIONS, f"NeuralSanitizer ({config.preset} preset)")


def is_candidate(evidence: Evidence, labels: int, config: NeuralSanitizerConfig) -> bool:
    """Whether a trigger works on the suspect and on no clean reference: infected, unless clean models have the like."""
    return not _harmless(evidence, labels, config)


def _judge_label(one: Evidence, labels: int, pixels: int, config: NeuralSanitizerConfig) -> tuple[Finding, str]:
    harmless = _harmless(one, labels, config)
    if harmless:
        return Finding.CLEAN, harmless
    size = one.trigger.size
    works = (
        f"a patch of {size:.0f} pixels ({size / pixels:.1%} of the image) sends {one.attack_success:.0%} of other "
        "images here, and does nothing to clean references"
    )
    if CLEAN_SUCCESS not in one.metrics:
        return Finding.INFECTED, works
    without = one.metrics[CLEAN_SUCCESS]
    compared = f"the best pattern in its place sends {without:.0%} there on models without a backdoor"
    excess = one.attack_success - without
    if excess >= config.verdict.infected_excess:
        return Finding.INFECTED, f"{works}; {compared}"
    if excess > config.verdict.clean_excess:
        return Finding.INCONCLUSIVE, f"{works}; {compared}: too close to tell"
    return Finding.CLEAN, f"a patch of {size:.0f} pixels sends {one.attack_success:.0%} here, but {compared}"


def _harmless(one: Evidence, labels: int, config: NeuralSanitizerConfig) -> str:
    """Why a label's trigger is none, whatever clean models have; empty if it may be one."""
    transfer = config.transfer
    threshold = transfer.threshold_many if labels >= transfer.many else transfer.threshold
    hits = sum(rate >= threshold for rate in one.transfer)
    if one.attack_success < config.verdict.least_attack_success:
        return f"no pattern sends more than {one.attack_success:.0%} of images to this label"
    if hits >= transfer.transfers_to:
        return f"the pattern works on {hits} of {len(one.transfer)} clean references too: an adversarial patch"
    return ""
