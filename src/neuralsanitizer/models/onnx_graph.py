"""ONNX classifiers as PyTorch networks, built from the graph by hand: no code of the file's, none that the file names.

Only what image classifiers are made of is known; another operator is named in the error. Convolutions, dense layers and
normalisations become PyTorch's own layers, so that references can be trained and repairs made; a repaired network is
written back into the same graph.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.errors import InputError, MissingExtraError, ModelError, NeuralSanitizerError, RefusedError
from neuralsanitizer.models.bounds import bounded

__all__ = ["OnnxModel", "is_onnx", "read_onnx"]

Shape = tuple[int, int, int]
Run = Callable[..., Tensor]
"""What an operator does: of its inputs, in order; an input that was left out is ``None``."""

_MOST_NODES = 20_000
_MOST_ELEMENTS = 2**31  # of one constant: 8 GiB as float32, the largest file that is read
_MOST_MADE = 2**26  # elements that are computed while a graph is built, beyond one for each byte of the file
_DOMAINS = {"", "ai.onnx"}
_SAME_UPPER, _VALID, _NOTSET = "SAME_UPPER", "VALID", "NOTSET"


def is_onnx(content: bytes) -> bool:
    """Whether a file begins as ONNX does: the format's version, a small number, then another field of the model."""
    return (
        len(content) > 2
        and content[0] == 0x08
        and 0 < content[1] < 64
        and content[2] in {0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42}
    )


def read_onnx(content: bytes, name: str) -> tuple[OnnxModel, Shape | None]:
    """The network of an ONNX file, and the (channels, height, width) it says it takes, if it does.

    Args:
        content: The file.
        name: Of the file, for errors.

    Raises:
        MissingExtraError: ``onnx`` is not installed.
        ModelError: The file is damaged, or is no image classifier of known operators.
        RefusedError: Its weights lie in other files, or it names operators from elsewhere.
    """
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "an ONNX file") from error
    try:
        proto = onnx.load_model_from_string(content)
        _refuse_elsewhere(proto, name)
        onnx.checker.check_model(proto)
    except InputError:
        raise
    except Exception as error:  # a hostile file makes the parser raise anything
        raise ModelError(f"{name} is a damaged ONNX file ({_first_line(error)})") from error
    try:
        with bounded(f"the graph of {name}", _MOST_MADE + len(content)):
            model = OnnxModel(proto, name)
    except NeuralSanitizerError:
        raise
    except Exception as error:  # likewise: attributes of odd types and sizes
        raise ModelError(f"{name} is an ONNX graph that makes no sense ({_first_line(error)})") from error
    return model, model.declared_shape


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _refuse_elsewhere(proto: Any, name: str) -> None:  # noqa: ANN401 - a protobuf message
    if any(tensor.data_location == tensor.EXTERNAL for tensor in _tensors(proto)):
        raise RefusedError(
            f"{name} is refused: its weights lie in other files, which it names itself. "
            "Save it whole: onnx.save(onnx.load(path), new_path, save_as_external_data=False)"
        )
    foreign = sorted({node.domain for node in proto.graph.node if node.domain not in _DOMAINS})
    if foreign or proto.functions:
        raise RefusedError(f"{name} is refused: it uses operators of its own ({', '.join(foreign) or 'functions'})")
    if len(proto.graph.node) > _MOST_NODES:
        raise ModelError(f"{name} has {len(proto.graph.node)} operators; at most {_MOST_NODES} are read")


