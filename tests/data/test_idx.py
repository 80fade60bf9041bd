import gzip
import os
import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.errors import DataError, NeuralSanitizerError

X = np.random.default_rng(0).integers(0, 256, (4, 5, 6), np.uint8)
Y = np.array([3, 1, 2, 1], np.uint8)
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


IDX_X, IDX_Y = idx(X), idx(Y)


def write(folder, images=IDX_X, labels=IDX_Y, images_name=IMAGES, labels_name=LABELS):
    (folder / images_name).write_bytes(gzip.compress(images) if images_name.endswith(".gz") else images)
    if labels is not None:
        (folder / labels_name).write_bytes(gzip.compress(labels) if labels_name.endswith(".gz") else labels)
    return folder / images_name


@pytest.mark.parametrize(
    ("images_name", "labels_name"),
    [
        (IMAGES, LABELS),
        (f"{IMAGES}.gz", f"{LABELS}.gz"),
        (IMAGES, f"{LABELS}.gz"),
        (f"{IMAGES}.gz", LABELS),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
    ],
)
@pytest.mark.parametrize("by_folder", [False, True])
def test_pixels_and_labels_come_back(tmp_path, images_name, labels_name, by_folder):
    path = write(tmp_path, images_name=images_name, labels_name=labels_name)
    clean = load_clean_set(tmp_path if by_folder else path)
    assert np.array_equal((clean.images * 255).round().to(torch.uint8)[:, 0].numpy(), X)
    assert clean.labels.tolist() == Y.tolist()
    assert (clean.format, clean.notes) == ("idx", ())
    assert clean.name == (tmp_path.name if by_folder else images_name)


def test_of_twins_the_plain_file_is_read(tmp_path):
    write(tmp_path)
    write(tmp_path, images=b"", images_name=f"{IMAGES}.gz")
    assert len(load_clean_set(tmp_path)) == 4


def test_several_pairs_in_a_folder_are_ambiguous(tmp_path):
    write(tmp_path)
    write(tmp_path, images_name="t10k-images-idx3-ubyte", labels_name="t10k-labels-idx1-ubyte")
    with pytest.raises(DataError, match=r"several.*t10k-images.*train-images"):
        load_clean_set(tmp_path)


def test_missing_labels_are_named(tmp_path):
    with pytest.raises(DataError, match=f"{LABELS}' expected beside it"):
        load_clean_set(write(tmp_path, labels=None))


def test_labels_in_a_pipe_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / LABELS)
    with pytest.raises(DataError, match="not a regular file"):
        load_clean_set(write(tmp_path, labels=None))


def test_the_labels_file_itself_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match="give the path of the images file"):
        load_clean_set(tmp_path / LABELS)


def test_an_unusual_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="rename it"):
        load_clean_set(write(tmp_path, images_name="digits.bin"))


def lying(*shape):
    return bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape) + X.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (idx(X)[:-1], "truncated"),
        (idx(X)[:9], "ends within its header"),
        (idx(X) + b"\0", "more than"),
        (idx(X[0]), "should begin with 00 00 08 03"),
        (bytes((0, 0, 13, 3)) + idx(X)[4:], "should begin with 00 00 08 03"),
        (idx(X[:0]), "holds nothing"),
        (idx(X[:3]), "3 images and"),
        (lying(100, 100, 6), "truncated"),
        (lying(1, 100_000, 1_000), "truncated|bomb"),
        (lying(2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated|at most"),
    ],
)
def test_damaged_files_are_refused(tmp_path, images, message, suffix):
    path = write(tmp_path, images=images, images_name=IMAGES + suffix)
    with pytest.raises(DataError, match=message):
        load_clean_set(path)


def test_a_damaged_gzip_is_refused(tmp_path):
    path = write(tmp_path, images_name=f"{IMAGES}.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        load_clean_set(path)


@settings(max_examples=50, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 20),
    suffix=st.sampled_from(["", ".gz"]),
    which=st.sampled_from([IMAGES, LABELS]),
)
def test_mutated_files_give_a_valid_set_or_a_named_error(tmp_path_factory, changes, cut, suffix, which):
    folder = tmp_path_factory.mktemp("fuzz")
    path = write(folder, images_name=IMAGES + suffix, labels_name=LABELS + suffix)
    mutated = folder / (which + suffix)
    content = bytearray(mutated.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    mutated.write_bytes(content[: len(content) - cut] if cut > 10 else content)
    with suppress(NeuralSanitizerError):
        assert isinstance(load_clean_set(path), CleanSet)
