"""Every command of the README and the pages is run, as it stands there, beside files of the names it has.

Scans are cut short: what they find means nothing here, so that what they are to write is replaced by a run of a longer
scan before the next command looks at it. Commands that need a network, a container or the benchmark's data sets are
parsed, or excused by name.
"""

import re
import shlex
import shutil
import subprocess
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import typer
from PIL import Image

import speech
from neuralsanitizer import config
from neuralsanitizer.cli.main import app
from neuralsanitizer.data.bundled import read_mnist5k
from neuralsanitizer.models import save_state_dict
from neuralsanitizer.models.architectures import build
from program import run
from tiny import HASTY

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md")]
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)

NOT_OURS = ("pip install", "docker ", "sigstore ", "make ", ". .venv", "cosign ", "hf download", "mkdocs ")
"""Other programs, which fetch things or install them."""
TOO_LONG = ("neuralsanitizer bench ", "--executor ray", "--arch timm/")
"""Hours, and data sets that are no part of the repository, a cluster, or a library that need not be there: parsed, not
run."""
ELSEWHERE = (
    "python -m doctest",
    "python docs/",
    "python examples/",
    "python benchmarks/",
    "python mlflow_gate.py",
    "python -c",
)
"""Run by tests of their own."""
WELL = {0, 1, 4}  # it went as it should, whatever was found


def blocks(page, language):
    return [match[3] for match in _BLOCK.finditer(page.read_text(encoding="utf-8")) if match[2] == language]


