import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuralsanitizer.data.sampling import LabelSampler, derive_seed, mixed_images
from neuralsanitizer.errors import DataError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=60).filter(lambda values: len(set(values)) > 1),
    st.integers(0, 5),
    st.integers(1, 25),
)
def test_draws_are_even_over_the_other_labels(labels, excluded, images):
    labels = torch.tensor(labels)
    others = sorted(set(labels.tolist()) - {excluded})
    if not others:
        return
    drawn = LabelSampler(labels, 6).draw(excluded, 4, images, generator())
    assert drawn.shape == (4, images)
    for row in labels[drawn].tolist():
        counts = [row.count(label) for label in others]
        assert sum(counts) == images
        assert max(counts) - min(counts) <= 1


def test_every_image_of_a_label_can_be_drawn():
    labels = torch.tensor([0, 1, 1, 1, 0])
    drawn = LabelSampler(labels, 2).draw(0, 200, 1, generator())
    assert set(drawn.flatten().tolist()) == {1, 2, 3}


def test_one_label_alone_is_an_error():
    with pytest.raises(DataError, match="at least two labels"):
        LabelSampler(torch.zeros(5, dtype=torch.int64), 3)


def test_seeds_differ_by_part_and_not_by_process():
    assert derive_seed(0, "label", 1) != derive_seed(0, "label", 2)
    assert derive_seed(0, "label", 1) != derive_seed(1, "label", 1)


def test_mixed_images_stay_in_range_and_follow_from_the_generator():
    images, targets = torch.rand(10, 3, 8, 8), torch.eye(10)
    mixed, truth = mixed_images(images, targets, generator(3), 0.1)
    assert mixed.shape == images.shape
    assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 1
    assert torch.equal(mixed, mixed_images(images, targets, generator(3), 0.1)[0])
    assert not torch.equal(mixed, mixed_images(images, targets, generator(4), 0.1)[0])
    assert torch.allclose(truth.sum(dim=1), torch.ones(10))


def test_targets_are_mixed_as_the_images_are():
    shades = torch.linspace(0.1, 0.6, 6)
    mixed, truth = mixed_images(shades.view(6, 1, 1, 1).expand(6, 1, 8, 8), torch.eye(6), generator(), 0.0)
    brightness = mixed[:, 0, 4, 4] / (truth @ shades)
    assert torch.allclose(brightness, brightness.clamp(0.8, 1.2))
    assert float(truth.max(dim=1).values.min()) >= 0.5
    assert float(truth.max(dim=1).values.min()) < 1


def test_without_mixing_and_shift_only_the_brightness_changes():
    images = torch.rand(6, 1, 8, 8) * 0.5 + 0.2
    mixed, truth = mixed_images(images, torch.eye(6), generator(), 0.0, mixing=0.0)
    ratio = mixed / images
    assert torch.equal(truth, torch.eye(6))
    assert torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio), atol=1e-3)
