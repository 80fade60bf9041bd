"""Neural Cleanse's detection: the label that needs a much smaller trigger than all others is infected.

For each label the smallest mask is sought that sends nearly every image there, with a weight on the mask's L1 norm that
is raised while the attack succeeds and lowered while it fails. The norms' one-sided anomaly index decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import NeuralCleanseConfig, SelfCheckConfig
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import GLANCE, LOST, SCREENED, Context, Detector, Evidence, model_verdict
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.functional import anomaly_indices, calibrated_threshold, stamp
from neuralsanitizer.functional.precision import autocast, fast_dtype
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Finding, LabelFinding, ReferenceRecord, Trigger, Verdict

__all__ = ["NeuralCleanse"]

_ASSUMPTIONS = (
    "Most labels are clean: the statistic compares each label with the median of all.",
    "A trigger is a patch that covers the same pixels of every image, and a smaller one than other labels would need.",
    "The clean images are rightly labelled and of the task that the model was trained for.",
)


class NeuralCleanse(Detector):
    """The detector.

    Args:
        config: Settings.
    """

    name: ClassVar[str] = "neural-cleanse"
    compares_labels: ClassVar[bool] = True

    def __init__(self, config: NeuralCleanseConfig | None = None) -> None:
        self.config = config or NeuralCleanseConfig()

    @property
    def preset(self) -> str:
        """Name of the settings."""
        return self.config.preset

    @property
    def settings(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self.config)

    @property
    def self_check_config(self) -> SelfCheckConfig:
        """When to refuse to judge."""
        return self.config.self_check

    def shard_size(self, suspect: SuspectModel) -> int:
        """Labels that share a forward pass: fewer, where their images would fill the memory."""
        return max(1, suspect.images_at_once(self.config.label_batch * self.config.images) // self.config.images)

    def prepare(self, context: Context) -> tuple[None, tuple[ReferenceRecord, ...]]:
        """Nothing: Neural Cleanse needs no references."""
        context.progress.start("reconstruct triggers", self._checks(context.suspect.labels))
        return None, ()

    def _checks(self, labels: int) -> int:
        """Looks at the goal that a scan takes at most, over all labels."""
        config, long = self.config, self.config.checks * self.config.restarts
        if labels < config.many:
            return long * labels
        return config.short_checks * labels + long * min(labels, config.refined)

    def _examine_all(self, context: Context, prepared: None, labels: Sequence[int]) -> list[Evidence]:
        """A long search for every label; of many labels for those that need the smallest masks after a short one."""
        config = self.config
        if len(labels) < config.many:
            return super()._examine_all(context, prepared, labels)
        short = replace(config, checks=config.short_checks, restarts=1)
        glances = self._kept_or_made(context, GLANCE, labels, partial(_searched, config=short))
        known = [e for e in glances if LOST not in e.metrics]
        smallest = sorted(known, key=lambda e: (not e.metrics[_REACHED], e.trigger.size))[: config.refined]
        refined = super()._examine_all(context, prepared, sorted(e.trigger.label for e in smallest))
        looked = {e.trigger.label: e for e in refined}
        context.progress.note(f"{len(looked)} of {len(labels)} labels had a long search")
        screened = {e.trigger.label: replace(e, metrics={**e.metrics, SCREENED: 1.0}) for e in known}
        return [looked.get(e.trigger.label) or screened.get(e.trigger.label, e) for e in glances]

    def examine(self, context: Context, prepared: None, labels: Sequence[int]) -> list[Evidence]:  # noqa: ARG002
        """Find each label's smallest trigger."""
        return _searched(context, labels, self.config)

    def judge(self, suspect: SuspectModel, evidence: Sequence[Evidence]) -> Verdict:
        """One-sided MAD over the labels that reached the goal, restart by restart."""
        looked = [e for e in evidence if SCREENED not in e.metrics]
        by_label: dict[int, list[float]] = {}
        for number in range(self.config.restarts):
            sizes = {e.trigger.label: size for e in looked if (size := e.metrics.get(_size_of(number))) is not None}
            for label, index in zip(sizes, anomaly_indices(list(sizes.values())), strict=True):
                by_label.setdefault(label, []).append(index)
        # Many labels were compared to choose those that are left: the threshold is for all of them.
        compared = len(evidence) if len(looked) < len(evidence) else len(by_label)
        calibrated = calibrated_threshold(max(1, compared), self.config.false_alarm_rate)
        findings = [
            self._finding(suspect, e, by_label.get(e.trigger.label, []), calibrated, len(by_label)) for e in evidence
        ]
        return model_verdict(findings, _ASSUMPTIONS, "Neural Cleanse")

    def _finding(
        self,
        suspect: SuspectModel,
        evidence: Evidence,
        indices: Sequence[float],
        calibrated: float,
        compared: int,
    ) -> LabelFinding:
        metrics = {**evidence.metrics, "threshold_classic": self.config.threshold, "threshold_calibrated": calibrated}
        threshold = self.config.threshold if self.config.classic else calibrated
        if SCREENED in metrics:
            finding = Finding.CLEAN
            found = f"a mask of {evidence.trigger.size:.0f} pixels" if evidence.metrics[_REACHED] else "no mask"
            reason = f"short search: it found {found}, and {self.config.refined} other labels need less"
        elif not indices:
            finding = Finding.CLEAN
            reason = f"no mask sends {self.config.goal:.0%} of images to this label: left out of the comparison"
        elif compared < _LEAST_COMPARED:
            finding = Finding.INCONCLUSIVE
            reason = f"only {compared} labels reached the goal: too few to compare with"
        else:
            index, lowest, highest = (_finite(f(indices)) for f in (median, min, max))
            metrics["anomaly_index"] = index
            finding = Finding.INFECTED if index > threshold else Finding.CLEAN
            relation = "over" if index > threshold else "not over"
            reason = f"anomaly index {index:.1f}, {relation} the threshold of {threshold:.1f}"
            if len(indices) > 1:
                metrics |= {"anomaly_index_lowest": lowest, "anomaly_index_highest": highest}
                reason += f" ({lowest:.1f} to {highest:.1f} over {len(indices)} searches)"
                if lowest <= threshold < highest:
                    finding = Finding.INCONCLUSIVE
            if len(indices) < self.config.restarts:
                reason += f", but a mask was found in {len(indices)} of {self.config.restarts} searches only"
                if highest > threshold:  # a search without a mask is one that is not over the threshold
                    finding = Finding.INCONCLUSIVE
        label = evidence.trigger.label
        return LabelFinding(
            label=label,
            name=suspect.label_names[label],
            finding=finding,
            attack_success=evidence.attack_success,
            mask_size=evidence.trigger.size,
            reason=reason,
            metrics=metrics,
            has_trigger=isinstance(evidence.trigger, Trigger),
        )


