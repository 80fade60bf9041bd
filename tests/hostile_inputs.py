"""The bad inputs that a scanner must survive, one entry or several each, and what the program has to say to them.

``python tests/hostile_inputs.py`` gives every entry to the program in a process of its own, measures time and memory,
and prints one table. ``tests/cli/test_hostile_inputs.py`` gives the same entries to the program within pytest.
"""

import argparse
import importlib.util
import io
import json
import os
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import warnings
import wave
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import programs
from hostile import HOSTILE, hidden_in
from neuralsanitizer.data import load_clean_set
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.models import load_model, save_state_dict
from neuralsanitizer.models.architectures import build
from neuralsanitizer.pipeline import scan
from tiny import HASTY

ARCH = "mnist-cnn-small"
SCAN = f"scan {{}} --arch {ARCH} --data clean.npz"
HASTY_SCAN = SCAN + " --preset hasty --output run"
DEFINED = "scan sound.safetensors --model-def definition:make --data clean.npz --preset hasty"
MARKER = "marker"  # what a payload writes into the working folder
SECONDS, MEGABYTES = 10, 1000  # what an entry may take, beyond what the program takes to say its version


@dataclass(frozen=True)
class Entry:
    """One bad input.

    Attributes:
        number: In the table of bad inputs.
        name: Of this variant.
        make: Puts its files into the folder given.
        command: What is called in that folder.
        codes: Exit codes that are right.
        said: What the program says about it, a regular expression.
        payload: Whether the input writes the file ``marker`` if its code is run.
        patches: Of the program: attributes by ``module:name``.
        extra: A package without which the program cannot read it.
        file_limit: Bytes after which the disk is full.
        signal: To send as soon as the first reference is kept, or ``swap``: then the model's file is replaced.
        then: A second command, called afterwards.
        then_codes: Exit codes of the second that are right.
        check: Looks at the folder afterwards; raises an AssertionError.
        gap: Why the program does not do what it should; such an entry is listed, not run.
    """

    number: int
    name: str
    make: Callable[[Path], object]
    command: str = f"scan model --arch {ARCH} --data clean.npz"
    codes: frozenset[int] = frozenset({3})
    said: str = "^error: "
    payload: bool = False
    patches: Mapping[str, float] = field(default_factory=dict)
    extra: str = ""
    file_limit: int = 0
    signal: str = ""
    then: str = ""
    then_codes: frozenset[int] = frozenset({0, 1, 4})
    check: Callable[[Path], object] = lambda folder: None
    gap: str = ""

    @property
    def title(self):
        return f"{self.number:02} {self.name}"


class Ended(NamedTuple):
    """How the program ended: in this process or in one of its own."""

    code: int
    stdout: str
    stderr: str


ENTRIES: list[Entry] = []
JUDGED = frozenset({0, 1, 4})  # a verdict, whichever


SCAN_MODEL = SCAN.format("model")


def entry(number, name, command=SCAN_MODEL, codes=(3,), said="^error: ", **more):
    """Register what makes the files of an entry; it may be named under several."""
    codes = frozenset((codes,) if isinstance(codes, int) else codes)

    def register(make):
        ENTRIES.append(Entry(number, name, make, command, codes, said, **more))
        return make

    return register


def complaints(one, ended, folder):
    """What is wrong with how the program ended on an entry, a list of sentences; empty if it was right."""
    told = ended.stdout + ended.stderr
    flat = " ".join(told.split())
    wrong = []
    if ended.code not in one.codes:
        wrong.append(f"exit code {ended.code}, not {' or '.join(map(str, sorted(one.codes)))}")
    if "Traceback" in told:
        wrong.append("a traceback")
    if not re.search(one.said, flat) and not re.search(one.said, ended.stderr, re.MULTILINE):
        wrong.append(f"does not say {one.said!r}")
    if ended.code in {2, 3, 5} and ended.stdout:
        wrong.append("data on stdout in spite of an error")
    if set(hidden_in(told)) - {"\t"}:
        wrong.append(f"control characters {sorted(set(hidden_in(told)))!r} come through")
    if (folder / MARKER).exists():
        wrong.append("THE PAYLOAD RAN")
    if list(folder.rglob(".*.*")) and not one.signal:
        wrong.append(f"half-written files are left: {[p.name for p in folder.rglob('.*.*')]}")
    try:
        one.check(folder)
    except AssertionError as error:
        wrong.append(f"afterwards: {error}")
    return wrong


# --- what all entries have in their folder ---


def make_kit(folder):
    """A sound model, clean images of its task, and the folder of a finished scan of it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 10
    images = 0.3 * torch.rand(400, 1, 28, 28, generator=generator)
    for label in range(10):  # each label is a bar at another height
        images[labels == label, :, 2 + 2 * label : 6 + 2 * label, 6:22] += 0.6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(ARCH)
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(25):
            loss = torch.nn.functional.cross_entropy(network(images - 0.5), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    save_state_dict(network.eval(), folder / "sound.safetensors")
    pixels = (images * 255).round().to(torch.uint8).numpy()
    np.savez(folder / "clean.npz", x=pixels, y=labels.numpy())
    suspect = load_model(folder / "sound.safetensors", arch=ARCH)
    scan(suspect, load_clean_set(folder / "clean.npz"), method=NeuralSanitizer(HASTY), output=folder / "scanned")


def lay_out(one, kit, folder):
    """An entry's folder."""
    for name in ("sound.safetensors", "clean.npz"):
        os.link(kit / name, folder / name)
    if "scanned" in one.command:
        shutil.copytree(kit / "scanned", folder / "scanned")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that make such files
        one.make(folder)


# --- 1 to 3: not what it says ---


@entry(1, "model missing", said="there is no file model")
@entry(1, "clean set missing", SCAN.replace("clean", "nowhere").format("sound.safetensors"), said="does not exist")
@entry(1, "report of a folder that is missing", "report nowhere", said="not the folder of a finished scan")
def nothing(folder):
    pass


@entry(1, "model a folder", said="is a folder")
def _(folder):
    (folder / "model").mkdir()


@entry(1, "model a FIFO", said="no regular file")
@entry(1, "clean set a FIFO", SCAN.replace("clean.npz", "model").format("sound.safetensors"), said="neither a file nor")
def _(folder):
    os.mkfifo(folder / "model")


