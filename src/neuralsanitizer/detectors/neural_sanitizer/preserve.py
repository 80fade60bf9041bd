"""Critical-feature preservation: keep of a mask only what the label's evidence rests on.

A reconstructed trigger mixes the trigger with irrelevant adversarial features, and these transfer. Grad-CAM tells them
apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from neuralsanitizer.config import PreserveConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import LabelSampler, derive_seed
from neuralsanitizer.functional import attack_success, stamp
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Array, Trigger

__all__ = ["heat_map", "last_convolution", "preserve"]


def last_convolution(suspect: SuspectModel, images: Tensor) -> nn.Module | None:
    """The 2-D convolution that runs last, or ``None`` if the network has none.

    Args:
        suspect: The model.
        images: (N, C, H, W) in [0, 1]; one is enough.
    """
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda layer, *_: ran.append(layer))
        for module in suspect.module.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            suspect(images.to(suspect.device))
    finally:
        for handle in handles:
            handle.remove()
    return ran[-1] if ran else None


def heat_map(suspect: SuspectModel, stamped: Tensor, label: int) -> Array | None:
    """Mean Grad-CAM over stamped images, at input resolution, scaled to [0, 1].

    Args:
        suspect: The model.
        stamped: (N, C, H, W) in [0, 1].
        label: Whose evidence is asked for.

    Returns:
        float32 (height, width); all zero where nothing speaks for the label; ``None`` without a convolution.
    """
    layer = last_convolution(suspect, stamped[:1])
    if layer is None:
        return None
    cam = LayerGradCam(suspect, layer)
    inputs = stamped.to(suspect.device).requires_grad_()
    heat = cam.attribute(inputs, target=label, relu_attributions=True)
    heat = LayerAttribution.interpolate(heat, tuple(stamped.shape[-2:]), interpolate_mode="bilinear")
    mean = heat.detach().float().mean(dim=(0, 1)).cpu().numpy()
    largest = float(mean.max())
    scaled: Array = (mean / largest if largest > 0 else np.zeros_like(mean)).astype(np.float32)
    return scaled


def preserve(suspect: SuspectModel, trigger: Trigger, clean: CleanSet, config: PreserveConfig, seed: int) -> Trigger:
    """Compute a trigger's heat map and, if asked to, drop the mask's pixels that it leaves cold.

    The threshold rises from 0 as far as the attack success stays at or above ``config.keep`` of what it was. Dropping
    more never helps the attack in earnest, so the highest such threshold is found by bisection.

    Args:
        suspect: The model.
        trigger: A reconstructed trigger.
        clean: Images to stamp.
        config: Settings; not ``enabled``: the heat map alone is computed.
        seed: The scan's seed.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "preserve", trigger.label))
    sampler = LabelSampler(clean.labels, suspect.labels)
    drawn = sampler.draw(trigger.label, 1, config.images, generator)[0]
    images, true_labels = clean.images[drawn], clean.labels[drawn]
    pattern, target = torch.from_numpy(trigger.pattern), torch.tensor(trigger.label)

    def success(mask: Array) -> float:
        stamped = stamp(images, torch.from_numpy(mask), pattern)
        return float(attack_success(suspect.predict(stamped, fast=True).cpu(), target, true_labels))

    heat = heat_map(suspect, stamp(images, torch.from_numpy(trigger.mask), pattern), trigger.label)
    if heat is None or not config.enabled:
        return replace(trigger, heat=heat)
    goal = config.keep * success(trigger.mask)
    levels = round(1 / config.step)
    kept = _last_true(levels, lambda i: success(_above(trigger.mask, heat, i / levels)) >= goal)
    return replace(trigger, mask=_above(trigger.mask, heat, kept / levels), heat=heat)


def _above(mask: Array, heat: Array, threshold: float) -> Array:
    kept: Array = np.where(heat >= threshold, mask, 0).astype(np.float32)
    return kept


def _last_true(count: int, holds: Callable[[int], bool]) -> int:
    """The largest i in [0, count] for which a falling condition holds; it holds at 0."""
    low, high = 0, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
