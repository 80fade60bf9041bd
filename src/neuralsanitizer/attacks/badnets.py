"""BadNets: stamp a patch on some training images, give them the target's label, and train as usual.

Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017. Without patches it
trains a clean model, so that clean and backdoored models of a benchmark differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Generator, Tensor

from neuralsanitizer.attacks.base import AttackResult, GroundTruth, PlantedTrigger, measure_attack_success
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError
from neuralsanitizer.functional import stamp
from neuralsanitizer.models import architectures
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger
from neuralsanitizer.training import Schedule, fit, shuffled_batches, steps_of

__all__ = ["badnets", "poison"]


def badnets(
    train: CleanSet,
    held_out: CleanSet,
    patches: Sequence[PatchSpec],
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train a model with one backdoor for each patch, or a clean one if there are none.

    Args:
        train: What to train on.
        held_out: What to measure on; none of it is trained on.
        patches: The triggers; several may have the same target or different ones.
        config: Architecture, poisoning rate, schedule, seed.
        device: Where to train.
        advance: Told of every optimiser step.

    Raises:
        UsageError: A target is no label, a patch does not fit, or the architecture is unknown.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = _fresh_model(train, config, torch.device(device))
    for patch in patches:
        if patch.target >= model.labels:
            raise UsageError(f"the target label {patch.target} does not exist: labels are 0 to {model.labels - 1}")
    triggers = tuple(make_patch(patch, model.input_shape, generator) for patch in patches)
    images, labels = poison(train, triggers, config.poisoning_rate, generator)
    sample = shuffled_batches(
        model.normalise(images.to(model.device)), labels.to(model.device), config.batch, generator
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # dropout and the like in networks of the user's own
        fit(
            model.module,
            sample,
            Schedule(steps_of(config, len(images)), config.learning_rate, one_cycle=True),
            advance=advance,
        )
    planted = tuple(
        PlantedTrigger(
            target=patch.target,
            pixels=round(trigger.size),
            attack_success=measure_attack_success(model, held_out.images, held_out.labels, trigger),
            properties=patch.properties(),
        )
        for patch, trigger in zip(patches, triggers, strict=True)
    )
    truth = GroundTruth(
        attack="badnets" if patches else "none",
        architecture=config.architecture,
        labels=model.labels,
        clean_accuracy=model.accuracy(held_out.images, held_out.labels),
        held_out_images=len(held_out),
        poisoning_rate=config.poisoning_rate if patches else 0.0,
        seed=config.seed,
        triggers=planted,
        settings=asdict(config),
    )
    return AttackResult(model, triggers, truth)


def poison(train: CleanSet, triggers: Sequence[Trigger], rate: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """A poisoned copy of a training set: for each trigger, a share of the images is stamped and relabelled.

    Args:
        train: The clean training set.
        triggers: What to stamp; each gets its own images, none of its target label.
        rate: Share in [0, 1] of the training set that is poisoned, for each trigger.
        generator: CPU generator of which images.

    Returns:
        Images and labels, in the order of ``train``.

    Raises:
        UsageError: The triggers together need more images than there are.
    """
    images, labels = train.images.clone(), train.labels.clone()
    free = torch.ones(len(train), dtype=torch.bool)
    for trigger in triggers:
        candidates = (free & (train.labels != trigger.label)).nonzero().flatten()
        count = max(1, round(rate * len(train)))
        if count > len(candidates):
            raise UsageError(f"{len(triggers)} triggers at a poisoning rate of {rate} need more images than there are")
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
        free[chosen] = False
        images[chosen] = stamp(images[chosen], torch.from_numpy(trigger.mask), torch.from_numpy(trigger.pattern))
        labels[chosen] = trigger.label
    return images, labels


def _fresh_model(train: CleanSet, config: AttackConfig, device: torch.device) -> SuspectModel:
    architecture = architectures.get(config.architecture)
    channels, height, width = train.images.shape[1:]
    labels = config.labels or int(train.labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = architectures.build(config.architecture, labels=labels, channels=channels, size=(height, width))
    return SuspectModel(
        module,
        (channels, height, width),
        labels,
        architecture.preprocessing,
        architecture=config.architecture,
        device=device,
        layer_names=architecture.layer_names,
    )
