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

from neuralsanitizer.config import ReconstructConfig
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
        reached_goal: Whether the attack success on the images of the steps ever held the goal; no goal, no size.
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
        advance: Told of every label and step done; labels may be done before the last step.

    Returns:
        One reconstruction a label, in the order of ``labels``.
    """
    found: list[Reconstruction] = []
    for i in range(0, len(labels), config.label_batch):
        batch = labels[i : i + config.label_batch]
        found += _LabelBatch(suspect, guides, clean, batch, config=config, seed=seed).run(advance)
    return found


class _LabelBatch:
    """The state of K labels' reconstruction. Labels that are done leave the batch; what is kept of them stays."""

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
        # Everything random is drawn before the loop: nothing in a step waits for the host.
        self.draws = torch.stack(
            [sampler.draw(label, config.steps, config.images, g) for label, g in zip(labels, generators, strict=True)],
            dim=1,
        ).to(device)  # (steps, K, n)
        turn = torch.Generator().manual_seed(derive_seed(seed, "reconstruct-guides"))
        self.turns = torch.randint(max(1, len(guides)), (config.steps,), generator=turn).tolist()
        self.images = clean.images.to(device)
        self.targets = torch.tensor(labels, device=device)
        # Of all K labels:
        self.kept_mask = torch.zeros((count, height, width), device=device)
        self.kept_pattern = torch.zeros((count, channels, height, width), device=device)
        self.kept_size = torch.full((count,), torch.inf, device=device)
        self.kept_success = torch.zeros(count, device=device)
        self.last_gain = torch.zeros(count, device=device)  # step at which the mask last shrank in earnest
        self.gained_size = torch.full((count,), torch.inf, device=device)  # its size then
        # Of the labels that are still at work, ``rows`` of all:
        self.rows = torch.arange(count, device=device)
        raw = torch.full((count, height, width), config.start, device=device)
        pattern = torch.stack([torch.rand(channels, height, width, generator=g) for g in generators]).to(device)
        self.weight = torch.full((count,), config.size.start if config.size else 0.0, device=device)
        self.hits = torch.zeros(count, device=device)  # attack success, summed over the steps since the last look
        self.success = torch.zeros(count, device=device)  # its mean at the last look
        self._optimise(raw, pattern)

    def run(self, advance: Callable[[int], None] | None) -> list[Reconstruction]:
        every = self.config.size.every if self.config.size else _LOOK_EVERY
        for step in range(self.config.steps):
            self._step(step)
            if advance is not None:
                advance(len(self.rows))
            if (step + 1) % every == 0:
                self._look(step + 1, self.hits / every)
                self.hits.zero_()
                if not len(self.rows):
                    break
        if len(self.rows):
            self._keep_last(torch.ones_like(self.rows, dtype=torch.bool))
        return self._results()

    def _optimise(self, raw: Tensor, pattern: Tensor, moments: Sequence[dict[str, Tensor]] = ()) -> None:
        """Go on with these masks (k, H, W) and patterns (k, C, H, W), and Adam's moments of them."""
        self.raw, self.pattern = raw.requires_grad_(), pattern.requires_grad_()
        self.optimiser = torch.optim.Adam([self.raw, self.pattern], lr=self.config.learning_rate)
        for parameter, state in zip((self.raw, self.pattern), moments, strict=False):
            self.optimiser.state[parameter].update(state)

    def _step(self, step: int) -> None:
        config, count = self.config, len(self.rows)
        images = self.images[self.draws[step, self.rows]]  # (k, n, C, H, W)
        mask = mask_from_raw(self.raw, config.sharpness)  # (k, H, W)
        stamped = stamp(images, mask[:, None, None], self.pattern[:, None]).flatten(0, 1)  # (k*n, C, H, W)
        with autocast(self.suspect.device, fast_dtype(self.suspect.device)):
            logits = self.suspect(stamped)  # (k*n, labels)
            guided = self.guides[self.turns[step]](stamped) if self.guides else None
        wanted = self.targets[self.rows].repeat_interleave(config.images)
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
    def _look(self, step: int, success: Tensor) -> None:
        """Every few steps: keep what is smaller than ever at the goal, move the size weights, let labels go."""
        self.success = success
        size = self.config.size
        if size is None:
            return
        mask = mask_from_raw(self.raw, self.config.sharpness)
        sizes = mask.sum(dim=(1, 2))
        held = success >= size.goal
        better = held & (sizes < self.kept_size[self.rows])
        self._keep(better, mask, sizes)
        gained = self.kept_size[self.rows] < self.gained_size[self.rows] * (1 - self.config.least_gain)
        self.gained_size[self.rows[gained]] = self.kept_size[self.rows[gained]]
        self.last_gain[self.rows[gained]] = step
        moved = torch.where(held, self.weight * size.grow, self.weight / size.shrink)
        self.weight = moved.clamp(size.smallest, size.largest)
        reached = torch.isfinite(self.kept_size[self.rows])
        stalled = reached & (step - self.last_gain[self.rows] >= self.config.patience)
        hopeless = ~reached & (step >= self.config.give_up)
        self._let_go(stalled | hopeless)

    def _keep(self, which: Tensor, mask: Tensor, sizes: Tensor) -> None:
        rows = self.rows[which]
        self.kept_mask[rows], self.kept_pattern[rows] = mask[which], self.pattern[which]
        self.kept_size[rows], self.kept_success[rows] = sizes[which], self.success[which]

    def _let_go(self, done: Tensor) -> None:
        """Take labels out of the batch."""
        if not bool(done.any()):
            return
        self._keep_last(done)
        left = ~done
        moments = []
        for parameter in (self.raw, self.pattern):
            state = self.optimiser.state[parameter]
            moments.append({name: value[left] if value.ndim else value for name, value in state.items()})
        self.rows, self.weight = self.rows[left], self.weight[left]
        self.hits, self.success = self.hits[left], self.success[left]
        self._optimise(self.raw.detach()[left], self.pattern.detach()[left], moments)

    @torch.no_grad()
    def _keep_last(self, which: Tensor) -> None:
        """Of labels that never held the goal, keep what they have now."""
        which = which & torch.isinf(self.kept_size[self.rows])
        rows = self.rows[which]
        self.kept_mask[rows] = mask_from_raw(self.raw, self.config.sharpness)[which]
        self.kept_pattern[rows], self.kept_success[rows] = self.pattern[which], self.success[which]

    def _results(self) -> list[Reconstruction]:
        return [
            Reconstruction(
                Trigger(label, self.kept_mask[i].cpu().numpy(), self.kept_pattern[i].cpu().numpy()),
                bool(torch.isfinite(self.kept_size[i])),
                float(self.kept_success[i]),
            )
            for i, label in enumerate(self.labels)
        ]


_LOOK_EVERY = 10  # steps over which the last attack success is averaged where no size is sought
