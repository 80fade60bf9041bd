"""The handle around a model: the network, and everything needed to use it on pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from neuralsanitizer.errors import ModelError, NeuralSanitizerError, UsageError
from neuralsanitizer.functional.precision import autocast, fast_dtype
from neuralsanitizer.models.bounds import bounded
from neuralsanitizer.records import ModelRecord

__all__ = ["Preprocessing", "SuspectModel"]

_MOST_BYTES = 2**30  # what a scan may take on a machine of four gigabytes that does other things too (chosen)

_SMALLEST_PROBABILITY = 1e-12  # below float32's resolution next to 1: keeps the logarithm finite, changes no ranking


@dataclass(frozen=True)
class Preprocessing:
    """How pixel values become the network's input: ``(x - mean) / std`` with ``x`` scaled to [0, 1].

    Attributes:
        mean: One value a channel (or one for all), in units of [0, 1] pixel values.
        std: Likewise, positive.
        pixel_range: Which raw pixel values 0 and 1 stand for: (0, 255) for 8-bit images.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pixel_range: tuple[float, float] = (0.0, 255.0)

    def __post_init__(self) -> None:
        if not self.mean or not self.std or min(self.std) <= 0:
            raise UsageError(f"mean and std need one value a channel, std positive; got {self.mean} and {self.std}")
        if not self.pixel_range[0] < self.pixel_range[1]:
            raise UsageError(f"the pixel range needs its lower end first; got {self.pixel_range}")

    @classmethod
    def from_raw(cls, mean: Sequence[float], std: Sequence[float], pixel_range: tuple[float, float]) -> Self:
        """Preprocessing whose mean and std are stated in raw pixel values, as in ``(p - 127.5) / 255``."""
        low, span = pixel_range[0], pixel_range[1] - pixel_range[0]
        return cls(tuple((m - low) / span for m in mean), tuple(s / span for s in std), pixel_range)

    def for_channels(self, channels: int) -> Self:
        """The same with one value a channel.

        Raises:
            UsageError: The number of values is neither 1 nor ``channels``.
        """
        if len(self.mean) not in {1, channels} or len(self.std) not in {1, channels}:
            raise UsageError(
                f"the model takes {channels} channels: mean and std need 1 or {channels} values, "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        mean = self.mean * channels if len(self.mean) == 1 else self.mean
        std = self.std * channels if len(self.std) == 1 else self.std
        return replace(self, mean=mean, std=std)


@dataclass(eq=False)
class SuspectModel:
    """A classifier under examination, frozen and in evaluation mode.

    Everything outside this class speaks of images as float32 (N, channels, height, width) in [0, 1]; normalisation
    happens here and nowhere else. Stamping a trigger before an affine normalisation or after it is the same thing, so
    masks and patterns live in [0, 1] too.

    Attributes:
        module: The network. Takes normalised images, gives (N, labels) logits, or probabilities (see ``output``).
        input_shape: (channels, height, width).
        labels: Number of labels.
        preprocessing: Normalisation of pixel values.
        label_names: One name a label; indices as text by default.
        architecture: Name for the record.
        name: File name for the record.
        sha256: Hash of the file or of the weights, for the record.
        output: ``logits`` or ``probabilities``; probabilities are turned into their logarithms, without which a loss on
            saturated outputs has no gradient.
        device: Where it runs.
        notes: What loading had to do.
        layer_names: For architectures whose layers were named by hand: groups of submodule names in forward order, each
            group one layer. Empty: traced when needed (:func:`neuralsanitizer.models.layers.trace_layers`).
        memory_format: Of weights and inputs. ``None``: channels last where the network's code can do with it, which is
            tried on two black images (much hand-written code flattens with ``view``, which cannot).
        bytes_an_image: What the network keeps of one image for the gradient to it; 0: not measured yet.
    """

    module: nn.Module
    input_shape: tuple[int, int, int]
    labels: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    label_names: tuple[str, ...] = ()
    architecture: str = ""
    name: str = ""
    sha256: str = ""
    output: str = "logits"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    notes: tuple[str, ...] = ()
    layer_names: tuple[tuple[str, ...], ...] = ()
    memory_format: torch.memory_format | None = None
    bytes_an_image: int = 0

    def __post_init__(self) -> None:
        self.preprocessing = self.preprocessing.for_channels(self.input_shape[0])
        if not self.label_names:
            self.label_names = tuple(str(i) for i in range(self.labels))
        if len(self.label_names) != self.labels:
            raise UsageError(f"the model has {self.labels} labels, but {len(self.label_names)} names were given")
        if self.output not in {"logits", "probabilities"}:
            raise UsageError(f"output must be 'logits' or 'probabilities', got {self.output!r}")
        self.architecture = self.architecture or type(self.module).__name__
        channels = self.input_shape[0]
        self._mean = torch.tensor(self.preprocessing.mean, device=self.device).view(1, channels, 1, 1)
        self._std = torch.tensor(self.preprocessing.std, device=self.device).view(1, channels, 1, 1)
        self.module = self.module.to(self.device).eval().requires_grad_(False)  # noqa: FBT003 - torch's signature
        if self.memory_format is None:
            self.memory_format = self._fastest_memory_format()
        self.module = self.module.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def _fastest_memory_format(self) -> torch.memory_format:
        """Channels last makes training a third faster on a CPU (measured), if the network's code can do with it."""
        module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            with torch.no_grad(), bounded("the network's answer to two images"):
                black = self._standardise(torch.zeros(2, *self.input_shape, device=self.device))
                module(black.contiguous(memory_format=torch.channels_last))
        except NeuralSanitizerError:
            raise
        except Exception:  # noqa: BLE001 - the user's code may raise anything; what is no matter of format shows later
            return torch.contiguous_format
        return torch.channels_last

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, labels), float32, of images (N, channels, height, width) in [0, 1]."""
        return self.to_logits(self.module(self.normalise(images)))

    def normalise(self, images: Tensor) -> Tensor:
        """Pixel values in [0, 1] to the network's input, same shape, in the network's memory format."""
        return self._standardise(images).contiguous(memory_format=self.memory_format or torch.contiguous_format)

    def _standardise(self, images: Tensor) -> Tensor:
        normal: Tensor = (images - self._mean) / self._std
        return normal

    def to_logits(self, outputs: Tensor) -> Tensor:
        """The network's outputs (N, labels) as float32 logits: their logarithm if they are probabilities."""
        outputs = outputs.float()
        return outputs.clamp_min(_SMALLEST_PROBABILITY).log() if self.output == "probabilities" else outputs

    def with_module(self, module: nn.Module) -> SuspectModel:
        """The same handle around another network of the same shape (a reference, a repaired model)."""
        return replace(self, module=module, sha256="", notes=())

    def images_at_once(self, most: int) -> int:
        """How many images, at most, the network is shown at once: what it keeps of them has to fit into some memory.

        That is a gibibyte on a CPU, and a quarter of a GPU's.

        Args:
            most: No more than these, however little it keeps.

        Returns:
            At least 1.
        """
        self.bytes_an_image = self.bytes_an_image or self._measure_bytes()
        gpu = self.device.type == "cuda"
        memory = torch.cuda.get_device_properties(self.device).total_memory // 4 if gpu else _MOST_BYTES
        return max(1, min(most, memory // self.bytes_an_image))

    def _measure_bytes(self) -> int:
        """Bytes that a forward pass keeps for the backward pass, an image."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {t.untyped_storage().data_ptr() for t in (*self.module.parameters(), *self.module.buffers())}
        black = torch.zeros(2, *self.input_shape, device=self.device, requires_grad=True)
        with (
            torch.enable_grad(),
            bounded("the network's answer to two images"),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            outputs = self.module(self.normalise(black))
        del outputs  # until here the tensors live, and no two of them share an address
        size = sum(count for address, count in kept.items() if address not in own)
        return max(size // len(black), black[0].nbytes)

    @torch.no_grad()
    def logits_of(self, images: Tensor, batch: int = 500) -> Tensor:
        """Logits (N, labels) of many images, in batches of at most so many, without gradients."""
        return torch.cat([self(part.to(self.device)) for part in images.split(self.images_at_once(batch))])

    def predict(self, images: Tensor, batch: int = 500, *, fast: bool = False) -> Tensor:
        """Most likely label (N,), int64, of many images.

        Args:
            images: (N, channels, height, width) in [0, 1].
            batch: At most so many are shown at once.
            fast: In the format that the device is fastest in, see
                :func:`~neuralsanitizer.functional.precision.fast_dtype`, in place of float32: for what a scan asks on
                its way, and not for what it tells of the model.
        """
        with autocast(self.device, fast_dtype(self.device) if fast else torch.float32):
            return self.logits_of(images, batch).argmax(dim=1)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share in [0, 1] of images that the model names rightly."""
        return float((self.predict(images) == labels.to(self.device)).float().mean())

    def recognise_output(self, images: Tensor) -> None:
        """Run a few images through the network, check what comes out, and tell logits from probabilities.

        Args:
            images: (N, channels, height, width) in [0, 1]; a handful is enough.

        Raises:
            ModelError: The outputs are not (N, labels), or not finite.
        """
        with torch.no_grad():
            inputs = self.normalise(images.to(self.device))
            try:
                with bounded("the network's answer to a few images"):
                    outputs = self.module(inputs)
            except NeuralSanitizerError:
                raise
            except Exception as error:  # the user's code may raise anything
                raise ModelError(f"the network fails on images of shape {self.input_shape}: {error}") from error
        if not isinstance(outputs, Tensor) or outputs.shape != (len(images), self.labels):
            came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ModelError(
                f"the model should give {self.labels} values an image, shape ({len(images)}, {self.labels}); "
                f"it gave {came}. Is the number of labels right (--labels)?"
            )
        outputs = outputs.float()
        if not torch.isfinite(outputs).all():
            raise ModelError("the model gives NaN or infinite values on clean images: its weights are damaged")
        sums = outputs.sum(dim=1)
        in_unit_range = bool((outputs >= 0).all() and (outputs <= 1 + 1e-4).all())
        if in_unit_range and torch.allclose(sums, torch.ones_like(sums), atol=1e-3) and self.output == "logits":
            self.output = "probabilities"
            self.notes = (*self.notes, "the network ends in a softmax: the logarithm of its outputs is used")

    def record(self) -> ModelRecord:
        """What the run remembers of the model."""
        return ModelRecord(
            name=self.name,
            sha256=self.sha256,
            architecture=self.architecture,
            labels=self.labels,
            label_names=self.label_names,
            input_shape=self.input_shape,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
            pixel_range=self.preprocessing.pixel_range,
            output=self.output,
            notes=self.notes,
        )
