"""One backdoored model in the formats that people keep models in: the same verdict, and a repair in the same format."""

import io
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neuralsanitizer import load_model
from neuralsanitizer.config import RepairConfig, UnlearnConfig
from neuralsanitizer.detectors.neural_sanitizer.detector import NeuralSanitizer
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.pipeline import repair, scan
from neuralsanitizer.storage import RunFolder
from quick import QUICK, TARGET


def onnx_of(module):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's age
        torch.onnx.export(module, (torch.zeros(2, 1, 28, 28),), content, dynamo=False, dynamic_axes={"x": {0: "n"}},
                          input_names=["x"])  # fmt: skip
    return content.getvalue()


@pytest.fixture(scope="module")
def kept(attacked, tmp_path_factory):
    """The model as a state_dict of PyTorch, as safetensors with other names, and as ONNX."""
    folder, module = tmp_path_factory.mktemp("formats"), attacked.model.module.cpu().eval()
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "model.pt")
    save_file({f"module.{name}": value for name, value in state.items()}, folder / "model.safetensors")
    (folder / "model.onnx").write_bytes(onnx_of(module))
    return folder


def opened(path):
    if path.suffix == ".onnx":
        return load_model(path, mean=[127.5], std=[255.0])
    return load_model(path, arch="mnist-cnn-small")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.onnx"])
def test_the_verdict_does_not_depend_on_the_format(name, kept, clean, quick_folder):
    saved = scan(opened(kept / name), clean, method=NeuralSanitizer(QUICK), seed=3)
    known = RunFolder(quick_folder).read().run.verdict
    assert saved.run.verdict.infected_labels == known.infected_labels == (TARGET,)
    assert [one.finding for one in saved.run.verdict.labels] == [one.finding for one in known.labels]


def test_an_onnx_file_is_repaired_as_an_onnx_file(kept, clean, unseen, attacked, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="only the tests need it")
    suspect = opened(kept / "model.onnx")
    scan(suspect, clean, method=NeuralSanitizer(QUICK), seed=3, output=tmp_path / "run")
    unlearn, config = Unlearn(UnlearnConfig(steps=200)), RepairConfig(rounds=1)
    repair(suspect, tmp_path / "run", clean, method=unlearn, output=tmp_path / "fixed.onnx", config=config, seed=1)
    session = onnxruntime.InferenceSession((tmp_path / "fixed.onnx").read_bytes(), providers=["CPUExecutionProvider"])

    def named(images):
        (logits,) = session.run(None, {"x": suspect.normalise(images).contiguous().numpy()})
        return torch.from_numpy(np.argmax(logits, axis=1))

    (trigger,) = attacked.triggers
    others = unseen.labels != TARGET
    stamped = torch.from_numpy(trigger.onto(unseen.images[others].numpy()))
    assert float((named(unseen.images) == unseen.labels).float().mean()) > 0.9
    assert float((named(stamped) == TARGET).float().mean()) < 0.1
