import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuralsanitizer.data import BUNDLED, load_clean_set
from neuralsanitizer.data.loading import _stratified
from neuralsanitizer.errors import DataError, UsageError

RNG = np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    def write(x, y=None, name="set.npz"):
        path = tmp_path / name
        with path.open("wb") as file:
            np.savez(file, x=x, y=np.arange(len(x)) % 2 if y is None else y)
        return path

    return write


# --- which format ---


def test_a_missing_path_names_the_bundled_sets(tmp_path):
    with pytest.raises(DataError, match=r"does not exist.*mnist5k"):
        load_clean_set(tmp_path / "nothing.npz")


def test_a_bundled_name_as_a_path_object_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert BUNDLED == ("mnist5k",)
    with pytest.raises(DataError, match="does not exist"):
        load_clean_set(Path("mnist5k"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"ab", "no format that is known"),
        (b"\x1f\x8b", "cannot be read"),
        (b"\x93NUMPY\x01\x00", "numpy.savez"),
        (b"\x80\x04\x95", "pickle"),
        (b"\x89PNG\r\n\x1a\n", "single picture"),
        (b"PK\x05\x06" + bytes(18), r"holds \[\]"),
        (b"PK\x03\x04 and no more", "cannot be read"),
        (b"a" * 257 + b"ustar" + bytes(200), "tar archive"),
    ],
)
def test_files_of_other_formats_are_refused_with_a_hint(tmp_path, content, message):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_clean_set(path)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        load_clean_set(tmp_path / "pipe")


@pytest.mark.parametrize("source", ["nul\0byte", "a" * 5000])
def test_impossible_paths_are_data_errors(source):
    with pytest.raises(DataError, match="cannot be read"):
        load_clean_set(source)


def test_a_link_loop_is_a_data_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="cannot be read"):
        load_clean_set(tmp_path / "loop")


def test_the_content_outranks_the_extension_and_is_noted(save):
    clean = load_clean_set(save(np.zeros((2, 4, 4), np.uint8), name="set.png"))
    assert clean.format == "npz"
    assert any("set.png" in note for note in clean.notes)


# --- arguments ---


@pytest.mark.parametrize(
    "wrong", [{"shape": (3, 0, 4)}, {"pixel_range": (1.0, 0.0)}, {"pixel_range": (0.0, float("nan"))}, {"limit": 0}]
)
def test_impossible_arguments_are_usage_errors(save, wrong):
    with pytest.raises(UsageError, match="got"):
        load_clean_set(save(np.zeros((2, 4, 4), np.uint8)), **wrong)


def test_a_shape_that_fills_the_memory_is_refused(save):
    with pytest.raises(DataError, match="--limit"):
        load_clean_set(save(np.zeros((2, 4, 4), np.uint8)), shape=(3, 100_000, 100_000))


def test_labels_that_the_model_does_not_have_are_refused(save):
    path = save(np.zeros((3, 4, 4), np.uint8), y=np.array([0, 1, 5]))
    with pytest.raises(DataError, match="2 labels, 0 to 1; the data has 5"):
        load_clean_set(path, label_names=["a", "b"])


@pytest.mark.parametrize("label", [-1, 2**40])
def test_labels_far_out_are_refused(save, label):
    with pytest.raises(DataError, match="labels count from 0"):
        load_clean_set(save(np.zeros((2, 4, 4), np.uint8), y=np.array([0, label])))


# --- pixel values ---


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, ">i4"])
def test_integers_are_0_to_255(save, dtype):
    x = np.array([0, 51, 128, 255] * 2).reshape(2, 2, 2)
    clean = load_clean_set(save(x.astype(dtype)), pixel_range=(0.0, 1.0))
    assert (clean.images * 255).round().to(torch.int64).flatten().tolist() == x.flatten().tolist()
    assert clean.images.max() == 1