def _tensors(proto: Any) -> list[Any]:  # noqa: ANN401
    inside = [a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")]
    return [*proto.graph.initializer, *inside]


@dataclass(frozen=True)
class _Step:
    """One operator: what runs, a layer by its name or a function, on which values."""

    layer: str | None
    run: Run | None
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class _Kept:
    """Which input of which node a parameter is, and whether it lies there transposed."""

    node: int
    position: int
    parameter: str
    transposed: bool


class OnnxModel(nn.Module):
    """A network that does what an ONNX graph says.

    Args:
        proto: The model, checked.
        name: Of the file, for errors.

    Raises:
        ModelError: An operator, or a way of using one, that is not known.
    """

    def __init__(self, proto: Any, name: str) -> None:  # noqa: ANN401 - a protobuf message
        super().__init__()
        graph = proto.graph
        self._content: bytes = proto.SerializeToString()
        self._name = name
        self._constants: dict[str, Tensor] = {}
        self._steps: list[_Step] = []
        self._kept: list[_Kept] = []
        self._dense: set[str] = set()  # outputs of matrix products with constants: what is added to them is a bias
        for tensor in graph.initializer:
            self._constants[tensor.name] = self._value(tensor)
        inputs = [value for value in graph.input if value.name not in self._constants]
        if len(inputs) != 1 or len(graph.output) < 1:
            raise ModelError(f"{name} takes {len(inputs)} inputs: an image classifier takes one")
        self._input, self._output = inputs[0].name, graph.output[0].name
        sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in inputs[0].type.tensor_type.shape.dim]
        self._batch = sizes[0] if sizes else 0  # a graph that was traced with so many images has it written into it
        known = len(sizes) == 4 and all(sizes[1:])
        self.declared_shape: Shape | None = (sizes[1], sizes[2], sizes[3]) if known else None
        for number, node in enumerate(graph.node):
            self._add(node, number)
        used = {value for step in self._steps for value in step.inputs}
        for value in used & self._constants.keys():
            self.register_buffer(_buffer(value), self._constants[value], persistent=False)
        self._constants = {value: torch.empty(0) for value in used & self._constants.keys()}

    def forward(self, images: Tensor) -> Tensor:
        """Logits or probabilities (N, labels) of network inputs (N, channels, height, width)."""
        values: dict[str, Tensor | None] = {name: self.get_buffer(_buffer(name)) for name in self._constants}
        values |= {self._input: images, "": None}
        for step in self._steps:
            given = [values[name] for name in step.inputs]
            run = step.run if step.run is not None else self.get_submodule(step.layer or "")
            values[step.output] = run(*given)
        result = values[self._output]
        if result is None:
            raise ModelError(f"{self._name}: nothing computes the output")
        return result

    def to_bytes(self) -> bytes:
        """The file with this network's weights in the place of its own."""
        onnx: Any = importlib.import_module("onnx")
        proto = onnx.load_model_from_string(self._content)
        graph, values = proto.graph, {**dict(self.named_buffers()), **dict(self.named_parameters())}
        stored = {tensor.name: tensor for tensor in graph.initializer}
        written: set[str] = set()
        for number, one in enumerate(self._kept):
            name = graph.node[one.node].input[one.position]
            shape = tuple(stored[name].dims) if name in stored else None
            array = values[one.parameter].detach().cpu().float().numpy()
            array = np.ascontiguousarray(array.T if one.transposed else array)
            if shape is None or name in written:  # computed from another constant, or shared: it gets one of its own
                name = f"{name}.{number}"
                graph.node[one.node].input[one.position] = name
                stored[name] = graph.initializer.add()
            elif array.size == math.prod(shape):
                array = array.reshape(shape)
            stored[name].CopyFrom(_arrays().from_array(array, name))
            written.add(name)
        return bytes(proto.SerializeToString())

    def _value(self, tensor: Any) -> Tensor:  # noqa: ANN401 - a protobuf message
        if math.prod(tensor.dims) > _MOST_ELEMENTS:
            raise ModelError(f"{self._name}: the constant {tensor.name!r} claims {math.prod(tensor.dims)} elements")
        value = torch.from_numpy(np.array(_arrays().to_array(tensor)))
        if value.is_floating_point():
            value = value.float()
            if not bool(torch.isfinite(value).all()):
                raise ModelError(f"{self._name} is damaged: {tensor.name!r} holds NaN or infinite weights")
        return value

    def _add(self, node: Any, number: int) -> None:  # noqa: ANN401
        """Add an operator, or compute it now where it is a constant."""
        kind, inputs, output = node.op_type, tuple(node.input), node.output[0]
        settings = {a.name: _attribute(a) for a in node.attribute}
        if any(a.HasField("g") for a in node.attribute) or kind not in _OPERATORS:
            raise ModelError(
                f"{self._name}: the operator {kind} is not known. Export the network without it, or scan its PyTorch "
                "weights with --arch or --model-def"
            )
        if kind == "Constant":
            self._constants[output] = self._constant(node)
            return
        layer = self._layer(kind, settings, inputs, number)
        if layer is not None:
            self._steps.append(_Step(layer, None, (inputs[0],), output))
            if kind == "MatMul":
                self._dense.add(output)
            return
        if kind == "Add" and self._is_bias(inputs):
            bias = inputs[1] if inputs[1] in self._constants else inputs[0]
            self._kept.append(_Kept(number, inputs.index(bias), f"bias_{number}.value", transposed=False))
            self.add_module(f"bias_{number}", _Bias(self._constants[bias]))
            self._steps.append(_Step(f"bias_{number}", None, (inputs[0] if bias == inputs[1] else inputs[1],), output))
            return
        run = _OPERATORS[kind](settings, self._batch)
        known = [self._constants.get(name) for name in inputs if name]
        if known and all(value is not None for value in known):
            self._constants[output] = run(*[self._constants[name] if name else None for name in inputs])
            return
        self._steps.append(_Step(None, run, inputs, output))

    def _is_bias(self, inputs: Sequence[str]) -> bool:
        return any(
            one in self._dense and other in self._constants and self._constants[other].ndim == 1
            for one, other in (inputs, inputs[::-1])
        )

    def _constant(self, node: Any) -> Tensor:  # noqa: ANN401
        (attribute,) = node.attribute
        if attribute.name == "value":
            return self._value(attribute.t)
        value = _attribute(attribute)
        if attribute.name not in {"value_float", "value_floats", "value_int", "value_ints"}:
            raise ModelError(f"{self._name}: a constant of kind {attribute.name} is not known")
        return torch.tensor(value, dtype=torch.float32 if "float" in attribute.name else torch.int64)

    def _layer(self, kind: str, settings: Mapping[str, Any], inputs: Sequence[str], number: int) -> str | None:
        """Make an operator with weights a layer, whose weights are parameters; ``None``: it is none."""
        constants = [self._constants.get(name) for name in inputs[1:]]
        if kind not in _LAYERS or not constants or constants[0] is None or constants[0].ndim < _LEAST[kind]:
            return None
        if any(value is None for value, name in zip(constants, inputs[1:], strict=True) if name):
            raise ModelError(f"{self._name}: {kind} with weights that are computed is not known")
        made, names = _LAYERS[kind](settings, constants)
        layer = f"{kind.lower()}_{number}"
        self.add_module(layer, made)
        for position, (path, transposed) in enumerate(names[: len(inputs) - 1], start=1):
            if inputs[position]:
                self._kept.append(_Kept(number, position, f"{layer}.{path}", transposed))
        return layer


