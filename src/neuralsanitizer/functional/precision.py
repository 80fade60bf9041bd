"""Which number format the convolutions run in."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

__all__ = ["autocast", "fast_dtype"]


def fast_dtype(device: torch.device) -> torch.dtype:
    """The format that matrix products are fastest in on a device, at no measured loss of detection.

    On a recent GPU bfloat16. On a CPU with instructions for it (AVX512-BF16, AMX) what a trial says: on one with
    AVX512-BF16 and without AMX, bfloat16 took 1.2 to 1.6 times as long as float32 (measured, searches and training of
    ``mnist-cnn`` and ``gtsrb-cnn``). Elsewhere float32: what a CPU emulates is slow.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and any(_cpu_has(f) for f in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")):
        return torch.bfloat16 if _gain() >= _LEAST_GAIN else torch.float32
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run convolutions and matrix products in ``dtype``; everything else, and all parameters, stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _cpu_has(feature: str) -> bool:
    probe = getattr(torch.cpu, feature, None)  # not public, and named differently before 2.4: absent counts as no
    return bool(probe()) if callable(probe) else False


@lru_cache(maxsize=1)
def _gain() -> float:
    """How many times as long a convolution, forward and backward to its input, takes in float32 as in bfloat16.

    The least time of several trials in turns, once a process; processes that fork share it. A tenth of a second.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        images = torch.linspace(0, 1, 64 * 32 * 14 * 14).view(64, 32, 14, 14)
        images = images.to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.linspace(-1, 1, 32 * 32 * 3 * 3).view(32, 32, 3, 3).to(memory_format=torch.channels_last)
        seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
        for _ in range(_TRIALS):
            for dtype, taken in seconds.items():
                started = time.perf_counter()
                with autocast(images.device, dtype):
                    convolved = F.conv2d(images, weight, padding=1)
                torch.autograd.grad(convolved.float().sum(), images)
                taken.append(time.perf_counter() - started)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


_TRIALS = 6  # of which the first ones make the kernels
_LEAST_GAIN = 1.2  # chosen: where bfloat16 is slower the trial said 0.3 to 0.7, and no machine is to change its mind