@entry(1, "clean set a device", SCAN.replace("clean.npz", "/dev/zero").format("sound.safetensors"), said="neither a")
@entry(1, "model a device", SCAN.format("/dev/zero"), said="no regular file")
def _(folder):
    pass


@entry(2, "model empty", said="has 0 bytes")
@entry(2, "clean set empty", SCAN.replace("clean.npz", "model").format("sound.safetensors"), said="is empty")
def _(folder):
    (folder / "model").write_bytes(b"")


@entry(2, "model of 2 bytes", said="has 2 bytes")
@entry(2, "clean set of 2 bytes", SCAN.replace("clean.npz", "model").format("sound.safetensors"), said="of no format")
def _(folder):
    (folder / "model").write_bytes(b"PK")


@entry(3, "safetensors named .pt", HASTY_SCAN.format("model.pt"), JUDGED, "named .pt but holds safetensors")
def _(folder):
    shutil.copy(folder / "sound.safetensors", folder / "model.pt")


@entry(3, "text named .safetensors", SCAN.format("model.safetensors"), said="of no format that can be read")
def _(folder):
    (folder / "model.safetensors").write_text("no weights at all\n" * 20)


@entry(3, "pickle named .npz", SCAN.replace("clean", "evil").format("sound.safetensors"), said="a pickle", payload=True)
def _(folder):
    (folder / "evil.npz").write_bytes(pickle.dumps(Payload(folder), 2))


# --- 4 to 11: files that carry code ---


class Payload:
    """Leaves a mark as soon as it is unpickled."""

    def __init__(self, folder):
        self.target = str(folder / MARKER)

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(self.target)}",)


