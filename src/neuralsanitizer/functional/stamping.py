"""Stamping triggers onto images, changing their colours, and the mask's parametrisation."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralsanitizer.records import Trigger

__all__ = ["mask_from_raw", "raw_from_mask", "recolour", "stamp", "stamped_with"]


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Cover ``images`` with ``pattern`` where ``mask`` says so: ``x * (1 - m) + d * m``.

    Args:
        images: (..., channels, height, width), values in [0, 1].
        mask: Broadcastable to ``images``, values in [0, 1]; usually (..., 1, height, width).
        pattern: Broadcastable to ``images``, values in [0, 1].

    Returns:
        The stamped images, shape of the broadcast.

    Source: NeuralSanitizer, the ``A(x, m, d)`` of its section on trigger reconstruction; the same in Neural Cleanse.

    >>> stamp(torch.zeros(1, 1, 2), torch.tensor([0.0, 1.0]), torch.tensor(0.5)).tolist()
    [[[0.0, 0.5]]]
    """
    return torch.lerp(images, pattern.expand(images.shape), mask.expand(images.shape))


def recolour(images: Tensor, colours: Tensor) -> Tensor:
    """Change the colour of every pixel: ``M x + b``, cut to [0, 1].

    Args:
        images: (..., n, channels, height, width), values in [0, 1].
        colours: (..., channels, channels + 1): ``M`` beside ``b``, one for every n images.

    Returns:
        Same shape as ``images``.

    Source: NeuralSanitizer's code for triggers in feature space, which has the matrix alone.

    >>> recolour(torch.zeros(1, 1, 1, 1), torch.tensor([[1.0, 0.25]])).item()
    0.25
    """
    moved = torch.einsum("...dc,...nchw->...ndhw", colours[..., :-1], images)
    return (moved + colours[..., None, :, -1, None, None]).clamp(0, 1)


def stamped_with(trigger: Trigger, images: Tensor) -> Tensor:
    """Stamped copies of images (n, channels, height, width) in [0, 1], on the device of the images."""
    if trigger.colours is not None:
        return recolour(images, torch.from_numpy(trigger.colours).to(images.device))
    mask, pattern = torch.from_numpy(trigger.mask), torch.from_numpy(trigger.pattern)
    return stamp(images, mask.to(images.device), pattern.to(images.device))


def mask_from_raw(raw: Tensor, sharpness: float) -> Tensor:
    """The mask in (0, 1) of an unconstrained parameter in [0, 1]: ``(tanh(k (r - 1/2)) + 1) / 2``.

    Args:
        raw: Any shape, values in [0, 1].
        sharpness: ``k``. At 10 the ends are within 1e-4 of 0 and 1, and the slope there is nearly nothing: a start at
            ``r = 0`` leaves it to noise where the mask opens (our measurement; a start at 1/2 has the largest slope).

    Returns:
        Same shape.

    Source: NeuralSanitizer, trigger reconstruction.

    >>> round(mask_from_raw(torch.tensor(0.5), 10.0).item(), 3)
    0.5
    """
    return torch.tanh(sharpness * (raw - 0.5)).add(1).div(2)


def raw_from_mask(mask: Tensor, sharpness: float) -> Tensor:
    """The inverse of :func:`mask_from_raw`, for masks within (0, 1); values outside its range are clamped to [0, 1].

    >>> round(raw_from_mask(mask_from_raw(torch.tensor(0.3), 8.0), 8.0).item(), 3)
    0.3
    """
    eps = torch.finfo(torch.float32).eps
    return torch.atanh((2 * mask - 1).clamp(-1 + eps, 1 - eps)).div(sharpness).add(0.5).clamp(0, 1)
