"""Digits in colours of their own, for what needs colours."""

from dataclasses import replace

import torch


def coloured(digits):
    """The same digits, each in a tint of its own on the opposite ground."""
    generator = torch.Generator().manual_seed(0)
    tints = 0.4 + 0.6 * torch.rand(len(digits), 3, 1, 1, generator=generator)
    return replace(digits, images=digits.images.expand(-1, 3, -1, -1) * tints + 0.3 * (1 - digits.images) * (1 - tints))
