"""Damaged files by the thousand: every parser gives a result or one of the package's own errors.

``FUZZ_SECONDS=60 python tests/fuzz.py`` mutates small valid files of each format, and prints how many were tried. What
ends in another exception is printed with its seed and kept as a file; so is what was being read if the process dies.
``FUZZ_SEED`` begins elsewhere.
"""

import io
import json
import os
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
import wave
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from neuralsanitizer.data import load_clean_set
from neuralsanitizer.errors import NeuralSanitizerError
from neuralsanitizer.models import load_model
from neuralsanitizer.models.architectures import build
from neuralsanitizer.models.formats import parse_weights

KEPT = Path(os.environ.get("FUZZ_KEEP", "fuzz-crashes"))
INTERESTING = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1]
TOKENS = [
    b"0",
    b"-1",
    b"1e999",
    b"null",
    b"NaN",
    b'""',
    b"[]",
    b"{}",
    b"9" * 20,
    b"true",
    b'"../x"',
    b"\xff\xfe",
    b"\0",
]


# --- valid files ---


def small_state():
    torch.manual_seed(0)
    return {
        "first.weight": torch.rand(3, 2),
        "first.bias": torch.rand(3),
        "steps": torch.tensor(7),
        "half": torch.rand(4).half(),
    }


def torch_zip():
    content = io.BytesIO()
    torch.save({"state_dict": small_state()}, content)
    return content.getvalue()


def torch_legacy():
    content = io.BytesIO()
    torch.save(small_state(), content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def npz(compressed):
    content = io.BytesIO()
    write = np.savez_compressed if compressed else np.savez
    write(content, x=np.arange(240, dtype=np.uint8).reshape(10, 4, 6), y=np.arange(10) % 3)
    return content.getvalue()


def idx(axes, values):
    return bytes((0, 0, 8, len(axes))) + struct.pack(f">{len(axes)}I", *axes) + values


def wav(width):
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(bytes(range(256)) * 10 * width)
    return content.getvalue()


def onnx_file(nodes, constants):
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - an extra

    made = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **settings) for kind, inputs, outputs, settings in nodes], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 2, 6, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 3))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def onnx_files():
    """Networks with most kinds of operators, and of shapes computed on the way."""
    rng = np.random.default_rng(0)
    some = lambda *shape: rng.random(shape).astype(np.float32)  # noqa: E731
    layers = onnx_file(
        [
            ("Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1], "strides": [1, 1]}),
            ("BatchNormalization", ["c", "s", "s", "s", "v"], ["n"], {}),
            ("Relu", ["n"], ["r"], {}),
            ("MaxPool", ["r"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Flatten", ["p"], ["f"], {}),
            ("Gemm", ["f", "d", "e"], ["y"], {"transB": 1}),
        ],
        {"w": some(4, 2, 3, 3), "b": some(4), "s": some(4), "v": some(4) + 1, "d": some(3, 36), "e": some(3)},
    )
    shapes = onnx_file(
        [
            ("Pad", ["x", "pads"], ["q"], {}),
            ("Slice", ["q", "one", "three", "two"], ["l"], {}),
            ("Shape", ["l"], ["s"], {}),
            ("Gather", ["s", "zero"], ["n"], {"axis": 0}),
            ("Concat", ["n", "rest"], ["to"], {"axis": 0}),
            ("Reshape", ["l", "to"], ["f"], {}),
            ("ConstantOfShape", ["sizes"], ["k"], {}),
            ("MatMul", ["f", "k"], ["m"], {}),
            ("Expand", ["m", "one"], ["z"], {}),
            ("Softmax", ["z"], ["y"], {"axis": 1}),
        ],
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.array([1]), "two": np.array([2]), "zero": np.array([0]),
         "three": np.array([4]), "rest": np.array([-1]), "sizes": np.array([48, 3])},
    )  # fmt: skip
    return [layers, shapes]


def model_folder():
    """Files of a folder by name: a network, in shards."""
    import transformers  # noqa: PLC0415 - an extra

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3
    )
    with tempfile.TemporaryDirectory() as place:
        model = transformers.AutoModelForImageClassification.from_config(config)
        model.save_pretrained(place)
        files = {path.name: path.read_bytes() for path in Path(place).iterdir()}
    names = list(model.state_dict())
    files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    ).encode()
    files["preprocessor_config.json"] = json.dumps(
        {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5], "image_std": [0.5],
         "size": {"height": 8, "width": 8}}
    ).encode()  # fmt: skip
    return files


# --- damage ---


def flip(content, rng):
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite(content, rng):
    """A number that sizes go wrong with, in the place of another."""
    size, order = rng.choice([1, 2, 4, 8]), rng.choice("<>")
    at = rng.randrange(max(1, min(len(content) - size, rng.choice([32, 128, 1 << 20]))))
    value = rng.choice(INTERESTING) + rng.choice([0, 0, -1, 1, len(content)])
    content[at : at + size] = struct.pack(order + "Q", value % 2**64)[:: 1 if order == "<" else -1][:size]


def truncate(content, rng):
    del content[rng.randrange(len(content)) :]


def remove(content, rng):
    at = rng.randrange(len(content))
    del content[at : at + rng.choice([1, 2, 8, 64])]


def splice(content, rng):
    start, at = rng.randrange(len(content)), rng.randrange(len(content))
    content[at:at] = content[start : start + rng.choice([1, 8, 64, 512])]


def insert(content, rng):
    at = rng.randrange(len(content))
    content[at:at] = rng.choice([*TOKENS, rng.randbytes(8)])