def _arrays() -> Any:  # noqa: ANN401 - a module
    """``onnx.numpy_helper``; networks are copied, which a module cannot be: none holds it."""
    return importlib.import_module("onnx.numpy_helper")


class _Bias(nn.Module):
    """What is added to the product of a dense layer that was exported in two steps."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ..., features) -> the same."""
        return inputs + self.value


def _buffer(name: str) -> str:
    """A constant's name as a buffer's, which has no dots."""
    return "constant_" + name.replace(".", "_dot_").replace("/", "_slash_")


def _attribute(attribute: Any) -> Any:  # noqa: ANN401 - a protobuf message, and one of six kinds of value
    kinds = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints"}
    kind = kinds.get(attribute.type)
    if kind is None:
        return None
    value = getattr(attribute, kind)
    return value.decode("utf-8", "replace") if kind == "s" else list(value) if kind.endswith("s") else value


_Made = tuple[nn.Module, tuple[tuple[str, bool], ...]]
"""A layer, and for each constant the parameter that it became and whether it was transposed."""


def _padding(settings: Mapping[str, Any]) -> tuple[tuple[int, int], nn.Module | None]:
    """Padding as a layer takes it, the same on both sides, or a layer before it where the sides differ."""
    if settings.get("auto_pad", _NOTSET) not in {_NOTSET, _VALID}:
        raise ModelError(f"automatic padding ({settings['auto_pad']}) is not known: export with explicit pads")
    top, left, bottom, right = settings.get("pads", [0, 0, 0, 0])
    if (top, left) == (bottom, right):
        return (top, left), None
    return (0, 0), nn.ZeroPad2d((left, right, top, bottom))


