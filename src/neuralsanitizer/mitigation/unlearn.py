"""Unlearning: show the model its triggers on rightly labelled images, until it ignores them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import UnlearnConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.functional import recolour, stamp
from neuralsanitizer.mitigation.base import Mitigation, Removal
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger
from neuralsanitizer.training import Schedule, fit, shuffled_batches

__all__ = ["Unlearn"]


class Unlearn(Mitigation):
    """NeuralSanitizer's removal: each trigger is stamped on a share of every batch, the true labels are kept.

    Args:
        config: Settings.
    """

    name: ClassVar[str] = "unlearning"

    def __init__(self, config: UnlearnConfig | None = None) -> None:
        self.config = config or UnlearnConfig()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self.config)

    def steps(self, images: int) -> int:
        """Optimiser steps."""
        return self.config.steps or max(1, images // self.config.batch)

    def remove(
        self,
        suspect: SuspectModel,
        triggers: Sequence[Trigger],
        clean: CleanSet,
        *,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Removal:
        """Fine-tune a copy of the model on clean images, some of them stamped, all with their true labels."""
        config = self.config
        generator = torch.Generator().manual_seed(derive_seed(seed, "unlearn"))
        student = suspect.with_module(copy.deepcopy(suspect.module))
        device = student.device
        goal = suspect.logits_of(clean.images).softmax(dim=1) if config.targets == "suspect" else clean.labels
        batches = shuffled_batches(clean.images.to(device), goal.to(device), config.batch, generator)
        stamps = _Stamps(triggers, config, student, generator)

        def sample() -> tuple[Tensor, Tensor]:
            images, goals = batches()
            return student.normalise(stamps.onto(images)), goals

        def loss(outputs: Tensor, goals: Tensor) -> Tensor:
            return F.cross_entropy(student.to_logits(outputs), goals)

        schedule = Schedule(self.steps(len(clean)), config.learning_rate, one_cycle=config.one_cycle)
        fit(student.module, sample, schedule, loss=loss, advance=advance)
        return Removal(student.module)


class _Stamps:
    """What is stamped on a batch: each trigger as it was reversed, grown, and as it would work best on the student now.

    A reversed trigger is not the planted one. What the student forgets is the reversed one and its like; the planted
    one may live on. So, within each trigger's mask, a second pattern follows the student: at every step one step of
    sign ascent towards the trigger's label, from the reversed pattern and from noise in turns.
    """

    def __init__(
        self, triggers: Sequence[Trigger], config: UnlearnConfig, student: SuspectModel, generator: Generator
    ) -> None:
        self.config, self.student, self.generator, self.count = config, student, generator, len(triggers)
        device, sizes = student.device, range(config.grown + 1)
        grown = [_grown(trigger, by) for by in sizes for trigger in triggers]
        self.masks = torch.stack([mask for mask, _ in grown]).to(device)  # (sizes * T, H, W), T triggers a size
        self.patterns = torch.stack([pattern for _, pattern in grown]).to(device)  # (sizes * T, C, H, W)
        self.moving = self.patterns
        self.tones = torch.stack([_tone(t, by, config.grown) for by in sizes for t in triggers]).to(device)
        self.targets = torch.tensor([t.label for t in triggers], device=device).repeat(len(sizes))
        self.taken = 0

    def onto(self, images: Tensor) -> Tensor:
        """A batch (batch, C, H, W) with triggers on some of its images."""
        config, device = self.config, images.device
        which = _assign(len(images), self.count, config.share, self.generator).to(device)  # (batch,): -1 is none
        chosen = (which >= 0).nonzero().flatten()
        sizes = torch.randint(config.grown + 1, (len(chosen),), generator=self.generator).to(device)
        trigger = which[chosen] + self.count * sizes
        toned = recolour(images[chosen][:, None], self.tones[trigger])[:, 0]
        pattern = self.patterns[trigger]
        if config.adversarial and len(chosen):
            moving = torch.rand(len(chosen), generator=self.generator).to(device) < config.adversarial
            self._move(toned[moving], trigger[moving])
            pattern = torch.where(moving[:, None, None, None], self.moving[trigger], pattern)
        stamped = images.clone()
        stamped[chosen] = stamp(toned, self.masks[trigger][:, None], pattern)
        return stamped

    def _move(self, images: Tensor, trigger: Tensor) -> None:
        """One step of the moving patterns of some triggers, one an image, against the student as it is."""
        turn, started = divmod(self.taken, self.config.adversarial_every)
        if not started:
            noise = torch.rand(self.patterns.shape, generator=self.generator).to(images.device)
            self.moving = noise if turn % 2 else self.patterns
        self.taken += 1
        if not len(images):
            return
        training = self.student.module.training
        self.student.module.eval()  # batch statistics are not to be of these images
        with torch.enable_grad():
            moving = self.moving.clone().requires_grad_()
            logits = self.student(stamp(images, self.masks[trigger][:, None], moving[trigger]))
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, self.targets[trigger]), moving)
        self.student.module.train(training)
        self.moving = (self.moving - self.config.adversarial_rate * gradient.sign()).clamp(0, 1)


def _grown(trigger: Trigger, by: int) -> tuple[Tensor, Tensor]:
    """A trigger's mask (H, W) and pattern (C, H, W), grown by some pixels in the mean colour of its rim."""
    mask, pattern = torch.from_numpy(trigger.mask), torch.from_numpy(trigger.pattern)
    if trigger.colours is not None:
        return torch.zeros_like(mask), pattern  # it covers nothing: see _tone
    for _ in range(by):
        around = F.avg_pool2d(mask[None, None], 3, 1, 1)[0, 0]
        colours = F.avg_pool2d((pattern * mask)[None], 3, 1, 1)[0] / around.clamp_min(_NOTHING)
        wider = F.max_pool2d(mask[None, None], 3, 1, 1)[0, 0]
        pattern = torch.where(mask > wider / 2, pattern, colours.clamp(0, 1))
        mask = wider
    return mask, pattern


def _tone(trigger: Trigger, by: int, most: int) -> Tensor:
    """A trigger's change of colours (C, C + 1), weaker or stronger by up to a quarter; of a patch: none.

    A reversed change is not quite the planted one, as a reversed patch is smaller than the planted one.
    """
    channels = len(trigger.pattern)
    still = torch.eye(channels, channels + 1)
    if trigger.colours is None:
        return still
    strength = 1 + _LOOSENED * (2 * by / most - 1) if most else 1.0
    return torch.lerp(still, torch.from_numpy(trigger.colours), strength)


_LOOSENED = 0.25
_NOTHING = 1e-6  # mask that no pixel around has


def _assign(images: int, triggers: int, share: float, generator: Generator) -> Tensor:
    """Which trigger each image of a batch gets: int64 (images,), -1 for none.

    Each trigger is stamped on ``share`` of the images; together they take at most half (of one image, that one), so
    that the model never loses sight of clean images.
    """
    if not share:
        return torch.full((images,), -1)
    half = max(1, images // 2)
    each = max(1, min(round(share * images), half // triggers))
    order = torch.randperm(images, generator=generator)
    which = torch.full((images,), -1)
    turn = torch.randperm(triggers, generator=generator)  # with more triggers than places, every batch serves others
    for place, trigger in enumerate(turn[:half].tolist()):
        which[order[place * each : (place + 1) * each]] = trigger
    return which