_LEAST_COMPARED = 3  # a median and a MAD of two values say nothing
_LARGEST_INDEX = 1e6  # stands for infinity, which JSON cannot hold
_REACHED = "reached_goal"


def _finite(index: float) -> float:
    return min(max(index, -_LARGEST_INDEX), _LARGEST_INDEX)


def _size_of(number: int) -> str:
    """Name of the metric: size of the smallest mask that a search, by number, held the goal with."""
    return f"size_{number}"


def _searched(context: Context, labels: Sequence[int], config: NeuralCleanseConfig) -> list[Evidence]:
    """Evidence on some labels: the smallest trigger of all searches, and the size of each."""
    best: dict[int, Trigger] = {}
    known: dict[int, dict[str, float]] = {label: {_REACHED: 0.0, "checks": 0.0} for label in labels}
    for number in range(config.restarts):
        with context.timed("reconstruct"):
            again = replace(context, seed=derive_seed(context.seed, "restart", number)) if number else context
            search = _Search(again, labels, config)
            search.run()
        for i, label in enumerate(labels):
            trigger, metrics, reached = search.trigger(i), known[label], search.reached(i)
            metrics["checks"] += search.checks_taken(i)
            if reached:
                metrics[_size_of(number)] = trigger.size
            if label not in best or reached > metrics[_REACHED] or (reached and trigger.size < best[label].size):
                best[label] = trigger
            metrics[_REACHED] = max(metrics[_REACHED], float(reached))
    with context.timed("test"):
        images, held_out = config.test_images, context.held_out
        return [
            Evidence(
                best[label],
                success_rates([context.suspect], best[label], held_out, images, context.seed)[0],
                metrics=known[label],
            )
            for label in labels
        ]


