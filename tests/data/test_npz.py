import io
import pickle
import struct
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.data import npz as npz_module
from neuralsanitizer.errors import DataError, NeuralSanitizerError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (4, 5, 6), np.uint8)
Y = np.array([0, 1, 2, 1])


@pytest.fixture
def load(tmp_path):
    def write_and_load(**arrays):
        np.savez_compressed(tmp_path / "set.npz", **arrays)
        return load_clean_set(tmp_path / "set.npz")

    return write_and_load


def pack(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def npy(array=None, *, header=None, body=b"", version=(1, 0)):
    if header is None:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header.encode() + body


# --- what is read ---


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels")])
def test_pixels_and_labels_come_back(load, keys):
    clean = load(**dict(zip(keys, (GRAY, Y), strict=True)))
    assert np.array_equal((clean.images * 255).round().to(torch.uint8)[:, 0].numpy(), GRAY)
    assert clean.labels.tolist() == Y.tolist()
    assert (clean.format, clean.name, clean.label_names, clean.notes) == ("npz", "set.npz", (), ())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5, 6, 1), (4, 1, 5, 6)),
        ((4, 5, 6, 3), (4, 3, 5, 6)),
        ((4, 3, 5, 6), (4, 3, 5, 6)),
        ((4, 1, 5, 6), (4, 1, 5, 6)),
        ((4, 3, 5, 3), (4, 3, 3, 5)),  # ambiguous: the last axis is the channels
    ],
)
def test_the_channels_may_be_first_or_last(load, shape, expected):
    assert load(x=RNG.integers(0, 256, shape, np.uint8), y=Y).images.shape == expected


def test_both_layouts_are_the_same_images(load):
    x = RNG.integers(0, 256, (4, 5, 6, 3), np.uint8)
    assert torch.equal(load(x=x, y=Y).images, load(x=x.transpose(0, 3, 1, 2), y=Y).images)


def test_fortran_order_is_understood(load):
    assert torch.equal(load(x=np.asfortranarray(GRAY), y=Y).images, load(x=GRAY, y=Y).images)


def test_alpha_is_dropped(load):
    x = RNG.integers(0, 256, (4, 5, 6, 4), np.uint8)
    clean = load(x=x, y=Y)
    assert torch.equal(clean.images, load(x=x[..., :3], y=Y).images)
    assert clean.notes == ("dropped the alpha channel",)


@pytest.mark.parametrize("y", [Y.astype(np.uint8), Y[:, None], np.eye(3)[Y], np.eye(3, dtype=bool)[Y]])
def test_labels_may_be_indices_or_one_hot(load, y):
    assert load(x=GRAY, y=y).labels.tolist() == Y.tolist()


def test_other_arrays_beside_are_ignored(load):
    assert len(load(x=GRAY, y=Y, extra=np.array([None]))) == 4


def test_newer_header_versions_are_read(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5, 6), }\n"
    x = npy(header=header, body=GRAY.tobytes(), version=(2, 0))
    clean = load_clean_set(pack(tmp_path / "set.npz", [("x.npy", x), ("y.npy", npy(Y))]))
    assert np.array_equal((clean.images * 255).round().to(torch.uint8)[:, 0].numpy(), GRAY)