def torch_file(content, *, legacy=False):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def torch_zip(entries, path, *, compression=zipfile.ZIP_STORED):
    """An archive with the entries that torch.save writes, and others."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"m/version": b"3\n", "m/byteorder": b"little", **dict(entries)}.items():
            archive.writestr(name, content)


BYTES = "would run code|damaged|of no format|holds a"


@entry(4, "pickle, protocol 2", said="would run code", payload=True)
def _(folder):
    (folder / "model").write_bytes(pickle.dumps({"weight": Payload(folder)}, 2))


@entry(4, "pickle, protocol 0", said="of no format", payload=True)
def _(folder):
    (folder / "model").write_bytes(pickle.dumps({"weight": Payload(folder)}, 0))


@entry(4, "pickle, protocol 5", said=BYTES, payload=True)
def _(folder):
    (folder / "model").write_bytes(pickle.dumps({"weight": Payload(folder)}, 5))


@entry(4, "torch.save", said="would run code", payload=True)
def _(folder):
    (folder / "model").write_bytes(torch_file({"a": torch.zeros(2), "b": Payload(folder)}))


@entry(4, "torch.save before 1.6", said="would run code", payload=True)
def _(folder):
    (folder / "model").write_bytes(torch_file({"a": torch.zeros(2), "b": Payload(folder)}, legacy=True))


def resolving(folder):
    """``pkgutil.resolve_name('os:system')(...)``: no dangerous name stands in it as a global."""
    touch = f"touch {folder / MARKER}".encode()
    call = b"cpkgutil\nresolve_name\n(X" + struct.pack("<I", 9) + b"os:systemtR"
    return b"\x80\x02" + call + b"(X" + struct.pack("<I", len(touch)) + touch + b"tR."


@entry(5, "pkgutil.resolve_name", said="would run code", payload=True)
def _(folder):
    (folder / "model").write_bytes(resolving(folder))


@entry(5, "pkgutil.resolve_name in an archive", said="would run code", payload=True)
def _(folder):
    torch_zip({"m/data.pkl": resolving(folder)}, folder / "model")


@entry(6, "broken after REDUCE", said="would run code|damaged", payload=True)
def _(folder):
    (folder / "model").write_bytes(resolving(folder)[:-1] + b"\xff\xff\xff")


@entry(7, "two pickles, the second evil", said="holds a|damaged|would run", payload=True)
def _(folder):
    (folder / "model").write_bytes(pickle.dumps({"weight": 1}, 2) + pickle.dumps(Payload(folder), 2))


@entry(7, "evil pickle behind a torch.save file", HASTY_SCAN.format("model.pt"), {0, 1, 3, 4}, "^", payload=True)
def _(folder):
    content = torch_file(load_file(folder / "sound.safetensors"))
    (folder / "model.pt").write_bytes(content + pickle.dumps(Payload(folder), 2))


@entry(7, "evil pickle behind safetensors", said="damaged safetensors", payload=True)
def _(folder):
    content = (folder / "sound.safetensors").read_bytes()
    (folder / "model").write_bytes(content + pickle.dumps(Payload(folder), 2))


@entry(8, "memo of 20 million", said="damaged|more operations")
def _(folder):
    torch_zip({"m/data.pkl": b"\x80\x02}" + b"q\x00" * 20_000_000 + b"."}, folder / "model")


@entry(8, "memo index 2^32", said="holds no state_dict")
def _(folder):
    torch_zip({"m/data.pkl": b"\x80\x02}" + b"r\xff\xff\xff\xff" + b"."}, folder / "model")


@entry(8, "20 million lists on the stack", said="damaged|more operations")
@entry(8, "20 million lists on the stack, before 1.6", said="damaged|more operations")
def _(folder):
    (folder / "model").write_bytes(b"\x80\x02" + b"]" * 20_000_000 + b".")


@entry(8, "lists in lists, 400,000 deep", said="objects without end")
def _(folder):
    torch_zip({"m/data.pkl": b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b"."}, folder / "model")


@entry(8, "bytearray of 8 GB", said="asks for a bytearray")
def _(folder):
    """``torch.load(..., weights_only=True)`` would make it."""
    call = b"c__builtin__\nbytearray\n(\x8a\x08" + struct.pack("<q", 2**33) + b"tR"
    torch_zip({"m/data.pkl": b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s."}, folder / "model")


@entry(8, "text that claims 4 GB", said="damaged")
def _(folder):
    torch_zip({"m/data.pkl": b"\x80\x02X\xff\xff\xff\xffabc."}, folder / "model")


@entry(8, "lists that double 60 times", said="holds a|holds no state_dict")
def _(folder):
    doubling = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes((i + 1,)) + b"(h" + bytes((i,)) + b"h" + bytes((i,)) + b"e" for i in range(60)
    )
    torch_zip({"m/data.pkl": doubling + b"."}, folder / "model")


@entry(8, "name of tuples that double 60 times", said="objects without end")
def _(folder):
    """Hashing it would take 2^60 steps."""
    torch_zip({"m/data.pkl": b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x02s."}, folder / "model")


@entry(8, "name of tuples, 400,000 deep", said="objects without end")
def _(folder):
    """Hashing it would overflow the stack."""
    torch_zip({"m/data.pkl": b"\x80\x02}K\x01" + b"\x85" * 400_000 + b"K\x02s."}, folder / "model")


@entry(9, "TorchScript named .pt", SCAN.format("model.pt"), said="it is TorchScript")
def _(folder):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), folder / "model.pt")


@entry(10, ".pt2 with evil sample_inputs", SCAN.format("model.pt2"), said="exported program", payload=True)
def _(folder):
    evil = pickle.dumps(Payload(folder), 2)
    parts = {"m/archive_format": b"pt2", "m/archive_version": b"0", "m/models/model.json": b"{}",
             "m/data/sample_inputs/model.pt": evil, "m/data.pkl": evil}  # fmt: skip
    torch_zip(parts, folder / "model.pt2")


@entry(11, ".pt2 with a .so", SCAN.format("model.pt2"), said="exported program")
def _(folder):
    parts = {"m/archive_format": b"pt2", "m/data/aotinductor/model/evil.so": b"\x7fELF", "m/data.pkl": b"\x80\x02}."}
    torch_zip(parts, folder / "model.pt2")


OPENED = "scan {} --allow-code --data clean.npz"


@entry(9, "TorchScript that writes a file, --allow-code", OPENED.format("model.pt"), payload=True)
def _(folder):
    programs.evil_torchscript(folder / "model.pt", folder / MARKER)


@entry(10, "evil sample_inputs, --allow-code", OPENED.format("model.pt2"), said="failed", payload=True)
def _(folder):
    programs.evil_exported(folder / "model.pt2", folder / MARKER)


@entry(11, "a .so, --allow-code", OPENED.format("model.pt2"), said="compiled code")
def _(folder):
    parts = {"m/archive_format": b"pt2", "m/data/aotinductor/model/evil.so": b"\x7fELF", "m/data.pkl": b"\x80\x02}."}
    torch_zip(parts, folder / "model.pt2")


# --- 12 to 16: archives ---


@entry(12, "zip bomb", said="compressed or encrypted")
def _(folder):
    torch_zip({"m/data.pkl": bytes(200_000_000)}, folder / "model", compression=zipfile.ZIP_DEFLATED)


@entry(12, "zip within zip", said="not one that torch.save wrote")
def _(folder):
    torch_zip({"m/data.pkl": b"\x80\x02}."}, folder / "inner.zip")
    torch_zip({"m/model.zip": (folder / "inner.zip").read_bytes()}, folder / "model")


@entry(12, "npz bomb", SCAN.replace("clean", "bomb").format("sound.safetensors"), said="decompression bomb")
def _(folder):
    np.savez_compressed(folder / "bomb.npz", x=np.zeros((200, 1000, 1000), np.uint8), y=np.zeros(200, np.int64))


@entry(12, "arrays of a run folder that unfold", "report scanned", 3, "as a decompression bomb does",
       patches={"neuralsanitizer.storage:_MOST_UNFOLDED": 1e8})  # fmt: skip
def _(folder):
    """The limit is a GiB; a tenth of it is made faster."""
    with np.load(folder / "scanned/arrays.npz") as arrays:
        np.savez_compressed(folder / "scanned/arrays.npz", **arrays, more=np.zeros(200_000_000, np.uint8))


@entry(12, "arrays of a run folder that claim 100 GB", "report scanned", 3, "cannot be read")
def _(folder):
    archive_of(folder / "scanned/arrays.npz", examples=npy("(100000000, 1000)", bytes(500)))


@entry(13, "two data.pkl", said="two of one name")
def _(folder):
    with zipfile.ZipFile(folder / "model", "w") as archive:
        for content in (b"\x80\x02}.", pickle.dumps(Payload(folder), 2)):
            archive.writestr("m/data.pkl", content)


@entry(13, "two x.npy", SCAN.replace("clean", "twice").format("sound.safetensors"), said="two entries named 'x'")
def _(folder):
    with zipfile.ZipFile(folder / "twice.npz", "w") as archive:
        for name in ("x.npy", "y.npy", "x.npy"):
            archive.writestr(name, b"")


for what, bad in {"../": "../../evil", "absolute": "/tmp/evil", "backslashes": "..\\..\\evil"}.items():

    @entry(14, f"entry with {what} in its name", said="points outside")
    def _(folder, bad=bad):
        torch_zip({"m/data.pkl": b"\x80\x02}.", bad: b"x"}, folder / "model")


@entry(14, "entry with NUL in its name", said="refused|damaged|holds no")
def _(folder):
    torch_zip({"m/data.pkl": b"\x80\x02}.", "m/dataX..X": b"x"}, folder / "model")
    content = (folder / "model").read_bytes().replace(b"m/dataX..X", b"m/data\0..\0")
    (folder / "model").write_bytes(content)


@entry(15, "link in an archive", said="holds no state_dict")
def _(folder):
    link = zipfile.ZipInfo("m/data/0")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "model", "w") as archive:
        archive.writestr("m/version", b"3\n")
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr(link, "/etc/passwd")


@entry(15, "link out of a clean set", SCAN.replace("clean.npz", "set").format("sound.safetensors"), said="leads out of")
def _(folder):
    picture(folder / "secret.png")
    (folder / "set/0").mkdir(parents=True)
    (folder / "set/0/a.png").symlink_to(folder / "secret.png")


@entry(
    15, "hard link in a clean set: a file as any other", SCAN.replace("clean.npz", "set").format("sound.safetensors"),
    4, "inconclusive",
)  # fmt: skip
def _(folder):
    picture(folder / "elsewhere.png")
    (folder / "set/0").mkdir(parents=True)
    os.link(folder / "elsewhere.png", folder / "set/0/a.png")


@entry(16, "entries that overlap", said="overlap")
def _(folder):
    """Many names of the same bytes: 4 MB in the file, 4 GB in memory."""
    size, count = 4_000_000, 1000
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/version", b"3\n")
        archive.writestr("m/byteorder", b"little")
        archive.writestr("m/data.pkl", many_storages(count, size // 4))
        archive.writestr("m/data/0", bytes(size))
        first = archive.getinfo("m/data/0")
        for i in range(1, count):
            again = zipfile.ZipInfo(f"m/data/{i}")
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.compress_size = again.file_size = first.file_size
            archive.filelist.append(again)
    (folder / "model").write_bytes(buffer.getvalue())


def many_storages(count, elements, *, legacy=False):
    """The pickle of a state_dict of so many float32 tensors, each with a storage of its own."""
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return thing.identity if isinstance(thing, Storage) else None

    class Storage:
        def __init__(self, key):
            self.identity = ("storage", torch.FloatStorage, str(key), "cpu", elements, *[None] * legacy)

    class Tensor:
        def __init__(self, key):
            self.key = key

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(self.key), 0, (elements,), (1,), False, {})

    Pickler(buffer, 2).dump({f"t{i}": Tensor(i) for i in range(count)})
    return buffer.getvalue()


@entry(16, "encrypted entries", said="compressed or encrypted")
def _(folder):
    torch_zip({"m/data.pkl": b"\x80\x02}."}, folder / "model")
    content = bytearray((folder / "model").read_bytes())
    for found in re.finditer(b"PK\x01\x02", bytes(content)):
        content[found.start() + 8] |= 1
    (folder / "model").write_bytes(content)


# --- 17 to 21: safetensors ---


def safetensors_bytes(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def of(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@entry(17, "header longer than the file", said="its header claims")
def _(folder):
    (folder / "model").write_bytes(struct.pack("<Q", 5000) + b"{}" + bytes(100))


@entry(17, "header of 2^63 bytes", said="its header claims")
def _(folder):
    (folder / "model").write_bytes(struct.pack("<Q", 2**63) + b"{" + b" " * 100)


SAFETENSORS = {
    (18, "tensors that overlap"): ({"a": of([2], 0, 8), "b": of([2], 4, 12)}, bytes(12)),
    (18, "hole between tensors"): ({"a": of([1], 0, 4), "b": of([1], 8, 12)}, bytes(12)),
    (18, "trailing data"): ({"a": of([1], 0, 4)}, bytes(40)),
    (18, "data missing"): ({"a": of([100], 0, 400)}, bytes(40)),
    (19, "shape that overflows"): ({"a": of([2**63, 2**63], 0, 4)}, bytes(16)),
    (19, "shape that wraps around to the right size"): ({"a": of([2**32, 2**32, 1], 0, 0)}, bytes(16)),
    (19, "negative shape"): ({"a": of([-1, -4], 0, 16)}, bytes(16)),
    (19, "unknown dtype"): ({"a": of([4], 0, 16, "F33")}, bytes(16)),
    (20, "name that stands twice"): (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    (20, "space before the header"): (b' {"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    (20, "header of nothing but opening brackets"): (b'{"a":' + b"[" * 1_000_000, bytes(4)),
}
for (number, name), (header, body) in SAFETENSORS.items():

    @entry(number, name, said="damaged safetensors|of no format")
    def _(folder, header=header, body=body):
        (folder / "model").write_bytes(safetensors_bytes(header, body))


@entry(19, "tensor that stands for 4 TB without having them", said="claim more than the file holds")
def _(folder):
    (folder / "model").write_bytes(torch_file({"a": torch.zeros(1).expand(2**40)}))


@entry(19, "half-precision tensors over one storage, 1000 times", said="claim more than the file holds")
def _(folder):
    storage = torch.zeros(4_000_000, dtype=torch.float16)
    (folder / "model").write_bytes(torch_file({f"t{i}": storage[i:] for i in range(1000)}))


@entry(19, "storage that claims 256 GB", said="damaged|claim more")
def _(folder):
    torch_zip({"m/data.pkl": many_storages(1, 2**36), "m/data/0": bytes(64)}, folder / "model")


@entry(19, "storage that claims 256 GB, before 1.6", said="damaged|claim more")
def _(folder):
    """The five pickles of the old format, then a storage's length and content."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(thing, 2) for thing in (0x1950A86A20F9469CFC6C, 1001, system)]
    body = [many_storages(1, 2**36, legacy=True), pickle.dumps(["0"], 2), struct.pack("<q", 2**36), bytes(64)]
    (folder / "model").write_bytes(b"".join(head + body))


