"""The smallest thing that reaches a goal: a weight on the size that grows while the goal is held and falls when not.

Masks and changes of colours are searched for alike; each of K labels has a weight of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuralsanitizer.config import SizeSchedule

__all__ = ["SizeSearch"]


class SizeSearch:
    """Of K labels: how much their size weighs, the smallest size that held the goal, and which of them are done.

    Attributes:
        weight: Of each label's size in its loss, (K,).
        kept_size: The smallest size that held the goal, (K,); infinite where none did.

    Args:
        count: K.
        schedule: The goal, how the weight moves, and when a label is done.
        device: Where the tensors are.
    """

    def __init__(self, count: int, schedule: SizeSchedule, device: torch.device) -> None:
        self.schedule = schedule
        self.weight = torch.full((count,), schedule.start, device=device)
        self.kept_size = torch.full((count,), torch.inf, device=device)
        self._gained_size = self.kept_size.clone()  # when it last shrank in earnest
        self._gained_at = torch.zeros(count, device=device)  # the step of that

    def look(self, rows: Tensor, step: int, held: Tensor, sizes: Tensor) -> Tensor:
        """Move the weights.

        Args:
            rows: Which of the K labels are still at work, int64 (k,).
            step: Steps done.
            held: Whether they hold the goal as they are, bool (k,).
            sizes: How large they are, (k,).

        Returns:
            Which hold the goal and are smaller than ever, bool (k,).
        """
        better = held & (sizes < self.kept_size[rows])
        self.kept_size[rows[better]] = sizes[better]
        gained = rows[self.kept_size[rows] < self._gained_size[rows] * (1 - self.schedule.least_gain)]
        self._gained_size[gained] = self.kept_size[gained]
        self._gained_at[gained] = step
        # Smaller by a clear distance, and short of the goal: one step too far. Such a label is not at its end.
        nearly = rows[~held & self.reached(rows) & (sizes < self._gained_size[rows] * (1 - self.schedule.least_gain))]
        self._gained_at[nearly] += self.schedule.every
        weight = self.weight[rows]
        moved = torch.where(held, weight * self.schedule.grow, weight / self.schedule.shrink)
        self.weight[rows] = moved.clamp(self.schedule.smallest, self.schedule.largest)
        return better

    def done(self, rows: Tensor, step: int) -> Tensor:
        """Which of the labels ``rows`` (k,) never reached the goal, or no longer shrink, after so many steps, (k,)."""
        reached = self.reached(rows)
        stalled = reached & (step - self._gained_at[rows] >= self.schedule.patience)
        return stalled | (~reached & (step >= self.schedule.give_up))

    def reached(self, rows: Tensor) -> Tensor:
        """Which of the labels ``rows`` (k,) ever held the goal, bool (k,)."""
        return torch.isfinite(self.kept_size[rows])
