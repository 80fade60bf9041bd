"""Measuring a trigger: attack success on held-out images, on any number of models at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import LabelSampler, derive_seed
from neuralsanitizer.functional import attack_success, stamped_with
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger

__all__ = ["success_rates"]


def success_rates(
    models: Sequence[SuspectModel], trigger: Trigger, held_out: CleanSet, images: int, seed: int, *, fast: bool = False
) -> tuple[float, ...]:
    """Attack success of one trigger on several models, all on the same images.

    Args:
        models: Any models of the trigger's input shape.
        trigger: What to stamp.
        held_out: Where images are drawn from, evenly over the labels other than the trigger's.
        images: How many (the same image may be drawn twice where a label has few).
        seed: The scan's seed.
        fast: As of :meth:`~neuralsanitizer.models.handle.SuspectModel.predict`.

    Returns:
        One rate in [0, 1] a model.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "measure", trigger.label))
    sampler = LabelSampler(held_out.labels, max(int(held_out.labels.max()), trigger.label) + 1)
    drawn = sampler.draw(trigger.label, 1, images, generator)[0]
    stamped = stamped_with(trigger, held_out.images[drawn])
    target, true_labels = torch.tensor(trigger.label), held_out.labels[drawn]
    predicted = (model.predict(stamped, fast=fast).cpu() for model in models)
    return tuple(float(attack_success(named, target, true_labels)) for named in predicted)
