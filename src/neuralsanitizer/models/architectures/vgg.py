"""VGG-16, as used on VGG-Face and PubFig."""

from __future__ import annotations

from torch import Tensor, nn

from neuralsanitizer.errors import UsageError

__all__ = ["VGG16"]

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five pooled blocks, two dense layers of 4,096, logits.

    Args:
        labels: Number of labels.
        channels: Channels of the input.
        size: (height, width); 32 pixels at least.

    Raises:
        UsageError: The input is too small for five poolings.
    """

    def __init__(self, labels: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        if min(size) < 32:
            raise UsageError(f"vgg16 halves its input five times: {size[0]}x{size[1]} is too small, take 32x32 or more")
        layers: list[nn.Module] = []
        for width, count in _BLOCKS:
            for _ in range(count):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                layers += [conv, nn.ReLU()]
                channels = width
            layers.insert(-1, nn.MaxPool2d(2))  # before the ReLU: the same numbers, for a quarter of the work
        self.features = nn.Sequential(*layers)
        self.fc6 = nn.Linear(512 * (size[0] // 32) * (size[1] // 32), 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.output = nn.Linear(4096, labels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, labels) of normalised images (N, channels, height, width)."""
        hidden = self.fc6(self.features(images).flatten(1)).relu()
        logits: Tensor = self.output(self.fc7(hidden).relu())
        return logits
