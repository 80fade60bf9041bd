"""From evidence to findings: attack success, transfer and a comparison with clean models, weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from neuralsanitizer.config import NeuralSanitizerConfig, VerdictConfig
from neuralsanitizer.detectors.base import SCREENED, Evidence, model_verdict
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Finding, LabelFinding, Trigger, TriggerOutline, Verdict

__all__ = [
    "CLEAN_SUCCESS",
    "CONTRAST",
    "EXCESS",
    "clear_excess",
    "decide",
    "doubtful",
    "explained",
    "is_candidate",
    "is_flat",
    "is_unclear",
    "merged",
    "thresholds",
    "with_patch",
]

CLEAN_SUCCESS = "success_without_backdoor"
"""Name of the metric: mean attack success that the label's mask reaches on models without a backdoor, [0, 1]."""

EXCESS = "excess"
"""Name of the metric: attack success on the suspect, less ``success_without_backdoor``."""

_LOOKS = "looks"
"""Name of the metric: how many looks at a label count together; missing where there was one."""

_HIGHEST, _SPREAD = "highest_excess", "excess_spread"
"""Names of the metrics: of several looks' excesses the highest one, and how far the lowest is below it."""

CONTRAST = "contrast"
"""Name of the metric: share of the images' contrast that a change of colours keeps."""

_PATCHES = "A trigger is a patch: it covers the same pixels of every image with the same pattern."
_COLOURS = "A trigger is a patch, which covers the same pixels of every image with the same pattern, or a photo filter."
_ASSUMPTIONS = (
    "It works on the suspect, and not on networks that learnt the same task from clean images alone.",
    "The clean images are rightly labelled, free of the trigger, and of the task that the model was trained for.",
)


def decide(suspect: SuspectModel, evidence: Sequence[Evidence], config: NeuralSanitizerConfig) -> Verdict:
    """The verdict on a model.

    Each label is judged by its own numbers; the other labels can only raise doubts about a label that is not certain.

    Args:
        suspect: Whose labels they are.
        evidence: What was measured of each label.
        config: Thresholds.
    """
    _, height, width = suspect.input_shape
    family = _COLOURS if any("colour_excess" in e.metrics for e in evidence) else _PATCHES
    findings = []
    smallest = _smallest_of_strong(evidence, config.verdict)
    for place, one in enumerate(evidence):
        rest = (*evidence[:place], *evidence[place + 1 :])
        certain = _certain(one, rest, height * width, smallest, config.verdict)
        others = [_excess(e, one.trigger.family) for e in rest if SCREENED not in e.metrics]
        rides = _rides(one, smallest, config.verdict)
        usual = certain if rides else min(certain, _usual(others, config.verdict))
        leads = _first_by_size(one, rest, config.verdict) and _leads(one, others, config.verdict)
        finding, reason = _judge_label(one, usual, suspect.labels, height * width, config, leads=leads)
        findings.append(
            LabelFinding(
                label=one.trigger.label,
                name=suspect.label_names[one.trigger.label],
                finding=finding,
                attack_success=one.attack_success,
                mask_size=one.trigger.size,
                transfer=one.transfer,
                confidence=_confidence(finding, one, usual, config.verdict),
                reason=reason,
                metrics=one.metrics,
                has_trigger=isinstance(one.trigger, Trigger),
            )
        )
    return model_verdict(findings, (family, *_ASSUMPTIONS), f"NeuralSanitizer ({config.preset} preset)")


def is_candidate(evidence: Evidence, labels: int, config: NeuralSanitizerConfig) -> bool:
    """Whether a trigger works on the suspect and on no clean reference: infected, unless clean models have the like."""
    return not _harmless(evidence, labels, config)


def is_flat(metrics: Mapping[str, float], config: NeuralSanitizerConfig) -> bool:
    """Whether what is known of a trigger says that it is a change of colours that leaves too little to be seen."""
    return config.colours is not None and metrics.get(CONTRAST, 1.0) < config.colours.flat


