"""The pure functions against slow, independent versions of themselves."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuralsanitizer.functional import (
    anomaly_indices,
    attack_success,
    calibrated_threshold,
    mask_from_raw,
    pile_up,
    raw_from_mask,
    stamp,
    total_variation,
)

unit = st.floats(0, 1, width=32)
masks = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=unit)


@given(masks)
def test_total_variation_sums_over_all_neighbours(mask):
    height, width = mask.shape
    expected = sum(
        abs(float(mask[i, j]) - float(mask[i + di, j + dj]))
        for i, j in itertools.product(range(height), range(width))
        for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1))
        if i + di < height and 0 <= j + dj < width
    )
    assert total_variation(torch.from_numpy(mask)).item() == pytest.approx(expected, abs=1e-4)


@given(hnp.arrays(np.float32, (5, 4), elements=unit), st.floats(0, 5))
def test_pile_up_counts_what_exceeds_the_limit(probabilities, limit):
    expected = sum(max(0.0, float(probabilities[:, c].astype(np.float64).sum()) - limit) for c in range(4))
    assert pile_up(torch.from_numpy(probabilities), limit).item() == pytest.approx(expected, abs=1e-4)


def test_pile_up_keeps_leading_axes():
    assert pile_up(torch.rand(7, 5, 4), 1.0).shape == (7,)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_stamp_is_the_papers_formula(x, m, d):
    image, mask, pattern = (torch.tensor(v, dtype=torch.float64).view(1, 1, 1, 1) for v in (x, m, d))
    assert stamp(image, mask, pattern).item() == pytest.approx(x * (1 - m) + d * m, abs=1e-12)


def test_stamp_broadcasts_a_mask_over_channels_and_images():
    images, mask, pattern = torch.rand(4, 3, 5, 6), torch.zeros(5, 6), torch.rand(3, 5, 6)
    mask[1, 2] = 1
    stamped = stamp(images, mask, pattern)
    assert torch.equal(stamped[:, :, 1, 2], pattern[:, 1, 2].expand(4, 3))
    untouched = mask == 0
    assert torch.equal(stamped[..., untouched], images[..., untouched])


def test_stamping_before_and_after_an_affine_normalisation_is_the_same():
    images, mask, pattern = torch.rand(2, 3, 4, 4), torch.rand(4, 4), torch.rand(3, 4, 4)
    before = (stamp(images, mask, pattern) - 0.4) / 0.3
    after = stamp((images - 0.4) / 0.3, mask, (pattern - 0.4) / 0.3)
    assert torch.allclose(before, after, atol=1e-6)


@given(st.floats(0.05, 0.95), st.floats(2, 12))
def test_raw_from_mask_inverts_mask_from_raw(raw, sharpness):
    mask = mask_from_raw(torch.tensor(raw, dtype=torch.float64), sharpness)
    assert raw_from_mask(mask, sharpness).item() == pytest.approx(raw, abs=1e-3)


@given(st.integers(2, 6), st.integers(1, 30), st.randoms(use_true_random=False))
def test_attack_success_leaves_the_targets_own_images_out(labels, images, random):
    predictions = torch.tensor([random.randrange(labels) for _ in range(images)])
    truth = torch.tensor([random.randrange(labels) for _ in range(images)])
    target = random.randrange(labels)
    others = [(p, t) for p, t in zip(predictions.tolist(), truth.tolist(), strict=True) if t != target]
    expected = sum(p == target for p, _ in others) / len(others) if others else 0.0
    measured = attack_success(predictions[None], torch.tensor([target]), truth)
    assert measured.tolist() == pytest.approx([expected])


def test_anomaly_indices_match_their_definition():
    norms = [50.0, 60.0, 55.0, 70.0, 8.0, 64.0, 58.0]
    median = np.median(norms)
    mad = np.median(np.abs(np.array(norms) - median)) * 1.4826
    assert anomaly_indices(norms) == pytest.approx([(median - n) / mad for n in norms])


def test_anomaly_indices_are_one_sided():
    indices = anomaly_indices([10.0, 11.0, 12.0, 13.0, 1000.0])
    assert indices[-1] < 0
    assert max(indices) < 2


def test_equal_norms_have_no_outlier_but_a_lone_small_one_is():
    assert anomaly_indices([5.0] * 6) == (0.0,) * 6
    assert anomaly_indices([5.0] * 6 + [1.0])[-1] == math.inf


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_norms_have_no_outlier(count):
    assert anomaly_indices([float(i) for i in range(count)]) == (0.0,) * count


@pytest.mark.parametrize(("labels", "rate"), [(10, 0.05), (43, 0.05), (1000, 0.01)])
def test_calibrated_threshold_holds_its_false_alarm_rate(labels, rate):
    drawn = np.random.default_rng(0).standard_normal((20_000, labels)).max(axis=1)
    assert np.mean(drawn > calibrated_threshold(labels, rate)) == pytest.approx(rate, abs=0.01)


def test_the_classic_threshold_flags_clean_models():
    """What the documentation says of it: the MAD's own error included, a third of clean models of ten labels."""
    drawn = np.random.default_rng(0).standard_normal((2000, 10))
    flagged = np.mean([max(anomaly_indices(row)) > 2 for row in drawn])
    assert 0.25 < flagged < 0.45
