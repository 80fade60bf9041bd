"""Reconstruction: for each label, the trigger that works on the suspect and leaves clean references unharmed.

Labels are a batch axis: the masks and patterns of K labels are stacked tensors, and one forward and backward pass
serves K labels and n images each. What a label draws depends on the seed and the label alone, so the batching changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import ReconstructConfig, SizeSchedule
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import LabelSampler, derive_seed
from neuralsanitizer.functional import mask_from_raw, pile_up, stamp, total_variation
from neuralsanitizer.functional.precision import autocast, fast_dtype
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger

__all__ = ["Reconstruction", "reconstruct"]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What the reconstruction of one label gave.

    Attributes:
        trigger: The smallest mask that held the goal; the last one if none did, or if no size was sought.
        reached_goal: Whether the attack success on the images of the steps ever held the goal.
        fitted_success: Attack success over the steps that the trigger is from, [0, 1].
    """

    trigger: Trigger
    reached_goal: bool
    fitted_success: float


def reconstruct(
    suspect: SuspectModel,
    guides: Sequence[SuspectModel],
    clean: CleanSet,
    labels: Sequence[int],
    *,
    config: ReconstructConfig,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> list[Reconstruction]:
    """Reconstruct a potential trigger for each label.

    Args:
        suspect: The model under examination.
        guides: References that the trigger must not work on; each step asks one of them, drawn at random.
        clean: Images to stamp.
        labels: The labels to reconstruct for.
        config: Settings.
        seed: The scan's seed.
        advance: Told of every label and step done.

    Returns:
        One reconstruction a label, in the order of ``labels``.
    """
    found: list[Reconstruction] = []
    for i in range(0, len(labels), config.label_batch):
        batch = labels[i : i + config.label_batch]
        found += _LabelBatch(suspect, guides, clean, batch, config=config, seed=seed).run(advance)
    return found


class _LabelBatch:
    """The state of K labels' reconstruction."""

    def __init__(
        self,
        suspect: SuspectModel,
        guides: Sequence[SuspectModel],
        clean: CleanSet,
        labels: Sequence[int],
        *,
        config: ReconstructConfig,
        seed: int,
    ) -> None:
        self.suspect, self.guides, self.config, self.labels = suspect, guides, config, labels
        device, count = suspect.device, len(labels)
        channels, height, width = suspect.input_shape
        sampler = LabelSampler(clean.labels, suspect.labels)
        generators = [torch.Generator().manual_seed(derive_seed(seed, "reconstruct", label)) for label in labels]
        # Everything random is drawn before the loop: nothing in it waits for the host.
        self.draws = torch.stack(
            [sampler.draw(label, config.steps, config.images, g) for label, g in zip(labels, generators, strict=True)],
            dim=1,
        ).to(device)  # (steps, K, n)
        turn = torch.Generator().manual_seed(derive_seed(seed, "reconstruct-guides"))
        self.turns = torch.randint(max(1, len(guides)), (config.steps,), generator=turn).tolist()
        self.images = clean.images.to(device)
        self.targets = torch.tensor(labels, device=device)
        self.raw = torch.full((count, height, width), config.start, device=device).requires_grad_()
        self.pattern = torch.stack([torch.rand(channels, height, width, generator=g) for g in generators]).to(device)
        self.pattern.requires_grad_()
        self.optimiser = torch.optim.Adam([self.raw, self.pattern], lr=config.learning_rate)
        self.weight = torch.full((count,), config.size.start if config.size else 0.0, device=device)
        self.hits = torch.zeros(count, device=device)
        self.best_mask = torch.zeros((count, height, width), device=device)
        self.best_pattern = torch.zeros_like(self.pattern)
        self.best_size = torch.full((count,), torch.inf, device=device)
        self.best_success = torch.zeros(count, device=device)

    def run(self, advance: Callable[[int], None] | None) -> list[Reconstruction]:
        for step in range(self.config.steps):
            self._step(step)
            every = self.config.size.every if self.config.size else 10
            if (step + 1) % every == 0:
                self._look(self.hits / every, self.config.size)
                self.last_success = self.hits / every
                self.hits.zero_()
            if advance is not None:
                advance(len(self.labels))
        return self._results()

    def _step(self, step: int) -> None:
        config, count = self.config, len(self.labels)
        images = self.images[self.draws[step]]  # (K, n, C, H, W)
        mask = mask_from_raw(self.raw, config.sharpness)  # (K, H, W)
        stamped = stamp(images, mask[:, None, None], self.pattern[:, None]).flatten(0, 1)  # (K*n, C, H, W)
        with autocast(self.suspect.device, fast_dtype(self.suspect.device)):
            logits = self.suspect(stamped)  # (K*n, labels)
            guided = self.guides[self.turns[step]](stamped) if self.guides else None
        wanted = self.targets.repeat_interleave(config.images)
        loss = F.cross_entropy(logits, wanted, reduction="sum") / config.images
        if guided is not None:
            probabilities = guided.softmax(dim=1).view(count, config.images, -1)
            loss = loss + config.alpha * pile_up(probabilities, config.pile_up_share * config.images).sum()
        loss = loss + config.noise_weight * total_variation(mask).sum()
        loss = loss + (self.weight * mask.sum(dim=(1, 2))).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.raw.clamp_(0, 1)
            self.pattern.clamp_(0, 1)
            self.hits += (logits.argmax(dim=1) == wanted).view(count, -1).float().mean(dim=1)

    @torch.no_grad()
    def _look(self, success: Tensor, size: SizeSchedule | None) -> None:
        """Every few steps: keep what is smaller than ever at the goal, and move the size weights."""
        goal = size.goal if size else 1.0
        mask = mask_from_raw(self.raw, self.config.sharpness)
        sizes = mask.sum(dim=(1, 2))
        held = success >= goal
        better = held & (sizes < self.best_size)
        self.best_mask = torch.where(better[:, None, None], mask, self.best_mask)
        self.best_pattern = torch.where(better[:, None, None, None], self.pattern, self.best_pattern)
        self.best_success = torch.where(better, success, self.best_success)
        self.best_size = torch.where(better, sizes, self.best_size)
        if size is not None:
            moved = torch.where(held, self.weight * size.grow, self.weight / size.shrink)
            self.weight = moved.clamp(size.smallest, size.largest)

    @torch.no_grad()
    def _results(self) -> list[Reconstruction]:
        reached = torch.isfinite(self.best_size)
        kept = reached if self.config.size else torch.zeros_like(reached)
        mask = torch.where(kept[:, None, None], self.best_mask, mask_from_raw(self.raw, self.config.sharpness))
        pattern = torch.where(kept[:, None, None, None], self.best_pattern, self.pattern)
        success = torch.where(kept, self.best_success, self.last_success)
        return [
            Reconstruction(
                Trigger(label, mask[i].cpu().numpy(), pattern[i].cpu().numpy()), bool(reached[i]), float(success[i])
            )
            for i, label in enumerate(self.labels)
        ]