def renumber(content, rng):
    """Another value for a number that is written as text."""
    digits = [i for i, byte in enumerate(content) if byte in b"0123456789"]
    if digits:
        at = rng.choice(digits)
        end = at
        while end < len(content) and content[end] in b"0123456789.":
            end += 1
        content[at:end] = rng.choice([*TOKENS, str(rng.choice(INTERESTING)).encode()])


DAMAGES = (flip, flip, overwrite, overwrite, truncate, remove, splice, insert, renumber, renumber)


def damaged(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if content:
            rng.choice(DAMAGES)(content, rng)
    return bytes(content)


# --- formats: what to damage, and what reads it ---


def read_weights(_, content):
    parse_weights(content, Path("model"))


def read_npz(folder, content):
    (folder / "set.npz").write_bytes(content)
    load_clean_set(folder / "set.npz")


class Within:
    """Reads an archive of which one entry is another, whose checksum is right."""

    def __init__(self, archive, entry, read):
        self.entry, self.read = entry, read
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            self.parts = {info.filename: opened.read(info) for info in opened.infolist()}

    @property
    def sample(self):
        return self.parts[self.entry]

    def __call__(self, folder, content):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, part in {**self.parts, self.entry: content}.items():
                archive.writestr(name, part)
        self.read(folder, buffer.getvalue())


def read_idx(folder, content):
    """The two files in one, parted by their magic."""
    images, magic, labels = content.partition(b"\0\0\x08\x01")
    (folder / "t-images-idx3-ubyte").write_bytes(images)
    (folder / "t-labels-idx1-ubyte").write_bytes(magic + labels)
    load_clean_set(folder / "t-images-idx3-ubyte")


def read_wav(folder, content):
    for label in "01":
        (folder / label).mkdir(exist_ok=True)
        (folder / label / "a.wav").write_bytes(content)
    load_clean_set(folder)


def read_onnx(folder, content):
    (folder / "model.onnx").write_bytes(content)
    load_model(folder / "model.onnx")


class Hub:
    """Reads a model folder of which one file is another."""

    def __init__(self, files, name):
        self.files, self.name = files, name

    def __call__(self, folder, content):
        for name, file in {**self.files, self.name: content}.items():
            (folder / name).write_bytes(file)
        load_model(folder)


def formats():
    """By name: valid files, and what reads them."""
    torch.manual_seed(0)
    network = build("mnist-cnn-small").state_dict()
    pickled, array = Within(torch_zip(), "archive/data.pkl", read_weights), Within(npz(False), "x.npy", read_npz)
    found = {
        "safetensors": ([save(small_state()), save({"a": next(iter(network.values()))})], read_weights),
        "torch zip": ([torch_zip()], read_weights),
        "torch zip, data.pkl": ([pickled.sample], pickled),
        "torch before 1.6": ([torch_legacy()], read_weights),
        "npz": ([npz(False), npz(True)], read_npz),
        "npz, x.npy": ([array.sample], array),
        "IDX": ([idx((10, 4, 6), bytes(240)) + idx((10,), bytes(i % 3 for i in range(10)))], read_idx),
        "WAV": ([wav(1), wav(2), wav(3)], read_wav),
    }
    if find_spec("onnx"):
        found["ONNX"] = (onnx_files(), read_onnx)
    if find_spec("transformers"):
        files = model_folder()
        for name in ("config.json", "preprocessor_config.json", "model.safetensors.index.json"):
            found[f"Hugging Face {name}"] = ([files[name]], Hub(files, name))
    return found


def tried(name, samples, read, seed):
    """One damaged file: ``read``, ``refused``, or the crash as text. It is kept while it is read, and if it crashes."""
    rng = random.Random(f"{name} {seed}")
    content = damaged(rng.choice(samples), rng)
    kept = KEPT / f"{name.replace(' ', '-')}-{seed}"
    kept.write_bytes(content)
    try:
        with tempfile.TemporaryDirectory() as folder:
            read(Path(folder), content)
    except NeuralSanitizerError:
        outcome = "refused"
    except Exception:  # noqa: BLE001 - what it looks for
        return traceback.format_exc()
    else:
        outcome = "read"
    kept.unlink()
    return outcome


def main():
    """Give each format its share of FUZZ_SECONDS; the exit code is 1 if anything crashed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_SEED", "0"))
    KEPT.mkdir(exist_ok=True)
    every = formats()
    crashes = Counter()
    for name, (samples, read) in every.items():
        read_whole = Counter()
        for sample in samples:  # what is damaged is valid
            with tempfile.TemporaryDirectory() as folder:
                read(Path(folder), sample)
        end, slowest, number = time.monotonic() + seconds / len(every), (0.0, 0), seed
        while time.monotonic() < end:
            started = time.monotonic()
            outcome = tried(name, samples, read, number)
            slowest = max(slowest, (time.monotonic() - started, number))
            if outcome not in {"read", "refused"}:
                crashes[name] += 1
                print(f"CRASH: {name}, seed {number}, kept in {KEPT}\n{outcome}", flush=True)
            read_whole[outcome if outcome in {"read", "refused"} else "crashed"] += 1
            number += 1
        told = ", ".join(f"{count} {what}" for what, count in sorted(read_whole.items()))
        print(
            f"{name:42} {sum(read_whole.values()):7} tried: {told}; slowest {slowest[0]:.2f} s, seed {slowest[1]}",
            flush=True,
        )
    if not any(KEPT.iterdir()):
        KEPT.rmdir()
    return int(bool(crashes))


if __name__ == "__main__":
    sys.exit(main())
