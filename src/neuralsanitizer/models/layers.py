"""Which layers a network has, in execution order, found by looking at what it computes.

A forward pass leaves a graph of operations. An operation that every path from input to output runs through is a *cut*;
what lies between two cuts runs in parallel (a residual block, two dense layers side by side) and counts as one layer, as in
NeuralSanitizer. Parameters belong to the operation that they feed. Normalisation belongs to the layer before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn

from neuralsanitizer.errors import ModelError, UsageError
from neuralsanitizer.models.handle import SuspectModel

__all__ = ["Layer", "layers_of", "named_layers", "trace_layers"]

_BY_HAND = "name its layers by hand (SuspectModel.layer_names)"


@dataclass(frozen=True)
class Layer:
    """A parametrised layer.

    Attributes:
        name: What its parameters' names have in common.
        parameters: Names as in ``named_parameters()``, in forward order.
    """

    name: str
    parameters: tuple[str, ...]


def layers_of(suspect: SuspectModel, images: Tensor) -> tuple[Layer, ...]:
    """The layers of a suspect: those named by hand, else traced.

    Args:
        suspect: The model.
        images: (N, C, H, W) in [0, 1], two or so.
    """
    if suspect.layer_names:
        return named_layers(suspect.module, suspect.layer_names)
    return trace_layers(suspect.module, suspect.normalise(images.to(suspect.device)))


def named_layers(module: nn.Module, groups: Iterable[Iterable[str]]) -> tuple[Layer, ...]:
    """Layers from the names of submodules.

    Args:
        module: The network.
        groups: Names of the submodules that make each layer, in forward order.

    Raises:
        UsageError: A name is unknown, or names nothing with parameters.
    """
    layers = []
    for group in groups:
        found: list[str] = []
        for prefix in group:
            own = [name for name, _ in module.named_parameters() if name.startswith(f"{prefix}.")]
            if not own:
                owners = sorted({name.rpartition(".")[0] for name, _ in module.named_parameters()})
                raise UsageError(f"the network has no parameters under {prefix!r}; it has {', '.join(owners)}")
            found += own
        layers.append(Layer("+".join(group), tuple(found)))
    return tuple(layers)


def trace_layers(module: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """Find the layers of any network by running it once.

    Args:
        module: The network; left as it is.
        example: One batch of normalised input (N, C, H, W).

    Returns:
        Layers in execution order; parameters that take no part in the computation are in none.

    Raises:
        ModelError: The output does not depend on the input in a way that can be followed.
    """
    with _gradients_on(module) as named:
        inputs = example.detach().clone().requires_grad_()
        with torch.enable_grad():
            outputs = module(inputs)
        if not isinstance(outputs, Tensor) or outputs.grad_fn is None:
            raise ModelError(f"the network cannot be traced: its output has no gradient; {_BY_HAND}")
        segments = _segments(outputs.grad_fn, inputs, {id(p): name for name, p in named.items()})
    layers = [names for names in segments if names]
    if not layers:
        raise ModelError(f"the network cannot be traced: no parameter lies between input and output; {_BY_HAND}")
    return tuple(_named(names) for names in _with_normalisation_attached(layers, named))


class _gradients_on:  # noqa: N801 - used like a function
    """All parameters require gradients within, in evaluation mode; both are put back after."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> dict[str, nn.Parameter]:
        named = dict(self._module.named_parameters())
        self._before = {name: p.requires_grad for name, p in named.items()}
        self._training = {m: m.training for m in self._module.modules()}
        self._module.eval()
        for parameter in named.values():
            parameter.requires_grad_(True)  # noqa: FBT003 - torch's signature
        return named

    def __exit__(self, *_: object) -> None:
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(self._before[name])
        for submodule, training in self._training.items():
            submodule.training = training


def _segments(root: Any, inputs: Tensor, names: dict[int, str]) -> list[list[str]]:  # noqa: ANN401 - autograd's nodes
    """Parameter names between each two cuts, and at each cut, in forward order."""
    order = _reachable(root)
    start = next((node for node in order if getattr(node, "variable", None) is inputs), None)
    if start is None:
        raise ModelError(f"the network cannot be traced: its output does not depend on its input; {_BY_HAND}")
    on_path = _leading_to(start, order)
    waiting = Counter(child for node in order if node in on_path for child in _children(node) if child in on_path)
    ready, open_edges = [root], 0
    segments: list[list[str]] = [[]]
    while ready:
        node = ready.pop()
        own = [names[i] for i in _parameters_beside(node, on_path) if i in names]
        open_edges -= sum(child is node for parent in on_path for child in _children(parent)) if False else _taken(node, root, waiting)
        segments[-1] += own
        if open_edges == 0:
            segments.append([])
        for child in _children(node):
            if child not in on_path:
                continue
            open_edges += 1
        ready += _now_ready(node, on_path, waiting)
    return [list(dict.fromkeys(reversed(segment))) for segment in reversed(segments)]
