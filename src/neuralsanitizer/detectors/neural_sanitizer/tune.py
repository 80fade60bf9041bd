"""References: models that stand for "the suspect without its backdoor".

Four kinds. ``tuned`` is NeuralSanitizer's PNNIR: some of the last layers are re-initialised, trained alone, then the
whole network is trained on clean data. ``scratch`` has fresh weights and learns the true labels. ``distilled`` has
fresh weights and learns the suspect's own outputs on mixed-up clean images: as close to the suspect as clean data can
bring it, and without a path for the backdoor. ``derived`` learns the same, from weights halfway between an earlier
distilled reference and fresh ones (Ash and Adams 2020, "shrink and perturb"): another network, for a quarter of the
time, and as free of the backdoor as its ancestor. Measured: tuned models often keep the backdoor; networks with fresh
weights did not.

A reference from scratch owes nothing to the suspect but its architecture: scans of several models share it.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import ReferenceConfig, ReferencePlan
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed, mixed_images
from neuralsanitizer.execution.store import Part, Store
from neuralsanitizer.functional import reinitialise_all, reinitialise_uniform, unit_variance
from neuralsanitizer.functional.precision import autocast, fast_dtype
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.layers import layers_of
from neuralsanitizer.models.suffix import suffix_of
from neuralsanitizer.records import ReferenceRecord
from neuralsanitizer.training import Sampler, Schedule, fit, shuffled_batches

__all__ = ["Reference", "make_reference", "reference_steps"]

Advance = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference model and what is known of it.

    Attributes:
        model: The model, frozen.
        record: How it was made and how close to the suspect it came.
    """

    model: SuspectModel
    record: ReferenceRecord


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything that making one reference needs."""

    student: SuspectModel  # starts as a copy of the suspect
    suspect: SuspectModel
    clean: CleanSet
    plan: ReferencePlan
    config: ReferenceConfig
    generator: Generator
    advance: Advance | None
    ancestor: SuspectModel | None = None
    shared: Store | None = None


def make_reference(
    suspect: SuspectModel,
    clean: CleanSet,
    held_out: CleanSet,
    *,
    plan: ReferencePlan,
    name: str,
    role: str,
    config: ReferenceConfig,
    seed: int,
    ancestor: SuspectModel | None = None,
    shared: Store | None = None,
    named: Tensor | None = None,
    advance: Advance | None = None,
) -> Reference:
    """Make one reference, and measure it.

    Args:
        suspect: The model under examination; it is not changed.
        clean: What to train on.
        held_out: What to measure accuracy and agreement on.
        plan: How to make it.
        name: Unique within the scan; its randomness derives from it and the seed.
        role: ``guide`` or ``test``.
        config: How long and how fast.
        seed: The scan's seed.
        ancestor: For ``derived``: a distilled reference; without one it is distilled itself.
        shared: Where references from scratch are kept for scans of other models, and found again.
        named: What the suspect calls the held-out images, int64 (N,); by default it is asked.
        advance: Told of every optimiser step.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(derive_seed(seed, "reference", name))
    student = suspect.with_module(copy.deepcopy(suspect.module))
    make = {"tuned": _tune, "scratch": _train_from_scratch, "distilled": _distil, "derived": _derive}[plan.kind]
    make(_Job(student, suspect, clean, plan, config, generator, advance, ancestor, shared))
    predicted = student.predict(held_out.images, fast=True).cpu()
    named = (suspect.predict(held_out.images) if named is None else named).cpu()
    agreement = float((predicted == named).float().mean())
    accuracy = float((predicted == held_out.labels).float().mean())
    if plan.kind == "scratch":
        least = config.least_accuracy * float((named == held_out.labels).float().mean())
        usable, doubt = accuracy >= least, f"names only {accuracy:.0%} of clean images rightly"
    else:
        usable = agreement >= config.least_agreement
        doubt = f"agrees with the suspect on only {agreement:.0%} of clean images"
    record = ReferenceRecord(
        name=name,
        kind=plan.kind,
        role=role,
        layers=plan.layers,
        clean_accuracy=accuracy,
        agreement=agreement,
        usable=usable,
        reason="" if usable else doubt,
        seconds=time.perf_counter() - started,
    )
    return Reference(student, record)


def reference_steps(plan: ReferencePlan, config: ReferenceConfig) -> int:
    """The most optimiser steps that a reference takes."""
    if plan.kind == "derived":
        return sum(config.derived_cycles)
    if plan.kind != "tuned":
        return sum(config.fresh_cycles)
    return _frozen_steps(plan, config) + config.steps


def _frozen_steps(plan: ReferencePlan, config: ReferenceConfig) -> int:
    return config.frozen_steps if len(plan.layers) == 1 else config.frozen_steps_many


def _tune(job: _Job) -> None:
    """PNNIR: re-initialise, train the re-initialised layers alone, then everything."""
    student, clean, config, generator = job.student, job.clean, job.config, job.generator
    layers = layers_of(job.suspect, clean.images[:2])
    # Counted from the third-last: a network of two layers has no first one.
    counted = sorted(number for i in job.plan.layers if (number := len(layers) - 4 + i) >= 0)
    fresh = [name for number in counted for name in layers[number].parameters]
    reinitialise_uniform(student.module, fresh, config.weight_bound, generator)
    inputs, targets = student.normalise(clean.images.to(student.device)), clean.labels.to(student.device)
    named = dict(student.module.named_parameters())
    check = torch.randperm(len(clean), generator=generator)[: config.stop_images]

    def accurate() -> bool:
        return student.accuracy(clean.images[check], clean.labels[check]) > config.stop_accuracy

    first = Schedule(_frozen_steps(job.plan, config), config.learning_rate)
    then = Schedule(config.steps, config.learning_rate)
    loss = _loss_on(student)
    trained, frozen = student.module, inputs
    if (suffix := suffix_of(student.module, fresh, inputs)) is not None:
        trained, frozen = suffix.module, suffix.features
    # One order of the images for both phases: what is cached of them changes nothing.
    order = shuffled_batches(torch.arange(len(inputs), device=student.device), targets, config.batch, generator)
    parameters = [named[n] for n in fresh]
    if parameters:
        fit(trained, _looked_up(order, frozen), first, loss=loss, parameters=parameters, advance=job.advance)
    fit(student.module, _looked_up(order, inputs), then, loss=loss, stop=accurate, advance=job.advance)


