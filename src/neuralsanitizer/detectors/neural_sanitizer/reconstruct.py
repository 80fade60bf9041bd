"""Reconstruction: for each label, the trigger that works on the suspect and leaves clean references unharmed.

Labels are a batch axis: the masks and patterns of K labels are stacked tensors, and one forward and backward pass
serves K labels and n images each. What a label draws depends on the seed and the label alone, so the batching changes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.config import ReconstructConfig, SizeSchedule
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import LabelSampler, derive_seed
from neuralsanitizer.detectors.neural_sanitizer.smallest import SizeSearch
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
    for _, batch in _batches(suspect, labels, config):
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
    turns = _turns(len(guides), steps, derive_seed(seed, "fit-guides"))
    fitted = start.clone()
    every = _LOOK_EVERY if smallest is None else smallest.schedule.every
    for i, batch in _batches(suspect, labels, config):
        generators = [torch.Generator().manual_seed(derive_seed(seed, "fit", label)) for label in batch]
        draws = _draws(sampler, batch, generators, steps, config.images).to(device)
        targets = torch.tensor(labels, device=device)
        rows = torch.arange(i, i + len(batch), device=device)  # of all labels, those that are still at work
        parameters, optimiser = _adam(start[rows], learning_rate)
        hits = torch.zeros(len(rows), device=device)
        least = None
        if smallest is not None:
            checks = _check_images(sampler, batch, smallest.schedule.checked_on, seed, "fit-check").to(device)
            check = partial(_checked, suspect, smallest, apply, images[checks], targets, i)
            least = _Least(smallest, start[rows], check)
        for step in range(steps):
            chosen = images[draws[step, rows - i]]
            changed = apply(chosen, parameters, rows)
            guide = guides[turns[step]] if guides else None
            loss, hit = _guarded_loss(suspect, guide, changed, targets[rows], config)
            if harm is not None:
                loss = loss + harm(chosen, changed, rows).sum()
            if least is not None:
                loss = loss + least.cost(rows - i, chosen, changed)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                parameters.clamp_(*range_)
                hits += hit.float().mean(dim=1)
            if advance is not None:
                advance(len(rows))
            if (step + 1) % every:
                continue
            done = hits >= (math.inf if enough is None else enough * every)
            if least is not None:
                done |= least.look(rows - i, step + 1, hits / every, parameters.detach())
            hits.zero_()
            if bool(done.any()):
                last = parameters.detach()[done]
                fitted[rows[done]] = last if least is None else least.kept(rows[done] - i, last)
                left = ~done
                rows, hits = rows[left], hits[left]
                if not len(rows):
                    break
                parameters, optimiser = _adam(parameters.detach()[left], learning_rate, _moments(optimiser, left))
        if len(rows):
            fitted[rows] = parameters.detach() if least is None else least.kept(rows - i, parameters.detach())
    return fitted


@torch.no_grad()
def _checked(
    suspect: SuspectModel,
    smallest: Smallest,
    apply: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    first: int,
    rows: Tensor,
    parameters: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attack success and size, both (k,), of parameters (k, ...).

    Args:
        suspect: The model to fool.
        smallest: What their size is.
        apply: As of :func:`fit`.
        images: Of each label of the batch, those that it is checked on, (B, m, C, H, W).
        targets: All labels.
        first: The number of the batch's first one among all.
        rows: Which of the batch the parameters are of, int64 (k,).
        parameters: As they are.
    """
    shown = images[rows]
    changed = apply(shown, parameters, rows + first)
    return _success(suspect, changed, targets[rows + first]), smallest.measure(shown, changed)


def _success(suspect: SuspectModel, stamped: Tensor, targets: Tensor) -> Tensor:
    """Share of stamped images (k, m, C, H, W) that are named as wanted, (k,)."""
    named = suspect.predict(stamped.flatten(0, 1), fast=True).view(len(stamped), -1)
    return (named == targets[:, None]).float().mean(dim=1)


