"""Residual networks with a 3x3 stem, as used on CIFAR-10."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["RESNET8", "RESNET18", "ResNet"]

RESNET18 = (64, 64, 64, 128, 128, 256, 256, 512, 512)
RESNET8 = (16, 16, 32, 64)
"""Widths: of the stem, then of each block."""


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(inputs)).relu()
        total: Tensor = self.bn2(self.conv2(hidden)) + self.shortcut(inputs)
        return total.relu()


class ResNet(nn.Module):
    """Stem, residual blocks of two convolutions, mean over the picture, dense layer.

    Args:
        widths: Channels of the stem, then of each block; a block that is wider than the one before halves the edges.
        labels: Number of labels.
        channels: Channels of the input.
    """

    def __init__(self, widths: tuple[int, ...], labels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(_Block(a, b, 2 if b > a else 1) for a, b in pairwise(widths)))
        self.output = nn.Linear(widths[-1], labels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, labels) of normalised images (N, channels, height, width)."""
        hidden = self.blocks(self.bn(self.conv(images)).relu())
        logits: Tensor = self.output(hidden.mean(dim=(2, 3)))  # ResNet-18 on 32x32: the paper's 4x4 average pooling
        return logits