def commands(page):
    """The commands of a page, one string each, without comments."""
    found = []
    for block in blocks(page, "sh"):
        if block.startswith("#!"):
            found.append(block)
            continue
        lines = [line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
        found += [" ".join(line.split()) for line in lines if line and not line.startswith("#")]
    return found


TUTORIAL = ROOT / "docs" / "tutorial.md"
"""Run as a whole by ``docs/make_tutorial.py``, which puts what it prints into the page."""
EVERY = [(page, command) for page in PAGES if page != TUTORIAL for command in commands(page)]


def is_run(command):
    """Whether a command is run here."""
    return command.removeprefix(".venv/bin/").startswith("neuralsanitizer ") and not any(
        part in command for part in TOO_LONG
    )


def test_there_are_many_commands_and_each_is_run_or_excused():
    assert sum(is_run(command) for _, command in EVERY) > 30
    odd = [
        command
        for _, command in EVERY
        if not is_run(command)
        and not command.startswith((*NOT_OURS, *ELSEWHERE, "#!"))
        and not any(part in command for part in TOO_LONG)
    ]
    assert odd == []


@pytest.mark.parametrize("command", sorted({c for _, c in EVERY if any(part in c for part in TOO_LONG)}))
def test_what_takes_hours_is_parsed(command):
    _, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    context = group.make_context("neuralsanitizer", list(arguments), resilient_parsing=False)
    for _ in range(2):
        name, found, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = found.make_context(name, rest, parent=context)
        if not isinstance(found, click.Group):
            break


@pytest.fixture(scope="module")
def kit(attacked, clean, quick_folder, tmp_path_factory):
    """Files of all names that the pages use."""
    folder = tmp_path_factory.mktemp("kit")
    (folder / "models").mkdir()
    for name in ("model", "other", "bad", "models/one"):
        save_state_dict(attacked.model.module, folder / f"{name}.safetensors")
    for name in ("run", "demo/backdoored-run"):
        shutil.copytree(quick_folder, folder / name)
    pixels = (clean.images[:400, 0] * 255).round().to(torch.uint8).numpy()
    np.savez(folder / "clean.npz", x=pixels, y=clean.labels[:400].numpy())
    pictures, labels = pixels[:100], clean.labels[:100].tolist()
    for root, names in (("images", [str(label) for label in range(10)]), ("named", [f"digit {d}" for d in range(10)])):
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            place = folder / root / names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{number}.png")
    (folder / "names.txt").write_text("".join(f"digit {digit}\n" for digit in range(10)))
    (folder / "inputs").mkdir()
    for number in range(4):
        Image.fromarray(pictures[number]).save(folder / "inputs" / f"{number}.png")
    network = attacked.model.module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are out of fashion, and what users have
        traced = torch.jit.trace(network, torch.zeros(2, 1, 28, 28))
        torch.onnx.export(traced, (torch.zeros(2, 1, 28, 28),), folder / "model.onnx", dynamo=False)
        torch.jit.save(traced, folder / "model.pt")
    write_idx(folder / "idx", pictures, clean.labels[:100].numpy())
    write_folder(folder / "path" / "to" / "folder")
    torch.manual_seed(0)
    save_state_dict(build("speech-cnn"), folder / "digits.safetensors")
    speech.write_words(folder / "recordings", 4, seed=0)
    for word in range(len(speech.WORDS), 10):
        shutil.copytree(folder / "recordings" / "0", folder / "recordings" / str(word))
    save_state_dict(build("gtsrb-cnn"), folder / "signs.safetensors")
    noise = np.random.default_rng(0).integers(0, 255, (86, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "signs.npz", x=noise, y=np.arange(86) % 43)
    definition = next(
        block for block in blocks(ROOT / "docs/howto/scan-your-model.md", "python") if "mynet.py" in block
    )
    (folder / "mynet.py").write_text(definition)
    return folder


def write_idx(folder, pictures, labels):
    folder.mkdir()
    head = {3: [2051, *pictures.shape], 1: [2049, len(labels)]}
    for kind, content in ((3, pictures), (1, labels)):
        what = "images" if kind == 3 else "labels"
        header = np.array(head[kind], dtype=">u4").tobytes()
        (folder / f"t10k-{what}-idx{kind}-ubyte").write_bytes(header + content.astype(np.uint8).tobytes())
        packed = subprocess.run(["gzip", folder / f"t10k-{what}-idx{kind}-ubyte"], check=False)
        assert packed.returncode == 0


def write_folder(path):
    """A model folder of the task, of a tiny residual network."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=10
    )
    settings.image_size = 28
    transformers.ResNetForImageClassification(settings).save_pretrained(path)


@pytest.fixture
def beside(kit, tmp_path, monkeypatch):
    """A copy of the kit to work in, where scans and repairs end in a blink."""
    here = tmp_path / "here"
    shutil.copytree(kit, here)
    monkeypatch.chdir(here)
    monkeypatch.setitem(config.PRESETS, "default", replace(HASTY, preset="default"))
    pictures, labels = read_mnist5k()
    few = np.arange(0, len(labels), 10)  # they are sorted by label
    monkeypatch.setattr("neuralsanitizer.data.loading.read_mnist5k", lambda: (pictures[few], labels[few]))
    # Of the run that repairs and verifications look at.
    monkeypatch.setitem(config.PRESETS, "quick", replace(HASTY, preset="quick"))
    for name in ("quick", *config.UNLEARN_PRESETS):
        recipe = config.UNLEARN_PRESETS.get(name, config.UNLEARN_PRESETS["default"])
        monkeypatch.setitem(config.UNLEARN_PRESETS, name, replace(recipe, steps=20))
    return here


def test_the_tutorial_was_run():
    printed = blocks(TUTORIAL, "text")
    assert len(printed) == 5
    assert all(one.strip() for one in printed)
    assert "infected" in printed[1]
    assert "clean" in printed[3]


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize(
    "page", sorted({page for page, command in EVERY if is_run(command)}), ids=lambda page: page.stem
)
def test_commands_of_a_page_run(page, kit):
    for command in filter(is_run, commands(page)):
        _, *arguments = shlex.split(command)
        made = [Path(given) for option, given in pairwise(arguments) if option in {"--output", "--bundle"}]
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        outcome = run(*arguments)
        assert outcome.code in WELL, (command, outcome)
        assert all(path.exists() for path in made), command
        for path in made:
            if (kit / path).is_dir():  # what a longer scan would have found, for the commands that follow
                shutil.rmtree(path)
                shutil.copytree(kit / path, path)
            elif (kit / path).is_file():
                shutil.copy(kit / path, path)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in {"README", "quickstart", "filter-inputs"}])
def test_python_of_a_page_runs(page, clean):
    """One block after the other, with the names that the words around them explain."""
    if page.stem == "filter-inputs":
        fitted = run("filter", "fit", "bad.safetensors", "--run", "run", "--data", "mnist5k", "-o", "guard.safetensors")
        assert fitted.code == 0, fitted
    shutil.rmtree("run")
    names = {"images": clean.images[:5]}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