def _batches(
    suspect: SuspectModel, labels: Sequence[int], config: ReconstructConfig
) -> Iterator[tuple[int, Sequence[int]]]:
    """Labels that share a forward pass of suspect and guide, with the place of the first one among all.

    There are fewer of them where their images would fill the memory.
    """
    of_label = 2 * config.images
    size = max(1, suspect.images_at_once(config.label_batch * of_label) // of_label)
    return ((i, labels[i : i + size]) for i in range(0, len(labels), size))


@dataclass(frozen=True)
class Smallest:
    """Something that is to be as small as the goal allows.

    Attributes:
        measure: Its size, of images before and after, (k,).
        schedule: How much it weighs, and the goal.
    """

    measure: Callable[[Tensor, Tensor], Tensor]
    schedule: SizeSchedule


class _Least:
    """Of a batch's labels, the parameters of the smallest size that held the goal.

    Args:
        smallest: What is to be small.
        start: (B, ...): the parameters at the start.
        check: Of some of the labels, int64 (k,), and their parameters (k, ...): how well they do on the images of the
            check, and their sizes there, both (k,).
    """

    def __init__(
        self, smallest: Smallest, start: Tensor, check: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        self.measure, self.goal, self.check = smallest.measure, smallest.schedule.goal, check
        self.search = SizeSearch(len(start), smallest.schedule, start.device)
        self.best = start.clone()

    def cost(self, rows: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return (self.search.weight[rows] * self.measure(before, after)).sum()

    def look(self, rows: Tensor, step: int, success: Tensor, parameters: Tensor) -> Tensor:
        """Keep what is smaller than ever at the goal; which labels are done, bool (k,)."""
        held, sizes = success >= self.goal, torch.full_like(success, torch.inf)
        if bool(held.any()):
            checked, sizes[held] = self.check(rows[held], parameters[held])
            held[held.clone()] = checked >= self.goal
        better = self.search.look(rows, step, held, sizes)
        self.best[rows[better]] = parameters[better]
        return self.search.done(rows, step)

    def kept(self, rows: Tensor, last: Tensor) -> Tensor:
        """The parameters that were kept; of labels that never held the goal, the last ones."""
        reached = self.search.reached(rows).view(-1, *[1] * (last.ndim - 1))
        return torch.where(reached, self.best[rows], last)


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


def _turns(guides: int, steps: int, seed: int) -> list[int]:
    """Which of the guides is asked in each step."""
    generator = torch.Generator().manual_seed(seed)
    return [int(one) for one in torch.randint(max(1, guides), (steps,), generator=generator)]


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
        self.search = SizeSearch(count, config.size, device) if config.size else None
        checked = config.size.checked_on if config.size else 0
        self.checks = _check_images(sampler, labels, checked, seed, "reconstruct-check").to(device)
        self.turns = _turns(len(guides), config.steps, derive_seed(seed, "reconstruct-guides"))
        self.images = clean.images.to(device)
        self.targets = torch.tensor(labels, device=device)
        # Of all K labels:
        self.kept_mask = torch.zeros((count, height, width), device=device)
        self.kept_pattern = torch.zeros((count, channels, height, width), device=device)
        self.kept_success = torch.zeros(count, device=device)
        # Of the labels that are still at work, ``rows`` of all:
        self.rows = torch.arange(count, device=device)
        self.cell = _cell((height, width), config.mask_cells)
        cells = (-(-height // self.cell), -(-width // self.cell))
        raw = torch.full((count, *cells), config.start, device=device)
        pattern = torch.stack([torch.rand(channels, height, width, generator=g) for g in generators]).to(device)
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
        if self.search is not None:
            loss = loss + (self.search.weight[self.rows] * mask.sum(dim=(1, 2))).sum()
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
        if self.search is None:
            return
        mask = self._mask()
        sizes = mask.sum(dim=(1, 2))
        held = self._hold(success >= self.search.schedule.goal, mask, self.search.schedule.goal)
        self._keep(self.search.look(self.rows, step, held, sizes), mask)
        self._let_go(self.search.done(self.rows, step))

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

    def _keep(self, which: Tensor, mask: Tensor) -> None:
        rows = self.rows[which]
        self.kept_mask[rows], self.kept_pattern[rows] = mask[which], self.pattern[which]
        self.kept_success[rows] = self.success[which]

    def _let_go(self, done: Tensor) -> None:
        """Take labels out of the batch."""
        if not bool(done.any()):
            return
        self._keep_last(done)
        left = ~done
        moments = _moments(self.optimiser, left)
        self.rows, self.hits, self.success = self.rows[left], self.hits[left], self.success[left]
        self._optimise(self.raw.detach()[left], self.pattern.detach()[left], moments)

    @torch.no_grad()
    def _keep_last(self, which: Tensor) -> None:
        """Of labels that never held the goal, keep what they have now."""
        self._keep(which & ~self._reached(self.rows), self._mask())

    def _reached(self, rows: Tensor) -> Tensor:
        """Which of the labels ``rows`` (k,) ever held the goal, bool (k,); without a size term, there is none."""
        return torch.zeros_like(rows, dtype=torch.bool) if self.search is None else self.search.reached(rows)

    def _results(self) -> list[Reconstruction]:
        reached = self._reached(torch.arange(len(self.labels), device=self.targets.device))
        return [
            Reconstruction(
                Trigger(label, self.kept_mask[i].cpu().numpy(), self.kept_pattern[i].cpu().numpy()),
                bool(reached[i]),
                float(self.kept_success[i]),
            )
            for i, label in enumerate(self.labels)
        ]


def _cell(size: tuple[int, int], cells: int) -> int:
    """Edge length of the mask's cells in pixels, with ``cells`` along the shorter edge of an image of this size."""
    return -(-min(size) // cells) if cells else 1


_LOOK_EVERY = 10  # steps over which the attack success is averaged where no size is sought
