"""Whatever comes in, the program ends with the exit code that says whose fault it is, one line, and no traceback."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from neuralsanitizer.cli import scan as scan_module
from neuralsanitizer.cli.main import app
from program import ARCH, run

DATA = ("--data", "mnist5k")


class Payload:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return exec, (f"open({self.target!r}, 'w').close()",)


def pickled(payload, protocol=2):
    return pickle.dumps({"weight": payload}, protocol)


def saved(payload, *, legacy):
    buffer = io.BytesIO()
    torch.save({"state_dict": payload}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def hidden(payload):
    """A model in two pickles, the second of which does the harm."""
    return pickle.dumps({"weight": 1}) + pickled(payload)


def torchscript(payload):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", pickled(payload))
        archive.writestr("m/constants.pkl", pickled(payload))
        archive.writestr("m/code/net.py", "open('evil', 'w')")
    return buffer.getvalue()


BAITS = {
    "bare pickle": pickled,
    "text pickle": lambda payload: pickled(payload, 0),
    "two pickles": hidden,
    "torch.save": lambda payload: saved(payload, legacy=False),
    "torch.save before 1.6": lambda payload: saved(payload, legacy=True),
    "TorchScript": torchscript,
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("bait", BAITS)
def test_a_model_file_that_would_run_code_does_not(bait, suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a wish of the environment changes nothing
    marker, path = tmp_path / "marker", tmp_path / f"model{suffix}"
    path.write_bytes(BAITS[bait](Payload(marker)))
    outcome = run("scan", path, "--arch", ARCH, *DATA)
    assert not marker.exists()
    assert (outcome.code, outcome.stdout) == (3, "")
    assert path.name in outcome.stderr
    assert not (tmp_path / "runs").exists()


def test_the_baits_are_live(tmp_path):
    """Without the loader's care the marker would be there: the test above can fail."""
    for name, open_it in (("a", pickle.loads), ("b", lambda b: torch.load(io.BytesIO(b), weights_only=False))):
        marker = tmp_path / name
        open_it(pickled(Payload(marker)) if name == "a" else saved(Payload(marker), legacy=False))
        assert marker.exists()


def test_a_clean_set_of_pickled_objects_does_not_run_code(tmp_path, files):
    marker = tmp_path / "marker"
    objects = np.empty(50, dtype=object)
    objects[:] = [Payload(marker)] * 50
    np.savez(tmp_path / "evil.npz", x=objects, y=np.arange(50) % 10)
    outcome = run("scan", files.attacked, "--arch", ARCH, "--data", "evil.npz")
    assert not marker.exists()
    assert (outcome.code, outcome.stdout) == (3, "")


def empty(path):
    path.write_bytes(b"")


def short(path):
    path.write_bytes(b"PK")


def noise(path):
    path.write_bytes(bytes(range(256)) * 64)


def text(path):
    path.write_text("these are no weights, whatever the name says\n" * 20)


def cut(path, files):
    path.write_bytes(files.attacked.read_bytes()[:5000])


