import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neuralsanitizer.errors import ModelError, RefusedError, UsageError
from neuralsanitizer.models import SuspectModel, architectures, load_model, parse_device, save_state_dict

ARCH = "mnist-cnn-small"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return architectures.build(ARCH, labels=10)


@pytest.fixture
def images():
    return torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def outputs(network, images):
    return network((images - 0.5).contiguous(memory_format=torch.channels_last))


def check(path, network, images, **options):
    model = load_model(path, arch=ARCH, **options)
    torch.testing.assert_close(model(images), outputs(network, images))
    return model


def test_safetensors_round_trip_with_hash_and_shapes(tmp_path, network, images):
    digest = save_state_dict(network, tmp_path / "m.safetensors")
    model = check(tmp_path / "m.safetensors", network, images)
    assert (model.sha256, model.labels, model.input_shape, model.notes) == (digest, 10, (1, 28, 28), ())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", ["", "state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_state_dicts_of_training_scripts(tmp_path, network, images, legacy, wrap, prefix):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    saved = {wrap: state, "epoch": 3, "optimizer": {"lr": 0.1}} if wrap else state
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    model = check(tmp_path / "m.pt", network, images)
    assert any(repr(prefix) in note for note in model.notes) == bool(prefix)
    assert any(repr(wrap) in note for note in model.notes) == bool(wrap)


def test_half_precision_is_converted_and_said_so(tmp_path, network):
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors", arch=ARCH)
    assert next(model.module.parameters()).dtype is torch.float32
    assert "weights converted from float16 to float32" in model.notes


def test_other_names_are_matched_by_order_and_shape_even_where_the_file_lost_the_order(tmp_path, network, images):
    names = ["convs.0", "convs.10", "fc_a", "fc_b"]  # safetensors sorts convs.10 after convs.0, and bias before weight
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in network.state_dict()))
    renamed = {
        f"{names[owners.index(name.rpartition('.')[0])]}.{name.rpartition('.')[2]}": tensor
        for name, tensor in network.state_dict().items()
    }
    save_file(renamed, tmp_path / "m.safetensors")
    model = check(tmp_path / "m.safetensors", network, images)
    assert any("matched by order" in note for note in model.notes)


def test_labels_and_channels_follow_from_the_weights(tmp_path):
    save_state_dict(architectures.build("gtsrb-cnn", labels=12, channels=1), tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors", arch="gtsrb-cnn")
    assert (model.labels, model.input_shape) == (12, (1, 32, 32))


def test_a_wrong_number_of_labels_names_the_tensor(tmp_path, network):
    save_state_dict(network, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"output.weight: \(12, 512\) expected, \(10, 512\) found"):
        load_model(tmp_path / "m.safetensors", arch=ARCH, labels=12)


def test_a_mismatch_lists_ten_keys_and_counts_the_rest(tmp_path, network):
    save_state_dict(network, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"missing: conv.weight .* and \d+ more.*--arch"):
        load_model(tmp_path / "m.safetensors", arch="cifar10-resnet18")


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, protocol):
    marker = tmp_path / "marker"
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"w": Payload(marker)}, protocol))
    with pytest.raises((RefusedError, ModelError)):
        load_model(tmp_path / "m.pkl", arch=ARCH)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_runs_code_is_refused_by_name_whatever_the_environment_says(tmp_path, legacy, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    path = tmp_path / "m.pt"
    torch.save({"state_dict": Payload(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(RefusedError, match="mkdir"):
        load_model(path, arch=ARCH)
    assert not marker.exists()


def test_a_pickled_network_is_refused_with_what_to_ask_for(tmp_path, network):
    torch.save(network, tmp_path / "m.pt")
    with pytest.raises(RefusedError, match=r"PlainCNN.*torch.save\(model.state_dict\(\), \.\.\.\)"):
        load_model(tmp_path / "m.pt", arch=ARCH)


def archive(path, entries, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in entries.items():
            file.writestr(name, content)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/net.py": b""}, "TorchScript"),
        ({"m/data.pkl": b"", "m/models/model.json": b""}, "exported program"),
        ({"m/data.pkl": b"", "m/../../evil": b""}, "points outside"),
    ],
)
def test_archives_with_code_are_refused(tmp_path, entries, reason):
    archive(tmp_path / "m.pt", entries)
    with pytest.raises(RefusedError, match=reason):
        load_model(tmp_path / "m.pt", arch=ARCH)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    archive(tmp_path / "m.pt", {"m/data.pkl": b"\0" * 50_000_000}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(RefusedError, match="compressed"):
        load_model(tmp_path / "m.pt", arch=ARCH)


def header(text, length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ab",
        b"just some text, nothing else in here",
        header("{}", 2**63),
        header('{"a": 1}' + " " * 40),
        header(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        )
        + b"\0\0\0\0",
        header('{"a":{"dtype":"F32","shape":[9999999999,9999999999],"data_offsets":[0,4]}}') + b"\0\0\0\0",
        header("[" * 100_000 + " " * 8).replace(b"[", b"{", 1),
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x02" + b"\0" * 100,
        pickle.dumps([1, 2, 3] * 10),
    ],
)
def test_damaged_files_are_model_errors(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError):
        load_model(tmp_path / "m.safetensors", arch=ARCH)


def test_truncated_checkpoints_are_model_errors(tmp_path, network):
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    (tmp_path / "m.pt").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ModelError, match="damaged"):
        load_model(tmp_path / "m.pt", arch=ARCH)


def test_what_is_no_file_is_a_model_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path, "folder"), (tmp_path / "pipe", "regular file"), (tmp_path / "none", "no file")):
        with pytest.raises(ModelError, match=reason):
            load_model(path, arch=ARCH)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, network, value):
    network.hidden.bias.data[3] = value
    save_state_dict(network, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"hidden\.bias.*NaN or infinite"):
        load_model(tmp_path / "m.safetensors", arch=ARCH)


