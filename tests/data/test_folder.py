import os
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.errors import DataError, NeuralSanitizerError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 6, 3), np.uint8)
GRAY = RNG.integers(0, 256, (5, 6), np.uint8)


def put(root, name, pixels=RGB, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def back(clean):
    return (clean.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# --- what is read ---


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm"])
@pytest.mark.parametrize("pixels", [RGB, GRAY])
def test_pixels_come_back(tmp_path, suffix, pixels):
    put(tmp_path, f"cat/a.{suffix}", pixels)
    clean = load_clean_set(tmp_path)
    assert np.array_equal(back(clean)[0].squeeze(), pixels)
    assert (clean.format, clean.name, clean.notes) == ("folder", tmp_path.name, ())


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif"])
def test_lossy_formats_are_decoded(tmp_path, suffix):
    put(tmp_path, f"cat/a.{suffix}", np.full((8, 8, 3), 200, np.uint8))
    assert np.abs(back(load_clean_set(tmp_path)).astype(int) - 200).max() < 5


def test_order_is_by_label_and_name(tmp_path):
    for name, value in (("b/2.png", 3), ("b/1.png", 2), ("a/9.png", 1)):
        put(tmp_path, name, np.full((2, 2), value, np.uint8))
    clean = load_clean_set(tmp_path)
    assert back(clean)[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert clean.labels.tolist() == [0, 1, 1]
    assert clean.label_names == ("a", "b")


def test_a_wrong_extension_does_not_matter(tmp_path):
    put(tmp_path, "cat/a.png").rename(tmp_path / "cat/a.jpg")
    assert np.array_equal(back(load_clean_set(tmp_path))[0], RGB)


def test_a_limit_decodes_only_what_it_keeps(tmp_path):
    for i in range(6):
        put(tmp_path, f"{i % 2}/{i}.png")
    put(tmp_path, "1/z.png", np.zeros((9, 9), np.uint8))  # of another size: an error if it were decoded
    clean = load_clean_set(tmp_path, limit=2, seed=0)
    assert clean.labels.tolist() == [0, 1]


# --- which label ---


@pytest.mark.parametrize(
    ("folders", "label_names", "labels", "names"),
    [
        (["dog", "cat"], None, [0, 1], ("cat", "dog")),
        (["dog", "cat"], ["dog", "bird", "cat"], [0, 2], ("dog", "bird", "cat")),
        (["Dog", "CAT"], ["dog", "cat"], [0, 1], ("dog", "cat")),
        (["00007", "00010"], None, [7, 10], ()),
        (["7", "10"], [str(i) for i in range(11)], [7, 10], ()),
        (["0", "1"], ["cat", "dog"], [0, 1], ("cat", "dog")),
        (["3", "7"], ["7", "3"], [0, 1], ("7", "3")),
        (["dog", "cat"], ["0", "1"], [0, 1], ("cat", "dog")),
        (["1", "x"], None, [0, 1], ("1", "x")),
    ],
)
def test_folders_become_labels(tmp_path, folders, label_names, labels, names):
    for folder in folders:
        put(tmp_path, f"{folder}/a.png")
    clean = load_clean_set(tmp_path, label_names=label_names)
    assert clean.labels.tolist() == labels
    assert clean.label_names == names


@pytest.mark.parametrize(
    ("folders", "label_names", "message"),
    [
        (["dog", "cow"], ["dog", "cat"], r"\['cow'\] match none of \['dog', 'cat'\]"),
        (["dog", "cat"], ["0", "1", "2"], "2 folders found for 3 labels"),
        (["7", "007"], None, "'007' and '7' are both of label 7"),
        (["Dog", "dog"], ["dog", "cat"], "both of label 0"),
        (["0", "12"], [str(i) for i in range(10)], "the data has 12"),
        (["0", "9" * 30], None, "cannot be read|labels count"),
    ],
)
def test_folders_that_fit_no_label_are_refused(tmp_path, folders, label_names, message):
    for folder in folders:
        put(tmp_path, f"{folder}/a.png")
    with pytest.raises(DataError, match=message):
        load_clean_set(tmp_path, label_names=label_names)


def test_an_empty_folder_makes_the_order_doubtful(tmp_path):
    put(tmp_path, "b/a.png")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"\['a'\] hold no pictures"):
        load_clean_set(tmp_path)
    clean = load_clean_set(tmp_path, label_names=["a", "b"])
    assert clean.labels.tolist() == [1]
    assert clean.notes == ("skipped 1 folders without pictures",)


# --- conversions ---


def test_gray_and_colour_together_become_rgb(tmp_path):
    put(tmp_path, "cat/a.png", GRAY)
    put(tmp_path, "cat/b.png", RGB)
    clean = load_clean_set(tmp_path)
    assert np.array_equal(back(clean), np.stack([np.repeat(GRAY[..., None], 3, 2), RGB]))
    assert clean.notes == ("1 of 2 pictures repeated from gray to RGB, as others are coloured",)


def test_sixteen_bits_are_divided_by_257(tmp_path):
    put(tmp_path, "cat/a.png", Image.fromarray(np.array([[0, 128, 129, 257, 65535]], np.uint16)))
    clean = load_clean_set(tmp_path)
    assert back(clean).flatten().tolist() == [0, 0, 1, 1, 255]
    assert clean.notes == ("1 of 1 pictures converted from 16 bits",)


def test_sixteen_bit_pgm_is_read(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 257, 65535))
    assert back(load_clean_set(tmp_path)).flatten().tolist() == [1, 255]


def test_a_palette_becomes_its_colours(tmp_path):
    palette = Image.fromarray(RGB).quantize(256)
    put(tmp_path, "cat/a.png", palette)
    clean = load_clean_set(tmp_path)
    assert np.array_equal(back(clean)[0], np.asarray(palette.convert("RGB")))
    assert clean.notes == ("1 of 1 pictures converted from mode P",)


def test_a_palette_with_transparency_is_read_without_it(tmp_path):
    palette = Image.fromarray(RGB).quantize(256)
    put(tmp_path, "cat/a.png", palette, transparency=bytes(range(30)))
    assert np.array_equal(back(load_clean_set(tmp_path))[0], np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(("alpha", "plain"), [("RGBA", RGB), ("LA", GRAY)])
def test_alpha_is_dropped(tmp_path, alpha, plain):
    image = Image.fromarray(plain).convert(alpha)
    image.putalpha(7)
    put(tmp_path, "cat/a.png", image)
    clean = load_clean_set(tmp_path)
    assert np.array_equal(back(clean)[0].squeeze(), plain)
    assert clean.notes == (f"1 of 1 pictures converted from mode {alpha}, alpha dropped",)


def test_one_bit_becomes_black_and_white(tmp_path):
    put(tmp_path, "cat/a.png", Image.fromarray(GRAY > 99))
    assert np.array_equal(back(load_clean_set(tmp_path))[0].squeeze(), (GRAY > 99) * np.uint8(255))


def test_cmyk_becomes_rgb(tmp_path):
    put(tmp_path, "cat/a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    assert np.abs(back(load_clean_set(tmp_path))[0, 4, 4].astype(int) - [255, 0, 0]).max() < 5


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    put(tmp_path, "cat/a.png", RGB, exif=exif)
    clean = load_clean_set(tmp_path)
    assert np.array_equal(back(clean)[0], np.rot90(RGB, -1))
    assert clean.notes == ("1 of 1 pictures turned upright as their EXIF data says",)


def test_sizes_are_made_one_if_the_shape_is_known(tmp_path):
    put(tmp_path, "cat/a.png", RGB)
    put(tmp_path, "cat/b.png", RNG.integers(0, 256, (9, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"cat/a\.png' 5x6, but 'cat/b\.png' 9x9.*shape"):
        load_clean_set(tmp_path)
    clean = load_clean_set(tmp_path, shape=(1, 5, 6))
    assert clean.images.shape == (2, 1, 5, 6)
    assert clean.notes == ("1 of 2 pictures resized to 5x6", "made gray from RGB")


# --- what is skipped ---


def test_what_is_no_picture_is_skipped_and_counted(tmp_path):
    put(tmp_path, "cat/a.png")
    put(tmp_path, "outside.png")
    put(tmp_path, "cat/deeper/b.png")
    (tmp_path / "cat/readme.txt").write_text("BM is how some texts begin")
    (tmp_path / "cat/.DS_Store").write_bytes(b"\0")
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / "cat/pipe.png")
    clean = load_clean_set(tmp_path)
    assert len(clean) == 1
    assert clean.notes == (
        "skipped 1 files outside of a label's folder",
        "skipped 2 files that are no pictures",
        "skipped 1 folders within a label's folder",
        "skipped 2 hidden files",
    )


def test_links_within_the_folder_are_followed(tmp_path):
    path = put(tmp_path, "cat/a.png")
    (tmp_path / "cat/b.png").symlink_to(path)
    assert len(load_clean_set(tmp_path)) == 2


# --- what is refused ---


@pytest.mark.parametrize("link", ["cat/b.png", "dog"])
def test_links_out_of_the_folder_are_refused(tmp_path, link):
    outside = put(tmp_path, "outside/secret.png")
    put(tmp_path, "set/cat/a.png")
    (tmp_path / "set" / link).symlink_to(outside if link.endswith("png") else outside.parent)
    with pytest.raises(DataError, match="leads out of the folder"):
        load_clean_set(tmp_path / "set")


def test_broken_links_are_refused(tmp_path):
    put(tmp_path, "cat/a.png")
    (tmp_path / "cat/b.png").symlink_to("b.png")
    with pytest.raises(DataError, match="leads nowhere"):
        load_clean_set(tmp_path)


@pytest.mark.parametrize("names", [[], ["a.png"], ["train/cat/a.png"], ["cat/a.tif"]])
def test_a_folder_without_labelled_pictures_is_refused(tmp_path, names):
    for name in names:
        put(tmp_path, name)
    with pytest.raises(DataError, match="no pictures found"):
        load_clean_set(tmp_path)


@pytest.mark.parametrize("content", [b"", b"ab", b"nonsense"])
def test_a_picture_in_name_only_is_refused(tmp_path, content):
    put(tmp_path, "cat/a.png")
    (tmp_path / "cat/b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"'cat/b\.png' is named like a picture"):
        load_clean_set(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "ppm", "webp", "gif"])
def test_truncated_pictures_are_refused(tmp_path, suffix):
    path = put(tmp_path, f"cat/a.{suffix}", RNG.integers(0, 256, (64, 64, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged or truncated"):
        load_clean_set(tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animated_pictures_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(3)]
    put(tmp_path, f"cat/a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="is animated"):
        load_clean_set(tmp_path)


def bomb(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [9_000, 11_000, 60_000])  # below Pillow's warning, above it, above its error
@pytest.mark.parametrize("switched_off", [False, True])
def test_bombs_are_refused(tmp_path, monkeypatch, side, switched_off):
    if switched_off:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.png").write_bytes(bomb(side, side))
    with pytest.raises(DataError, match="decompression bomb"):
        load_clean_set(tmp_path, shape=(1, 8, 8))


def test_floating_point_pictures_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.ppm").write_bytes(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5))
    with pytest.raises(DataError, match="does not begin like one"):
        load_clean_set(tmp_path)


def test_names_with_control_characters_are_quoted(tmp_path):
    put(tmp_path, "\x1b[31mcat/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError) as caught:
        load_clean_set(tmp_path)
    assert "\x1b" not in str(caught.value)


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    put(tmp_path, os.fsdecode(b"caf\xe9/a.png"))
    assert load_clean_set(tmp_path).label_names == ("caf\\xe9",)


@settings(max_examples=40, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 2000),
    suffix=st.sampled_from(["png", "jpg", "bmp", "ppm", "webp", "gif"]),
)
def test_mutated_pictures_give_a_valid_set_or_a_named_error(tmp_path_factory, changes, cut, suffix):
    root = tmp_path_factory.mktemp("fuzz")
    path = put(root, f"cat/a.{suffix}")
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content[:cut] if cut < 100 else content)
    with suppress(NeuralSanitizerError):
        assert isinstance(load_clean_set(root), CleanSet)
