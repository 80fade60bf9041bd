"""Which layers a network has, in execution order, found by looking at what it computes.

A forward pass leaves a graph of operations. An operation that every path from input to output runs through is a *cut*;
what lies between two cuts runs in parallel (a residual block, two dense layers side by side) and counts as one layer,
as in NeuralSanitizer. Parameters belong to the operation that they feed. Normalisation belongs to the layer before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

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
        outputs = module(inputs.clone())  # a copy: a network may overwrite its input, which torch forbids on a leaf
        if not isinstance(outputs, Tensor) or outputs.grad_fn is None:
            raise ModelError(f"the network cannot be traced: its output has no gradient; {_BY_HAND}")
        segments = _segments(_Graph(outputs.grad_fn, inputs), {id(p): name for name, p in named.items()})
    if not segments:
        raise ModelError(f"the network cannot be traced: no parameter lies between input and output; {_BY_HAND}")
    order = {name: i for i, name in enumerate(named)}
    layers: list[list[str]] = []
    for names in segments:
        normalisation = all(named[name].ndim <= 1 for name in names)
        if normalisation and layers:
            layers[-1] += names
        else:
            layers.append(names)
    return tuple(_layer(sorted(names, key=order.__getitem__)) for names in layers)


@contextmanager
def _gradients_on(module: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """All parameters require gradients within, in evaluation mode; everything is put back after."""
    named = dict(module.named_parameters())
    wanted = {name: parameter.requires_grad for name, parameter in named.items()}
    training = {submodule: submodule.training for submodule in module.modules()}
    module.eval().requires_grad_(True)  # noqa: FBT003 - torch's signature
    try:
        with torch.enable_grad():
            yield named
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(wanted[name])
        for submodule, mode in training.items():
            submodule.training = mode


class _Graph:
    """The graph of operations between an output and its input.

    Attributes:
        order: Nodes on a path from output to input, each before those that it was computed from.
        inner: For each of them, its children on such a path.
        outer: For each of them, its other children: parameters, and what is computed from parameters alone.
    """

    def __init__(self, root: Node, inputs: Tensor) -> None:
        seen = _reachable(root)
        leads = {node for node in seen if getattr(node, "variable", None) is inputs}
        for node in reversed(seen):  # children come later in ``seen``: decided before their parents
            if any(child in leads for child in _children(node)):
                leads.add(node)
        if root not in leads:
            raise ModelError(f"the network cannot be traced: its output does not depend on its input; {_BY_HAND}")
        self.order = [node for node in seen if node in leads]
        self.inner = {node: [child for child in _children(node) if child in leads] for node in self.order}
        self.outer = {node: [child for child in _children(node) if child not in leads] for node in self.order}


def _children(node: Node) -> list[Node]:
    return [child for child, _ in node.next_functions if child is not None]


def _reachable(root: Node) -> list[Node]:
    """All nodes under ``root``, each before its children (depth-first, without recursion: networks are deep)."""
    finished: list[Node] = []
    seen = {root}
    stack = [(root, iter(_children(root)))]
    while stack:
        node, children = stack[-1]
        child = next(children, None)
        if child is None:
            finished.append(node)
            stack.pop()
        elif child not in seen:
            seen.add(child)
            stack.append((child, iter(_children(child))))
    return finished[::-1]


def _segments(graph: _Graph, names: dict[int, str]) -> list[list[str]]:
    """Names of the parameters at each cut and between each two, in forward order; each parameter once.

    Going through the nodes from the output on, edges are open from their parent to their child. A node that all open
    edges lead to is a cut.
    """
    incoming = Counter(child for children in graph.inner.values() for child in children)
    open_edges = 0
    segments: list[list[str]] = [[]]
    for node in graph.order:
        open_edges -= incoming[node]
        if open_edges == 0:
            segments += [_parameters_under(graph.outer[node], names), []]
        else:
            segments[-1] += _parameters_under(graph.outer[node], names)
        open_edges += len(graph.inner[node])
    taken: set[str] = set()
    forward = []
    for segment in reversed(segments):
        fresh = [name for name in dict.fromkeys(segment) if name not in taken]
        taken.update(fresh)
        if fresh:
            forward.append(fresh)
    return forward


def _parameters_under(nodes: Iterable[Node], names: dict[int, str]) -> list[str]:
    """Names of the parameters that some nodes lead to."""
    leaves = (getattr(leaf, "variable", None) for node in nodes for leaf in _reachable(node))
    return [names[id(leaf)] for leaf in leaves if leaf is not None and id(leaf) in names]


def _layer(names: list[str]) -> Layer:
    """A layer, named by the path that its parameters' names have in common, or by its first owner."""
    owners = [name.split(".")[:-1] for name in names]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))]
    return Layer(".".join(shared or owners[0]) or names[0], tuple(names))
