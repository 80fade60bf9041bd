"""Looking at what a layer computes, for attacks that choose neurons or tie representations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neuralsanitizer.errors import UsageError
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.layers import Layer, layers_of

__all__ = ["Watched", "parameters_from", "watched"]


class Watched:
    """The latest output of a layer, with its graph."""

    def __init__(self) -> None:
        self.value = torch.empty(0)

    def __call__(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep an output (as a forward hook)."""
        self.value = output


@contextmanager
def watched(model: SuspectModel, layer: Layer) -> Iterator[Watched]:
    """Look at what a layer gives while the context lasts.

    Raises:
        UsageError: The layer is no single module of the network.
    """
    modules = dict(model.module.named_modules())
    if layer.name not in modules:
        raise UsageError(f"layer {layer.name!r} of {model.architecture} is no single module: choose another one")
    kept = Watched()
    handle = modules[layer.name].register_forward_hook(kept)
    try:
        yield kept
    finally:
        handle.remove()


def parameters_from(model: SuspectModel, first: int) -> list[nn.Parameter]:
    """The parameters of the layers from number ``first`` on (counted from the input; negative from the output)."""
    layers = layers_of(model, torch.zeros(2, *model.input_shape))
    named = dict(model.module.named_parameters())
    return [named[name] for layer in layers[first:] for name in layer.parameters]
