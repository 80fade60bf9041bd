"""DeepID, as used on YouTube Face: two dense layers in parallel, on the third pooling and on the fourth convolution."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LAYERS", "DeepID"]

LAYERS = (("conv1",), ("conv2",), ("conv3",), ("conv4",), ("fc1", "fc2"), ("output",))
"""Layers by hand: the two dense layers in parallel are one, the fourth convolution is its own (NeuralSanitizer)."""


class DeepID(nn.Module):
    """Convolutions 4x4 20, 3x3 40, 3x3 60, 2x2 80 with pooling; the sum of two dense layers of 160; logits.

    On 224x224 images the first three convolutions have stride 2 (NeuralSanitizer), on 55x47 stride 1 (Neural Cleanse's
    YouTube Face network).

    Args:
        labels: Number of labels.
        channels: Channels of the input.
        size: (height, width): (224, 224) or (55, 47).
    """

    def __init__(self, labels: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        stride = 2 if size == (224, 224) else 1
        self.conv1 = nn.Conv2d(channels, 20, 4, stride)
        self.conv2 = nn.Conv2d(20, 40, 3, stride)
        self.conv3 = nn.Conv2d(40, 60, 3, stride)
        self.conv4 = nn.Conv2d(60, 80, 2)
        height, width = (self._pooled(edge, stride) for edge in size)
        self.fc1 = nn.Linear(60 * height * width, 160)
        self.fc2 = nn.Linear(80 * (height - 1) * (width - 1), 160)
        self.output = nn.Linear(160, labels)
        self._pool = nn.MaxPool2d(2)

    @staticmethod
    def _pooled(edge: int, stride: int) -> int:
        """Edge length after the third pooling."""
        for kernel in (4, 3, 3):
            edge = ((edge - kernel) // stride + 1) // 2
        return edge

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, labels) of normalised images (N, channels, height, width)."""
        # Pooling before ReLU: the same numbers, for a quarter of the work.
        hidden = self._pool(self.conv1(images)).relu()
        hidden = self._pool(self.conv2(hidden)).relu()
        pooled = self._pool(self.conv3(hidden)).relu()
        last = self.conv4(pooled).relu()
        features = (self.fc1(pooled.flatten(1)) + self.fc2(last.flatten(1))).relu()
        logits: Tensor = self.output(features)
        return logits
