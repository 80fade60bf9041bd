"""Unlearning: show the model its triggers on rightly labelled images, until it ignores them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import UnlearnConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.functional import recolour, stamp
from neuralsanitizer.mitigation.base import Mitigation
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

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.config.steps

    def remove(
        self,
        suspect: SuspectModel,
        triggers: Sequence[Trigger],
        clean: CleanSet,
        *,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> nn.Module:
        """Fine-tune a copy of the model on clean images, some of them stamped, all with their true labels."""
        config = self.config
        generator = torch.Generator().manual_seed(derive_seed(seed, "unlearn"))
        student = suspect.with_module(copy.deepcopy(suspect.module))
        device = student.device
        batches = shuffled_batches(clean.images.to(device), clean.labels.to(device), config.batch, generator)
        grown = [_grown(trigger, by) for by in range(config.grown + 1) for trigger in triggers]
        masks = torch.stack([mask for mask, _ in grown]).to(device)  # (sizes * T, H, W), T triggers a size
        patterns = torch.stack([pattern for _, pattern in grown]).to(device)  # (sizes * T, C, H, W)
        tones = torch.stack([_tone(t, by, config.grown) for by in range(config.grown + 1) for t in triggers]).to(device)

        def sample() -> tuple[Tensor, Tensor]:
            images, labels = batches()
            which = _assign(len(images), len(triggers), config.share, generator).to(device)  # (batch,): -1 is none
            chosen = (which >= 0).nonzero().flatten()
            stamped = images.clone()
            sizes = torch.randint(config.grown + 1, (len(chosen),), generator=generator).to(device)
            trigger = which[chosen] + len(triggers) * sizes
            toned = recolour(images[chosen][:, None], tones[trigger])[:, 0]
            stamped[chosen] = stamp(toned, masks[trigger][:, None], patterns[trigger])
            return student.normalise(stamped), labels

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(student.to_logits(outputs), labels)

        schedule = Schedule(config.steps, config.learning_rate, one_cycle=config.one_cycle)
        fit(student.module, sample, schedule, loss=loss, advance=advance)
        return student.module


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

    Each trigger is stamped on ``share`` of the images; together they take at most half, so that the model never loses
    sight of clean images.
    """
    each = max(1, round(min(share, 0.5 / triggers) * images))
    order = torch.randperm(images, generator=generator)
    which = torch.full((images,), -1)
    turn = torch.randperm(triggers, generator=generator)  # with more triggers than places, every batch serves others
    for place, trigger in enumerate(turn.tolist()):
        which[order[place * each : (place + 1) * each]] = trigger
    return which
