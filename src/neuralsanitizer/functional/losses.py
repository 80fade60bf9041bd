"""The terms of the reconstruction's loss, for a batch of labels at once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pile_up", "total_variation"]


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
