"""What a detector is: the base class owns checks, loop, seeds and clock; a method writes only its steps."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from neuralsanitizer.config import SelfCheckConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.errors import DataError, RunError, UsageError
from neuralsanitizer.execution.executors import Executor, LocalExecutor, Lost
from neuralsanitizer.execution.progress import NoProgress, Progress
from neuralsanitizer.execution.store import MemoryStore, Part, Store
from neuralsanitizer.models.handle import Preprocessing, SuspectModel
from neuralsanitizer.records import (
    Finding,
    LabelFinding,
    ReferenceRecord,
    SelfCheck,
    Trigger,
    TriggerOutline,
    Verdict,
    from_json,
    to_json,
)

__all__ = [
    "GLANCE",
    "LOST",
    "SCREENED",
    "STAGE",
    "CannotJudgeError",
    "Context",
    "Detector",
    "Evidence",
    "Make",
    "Scan",
    "check_device",
    "worked_on",
]

GLANCE = "glance"
"""Kind of the parts that a short look leaves."""
_LABEL = "label"  # of those that a long one leaves
AGAIN = "again"
"""Kind of the parts on labels that were looked at again after all others: they count in place of the first ones."""
_TIMINGS, _TOTAL = "timings", "total"

SCREENED = "screened_out"
"""Name of the metric: 1.0 where a label had a short look only, after which others were more suspicious."""


LOST = "lost"
"""Name of the metric: 1.0 where the workers that examined a label died."""

STAGE: ContextVar[str] = ContextVar("stage", default="")
"""The stage that is being timed, for those who measure; empty between stages."""

S = TypeVar("S")
R = TypeVar("R")
Make = Callable[["Context", Sequence[int]], "list[Evidence]"]
"""Takes a context and labels, gives the evidence on them. It goes to other processes: no closure."""


class CannotJudgeError(Exception):
    """A method lacks what it needs to judge this model; the scan ends as inconclusive, with the reason.

    Attributes:
        references: What was made in vain.
    """

    def __init__(self, reason: str, references: tuple[ReferenceRecord, ...]) -> None:
        super().__init__(reason)
        self.references = references

    def __reduce__(self) -> tuple[type[CannotJudgeError], tuple[str, tuple[ReferenceRecord, ...]]]:
        """Pickled by what it was made of: workers hand it to the process that asked."""
        return type(self), (str(self), self.references)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a method measured of one label, before anything is decided.

    Attributes:
        trigger: The potential trigger; of a label that had a short look only, no more than its outline.
        attack_success: On held-out images, [0, 1].
        transfer: Attack success on each test reference.
        metrics: Further numbers, by name.
    """

    trigger: Trigger | TriggerOutline
    attack_success: float
    transfer: tuple[float, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def whole_trigger(self) -> Trigger:
        """The trigger with its arrays.

        Raises:
            LookupError: Its outline is all that is remembered.
        """
        if isinstance(self.trigger, Trigger):
            return self.trigger
        raise LookupError(f"of the trigger of label {self.trigger.label} only the outline is remembered")

    def outlined(self) -> Evidence:
        """The same without the trigger's arrays."""
        return self if isinstance(self.trigger, TriggerOutline) else replace(self, trigger=self.trigger.outline)

    def to_part(self) -> Part:
        """As arrays and JSON, to be kept."""
        trigger = self.whole_trigger
        arrays = {"mask": trigger.mask, "pattern": trigger.pattern}
        if trigger.heat is not None:
            arrays["heat"] = trigger.heat
        if trigger.colours is not None:
            arrays["colours"] = trigger.colours
        return Part(arrays, to_json(_Facts(trigger.label, self.attack_success, self.transfer, self.metrics)))

    @classmethod
    def kept(
        cls, store: Store, label: int, suspect: SuspectModel, kinds: Sequence[str] = (AGAIN, _LABEL, GLANCE)
    ) -> Evidence | None:
        """What a scan kept of a label of a model: its last look, a short one if that was all.

        Args:
            store: Where it was kept.
            label: Which.
            suspect: The model.
            kinds: Of look, the first of which that is there counts.

        Returns:
            ``None`` if there is nothing, or nothing that is whole and of this label of such a model.
        """
        for kind in kinds:
            part = store.get(f"{kind}-{label}")
            try:
                one = None if part is None else cls.from_part(part)
            except (RunError, KeyError, ValueError):
                continue
            if one is None or not one.fits(label, suspect.input_shape):
                continue
            return replace(one, metrics={**one.metrics, SCREENED: 1.0}) if kind == GLANCE else one
        return None

    @classmethod
    def from_part(cls, part: Part) -> Evidence:
        """What :meth:`to_part` kept.

        Raises:
            RunError: The facts are none.
            KeyError: An array is missing.
            ValueError: Shapes do not agree.
        """
        facts, arrays = from_json(_Facts, part.meta), part.arrays
        trigger = Trigger(facts.label, arrays["mask"], arrays["pattern"], arrays.get("heat"), arrays.get("colours"))
        return cls(trigger, facts.attack_success, facts.transfer, facts.metrics)

    def fits(self, label: int, shape: tuple[int, int, int]) -> bool:
        """Whether it is of a label, of images of a shape (channels, height, width), and holds nothing but numbers."""
        trigger, (_, *size) = self.whole_trigger, shape
        arrays = [a for a in (trigger.mask, trigger.pattern, trigger.heat, trigger.colours) if a is not None]
        return (
            trigger.label == label
            and trigger.pattern.shape == shape
            and (trigger.heat is None or trigger.heat.shape == (*size,))
            and all(a.dtype == np.float32 and bool(np.isfinite(a).all()) for a in arrays)
        )


@dataclass(frozen=True)
class _Facts:
    """What is kept of an evidence beside its arrays."""

    label: int
    attack_success: float
    transfer: tuple[float, ...]
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class Context:
    """What every step of a scan may use.

    Attributes:
        suspect: The model under examination.
        clean: The part of the clean set that references train on and triggers are fitted to.
        held_out: The rest: everything that is reported is measured on it.
        seed: The scan's seed.
        progress: Where to say how far it is.
        store: Where finished parts are kept.
        clock: Seconds by stage, summed over workers.
        began: When the scan began, by :func:`time.perf_counter`; of one that goes on, earlier by what it took before.
        executor: Where shards are worked on.
    """

    suspect: SuspectModel
    clean: CleanSet
    held_out: CleanSet
    seed: int
    progress: Progress
    store: Store
    clock: dict[str, float]
    began: float = field(default_factory=time.perf_counter)
    executor: Executor = field(default_factory=LocalExecutor)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time within to a stage."""
        started, token = time.perf_counter(), STAGE.set(stage)
        try:
            yield
        finally:
            STAGE.reset(token)
            self.clock[stage] = self.clock.get(stage, 0.0) + time.perf_counter() - started

    @cached_property
    def named(self) -> Tensor:
        """What the suspect calls the held-out images, int64 (N,)."""
        return self.suspect.predict(self.held_out.images)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by stage, and in ``total``."""
        return {**self.clock, _TOTAL: time.perf_counter() - self.began}

    def keep_timings(self) -> None:
        """Keep what the scan took so far, for the case that it is interrupted and goes on."""
        self.store.put(_TIMINGS, Part({}, self.timings))

    def elsewhere(self) -> Context:
        """The same for a worker in another process: it keeps and tells nothing by itself."""
        return replace(self, progress=NoProgress(), store=MemoryStore(), clock={}, executor=LocalExecutor())


@dataclass(frozen=True, eq=False)
class Scan:
    """Everything that a scan found.

    Attributes:
        verdict: The outcome.
        triggers: Potential triggers by label, of all that had more than a short look.
        references: The references, used or not.
        self_check: Accuracy on the clean set.
        timings: Seconds by stage.
    """

    verdict: Verdict
    triggers: Mapping[int, Trigger]
    references: tuple[ReferenceRecord, ...]
    self_check: SelfCheck
    timings: Mapping[str, float]


class Detector(ABC):
    """Base of all detectors. Subclasses write :meth:`prepare`, :meth:`examine` and :meth:`judge`."""

    name: ClassVar[str]
    """As on the command line."""
    compares_labels: ClassVar[bool] = False
    """Whether a label can only be judged beside all others."""

    @property
    @abstractmethod
    def preset(self) -> str:
        """Name of the settings."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings, for the record."""

    @property
    @abstractmethod
    def self_check_config(self) -> SelfCheckConfig:
        """When to refuse to judge."""

    @abstractmethod
    def prepare(self, context: Context) -> tuple[Any, tuple[ReferenceRecord, ...]]:
        """Make what all labels need (references), and say what was made.

        Raises:
            CannotJudgeError: It cannot be made for this model.
        """

    @abstractmethod
    def examine(self, context: Context, prepared: Any, labels: Sequence[int]) -> list[Evidence]:  # noqa: ANN401
        """Measure some labels. What comes out for a label must not depend on which others are examined with it."""

    @abstractmethod
    def judge(self, suspect: SuspectModel, evidence: Sequence[Evidence]) -> Verdict:
        """Decide, from the evidence on all labels."""

    @abstractmethod
    def shard_size(self, suspect: SuspectModel) -> int:
        """How many labels of a model are examined at once."""

    def scan(
        self,
        suspect: SuspectModel,
        clean: CleanSet,
        *,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        progress: Progress | None = None,
        store: Store | None = None,
        executor: Executor | None = None,
    ) -> Scan:
        """Examine a model.

        Args:
            suspect: The model.
            clean: Clean images with labels.
            seed: All randomness derives from it: same seed, same machine, same verdict.
            labels: Examine only these; all by default.
            progress: Where to say how far it is.
            store: Where finished labels are kept, and found again.
            executor: Where shards of labels are worked on; by default here.

        Raises:
            DataError: The clean set has another shape than the model's input, or labels that the model does not have.
            ModelError: The model gives no finite row of logits an image.
            UsageError: ``labels`` names one that the model does not have, or the executor cannot work where it is.
        """
        started = time.perf_counter()
        check_device(suspect, executor)
        wanted = _validate(suspect, clean, labels)
        suspect.recognise_output(clean.images[:8])
        check = self_check(suspect, clean, self.self_check_config)
        if not check.passed:
            return Scan(_inconclusive(check.note), {}, (), check, {_TOTAL: time.perf_counter() - started})
        held_out, work = clean.split([self.self_check_config.held_out_share], derive_seed(seed, "held-out"))
        progress, store = progress or NoProgress(), store or MemoryStore()
        before = _timings_kept(store)
        began = started - before.pop(_TOTAL, 0.0)
        context = Context(suspect, work, held_out, seed, progress, store, before, began, executor or LocalExecutor())
        try:
            prepared, references = self.prepare(context)
        except CannotJudgeError as error:
            return Scan(_inconclusive(str(error)), {}, error.references, check, context.timings)
        evidence = self._examine_all(context, prepared, wanted)
        verdict = self.conclude(suspect, evidence, clean)
        triggers = {e.trigger.label: e.trigger for e in evidence if isinstance(e.trigger, Trigger)}
        return Scan(verdict, triggers, references, check, context.timings)

    def conclude(self, suspect: SuspectModel, evidence: Sequence[Evidence], clean: CleanSet) -> Verdict:
        """Judge, and leave open what too few clean images speak for.

        Args:
            suspect: Whose labels they are.
            evidence: What was measured of each label.
            clean: The whole clean set.
        """
        lost = [e for e in evidence if LOST in e.metrics]
        if not lost:
            return self._with_thin_evidence(self.judge(suspect, evidence), clean)
        judged = [e for e in evidence if LOST not in e.metrics]
        verdict = self._with_thin_evidence(self.judge(suspect, judged), clean)
        findings = sorted((*verdict.labels, *(_unknown(e, suspect) for e in lost)), key=lambda f: f.label)
        return model_verdict(findings, verdict.assumptions, self.name)

    def _examine_all(self, context: Context, prepared: Any, labels: Sequence[int]) -> list[Evidence]:  # noqa: ANN401
        """Evidence on all labels, in their order."""
        return self._kept_or_made(context, _LABEL, labels, partial(_examined, detector=self, prepared=prepared))

    def _kept_or_made(self, context: Context, kind: str, labels: Sequence[int], make: Make) -> list[Evidence]:
        """Evidence on labels, shard by shard; what the store has of them under ``kind`` is not made again.

        Labels whose shard is lost are kept nowhere: they are examined when the scan goes on. A short look is at so many
        labels that their triggers would fill the memory: the store keeps them, and what is given has their outlines.
        """
        found: dict[int, Evidence] = {}
        for label in labels:
            if (kept := Evidence.kept(context.store, label, context.suspect, (kind,))) is not None:
                found[label] = kept.outlined() if kind == GLANCE else kept
        missing = [label for label in labels if label not in found]
        if missing and found:
            context.progress.note(f"{len(found)} of {len(labels)} labels were examined before the interruption")
        shards = _shards(missing, self.shard_size(context.suspect), context.executor.workers)
        for shard, made in worked_on(context, make, shards, f"examine {len(missing)} labels"):
            for evidence in _lost(shard) if isinstance(made, Lost) else made:
                found[evidence.trigger.label] = evidence.outlined() if kind == GLANCE else evidence
                # What ends with the process goes on with nothing: there short looks would but fill the memory.
                if not isinstance(made, Lost) and (kind != GLANCE or context.store.outlives):
                    context.store.put(f"{kind}-{evidence.trigger.label}", evidence.to_part())
            context.keep_timings()
        return [found[label] for label in labels]

    def _with_thin_evidence(self, verdict: Verdict, clean: CleanSet) -> Verdict:
        """Labels with too few clean images are inconclusive: their references have hardly seen them.

        With a few, a label that no pattern reaches is clean all the same; without any, nothing is known of it.
        """
        least = self.self_check_config.least_images_per_label
        counts = torch.bincount(clean.labels, minlength=max((f.label for f in verdict.labels), default=0) + 1)
        thin = [f.label for f in verdict.labels if counts[f.label] < (1 if f.finding is Finding.CLEAN else least)]
        if not thin:
            return verdict
        findings = tuple(_thin(f, int(counts[f.label]), least) if f.label in thin else f for f in verdict.labels)
        return model_verdict(findings, verdict.assumptions, self.name)


def _timings_kept(store: Store) -> dict[str, float]:
    """Seconds by stage, and in total, of a scan that was interrupted; none where what was kept of them is damaged."""
    part = store.get(_TIMINGS)
    kept = part.meta if part is not None and isinstance(part.meta, dict) else {}
    whole = all(isinstance(s, float) and 0 <= s < math.inf for s in kept.values()) and _TOTAL in kept
    return {str(stage): float(seconds) for stage, seconds in kept.items()} if whole else {}


def _shards(labels: Sequence[int], largest: int, workers: int) -> list[Sequence[int]]:
    """Labels in shards of at most ``largest``; for several workers, as many for each, and about as large."""
    size = largest
    if workers > 1 and labels:
        rounds = -(-len(labels) // (largest * workers))
        size = -(-len(labels) // (rounds * workers))
    return [labels[i : i + size] for i in range(0, len(labels), size)]


def _examined(context: Context, labels: Sequence[int], detector: Detector, prepared: Any) -> list[Evidence]:  # noqa: ANN401
    """:meth:`Detector.examine`, with what comes with the shard first."""
    return detector.examine(context, prepared, labels)


@dataclass(frozen=True, eq=False)
class _Work(Generic[S, R]):
    """A job for workers elsewhere: what they make of a shard, and the seconds that they took for it by stage."""

    make: Callable[[Context, S], R]
    context: Context

    def __call__(self, shard: S) -> tuple[R, dict[str, float]]:
        own = replace(self.context, clock={})
        return self.make(own, shard), own.clock


def worked_on(
    context: Context, make: Callable[[Context, S], R], shards: Sequence[S], what: str
) -> Iterator[tuple[S, R | Lost]]:
    """Make something of shards where the scan's executor works, and yield each with it as it is done.

    Args:
        context: The scan.
        make: Takes a context and a shard.
        shards: Any.
        what: The stage, for people who wait; made here, the shards tell more themselves.
    """
    if context.executor.in_process:
        yield from context.executor.map(partial(make, context), shards, context.progress)
        return
    context.progress.start(f"{what} ({context.executor.name})", len(shards))
    for shard, done in context.executor.map(_Work(make, context.elsewhere()), shards, context.progress):
        context.progress.advance()
        if isinstance(done, Lost):
            yield shard, done
            continue
        made, clock = done
        for stage, seconds in clock.items():
            context.clock[stage] = context.clock.get(stage, 0.0) + seconds
        yield shard, made


def _lost(labels: Sequence[int]) -> list[Evidence]:
    """What is known of labels whose shard was lost: nothing."""
    return [Evidence(TriggerOutline(label, 0.0, "patch"), 0.0, (), {LOST: 1.0}) for label in labels]


def _unknown(one: Evidence, suspect: SuspectModel) -> LabelFinding:
    label = one.trigger.label
    return LabelFinding(
        label=label,
        name=suspect.label_names[label],
        finding=Finding.INCONCLUSIVE,
        attack_success=0.0,
        mask_size=0.0,
        reason="the worker that examined it died, twice: scan again with --resume, which examines what is missing",
        metrics=one.metrics,
    )


def model_verdict(findings: Sequence[LabelFinding], assumptions: Sequence[str], method: str) -> Verdict:
    """The verdict on a model that follows from its labels."""
    infected = [f for f in findings if f.finding is Finding.INFECTED]
    open_ones = [f for f in findings if f.finding is Finding.INCONCLUSIVE]
    if infected:
        named = ", ".join(f.name for f in infected[:5]) + (" and others" if len(infected) > 5 else "")
        kind = "label" if len(infected) == 1 else "labels"
        finding, reason = Finding.INFECTED, f"{len(infected)} infected {kind}: {named}"
    elif open_ones:
        finding = Finding.INCONCLUSIVE
        reason = f"no backdoor proven, but {len(open_ones)} of {len(findings)} labels could not be judged"
    else:
        finding = Finding.CLEAN
        reason = f"no backdoor found by {method} under the stated assumptions"
    return Verdict(finding, reason, tuple(assumptions), tuple(findings))


def self_check(suspect: SuspectModel, clean: CleanSet, config: SelfCheckConfig) -> SelfCheck:
    """Does the model do its job on the clean set? If not, say the likely reason."""
    predictions = suspect.predict(clean.images).cpu()
    accuracy = float((predictions == clean.labels).float().mean())
    counts = torch.bincount(clean.labels, minlength=suspect.labels)
    chance = float(counts.max()) / len(clean)
    present = counts[counts > 0]
    note = ""
    if len(present) < 2:
        note = "the clean set has images of one label only: nothing can be told from it"
    elif len(clean) < _LEAST_IMAGES:
        note = f"the clean set has {len(clean)} images; at least {_LEAST_IMAGES} are needed, better 100 a label"
    elif accuracy < (needed := chance + config.least_gain_over_chance * (1 - chance)):
        note = _likely_reason(suspect, predictions, clean, accuracy, needed)
    elif not _has_gradient(suspect, clean.images):
        note = "the model's answers have no gradient (is it quantised, or rounded?), by which triggers are sought"
    return SelfCheck(accuracy, chance, len(clean), not note, note)


def _has_gradient(suspect: SuspectModel, images: Tensor) -> bool:
    """Whether any answer to some images, to mixtures of them, or to noise, changes with what is put in."""
    some = images[:_PROBED]
    noise = torch.rand(some.shape, generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([some, (some + some.flip(0)) / 2, noise]).to(suspect.device).requires_grad_()
    logits = suspect(inputs)
    if not logits.requires_grad:
        return False
    weights = torch.arange(
        1.0, 1.0 + suspect.labels, device=suspect.device
    )  # of equal ones, those of a softmax add to 0
    (gradient,) = torch.autograd.grad((logits * weights).sum(), inputs, allow_unused=True)
    return gradient is not None and bool((gradient != 0).any())


_PROBED = 8
_LEAST_IMAGES = 40  # below it a fifth held out gives attack success in steps of more than a tenth


_NORMALISATIONS: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (
    ((0.0,), (1.0,)),
    ((0.5,), (0.5,)),
    ((0.5,), (1.0,)),
    ((0.1307,), (0.3081,)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    ((0.0,), (1 / 255,)),
)
"""Mean and std, of pixel values in [0, 1], that people train with: none, to [-1, 1], to [-0.5, 0.5], MNIST's,
ImageNet's, CIFAR-10's, and raw 8-bit values."""
_TRIED_IMAGES = 500  # enough to tell a sound model from one near chance


def _likely_reason(
    suspect: SuspectModel, predictions: torch.Tensor, clean: CleanSet, accuracy: float, needed: float
) -> str:
    named = f"the model names only {accuracy:.1%} of the clean images rightly"
    votes = torch.zeros(suspect.labels, suspect.labels)
    votes.index_put_((clean.labels, predictions), torch.ones(1), accumulate=True)
    present = votes.sum(dim=1) > 0
    renamed = votes.argmax(dim=1)[present]
    if float(votes.max(dim=1).values.sum()) / len(clean) > 0.8 and len(renamed.unique()) == len(renamed):
        return f"{named}, but confuses labels one for one: the clean set numbers them in another order than the model"
    remedy = _better_input(suspect, clean, needed)
    if remedy:
        return f"{named}; {remedy}"
    distinct = predictions.unique()
    if len(distinct) == 1:
        return (
            f"{named}: it gives label {int(distinct[0])} to every image. Is the file complete, and --mean/--std right?"
        )
    return (
        f"{named}: most likely the preprocessing is not the one it was trained with "
        "(--mean, --std, --range), or the clean set is of another task"
    )


def _better_input(suspect: SuspectModel, clean: CleanSet, needed: float) -> str:
    """Which of the usual ways to feed a network makes this one do its job; empty if none does."""
    some = torch.linspace(0, len(clean) - 1, min(len(clean), _TRIED_IMAGES)).long()
    images, labels = clean.images[some], clean.labels[some]
    channels = suspect.input_shape[0]
    low, high = suspect.preprocessing.pixel_range
    best, advice = needed, ""
    for mean, std in _NORMALISATIONS:
        if len(mean) not in {1, channels}:
            continue
        tried = replace(suspect, preprocessing=Preprocessing(mean, std, (low, high)))
        reached = tried.accuracy(images, labels)
        if reached > best or (reached == best and not advice):
            raw_mean = ",".join(f"{low + m * (high - low):.6g}" for m in mean)
            raw_std = ",".join(f"{s * (high - low):.6g}" for s in std)
            options = f"--mean {raw_mean} --std {raw_std} --range {low:g} {high:g}"
            best, advice = reached, f"with {options} it names {reached:.1%} rightly: was it trained with these?"
    if advice:
        return advice
    if channels > 1 and suspect.accuracy(images.flip(1), labels) >= needed:
        return "with the channels in reverse order it does its job: it was trained on BGR images, not RGB"
    return ""


def check_device(suspect: SuspectModel, executor: Executor | None) -> None:
    """Refuse to have other processes work on a model that is not on the CPU.

    A fork cannot use what its parent began on a GPU, and Ray gives its tasks cores, no GPU.

    Raises:
        UsageError: They would have to.
    """
    if executor is not None and not executor.in_process and suspect.device.type != "cpu":
        raise UsageError(
            f"the executor {executor.name} works on the CPU alone, and the model is on {suspect.device}: "
            "use --device cpu, or --executor local"
        )


def _validate(suspect: SuspectModel, clean: CleanSet, labels: Sequence[int] | None) -> list[int]:
    if tuple(clean.images.shape[1:]) != tuple(suspect.input_shape):
        raise DataError(
            f"the model takes images of shape {suspect.input_shape}, the clean set has {tuple(clean.images.shape[1:])}"
        )
    if int(clean.labels.max()) >= suspect.labels:
        largest = int(clean.labels.max())
        raise DataError(f"the clean set has label {largest}, but the model only has labels 0 to {suspect.labels - 1}")
    wanted = list(range(suspect.labels)) if labels is None else sorted(set(labels))
    if not wanted or wanted[0] < 0 or wanted[-1] >= suspect.labels:
        raise UsageError(f"labels to examine must be within 0 and {suspect.labels - 1}, got {labels}")
    return wanted


def _inconclusive(reason: str) -> Verdict:
    return Verdict(Finding.INCONCLUSIVE, reason, (), ())


def _thin(finding: LabelFinding, images: int, least: int) -> LabelFinding:
    reason = f"only {images} clean images of this label, at least {least} are needed to trust its references"
    return LabelFinding(**{**vars(finding), "finding": Finding.INCONCLUSIVE, "reason": reason, "confidence": None})
