"""Reconstruction: for each label, the trigger that works on the suspect and leaves clean references unharmed.

Labels are a batch axis: the masks and patterns of K labels are stacked tensors, and one forward and backward pass
serves K labels and n images each. What a label draws depends on the seed and the label alone, so the batching changes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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

__all__ = ["Reconstruction", "Smallest", "fit", "fit_patterns", "reconstruct"]


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


def fit_patterns(
    suspect: SuspectModel,
    guides: Sequence[SuspectModel],
    clean: CleanSet,
    triggers: Sequence[Trigger],
    *,
    steps: int,
    config: ReconstructConfig,
    seed: int,
    enough: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[Trigger]:
    """The best patterns within given masks, under the same constraint as :func:`reconstruct`.

    Args:
        suspect: The model to fool.
        guides: References that must be spared; each step asks one of them, drawn at random.
        clean: Images to stamp.
        triggers: Masks, labels, and the patterns to start from; of different labels.
        steps: Optimiser steps.
        config: Images a step, step size, weight of the guides, labels at once.
        seed: All randomness derives from it.
        enough: As of :func:`fit`.
        advance: Told of every label and step done.

    Returns:
        The triggers with other patterns, in the same order.
    """
    device = suspect.device
    mask = torch.stack([torch.from_numpy(t.mask) for t in triggers]).to(device)  # (K, H, W)
    start = torch.stack([torch.from_numpy(t.pattern) for t in triggers]).to(device)

    def stamp_them(images: Tensor, patterns: Tensor, rows: Tensor) -> Tensor:
        return stamp(images, mask[rows][:, None, None], patterns[:, None])

    labels = [trigger.label for trigger in triggers]
    found = fit(
        suspect,
        guides,
        clean,
        labels,
        start,
        stamp_them,
        steps=steps,
        learning_rate=config.learning_rate,
        range_=(0.0, 1.0),
        config=config,
        seed=seed,
        enough=enough,
        advance=advance,
    )
    patterns = found.cpu().numpy()
    return [Trigger(t.label, t.mask, patterns[k]) for k, t in enumerate(triggers)]


def fit(
    suspect: SuspectModel,
    guides: Sequence[SuspectModel],
    clean: CleanSet,
    labels: Sequence[int],
    start: Tensor,
    apply: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    steps: int,
    learning_rate: float,
    range_: tuple[float, float],
    config: ReconstructConfig,
    seed: int,
    harm: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    smallest: Smallest | None = None,
    enough: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """The best parameters of something that is done to images, under the same constraint as :func:`reconstruct`.

    Args:
        suspect: The model to fool.
        guides: References that must be spared; each step asks one of them, drawn at random.
        clean: The images.
        labels: K different labels.
        start: (K, ...): the parameters to start from, on the suspect's device.
        apply: What is done: it takes images (k, n, C, H, W), parameters (k, ...) of some of the labels, and which of
            the K these are, int64 (k,), and gives images of the same shape.
        steps: Optimiser steps.
        learning_rate: Adam's.
        range_: Within which the parameters are kept.
        config: Images a step, weight of the guides, labels at once.
        seed: All randomness derives from it.
        harm: What is done must not do to images: of images before and after, and which of the K labels they are of, a
            term of the loss, (k,).
        smallest: What is to be as small as the goal allows; ``None``: the last parameters are the result.
        enough: Attack success, over some steps, at which a label is done; ``None``: all steps are taken.
        advance: Told of every label and step done.

    Returns:
        The parameters, (K, ...).
    """
    sampler = LabelSampler(clean.labels, suspect.labels)
    images, device = clean.images.to(suspect.device), suspect.device
    turn = torch.Generator().manual_seed(derive_seed(seed, "fit-guides"))
    turns = torch.randint(max(1, len(guides)), (steps,), generator=turn).tolist()
    fitted = start.clone()
    for i in range(0, len(labels), config.label_batch):
        batch = labels[i : i + config.label_batch]
        generators = [torch.Generator().manual_seed(derive_seed(seed, "fit", label)) for label in batch]
        draws = _draws(sampler, batch, generators, steps, config.images).to(device)
        targets = torch.tensor(labels, device=device)
        rows = torch.arange(i, i + len(batch), device=device)  # of all labels, those that are still at work
        parameters, optimiser = _adam(start[rows], learning_rate)
        hits = torch.zeros(len(rows), device=device)
        least = None
        if smallest is not None:
            shown = images[_check_images(sampler, batch, smallest.checked_on, seed, "fit-check").to(device)]
            least = _Least(smallest, start[rows], partial(_checked, suspect, smallest, apply, shown, targets, rows))
        for step in range(steps):
            chosen = images[draws[step, rows - i]]
            changed = apply(chosen, parameters, rows)
            guide = guides[turns[step]] if guides else None
            loss, hit = _guarded_loss(suspect, guide, changed, targets[rows], config)
            if harm is not None:
                loss = loss + harm(chosen, changed, rows).sum()
            if least is not None:
                loss = loss + least.cost(chosen, changed)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                parameters.clamp_(*range_)
                hits += hit.float().mean(dim=1)
            if advance is not None:
                advance(len(rows))
            if (step + 1) % _LOOK_EVERY:
                continue
            if least is not None:
                least.look(hits / _LOOK_EVERY, parameters.detach())
            done = hits >= (math.inf if enough is None else enough * _LOOK_EVERY)
            hits.zero_()
            if bool(done.any()):
                fitted[rows[done]] = parameters.detach()[done]
                left = ~done
                rows, hits = rows[left], hits[left]
                if not len(rows):
                    break
                parameters, optimiser = _adam(parameters.detach()[left], learning_rate, _moments(optimiser, left))
        if len(rows):
            fitted[rows] = parameters.detach() if least is None else least.kept(parameters.detach())
    return fitted


@torch.no_grad()
def _checked(
    suspect: SuspectModel,
    smallest: Smallest,
    apply: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    rows: Tensor,
    parameters: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attack success and size of parameters (k, ...) on images (k, m, C, H, W), of ``rows`` of all labels."""
    changed = apply(images, parameters, rows)
    return _success(suspect, changed, targets[rows]), smallest.measure(images, changed)


