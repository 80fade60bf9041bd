"""ResNet-18 with a 3x3 stem, as used on CIFAR-10."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["ResNet18"]


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


class ResNet18(nn.Module):
    """Stem of 64 channels, eight blocks (64 64 128 128 256 256 512 512), mean over the picture, dense layer.

    Args:
        labels: Number of labels.
        channels: Channels of the input.
    """

    def __init__(self, labels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
        self.blocks = nn.Sequential(*(_Block(a, b, 2 if b > a else 1) for a, b in pairwise(widths)))
        self.output = nn.Linear(512, labels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, labels) of normalised images (N, channels, height, width)."""
        hidden = self.blocks(self.bn(self.conv(images)).relu())
        logits: Tensor = self.output(hidden.mean(dim=(2, 3)))  # on 32x32: the 4x4 average pooling of the paper
        return logits