def _conv(settings: Mapping[str, Any], constants: Sequence[Tensor | None]) -> _Made:
    weight, bias = constants[0], constants[1] if len(constants) > 1 else None
    if weight is None or weight.ndim != 4:
        raise ModelError("convolutions of other than two dimensions are not known")
    padding, before = _padding(settings)
    groups = settings.get("group", 1)
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        tuple(settings.get("strides", [1, 1])),
        padding,
        tuple(settings.get("dilations", [1, 1])),
        groups,
        bias=bias is not None,
    )
    _fill(layer, weight=weight, bias=bias)
    if before is None:
        return layer, (("weight", False), ("bias", False))
    return nn.Sequential(before, layer), (("1.weight", False), ("1.bias", False))


def _gemm(settings: Mapping[str, Any], constants: Sequence[Tensor | None]) -> _Made:
    if settings.get("transA", 0) or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
        raise ModelError("Gemm with a transposed input, or with factors, is not known")
    weight, bias = constants[0], constants[1] if len(constants) > 1 else None
    flipped = not settings.get("transB", 0)
    return _linear(weight, bias, flipped=flipped)


def _matmul(_: Mapping[str, Any], constants: Sequence[Tensor | None]) -> _Made:
    return _linear(constants[0], None, flipped=True)


def _linear(weight: Tensor | None, bias: Tensor | None, *, flipped: bool) -> _Made:
    if weight is None or weight.ndim != 2:
        raise ModelError("a dense layer takes a matrix")
    matrix = weight.T if flipped else weight
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None)
    _fill(layer, weight=matrix, bias=bias.reshape(-1) if bias is not None else None)
    return layer, (("weight", flipped), ("bias", False))


def _batch_norm(settings: Mapping[str, Any], constants: Sequence[Tensor | None]) -> _Made:
    if settings.get("training_mode", 0):
        raise ModelError("BatchNormalization in training mode is not known: export the network in evaluation mode")
    scale, shift, mean, variance = constants
    if scale is None or shift is None or mean is None or variance is None:
        raise ModelError("BatchNormalization lacks its statistics")
    layer = _BatchNorm(len(scale), eps=settings.get("epsilon", 1e-5), momentum=1 - settings.get("momentum", 0.9))
    _fill(layer, weight=scale, bias=shift)
    with torch.no_grad():
        for buffer, value in ((layer.running_mean, mean), (layer.running_var, variance)):
            if buffer is not None:
                buffer.copy_(value)
    return layer, (("weight", False), ("bias", False), ("running_mean", False), ("running_var", False))


class _BatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - of any number of dimensions, as ONNX's is
    """Batch normalisation of (N, channels, ...)."""

    def _check_input_dim(self, _: Tensor) -> None:
        return


def _layer_norm(settings: Mapping[str, Any], constants: Sequence[Tensor | None]) -> _Made:
    scale, shift = constants[0], constants[1] if len(constants) > 1 else None
    if scale is None or settings.get("axis", -1) not in {-1, -scale.ndim}:
        raise ModelError("LayerNormalization over other than the last axes is not known")
    layer = nn.LayerNorm(tuple(scale.shape), eps=settings.get("epsilon", 1e-5), bias=shift is not None)
    _fill(layer, weight=scale, bias=shift)
    return layer, (("weight", False), ("bias", False))


@torch.no_grad()
def _fill(layer: nn.Module, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None:
            layer.get_parameter(name).copy_(value)


_LAYERS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Tensor | None]], _Made]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
}
_LEAST = {"Conv": 3, "Gemm": 2, "MatMul": 2, "BatchNormalization": 1, "LayerNormalization": 1}  # dimensions of weights

_Operator = Callable[[Mapping[str, Any], int], Run]
"""Of an operator's attributes and the batch size that the graph was traced with (0: any), what it does."""


def _plain(function: Run) -> _Operator:
    return lambda settings, batch: function  # noqa: ARG005


def _pool(function: Callable[..., Tensor], settings: Mapping[str, Any], _: int, *, mean: bool) -> Run:
    padding, before = _padding(settings)
    if before is not None and not (mean and settings.get("count_include_pad", 0)):
        fill = nn.ConstantPad2d(before.padding, -math.inf) if isinstance(before, nn.ZeroPad2d) and not mean else None
        if fill is None:
            raise ModelError("AveragePool with uneven pads that do not count is not known")
        before = fill
    kernel, strides = tuple(settings["kernel_shape"]), tuple(settings.get("strides", [1, 1]))
    more: dict[str, Any] = {"ceil_mode": bool(settings.get("ceil_mode", 0))}
    if mean:
        more["count_include_pad"] = bool(settings.get("count_include_pad", 0))
    else:
        more["dilation"] = tuple(settings.get("dilations", [1, 1]))
    pooled = partial(function, kernel_size=kernel, stride=strides, padding=padding, **more)
    return pooled if before is None else lambda images: pooled(before(images))