def is_unclear(evidence: Evidence, config: NeuralSanitizerConfig) -> bool:
    """Whether a label should be looked at again: its excess is neither that of a trigger nor that of a patch."""
    least, most = config.verdict.unclear
    if _LOOKS in evidence.metrics:
        least = config.verdict.still_unclear
    return least < evidence.metrics.get(EXCESS, 0.0) < most


def doubtful(evidence: Sequence[Evidence], number: int, config: NeuralSanitizerConfig) -> list[int]:
    """Which labels are looked at again before a model is called clean.

    Args:
        evidence: Of all labels, none of which is infected.
        number: 1 before such looks began: all labels whose only look found a little. Later, the few that any look found
            unclear, from the highest excess down: a search that ended too early does not speak for the others.
        config: How little, and how few.
    """
    least, _ = config.verdict.unclear
    known = [e for e in evidence if EXCESS in e.metrics and _is_patch(e)]
    if number == 1:
        first = (e for e in known if _LOOKS not in e.metrics)
        return [e.trigger.label for e in first if config.verdict.doubtful < e.metrics[EXCESS] <= least]
    order = sorted((e for e in known if _highest(e) > least), key=_highest, reverse=True)
    few = max(config.verdict.doubtful_least, math.ceil(config.verdict.doubtful_share * len(evidence)))
    return [e.trigger.label for e in order[:few]]


def _highest(one: Evidence) -> float:
    return one.metrics.get(_HIGHEST, one.metrics[EXCESS])


def clear_excess(evidence: Evidence, config: VerdictConfig) -> float:
    """Up to which excess a label is clean at the first look."""
    if not _is_patch(evidence):
        return config.clean_excess_of_colours
    return min(config.doubtful, config.unclear[0])


def explained(patch: Evidence, colours: Evidence, labels: int, config: NeuralSanitizerConfig) -> Evidence:
    """What speaks of a label: its patch, unless a change of colours is further over its own threshold.

    Args:
        patch: What was measured of the label's patch.
        colours: What was measured of its change of colours.
        labels: Number of labels of the model.
        config: Thresholds. Where nothing is compared with clean models, as published, the transfer test decides.
    """
    verdict = config.verdict
    ours, theirs = patch.metrics.get(EXCESS, 0.0), colours.metrics.get(EXCESS, 0.0)
    if EXCESS in patch.metrics or EXCESS in colours.metrics:
        further = theirs - verdict.infected_excess_of_colours > ours - verdict.infected_excess
        better = theirs > verdict.clean_excess_of_colours and further
    else:
        better = is_candidate(colours, labels, config) and not is_candidate(patch, labels, config)
    chosen = colours if better else patch
    both = {"patch_excess": ours, "colour_excess": theirs, "colour_success": colours.attack_success}
    return replace(chosen, metrics={**chosen.metrics, **both})


def merged(looks: Sequence[Evidence], config: VerdictConfig) -> Evidence:
    """What several looks at one label say together: the mean excess of all but the first, with the smallest trigger.

    A later look that is as clear as a first one would have to be, with the smallest mask of all, speaks alone: it found
    what the others missed. Then nothing is averaged, and what is told of the trigger is of that look.

    Args:
        looks: At least one, of the same label, of which the first may be what earlier ones said together. Where there
            are several, the first one chose the label by its excess, which is too high then more often than too low. A
            look that found nothing to compare has no excess: it counts as 0, and its trigger stands for nothing that
            the others found.
        config: From which excess on a look is clear.
    """
    so_far, *others = looks
    for look in others:
        so_far = _both(so_far, look, config)
    return so_far


