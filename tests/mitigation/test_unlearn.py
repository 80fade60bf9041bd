"""Unlearning: which images get which trigger, and what it does to a model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuralsanitizer.attacks.base import measure_attack_success
from neuralsanitizer.config import UNLEARN_PRESETS, UnlearnConfig
from neuralsanitizer.mitigation.unlearn import Unlearn, _assign, _grown
from neuralsanitizer.records import Trigger


@given(st.integers(2, 200), st.integers(1, 130), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_triggers_take_at_most_half_of_a_batch_and_one_image_each(images, triggers, share, seed):
    which = _assign(images, triggers, share, torch.Generator().manual_seed(seed))
    assert which.shape == (images,)
    assert -1 <= which.min() <= which.max() < triggers
    counts = torch.bincount(which[which >= 0], minlength=triggers)
    assert 0 < counts.sum() <= images / 2
    assert counts.max() <= max(1, round(share * images))
    assert (counts > 0).all() or (counts.max() == 1 and counts.sum() == images // 2)


def test_the_planted_trigger_is_unlearnt_and_the_original_is_not_touched(attacked, clean, unseen):
    before = {name: value.clone() for name, value in attacked.model.module.state_dict().items()}
    steps = []
    unlearn = Unlearn(UnlearnConfig(steps=80))
    module = unlearn.remove(attacked.model, attacked.triggers, clean, seed=0, advance=steps.append).module
    repaired = attacked.model.with_module(module)
    assert measure_attack_success(repaired, unseen, attacked.triggers[0]) < 0.05
    assert repaired.accuracy(unseen.images, unseen.labels) > attacked.truth.clean_accuracy - 0.03
    assert all(torch.equal(value, before[name]) for name, value in attacked.model.module.state_dict().items())
    assert not any(p.requires_grad for p in module.parameters())
    assert not module.training
    assert sum(steps) == unlearn.steps(len(clean)) == 80


@pytest.mark.parametrize(("preset", "share"), [("paper", 0.1), ("default", 0.3)])
def test_presets(preset, share):
    assert UNLEARN_PRESETS[preset].share == share
    assert Unlearn(UNLEARN_PRESETS[preset]).settings["share"] == share


def test_a_trigger_grows_with_the_colours_of_its_rim():
    mask, pattern = np.zeros((9, 9), np.float32), np.full((2, 9, 9), 0.5, np.float32)
    mask[3:5, 3:5] = 1
    pattern[0, 3:5, 3:5], pattern[1, 3:5, 3:5] = 1.0, 0.0
    same, untouched = _grown(Trigger(0, mask, pattern), 0)
    np.testing.assert_array_equal(same.numpy(), mask)
    np.testing.assert_array_equal(untouched.numpy(), pattern)
    wider, colours = _grown(Trigger(0, mask, pattern), 2)
    expected = np.zeros((9, 9), np.float32)
    expected[1:7, 1:7] = 1
    np.testing.assert_array_equal(wider.numpy(), expected)
    inside = colours[:, 1:7, 1:7].numpy()
    np.testing.assert_allclose(inside[0], 1.0, atol=1e-5)
    np.testing.assert_allclose(inside[1], 0.0, atol=1e-5)
