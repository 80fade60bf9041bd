"""TorchScript and .pt2: refused, or opened behind barriers that their payloads do not pass."""

import subprocess
import sys
from contextlib import suppress

import pytest
import torch

import programs
from neuralsanitizer.errors import ModelError, RefusedError, UsageError
from neuralsanitizer.execution import sandbox
from neuralsanitizer.models import load_model, save_state_dict
from neuralsanitizer.models.architectures import build
from neuralsanitizer.models.onnx_graph import OnnxModel

SHAPE = (1, 28, 28)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # making such files, which users have
OPEN = {"torchscript": "torch.jit.load({!r})", "exported": "torch.export.load({!r})"}
EVIL = {"torchscript": programs.evil_torchscript, "exported": programs.evil_exported}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("mnist-cnn-small").eval()


@pytest.fixture(scope="module", params=["torchscript", "exported"])
def program(request, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("programs") / "model.bin"  # told by content, not by name
    if request.param == "torchscript":
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, *SHAPE)), path)
    else:
        free = torch.export.Dim("batch")
        kept = path.with_name("model.pt2")  # the library wants this name
        exported = torch.export.export(network, (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: free},))
        torch.export.save(exported, kept)
        kept.rename(path)
    return path


@pytest.fixture(scope="module")
def model(program):
    return load_model(program, allow_code=True, input_shape=SHAPE)


def test_it_answers_as_the_program_does(model, network):
    images = torch.rand(5, *SHAPE)
    torch.testing.assert_close(model.module(images), network(images))
    assert isinstance(model.module, OnnxModel)  # of ours, from the graph: not the program
    assert model.labels == 10
    assert any("in a sandbox" in note for note in model.notes)


def test_it_is_refused_unless_asked_for(program):
    for options in ({"arch": "mnist-cnn-small"}, {}):
        with pytest.raises(RefusedError, match="--allow-code"):
            load_model(program, **options)


def test_the_size_of_images_is_asked_for(program):
    with pytest.raises(UsageError, match="--input-shape"):
        load_model(program, allow_code=True)


def test_a_repaired_one_is_written_as_onnx(model, tmp_path):
    save_state_dict(model.module, tmp_path / "fixed.onnx")
    again = load_model(tmp_path / "fixed.onnx")
    images = torch.rand(3, *SHAPE)
    torch.testing.assert_close(again.module(images), model.module(images))


@pytest.mark.parametrize("kind", EVIL)
def test_the_payload_does_not_run(kind, tmp_path):
    path, marker = tmp_path / "evil.pt2", tmp_path / "marker"
    EVIL[kind](path, marker)
    opened = f"import torch; {OPEN[kind].format(str(path))}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", opened], check=False, capture_output=True)
    assert marker.exists()  # a payload that works where nothing holds it
    marker.unlink()
    with suppress(ModelError):  # a write that fails need not end it
        load_model(path, allow_code=True, input_shape=(1, 2, 2))
    with pytest.raises(RefusedError):
        load_model(path, arch="mnist-cnn-small")
    assert not marker.exists()


def test_compiled_code_is_always_refused(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(programs.zipped({"m/data/aotinductor/model/evil.so": b"\x7fELF", "m/data.pkl": b"\x80\x02}."}))
    with pytest.raises(RefusedError, match="compiled code"):
        load_model(path, allow_code=True, input_shape=SHAPE)


def test_without_all_barriers_a_required_sandbox_refuses(program, monkeypatch):
    some = sandbox.Confined(b"", ("limits", "network"))
    monkeypatch.setattr("neuralsanitizer.models.programs.run_confined", lambda *_, **__: some)
    with pytest.raises(RefusedError, match="lacks privileges, files, calls"):
        load_model(program, allow_code=True, require_sandbox=True, input_shape=SHAPE)


def test_barriers_that_are_missing_are_told(program, model, monkeypatch):
    few = sandbox.Confined(model.module.to_bytes(), ("limits",))
    monkeypatch.setattr("neuralsanitizer.models.programs.run_confined", lambda *_, **__: few)
    again = load_model(program, allow_code=True, input_shape=SHAPE)
    assert any("without these barriers: privileges, network, files, calls" in note for note in again.notes)