def test_integers_beyond_255_are_refused(save):
    with pytest.raises(DataError, match=r"0 to 255, got 0 to 256.*--range"):
        load_clean_set(save(np.array([[[0, 256]]], np.int32)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize(
    ("values", "pixel_range", "expected"),
    [
        ([0.0, 0.25, 1.0], None, [0.0, 0.25, 1.0]),
        ([0.0, 51.0, 255.0], None, [0.0, 0.2, 1.0]),
        ([-1.0, 0.0, 1.0], (-1.0, 1.0), [0.0, 0.5, 1.0]),
        ([-0.0005, 0.5, 1.0005], (0.0, 1.0), [0.0, 0.5, 1.0]),
        ([0.0, 0.5, 1.0], (0.0, 2.0), [0.0, 0.25, 0.5]),
    ],
)
def test_floats_are_scaled_by_their_range(save, dtype, values, pixel_range, expected):
    clean = load_clean_set(save(np.array([[values]]).astype(dtype)), pixel_range=pixel_range)
    assert clean.images.flatten().tolist() == pytest.approx(expected, abs=3e-4)
    assert clean.images.dtype == torch.float32
    assert 0 <= clean.images.min() <= clean.images.max() <= 1
    assert bool(clean.notes) == (values[-1] == 255.0)


@pytest.mark.parametrize(
    ("values", "pixel_range", "message"),
    [
        ([-1.0, 1.0], None, "--range"),
        ([0.0, 300.0], None, "--range"),
        ([-1.0, 1.0], (0.0, 1.0), "as stated, got -1 to 1"),
        ([0.0, np.nan], None, "NaN"),
        ([0.0, np.inf], (0.0, 1.0), "NaN or infinite"),
    ],
)
def test_floats_outside_of_their_range_are_refused(save, values, pixel_range, message):
    with pytest.raises(DataError, match=message):
        load_clean_set(save(np.array([[values]], np.float32)), pixel_range=pixel_range)


def test_black_images_are_noted(save):
    clean = load_clean_set(save(np.eye(4, dtype=np.int64)[None]))
    assert any("black" in note for note in clean.notes)


# --- shape ---


def test_gray_is_repeated_to_rgb(save):
    x = RNG.integers(0, 256, (3, 5, 4), np.uint8)
    clean = load_clean_set(save(x), shape=(3, 5, 4))
    assert clean.images.shape == (3, 3, 5, 4)
    assert torch.equal(clean.images[:, 0], clean.images[:, 2])
    assert clean.notes == ("repeated gray to RGB",)


def test_rgb_becomes_gray_by_luma(save):
    x = RNG.integers(0, 256, (3, 5, 4, 3), np.uint8)
    clean = load_clean_set(save(x), shape=(1, 5, 4))
    pillow = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in x])
    assert np.abs(clean.images[:, 0].numpy() * 255 - pillow).max() < 0.51  # Pillow rounds
    assert clean.notes == ("made gray from RGB",)
    white = load_clean_set(save(np.full((1, 2, 2, 3), 255, np.uint8)), shape=(1, 2, 2))
    assert white.images.max() <= 1


@pytest.mark.parametrize("size", [(3, 2), (9, 11)])
def test_resizing_is_antialiased(save, size):
    x = RNG.integers(0, 256, (2, 6, 7, 3), np.uint8)
    clean = load_clean_set(save(x), shape=(3, *size))
    planes = torch.from_numpy(x).permute(0, 3, 1, 2) / 255
    expected = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    assert torch.allclose(clean.images, expected, atol=1e-5)
    assert clean.notes == (f"resized from 6x7 to {size[0]}x{size[1]}",)


def test_other_numbers_of_channels_are_refused(save):
    with pytest.raises(DataError, match="takes 4 channels, the images have 3"):
        load_clean_set(save(np.zeros((1, 2, 2, 3), np.uint8)), shape=(4, 2, 2))


# --- limit ---


def test_a_limit_keeps_the_mix_of_labels():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    kept = _stratified(labels, 100, seed=0)
    assert np.bincount(labels[kept]).tolist() == pytest.approx([60, 30, 10], abs=1)
    assert len(set(kept.tolist())) == 100
    assert (np.diff(kept) > 0).all()


def test_a_limit_loses_no_label():
    labels = np.repeat([0, 1, 2], [997, 2, 1])
    assert sorted(labels[_stratified(labels, 3, seed=0)].tolist()) == [0, 1, 2]


def test_a_limit_is_seeded(save):
    path = save(RNG.integers(0, 256, (50, 3, 3), np.uint8))
    sets = [load_clean_set(path, limit=10, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(sets[0].images, sets[1].images)
    assert not torch.equal(sets[0].images, sets[2].images)
    assert len(sets[0]) == 10


def test_a_limit_above_the_number_of_images_changes_nothing(save):
    path = save(RNG.integers(0, 256, (5, 3, 3), np.uint8))
    assert torch.equal(load_clean_set(path, limit=99).images, load_clean_set(path).images)