class _Search:
    """The state of K labels' search. Each label has its own weight, patience and best mask, all kept on the device."""

    def __init__(self, context: Context, labels: Sequence[int], config: NeuralCleanseConfig) -> None:
        self.context, self.labels, self.config = context, labels, config
        suspect, count = context.suspect, len(labels)
        device = suspect.device
        channels, height, width = suspect.input_shape
        self.generators = [torch.Generator().manual_seed(derive_seed(context.seed, "cleanse", t)) for t in labels]
        start = [torch.rand(1 + channels, height, width, generator=g) for g in self.generators]
        raw = torch.atanh((torch.stack(start) - 0.5) * (2 - 1e-5)).to(device)  # NC code: uniform through arctanh
        self.raw = raw.requires_grad_()  # (K, 1 + C, H, W): mask, then pattern
        self.optimiser = torch.optim.Adam([self.raw], lr=config.learning_rate, betas=config.betas)
        self.images = context.clean.images.to(device)
        self.targets = torch.tensor(labels, device=device)
        zeros = torch.zeros(count, device=device)
        self.weight, self.up, self.down = zeros.clone(), zeros.clone(), zeros.clone()
        self.moved_up, self.moved_down, self.stale = zeros.clone(), zeros.clone(), zeros.clone()
        self.checks = zeros.clone()
        self.active = torch.ones(count, dtype=torch.bool, device=device)
        self.best = torch.full((count,), torch.inf, device=device)
        self.kept = torch.zeros_like(raw)

    def run(self) -> None:
        """Search until every label stopped, or the checks are used up."""
        for _ in range(self.config.checks):
            active = self.active.nonzero().flatten()
            if not len(active):
                break
            success = torch.zeros(len(active), device=self.raw.device)
            for _ in range(self.config.batches_per_check):
                success += self._step(active)
            self._check(active, success / self.config.batches_per_check)
            self.context.progress.advance(len(active))

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Mask (K, H, W) and pattern (K, C, H, W) in [0, 1]."""
        values = torch.tanh(raw).div(2 - 1e-5).add(0.5)
        return values[:, 0], values[:, 1:]

    def _step(self, active: Tensor) -> Tensor:
        """One mini-batch for the labels still searching; their attack success on it (active,)."""
        suspect, count = self.context.suspect, self.config.images
        rows = active.tolist()
        drawn = torch.stack([torch.randint(len(self.images), (count,), generator=self.generators[i]) for i in rows])
        mask, pattern = self._split(self.raw[active])
        images = self.images[drawn.to(self.images.device)]
        stamped = stamp(images, mask[:, None, None], pattern[:, None]).flatten(0, 1)
        wanted = self.targets[active].repeat_interleave(count)
        with autocast(suspect.device, fast_dtype(suspect.device)):
            logits = suspect(stamped)
        loss = F.cross_entropy(logits, wanted, reduction="sum") / count
        loss = loss + (self.weight[active] * mask.sum(dim=(1, 2))).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return (logits.detach().argmax(dim=1) == wanted).view(len(active), count).float().mean(dim=1)

    @torch.no_grad()
    def _check(self, active: Tensor, success: Tensor) -> None:
        """Keep the best masks, move the weights, count the patience (NC code, in vector form)."""
        config = self.config
        raw = self.raw[active]
        sizes = self._split(raw)[0].sum(dim=(1, 2))
        held = success >= config.goal
        better = held & (sizes < self.best[active])
        self.kept[active] = torch.where(better[:, None, None, None], raw, self.kept[active])
        self.best[active] = torch.where(better, sizes, self.best[active])
        self.stale[active] = torch.where(better | torch.isinf(self.best[active]), 0.0, self.stale[active] + 1)
        self.checks[active] += 1
        weight, waiting = self.weight[active], self.weight[active] == 0
        up = torch.where(held, self.up[active] + 1, 0.0)
        down = torch.where(held, 0.0, self.down[active] + 1)
        raised, lowered = up >= config.patience, (down >= config.patience) & ~waiting
        moved = torch.where(raised & waiting, config.initial_weight, weight)
        moved = torch.where(raised & ~waiting, moved * config.multiplier, moved)
        moved = torch.where(lowered, moved / config.multiplier**1.5, moved)
        self.weight[active] = moved
        self.up[active] = torch.where(raised, 0.0, up)
        self.down[active] = torch.where(down >= config.patience, 0.0, down)
        self.moved_up[active] += (raised & ~waiting).float()
        self.moved_down[active] += lowered.float()
        done = (self.stale >= config.stop_patience) & (self.moved_up > 0) & (self.moved_down > 0)
        self.active &= ~done

    def reached(self, i: int) -> bool:
        """Whether label number ``i`` ever held the goal."""
        return bool(torch.isfinite(self.best[i]))

    def checks_taken(self, i: int) -> int:
        """How many checks label number ``i`` took."""
        return int(self.checks[i])

    @torch.no_grad()
    def trigger(self, i: int) -> Trigger:
        """The smallest mask of label number ``i`` that held the goal; its last one if none did."""
        raw = (self.kept if self.reached(i) else self.raw)[i : i + 1]
        mask, pattern = self._split(raw)
        return Trigger(self.labels[i], mask[0].clamp(0, 1).cpu().numpy(), pattern[0].clamp(0, 1).cpu().numpy())
