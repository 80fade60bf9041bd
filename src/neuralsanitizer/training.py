"""The only fit loop: attacks, references and repairs all train through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import AttackConfig
from neuralsanitizer.errors import ModelError
from neuralsanitizer.functional.precision import autocast, fast_dtype

__all__ = ["Sampler", "Schedule", "fit", "shuffled_batches", "steps_of"]

Sampler = Callable[[], tuple[Tensor, Tensor]]
"""Gives the next batch: network inputs (batch, channels, height, width) and targets (batch,) or (batch, labels)."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Adam's; the peak of it where ``one_cycle``.
        one_cycle: Warm up over the first 30 % of the steps and anneal to nearly nothing at the end: reaches in a few
            hundred steps what a constant rate needs thousands for. ``False``: constant, as in the papers.
        weight_decay: Decoupled (AdamW); 0 is plain Adam.
        check_every: How many steps lie between two calls of ``stop``.
    """

    steps: int
    learning_rate: float
    one_cycle: bool = False
    weight_decay: float = 0.0
    check_every: int = 50


def fit(
    module: nn.Module,
    sample: Sampler,
    schedule: Schedule,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    parameters: Iterable[nn.Parameter] | None = None,
    stop: Callable[[], bool] | None = None,
    advance: Callable[[int], None] | None = None,
) -> int:
    """Train a network in place, and leave it frozen and in evaluation mode.

    Args:
        module: The network; gives logits.
        sample: Source of batches, already normalised and on the network's device.
        schedule: How long and how fast.
        loss: Of float32 logits (batch, labels) and targets.
        parameters: Train these only; all by default.
        stop: Asked every ``schedule.check_every`` steps, the network in evaluation mode; ``True`` ends the training.
        advance: Told of every step done.

    Returns:
        Number of steps taken.

    Raises:
        ModelError: The loss is not finite any more.
    """
    module.requires_grad_(False)  # noqa: FBT003 - torch's signature
    trained = list(module.parameters() if parameters is None else parameters)
    for parameter in trained:
        parameter.requires_grad_(True)  # noqa: FBT003
    device = trained[0].device
    dtype = fast_dtype(device)
    # Fused: one pass over all weights; the separate ones take a tenth of a step where convolutions are fast (measured).
    optimiser = torch.optim.AdamW(trained, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    rate = _rate(optimiser, schedule)
    losses = torch.zeros((), device=device)  # summed on the device: reading it each step would make the host wait
    taken = 0
    module.train()
    while taken < schedule.steps:
        inputs, targets = sample()
        with autocast(device, dtype):
            outputs = module(inputs)
        value = loss(outputs.float(), targets)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        rate.step()
        losses += value.detach()
        taken += 1
        if advance is not None:
            advance(1)
        if taken % schedule.check_every == 0 or taken == schedule.steps:
            if not torch.isfinite(losses):
                raise ModelError(f"training diverged (loss not finite after {taken} steps): lower the learning rate")
            module.eval()
            if stop is not None and stop():
                break
            module.train()
    module.requires_grad_(False)  # noqa: FBT003
    module.eval()
    return taken


def _rate(optimiser: torch.optim.Optimizer, schedule: Schedule) -> torch.optim.lr_scheduler.LRScheduler:
    if not schedule.one_cycle:
        return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    steps = max(schedule.steps, 2)
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.learning_rate, steps, cycle_momentum=False)


def steps_of(config: AttackConfig, images: int) -> int:
    """How many optimiser steps an attack's epochs are."""
    return max(1, config.epochs * images // min(config.batch, images))


def shuffled_batches(inputs: Tensor, targets: Tensor, batch: int, generator: Generator) -> Sampler:
    """Batches of a data set in shuffled order, reshuffled at each pass; a pass's incomplete last batch is left out.

    Args:
        inputs: (N, ...); stays where it is, batches are index arithmetic on it.
        targets: (N, ...).
        batch: Images a batch; at most N are given.
        generator: CPU generator of the order.
    """
    count, batch = len(inputs), min(batch, len(inputs))
    order = torch.empty(0, dtype=torch.int64)

    def sample() -> tuple[Tensor, Tensor]:
        nonlocal order
        if len(order) < batch:
            order = torch.randperm(count, generator=generator)
        chosen, order = order[:batch].to(inputs.device), order[batch:]
        return inputs[chosen], targets[chosen]

    return sample
