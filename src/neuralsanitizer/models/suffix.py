"""What is left of a network from one of its modules on: while only that part is trained, the rest is computed once.

Networks are opaque modules here, so nothing is cut out of them. The suffix is the same network with the same weights,
in which every module that has run before the chosen one gives zeros of the right shape at no cost, and the chosen one
is fed what it was fed in a real pass. That is right only where all that the network knows of an image passes through
the chosen module, once, and where the modules before it treat each image by itself. So it is tried: a suffix whose
answers differ from the network's is not used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuralsanitizer.functional.precision import autocast, fast_dtype

__all__ = ["Suffix", "suffix_of"]


@dataclass(frozen=True, eq=False)
class Suffix:
    """A network from one of its modules on.

    Attributes:
        module: Takes features, gives what the network gives. Its parameters are the network's own.
        features: (N, ...): what the images are when they reach it.
    """

    module: nn.Module
    features: Tensor


def suffix_of(module: nn.Module, trained: Sequence[str], inputs: Tensor, *, at_once: int = 500) -> Suffix | None:
    """What a network computes from a submodule on, in training mode, and what all inputs are there.

    Args:
        module: The network; left as it is.
        trained: Names of the parameters that are to be trained. The submodule is that of the first of them.
        inputs: (N, C, H, W), normalised, on the network's device.
        at_once: Images that are shown to it at once.

    Returns:
        ``None`` where that would not be the same: a path goes around the submodule, it runs more than once, or what is
        before it draws at random, looks at other images (dropout, batch normalisation) or is to be trained as well; or
        where the features would take more than a gibibyte.
    """
    if not trained:
        return None
    gpus = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):  # dropout behind the submodule draws, and training is to draw what it would have
        try:
            return _tried(module, [name.rpartition(".")[0] for name in trained], inputs, at_once)
        except Exception:  # noqa: BLE001 - the user's code may raise anything when it is fed zeros
            return None


def _tried(module: nn.Module, owners: Sequence[str], inputs: Tensor, at_once: int) -> Suffix | None:
    copied = _copy_that_shares_weights(module).train()
    chosen, *others = (copied.get_submodule(name) for name in dict.fromkeys(owners))
    before, fed = _run_before(copied, chosen, inputs[:_TRIED])
    if not before or fed is None or fed[0].numel() * fed.element_size() * len(inputs) > _MOST_BYTES:
        return None
    if any(isinstance(one, _BatchNorm) for one in before):
        return None
    if any(one in before or list(one.children()) for one in others):
        return None
    keeper = _Keeper()
    handle = chosen.register_forward_pre_hook(keeper)
    for part in inputs.split(at_once):
        _answer(copied, part)
    handle.remove()
    features = torch.cat(keeper.fed)
    if len(features) != len(inputs):
        return None  # it runs more than once, or on something else than images
    tried = torch.arange(len(inputs) - 1, -1, -max(1, len(inputs) // _TRIED), device=inputs.device)[:_TRIED]
    theirs = _answer(copied, inputs[tried])
    suffix = _From(copied, chosen, before, inputs.shape[1:])
    ours = _answer(suffix, features[tried])
    # Batches of another size may be added up in another order. Outputs may be small, as probabilities of many labels
    # are: what counts is by how much they differ from image to image.
    tolerance = _ROUNDING[fast_dtype(inputs.device)] * float(theirs.std(dim=0).max())
    if theirs.shape != ours.shape or not bool(((theirs - ours).abs() <= tolerance).all()):
        return None
    for path, submodule in copied.named_modules():  # from here on what is trained is the network's own, statistics too
        submodule._buffers = module.get_submodule(path)._buffers  # noqa: SLF001 - the mapping, not its values now
    return Suffix(suffix, features)


_TRIED = 32
_MOST_BYTES = 1 << 30
# Of the spread of outputs over images; a path that is missing, or dropout, moves them by about all of it.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@torch.no_grad()
def _answer(module: nn.Module, inputs: Tensor) -> Tensor:
    torch.manual_seed(0)
    with autocast(inputs.device, fast_dtype(inputs.device)):
        outputs: Tensor = module(inputs)
    return outputs.float()


def _copy_that_shares_weights(module: nn.Module) -> nn.Module:
    """Modules of its own, with hooks and modes of their own, around the same parameters; buffers are copied."""
    shared = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, shared)


class _Keeper:
    """A forward pre-hook that keeps what a module is fed with."""

    def __init__(self) -> None:
        self.fed: list[Tensor] = []

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.fed.append(inputs[0].detach())


def _run_before(module: nn.Module, chosen: nn.Module, inputs: Tensor) -> tuple[dict[nn.Module, Tensor], Tensor | None]:
    """Modules without submodules whose every call ends before the chosen one runs, with what they give, and its input.

    Modules that are called again later, as one ReLU may be all over a network, are not among them.
    """
    given: dict[nn.Module, Tensor] = {}
    fed: list[Tensor] = []

    def note(called: nn.Module, _: tuple[Tensor, ...], output: object) -> None:
        if not fed and isinstance(output, Tensor) and called not in late:
            given[called] = output
        else:
            given.pop(called, None)
            late.add(called)

    def reached(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        fed.append(args[0])

    late: set[nn.Module] = {chosen}
    leaves = [one for one in module.modules() if one is not chosen and not list(one.children())]
    handles = [one.register_forward_hook(note) for one in leaves]
    handles.append(chosen.register_forward_pre_hook(reached))
    _answer(module, inputs)
    for handle in handles:
        handle.remove()
    return given, fed[0] if len(fed) == 1 and fed[0].shape[:1] == inputs.shape[:1] else None


class _From(nn.Module):
    """The network, fed in the middle."""

    def __init__(
        self, network: nn.Module, chosen: nn.Module, before: dict[nn.Module, Tensor], shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.network, self.shape, self.features = network, tuple(shape), torch.empty(0)
        for module, given in before.items():
            module.forward = _Zeros(given)
        chosen.register_forward_pre_hook(self._feed)

    def forward(self, features: Tensor) -> Tensor:
        self.features = features
        nothing = torch.zeros((), device=features.device).expand(len(features), *self.shape)
        outputs: Tensor = self.network(nothing)
        return outputs

    def _feed(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.features, *inputs[1:]


class _Zeros:
    """In place of a module's computation: zeros like what it gave, for as many images as come."""

    def __init__(self, given: Tensor) -> None:
        self.nothing, self.shape = given.new_zeros(()), given.shape[1:]

    def __call__(self, inputs: Tensor, *_: object, **__: object) -> Tensor:
        return self.nothing.expand(len(inputs), *self.shape)
