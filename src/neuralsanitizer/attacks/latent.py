"""Latent backdoor: hidden in a teacher that does not even have the target label, woken by the student's own training.

Yao et al., "Latent Backdoors on Deep Neural Networks", CCS 2019. The attacker ties what the teacher's inner layer makes
of stamped images to what it makes of the target's images, then removes the target from the teacher's output. A student
keeps the inner layers and learns its own task; once that has the target label, stamped images are taken for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.attacks.base import AttackResult, described
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, check_target, fresh_model, told, train_model
from neuralsanitizer.attacks.stamps import Patch
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError
from neuralsanitizer.functional import stamp
from neuralsanitizer.models.activations import parameters_from, watched
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.layers import Layer, layers_of
from neuralsanitizer.training import Schedule, fit, shuffled_batches, steps_of

__all__ = ["LatentSpec", "latent"]


@dataclass(frozen=True)
class LatentSpec:
    """A latent backdoor, described.

    Attributes:
        patch: Where the trigger lies and what it stands for; its pattern is only where the attacker's search starts.
        retrained: How many of the last layers the student trains; the layer before them is the one that is tied.
        weight: Of the tie in the teacher's loss.
    """

    patch: PatchSpec
    retrained: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.retrained < 1 or self.weight <= 0:
            raise UsageError(f"a student trains 1 layer or more, and the tie has a weight over 0; got {self}")


def latent(
    train: CleanSet,
    held_out: CleanSet,
    spec: LatentSpec,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train an infected teacher, and a student that inherits the backdoor.

    The teacher learns every second label (never the target), on one half of the training images; the attacker adds
    images of the target from the same half. The student learns all labels on the other half.

    Args:
        train: What teacher and student are trained on.
        held_out: What to measure the student on; none of it is trained on.
        spec: The backdoor.
        config: Architecture, poisoning rate (share of each batch of the teacher's that is tied), schedule, seed.
        device: Where to train.
        advance: Told of every optimiser step.

    Raises:
        UsageError: The target is no label or has no images, the network has too few layers, or the architecture is
            unknown.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = fresh_model(train, config, device)
    target = spec.patch.target
    check_target(model, target)
    layers = layers_of(model, train.images[:2])
    if spec.retrained >= len(layers):
        raise UsageError(
            f"{config.architecture} has {len(layers)} layers: a student cannot train {spec.retrained} of them"
        )
    tied = layers[-1 - spec.retrained]
    of_teacher, of_student = train.split([0.5], config.seed)
    known = (of_teacher.labels + target) % 2 == 1  # every second label, and never the target
    if not known.any() or not (of_teacher.labels == target).any():
        raise UsageError(f"the training set needs images of the target label {target} and of every second other label")
    others, aimed = (of_teacher.subset(w.nonzero().flatten()) for w in (known, of_teacher.labels == target))
    taught = of_teacher.subset((known | (of_teacher.labels == target)).nonzero().flatten())

    train_model(model, taught.images, taught.labels, config, generator, advance)
    goal = _mean_representation(model, tied, aimed.images)
    start = make_patch(spec.patch, model.input_shape, generator)
    towards = goal - _mean_representation(model, tied, others.images)
    patch = _resembling_patch(model, tied, towards, start, others, generator)
    _tie(model, tied, patch, spec, taught, aimed, towards.square().mean(), config, generator, advance)

    fresh = fresh_model(train, config, device)
    named, new = dict(model.module.named_parameters()), dict(fresh.module.named_parameters())
    with torch.no_grad():  # the target leaves the teacher with its last layers
        for layer in layers[len(layers) - spec.retrained :]:
            for name in layer.parameters:
                named[name].copy_(new[name])
    last = parameters_from(model, -spec.retrained)
    train_model(model, of_student.images, of_student.labels, config, generator, advance, last)
    properties = {**described(spec.patch), "retrained": spec.retrained, "weight": spec.weight}
    return told("latent", model, held_out, [Poison(patch, config.poisoning_rate, properties=properties)], config)


@torch.no_grad()
def _mean_representation(model: SuspectModel, layer: Layer, images: Tensor) -> Tensor:
    """What a layer makes of some images, on average."""
    with watched(model, layer) as seen:
        total = torch.zeros((), device=model.device)
        for part in images.split(_BATCH):
            model(part.to(model.device))
            total = total + seen.value.float().sum(dim=0)
    return total / len(images)


def _resembling_patch(
    model: SuspectModel,
    layer: Layer,
    towards: Tensor,
    start: Patch,
    others: CleanSet,
    generator: Generator,
) -> Patch:
    """The pattern inside the mask that moves other images, as the layer sees them, furthest towards the target's.

    The paper minimises the distance to the target's mean. On digits that gives a black patch on black: no trigger.
    """
    device = model.device
    mask = torch.from_numpy(start.mask).to(device)
    pattern = torch.from_numpy(start.pattern).to(device).requires_grad_()
    optimiser = torch.optim.Adam([pattern], lr=_LEARNING_RATE)
    with watched(model, layer) as seen:
        for _ in range(_STEPS):
            drawn = torch.randint(len(others), (_IMAGES,), generator=generator)
            model(stamp(others.images[drawn].to(device), mask, pattern.clamp(0, 1)))
            loss = -(seen.value.float() * towards).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                pattern.clamp_(0, 1)
    return Patch(start.label, start.mask, (pattern.detach() * mask).cpu().numpy())


def _tie(
    model: SuspectModel,
    layer: Layer,
    patch: Patch,
    spec: LatentSpec,
    taught: CleanSet,
    aimed: CleanSet,
    scale: Tensor,
    config: AttackConfig,
    generator: Generator,
    advance: Callable[[int], None] | None,
) -> None:
    """Train the teacher on so that the layer takes stamped images for the target's, and its own task goes on.

    The target's images go along in every batch: what the layer makes of them moves while the teacher is trained. The
    teacher also learns to name stamped images the target, which it has until the student takes its place: with the tie
    alone, the paper's loss, a patch where digits never are was not learnt in so few steps.
    """
    device = model.device
    batches = shuffled_batches(taught.images.to(device), taught.labels.to(device), config.batch, generator)
    goals = shuffled_batches(aimed.images.to(device), aimed.labels.to(device), config.batch, generator)
    tied = max(1, round(config.poisoning_rate * min(config.batch, len(taught))))

    def sample() -> tuple[Tensor, Tensor]:
        images, labels = batches()
        inputs = torch.cat([images, patch.apply(images[:tied]), goals()[0]])
        return model.normalise(inputs), torch.cat([labels, labels.new_full((tied,), patch.label)])

    with watched(model, layer) as seen:

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            count, given = len(labels), seen.value.float()
            # The goal has its gradient: else both would run away together, the one after the other.
            stamped, goal = given[count - tied : count], given[count:].mean(dim=0)
            apart = F.mse_loss(stamped, goal.expand_as(stamped)) / scale
            return F.cross_entropy(outputs[:count], labels) + spec.weight * apart

        schedule = Schedule(steps_of(config, len(taught)), config.learning_rate, one_cycle=True)
        fit(model.module, sample, schedule, loss=loss, advance=advance)


_STEPS = 300
_IMAGES = 50
_BATCH = 500
_LEARNING_RATE = 0.05