def claims_much(path):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{" + b" " * 64)


def archive_without_weights(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def not_finite(path, files):
    state = load_file(files.attacked)
    state["output.bias"][3] = float("nan")
    save_file(state, path)


def lacks_a_layer(path, files):
    save_file({name: value for name, value in load_file(files.attacked).items() if "hidden" not in name}, path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (None, "there is no file"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "no regular file"),
        (empty, "has 0 bytes"),
        (short, "has 2 bytes"),
        (noise, "of no format that can be read"),
        (text, "of no format that can be read"),
        (cut, "damaged safetensors file"),
        (claims_much, "its header claims"),
        (archive_without_weights, "not one that torch.save wrote"),
        (not_finite, "NaN or infinite weights"),
        (lacks_a_layer, "missing: hidden.weight"),
    ],
)
def test_a_model_file_that_is_none_is_named_and_ends_with_3(make, reason, files, tmp_path):
    path = tmp_path / "model.safetensors"
    if make is not None:
        make(path, files) if make in {cut, not_finite, lacks_a_layer} else make(path)
    outcome = run("scan", path, "--arch", ARCH, *DATA)
    assert (outcome.code, outcome.stdout) == (3, "")
    assert reason in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (None, "does not exist"),
        (lambda path: path.mkdir(), "."),
        (empty, "is empty"),
        (short, "of no format"),
        (noise, "of no format"),
        (lambda path: np.savez(path, x=np.zeros((50, 28, 28), np.uint8)), "y"),
        (lambda path: np.savez(path, x=np.zeros((50, 28, 28), np.uint8), y=np.full(50, 10)), "the data has 10"),
        (lambda path: np.savez(path, x=np.full((50, 28, 28), np.nan), y=np.arange(50) % 10), "NaN"),
    ],
)
def test_a_clean_set_that_is_none_is_named_and_ends_with_3(make, reason, files, tmp_path):
    path = tmp_path / "clean.npz"
    if make is not None:
        make(path)
    outcome = run("scan", files.attacked, "--arch", ARCH, "--data", path)
    assert (outcome.code, outcome.stdout) == (3, "")
    assert outcome.stderr.startswith("error: ")
    assert reason in outcome.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--arch", "alexnet"), "unknown architecture 'alexnet': choose one of"),
        ((), "give the architecture"),
        (("--arch", ARCH, "--method", "magic"), "unknown method 'magic': choose one of"),
        (("--arch", ARCH, "--preset", "magic"), "unknown preset 'magic' of neural-sanitizer: choose one of"),
        (("--arch", ARCH, "--frobnicate"), "No such option"),
        (("--arch", ARCH, "--format", "yaml"), "'yaml' is not one of"),
        (("--arch", ARCH, "--fail-on", "clean"), "'clean' is not one of"),
        (("--arch", ARCH, "--labels", 1), "--labels"),
        (("--arch", ARCH, "--labels", "ten"), "--labels"),
        (("--arch", ARCH, "--limit", 0), "--limit"),
        (("--arch", ARCH, "--seed", -1), "--seed"),
        (("--arch", ARCH, "--seed", 2**64), "--seed"),
        (("--arch", ARCH, "--device", "tpu"), "unknown device 'tpu'"),
        (("--arch", ARCH, "--device", "cuda:99"), "is not available on this machine"),
        (("--arch", ARCH, "--mean", "half"), "--mean takes numbers"),
        (("--arch", ARCH, "--mean", "0.5"), "give both (--mean and --std)"),
        (("--arch", ARCH, "--mean", "0.5,0.5", "--std", "1"), "1 channels"),
        (("--arch", ARCH, "--mean", "0.5", "--std", "0"), "std positive"),
        (("--arch", ARCH, "--range", 1, 0), "lower end first"),
        (("--arch", ARCH, "--input-shape", "28,28"), "--input-shape takes CHANNELS,HEIGHT,WIDTH"),
        (("--arch", ARCH, "--input-shape", "1,nan,28"), "--input-shape takes CHANNELS,HEIGHT,WIDTH"),
        (("--arch", ARCH, "--input-shape", "1,1e30,28"), "--input-shape takes CHANNELS,HEIGHT,WIDTH"),
        (("--arch", ARCH, "--input-shape", "1,3,3"), "too small for this network"),
        (("--arch", ARCH, "--label-names", "nowhere.txt"), "cannot be read"),
        (("--arch", ARCH, "--label-names", "two.txt"), "has 10 labels, but 2 names were given"),
        (("--arch", ARCH, "--output", "two.txt"), "is a file"),
        (("--arch", ARCH, "--resume"), "--resume needs the run folder"),
    ],
)
def test_options_that_make_no_sense_end_with_2(options, reason, files, tmp_path):
    (tmp_path / "two.txt").write_text("a\nb\n")
    outcome = run("scan", files.attacked, "--data", files.clean, *options)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert reason in " ".join(outcome.stderr.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [(), ("attack",), ("bench",), ("scan",), ("dance",), ("repair", "model")])
def test_a_command_that_is_not_complete_ends_with_2(arguments):
    outcome = run(*arguments)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: " in outcome.stderr


def test_a_wrong_number_of_labels_ends_with_3_and_names_the_tensor(files):
    outcome = run("scan", files.attacked, "--arch", ARCH, "--data", files.clean, "--labels", 12)
    assert (outcome.code, outcome.stdout) == (3, "")
    assert "output.weight: (12, 512) expected, (10, 512) found" in outcome.stderr


def test_an_error_quotes_a_hostile_file_without_its_escapes(files, tmp_path):
    state = load_file(files.attacked)
    save_file({**state, "x\x1b[31m\x1b]0;owned\x07\u202e[bold]y": torch.zeros(1)}, tmp_path / "m.safetensors")
    outcome = run("scan", "m.safetensors", "--arch", ARCH, *DATA)
    assert outcome.code == 3
    assert "left over: x[bold]y (1,)" in outcome.stderr
    assert not set(outcome.stderr) & set("\x07\u202e")


def raising(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ZeroDivisionError("a bug"), 5, "internal error: ZeroDivisionError: a bug (set NEURALSANITIZER_DEBUG=1"),
        (MemoryError(), 5, "internal error: MemoryError"),
        (RuntimeError("[red]odd[/red]\n\x1b[31mtext"), 5, "RuntimeError: [red]odd[/red] text"),
        (KeyboardInterrupt(), 130, "interrupted; a scan with --output keeps its finished labels"),
    ],
)
def test_what_nobody_foresaw_ends_with_one_line(error, code, reason, files, monkeypatch):
    monkeypatch.setattr(scan_module, "scan", raising(error))
    outcome = run("scan", files.attacked, "--arch", ARCH, "--data", files.clean)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert reason in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


def test_developers_get_the_traceback_if_they_ask(files, monkeypatch):
    monkeypatch.setattr(scan_module, "scan", raising(ZeroDivisionError("a bug")))
    monkeypatch.setenv("NEURALSANITIZER_DEBUG", "1")
    result = CliRunner().invoke(app, ["scan", str(files.attacked), "--arch", ARCH, "--data", str(files.clean)])
    assert (result.exit_code, result.stdout) == (5, "")
    assert "Traceback (most recent call last)" in result.stderr
