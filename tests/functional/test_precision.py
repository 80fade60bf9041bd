"""The number format of convolutions is the one that is faster here."""

import pytest
import torch

from neuralsanitizer.functional import precision
from neuralsanitizer.functional.precision import autocast, fast_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has_instructions", "gain", "wanted"),
    [(True, 1.7, torch.bfloat16), (True, 1.05, torch.float32), (True, 0.6, torch.float32), (False, 1.7, torch.float32)],
)
def test_a_cpu_with_instructions_for_bfloat16_has_to_gain_by_it(monkeypatch, has_instructions, gain, wanted):
    monkeypatch.setattr(precision, "_cpu_has", lambda _: has_instructions)
    monkeypatch.setattr(precision, "_gain", lambda: gain)
    assert fast_dtype(CPU) is wanted


def test_the_trial_leaves_no_trace_and_is_made_once():
    precision._gain.cache_clear()
    before = torch.random.get_rng_state()
    with torch.no_grad():  # as where references are taught
        gain = precision._gain()
    assert gain > 0
    assert torch.equal(before, torch.random.get_rng_state())
    assert precision._gain() == gain


def test_convolutions_run_in_the_format_that_was_chosen():
    weight = torch.ones(1, 1, 3, 3)
    with autocast(CPU, torch.bfloat16):
        assert torch.nn.functional.conv2d(torch.ones(1, 1, 5, 5), weight).dtype is torch.bfloat16
    with autocast(CPU, torch.float32):
        assert torch.nn.functional.conv2d(torch.ones(1, 1, 5, 5), weight).dtype is torch.float32
