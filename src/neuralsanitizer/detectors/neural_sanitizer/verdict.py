"""From evidence to findings: attack success, transfer and size of each label's trigger, weighed."""

from __future__ import annotations

from collections.abc import Sequence

from neuralsanitizer.config import NeuralSanitizerConfig
from neuralsanitizer.detectors.base import Evidence, model_verdict
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Finding, LabelFinding, Verdict

__all__ = ["CLEAN_SIZE", "decide", "is_candidate"]

CLEAN_SIZE = "size_without_backdoor"
"""Name of the metric: mask size in pixels that the label needs on models without a backdoor."""

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
    """Whether a trigger works on the suspect and on no clean reference: infected, unless it is a large one."""
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
    if CLEAN_SIZE not in one.metrics:
        return Finding.INFECTED, works
    ratio = size / max(one.metrics[CLEAN_SIZE], 1e-6)
    compared = f"models without a backdoor need {one.metrics[CLEAN_SIZE]:.0f} pixels"
    if ratio <= config.verdict.infected_ratio:
        return Finding.INFECTED, f"{works}; {compared}"
    if ratio < config.verdict.clean_ratio:
        return Finding.INCONCLUSIVE, f"{works}; {compared}: too close to tell"
    return Finding.CLEAN, f"it takes {size:.0f} pixels to send others here, and {compared}: nothing out of the ordinary"


def _harmless(one: Evidence, labels: int, config: NeuralSanitizerConfig) -> str:
    """Why a label's trigger is none, whatever its size; empty if it may be one."""
    transfer = config.transfer
    threshold = transfer.threshold_many if labels >= transfer.many else transfer.threshold
    hits = sum(rate >= threshold for rate in one.transfer)
    if one.attack_success < config.verdict.least_attack_success:
        return f"no pattern sends more than {one.attack_success:.0%} of images to this label"
    if hits >= transfer.transfers_to:
        return f"the pattern works on {hits} of {len(one.transfer)} clean references too: an adversarial patch"
    if config.reconstruct.size is not None and not one.metrics["reached_goal"]:
        return "no pattern that leaves clean references unharmed holds its attack success here"
    _, height, width = one.trigger.pattern.shape
    share = one.trigger.size / (height * width)
    if share > config.verdict.largest_size_share:
        return f"it takes {share:.0%} of the image to send others here: models without a backdoor need no more"
    return ""
