"""Hugging Face model folders: read as data, built by the library, written back as they came, and never obeyed."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from neuralsanitizer.cli.main import app
from neuralsanitizer.errors import ModelError, RefusedError, UsageError
from neuralsanitizer.models import load_model, save_state_dict
from neuralsanitizer.models.formats import read_weights

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")


def vit():
    return transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=28, patch_size=7,
        num_channels=1, num_labels=4,
    )  # fmt: skip


def resnet():
    return transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3,
        id2label={0: "stop", 1: "yield", 2: "<script>"},
    )  # fmt: skip


PREPROCESSOR = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.3, 0.4], "size": {"height": 32, "width": 40}}  # fmt: skip


def folder_of(config, path, preprocessor=None):
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(path)
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "signs"
    return path, folder_of(resnet(), path, PREPROCESSOR)


@pytest.fixture
def copy(signs, tmp_path):
    return shutil.copytree(signs[0], tmp_path / "signs")


def changed(path, name, **values):
    file = path / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return path


def test_the_network_says_what_the_library_says(signs):
    path, original = signs
    suspect = load_model(path)
    assert (suspect.input_shape, suspect.labels) == ((3, 32, 40), 3)
    assert suspect.label_names == ("stop", "yield", "<script>")
    images = torch.rand(4, 3, 32, 40)
    mean, std = (torch.tensor(PREPROCESSOR[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        torch.testing.assert_close(suspect(images), original((images - mean) / std).logits)


def test_sizes_and_ranges_that_the_files_state_otherwise(tmp_path):
    folder_of(vit(), tmp_path / "vit")
    suspect = load_model(tmp_path / "vit")
    assert (suspect.input_shape, suspect.label_names) == ((1, 28, 28), ("0", "1", "2", "3"))
    assert any("preprocessor" in note for note in suspect.notes)
    halved = {"do_rescale": True, "rescale_factor": 2 / 255, "image_mean": 1.0, "image_std": 1.0}  # [0, 2], then - 1
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(halved))
    assert load_model(tmp_path / "vit").preprocessing.mean == (0.5,)
    assert load_model(tmp_path / "vit").preprocessing.std == (0.5,)


def test_files_of_older_versions_are_understood(tmp_path):
    """The library renamed a network's parts since; its files have the old names still."""
    model = folder_of(vit(), tmp_path / "vit")
    assert set(read_weights(tmp_path / "vit" / "model.safetensors").tensors) != set(model.state_dict())
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "vit")(images), model(images).logits)


def test_a_changed_network_is_written_as_a_folder_that_the_library_reads(signs, tmp_path):
    suspect = load_model(signs[0])
    with torch.no_grad():
        for parameter in suspect.module.parameters():
            parameter.mul_(0.9)
    digest = save_state_dict(suspect.module, tmp_path / "repaired")
    again = load_model(tmp_path / "repaired")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "repaired").eval()
    images = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        torch.testing.assert_close(again(images), suspect(images))
        torch.testing.assert_close(theirs(suspect.normalise(images)).logits, suspect(images))
    assert digest == again.sha256


def test_shards_are_put_together(copy):
    weights = read_weights(copy / "model.safetensors").tensors
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, copy / file)
    whole = load_model(copy)
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    images = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        torch.testing.assert_close(load_model(copy)(images), whole(images))
    index["weight_map"]["one more"] = "model-1.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="one more"):
        load_model(copy)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\b.safetensors", "x.bin"]
)
def test_a_shard_outside_of_the_folder_is_refused(file, copy):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(RefusedError, match="no shard of this folder"):
        load_model(copy)


class Payload:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return exec, (f"open({self.target!r}, 'w').close()",)


def test_code_of_the_folder_is_never_run(copy, tmp_path):
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py", "image_processing_evil.py"):
        (copy / name).write_text(code)
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    (copy / "training_args.bin").write_bytes(pickle.dumps(Payload(marker)))
    assert load_model(copy).labels == 3  # what is not asked for does no harm
    evil = {"AutoConfig": "configuration_evil.Evil", "AutoModelForImageClassification": "modeling_evil.Evil"}
    with pytest.raises(RefusedError, match="auto_map"):
        load_model(changed(copy, "config.json", auto_map=evil))
    assert not marker.exists()


@pytest.mark.parametrize(
    "asked",
    [
        {"auto_map": {"AutoModel": "a.B"}},
        {"nested": {"deeper": [{"auto_map": {"AutoModel": "a.B"}}]}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"backbone_config": {"use_pretrained_backbone": True}},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": {"": "someone/kernel"}},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/model"},
    ],
)
def test_configurations_that_fetch_or_import_are_refused(asked, copy):
    with pytest.raises(RefusedError, match="is refused"):
        load_model(changed(copy, "config.json", **asked))


def test_a_preprocessor_with_code_is_refused(copy):
    with pytest.raises(RefusedError, match="auto_map"):
        load_model(changed(copy, "preprocessor_config.json", auto_map={"AutoImageProcessor": "a.B"}))


def test_pickled_weights_alone_are_refused(copy, tmp_path):
    marker = tmp_path / "marker"
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(RefusedError, match="safe_serialization"):
        load_model(copy)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.json", "{", "no JSON"),
        ("config.json", "[1]", "no JSON object"),
        ("config.json", "[" * 100_000, "no JSON"),
        ("config.json", "{}", "of type None"),
        ("config.json", '{"model_type": "no such"}', "of type 'no such'"),
        ("config.json", '{"model_type": "bert"}', "no image classifier"),
        ("config.json", '{"model_type": "resnet", "depths": "many"}', "no image classifier"),
        ("preprocessor_config.json", '{"size": 32, "image_mean": "grey"}', "no numbers"),
        ("preprocessor_config.json", '{"size": {"height": -1, "width": 2}}', "--input-shape"),
        ("preprocessor_config.json", '{"size": 32, "rescale_factor": 0}', "no numbers"),
        ("model.safetensors", "no weights, only text, and more than sixteen bytes", "format"),
    ],
)
def test_damaged_folders_are_named(name, text, reason, copy):
    (copy / name).write_text(text)
    with pytest.raises(ModelError, match=reason):
        load_model(copy)


def test_weights_of_another_network_are_told_by_their_names(copy):
    with pytest.raises(ModelError, match="do not fit the configuration"):
        load_model(changed(copy, "config.json", depths=[1, 2]))


def test_an_architecture_beside_a_folder_is_a_contradiction(copy):
    with pytest.raises(UsageError, match="names its own architecture"):
        load_model(copy, arch="mnist-cnn")


def test_the_command_line_says_why_a_folder_is_refused(copy):
    changed(copy, "config.json", auto_map={"AutoModel": "a.B"})
    outcome = CliRunner().invoke(app, ["scan", str(copy), "--data", "mnist5k"])
    assert outcome.exit_code == 3
    assert "auto_map" in outcome.output
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_another_configuration_of_the_same_weights_is_another_model(name, copy):
    before = load_model(copy).sha256
    changed(copy, name, hidden_act="gelu", image_mean=[0.1, 0.1, 0.1])
    assert load_model(copy).sha256 != before


def test_a_folder_of_timm_s_says_how_to_load_it(copy):
    file = copy / "config.json"
    file.write_text(json.dumps({"architecture": "resnet18", "num_classes": 3}))
    with pytest.raises(ModelError, match="--arch timm/resnet18"):
        load_model(copy)
