"""ONNX files: the network that is built says what onnxruntime says, may be trained, and goes back into its graph."""

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from neuralsanitizer.cli.main import app
from neuralsanitizer.errors import ModelError, RefusedError, UsageError
from neuralsanitizer.models import load_model, save_state_dict
from neuralsanitizer.models.architectures import build
from neuralsanitizer.models.onnx_graph import is_onnx, read_onnx

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="only the tests need it")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after the check


def exported(module, shape, *, any_batch=True):
    """A network as PyTorch exports it."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's age
        torch.onnx.export(
            module.eval(), (torch.rand(2, *shape),), content, dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}} if any_batch else None,
        )  # fmt: skip
    return content.getvalue()


def by_runtime(content, images):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (output, *_) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(output)


def agree(content, shape, count=2):
    network, declared = read_onnx(content, "net.onnx")
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), by_runtime(content, images), rtol=1e-4, atol=1e-5)
    return network, declared


class Odd(nn.Module):
    """What export makes of code in the wild: shapes computed, paths that meet, pads of one side."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 4, 1)
        self.dense = nn.Linear(12 * 4, 7)

    def forward(self, x):
        x = nn.functional.hardswish(self.norm(self.first(nn.functional.pad(x, (0, 1, 0, 1)))))
        x = torch.cat([torch.sigmoid(self.left(x)) * x, nn.functional.leaky_relu(self.right(x), 0.1)], dim=1)
        x = nn.functional.max_pool2d(x, 3, 2, padding=1) + nn.functional.avg_pool2d(x, 2, ceil_mode=True)
        x = nn.functional.adaptive_avg_pool2d(x, 1).expand(-1, -1, 2, 2)
        return self.dense(x.reshape(x.size(0), -1)).softmax(1)


NETWORKS = {
    "mnist-cnn": (lambda: build("mnist-cnn"), (1, 28, 28)),
    "gtsrb-cnn": (lambda: build("gtsrb-cnn"), (3, 32, 32)),
    "cifar10-resnet8": (lambda: build("cifar10-resnet8"), (3, 32, 32)),
    "odd": (Odd, (3, 16, 16)),
}


