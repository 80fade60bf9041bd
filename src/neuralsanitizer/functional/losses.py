"""The terms of the reconstruction's loss, for a batch of labels at once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kept_contrast", "pile_up", "total_variation"]


def pile_up(probabilities: Tensor, limit: float) -> Tensor:
    """How far stamped images pile up on any label of a clean model: ``sum_c relu(sum_i p_ic - v)``.

    Args:
        probabilities: (..., images, labels): the clean model's softmax outputs for the stamped images.
        limit: ``v``: how many of the images' probability mass a label may receive before it counts.

    Returns:
        (...,), at least 0; 0 where no label receives more than ``limit``.

    Source: NeuralSanitizer, the middle term of the reconstruction loss.

    >>> pile_up(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), limit=1.5).item()
    0.5
    """
    return torch.relu(probabilities.sum(dim=-2) - limit).sum(dim=-1)


def kept_contrast(before: Tensor, after: Tensor) -> Tensor:
    """How much contrast a change of images keeps: the slope of the brightness after it on that before.

    Args:
        before: (..., images, channels, height, width).
        after: Of the same shape.

    Returns:
        (...,): 1 if nothing changed, 0 if the images became flat, negative if dark and light changed places.

    Source: our own. Photo filters keep 0.8 to 1.03 (measured on those of :mod:`neuralsanitizer.attacks.filters`).

    >>> images = torch.tensor([[[[0.0, 0.5]]]])
    >>> kept_contrast(images, 0.5 * images + 0.25).item()
    0.5
    """
    light, changed = (x.mean(dim=-3).flatten(-2) for x in (before, after))  # (..., images, pixels)
    light, changed = (x - x.mean(dim=-1, keepdim=True) for x in (light, changed))
    return (light * changed).mean(dim=(-2, -1)) / light.square().mean(dim=(-2, -1)).clamp_min(_NOT_FLAT)


_NOT_FLAT = 1e-8  # images without any contrast have none to lose


def total_variation(mask: Tensor) -> Tensor:
    """Sum of absolute differences of neighbouring pixels: horizontal, vertical, and both diagonals.

    Args:
        mask: (..., height, width).

    Returns:
        (...,), at least 0.

    Source: NeuralSanitizer, ``L_noise``.

    >>> total_variation(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).item()
    3.0
    """
    horizontal = (mask[..., :, 1:] - mask[..., :, :-1]).abs().sum(dim=(-2, -1))
    vertical = (mask[..., 1:, :] - mask[..., :-1, :]).abs().sum(dim=(-2, -1))
    falling = (mask[..., 1:, 1:] - mask[..., :-1, :-1]).abs().sum(dim=(-2, -1))
    rising = (mask[..., 1:, :-1] - mask[..., :-1, 1:]).abs().sum(dim=(-2, -1))
    return horizontal + vertical + falling + rising