def test_content_decides_not_the_extension(tmp_path, network, images):
    torch.save(network.state_dict(), tmp_path / "m.safetensors")
    model = check(tmp_path / "m.safetensors", network, images)
    assert any("PyTorch" in note for note in model.notes)


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        ({}, 0.5, 1.0),
        ({"mean": [0.5], "std": [0.5]}, 0.5, 0.5),
        ({"mean": [127.5], "std": [255]}, 0.5, 1.0),
        ({"mean": [0], "std": [1], "pixel_range": (0, 255)}, 0.0, 1 / 255),
        ({"mean": [0], "std": [1], "pixel_range": (-1, 1)}, 0.5, 0.5),
    ],
)
def test_preprocessing_in_any_unit(tmp_path, network, options, mean, std):
    save_state_dict(network, tmp_path / "m.safetensors")
    preprocessing = load_model(tmp_path / "m.safetensors", arch=ARCH, **options).preprocessing
    assert preprocessing.mean == pytest.approx((mean,))
    assert preprocessing.std == pytest.approx((std,))


OWN = """
from torch import nn

def make(labels=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, labels), nn.Softmax(dim=1))

def broken():
    raise RuntimeError("no weights here")

answer = 42
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_network_of_the_users_own_that_ends_in_a_softmax(tmp_path, own_module):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Softmax(dim=1))
    save_state_dict(network, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors", model_def=f"{own_module}:make", labels=5, input_shape=(1, 4, 4))
    images = torch.rand(6, 1, 4, 4)
    model.recognise_output(images)
    assert model.output == "probabilities"
    assert any("softmax" in note for note in model.notes)
    torch.testing.assert_close(model(images), network(images).log())


@pytest.mark.parametrize(
    ("model_def", "reason"),
    [
        ("make", "package.module:function"),
        ("{}:none", "cannot be imported"),
        ("{}:broken", "no weights here"),
        ("{}:answer", "not a function"),
        ("no_such_module_anywhere:f", "cannot be imported"),
        ("builtins:dict", "not a torch"),
    ],
)
def test_definitions_that_cannot_be_used_say_why(tmp_path, own_module, network, model_def, reason):
    save_state_dict(network, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=reason):
        load_model(tmp_path / "m.safetensors", model_def=model_def.format(own_module), input_shape=(1, 4, 4))


def test_one_of_architecture_and_definition_is_needed(tmp_path):
    with pytest.raises(UsageError, match="--arch"):
        load_model(tmp_path / "m.safetensors")


def test_weights_saved_on_a_gpu_load_on_a_cpu(tmp_path, network, images):
    """A checkpoint that says its storages were on cuda:0, on a machine that has none."""
    torch.save(network.state_dict(), tmp_path / "cpu.pt")
    with zipfile.ZipFile(tmp_path / "cpu.pt") as source, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            target.writestr(entry.filename, content)
    check(tmp_path / "gpu.pt", network, images)


@pytest.mark.parametrize("network_output", [torch.full((3, 4), 0.25), torch.rand(3, 4) + 2])
def test_only_probabilities_are_taken_for_probabilities(network_output):
    class Constant(nn.Module):
        def forward(self, images):
            return network_output[: len(images)]

    model = SuspectModel(Constant(), (1, 2, 2), 4)
    model.recognise_output(torch.rand(3, 1, 2, 2))
    assert model.output == ("probabilities" if network_output.max() <= 1 else "logits")


def test_devices():
    assert parse_device("cpu").type == "cpu"
    assert parse_device("auto").type in {"cpu", "cuda", "mps"}
    for name in ("gpu", "cuda:x", "cpu:7"):
        with pytest.raises(UsageError):
            parse_device(name)


def test_the_header_of_a_state_dict_file_is_plain_json(tmp_path, network):
    save_state_dict(network, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    names = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert set(names) - {"__metadata__"} == set(network.state_dict())
