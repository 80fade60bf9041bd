"""Giving a network, or some of its layers, fresh weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

__all__ = ["reinitialise_all", "reinitialise_uniform", "unit_variance"]


@torch.no_grad()
def reinitialise_uniform(module: nn.Module, parameters: Iterable[str], bound: float, generator: Generator) -> None:
    """Redraw some parameters uniformly from [-bound, bound], in place.

    Args:
        module: The network.
        parameters: Names as in ``module.named_parameters()``.
        bound: NeuralSanitizer: 0.1.
        generator: CPU generator; draws happen on the CPU so that every device sees the same weights.

    A one-dimensional ``weight`` scales a normalised signal and is set to 1, with its bias at 0: drawn from
    [-0.1, 0.1] it would all but silence the layer, and no training step would know it from a dead one.
    """
    named = dict(module.named_parameters())
    for name in parameters:
        parameter = named[name]
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, _NORMALISATIONS):
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            fresh = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(fresh)
    for owner_name in {name.rpartition(".")[0] for name in named if name in set(parameters)}:
        owner = module.get_submodule(owner_name)
        if isinstance(owner, nn.modules.batchnorm._NormBase):  # noqa: SLF001 - the only base that has running statistics
            owner.reset_running_stats()


@torch.no_grad()
def reinitialise_all(module: nn.Module, generator: Generator) -> None:
    """Give every parameter a fresh value, in place: each submodule's own ``reset_parameters`` where it has one.

    Parameters that no ``reset_parameters`` reaches (positional embeddings, class tokens) are drawn from a normal
    distribution with the mean and spread that they have.

    Args:
        module: The network. Running statistics are reset too.
        generator: CPU generator: everything follows from its next draw.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))
    loose = {name: (p.mean().item(), p.std(correction=0).item()) for name, p in _parameters_out_of_reach(module)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for submodule in module.modules():
            reset = getattr(submodule, "reset_parameters", None)
            if callable(reset):
                reset()
        for name, (mean, spread) in loose.items():
            parameter: Tensor = module.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape) * spread + mean)


@torch.no_grad()
def unit_variance(module: nn.Module, inputs: Tensor, output_scale: float = 1.0) -> None:
    """Scale fresh weights, in place, so that every layer's outputs have variance 1 on some inputs; biases become 0.

    Layer-sequential unit variance (Mishkin and Matas, ICLR 2016), in one pass: each dense or convolutional layer is
    scaled as the pass reaches it, and what follows sees its outputs as they are then. torch's own fresh weights leave
    a third of the variance at each layer: a deep network without normalisation learns nothing for hundreds of steps.

    Args:
        module: The network. Used in evaluation mode, its mode is left as it was.
        inputs: What the network takes, a few dozen of them (N, ...), on its device.
        output_scale: Standard deviation of the last layer's outputs instead. Below 1 the network has to learn features
            before it says anything, above it gets far with those that it happens to have (Chizat, Oyallon and Bach,
            "On lazy training in differentiable programming", NeurIPS 2019).
    """
    scaled: dict[int, Tensor] = {}

    def scale(layer: nn.Module, _: object, outputs: object) -> Tensor | None:
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")  # noqa: SLF001 - not computed ones
        if weight is None or id(weight) in scaled or not isinstance(outputs, Tensor):
            return None
        scaled[id(weight)] = weight
        if bias is not None:
            along = 1 if isinstance(layer, _CONVOLUTIONS) and outputs.ndim == layer.weight.ndim else -1
            outputs = outputs - bias.view([-1 if i == along % outputs.ndim else 1 for i in range(outputs.ndim)])
            bias.zero_()
        spread = outputs.float().std()
        if not (torch.isfinite(spread) and spread > 0):
            return outputs
        weight.div_(spread)
        return outputs / spread

    training = module.training
    handles = [m.register_forward_hook(scale) for m in module.modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear))]
    try:
        module.eval()(inputs)
        for weight in list(scaled.values())[-1:]:
            weight.mul_(output_scale)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()


def _parameters_out_of_reach(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    reached = {
        id(parameter)
        for submodule in module.modules()
        if callable(getattr(submodule, "reset_parameters", None))
        for parameter in submodule.parameters(recurse=False)
    }
    return [(name, parameter) for name, parameter in module.named_parameters() if id(parameter) not in reached]


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,  # noqa: SLF001 - the common base of BatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
)
