"""The search for the smallest size that holds a goal: when a label is at its end."""

import pytest
import torch

from neuralsanitizer.config import SizeSchedule
from neuralsanitizer.detectors.neural_sanitizer.smallest import SizeSearch

SCHEDULE = SizeSchedule(every=10, give_up=40, patience=30, least_gain=0.05)
ONE = torch.tensor([0])


def ends_at(sizes):
    """After how many steps a label is done whose size is given at each look; negative: short of the goal."""
    search = SizeSearch(1, SCHEDULE, torch.device("cpu"))
    for look, size in enumerate(sizes, start=1):
        search.look(ONE, 10 * look, torch.tensor([size > 0]), torch.tensor([abs(float(size))]))
        if search.done(ONE, 10 * look).item():
            return 10 * look
    return None


@pytest.mark.parametrize(
    ("sizes", "end"),
    [
        ([-90, -80, -70, -60, -50], 40),  # never held the goal: given up
        ([100, 99, 98, 97, 96], 40),  # shrinks by less than the least gain
        ([100, 90, 80, 70, 60], None),
        ([100, -99, -98, -97], 40),  # short of the goal, and no smaller by a clear distance
        ([100, -120, -110, -105], 40),
        ([100, -60, -60, -60, -60, -60, -60, -60], None),  # one step too far: it may hold the goal yet
        ([100, -60, -60, 60, 59, 59, 59], 70),  # ... and did
        ([100, -60, -60, -60, 99, 99, 99], 70),  # ... or went back: those looks do not count
    ],
)
def test_a_label_ends_where_it_no_longer_shrinks_unless_it_is_a_step_too_far(sizes, end):
    assert ends_at(sizes) == end


def test_the_smallest_size_that_held_the_goal_is_kept():
    search = SizeSearch(2, SCHEDULE, torch.device("cpu"))
    both = torch.tensor([0, 1])
    for sizes, held in (((90.0, 80.0), (True, False)), ((50.0, 70.0), (False, True)), ((95.0, 75.0), (True, True))):
        better = search.look(both, 10, torch.tensor(held), torch.tensor(sizes))
    assert search.kept_size.tolist() == [90.0, 70.0]
    assert better.tolist() == [False, False]
