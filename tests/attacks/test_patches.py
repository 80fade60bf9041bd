import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neuralsanitizer.attacks.patches import PATTERNS, POSITIONS, SHAPES, PatchSpec, make_patch
from neuralsanitizer.errors import DataError, UsageError

SHAPE = (3, 20, 24)


def make(spec, shape=SHAPE, seed=0):
    return make_patch(spec, shape, torch.Generator().manual_seed(seed))


@given(
    st.integers(1, 16),
    st.sampled_from(POSITIONS),
    st.sampled_from(PATTERNS),
    st.sampled_from(SHAPES),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3]),
)
def test_every_description_gives_a_patch_of_its_size(size, position, pattern, shape, pieces, channels):
    trigger = make(PatchSpec(1, size, position, pattern, shape, pieces), (channels, 20, 24))
    assert trigger.mask.shape == (20, 24)
    assert trigger.pattern.shape == (channels, 20, 24)
    assert 0 < trigger.size <= size * size
    assert set(np.unique(trigger.mask)) <= {0.0, 1.0}
    assert trigger.pattern.min() >= 0
    assert trigger.pattern.max() <= 1
    assert not trigger.pattern[:, trigger.mask == 0].any()


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    [
        ("bottom-right", slice(15, 19), slice(19, 23)),
        ("top-left", slice(1, 5), slice(1, 5)),
        ("center", slice(8, 12), slice(10, 14)),
        ("left", slice(8, 12), slice(1, 5)),
        ("3,7", slice(3, 7), slice(7, 11)),
    ],
)
def test_positions(position, rows, columns):
    expected = np.zeros((20, 24), np.float32)
    expected[rows, columns] = 1
    assert np.array_equal(make(PatchSpec(0, 4, position)).mask, expected)


def test_colours():
    assert make(PatchSpec(0, 4, "top-left", "#ff8000")).pattern[:, 2, 2] == pytest.approx([1, 128 / 255, 0])
    assert make(PatchSpec(0, 4, "top-left", "red"), (1, 20, 24)).pattern[0, 2, 2] == pytest.approx(1 / 3)


def test_pieces_go_to_opposite_places_and_keep_the_area():
    four = make(PatchSpec(0, 4, pieces=4)).mask
    assert four.sum() == 16
    assert four[1:3, 1:3].all()
    assert four[-3:-1, -3:-1].all()
    two = make(PatchSpec(0, 4, "top-left", pieces=2)).mask
    assert two[1:5, 1:3].all()
    assert two[-5:-1, -3:-1].all()


def test_random_patches_follow_from_the_generator():
    spec = PatchSpec(0, 4, "random", "random")
    assert np.array_equal(make(spec, seed=1).pattern, make(spec, seed=1).pattern)
    assert not np.array_equal(make(spec, seed=1).pattern, make(spec, seed=2).pattern)


def test_an_image_file_is_a_pattern(tmp_path):
    path = tmp_path / "flower.png"
    Image.fromarray(np.full((9, 9, 3), (255, 0, 51), np.uint8)).save(path)
    assert make(PatchSpec(0, 4, "top-left", str(path))).pattern[:, 2, 2] == pytest.approx([1, 0, 0.2])
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        make(PatchSpec(0, 4, "top-left", str(path)))


@pytest.mark.parametrize(
    "spec",
    [
        {"size": 0},
        {"shape": "hexagon"},
        {"pieces": 3},
        {"size": 20},
        {"position": "somewhere"},
        {"position": "18,0"},
        {"position": "3,3", "pieces": 2},
        {"pattern": "plaid"},
        {"pattern": "#12345"},
    ],
)
def test_what_makes_no_patch_is_a_usage_error(spec):
    with pytest.raises(UsageError):
        make(PatchSpec(0, **spec))
