"""Programs that try something when they are opened, and functions that try it behind the sandbox's barriers."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

# ruff: noqa: ARG001 - what runs confined takes both, needed or not


class Writes:
    """Pickled, it writes a file when it is opened, with the interpreter's own means."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').write('run')",)


def evil_torchscript(path, marker):
    """TorchScript that saves a tensor under ``marker`` as it is opened; ``__setstate__`` is a part of the format."""

    class Evil(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.zeros(2, 2)

        @torch.jit.export
        def __getstate__(self) -> tuple[Tensor, bool]:
            return self.weight, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[Tensor, bool]) -> None:
            self.weight = state[0]
            self.training = state[1]
            torch.save(state[0], "MARKER")

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] @ self.weight

    rewritten = path.with_suffix(".plain")
    torch.jit.save(torch.jit.script(Evil()), rewritten)
    with zipfile.ZipFile(rewritten) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry).replace(b"MARKER", str(marker).encode()))
    rewritten.unlink()


def evil_exported(path, marker):
    """An exported program whose sample inputs are a pickle that runs code."""
    plain = path.with_suffix(".plain.pt2")
    torch.export.save(torch.export.export(nn.Flatten().eval(), (torch.zeros(2, 1, 2, 2),)), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            inputs = "sample_inputs" in entry.filename
            content = pickle.dumps(Writes(marker), 2) if inputs else source.read(entry)
            target.writestr(entry.filename, content)
    plain.unlink()


def zipped(entries):
    """An archive of these entries, stored."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return made.getvalue()


def try_everything(content: bytes, settings: dict) -> bytes:
    """What each attempt to leave the sandbox came to, as JSON: by name, ``done`` or the error's class."""
    outside, secret, parent = Path(settings["outside"]), Path(settings["secret"]), settings["parent"]
    attempts = {
        "echo": content.decode,
        "environment": lambda: sorted(os.environ),
        "write inside": lambda: Path("inside").write_text("x"),
        "write much inside": lambda: Path("much").write_bytes(bytes(settings["much"])),
        "write outside": lambda: outside.write_text("x"),
        "link outside": lambda: outside.symlink_to(secret),
        "read secret": secret.read_text,
        "change its rights": lambda: secret.chmod(0o777),
        "connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        "run a program": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": os.fork,
        "signal its parent": lambda: os.kill(parent, signal.SIGTERM),
        "allocate": lambda: bytearray(settings["memory"]),
        "start a thread": _thread,
    }
    return json.dumps({name: _outcome(attempt) for name, attempt in attempts.items()}).encode()


def _thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return "done"


def _outcome(attempt):
    try:
        result = attempt()
    except BaseException as error:  # noqa: BLE001 - whichever it is
        return type(error).__name__
    return result if isinstance(result, str | list) else "done"


def never_end(content: bytes, settings: dict) -> bytes:
    while True:
        pass


def die(content: bytes, settings: dict) -> bytes:
    os._exit(3)


def give_too_much(content: bytes, settings: dict) -> bytes:
    return bytes(settings["bytes"])


def fail(content: bytes, settings: dict) -> bytes:
    raise ValueError("no \x1b[31mcolour\x1b[0m\nsecond line")


def flood(content: bytes, settings: dict) -> bytes:
    """Tell barriers again, and an answer for good measure: what stands first on the line counts."""
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"+forged")
        except OSError:
            continue
    sys.exit(0)