# --- what is refused ---


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": GRAY, "target": Y}, r"'data', 'target'.*numpy\.savez"),
        ({"x": GRAY}, r"it holds \['x'\]"),
        ({"x": GRAY.reshape(4, 30), "y": Y}, r"got \(4, 30\)"),
        ({"x": np.zeros((4, 5, 6, 2), np.uint8), "y": Y}, r"got \(4, 5, 6, 2\)"),
        ({"x": GRAY[:0], "y": Y[:0]}, "holds no images"),
        ({"x": GRAY > 9, "y": Y}, "true-or-false"),
        ({"x": GRAY.astype(complex), "y": Y}, "complex128"),
        ({"x": np.array(["a"]), "y": Y}, "<U1"),
        ({"x": GRAY, "y": Y[:3]}, "4 images and 3 labels"),
        ({"x": GRAY, "y": Y / 1}, "got float64"),
        ({"x": GRAY, "y": np.ones((4, 3), int)}, "one-hot"),
        ({"x": GRAY, "y": np.full((4, 3), np.nan)}, "one-hot"),
        ({"x": GRAY, "y": np.array([0, 1, 2, 2**64 - 1], np.uint64)}, "count from 0"),
        ({"x": GRAY, "y": np.array(3)}, r"got int64 \(\)"),
        ({"x": np.array([GRAY, None], dtype=object), "y": Y}, "object array: reading it could run code"),
    ],
)
def test_other_contents_are_refused(load, arrays, message):
    with pytest.raises(DataError, match=message):
        load(**arrays)


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_pickles_are_never_opened(tmp_path, capsys):
    path = pack(tmp_path / "set.npz", [("x.npy", pickle.dumps(Evil())), ("y.npy", npy(Y))])
    with pytest.raises(DataError, match="not a numpy array"):
        load_clean_set(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(100000000000,)", "at most"),  # 100 GB
        ("(9223372036854775807, 9223372036854775807)", "at most"),
        ("(1000000000, 1)", "decompression bomb"),  # 1 GB
        ("(1000, 100, 1)", "the entry has"),
        ("(-4, 5, 6)", "impossible shape"),
        ("(2, 5, 6)", "holds more than"),
        ("'a'", "not a numpy array"),
        ("(" * 200 + ")" * 200, "not a numpy array"),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_allocated(tmp_path, shape, message):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n"
    x = npy(header=header, body=GRAY.tobytes())
    with pytest.raises(DataError, match=message):
        load_clean_set(pack(tmp_path / "set.npz", [("x.npy", x), ("y.npy", npy(Y))]))


def test_a_long_header_is_not_read(tmp_path):
    x = npy(header="{" + " " * 1_000_000, version=(2, 0))
    with pytest.raises(DataError, match="header of 1,000,001 bytes"):
        load_clean_set(pack(tmp_path / "set.npz", [("x.npy", x), ("y.npy", npy(Y))]))


def test_a_real_bomb_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", x=np.zeros((1, 8300, 8300), np.uint8), y=np.array([0]))
    with pytest.raises(DataError, match="decompression bomb"):
        load_clean_set(tmp_path / "set.npz")


def test_duplicate_names_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        pack(tmp_path / "set.npz", [("x.npy", npy(GRAY)), ("y.npy", npy(Y)), ("x.npy", npy(GRAY))])
    with pytest.raises(DataError, match="two entries named 'x'"):
        load_clean_set(tmp_path / "set.npz")


def test_other_compressions_are_refused(tmp_path):
    pack(tmp_path / "set.npz", [("x.npy", npy(GRAY)), ("y.npy", npy(Y))], zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="method 12"):
        load_clean_set(tmp_path / "set.npz")


def test_encrypted_entries_are_refused(tmp_path):
    path = pack(tmp_path / "set.npz", [("x.npy", npy(GRAY)), ("y.npy", npy(Y))])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        load_clean_set(path)


def test_a_huge_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_module, "_MAX_DIRECTORY", 70_000)
    path = pack(tmp_path / "set.npz", [(f"{i:0200}.npy", b"") for i in range(400)])
    with pytest.raises(DataError, match="directory is larger"):
        load_clean_set(path)


def test_a_damaged_pixel_fails_the_checksum(tmp_path):
    path = pack(tmp_path / "set.npz", [("x.npy", npy(GRAY)), ("y.npy", npy(Y))], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        load_clean_set(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path, share):
    path = pack(tmp_path / "set.npz", [("x.npy", npy(GRAY)), ("y.npy", npy(Y))])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError):
        load_clean_set(path)


@settings(max_examples=50, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.integers(1, 2000),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_mutated_files_give_a_valid_set_or_a_named_error(tmp_path_factory, changes, length, compression):
    path = tmp_path_factory.mktemp("fuzz") / "set.npz"
    pack(path, [("x.npy", npy(GRAY)), ("y.npy", npy(Y))], compression)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content[:length] if length < 100 else content)
    with suppress(NeuralSanitizerError):
        assert isinstance(load_clean_set(path), CleanSet)