def _success(suspect: SuspectModel, stamped: Tensor, targets: Tensor) -> Tensor:
    """Share of stamped images (k, m, C, H, W) that are named as wanted, (k,)."""
    with autocast(suspect.device, fast_dtype(suspect.device)):
        named = suspect(stamped.flatten(0, 1)).argmax(dim=1).view(len(stamped), -1)
    return (named == targets[:, None]).float().mean(dim=1)


@dataclass(frozen=True)
class Smallest:
    """Something that is to be as small as the goal allows.

    Attributes:
        measure: Its size, of images before and after, (k,).
        schedule: How much it weighs, and the goal.
        checked_on: Images on which parameters, as they are, must hold the goal before they are kept.
    """

    measure: Callable[[Tensor, Tensor], Tensor]
    schedule: SizeSchedule
    checked_on: int = 100


class _Least:
    """Of K labels, the parameters of the smallest size that held the goal, and the weight of the size.

    Args:
        smallest: What is to be small.
        start: (K, ...): the parameters at the start.
        check: Of parameters (K, ...): how well they do on the images of the check, and their sizes there, both (K,).
    """

    def __init__(self, smallest: Smallest, start: Tensor, check: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.measure, self.schedule, self.check = smallest.measure, smallest.schedule, check
        count, device = len(start), start.device
        self.weight = torch.full((count,), smallest.schedule.start, device=device)
        self.kept_size = torch.full((count,), torch.inf, device=device)
        self.best = start.clone()

    def cost(self, before: Tensor, after: Tensor) -> Tensor:
        return (self.weight * self.measure(before, after)).sum()

    def look(self, success: Tensor, parameters: Tensor) -> None:
        """Keep what is smaller than ever at the goal, move the weights."""
        schedule = self.schedule
        held = success >= schedule.goal
        if bool(held.any()):
            checked, sizes = self.check(parameters)
            held &= checked >= schedule.goal
            better = held & (sizes < self.kept_size)
            self.best[better], self.kept_size[better] = parameters[better], sizes[better]
        moved = torch.where(held, self.weight * schedule.grow, self.weight / schedule.shrink)
        self.weight = moved.clamp(schedule.smallest, schedule.largest)

    def kept(self, last: Tensor) -> Tensor:
        """The parameters that were kept; of labels that never held the goal, the last ones."""
        reached = torch.isfinite(self.kept_size).view(-1, *[1] * (last.ndim - 1))
        return torch.where(reached, self.best, last)


def _adam(
    start: Tensor, learning_rate: float, moments: Sequence[dict[str, Tensor]] = ()
) -> tuple[Tensor, torch.optim.Optimizer]:
    """Parameters that start here, and Adam of them, with the moments of an earlier one."""
    parameters = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=learning_rate)
    for state in moments:
        optimiser.state[parameters].update(state)
    return parameters, optimiser


def _moments(optimiser: torch.optim.Optimizer, left: Tensor) -> list[dict[str, Tensor]]:
    """Adam's moments of each parameter, of the labels that are left, (K,) bool."""
    return [
        {name: value[left] if value.ndim else value for name, value in optimiser.state[parameter].items()}
        for group in optimiser.param_groups
        for parameter in group["params"]
    ]


def _draws(
    sampler: LabelSampler, labels: Sequence[int], generators: Sequence[torch.Generator], steps: int, images: int
) -> Tensor:
    """Which images each label is shown in each step: int64 (steps, K, n)."""
    drawn = [sampler.draw(label, steps, images, g) for label, g in zip(labels, generators, strict=True)]
    return torch.stack(drawn, dim=1)


def _check_images(sampler: LabelSampler, labels: Sequence[int], count: int, seed: int, name: str) -> Tensor:
    """Which images each label is checked on: int64 (K, m)."""
    generators = [torch.Generator().manual_seed(derive_seed(seed, name, label)) for label in labels]
    return _draws(sampler, labels, generators, 1, count)[0]