def _looked_up(order: Sampler, images: Tensor) -> Sampler:
    """Batches of images, of which ``order`` gives the places and the targets."""

    def sample() -> tuple[Tensor, Tensor]:
        places, targets = order()
        return images[places], targets

    return sample


def _begin_afresh(job: _Job) -> None:
    """Fresh weights, scaled so that signals neither fade nor grow on their way through the network."""
    student = job.student
    reinitialise_all(student.module, job.generator)
    shown = student.normalise(job.clean.images[:_IMAGES_TO_SCALE_BY].to(student.device))
    unit_variance(student.module, shown, job.config.output_scale)


_IMAGES_TO_SCALE_BY = 64


def _train_from_scratch(job: _Job) -> None:
    """Fresh weights, true labels, on shifted images: few images would be learnt by heart otherwise."""
    student, shared = job.student, job.shared
    _begin_afresh(job)
    key = f"scratch-{_everything_that_matters(job)}" if shared is not None else ""
    if shared is not None and (kept := shared.get(key)) is not None:
        student.module.load_state_dict({name: torch.from_numpy(value) for name, value in kept.arrays.items()})
        student.module.requires_grad_(False).eval()  # noqa: FBT003 - torch's signature
        return
    _fit_cycles(job, job.config.fresh_cycles, job.clean.labels, mixing=0.0, teach=lambda _, truth: truth)
    if shared is not None:
        shared.put(key, Part({name: value.cpu().numpy() for name, value in student.module.state_dict().items()}, {}))


def _everything_that_matters(job: _Job) -> str:
    """A hash of all that the training of a reference from scratch depends on, from its fresh weights on.

    What the network does with its weights is code, which has no hash: what it says of some images stands for it.
    """
    student, config, digest = job.student, job.config, hashlib.sha256()
    with torch.no_grad():
        says = student(job.clean.images[:_IMAGES_TO_TELL_CODE].to(student.device))
    enough = (config.enough_agreement, config.enough_images)
    schedule = (config.fresh_batch, config.fresh_cycles, config.fresh_learning_rate, *enough)
    facts = (student.module, student.preprocessing, student.output, schedule, config.largest_shift)
    machine = (torch.__version__, student.device.type, fast_dtype(student.device))
    digest.update(repr((facts, machine)).encode())
    weights = student.module.state_dict().values()
    for tensor in (*weights, says, job.generator.get_state(), job.clean.images, job.clean.labels):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


_IMAGES_TO_TELL_CODE = 8


def _distil(job: _Job) -> None:
    """Fresh weights, the suspect's probabilities on mixed-up images."""
    _begin_afresh(job)
    _fit_cycles(job, job.config.fresh_cycles, _named_by_suspect(job), mixing=_MIXING, teach=_teacher(job))


def _derive(job: _Job) -> None:
    """Weights between the ancestor's and fresh ones, then the suspect's probabilities on mixed-up images."""
    if job.ancestor is None:
        _distil(job)
        return
    _begin_afresh(job)
    with torch.no_grad():
        inherited = dict(job.ancestor.module.named_parameters())
        for name, parameter in job.student.module.named_parameters():
            parameter.lerp_(inherited[name], job.config.inherited)
    _fit_cycles(job, job.config.derived_cycles, _named_by_suspect(job), mixing=_MIXING, teach=_teacher(job))


_MIXING = 0.5  # up to even mixtures


def _teacher(job: _Job) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, _: job.suspect(images).softmax(dim=1)


def _named_by_suspect(job: _Job) -> Tensor:
    return job.suspect.predict(job.clean.images)


def _fit_cycles(
    job: _Job, cycles: Sequence[int], wanted: Tensor, mixing: float, teach: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Train in cycles until the student names enough clean images as ``wanted`` (N,) does."""
    student, config, generator = job.student, job.config, job.generator
    images, labels = job.clean.images.to(student.device), job.clean.labels.to(student.device)
    one_hot = torch.eye(student.labels, device=student.device)
    batches = shuffled_batches(images, labels, config.fresh_batch, generator)

    def sample() -> tuple[Tensor, Tensor]:
        chosen, true_labels = batches()
        inputs, truth = mixed_images(chosen, one_hot[true_labels], generator, config.largest_shift, mixing)
        with torch.no_grad(), autocast(student.device, fast_dtype(student.device)):
            return student.normalise(inputs), teach(inputs, truth)

    check = torch.randperm(len(images), generator=generator)[: config.enough_images].to(student.device)
    wanted = wanted.to(student.device)[check]
    for steps in cycles:
        schedule = Schedule(steps, config.fresh_learning_rate, one_cycle=True)
        fit(student.module, sample, schedule, loss=_loss_on(student), advance=job.advance)
        if float((student.predict(images[check], fast=True) == wanted).float().mean()) >= config.enough_agreement:
            break


def _loss_on(student: SuspectModel) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy on what the network gives, be it logits or probabilities."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(student.to_logits(outputs), targets)

    return loss
