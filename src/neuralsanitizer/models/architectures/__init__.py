"""The registry of architectures: the networks of the two papers, ours for speech, and other libraries', by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from neuralsanitizer.errors import UsageError
from neuralsanitizer.models.architectures.deepid import LAYERS, DeepID
from neuralsanitizer.models.architectures.libraries import LIBRARIES, describe, is_of_library
from neuralsanitizer.models.architectures.plain import GTSRB_CNN, MNIST_CNN, MNIST_CNN_SMALL, SPEECH_CNN, PlainCNN
from neuralsanitizer.models.architectures.resnet import RESNET8, RESNET18, ResNet
from neuralsanitizer.models.architectures.vgg import VGG16
from neuralsanitizer.models.handle import Preprocessing

__all__ = ["Architecture", "build", "choices", "get", "is_of_library", "names"]

Builder = Callable[[int, int, tuple[int, int]], nn.Module]

_EIGHT_BIT = (0.0, 255.0)
_CENTRED = Preprocessing.from_raw((127.5,), (255.0,), _EIGHT_BIT)


@dataclass(frozen=True)
class Architecture:
    """An architecture of the registry.

    Attributes:
        name: As on the command line.
        labels: Number of labels of the paper's task.
        channels: Channels of the paper's input.
        sizes: (height, width) of inputs it is made for; the first is the default.
        preprocessing: The paper's normalisation.
        source: Where it is described.
        builder: Makes the network from labels, channels and size.
        layer_names: Layers named by hand, where tracing would group them otherwise.
    """

    name: str
    labels: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    preprocessing: Preprocessing
    source: str
    builder: Builder
    layer_names: tuple[tuple[str, ...], ...] = ()


_REGISTRY = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "mnist-cnn",
            10,
            1,
            ((28, 28),),
            _CENTRED,
            "NeuralSanitizer, MNIST",
            lambda labels, channels, size: PlainCNN(MNIST_CNN, labels, channels, size),
        ),
        Architecture(
            "mnist-cnn-small",
            10,
            1,
            ((28, 28),),
            _CENTRED,
            "Neural Cleanse, MNIST",
            lambda labels, channels, size: PlainCNN(MNIST_CNN_SMALL, labels, channels, size),
        ),
        Architecture(
            "gtsrb-cnn",
            43,
            3,
            ((32, 32),),
            _CENTRED,
            "NeuralSanitizer and Neural Cleanse, GTSRB",
            lambda labels, channels, size: PlainCNN(GTSRB_CNN, labels, channels, size),
        ),
        Architecture(
            "cifar10-resnet18",
            10,
            3,
            ((32, 32),),
            Preprocessing.from_raw((120.7,), (64.15,), _EIGHT_BIT),
            "NeuralSanitizer, CIFAR-10",
            lambda labels, channels, size: ResNet(RESNET18, labels, channels),  # noqa: ARG005 - any size will do
        ),
        Architecture(
            "cifar10-resnet8",
            10,
            3,
            ((32, 32),),
            Preprocessing.from_raw((120.7,), (64.15,), _EIGHT_BIT),
            "a smaller residual network for CIFAR-10, for machines without a GPU",
            lambda labels, channels, size: ResNet(RESNET8, labels, channels),  # noqa: ARG005 - any size will do
        ),
        Architecture(
            "speech-cnn",
            10,
            1,
            ((63, 20),),
            Preprocessing((0.5,), (0.2,)),
            "a small network for the MFCC of spoken digits: a second at a hop of 16 ms, 20 coefficients",
            lambda labels, channels, size: PlainCNN(SPEECH_CNN, labels, channels, size),
        ),
        Architecture(
            "deepid",
            1595,
            3,
            ((224, 224), (55, 47)),
            _CENTRED,
            "NeuralSanitizer and Neural Cleanse, YouTube Face",
            DeepID,
            LAYERS,
        ),
        Architecture(
            "vgg16",
            2622,
            3,
            ((224, 224),),
            Preprocessing.from_raw((129.1863, 104.7624, 93.5940), (1.0,), _EIGHT_BIT),
            "NeuralSanitizer, VGG-Face",
            VGG16,
        ),
    )
}


def names() -> tuple[str, ...]:
    """Names of all architectures but other libraries'."""
    return tuple(_REGISTRY)


def choices() -> str:
    """What ``--arch`` takes, in words."""
    return ", ".join([*_REGISTRY, *(f"{library}/NAME" for library in LIBRARIES)])


def get(name: str) -> Architecture:
    """An architecture by name; ``timm/NAME`` or ``torchvision/NAME``: one of these libraries.

    Raises:
        UsageError: There is none of that name.
        MissingExtraError: The library is not installed.
    """
    if is_of_library(name):
        labels, channels, size, preprocessing, source, builder = describe(name)
        return Architecture(name, labels, channels, (size,), preprocessing, source, builder)
    if name not in _REGISTRY:
        raise UsageError(f"unknown architecture {name!r}: choose one of {choices()}, or give --model-def")
    return _REGISTRY[name]


def build(
    name: str, labels: int | None = None, channels: int | None = None, size: tuple[int, int] | None = None
) -> nn.Module:
    """Make a network with fresh weights.

    Args:
        name: One of :func:`names`, or of a library.
        labels: Number of labels; the paper's by default.
        channels: Channels of the input; the paper's by default.
        size: (height, width) of the input; the paper's by default.

    Returns:
        A network that gives logits (N, labels). Parameters stand in its state_dict in forward order.

    Raises:
        UsageError: There is no such architecture, or it cannot be made so.

    >>> build("mnist-cnn", labels=10, channels=1).output.out_features
    10
    """
    architecture = get(name)
    labels = architecture.labels if labels is None else labels
    channels = architecture.channels if channels is None else channels
    if labels < 1 or channels < 1:
        raise UsageError(f"a network needs at least one label and one channel, got {labels} and {channels}")
    return architecture.builder(labels, channels, size or architecture.sizes[0])
