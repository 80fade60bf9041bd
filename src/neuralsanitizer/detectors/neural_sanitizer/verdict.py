"""From evidence to findings: attack success, transfer and size of each label's trigger, weighed."""

from __future__ import annotations

from collections.abc import Sequence

from neuralsanitizer.config import NeuralSanitizerConfig
from neuralsanitizer.detectors.base import Evidence, model_verdict
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Finding, LabelFinding, Verdict

__all__ = ["decide"]

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


def _judge_label(one: Evidence, labels: int, pixels: int, config: NeuralSanitizerConfig) -> tuple[Finding, str]:
    verdict, transfer = config.verdict, config.transfer
    threshold = transfer.threshold_many if labels >= transfer.many else transfer.threshold
    hits = sum(rate >= threshold for rate in one.transfer)
    share = one.trigger.size / pixels
    if one.attack_success < verdict.least_attack_success:
        return Finding.CLEAN, f"no pattern sends more than {one.attack_success:.0%} of images to this label"
    if hits >= transfer.transfers_to:
        return Finding.CLEAN, (
            f"the pattern works on {hits} of {len(one.transfer)} clean references too: an adversarial patch"
        )
    if share > verdict.largest_size_share:
        return (
            Finding.CLEAN,
            f"only a pattern of {share:.0%} of the image sends others here: no trigger needs that much",
        )
    return Finding.INFECTED, (
        f"a patch of {one.trigger.size:.0f} pixels ({share:.1%} of the image) sends {one.attack_success:.0%} of other "
        "images here, and does nothing to clean references"
    )