def _both(so_far: Evidence, look: Evidence, config: VerdictConfig) -> Evidence:
    both = (so_far, look)
    before, own = (e.metrics.get(EXCESS, 0.0) for e in both)
    count = so_far.metrics.get(_LOOKS, 1.0)  # of which all but the first are in the mean
    highest = so_far.metrics.get(_HIGHEST, before)
    lowest = highest - so_far.metrics.get(_SPREAD, 0.0)
    kept = min(both, key=lambda e: (EXCESS not in e.metrics, e.trigger.size))
    metrics = {
        **kept.metrics,
        _LOOKS: count + 1,
        _HIGHEST: max(highest, own),
        _SPREAD: max(highest, own) - min(lowest, own),
    }
    if EXCESS in kept.metrics:
        found_it = kept is look and own >= config.unclear[1]
        metrics[EXCESS] = own if found_it else ((count - 1) * before + own) / count
        metrics[CLEAN_SUCCESS] = kept.attack_success - metrics[EXCESS]  # so that the two still differ by the excess
    return replace(kept, metrics=metrics)


def with_patch(label: Evidence, patch: Evidence) -> Evidence:
    """What is known of a label that a patch explains, with what further looks for patches found."""
    known = {name: value for name, value in label.metrics.items() if name.startswith("colour_")}
    if "patch_excess" in label.metrics:
        known["patch_excess"] = patch.metrics.get(EXCESS, 0.0)
    return replace(patch, metrics={**patch.metrics, **known})


def _excess(one: Evidence, family: str) -> float:
    """A label's excess of a family of triggers; where nothing was compared, clean models do as well: 0."""
    known = one.metrics.get("colour_excess" if family == "colours" else "patch_excess")
    return one.metrics.get(EXCESS, 0.0) if known is None else known


def _usual(others: Sequence[float], config: VerdictConfig) -> float:
    """The excess that this model's other labels do not surpass by chance: median and ``outlier`` robust deviations."""
    if len(others) < _LEAST_COMPARED:
        return 0.0
    middle = median(others)
    return middle + config.outlier * _CONSISTENCY * median(abs(x - middle) for x in others)


def _smallest_of_strong(evidence: Sequence[Evidence], config: VerdictConfig) -> float:
    """The smallest mask among the labels that exceed clean models the most; 0 if none does."""
    sizes = [e.trigger.size for e in evidence if _excess(e, "patch") >= config.certain_excess and _is_patch(e)]
    return min(sizes, default=0.0)


def _certain(one: Evidence, rest: Sequence[Evidence], pixels: int, smallest: float, config: VerdictConfig) -> float:
    """The excess from which on a label is infected, whatever the others have."""
    if not _is_patch(one):
        return config.certain_excess
    if _first_by_size(one, rest, config):
        return config.certain_excess_of_first
    if one.trigger.size <= config.small_mask * pixels:
        return config.certain_excess_of_small
    return config.certain_excess_of_any if _rides(one, smallest, config) else config.certain_excess


def _rides(one: Evidence, smallest: float, config: VerdictConfig) -> bool:
    """Whether a patch is larger, by a clear distance, than the smallest of those that exceed clean models the most.

    Then it may work by what these taught the network, however far it exceeds the other labels.
    """
    return _is_patch(one) and one.trigger.size > config.rides_along * smallest > 0


def _first_by_size(one: Evidence, rest: Sequence[Evidence], config: VerdictConfig) -> bool:
    """Whether all other patches are larger, by a clear distance."""
    sizes = [e.trigger.size for e in rest if _is_patch(e)]
    return _is_patch(one) and bool(sizes) and config.rides_along * one.trigger.size <= min(sizes)


def _leads(one: Evidence, others: Sequence[float], config: VerdictConfig) -> bool:
    """Whether a label exceeds clean models by far more than any other label does."""
    return len(others) >= _LEAST_COMPARED and _excess(one, "patch") - max(others) >= config.lead


def _is_patch(one: Evidence) -> bool:
    return one.trigger.family == "patch"


_LEAST_COMPARED = 5  # a median of fewer labels says nothing of the model
_CONSISTENCY = 1.4826  # makes the MAD of a normal sample estimate its standard deviation: 1 / Phi^-1(3/4)