def _reshape(settings: Mapping[str, Any], batch: int) -> Run:
    def run(values: Tensor, shape: Tensor) -> Tensor:
        wanted = [int(size) for size in shape]
        if not settings.get("allowzero", 0):
            wanted = [values.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
        if batch and wanted and wanted[0] == batch and values.shape[0] != batch:
            wanted[0] = values.shape[0]  # the number of images that it was exported with stands for any
        return values.reshape(wanted)

    return run


def _flatten(settings: Mapping[str, Any], _: int) -> Run:
    axis = settings.get("axis", 1)
    return lambda values: values.reshape(math.prod(values.shape[:axis]), -1)


def _reduced(function: Callable[..., Tensor], settings: Mapping[str, Any], _: int) -> Run:
    def run(values: Tensor, axes: Tensor | None = None) -> Tensor:
        over = [int(a) for a in axes] if axes is not None else settings.get("axes", list(range(values.ndim)))
        return function(values, dim=over, keepdim=bool(settings.get("keepdims", 1)))

    return run


def _clip(settings: Mapping[str, Any], _: int) -> Run:
    def run(values: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        least = settings.get("min") if low is None else float(low)
        most = settings.get("max") if high is None else float(high)
        return values.clamp(least, most)

    return run


def _squeezed(settings: Mapping[str, Any], _: int) -> Run:
    def run(values: Tensor, axes: Tensor | None = None) -> Tensor:
        over = [int(a) for a in axes] if axes is not None else settings.get("axes")
        return values.squeeze() if over is None else values.squeeze(tuple(over))

    return run


def _unsqueezed(settings: Mapping[str, Any], _: int) -> Run:
    def run(values: Tensor, axes: Tensor | None = None) -> Tensor:
        over = [int(a) for a in axes] if axes is not None else settings["axes"]
        count = values.ndim + len(over)
        for axis in sorted(a % count for a in over):
            values = values.unsqueeze(axis)
        return values

    return run


def _pad(settings: Mapping[str, Any], _: int) -> Run:
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = modes.get(settings.get("mode", "constant"))
    if mode is None:
        raise ModelError(f"Pad of mode {settings['mode']} is not known")

    def run(values: Tensor, pads: Tensor | None = None, fill: Tensor | None = None) -> Tensor:
        amounts = [int(p) for p in pads] if pads is not None else settings["pads"]
        half = len(amounts) // 2
        order = [size for i in reversed(range(half)) for size in (amounts[i], amounts[half + i])]
        while mode != "constant" and order[-2:] == [0, 0]:
            order = order[:-2]  # torch pads the last axes alone in these modes
        with_value = {"value": float(fill) if fill is not None else settings.get("value", 0.0)}
        return F.pad(values, order, mode, **(with_value if mode == "constant" else {}))

    return run


def _slice(_: Mapping[str, Any], __: int) -> Run:
    def run(
        values: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
    ) -> Tensor:
        over = range(len(starts)) if axes is None else [int(a) for a in axes]
        strides = [1] * len(starts) if steps is None else [int(s) for s in steps]
        for axis, start, end, step in zip(over, starts.tolist(), ends.tolist(), strides, strict=True):
            chosen = range(*slice(start, end, step).indices(values.shape[axis]))  # torch takes no negative steps
            values = values.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=values.device))
        return values

    return run


def _gather(settings: Mapping[str, Any], _: int) -> Run:
    axis = settings.get("axis", 0)

    def run(values: Tensor, indices: Tensor) -> Tensor:
        flat = values.index_select(axis, indices.reshape(-1).to(values.device) % values.shape[axis])
        return flat.reshape((*values.shape[:axis], *indices.shape, *values.shape[axis:][1:]))

    return run


def _softmax(function: Callable[..., Tensor], settings: Mapping[str, Any], _: int) -> Run:
    return lambda values: function(values, dim=settings.get("axis", -1))


