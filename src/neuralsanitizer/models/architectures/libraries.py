"""Architectures of other libraries by name: ``timm/NAME`` and ``torchvision/NAME`` (extras of these names).

Only the network's shape comes from there. Weights are never fetched: they come from the user's file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from neuralsanitizer.errors import MissingExtraError, UsageError
from neuralsanitizer.models.handle import Preprocessing

__all__ = ["LIBRARIES", "Described", "describe", "is_of_library"]

Builder = Callable[[int, int, tuple[int, int]], nn.Module]
Described = tuple[int, int, tuple[int, int], Preprocessing, str, Builder]
"""Labels, channels, (height, width) and preprocessing that the library trained it with; its source; what makes it."""

_IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's weights were trained with (its documentation of models)."""
_LABELS = 1000  # of ImageNet
_SIZES = ("img_size", "image_size")  # what the two libraries call the edge that transformers are made for


def is_of_library(name: str) -> bool:
    """Whether a name is of the form ``library/architecture``.

    >>> is_of_library("timm/resnet18"), is_of_library("mnist-cnn")
    (True, False)
    """
    return name.partition("/")[0] in LIBRARIES


def describe(name: str) -> Described:
    """What is known of a library's architecture.

    Args:
        name: ``timm/NAME`` or ``torchvision/NAME``.

    Raises:
        MissingExtraError: The library is not installed, or does not load beside this PyTorch.
        UsageError: It has no classifier of that name.
    """
    library, _, inner = name.partition("/")
    try:
        return LIBRARIES[library](inner)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision, built for another PyTorch
        raise MissingExtraError(library, library, f"--arch {name}") from error


def _of_timm(name: str) -> Described:
    timm: Any = importlib.import_module("timm")
    if not timm.is_model(name):  # nor a name with a colon, which would be fetched
        near = ", ".join(timm.list_models(f"*{name[:12]}*")[:5])
        raise UsageError(f"timm has no model {name!r}" + (f": did you mean {near}?" if near else ""))
    told = timm.get_pretrained_cfg(name)
    channels, height, width = told.input_size
    preprocessing = Preprocessing(tuple(told.mean), tuple(told.std))

    def build(labels: int, inputs: int, size: tuple[int, int]) -> nn.Module:
        def made(**sized: object) -> nn.Module:
            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=labels, in_chans=inputs, **sized)
            return network

        return _sized(made, size, (height, width))

    return _LABELS, channels, (height, width), preprocessing, f"timm, {name}", build


def _of_torchvision(name: str) -> Described:
    models: Any = importlib.import_module("torchvision.models")
    if name not in models.list_models(module=models):
        near = ", ".join(models.list_models(module=models, include=f"*{name[:8]}*")[:5])
        raise UsageError(f"torchvision has no classifier {name!r}" + (f": did you mean {near}?" if near else ""))
    size = (299, 299) if name == "inception_v3" else (224, 224)

    def build(labels: int, inputs: int, wanted: tuple[int, int]) -> nn.Module:
        if inputs != 3:
            raise UsageError(
                f"torchvision's {name} takes images of 3 channels, not {inputs}; timm/{name} may take them"
            )

        def made(**sized: object) -> nn.Module:
            network: nn.Module = models.get_model(name, weights=None, num_classes=labels, **sized)
            return network

        return _sized(made, wanted, size)

    return _LABELS, 3, size, _IMAGENET, f"torchvision, {name}", build


def _sized(made: Callable[..., nn.Module], size: tuple[int, int], usual: tuple[int, int]) -> nn.Module:
    """The network for images of a size; the libraries' transformers have to be told, their convolutions must not be."""
    if size == usual:
        return made()
    for option in _SIZES:
        edge = size[0] if size[0] == size[1] and option == "image_size" else size
        try:
            return made(**{option: edge})
        except TypeError:  # it has no such option
            continue
    return made()


LIBRARIES: dict[str, Callable[[str], Described]] = {"timm": _of_timm, "torchvision": _of_torchvision}
