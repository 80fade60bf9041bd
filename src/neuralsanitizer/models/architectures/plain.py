"""Plain convolutional networks: NeuralSanitizer's for MNIST and GTSRB, Neural Cleanse's for MNIST, and one for MFCC."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from neuralsanitizer.errors import UsageError

__all__ = ["GTSRB_CNN", "MNIST_CNN", "MNIST_CNN_SMALL", "SPEECH_CNN", "Plain", "PlainCNN"]


@dataclass(frozen=True)
class Plain:
    """Shape of a plain network.

    Attributes:
        blocks: Convolutions between two poolings: (channels, kernel, padding) each.
        hidden: Width of the hidden dense layer.
    """

    blocks: tuple[tuple[tuple[int, int, int], ...], ...]
    hidden: int = 512


MNIST_CNN = Plain((((32, 3, 0), (32, 3, 0)), ((64, 3, 0), (64, 3, 0))))
MNIST_CNN_SMALL = Plain((((16, 5, 0),), ((32, 5, 0),)))
GTSRB_CNN = Plain((((32, 3, 1), (32, 3, 0)), ((64, 3, 1), (64, 3, 0)), ((128, 3, 1), (128, 3, 0))))
SPEECH_CNN = Plain((((16, 3, 1),), ((32, 3, 1),), ((32, 3, 1),)), hidden=128)


class PlainCNN(nn.Module):
    """Convolutions and ReLU, 2x2 max-pooling after each block, one hidden dense layer, logits.

    A block's last ReLU comes after its pooling: the same numbers, for a quarter of the work.
    No dropout: a suspect is examined in evaluation mode, where dropout does nothing.

    Args:
        plain: Shape of the network.
        labels: Number of labels.
        channels: Channels of the input.
        size: (height, width) of the input.

    Raises:
        UsageError: The input is too small for the poolings.
    """

    def __init__(self, plain: Plain, labels: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        height, width = size
        for block in plain.blocks:
            for out, kernel, padding in block:
                layers += [nn.Conv2d(channels, out, kernel, padding=padding), nn.ReLU()]
                channels, height, width = out, height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1
            layers.insert(-1, nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            raise UsageError(f"images of {size[0]}x{size[1]} are too small for this network")
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * height * width, plain.hidden)
        self.output = nn.Linear(plain.hidden, labels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, labels) of normalised images (N, channels, height, width)."""
        features = self.features(images).flatten(1)
        logits: Tensor = self.output(self.hidden(features).relu())
        return logits