def _cast(settings: Mapping[str, Any], _: int) -> Run:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float32}
    if settings["to"] not in kinds:
        raise ModelError(f"Cast to type {settings['to']} is not known")
    return lambda values: values.to(kinds[settings["to"]])


def _divide(values: Tensor, by: Tensor) -> Tensor:
    return values / by if values.is_floating_point() else torch.div(values, by, rounding_mode="trunc")


def _expand(values: Tensor, shape: Tensor) -> Tensor:
    return values * torch.ones([int(size) for size in shape], dtype=values.dtype, device=values.device)


def _constant_of_shape(settings: Mapping[str, Any], _: int) -> Run:
    value = settings.get("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(np.array(_arrays().to_array(value)))

    def run(shape: Tensor) -> Tensor:
        sizes = [int(size) for size in shape]
        if math.prod(sizes) > _MOST_ELEMENTS:
            raise ModelError(f"ConstantOfShape claims {math.prod(sizes)} elements")
        return fill.reshape(()).expand(sizes).clone()

    return run


def _shape_of(values: Tensor) -> Tensor:
    return torch.tensor(values.shape, dtype=torch.int64)


_OPERATORS: Mapping[str, _Operator] = {
    **dict.fromkeys(("Conv", "BatchNormalization", "LayerNormalization"), _plain(lambda *_: _needs_weights())),
    "Gemm": _plain(lambda *_: _needs_weights()),
    "MatMul": _plain(torch.matmul),
    "Constant": _plain(lambda *_: _needs_weights()),
    "Identity": _plain(lambda values: values),
    "Dropout": _plain(lambda values, *_: values),
    "Relu": _plain(F.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "Softplus": _plain(F.softplus),
    "HardSwish": _plain(F.hardswish),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Sqrt": _plain(torch.sqrt),
    "Neg": _plain(torch.neg),
    "Abs": _plain(torch.abs),
    "Pow": _plain(torch.pow),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(_divide),
    "Mod": _plain(lambda values, by: torch.fmod(values, by) if values.is_floating_point() else values % by),
    "Min": _plain(lambda *values: reduce(torch.minimum, values)),
    "Max": _plain(lambda *values: reduce(torch.maximum, values)),
    "Equal": _plain(torch.eq),
    "Greater": _plain(torch.gt),
    "Less": _plain(torch.lt),
    "Not": _plain(torch.logical_not),
    "And": _plain(torch.logical_and),
    "Where": _plain(torch.where),
    "ConstantOfShape": _constant_of_shape,
    "Expand": _plain(_expand),
    "Shape": _plain(_shape_of),
    "GlobalAveragePool": _plain(lambda values: values.mean(dim=(2, 3), keepdim=True)),
    "GlobalMaxPool": _plain(lambda values: values.amax(dim=(2, 3), keepdim=True)),
    "LeakyRelu": lambda settings, _: partial(F.leaky_relu, negative_slope=settings.get("alpha", 0.01)),
    "Elu": lambda settings, _: partial(F.elu, alpha=settings.get("alpha", 1.0)),
    "Selu": _plain(F.selu),
    "Gelu": lambda settings, _: partial(F.gelu, approximate=settings.get("approximate", "none")),
    "HardSigmoid": lambda settings, _: (
        lambda values: (settings.get("alpha", 0.2) * values + settings.get("beta", 0.5)).clamp(0, 1)
    ),
    "Clip": _clip,
    "Softmax": partial(_softmax, torch.softmax),
    "LogSoftmax": partial(_softmax, torch.log_softmax),
    "MaxPool": partial(_pool, F.max_pool2d, mean=False),
    "AveragePool": partial(_pool, F.avg_pool2d, mean=True),
    "ReduceMean": partial(_reduced, torch.mean),
    "ReduceSum": partial(_reduced, torch.sum),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Transpose": lambda settings, _: (
        lambda values: values.permute(settings.get("perm", list(range(values.ndim))[::-1]))
    ),
    "Concat": lambda settings, _: lambda *values: torch.cat(values, dim=settings["axis"]),
    "Pad": _pad,
    "Slice": _slice,
    "Gather": _gather,
    "Cast": _cast,
}
"""What is known, by ONNX's names."""


def _needs_weights() -> Tensor:
    raise ModelError("a layer whose weights are computed, not stored, is not known")
