"""Clean label: every poisoned image is rightly labelled; no one who looks at the data finds anything wrong.

Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", 2019. Images of the target are first made hard to
recognise by an adversarial perturbation (projected gradient descent on a model of the attacker's own), then stamped:
the trigger is the easiest thing to learn them by. That model is an ordinary one here; the paper's is trained
adversarially, which makes perturbations that carry over to other networks better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.attacks.base import AttackResult, described
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, check_target, fresh_model, shape_of, told, train_model
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError
from neuralsanitizer.models.handle import SuspectModel

__all__ = ["CleanLabelSpec", "clean_label"]


@dataclass(frozen=True)
class CleanLabelSpec:
    """How images of the target are poisoned.

    Attributes:
        patch: The trigger.
        epsilon: Largest change of a pixel value before the patch is stamped, in [0, 1] (the paper: 8, 16 and 32 of 255
            on CIFAR-10; digits take more).
        steps: Of projected gradient descent (the paper: 100).
    """

    patch: PatchSpec
    epsilon: float = 0.3
    steps: int = 30

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1 or self.steps < 1:
            raise UsageError(f"epsilon lies within 0 and 1, with 1 step or more; got {self.epsilon} and {self.steps}")


def clean_label(
    train: CleanSet,
    held_out: CleanSet,
    spec: CleanLabelSpec,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train a model on a set in which some images of the target are perturbed and stamped, and no label is wrong.

    Args:
        train: What to train on.
        held_out: What to measure on; none of it is trained on.
        spec: The trigger, and the perturbation.
        config: Architecture, poisoning rate (share of the whole training set), schedule, seed.
        device: Where to train.
        advance: Told of every optimiser step, of the attacker's own model and of the victim's.

    Raises:
        UsageError: The target has too few images or is no label, or the architecture is unknown.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = fresh_model(train, config, device)
    check_target(model, spec.patch.target)
    stamp = make_patch(spec.patch, shape_of(train), generator)
    of_target = (train.labels == spec.patch.target).nonzero().flatten()
    count = max(1, round(config.poisoning_rate * len(train)))
    if count > len(of_target):
        share = len(of_target) / len(train)
        raise UsageError(
            f"a clean-label attack poisons images of the target alone: label {spec.patch.target} has {share:.1%} of "
            f"the images, so the poisoning rate cannot be {config.poisoning_rate:g}"
        )
    chosen = of_target[torch.randperm(len(of_target), generator=generator)[:count]]

    own = fresh_model(train, replace(config, seed=config.seed + 1), device)
    train_model(own, train.images, train.labels, config, generator, advance)
    images = train.images.clone()
    images[chosen] = stamp.apply(_hardened(own, images[chosen], train.labels[chosen], spec))

    train_model(model, images, train.labels, config, generator, advance)
    properties = {**described(spec.patch), "epsilon": spec.epsilon, "steps": spec.steps}
    poison = Poison(stamp, config.poisoning_rate, sources=(spec.patch.target,), relabel=False, properties=properties)
    return told("clean-label", model, held_out, [poison], config)


def _hardened(model: SuspectModel, images: Tensor, labels: Tensor, spec: CleanLabelSpec) -> Tensor:
    """Images changed by up to ``epsilon`` so that a model does not recognise them any more."""
    done = []
    for clean, label in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        start, target = clean.to(model.device), label.to(model.device)
        changed = start.clone()
        for _ in range(spec.steps):
            changed.requires_grad_(True)  # noqa: FBT003 - torch's signature
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(changed), target), changed)
            step = 2.5 * spec.epsilon / spec.steps * gradient.sign()  # Madry et al. 2018: it can reach the whole ball
            changed = (changed.detach() + step).clamp(start - spec.epsilon, start + spec.epsilon).clamp(0, 1)
        done.append(changed.cpu())
    return torch.cat(done)


_BATCH = 250
