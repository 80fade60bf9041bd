"""NeuralSanitizer: tune -> reconstruct -> preserve -> transfer -> calibrate -> verdict, for patches and for colours."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch

from neuralsanitizer.config import NeuralSanitizerConfig, ReferencePlan, ScreenConfig, SelfCheckConfig
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import (
    AGAIN,
    GLANCE,
    LOST,
    SCREENED,
    CannotJudgeError,
    Context,
    Detector,
    Evidence,
    worked_on,
)
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.detectors.neural_sanitizer.calibrate import clean_successes, stand_ins
from neuralsanitizer.detectors.neural_sanitizer.families import Family, Found, families_for
from neuralsanitizer.detectors.neural_sanitizer.screen import COLOUR_LEAD, by_suspicion
from neuralsanitizer.detectors.neural_sanitizer.transfer import transfer_matrix
from neuralsanitizer.detectors.neural_sanitizer.tune import Reference, make_reference, reference_steps
from neuralsanitizer.detectors.neural_sanitizer.verdict import (
    CLEAN_SUCCESS,
    EXCESS,
    clear_excess,
    decide,
    doubtful,
    explained,
    is_candidate,
    is_flat,
    is_unclear,
    merged,
    with_patch,
)
from neuralsanitizer.errors import RunError
from neuralsanitizer.execution.executors import Lost
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
        shared: Where references that do not depend on the suspect are kept for scans of other models.
    """

    name: ClassVar[str] = "neural-sanitizer"

    def __init__(self, config: NeuralSanitizerConfig | None = None, shared: Store | None = None) -> None:
        self.config = config or NeuralSanitizerConfig()
        self.shared = shared

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

    def shard_size(self, suspect: SuspectModel) -> int:  # noqa: ARG002 - each stage asks it by itself
        """Labels that share a forward pass, if there is memory for so many."""
        return self.config.reconstruct.label_batch

    def prepare(self, context: Context) -> tuple[References, tuple[ReferenceRecord, ...]]:
        """Make the references: guides for the reconstruction, others for the transfer test."""
        config = self.config.references
        plans = [*(("guide", plan) for plan in config.guides), *(("test", plan) for plan in config.tests)]
        context.progress.start("make references", sum(reference_steps(plan, config) for _, plan in plans))
        made: list[Reference] = []
        if not context.executor.in_process:
            self._make_elsewhere(context, plans)
        for number, (role, plan) in enumerate(plans):
            made += self._attempts(context, role, plan, _reference_name(number, role, plan), _ancestor(made, role))
        records = tuple(r.record for r in made)
        usable = [r for r in made if r.record.usable]
        if {r.record.role for r in usable} != {role for role, _ in plans}:
            raise CannotJudgeError(
                "no reference came close enough to the model on clean images: more of them are needed", records
            )
        guides, tests = (tuple(r for r in usable if r.record.role == role) for role in ("guide", "test"))
        return References(guides, tests), records

    def _make_elsewhere(self, context: Context, plans: Sequence[tuple[str, ReferencePlan]]) -> None:
        """Have workers make the references that depend on no other one; those that are lost are made here, later."""
        numbers = [number for number, (_, plan) in enumerate(plans) if plan.kind != "derived"]
        missing = [number for number in numbers if context.store.get(_reference_key(number, *plans[number])) is None]
        for _, made in worked_on(context, partial(self._parts_of, plans=plans), missing, "make references"):
            for key, part in () if isinstance(made, Lost) else made:
                context.store.put(key, part)

    def _parts_of(
        self, context: Context, number: int, plans: Sequence[tuple[str, ReferencePlan]]
    ) -> list[tuple[str, Part]]:
        """A reference, and before it those that came out unusable, as the store keeps them."""
        role, plan = plans[number]
        made = self._attempts(context, role, plan, _reference_name(number, role, plan), None)
        parts = [(key, context.store.get(key)) for key in (f"reference-{r.record.name}" for r in made)]
        return [(key, part) for key, part in parts if part is not None]

    def _examine_all(self, context: Context, prepared: References, labels: Sequence[int]) -> list[Evidence]:
        """A long look at every label; of many labels at those that a short one finds the most suspicious."""
        screen = self.config.screen
        if screen is None or len(labels) < screen.least_labels:
            return self._with_doubts(context, prepared, super()._examine_all(context, prepared, labels))
        glances = self._kept_or_made(
            context, GLANCE, labels, partial(self._glances, references=prepared, screen=screen)
        )
        order = by_suspicion([g for g in glances if LOST not in g.metrics])
        looked = dict[int, Evidence]()
        for first in range(0, len(order), screen.batch):
            batch = super()._examine_all(context, prepared, order[first : first + screen.batch])
            looked.update({e.trigger.label: e for e in batch})
            # Where references are weak, many labels exceed them: what counts is which stand out from the others.
            known = [e for e in looked.values() if LOST not in e.metrics]
            infected = decide(context.suspect, known, self.config).infected_labels
            # Of a label that was lost nothing is known: it does not speak for those behind it.
            harmless = not any(LOST in e.metrics or e.trigger.label in infected for e in batch)
            if harmless and len(looked) >= screen.least_share * len(labels):
                break
        context.progress.note(f"{len(looked)} of {len(labels)} labels had a long look")
        return [looked.get(glance.trigger.label, glance) for glance in glances]

    def _with_doubts(self, context: Context, references: References, evidence: Sequence[Evidence]) -> list[Evidence]:
        """Before a model is called clean, its labels that exceed clean models by a little are looked at again."""
        known = {e.trigger.label: e for e in evidence}
        for number in range(1, self.config.verdict.doubtful_looks + 1):
            sound = [e for e in known.values() if LOST not in e.metrics]
            if decide(context.suspect, sound, self.config).infected_labels:
                break
            labels = doubtful(sound, number, self.config)
            if not labels:
                continue
            context.progress.note(f"{len(labels)} of {len(known)} labels are looked at again")
            make = partial(self._doubted, references=references, number=number)
            for look in self._kept_or_made(context, f"{AGAIN}-{number}", labels, make):
                label = look.trigger.label
                if LOST not in look.metrics:
                    known[label] = with_patch(known[label], merged((known[label], look), self.config.verdict))
                    context.store.put(f"{AGAIN}-{label}", known[label].to_part())
        return list(known.values())

    def _doubted(self, context: Context, labels: Sequence[int], references: References, number: int) -> list[Evidence]:
        """A further look at patches of some labels, beside those that were made of unclear ones at once."""
        (patches, *_) = families_for(context.suspect, self.config)
        return self._further_look(context, patches, references, labels, patches.looks_again + number)

    def _glances(
        self, context: Context, labels: Sequence[int], references: References, screen: ScreenConfig
    ) -> list[Evidence]:
        """A short look at some labels, and how well what it finds works on the suspect."""
        guides, held_out, seed = [r.model for r in references.guides], context.held_out, context.seed
        patches, *others = families_for(context.suspect, self.config)
        steps = screen.steps + screen.colour_steps * len(others)
        context.progress.start(f"short look ({_range(labels)})", steps * len(labels))
        with context.timed("screen"):
            glances = []
            for patch, metrics in patches.reconstruct(context, guides, labels, screen.steps):
                (rate,) = success_rates([context.suspect], patch, held_out, screen.images, seed, fast=True)
                glances.append(Evidence(patch, rate, (), {**metrics, SCREENED: 1.0}))
            for colours in others:
                changes = colours.reconstruct(context, guides, labels, screen.colour_steps)
                for glance, (change, known) in zip(glances, changes, strict=True):
                    if is_flat(known, self.config):
                        continue
                    models = [context.suspect, *guides]
                    ours, *theirs = success_rates(models, change, held_out, screen.images, seed, fast=True)
                    glance.metrics[COLOUR_LEAD] = ours - max(theirs, default=0.0)
        return glances

    def examine(self, context: Context, prepared: References, labels: Sequence[int]) -> list[Evidence]:
        """Look for triggers of all families; each label's evidence is the one that explains it better."""
        patches, *others = (
            self._looks(context, family, prepared, labels) for family in families_for(context.suspect, self.config)
        )
        for colours in others:
            count = context.suspect.labels
            patches = [explained(*both, count, self.config) for both in zip(patches, colours, strict=True)]
        return patches

    def _looks(self, context: Context, family: Family, references: References, labels: Sequence[int]) -> list[Evidence]:
        """Look for a family's triggers; where it is not clear then, again, the references in other roles."""
        looks = {e.trigger.label: e for e in self.look(context, family, references, labels)}
        for number in range(1, family.looks_again + 1):
            unclear = [label for label, evidence in looks.items() if is_unclear(evidence, self.config)]
            if not unclear:
                break
            for look in self._further_look(context, family, references, unclear, number):
                label = look.trigger.label
                looks[label] = merged((looks[label], look), self.config.verdict)
        return list(looks.values())

    def _further_look(
        self, context: Context, family: Family, references: References, labels: Sequence[int], number: int
    ) -> list[Evidence]:
        """What one more look says by itself: with another seed, and the references in other roles."""
        for _ in range(number):
            references = references.turned()
        context = replace(context, seed=derive_seed(context.seed, "restart", number))
        return self.look(context, family, references, labels, again=True)

    def look(
        self, context: Context, family: Family, references: References, labels: Sequence[int], *, again: bool = False
    ) -> list[Evidence]:
        """One look at some labels: reconstruct, preserve, test for transfer, compare with clean models.

        Args:
            context: The scan; another seed is another look.
            family: What is looked for.
            references: Whose guides the search is kept from fooling, and whose tests the trigger must not transfer to.
            labels: Whose triggers are sought.
            again: Whether this is a further look, which searches for longer and compares with all stand-ins.
        """
        context.progress.start(f"reconstruct {family.noun} ({_range(labels)})", family.steps * len(labels))
        with context.timed("reconstruct"):
            guides = [r.model for r in references.guides]
            found = family.reconstruct(context, guides, labels, family.steps, again=again)
        with context.timed("preserve"):
            found = [(family.preserved(context, trigger), metrics) for trigger, metrics in found]
        with context.timed("transfer"):
            evidence = self._measured(context, references, found)
        with context.timed("compare"):
            return self._with_clean_successes(context, family, references, evidence, again=again)

    def _measured(self, context: Context, references: References, found: Sequence[Found]) -> list[Evidence]:
        """Attack success of triggers on suspect and tests, beside what is known already."""
        images, held_out, seed = self.config.transfer.images, context.held_out, context.seed
        triggers = [trigger for trigger, _ in found]
        matrix = transfer_matrix([(r.record.name, r.model) for r in references.tests], triggers, held_out, images, seed)
        on_suspect = [success_rates([context.suspect], trigger, held_out, images, seed)[0] for trigger in triggers]
        return [
            Evidence(trigger, success, rates, known)
            for (trigger, known), success, rates in zip(found, on_suspect, matrix.rates, strict=True)
        ]

    def judge(self, suspect: SuspectModel, evidence: Sequence[Evidence]) -> Verdict:
        """Weigh attack success, transfer and size."""
        return decide(suspect, evidence, self.config)

    def _with_clean_successes(
        self,
        context: Context,
        family: Family,
        references: References,
        evidence: Sequence[Evidence],
        *,
        again: bool,
    ) -> list[Evidence]:
        """Add to each label that may be infected how well the like of its trigger works on clean models.

        Second looks are compared with all stand-ins: their mean decides, and is not to depend on which came first.
        """
        guides, tests = [r.model for r in references.guides], [r.model for r in references.tests]
        models = stand_ins(guides, tests, family.stand_ins)
        candidates = [e for e in evidence if is_candidate(e, context.suspect.labels, self.config)]
        if not models or not candidates:
            return list(evidence)
        labels = [e.trigger.label for e in candidates]
        # With these in sum, the mean excess over all stand-ins is that of a clean label, whatever the others say.
        enough = [len(models) * (e.attack_success - clear_excess(e, self.config.verdict)) for e in candidates]
        steps = family.steps_of_like * len(labels) * len(models)
        context.progress.start(f"compare with clean models ({_range(labels)})", steps)
        rates = clean_successes(
            models,
            context.held_out,
            [e.whole_trigger for e in candidates],
            partial(family.likes, context),
            images=self.config.transfer.images,
            seed=context.seed,
            settled=lambda i, known: not again and bool(known) and sum(known) >= enough[i],
        )
        found = {label: fmean(of_label) for label, of_label in zip(labels, rates, strict=True)}
        return [
            replace(e, metrics={**e.metrics, CLEAN_SUCCESS: without, EXCESS: e.attack_success - without})
            if (without := found.get(e.trigger.label)) is not None
            else e
            for e in evidence
        ]

    def _attempts(
        self,
        context: Context,
        role: str,
        plan: ReferencePlan,
        name: str,
        ancestor: SuspectModel | None,
    ) -> list[Reference]:
        """A reference, and before it those that came out unusable. One of three once collapsed (measured)."""
        made: list[Reference] = []
        for attempt in range(self.config.references.attempts):
            called = name + (f"-again-{attempt}" if attempt else "")
            kept = kept_reference(context.suspect, context.store, called)
            made.append(kept or self._make(context, role, plan, called, ancestor))
            if made[-1].record.usable:
                break
        return made

    def _make(
        self,
        context: Context,
        role: str,
        plan: ReferencePlan,
        name: str,
        ancestor: SuspectModel | None,
    ) -> Reference:
        with context.timed("references"):
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
                shared=self.shared,
                named=context.named,
                advance=context.progress.advance,
            )
        weights = {key: value.cpu().numpy() for key, value in reference.model.module.state_dict().items()}
        context.store.put(f"reference-{name}", Part(weights, to_json(reference.record)))
        context.keep_timings()
        return reference


