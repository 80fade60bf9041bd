"""Looking at what a layer computes: for attacks that choose neurons, for pruning, and for the input filter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuralsanitizer.errors import ModelError, UsageError
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.layers import Layer, layers_of

__all__ = [
    "LastConvolution",
    "Watched",
    "fed",
    "keep_what_feeds",
    "last_convolution",
    "last_dense",
    "parameters_from",
    "penultimate",
    "watched",
    "watched_module",
]


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
    if layer.name not in dict(model.module.named_modules()):
        raise UsageError(f"layer {layer.name!r} of {model.architecture} is no single module: choose another one")
    with watched_module(model, layer.name) as kept:
        yield kept


@contextmanager
def watched_module(model: SuspectModel, name: str) -> Iterator[Watched]:
    """Look at what a module of the network gives while the context lasts."""
    kept = Watched()
    handle = model.module.get_submodule(name).register_forward_hook(kept)
    try:
        yield kept
    finally:
        handle.remove()


_FED: ContextVar[dict[nn.Module, Tensor] | None] = ContextVar("_FED", default=None)


def keep_what_feeds(module: nn.Module) -> None:
    """Have a module tell what it is fed with, to whoever asks by :func:`fed`; to all others it does nothing new.

    For good: a hook that comes and goes with every call would be seen by the calls of other threads.
    """
    if _tell not in module._forward_pre_hooks.values():  # noqa: SLF001 - torch has no public way to ask
        module.register_forward_pre_hook(_tell)


@contextmanager
def fed() -> Iterator[dict[nn.Module, Tensor]]:
    """By module, the first input float32 that this thread feeds it with while the context lasts."""
    kept: dict[nn.Module, Tensor] = {}
    token = _FED.set(kept)
    try:
        yield kept
    finally:
        _FED.reset(token)


def _tell(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The hook: a function of this module, so that a network that has it can be copied and pickled."""
    kept = _FED.get()
    if kept is not None:
        kept.setdefault(module, inputs[0].float())


def parameters_from(model: SuspectModel, first: int) -> list[nn.Parameter]:
    """The parameters of the layers from number ``first`` on (counted from the input; negative from the output)."""
    layers = layers_of(model, torch.zeros(2, *model.input_shape))
    named = dict(model.module.named_parameters())
    return [named[name] for layer in layers[first:] for name in layer.parameters]


def last_dense(model: SuspectModel) -> nn.Linear:
    """The dense layer that gives the logits. Its inputs are the neurons of the second-to-last layer.

    Raises:
        ModelError: The network does not end in a dense layer.
    """
    name = layers_of(model, torch.zeros(2, *model.input_shape))[-1].name
    module = dict(model.module.named_modules()).get(name)
    if not isinstance(module, nn.Linear) or module.out_features != model.labels:
        raise ModelError(
            f"{model.architecture} does not end in a dense layer of {model.labels} outputs: its second-to-last layer "
            "has no neurons to prune or to watch"
        )
    return module


@torch.no_grad()
def penultimate(model: SuspectModel, images: Tensor, batch: int = 500) -> Tensor:
    """Activations of the second-to-last layer: what the last dense layer is fed with.

    Args:
        model: Any model that ends in a dense layer.
        images: (N, channels, height, width) in [0, 1].
        batch: Images a pass.

    Returns:
        float32 (N, neurons), on the model's device.

    Raises:
        ModelError: The network does not end in a dense layer, or feeds it with more than one vector an image.
    """
    kept: list[Tensor] = []
    handle = last_dense(model).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].float()))
    try:
        for part in images.split(batch):
            model(part.to(model.device))
    finally:
        handle.remove()
    neurons = torch.cat(kept)
    if neurons.ndim != 2 or len(neurons) != len(images):
        raise ModelError(f"the last dense layer of {model.architecture} is fed with {tuple(neurons.shape)}, no vectors")
    return neurons


@dataclass(frozen=True)
class LastConvolution:
    """The last convolution of a network that computes one thing after another.

    Attributes:
        module: Name of the module whose output its channels are: the normalisation after it, if there is one.
        parameters: Names of all parameters with one slice a channel. Zeroed there, the channel gives nothing.
        channels: How many.
    """

    module: str
    parameters: tuple[str, ...]
    channels: int


def last_convolution(model: SuspectModel) -> LastConvolution | None:
    """The last convolution, or ``None``: there is none, or it lies in a block whose other branches go around it."""
    named = dict(model.module.named_parameters())
    for layer in reversed(layers_of(model, torch.zeros(2, *model.input_shape))):
        kernels = [name for name in layer.parameters if named[name].ndim == _KERNEL]
        if not kernels:
            continue
        channels = named[kernels[0]].shape[0]
        if len(kernels) > 1 or any(named[name].shape[0] != channels for name in layer.parameters):
            return None
        return LastConvolution(layer.parameters[-1].rpartition(".")[0], layer.parameters, channels)
    return None


_KERNEL = 4  # dimensions of a convolution's weights
