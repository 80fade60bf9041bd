"""Whether it pays to train several references at once: one stack of five networks against one after the other.

``python benchmarks/stacked.py`` trains both ways, twice in turns, and prints one line of JSON each: a step of the stack
is one of :func:`torch.func.vmap` over the networks' parameters, which makes one grouped convolution of five. Weights
and images are random: what is measured is time.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import ReferenceConfig
from neuralsanitizer.execution.allocator import keep_freed_memory
from neuralsanitizer.models import architectures

NETWORKS = (("mnist-cnn-small", 1, 10, 28), ("mnist-cnn", 1, 10, 28), ("gtsrb-cnn", 3, 43, 32))
TOGETHER = len(ReferenceConfig().guides) + len(ReferenceConfig().tests)
BATCH = ReferenceConfig().fresh_batch
STEPS = 20


def one_by_one(networks: list[nn.Module], images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A step of each network, with an optimiser of its own, on its own batch; channels last, as in a scan."""
    networks = [network.to(memory_format=torch.channels_last) for network in networks]  # type: ignore[call-overload]
    batches = [shown.contiguous(memory_format=torch.channels_last) for shown in images]
    optimisers = [torch.optim.AdamW(n.parameters(), weight_decay=0.0) for n in networks]

    def step() -> None:
        for network, optimiser, shown, truth in zip(networks, optimisers, batches, labels, strict=True):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(network(shown), truth).backward()
            optimiser.step()

    return step


def at_once(networks: list[nn.Module], images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The same as one step of a stack."""
    parameters, buffers = stack_module_state(networks)
    base = copy.deepcopy(networks[0]).to("meta")
    optimiser = torch.optim.AdamW(parameters.values(), weight_decay=0.0)

    def loss(weights: dict[str, Tensor], others: dict[str, Tensor], shown: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, (weights, others), (shown,)), truth)

    slopes = vmap(grad(loss))

    def step() -> None:
        for name, slope in slopes({k: p.detach() for k, p in parameters.items()}, buffers, images, labels).items():
            parameters[name].grad = slope
        optimiser.step()

    return step


def measured(step: Callable[[], None]) -> float:
    """Microseconds an image and network."""
    for _ in range(3):
        step()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - started) / STEPS / TOGETHER / BATCH * 1e6


def main() -> None:
    """Measure both ways in turns."""
    keep_freed_memory()
    torch.manual_seed(0)
    for name, channels, labels, size in NETWORKS:
        networks = [architectures.build(name, labels, channels, (size, size)) for _ in range(TOGETHER)]
        images = torch.rand(TOGETHER, BATCH, channels, size, size)
        truth = torch.randint(labels, (TOGETHER, BATCH))
        ways = {"one by one": one_by_one, "at once": at_once}
        taken: dict[str, list[int]] = {way: [] for way in ways}
        for _ in range(2):
            for way, make in ways.items():
                taken[way].append(round(measured(make(copy.deepcopy(networks), images, truth))))
        print(
            json.dumps({"network": name, "threads": torch.get_num_threads(), "microseconds an image": taken}),
            flush=True,
        )


if __name__ == "__main__":
    main()