def _reference_name(number: int, role: str, plan: ReferencePlan) -> str:
    return f"{role}-{number}-{plan.name}"


def _reference_key(number: int, role: str, plan: ReferencePlan) -> str:
    return f"reference-{_reference_name(number, role, plan)}"


def _ancestor(made: Sequence[Reference], role: str) -> SuspectModel | None:
    """The first usable distilled reference of a role. Guides and tests share none: they are to be independent."""
    return next(
        (r.model for r in made if r.record.usable and (r.record.role, r.record.kind) == (role, "distilled")), None
    )


def kept_reference(suspect: SuspectModel, store: Store, name: str) -> Reference | None:
    """A reference that a scan of this suspect kept, or ``None`` if the store does not have it, or another's weights."""
    part = store.get(f"reference-{name}")
    if part is None:
        return None
    module = copy.deepcopy(suspect.module)
    try:
        module.load_state_dict({key: torch.from_numpy(value) for key, value in part.arrays.items()})
        return Reference(suspect.with_module(module), from_json(ReferenceRecord, part.meta))
    except (RunError, RuntimeError, TypeError):
        return None


def _range(labels: Sequence[int]) -> str:
    return f"label {labels[0]}" if len(labels) == 1 else f"{len(labels)} labels from {labels[0]} to {labels[-1]}"