@entry(21, "100,000 tensors", said="do not fit the architecture")
def _(folder):
    header = {f"layer{i}.weight": of([], 4 * i, 4 * i + 4) for i in range(100_000)}
    (folder / "model").write_bytes(safetensors_bytes(header, bytes(400_000)))


@entry(21, "20,000 matrices, each of another number of labels", said="do not fit the architecture")
def _(folder):
    header, at = {}, 0
    for i in range(20_000):
        header[f"layer{i}.weight"] = of([i % 9000 + 2, 0], at, at)
    (folder / "model").write_bytes(safetensors_bytes(header, b""))


@entry(21, "names of 200,000 dots", said="names? of more than")
def _(folder):
    header = {"a." * 200_000 + str(i): of([], 4 * i, 4 * i + 4) for i in range(20)}
    (folder / "model").write_bytes(safetensors_bytes(header, bytes(80)))


# --- 22 to 26: clean sets ---


def npy(shape, body=b""):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def archive_of(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)


BAD = SCAN.replace("clean.npz", "bad").format("sound.safetensors")


@entry(22, "npz of 1 KB claiming 100 GB", BAD, said="at most 4,294,967,296 are read")
def _(folder):
    archive_of(folder / "bad", x=npy("(100000000, 1000)", bytes(500)), y=npy("(10,)", bytes(10)))


@entry(22, "npz of 1 KB claiming 1 GB", BAD, said="decompression bomb")
def _(folder):
    archive_of(folder / "bad", x=npy("(1000000, 1000)", bytes(500)), y=npy("(10,)", bytes(10)))


@entry(22, "IDX claiming 2^96", BAD.replace("bad", "t10k-images-idx3-ubyte"), said="its header claims")
def _(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + b"\xff" * 4 + bytes(100))


