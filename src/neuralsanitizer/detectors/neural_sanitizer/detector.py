"""NeuralSanitizer: tune -> reconstruct -> preserve -> transfer -> calibrate -> verdict."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import torch

from neuralsanitizer.config import NeuralSanitizerConfig, ReferencePlan, SelfCheckConfig
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import CannotJudgeError, Context, Detector, Evidence
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.detectors.neural_sanitizer.calibrate import clean_successes, stand_ins
from neuralsanitizer.detectors.neural_sanitizer.preserve import preserve
from neuralsanitizer.detectors.neural_sanitizer.reconstruct import Reconstruction, reconstruct
from neuralsanitizer.detectors.neural_sanitizer.transfer import transfer_matrix
from neuralsanitizer.detectors.neural_sanitizer.tune import Reference, make_reference, reference_steps
from neuralsanitizer.detectors.neural_sanitizer.verdict import (
    CLEAN_SUCCESS,
    EXCESS,
    decide,
    is_candidate,
    is_unclear,
    merged,
)
from neuralsanitizer.execution.store import Part, Store
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import ReferenceRecord, Verdict, from_json, to_json

__all__ = ["NeuralSanitizer", "References", "kept_reference"]


@dataclass(frozen=True, eq=False)
class References:
    """What a scan has of them: guides constrain the reconstruction, tests are what a patch must not transfer to."""

    guides: tuple[Reference, ...]
    tests: tuple[Reference, ...]

    def turned(self) -> References:
        """The same references with the tests among the guides: as many of each as before."""
        every = (*self.tests, *self.guides)
        return References(every[: len(self.guides)], every[len(self.guides) :])


class NeuralSanitizer(Detector):
    """The detector.

    Args:
        config: Settings; see :data:`neuralsanitizer.config.PRESETS`.
    """

    name: ClassVar[str] = "neural-sanitizer"

    def __init__(self, config: NeuralSanitizerConfig | None = None) -> None:
        self.config = config or NeuralSanitizerConfig()

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

    def shard_size(self) -> int:
        """Labels that share a forward pass."""
        return self.config.reconstruct.label_batch

    def prepare(self, context: Context) -> tuple[References, tuple[ReferenceRecord, ...]]:
        """Make the references: guides for the reconstruction, others for the transfer test."""
        config = self.config.references
        plans: list[tuple[str, ReferencePlan]] = [("guide", plan) for plan in config.guides] + [
            ("test", plan) for plan in config.tests
        ]
        context.progress.start("make references", sum(reference_steps(plan, config) for _, plan in plans))
        made: list[Reference] = []
        with context.timed("references"):
            for number, (role, plan) in enumerate(plans):
                made += self._attempts(context, role, number, plan, _ancestor(made, role))
        usable = [r for r in made if r.record.usable]
        records = tuple(r.record for r in made)
        if {r.record.role for r in usable} != {role for role, _ in plans}:
            raise CannotJudgeError(
                "no reference came close enough to the model on clean images: more of them are needed", records
            )
        references = References(
            guides=tuple(r for r in usable if r.record.role == "guide"),
            tests=tuple(r for r in usable if r.record.role == "test"),
        )
        return references, records

    def examine(self, context: Context, prepared: References, labels: Sequence[int]) -> list[Evidence]:
        """Reconstruct, preserve, test for transfer, compare with clean models; what is not clear then, once more."""
        looks = {e.trigger.label: [e] for e in self._look(context, prepared, labels)}
        turned = prepared
        for number in range(1, self.config.verdict.restarts + 1):
            unclear = [label for label, evidence in looks.items() if is_unclear(merged(evidence), self.config)]
            if not unclear:
                break
            turned = turned.turned()
            again = replace(context, seed=derive_seed(context.seed, "restart", number))
            for evidence in self._look(again, turned, unclear):
                looks[evidence.trigger.label].append(evidence)
        return [merged(looks[label]) for label in labels]

    def _look(self, context: Context, references: References, labels: Sequence[int]) -> list[Evidence]:
        """Examine some labels once."""
        context.progress.start(f"reconstruct triggers ({_range(labels)})", self.config.reconstruct.steps * len(labels))
        guides = [r.model for r in references.guides]
        with context.timed("reconstruct"):
            reconstructions = reconstruct(
                context.suspect,
                guides,
                context.clean,
                labels,
                config=self.config.reconstruct,
                seed=context.seed,
                advance=context.progress.advance,
            )
        with context.timed("preserve"):
            triggers = [
                preserve(context.suspect, r.trigger, context.clean, self.config.preserve, context.seed)
                for r in reconstructions
            ]
        with context.timed("transfer"):
            images = self.config.transfer.images
            suspect, held_out = context.suspect, context.held_out
            tests = [(r.record.name, r.model) for r in references.tests]
            matrix = transfer_matrix(tests, triggers, held_out, images, context.seed)
            evidence = [
                Evidence(
                    trigger=trigger,
                    attack_success=success_rates([suspect], trigger, held_out, images, context.seed)[0],
                    transfer=rates,
                    metrics=_metrics(made, success_rates(guides, trigger, held_out, images, context.seed)),
                )
                for trigger, rates, made in zip(triggers, matrix.rates, reconstructions, strict=True)
            ]
        with context.timed("compare"):
            return self._with_clean_successes(context, references, evidence)

    def judge(self, suspect: SuspectModel, evidence: Sequence[Evidence]) -> Verdict:
        """Weigh attack success, transfer and size."""
        return decide(suspect, evidence, self.config)

    def _with_clean_successes(
        self, context: Context, references: References, evidence: Sequence[Evidence]
    ) -> list[Evidence]:
        """Add to each label that may be infected how well its mask works on models without a backdoor."""
        config = self.config
        guides, tests = [r.model for r in references.guides], [r.model for r in references.tests]
        models = stand_ins(guides, tests, config.counterparts.stand_ins)
        candidates = [e.trigger for e in evidence if is_candidate(e, context.suspect.labels, config)]
        if not models or not candidates:
            return list(evidence)
        labels = [trigger.label for trigger in candidates]
        steps = config.counterparts.steps * len(labels) * len(models)
        context.progress.start(f"compare with clean models ({_range(labels)})", steps)
        rates = clean_successes(
            models,
            context.clean,
            context.held_out,
            candidates,
            config=config.counterparts,
            guarding=config.reconstruct,
            images=config.transfer.images,
            seed=context.seed,
            advance=context.progress.advance,
        )
        found = {label: fmean(of_label) for label, of_label in zip(labels, rates, strict=True)}
        return [
            replace(e, metrics={**e.metrics, CLEAN_SUCCESS: without, EXCESS: e.attack_success - without})
            if (without := found.get(e.trigger.label)) is not None
            else e
            for e in evidence
        ]

    def _attempts(
        self, context: Context, role: str, number: int, plan: ReferencePlan, ancestor: SuspectModel | None
    ) -> list[Reference]:
        """A reference, and before it those that came out unusable. One of three once collapsed (measured)."""
        made: list[Reference] = []
        for attempt in range(self.config.references.attempts):
            name = f"{role}-{number}-{plan.name}" + (f"-again-{attempt}" if attempt else "")
            made.append(self._reference(context, role, plan, name, ancestor))
            if made[-1].record.usable:
                break
        return made

    def _reference(
        self, context: Context, role: str, plan: ReferencePlan, name: str, ancestor: SuspectModel | None
    ) -> Reference:
        kept = kept_reference(context.suspect, context.store, name)
        if kept is not None:
            return kept
        reference = make_reference(
            context.suspect,
            context.clean,
            context.held_out,
            plan=plan,
            name=name,
            role=role,
            config=self.config.references,
            seed=context.seed,
            ancestor=ancestor,
            advance=context.progress.advance,
        )
        weights = {key: value.cpu().numpy() for key, value in reference.model.module.state_dict().items()}
        context.store.put(f"reference-{name}", Part(weights, to_json(reference.record)))
        return reference


def _ancestor(made: Sequence[Reference], role: str) -> SuspectModel | None:
    """The first usable distilled reference of a role. Guides and tests share none: they are to be independent."""
    return next(
        (r.model for r in made if r.record.usable and (r.record.role, r.record.kind) == (role, "distilled")), None
    )


def kept_reference(suspect: SuspectModel, store: Store, name: str) -> Reference | None:
    """A reference that a scan of this suspect kept, or ``None`` if the store does not have it."""
    part = store.get(f"reference-{name}")
    if part is None:
        return None
    module = copy.deepcopy(suspect.module)
    module.load_state_dict({key: torch.from_numpy(value) for key, value in part.arrays.items()})
    return Reference(suspect.with_module(module), from_json(ReferenceRecord, part.meta))


def _range(labels: Sequence[int]) -> str:
    return f"label {labels[0]}" if len(labels) == 1 else f"{len(labels)} labels from {labels[0]} to {labels[-1]}"


def _metrics(made: Reconstruction, guided: Sequence[float]) -> dict[str, float]:
    metrics = {"reached_goal": float(made.reached_goal), "fitted_success": made.fitted_success}
    return {**metrics, "success_on_guides": max(guided)} if guided else metrics
