"""Where and with what a run was made, and what identifies it."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from neuralsanitizer.functional.precision import fast_dtype
from neuralsanitizer.records import DataRecord, EnvironmentRecord, ModelRecord, to_json

__all__ = ["environment", "now", "peak_memory_mb", "scan_inputs", "tool_version"]


def tool_version() -> str:
    """The installed version of this package."""
    try:
        return version("neuralsanitizer")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "unknown"


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def environment(device: torch.device) -> EnvironmentRecord:
    """Versions and machine."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        load = None
    return EnvironmentRecord(
        neuralsanitizer=tool_version(),
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        platform=platform.platform(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        dtype=str(fast_dtype(device)).removeprefix("torch."),
        load_average=load,
    )


def peak_memory_mb() -> float | None:
    """The largest resident set of this process so far, in megabytes; ``None`` where the system does not tell."""
    try:
        import resource  # noqa: PLC0415 - Unix alone has it
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kilobytes elsewhere


def scan_inputs(
    model: ModelRecord, data: DataRecord, settings: dict[str, Any], method: str, seed: int
) -> dict[str, Any]:
    """What an interrupted scan must have in common with the one that goes on with it: all its inputs, by name."""
    return {
        "model": model.sha256,
        "architecture": model.architecture,
        "labels of the model": model.labels,
        "normalisation": [to_json(model.mean), to_json(model.std)],
        "output of the model": model.output,
        "clean set": data.sha256,
        "method": method,
        "settings": to_json(settings),
        "seed": seed,
        "version": tool_version(),
    }