@pytest.mark.parametrize("any_batch", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks_say_what_onnxruntime_says(name, any_batch):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, declared = agree(exported(make(), shape, any_batch=any_batch), shape)
    assert declared == shape
    assert network(torch.rand(5, *shape)).shape[0] == 5  # whatever number of images it was exported with


def test_a_vision_transformer_says_what_onnxruntime_says():
    """Products of two computed matrices, layer norms taken apart, biases added afterwards."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut, self.block, self.out = nn.Conv2d(1, 16, 7, stride=7), block, nn.Linear(16, 5)

        def forward(self, x):
            return self.out(self.block(self.cut(x).flatten(2).transpose(1, 2)).mean(1))

    agree(exported(Patches(), (1, 28, 28)), (1, 28, 28))


def graph(nodes, constants=None, shape=("n", 2, 6, 6), *, known=True):
    """A small graph from x to y."""
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return (onnx.shape_inference.infer_shapes(model) if known else model).SerializeToString()


def one(kind, *more, **settings):
    return [helper.make_node(kind, ["x", *more], ["y"], **settings)]


INTS = {"a": np.array([1], np.int64), "b": np.array([4], np.int64), "c": np.array([2], np.int64)}
FLOATS = {"low": np.float32(0.2), "high": np.float32(0.6), "k": np.full((1, 2, 1, 1), 1.5, np.float32)}
OPERATORS = {
    **{kind: one(kind) for kind in (
        "Identity", "Relu", "Sigmoid", "Tanh", "Softplus", "HardSwish", "Erf", "Exp", "Sqrt", "Neg", "Abs", "Selu",
        "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "Elu", "HardSigmoid", "Softmax", "LogSoftmax", "Flatten",
        "ReduceMean", "ReduceSum", "Transpose", "Log", "Dropout",
    )},
    "Softmax over channels": one("Softmax", axis=1),
    "Elu, alpha": one("Elu", alpha=0.5),
    "LeakyRelu, alpha": one("LeakyRelu", alpha=0.3),
    "Flatten, axis": one("Flatten", axis=2),
    "Transpose, perm": one("Transpose", perm=[0, 2, 3, 1]),
    "Clip": one("Clip", "low", "high"),
    "Clip, one side": one("Clip", "low"),
    **{kind: one(kind, "k") for kind in ("Add", "Sub", "Mul", "Div", "Pow")},
    "ReduceMean, axes": one("ReduceMean", "c", keepdims=0),
    "Slice": one("Slice", "a", "b", "c"),
    "Squeeze": [helper.make_node("GlobalMaxPool", ["x"], ["p"]), helper.make_node("Squeeze", ["p", "c"], ["y"])],
    "Unsqueeze": one("Unsqueeze", "c"),
    "Gather": one("Gather", "a", axis=2),
    "Concat": [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)],
    "Pad": one("Pad", "pads"),
    "Pad, reflected": one("Pad", "pads", mode="reflect"),
    "Pad, edge": one("Pad", "pads", mode="edge"),
    "MaxPool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool, uneven pads": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    "MaxPool, ceil": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool, dilated": one("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
    "AveragePool": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool, with pads": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "Reshape, 0 and -1": one("Reshape", "shape"),
    "Shape": [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["to"], axis=0), helper.make_node("Reshape", ["x", "to"], ["y"]),
    ],
    "Cast": [helper.make_node("Cast", ["x"], ["i"], to=7), helper.make_node("Cast", ["i"], ["y"], to=1)],
}  # fmt: skip
CONSTANTS = {
    **INTS, **FLOATS, "pads": np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64), "shape": np.array([0, -1, 3], np.int64),
    "zero": np.array([0], np.int64), "rest": np.array([-1], np.int64),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_does_what_onnxruntime_does(name):
    used = {value for node in OPERATORS[name] for value in node.input}
    agree(graph(OPERATORS[name], {key: value for key, value in CONSTANTS.items() if key in used}), (2, 6, 6), count=3)


def test_unknown_operators_are_named():
    with pytest.raises(ModelError, match="operator Einsum is not known"):
        read_onnx(graph([helper.make_node("Einsum", ["x"], ["y"], equation="nchw->nc")]), "net.onnx")


def test_operators_from_elsewhere_are_refused():
    content = graph([helper.make_node("Evil", ["x"], ["y"], domain="com.example")], known=False)
    with pytest.raises(RefusedError, match=r"com\.example"):
        read_onnx(content, "net.onnx")


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_weights_in_other_files_are_refused(location, tmp_path):
    model = onnx.load_model_from_string(graph(one("Add", "k"), {"k": np.ones((1, 2, 1, 1), np.float32)}))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    outcome = CliRunner().invoke(app, ["scan", str(tmp_path / "net.onnx"), "--data", "mnist5k"])
    assert outcome.exit_code == 3
    assert "Traceback" not in outcome.output


def test_what_onnxruntime_does_with_uneven_averages_is_not_guessed():
    content = graph(one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]))
    with pytest.raises(ModelError, match="uneven pads"):
        read_onnx(content, "net.onnx")


def test_loops_and_branches_are_not_run():
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, None)]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    with pytest.raises(ModelError, match="operator If is not known"):
        read_onnx(graph(nodes, {"c": np.array(True)}), "net.onnx")


@pytest.mark.parametrize("at", [3, 40, 400, -5])
def test_damaged_files_are_named(at, tmp_path):
    content = exported(build("mnist-cnn-small"), (1, 28, 28))
    path = tmp_path / "net.onnx"
    path.write_bytes(content[:at] if at > 3 else content[:3] + bytes(range(256)) * 9)
    with pytest.raises(ModelError):
        load_model(path)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ModelError, match="NaN"):
        read_onnx(graph(one("Add", "k"), {"k": np.full((1, 2, 1, 1), np.nan, np.float32)}), "net.onnx")


def test_a_changed_network_goes_back_into_its_graph(tmp_path):
    """Shared and derived constants too: the exporter stores equal ones of several layers once."""
    torch.manual_seed(0)
    for name in ("cifar10-resnet8", "odd"):
        make, shape = NETWORKS[name]
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(exported(make(), shape))
        suspect = load_model(path)
        assert (suspect.input_shape, suspect.architecture) == (shape, "onnx")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in suspect.module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        digest = save_state_dict(suspect.module, tmp_path / "changed.onnx")
        again = load_model(tmp_path / "changed.onnx")
        images = torch.rand(3, *shape)
        with torch.no_grad():
            said = suspect.module(suspect.normalise(images))
            torch.testing.assert_close(again.module(again.normalise(images)), said, rtol=1e-4, atol=1e-5)
            there = by_runtime((tmp_path / "changed.onnx").read_bytes(), suspect.normalise(images).contiguous())
            torch.testing.assert_close(there, said, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(
                by_runtime(path.read_bytes(), suspect.normalise(images).contiguous()), said, atol=1e-3
            )
        assert digest == again.sha256


def test_every_weight_is_a_parameter():
    """References are trained from fresh weights: one that stayed would bring the backdoor along."""
    make, shape = NETWORKS["gtsrb-cnn"]
    network, _ = read_onnx(exported(make(), shape), "net.onnx")
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in make().parameters())


def test_weights_of_other_formats_are_not_taken_for_onnx(tmp_path):
    module = build("mnist-cnn-small")
    torch.save(module.state_dict(), tmp_path / "a.pt")
    save_state_dict(module, tmp_path / "a.safetensors")
    assert not any(is_onnx((tmp_path / name).read_bytes()) for name in ("a.pt", "a.safetensors"))
    assert is_onnx(exported(module, (1, 28, 28)))


def test_an_architecture_is_asked_for_where_the_file_has_none(tmp_path):
    save_state_dict(build("mnist-cnn-small"), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="give the architecture"):
        load_model(tmp_path / "a.safetensors")
