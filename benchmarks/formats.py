"""One backdoored network in every format that is read, and other networks with the same backdoor: one verdict?

``python benchmarks/formats.py FOLDER`` trains what it needs on the bundled digits, writes it in each format, scans it
with the default preset by the command line, and prints a table; ``FOLDER/formats.json`` has its numbers. What was done
before is not done again. Networks of libraries that do not load are left out, and said to be.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from neuralsanitizer import load_clean_set, load_model, save_state_dict
from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.patches import PatchSpec
from neuralsanitizer.config import AttackConfig

TARGET = 7
SHAPE = (1, 28, 28)
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "backdoored_folder.py"
NORMALISED = ("--mean", "0.5", "--std", "1")


def main() -> None:
    """Make, scan, tell."""
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    rows = []
    for name, options in made(folder).items():
        run = folder / f"run-{name}"
        if options is None:
            print(f"{name}: left out, its library does not load here", flush=True)
            continue
        if not (run / "run.json").exists():
            again = ["--resume"] if run.exists() else []
            subprocess.run(
                [*PROGRAM, "scan", *options, "--output", str(run), *again], stdout=subprocess.DEVNULL, check=False
            )
        told = json.loads(
            subprocess.run(
                [*PROGRAM, "report", str(run), "--format", "json"], capture_output=True, text=True, check=True
            ).stdout
        )
        infected = [one["label"] for one in told["labels"] if one["finding"] == "infected"]
        rows.append(
            {"format": name, "verdict": told["verdict"], "infected": infected, "seconds": told["timings"]["total"]}
        )
        print(f"{name:20} {told['verdict']:12} {infected}", flush=True)
    (folder / "formats.json").write_text(json.dumps({"planted": TARGET, "rows": rows}, indent=1) + "\n")


PROGRAM = (sys.executable, "-m", "neuralsanitizer")


def made(folder: Path) -> dict[str, list[str] | None]:
    """By format, what to scan and how."""
    plain = folder / "state_dict.safetensors"
    clean = folder / "clean.npz"
    if not clean.exists():
        train, users = load_clean_set("mnist5k").split([0.6], seed=0)
        attack = badnets(train, users, [PatchSpec(TARGET, 4)], AttackConfig("mnist-cnn-small", epochs=10, seed=0))
        save_state_dict(attack.model.module, plain)
        np.savez(clean, x=(users.images[:, 0] * 255).round().to(torch.uint8).numpy(), y=users.labels.numpy())
    network = load_model(plain, arch="mnist-cnn-small").module.eval()
    images = torch.zeros(2, *SHAPE)
    data = ["--data", str(clean)]
    arch, shape = ["--arch", "mnist-cnn-small"], ["--input-shape", "1,28,28"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(network.state_dict(), folder / "state_dict.pt")
        traced = torch.jit.trace(network, images)
        torch.jit.save(traced, folder / "torchscript.pt")
        torch.onnx.export(traced, (images,), folder / "model.onnx", dynamo=False)
        batch = torch.export.Dim("batch")
        torch.export.save(
            torch.export.export(network, (images,), dynamic_shapes=({0: batch},)), folder / "exported.pt2"
        )
    formats: dict[str, list[str] | None] = {
        "safetensors": [str(plain), *arch, *data],
        "state_dict": [str(folder / "state_dict.pt"), *arch, *data],
        "onnx": [str(folder / "model.onnx"), *data, *NORMALISED],
        "torchscript": [str(folder / "torchscript.pt"), "--allow-code", *data, *shape, *NORMALISED],
        "pt2": [str(folder / "exported.pt2"), "--allow-code", *data, *shape, *NORMALISED],
    }
    others = {
        "hf-resnet": ("transformers", ()),
        "hf-vit": ("transformers", ("--vit", "--epochs", "60")),
        "timm-test-resnet": ("timm", ("--timm", "test_resnet")),
    }
    for name, (library, options) in others.items():
        try:
            importlib.import_module(library)
        except (ImportError, RuntimeError):
            formats[name] = None
            continue
        path = folder / (f"{name}.safetensors" if library == "timm" else name)
        its_own = folder / f"{name}.npz"
        if not path.exists():
            subprocess.run([sys.executable, str(EXAMPLE), str(path), str(its_own), *options], check=True)
        timm = ["--arch", "timm/test_resnet", *shape, "--mean", "0.5", "--std", "0.5"] if library == "timm" else []
        formats[name] = [str(path), "--data", str(its_own), *timm]
    return formats


if __name__ == "__main__":
    main()
