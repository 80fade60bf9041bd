"""Input-aware dynamic backdoor: a small network draws another trigger for every image.

Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", 2020. Generator and victim are trained together. The trigger
drawn for one image must not work on another (cross-trigger loss), and the triggers of two images must differ
(diversity loss). As in the paper the masks' network is trained first, alone: sparse, and another for every image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.attacks.base import AttackResult, described
from neuralsanitizer.attacks.poisoning import Poison, check_target, fresh_model, shape_of, told
from neuralsanitizer.attacks.stamps import Generated, PatchGenerator
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError
from neuralsanitizer.functional import stamp
from neuralsanitizer.training import Sampler, Schedule, fit, shuffled_batches, steps_of

__all__ = ["InputAwareSpec", "input_aware"]


@dataclass(frozen=True)
class InputAwareSpec:
    """An input-aware trigger, described.

    Attributes:
        target: The label that stamped images are sent to.
        density: Share in (0, 1] of an image that its mask may cover (the paper: 0.032).
        diversity: Weight of the diversity loss (the paper: 1).
    """

    target: int
    density: float = 0.032
    diversity: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or self.diversity < 0:
            raise UsageError(f"density lies over 0 and up to 1, diversity is 0 or more; got {self}")


def input_aware(
    train: CleanSet,
    held_out: CleanSet,
    spec: InputAwareSpec,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train a model together with the network that draws its triggers.

    Args:
        train: What to train on.
        held_out: What to measure on; none of it is trained on.
        spec: The trigger.
        config: Architecture, poisoning rate (share of each batch that is stamped; as many get another image's trigger
            and keep their label), schedule, seed.
        device: Where to train.
        advance: Told of every optimiser step.

    Raises:
        UsageError: The target is no label, or the architecture is unknown.
    """
    draws = torch.Generator().manual_seed(config.seed)
    model = fresh_model(train, config, device)
    check_target(model, spec.target)
    channels, height, width = shape_of(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = PatchGenerator(channels).to(model.device)
    batches = shuffled_batches(train.images.to(model.device), train.labels.to(model.device), config.batch, draws)
    _train_masks(generator, batches, spec, config, advance)
    alike = torch.zeros((), device=model.device)

    def sample() -> tuple[Tensor, Tensor]:
        nonlocal alike
        images, labels = batches()
        each = max(1, round(config.poisoning_rate * len(images)))
        mine, others = images[: 2 * each], images.roll(1, 0)[: 2 * each]
        masks, patterns = generator(mine)
        other_masks, other_patterns = generator(others)
        own = stamp(mine[:each], masks[:each], patterns[:each])
        crossed = stamp(mine[each:], other_masks[each:], other_patterns[each:])
        alike = _alike(mine, others, patterns, other_patterns)
        targets = torch.cat([labels.new_full((each,), spec.target), labels[each:]])
        return model.normalise(torch.cat([own, crossed, images[2 * each :]])), targets

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + spec.diversity * alike

    schedule = Schedule(steps_of(config, len(train)), config.learning_rate, one_cycle=True)
    trained = [*model.module.parameters(), *generator.pattern.parameters()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        fit(model.module, sample, schedule, loss=loss, parameters=trained, advance=advance)
    generator.eval().requires_grad_(False)  # noqa: FBT003 - torch's signature
    poison = Poison(
        Generated(spec.target, generator.cpu(), (height, width)), config.poisoning_rate, properties=described(spec)
    )
    return told("input-aware", model, held_out, [poison], config)


def _train_masks(
    generator: PatchGenerator,
    batches: Sampler,
    spec: InputAwareSpec,
    config: AttackConfig,
    advance: Callable[[int], None] | None,
) -> None:
    def sample() -> tuple[Tensor, Tensor]:
        images, _ = batches()
        return images, images

    def loss(masks: Tensor, images: Tensor) -> Tensor:
        too_dense = F.relu(masks.mean(dim=(1, 2, 3)) - spec.density).mean()
        return _DENSITY_WEIGHT * too_dense + _alike(images, images.roll(1, 0), masks, masks.roll(1, 0))

    fit(generator.mask, sample, Schedule(_MASK_STEPS, config.learning_rate), loss=loss, advance=advance)


def _alike(images: Tensor, others: Tensor, drawn: Tensor, drawn_others: Tensor) -> Tensor:
    """The diversity loss: how far two images are apart, by how far that is which was drawn for them."""
    apart, drawn_apart = (images - others).flatten(1).norm(dim=1), (drawn - drawn_others).flatten(1).norm(dim=1)
    alike: Tensor = (apart / (drawn_apart + _SMALL)).mean()
    return alike


_DENSITY_WEIGHT = 100.0  # the paper's
_MASK_STEPS = 300  # ours, measured: masks at the density, and another for every image
_SMALL = 1e-3
