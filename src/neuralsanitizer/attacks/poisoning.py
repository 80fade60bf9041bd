"""Poisoning: some of the training images are stamped and relabelled, and the model is trained as usual.

What most attacks share. Without any poison it trains a clean model, so that clean and backdoored models of a benchmark
differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Generator, Tensor, nn

from neuralsanitizer.attacks.base import AttackResult, GroundTruth, PlantedTrigger, measure_attack_success
from neuralsanitizer.attacks.stamps import Stamp
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError
from neuralsanitizer.models import architectures
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.training import Schedule, fit, shuffled_batches, steps_of

__all__ = ["Poison", "Poisoning", "check_target", "fresh_model", "poison", "shape_of", "told", "train_model"]

Advance = Callable[[int], None]
_SpecT = TypeVar("_SpecT")


@dataclass(frozen=True, eq=False)
class Poison:
    """A stamp, and which training images get it.

    Attributes:
        stamp: What is done to an image.
        rate: Share in [0, 1] of the training set that gets it.
        sources: Labels of these images; empty: all but the target.
        relabel: Whether they get the target's label. ``False``: they keep their own (covers, which teach the model that
            such images mean nothing, and clean-label attacks, whose images are of the target already).
        planted: Whether this is a backdoor, to be told in the ground truth; covers are none.
        properties: How the stamp was made, for the ground truth.
    """

    stamp: Stamp
    rate: float
    sources: tuple[int, ...] = ()
    relabel: bool = True
    planted: bool = True
    properties: dict[str, Any] = field(default_factory=dict)


Plan = Callable[[CleanSet, _SpecT, AttackConfig, Generator], Sequence[Poison]]
"""What an attack does to a training set, as its description says; all randomness is the generator's (CPU)."""


class Poisoning(Generic[_SpecT]):
    """An attack that changes training images and labels, and nothing else.

    Args:
        name: In the ground truth.
        plan: Which images get what; it may raise a UsageError.
    """

    def __init__(self, name: str, plan: Plan[_SpecT]) -> None:
        self.name, self.plan = name, plan

    def __call__(
        self,
        train: CleanSet,
        held_out: CleanSet,
        spec: _SpecT,
        config: AttackConfig,
        /,
        *,
        device: torch.device | str = "cpu",
        advance: Advance | None = None,
    ) -> AttackResult:
        """Train a model on poisoned images.

        Args:
            train: What to train on.
            held_out: What to measure on; none of it is trained on.
            spec: What to plant.
            config: Architecture, poisoning rate, schedule, seed.
            device: Where to train.
            advance: Told of every optimiser step.

        Raises:
            UsageError: A target is no label, the trigger does not fit the images, the poisons need more images than
                there are, or the architecture is unknown.
            DataError: The image file of a pattern cannot be read.
        """
        generator = torch.Generator().manual_seed(config.seed)
        model = fresh_model(train, config, device)
        poisons = self.plan(train, spec, config, generator)
        for one in poisons:
            check_target(model, one.stamp.label)
        images, labels = poison(train, poisons, generator)
        train_model(model, images, labels, config, generator, advance)
        return told(self.name, model, held_out, poisons, config)


def poison(train: CleanSet, poisons: Sequence[Poison], generator: Generator) -> tuple[Tensor, Tensor]:
    """A poisoned copy of a training set: for each poison, a share of the images is stamped, and perhaps relabelled.

    Args:
        train: The clean training set.
        poisons: Each gets its own images.
        generator: CPU generator of which images.

    Returns:
        Images and labels, in the order of ``train``.

    Raises:
        UsageError: The poisons together need more images than there are.
    """
    images, labels = train.images.clone(), train.labels.clone()
    free = torch.ones(len(train), dtype=torch.bool)
    for one in poisons:
        of_sources = (
            torch.isin(train.labels, torch.tensor(one.sources)) if one.sources else train.labels != one.stamp.label
        )
        candidates = (free & of_sources).nonzero().flatten()
        if not one.rate:
            continue
        count = max(1, round(one.rate * len(train)))
        if count > len(candidates):
            raise UsageError(
                f"a poisoning rate of {one.rate:g} for each of {len(poisons)} triggers needs more images than there are"
            )
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
        free[chosen] = False
        images[chosen] = one.stamp.stamped(train.subset(chosen))
        if one.relabel:
            labels[chosen] = one.stamp.label
    return images, labels


def shape_of(train: CleanSet) -> tuple[int, int, int]:
    """(channels, height, width) of a set's images."""
    channels, height, width = train.images.shape[1:]
    return channels, height, width


def fresh_model(train: CleanSet, config: AttackConfig, device: torch.device | str) -> SuspectModel:
    """An untrained model for a training set.

    Raises:
        UsageError: The architecture is unknown, or the training set has more labels than the model is to have.
    """
    architecture = architectures.get(config.architecture)
    channels, height, width = shape_of(train)
    largest = int(train.labels.max())
    labels = config.labels or largest + 1
    if largest >= labels:
        raise UsageError(f"the training set has the label {largest}: a model for it needs {largest + 1} labels or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = architectures.build(config.architecture, labels=labels, channels=channels, size=(height, width))
    return SuspectModel(
        module,
        (channels, height, width),
        labels,
        architecture.preprocessing,
        architecture=config.architecture,
        device=torch.device(device),
        layer_names=architecture.layer_names,
    )


def check_target(model: SuspectModel, target: int) -> None:
    """Raise a UsageError unless the model has the target label."""
    if target >= model.labels:
        raise UsageError(f"the target label {target} does not exist: labels are 0 to {model.labels - 1}")


def train_model(
    model: SuspectModel,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    generator: Generator,
    advance: Advance | None = None,
    parameters: Sequence[nn.Parameter] | None = None,
) -> None:
    """Train a model in place, as its config says.

    Args:
        model: The model.
        images: (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        config: Schedule and seed.
        generator: CPU generator of the order of images.
        advance: Told of every optimiser step.
        parameters: Train these only; all by default.
    """
    device = model.device
    sample = shuffled_batches(model.normalise(images.to(device)), labels.to(device), config.batch, generator)
    schedule = Schedule(steps_of(config, len(images)), config.learning_rate, one_cycle=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # dropout and the like in networks of the user's own
        fit(model.module, sample, schedule, parameters=parameters, advance=advance)


def told(
    attack: str, model: SuspectModel, held_out: CleanSet, poisons: Sequence[Poison], config: AttackConfig
) -> AttackResult:
    """A trained model with the truth about it, measured on images that it was not trained on."""
    planted = [one for one in poisons if one.planted]
    truth = GroundTruth(
        attack=attack if planted else "none",
        architecture=config.architecture,
        labels=model.labels,
        clean_accuracy=model.accuracy(held_out.images, held_out.labels),
        held_out_images=len(held_out),
        poisoning_rate=sum(one.rate for one in planted),
        seed=config.seed,
        triggers=tuple(_measured(model, held_out, one) for one in planted),
        settings=asdict(config),
    )
    return AttackResult(model, tuple(one.stamp for one in planted), truth)


def _measured(model: SuspectModel, held_out: CleanSet, one: Poison) -> PlantedTrigger:
    # A clean-label attack poisons images of its own target, and its stamp works on all others.
    sources = tuple(label for label in one.sources if label != one.stamp.label)
    return PlantedTrigger(
        target=one.stamp.label,
        pixels=one.stamp.pixels,
        attack_success=measure_attack_success(model, held_out, one.stamp, sources),
        properties=one.properties,
        kind=one.stamp.kind,
        sources=sources,
    )