def _judge_label(
    one: Evidence, usual: float, labels: int, pixels: int, config: NeuralSanitizerConfig, *, leads: bool
) -> tuple[Finding, str]:
    if SCREENED in one.metrics:
        size = f"the smallest patch that works so far has {one.trigger.size:.0f} pixels"
        found = size if one.metrics["reached_goal"] else "no patch works so far"
        return Finding.CLEAN, f"short look: {found}; of the last labels that were more suspicious none is infected"
    if harmless := _harmless(one, labels, config):
        return Finding.CLEAN, harmless
    verdict, what, likes = config.verdict, *_in_words(one.trigger, pixels)
    works = f"{what} sends {one.attack_success:.0%} of other images here, and does nothing to clean references"
    if EXCESS not in one.metrics:
        return Finding.INFECTED, works
    without, excess = one.metrics[CLEAN_SUCCESS], one.metrics[EXCESS]
    compared = f"{likes} sends {without:.0%} there on models without a backdoor"
    infected, clean = thresholds(one, verdict)
    if excess >= max(clean if leads else infected, usual):
        kept = one.metrics.get(CONTRAST, 1.0)
        certain = kept >= verdict.filter_contrast
        doubt = "" if certain else f"; but it keeps {kept:.0%} of the contrast, and photo filters keep more"
        return Finding.INFECTED if certain else Finding.INCONCLUSIVE, f"{works}; {compared}{doubt}"
    if excess > max(clean, min(usual, infected)):
        return Finding.INCONCLUSIVE, f"{works}; {compared}: too close to tell"
    return Finding.CLEAN, f"{what} sends {one.attack_success:.0%} here, but {compared}"


def thresholds(one: Evidence, config: VerdictConfig) -> tuple[float, float]:
    """From which excess on a label is infected, and up to which it is clean."""
    if one.trigger.family == "colours":
        return config.infected_excess_of_colours, config.clean_excess_of_colours
    return config.infected_excess, config.clean_excess


def _in_words(trigger: Trigger | TriggerOutline, pixels: int) -> tuple[str, str]:
    """What a trigger is, and what clean models are given in its place."""
    if trigger.family == "colours":
        return "a change of all colours", "the best change of colours"
    size = trigger.size
    return f"a patch of {size:.0f} pixels ({size / pixels:.1%} of the image)", "the best pattern in its place"


def _confidence(finding: Finding, one: Evidence, usual: float, config: VerdictConfig) -> float | None:
    """How sure a finding is: 0.5 at the threshold, 1 where no development model was wrong."""
    if EXCESS not in one.metrics or finding is Finding.INCONCLUSIVE:
        return None
    excess = one.metrics[EXCESS]
    threshold = max(thresholds(one, config)[0], usual)
    if finding is Finding.INFECTED:
        sure = max(config.certain_excess_of_small, threshold + _MARGIN)
        return 0.5 + 0.5 * min(1.0, max(0.0, (excess - threshold) / (sure - threshold)))
    return 0.5 + 0.5 * min(1.0, max(0.0, (threshold - excess) / threshold))


_MARGIN = 0.1  # excess over the threshold from which a finding is as sure as it gets


def _harmless(one: Evidence, labels: int, config: NeuralSanitizerConfig) -> str:
    """Why a label's trigger is none, whatever clean models have; empty if it may be one."""
    transfer = config.transfer
    threshold = transfer.threshold_many if labels >= transfer.many else transfer.threshold
    hits = sum(rate >= threshold for rate in one.transfer)
    if one.attack_success < config.verdict.least_attack_success:
        return f"no pattern sends more than {one.attack_success:.0%} of images to this label"
    if is_flat(one.metrics, config):
        kept = one.metrics[CONTRAST]
        return (
            f"the change of colours keeps {kept:.0%} of the contrast: every network is sent somewhere by flat pictures"
        )
    if hits >= transfer.transfers_to:
        return f"the pattern works on {hits} of {len(one.transfer)} clean references too: an adversarial patch"
    return ""