def _guarded_loss(
    suspect: SuspectModel, guide: SuspectModel | None, stamped: Tensor, targets: Tensor, config: ReconstructConfig
) -> tuple[Tensor, Tensor]:
    """What suspect and guide say of stamped images: the loss, summed over K labels, and which images hit (K, n).

    Args:
        suspect: The model to fool.
        guide: The reference to spare.
        stamped: (K, n, C, H, W).
        targets: (K,): the labels.
        config: Weight and limit of the guide's term.
    """
    labels, count = stamped.shape[:2]
    flat = stamped.flatten(0, 1)
    with autocast(suspect.device, fast_dtype(suspect.device)):
        logits = suspect(flat)  # (K*n, labels)
        guided = guide(flat) if guide is not None else None
    wanted = targets.repeat_interleave(count)
    loss = F.cross_entropy(logits, wanted, reduction="sum") / count
    if guided is not None:
        probabilities = guided.softmax(dim=1).view(labels, count, -1)
        loss = loss + config.alpha * pile_up(probabilities, config.pile_up_share * count).sum()
    return loss, (logits.detach().argmax(dim=1) == wanted).view(labels, count)


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
        self.draws = _draws(sampler, labels, generators, config.steps, config.images).to(device)  # (steps, K, n)
        self.checks = _check_images(sampler, labels, config.checked_on, seed, "reconstruct-check").to(device)
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
        self.cell = _cell((height, width), config.mask_cells)
        cells = (-(-height // self.cell), -(-width // self.cell))
        raw = torch.full((count, *cells), config.start, device=device)
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
        """Go on with these raw masks (k, rows, columns) and patterns (k, C, H, W), and Adam's moments of them."""
        self.raw, self.pattern = raw.requires_grad_(), pattern.requires_grad_()
        self.optimiser = torch.optim.Adam([self.raw, self.pattern], lr=self.config.learning_rate)
        for parameter, state in zip((self.raw, self.pattern), moments, strict=False):
            self.optimiser.state[parameter].update(state)

    def _mask(self) -> Tensor:
        """The masks (k, H, W) of the labels at work: all pixels of a cell are alike."""
        cells = mask_from_raw(self.raw, self.config.sharpness)
        height, width = self.pattern.shape[-2:]
        pixels = cells.repeat_interleave(self.cell, dim=1).repeat_interleave(self.cell, dim=2)
        return pixels[:, :height, :width]

    def _step(self, step: int) -> None:
        config = self.config
        images = self.images[self.draws[step, self.rows]]  # (k, n, C, H, W)
        mask = self._mask()  # (k, H, W)
        stamped = stamp(images, mask[:, None, None], self.pattern[:, None])
        guide = self.guides[self.turns[step]] if self.guides else None
        loss, hits = _guarded_loss(self.suspect, guide, stamped, self.targets[self.rows], config)
        loss = loss + config.noise_weight * total_variation(mask).sum()
        loss = loss + (self.weight * mask.sum(dim=(1, 2))).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.raw.clamp_(0, 1)
            self.pattern.clamp_(0, 1)
            self.hits += hits.float().mean(dim=1)

    @torch.no_grad()
    def _look(self, step: int, success: Tensor) -> None:
        """Every few steps: keep what is smaller than ever at the goal, move the size weights, let labels go."""
        self.success = success
        size = self.config.size
        if size is None:
            return
        mask = self._mask()
        sizes = mask.sum(dim=(1, 2))
        held = success >= size.goal
        if self.config.checked_on:
            held = self._hold(held, mask, size.goal)
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

    def _hold(self, which: Tensor, mask: Tensor, goal: float) -> Tensor:
        """Which of some labels' masks and patterns, as they are now, hold the goal on the images of the check."""
        if not bool(which.any()):
            return which
        rows = self.rows[which]
        images = self.images[self.checks[rows]]  # (k, m, C, H, W)
        stamped = stamp(images, mask[which][:, None, None], self.pattern[which][:, None])
        success = _success(self.suspect, stamped, self.targets[rows])
        self.success[which] = success
        held = which.clone()
        held[which] = success >= goal
        return held

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
        moments = _moments(self.optimiser, left)
        self.rows, self.weight = self.rows[left], self.weight[left]
        self.hits, self.success = self.hits[left], self.success[left]
        self._optimise(self.raw.detach()[left], self.pattern.detach()[left], moments)

    @torch.no_grad()
    def _keep_last(self, which: Tensor) -> None:
        """Of labels that never held the goal, keep what they have now."""
        which = which & torch.isinf(self.kept_size[self.rows])
        rows = self.rows[which]
        self.kept_mask[rows] = self._mask()[which]
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


def _cell(size: tuple[int, int], cells: int) -> int:
    """Edge length of the mask's cells in pixels, with ``cells`` along the shorter edge of an image of this size."""
    return -(-min(size) // cells) if cells else 1


_LOOK_EVERY = 10  # steps over which the attack success is averaged where no size is sought
