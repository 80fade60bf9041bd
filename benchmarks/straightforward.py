"""NeuralSanitizer as one would write it down from the paper: one reference, one label, one step after the other.

It exists to be timed beside the package, in the same run::

    neuralsanitizer bench speed --data DATA --beside benchmarks/straightforward.py:scan

Numbers are the paper's (patches on MNIST and GTSRB), in plain float32; it shares no code with the package.
"""

from __future__ import annotations

import copy
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

SUBSETS = [set(c) for size in (1, 2, 3) for c in combinations((0, 1, 2), size)]  # of the last three layers
BATCH, FROZEN, FROZEN_MANY, STEPS, LEARNING_RATE = 100, 300, 600, 3000, 1e-3
CHECK, ENOUGH = 200, 0.99
SEARCH_STEPS, IMAGES, RATE, ALPHA, BETA, PILE, SHARPNESS = 100, 10, 0.1, 1.0, 0.005, 2.0, 10.0
LEAST_SUCCESS, KEEP, TESTED, TRANSFERS = 0.6, 0.95, 100, 0.4


def scan(module: nn.Module, images: Tensor, labels: Tensor, count: int) -> list[int]:
    """The labels found infected.

    Args:
        module: The suspect, which takes normalised images.
        images: Clean images (N, C, H, W), normalised.
        labels: int64 (N,).
        count: How many labels there are.
    """
    torch.manual_seed(0)
    module = module.eval().requires_grad_(False)
    tuned = {frozenset(subset): tune(module, images, labels, subset) for subset in SUBSETS}
    guide = tuned.pop(frozenset({0, 1, 2}))
    low, high = float(images.min()), float(images.max())
    infected = []
    for target in range(count):
        others = (labels != target).nonzero().flatten()
        mask, pattern = reconstruct(module, guide, images[others], labels[others], target, (low, high))
        if success(module, images[others], mask, pattern, target) < LEAST_SUCCESS:
            continue
        mask = preserve(module, images[others], mask, pattern, target)
        rates = [success(reference, images[others], mask, pattern, target) for reference in tuned.values()]
        if max(rates) < TRANSFERS:
            infected.append(target)
    return infected


def tune(module: nn.Module, images: Tensor, labels: Tensor, subset: set[int]) -> nn.Module:
    """A reference: some of the last three layers made anew, trained alone, then all layers."""
    reference = copy.deepcopy(module).train()
    layers = [m for m in reference.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-3:]
    fresh = [p for number in subset for p in layers[number].parameters()]
    for parameter in fresh:
        parameter.data.uniform_(-0.1, 0.1)
    reference.requires_grad_(False)
    for parameter in fresh:
        parameter.requires_grad_(True)
    train(reference, fresh, images, labels, FROZEN if len(subset) == 1 else FROZEN_MANY, stop=False)
    reference.requires_grad_(True)
    train(reference, list(reference.parameters()), images, labels, STEPS, stop=True)
    return reference.eval().requires_grad_(False)


def train(
    model: nn.Module, parameters: list[nn.Parameter], images: Tensor, labels: Tensor, steps: int, *, stop: bool
) -> None:
    """Adam on batches, until a check says that it is enough."""
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if stop and step % 50 == 49:
            model.eval()
            with torch.no_grad():
                right = (model(images[:CHECK]).argmax(1) == labels[:CHECK]).float().mean()
            model.train()
            if right > ENOUGH:
                break


def reconstruct(
    module: nn.Module, guide: nn.Module, images: Tensor, labels: Tensor, target: int, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Mask (H, W) and pattern (C, H, W) that work on the suspect and leave the guide unharmed."""
    raw = torch.zeros(images.shape[-2:], requires_grad=True)
    pattern = torch.empty(images.shape[1:]).uniform_(*bounds).requires_grad_()
    optimiser = torch.optim.Adam([raw, pattern], lr=RATE)
    present = labels.unique()
    for _ in range(SEARCH_STEPS):
        drawn = present[torch.randperm(len(present))][:IMAGES]
        rows = [(labels == label).nonzero().flatten() for label in drawn]
        chosen = torch.stack([own[torch.randint(len(own), ())] for own in rows])
        mask = (torch.tanh(SHARPNESS * (raw - 0.5)) + 1) / 2
        stamped = images[chosen] * (1 - mask) + pattern * mask
        attack = F.cross_entropy(module(stamped), torch.full((len(chosen),), target))
        piled = F.relu(guide(stamped).softmax(1).sum(0) - PILE).sum()
        noise = (
            (mask[:, 1:] - mask[:, :-1]).abs().sum()
            + (mask[1:] - mask[:-1]).abs().sum()
            + (mask[1:, 1:] - mask[:-1, :-1]).abs().sum()
            + (mask[1:, :-1] - mask[:-1, 1:]).abs().sum()
        )
        optimiser.zero_grad()
        (attack + ALPHA * piled + BETA * noise).backward()
        optimiser.step()
        with torch.no_grad():
            raw.clamp_(0, 1)
            pattern.clamp_(*bounds)
    with torch.no_grad():
        return (torch.tanh(SHARPNESS * (raw - 0.5)) + 1) / 2, pattern.detach()


@torch.no_grad()
def success(model: nn.Module, images: Tensor, mask: Tensor, pattern: Tensor, target: int) -> float:
    """Attack success on some images of other labels."""
    stamped = images[torch.randperm(len(images))[:TESTED]] * (1 - mask) + pattern * mask
    return float((model(stamped).argmax(1) == target).float().mean())


def preserve(module: nn.Module, images: Tensor, mask: Tensor, pattern: Tensor, target: int) -> Tensor:
    """Drop what Grad-CAM leaves cold, in steps of a hundredth, as far as the trigger still works."""
    convolution = [m for m in module.modules() if isinstance(m, nn.Conv2d)][-1]
    kept: list[Tensor] = []
    handle = convolution.register_forward_hook(lambda _, __, output: kept.append(output))
    stamped = (images[:TESTED] * (1 - mask) + pattern * mask).requires_grad_()
    score = module(stamped)[:, target].sum()
    handle.remove()
    (slope,) = torch.autograd.grad(score, kept[0])
    heat = F.relu((slope.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)).mean(0, keepdim=True)
    heat = F.interpolate(heat, mask.shape, mode="bilinear")[0, 0].detach()
    heat = heat / heat.max().clamp_min(1e-12)
    goal, best = KEEP * success(module, images, mask, pattern, target), mask
    for step in range(101):
        tried = mask * (heat >= step / 100)
        if success(module, images, tried, pattern, target) < goal:
            break
        best = tried
    return best
