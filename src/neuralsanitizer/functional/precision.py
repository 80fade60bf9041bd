"""Which number format the convolutions run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocast", "fast_dtype"]


def fast_dtype(device: torch.device) -> torch.dtype:
    """The format that matrix products are fastest in on a device, at no measured loss of detection.

    bfloat16 where the hardware multiplies it natively (CPUs with AVX512-BF16 or AMX, recent GPUs), else float32: on a
    CPU that emulates it, bfloat16 is slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and any(_cpu_has(f) for f in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run convolutions and matrix products in ``dtype``; everything else, and all parameters, stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _cpu_has(feature: str) -> bool:
    probe = getattr(torch.cpu, feature, None)  # not public, and named differently before 2.4: absent counts as no
    return bool(probe()) if callable(probe) else False
