"""Files that a user would have, and one scan, repair and proof by the program that many tests look at."""

import shutil

import numpy as np
import pytest

from neuralsanitizer import config
from program import Files, run, scan_of
from quick import QUICK, QUICK_CLEANSE
from tiny import TINY


@pytest.fixture(scope="package", autouse=True)
def _presets():
    """``--preset quick`` and ``--preset tiny``."""
    with pytest.MonkeyPatch.context() as patch:
        for preset in (QUICK, TINY):
            patch.setitem(config.PRESETS, preset.preset, preset)
        patch.setitem(config.NEURAL_CLEANSE_PRESETS, "quick", QUICK_CLEANSE)
        patch.setitem(config.UNLEARN_PRESETS, "quick", config.UnlearnConfig(steps=200))
        yield


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    """As from a pipe, 80 columns wide, wherever the tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NEURALSANITIZER_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="package")
def files(attacked, honest, clean, tmp_path_factory):
    """Weights with and without a backdoor, and a clean set; do not write to them."""
    folder = tmp_path_factory.mktemp("files")
    attacked.save(folder / "attacked.safetensors")
    honest.save(folder / "honest.safetensors")
    pixels = (clean.images * 255).round().byte().numpy()
    np.savez(folder / "clean.npz", x=pixels, y=clean.labels.numpy())
    return Files(folder / "attacked.safetensors", folder / "honest.safetensors", folder / "clean.npz")


@pytest.fixture(scope="package")
def scanned(files, _presets, tmp_path_factory):
    """Outcome and run folder of a scan of the attacked model; do not write to the folder."""
    folder = tmp_path_factory.mktemp("scanned") / "run"
    options = ("--labels", 10, "--seed", 3, "--output", folder, "--format", "json")
    return scan_of(files.attacked, files.clean, *options), folder


@pytest.fixture(scope="package")
def sound(files, _presets, tmp_path_factory):
    """Outcome and run folder of a scan of the honest model; do not write to the folder."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    return scan_of(files.honest, files.clean, "--seed", 3, "--output", folder, "--format", "json"), folder


@pytest.fixture(scope="package")
def repaired(files, scanned, tmp_path_factory):
    """Outcome of a repair, the repaired weights, and the run folder with the repair; do not write to it."""
    root = tmp_path_factory.mktemp("repaired")
    shutil.copytree(scanned[1], root / "run")
    options = ("--run", root / "run", "--data", files.clean, "--output", root / "fixed.safetensors")
    return run("repair", files.attacked, *options, "--format", "json"), root / "fixed.safetensors", root / "run"


@pytest.fixture
def again(scanned, sound, tmp_path):
    """Show the finished scan of the attacked or the honest model again, quickly, under other options."""

    def resumed(files, finding, *options):
        model, folder = (files.attacked, scanned[1]) if finding == "infected" else (files.honest, sound[1])
        shutil.copytree(folder, tmp_path / "again")
        seeded = ("--seed", 3, "--output", tmp_path / "again", "--resume")
        return scan_of(model, files.clean, *seeded, *options)

    return resumed