@entry(23, "pickled objects in an npz", BAD, said="pickled object array", payload=True)
def _(folder):
    objects = np.empty(50, dtype=object)
    objects[:] = [Payload(folder)] * 50
    np.savez(folder / "bad.npz", x=objects, y=np.arange(50) % 10)
    (folder / "bad.npz").rename(folder / "bad")


@entry(23, "pickled objects in an npy", BAD, said="single numpy array", payload=True)
def _(folder):
    objects = np.empty(1, dtype=object)
    objects[0] = Payload(folder)
    np.save(folder / "bad.npy", objects)
    (folder / "bad.npy").rename(folder / "bad")


def picture(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(path, **options)


def png(width, height, body):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@entry(24, "PNG of 20,000 x 20,000", BAD, said="decompression bomb")
def _(folder):
    (folder / "bad/0").mkdir(parents=True)
    (folder / "bad/0/a.png").write_bytes(png(20_000, 20_000, zlib.compress(bytes(1000))))


@entry(24, "PNG of 8,000 x 8,000 in 60 KB", BAD, 4, "resized to 28x28")
def _(folder):
    """As many pixels as are allowed, unpacked: it takes some time and memory, but no more than that."""
    (folder / "bad/0").mkdir(parents=True)
    (folder / "bad/0/a.png").write_bytes(png(8000, 8000, zlib.compress(bytes(8001) * 8000, 9)))


@entry(24, "PNG with 100 MB of text", BAD, said="damaged or truncated")
def _(folder):
    text = b"a\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    (folder / "bad/0").mkdir(parents=True)
    whole = png(28, 28, zlib.compress(bytes(29 * 28)))
    (folder / "bad/0/a.png").write_bytes(whole[:33] + chunk + whole[33:])


@entry(25, "truncated picture", BAD, said="damaged or truncated")
def _(folder):
    picture(folder / "bad/0/a.png")
    content = (folder / "bad/0/a.png").read_bytes()
    (folder / "bad/0/a.png").write_bytes(content[: len(content) // 2])


@entry(25, "animated picture", BAD, said="is animated")
def _(folder):
    frames = [Image.new("L", (28, 28), i) for i in range(5)]
    (folder / "bad/0").mkdir(parents=True)
    frames[0].save(folder / "bad/0/a.gif", save_all=True, append_images=frames[1:])


@entry(
    26, "CMYK, 16 bits, EXIF, palette", BAD, 4,
    "converted from 16 bits.*converted from mode CMYK.*converted from mode P.*turned upright",
)  # fmt: skip
def _(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "bad/0/exif.png", exif=exif)
    Image.new("CMYK", (28, 28), (0, 255, 255, 0)).save(folder / "bad/0/cmyk.jpg")
    Image.fromarray(np.full((28, 28), 257, np.uint16)).save(folder / "bad/0/deep.png")
    Image.new("RGB", (28, 28), (9, 8, 7)).quantize(4).save(folder / "bad/0/palette.png")


# --- 27 to 33: models that are none ---


def changed(folder, change):
    state = load_file(folder / "sound.safetensors")
    change(state)
    save_file(state, folder / "model")


@entry(27, "NaN weights", said="NaN or infinite weights")
def _(folder):
    changed(folder, lambda state: state["output.bias"].fill_(float("nan")))


@entry(27, "weights whose logits are infinite", said="gives NaN or infinite values")
def _(folder):
    changed(folder, lambda state: [tensor.fill_(1e38) for tensor in state.values()])


@entry(28, "a layer missing", said="missing: hidden.weight")
def _(folder):
    changed(folder, lambda state: state.pop("hidden.weight"))


@entry(28, "weights of another network", said=r"missing: .*left over: ")
def _(folder):
    save_file({f"other{i}": torch.zeros(3) for i in range(30)}, folder / "model")


@entry(29, "12 labels of a model of 10", SCAN.format("sound.safetensors") + " --labels 12", said="expected, .* found")
def _(folder):
    pass


@entry(29, "clean set with label 10", BAD, said="the data has 10")
def _(folder):
    np.savez(folder / "bad.npz", x=np.zeros((11, 28, 28), np.uint8), y=np.arange(11))
    (folder / "bad.npz").rename(folder / "bad")


@entry(29, "model of one label", said="do not fit|at least two")
def _(folder):
    changed(
        folder, lambda s: s.update({"output.weight": s["output.weight"][:1].clone(), "output.bias": torch.zeros(1)})
    )


def part_of(folder, chosen):
    with np.load(folder / "clean.npz") as clean:
        keep = chosen(clean["y"])
        np.savez(folder / "bad.npz", x=clean["x"][keep], y=clean["y"][keep])
    (folder / "bad.npz").rename(folder / "bad")


@entry(30, "labels absent from the clean set", BAD + " --preset hasty", {1, 4}, "inconclusive|infected")
def _(folder):
    part_of(folder, lambda y: y < 6)


@entry(30, "two images", BAD + " --preset hasty", 4, "inconclusive")
def _(folder):
    part_of(folder, lambda y: np.arange(len(y)) < 2)


def definition(folder, body, *, forward=""):
    text = "import torch\nfrom neuralsanitizer.models.architectures import build\n\n\n" + textwrap.dedent(body)
    if forward:
        text += (
            "\n\nclass Odd(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            f"        self.inner = build({ARCH!r})\n\n    def forward(self, x):\n"
            + textwrap.indent(textwrap.dedent(forward), " " * 8)
            + "\n\ndef make():\n    return Odd()\n"
        )
    (folder / "definition.py").write_text(text)


@entry(31, "constant model", DEFINED, 4, "inconclusive")
def _(folder):
    definition(folder, "", forward="return self.inner(x) * 0 + torch.arange(10.0)\n")


@entry(31, "model without gradients", DEFINED, 4, "inconclusive")
def _(folder):
    definition(folder, "", forward="with torch.no_grad():\n    return self.inner(x)\n")


@entry(31, "model of steps", DEFINED, 4, "inconclusive")
def _(folder):
    definition(folder, "", forward="return self.inner(x).round()\n")


@entry(31, "model that answers with labels", DEFINED, 3, "at least two logits|should give 10 values")
def _(folder):
    definition(folder, "", forward="return self.inner(x).argmax(1)\n")


@entry(31, "model that fails", DEFINED, 3, "does not take images|fails on images")
def _(folder):
    definition(folder, "", forward="raise RuntimeError('no')\n")


@entry(
    32,
    "wrong preprocessing",
    SCAN.format("sound.safetensors") + " --mean 5000 --std 1",
    4,
    "names only .* of the clean images",
)
def _(folder):
    pass


LIMIT = {"neuralsanitizer.models.bounds:MOST_SECONDS": 3.0}  # of a minute


@entry(33, "forward that never ends", DEFINED, 5, "takes longer than 3 s", patches=LIMIT)
def _(folder):
    definition(folder, "", forward="while True:\n    pass\n")


@entry(33, "forward of tensors that never ends", DEFINED, 5, "takes longer than 3 s", patches=LIMIT)
def _(folder):
    definition(folder, "", forward="while True:\n    x = x + 1\n")


@entry(33, "forward that asks for 256 GB", DEFINED, 3, "in one operation")
def _(folder):
    definition(folder, "", forward="return self.inner(x) + torch.zeros(2**36).sum()\n")


@entry(33, "forward that keeps allocating", DEFINED, 3, "in all", patches=LIMIT)
def _(folder):
    definition(folder, "", forward="kept = []\nwhile True:\n    kept.append(torch.empty(2**24))\n")


@entry(33, "images of 100,000 x 100,000", DEFINED + " --input-shape 1,100000,100000", 3, "in one operation")
def _(folder):
    definition(folder, "", forward="return self.inner(x)\n")


@entry(
    33, "forward that fills the memory without tensors", DEFINED, gap="only code of the user's own (--model-def) can; "
    "it runs in this process, without a limit of memory, for a minute",
)  # fmt: skip
def _(folder):
    definition(folder, "", forward="kept = []\nwhile True:\n    kept.append(bytes(2**24))\n")


ONNX = "scan model --data clean.npz"


def onnx_graph(nodes, constants, shape=("n", 1, 28, 28)):
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - an extra

    made = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", "m"))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def onnx_file(folder, nodes, constants):
    (folder / "model").write_bytes(onnx_graph(nodes, constants).SerializeToString())


@entry(33, "ONNX that expands to 4 TB", ONNX, 3, "in one operation", extra="onnx")
def _(folder):
    onnx_file(folder, [("Expand", ["x", "s"], ["y"])], {"s": np.array([2, 2**20, 2**10, 784], np.int64)})


@entry(33, "ONNX whose constant doubles 60 times", ONNX, 3, "in all", extra="onnx")
def _(folder):
    doubling = [("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], {"axis": 0}) for i in range(60)]
    onnx_file(folder, [*doubling, ("Add", ["x", "c60"], ["y"])], {"c0": np.ones(1, np.float32)})


@entry(33, "ONNX whose constant is an outer product", ONNX, 3, "in one operation", extra="onnx")
def _(folder):
    tall, wide = np.ones((2**20, 1), np.float32), np.ones((1, 2**20), np.float32)
    onnx_file(folder, [("Add", ["a", "b"], ["c"]), ("Add", ["x", "c"], ["y"])], {"a": tall, "b": wide})


@entry(33, "ONNX padded by a million", ONNX, 3, "in one operation", extra="onnx")
def _(folder):
    pads = np.array([0, 0, 10**6, 10**6] * 2, np.int64)
    onnx_file(folder, [("Pad", ["x", "p"], ["y"])], {"p": pads})


@entry(33, "ONNX convolution padded by a million", ONNX, 3, "in one operation", extra="onnx")
def _(folder):
    conv = ("Conv", ["x", "w"], ["y"], {"pads": [10**6] * 4})
    onnx_file(folder, [conv], {"w": np.ones((1, 1, 3, 3), np.float32)})


@entry(33, "ONNX whose layers share one matrix, 19,000 times", ONNX, 3, "in all", extra="onnx")
def _(folder):
    steps = [("MatMul", [f"h{i}", "v"], [f"h{i + 1}"]) for i in range(19_000)]
    nodes = [("Flatten", ["x"], ["h0"]), *steps, ("Identity", ["h19000"], ["y"])]
    onnx_file(folder, nodes, {"v": np.full((784, 784), 1e-3, np.float32)})


@entry(33, "ONNX of slow steps", ONNX, 5, "takes longer than 3 s", patches=LIMIT, extra="onnx")
def _(folder):
    """Products of 3,000 x 3,000, one after the other."""
    first = [("Flatten", ["x"], ["f"]), ("MatMul", ["f", "w"], ["g"]), ("Transpose", ["g"], ["t"])]
    steps = [("MatMul", [f"h{i}", f"h{i}"], [f"h{i + 1}"]) for i in range(200)]
    nodes = [*first, ("MatMul", ["t", "g"], ["h0"]), *steps, ("Identity", ["h200"], ["y"])]
    onnx_file(folder, nodes, {"w": np.full((784, 3000), 1e-4, np.float32)})


# --- 34 to 36: folders and graphs that point elsewhere ---

HUB = "scan hub --data clean.npz"


def hub(folder, *, weights=True, **changes):
    """A model folder, as small as one can be, with changes to its configuration."""
    config = {
        "model_type": "resnet", "architectures": ["ResNetForImageClassification"], "num_channels": 1,
        "embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic", "image_size": 28,
        "id2label": {str(i): f"label {i}" for i in range(3)}, "label2id": {f"label {i}": i for i in range(3)},
        **changes,
    }  # fmt: skip
    (folder / "hub").mkdir()
    (folder / "hub/config.json").write_text(json.dumps(config))
    if weights:
        save_file({"a": torch.zeros(4)}, folder / "hub/model.safetensors")


@entry(34, "auto_map", HUB, said="asks for code of the folder's own", payload=True, extra="transformers")
def _(folder):
    hub(folder, auto_map={"AutoModelForImageClassification": "modeling_evil.Evil"})
    (folder / "hub/modeling_evil.py").write_text(f"open({str(folder / MARKER)!r}, 'w').close()\n")


@entry(34, "pickle alone", HUB, said="only safetensors are read", payload=True, extra="transformers")
def _(folder):
    hub(folder, weights=False)
    (folder / "hub/pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder), 2))


@entry(34, "a billion labels", HUB, said="labels", extra="transformers")
def _(folder):
    hub(folder, id2label=None, label2id=None, num_labels=10**9)


@entry(34, "a billion layers", HUB, said="layers|tensors", extra="transformers", patches=LIMIT)
def _(folder):
    hub(folder, model_type="vit", num_hidden_layers=10**9, hidden_size=4, num_attention_heads=1)


@entry(34, "layers a million wide", HUB, said="do not fit|more weights", extra="transformers")
def _(folder):
    hub(folder, embedding_size=10**6, hidden_sizes=[10**6])


@entry(34, "depths of a billion", HUB, said="layers|tensors", extra="transformers", patches=LIMIT)
def _(folder):
    hub(folder, depths=[10**9])


for what, file in {"..": "../secret.safetensors", "absolute": "/etc/passwd.safetensors"}.items():

    @entry(35, f"shard outside the folder, {what}", HUB, said="no shard of this folder", extra="transformers")
    def _(folder, file=file):
        hub(folder, weights=False)
        (folder / "hub/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
        save_file({"a": torch.zeros(4)}, folder / "secret.safetensors")


@entry(35, "shard that is a pipe", HUB, said="no regular file", extra="transformers")
def _(folder):
    hub(folder, weights=False)
    os.mkfifo(folder / "hub/a.safetensors")
    (folder / "hub/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))


for what, file in {"..": "../../../etc/passwd", "absolute": "/etc/passwd", "beside": "weights.bin"}.items():

    @entry(36, f"external weights, {what}", ONNX, said="weights lie in other files", extra="onnx")
    def _(folder, file=file):
        proto = onnx_graph([("Add", ["x", "k"], ["y"])], {"k": np.ones(1, np.float32)})
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value=file)
        (folder / "model").write_bytes(proto.SerializeToString())


@entry(36, "operator of its own", ONNX, said="operators of its own", extra="onnx")
def _(folder):
    onnx_file(folder, [("Evil", ["x"], ["y"], {"domain": "com.example"})], {})


@entry(36, "operator that is not known", ONNX, said="operator Loop is not known|damaged", extra="onnx")
def _(folder):
    onnx_file(folder, [("Loop", ["x", "x", "x"], ["y"])], {})


# --- 37 to 42 ---


def shown_safely(folder):
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    assert "<script" not in page, "the page holds a script"
    assert "<img src=x" not in page, "the page holds a foreign picture"
    assert not hidden_in(page), "the page holds control characters"


@entry(
    37, "hostile label names", HASTY_SCAN.format("sound.safetensors") + " --label-names names.txt", JUDGED, "^",
    check=shown_safely,
)  # fmt: skip
def _(folder):
    names = [" ".join(name.split()) or "?" for name in HOSTILE if name not in {"", "\ud800"}][:10]
    (folder / "names.txt").write_text("\n".join(names), encoding="utf-8")


@entry(37, "label names a FIFO", SCAN.format("sound.safetensors") + " --label-names pipe", 2, "is no file")
def _(folder):
    os.mkfifo(folder / "pipe")


@entry(37, "hostile tensor names", said="left over")
def _(folder):
    names = [name for name in HOSTILE if name not in {"\ud800", ""} and len(name) < 900]
    changed(folder, lambda state: state.update({name: torch.zeros(1) for name in names}))


@entry(37, "hostile tensor names in a model folder", HUB, said="do not fit", extra="transformers")
def _(folder):
    hub(folder, weights=False)
    names = [name for name in HOSTILE if name not in {"\ud800", ""} and len(name) < 900]
    save_file({name: torch.zeros(1000) for name in names}, folder / "hub/model.safetensors")


def sounds(folder, header=lambda content: content, frames=bytes(2000)):
    (folder / "bad/0").mkdir(parents=True)
    with wave.open(str(folder / "bad/0/a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(frames)
    path = folder / "bad/0/a.wav"
    path.write_bytes(header(path.read_bytes()))


@entry(38, "WAV of zero length", BAD, said="empty or truncated")
def _(folder):
    sounds(folder, frames=b"")


@entry(38, "WAV of 2 billion samples a second", BAD, said="samples a second of 16 bits")
def _(folder):
    sounds(folder, lambda b: b[:24] + b"\xff\xff\xff\x7f" + b[28:])


@entry(38, "WAV that claims 4 GB", BAD, said="the MFCC of the recordings are")
def _(folder):
    """Read as far as it goes; then it does not fit a model of pictures."""
    sounds(folder, lambda b: b[:4] + b"\xff\xff\xff\x7f" + b[8:40] + b"\xf0\xff\xff\x7f" + b[44:])


@entry(38, "WAVs of two rates", BAD, said="convert all of them to one rate")
def _(folder):
    sounds(folder)
    content = (folder / "bad/0/a.wav").read_bytes()
    (folder / "bad/0/b.wav").write_bytes(content[:24] + struct.pack("<2I", 16_000, 32_000) + content[32:])


@entry(
    39, "configuration file, which there is not", SCAN.format("sound.safetensors") + " --config c.yaml", 2, "No such"
)
def _(folder):
    (folder / "c.yaml").write_text("!!python/object/apply:os.system ['touch marker']\n")


OTHERS = "of another model, data set, configuration"
RESUME = "scan sound.safetensors --arch mnist-cnn-small --data clean.npz --preset hasty --output scanned --resume"


@entry(40, "the very scan", RESUME, JUDGED, "^")
@entry(40, "resume from another configuration", RESUME + " --seed 7", said=OTHERS)
@entry(40, "resume where nothing is", RESUME.replace("scanned", "run"), said="no interrupted scan to resume")
def _(folder):
    pass


@entry(40, "resume from another model", RESUME.replace("sound.safetensors", "model"), said=OTHERS)
def _(folder):
    changed(folder, lambda state: state["output.bias"].add_(1))


@entry(40, "resume from other data", RESUME.replace("clean.npz", "bad"), said=OTHERS)
def _(folder):
    part_of(folder, lambda y: np.arange(len(y)) > 0)


REPAIR = "repair model --run scanned --data clean.npz --output fixed.safetensors"


@entry(41, "model changed after its scan", REPAIR, said="the run is of another model")
def _(folder):
    changed(folder, lambda state: state["output.bias"].add_(1))


@entry(41, "model changed while it is scanned: it was read once", HASTY_SCAN.format("model"), JUDGED, "^",
       signal="swap", then=REPAIR.replace("scanned", "run"), then_codes=frozenset({3}))  # fmt: skip
def _(folder):
    changed(folder, lambda state: state["output.bias"].add_(1))
    (folder / "model").rename(folder / "other")
    shutil.copy(folder / "sound.safetensors", folder / "model")


@entry(42, "output folder in use", RESUME.removesuffix(" --resume"), said="exists and is not empty")
def _(folder):
    pass


@entry(42, "output a file", HASTY_SCAN.format("sound.safetensors"), 2, "is a file")
def _(folder):
    (folder / "run").write_text("mine")


def no_result(folder):
    assert not (folder / "run/run.json").exists(), "a result in spite of the error"


@entry(42, "disk full", HASTY_SCAN.format("sound.safetensors"), said="cannot be written", file_limit=20_000,
       check=no_result)  # fmt: skip
@entry(42, "Ctrl-C, then --resume", HASTY_SCAN.format("sound.safetensors"), 130, "interrupted", signal="SIGINT",
       then=HASTY_SCAN.format("sound.safetensors") + " --resume")  # fmt: skip
@entry(42, "SIGKILL, then --resume", HASTY_SCAN.format("sound.safetensors"), -9, "^", signal="SIGKILL",
       then=HASTY_SCAN.format("sound.safetensors") + " --resume")  # fmt: skip
def _(folder):
    pass


# --- each entry in a process of its own ---

PROGRAM = """
import importlib, json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts in the background
from neuralsanitizer import config
from neuralsanitizer.cli.main import main
from tiny import HASTY
config.PRESETS["hasty"] = HASTY
for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, attribute = name.partition(":")
    setattr(importlib.import_module(module), attribute, value)
main()
"""
"""The program with one more preset, which costs a second, and with the patches of an entry."""

# Memory is measured by a small process: a child counts its parent as its own until it loads a program.
LAUNCHER = """
import json, os, resource, signal, sys, time
from glob import glob
command, limit, files, wanted = json.loads(sys.argv[1])
started, sent = time.monotonic(), False
child = os.fork()
if child == 0:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"../{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (files, files))
    os.execv(command[0], command)
while not (done := os.wait4(child, os.WNOHANG))[0]:
    if time.monotonic() - started > limit:
        os.kill(child, signal.SIGKILL)
    if wanted and not sent and glob("run/state/reference-*.npz"):
        sent = True
        if wanted == "swap":
            os.replace("other", "model")
        else:
            os.kill(child, getattr(signal, wanted))
    time.sleep(0.005)
_, status, usage = done
seconds = time.monotonic() - started, usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), *seconds, usage.ru_maxrss / 1000]))
"""


def in_a_process(command, folder, patches, *, limit=60.0, files=0, wanted=""):
    """Call the program: how it ended, seconds by the clock and of work, and megabytes at its largest."""
    called = [sys.executable, "-c", PROGRAM, json.dumps(patches), *shlex.split(command)]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, json.dumps([called, limit, files, wanted])],
        cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "80", "NO_COLOR": "1"},
    )  # fmt: skip
    code, *figures = json.loads(launched.stdout)
    told = [(folder.parent / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")]
    return Ended(code, *told), Figures(*figures)


class Figures(NamedTuple):
    """What the program took."""

    seconds: float
    work: float
    megabytes: float


def missing_extra(one):
    """Whether the package that an entry needs is not installed."""
    return bool(one.extra) and importlib.util.find_spec(one.extra) is None


def tried(one, kit, base):
    """One line of the table: what became of the entry, exit code, what it took, what was said."""
    if one.gap or missing_extra(one):
        return ("gap" if one.gap else "skipped", None, None, one.gap or f"{one.extra} is not installed")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "here"
        folder.mkdir()
        lay_out(one, kit, folder)
        ended, took = in_a_process(one.command, folder, one.patches, files=one.file_limit, wanted=one.signal)
        wrong = complaints(one, ended, folder)
        if one.then:
            after, _ = in_a_process(one.then, folder, one.patches)
            if after.code not in one.then_codes:
                wrong.append(f"afterwards: exit code {after.code}: {after.stderr[-300:]}")
    if took.work - base.work > SECONDS:
        wrong.append(f"{took.work - base.work:.1f} s of work")
    if took.megabytes - base.megabytes > MEGABYTES:
        wrong.append(f"{took.megabytes - base.megabytes:.0f} MB")
    said = next((line for line in ended.stderr.splitlines() if re.match("error|inter", line)), ended.stdout[:200])
    return "NOT OK" if wrong else "ok", ended.code, took, "; ".join(wrong) or " ".join(said.split())


def main():
    """Try all entries, or those whose titles match, and print the table; the exit code is 1 if one is not ok."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="regular expression of titles")
    wanted = re.compile(parser.parse_args().pattern)
    with tempfile.TemporaryDirectory() as place:
        kit = Path(place) / "kit"
        kit.mkdir()
        make_kit(kit)
        ended, base = in_a_process("--version", kit, {})
        assert ended.code == 0, ended
        print(
            f"baseline: {base.seconds:.1f} s, {base.work:.1f} s of work, {base.megabytes:.0f} MB "
            "(the program says its version)"
        )
        print(
            f"{'input':64} {'code':>4} {'s':>5} {'work':>5} {'+work':>5} {'MB':>5} {'+MB':>5}  "
            "outcome: first line of what was said"
        )
        counts = Counter()
        for one in sorted(ENTRIES, key=lambda one: one.number):
            if wanted.search(one.title):
                outcome, code, took, said = tried(one, kit, base)
                counts[outcome] += 1
                figures = ("    -" * 6).removeprefix(" ").ljust(34)
                if took is not None:
                    more = max(0.0, took.work - base.work), max(0.0, took.megabytes - base.megabytes)
                    figures = f"{code:4} {took.seconds:5.1f} {took.work:5.1f} {more[0]:5.1f} "
                    figures += f"{took.megabytes:5.0f} {more[1]:5.0f}"
                print(f"{one.title:64} {figures}  {outcome}: {said[: 100 if outcome == 'ok' else 600]}", flush=True)
        print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    return int(counts["NOT OK"] > 0)


if __name__ == "__main__":
    sys.exit(main())
