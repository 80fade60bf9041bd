"""TorchScript and exported programs (.pt2): opened only on request, by a confined process, never by this one.

Opening such a file can run code that came with it. The confined process (:mod:`neuralsanitizer.execution.sandbox`)
opens it, follows one batch of images through it, and hands back an ONNX graph; that is read as any ONNX file is, and
scanned. Nothing of the program itself is ever loaded where verdicts are made.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from neuralsanitizer.errors import RefusedError, UsageError
from neuralsanitizer.execution.sandbox import BARRIERS, run_confined

__all__ = ["kind_of_program", "program_entries", "refused", "translate"]

Shape = tuple[int, int, int]

TORCHSCRIPT, EXPORTED = "TorchScript", "an exported program (.pt2)"
_MOST_ENTRIES = 100_000  # of an archive: what is refused as damaged elsewhere
_GRAPH = 64 * 1024**2  # bytes that a graph may take beyond the weights, which the file has too
_OPSET = 17  # of ONNX: as of 2022, which every operator of an image classifier is in


def program_entries(names: Collection[str]) -> str | None:
    """What kind of program an archive is, by the names of its entries without their common folder; ``None``: none."""
    if any(name == "constants.pkl" or name.startswith("code/") for name in names):
        return TORCHSCRIPT
    if any(
        name.startswith(("models/", "data/aotinductor")) or name.endswith("exported_program.json") for name in names
    ):
        return EXPORTED
    return None


def kind_of_program(path: Path) -> str | None:
    """What kind of program a file is; ``None`` if it is none, or cannot be read: the reader of weights says why."""
    try:
        with path.open("rb") if path.is_file() else BytesIO() as file:
            if file.read(4) != b"PK\x03\x04":
                return None
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()[:_MOST_ENTRIES]
    except Exception:  # noqa: BLE001 - a hostile file makes the zip reader raise anything
        return None
    return program_entries({"/".join(name.split("/")[1:]) for name in names})


def refused(kind: str, name: str) -> RefusedError:
    """The error about a program that nobody asked to open."""
    return RefusedError(
        f"{name} is refused: it is {kind}, which can run code when it is opened. Save the network's state_dict "
        "instead, and give --arch or --model-def; or have a sandbox open it: --allow-code, without these"
    )


def translate(content: bytes, name: str, kind: str, shape: Shape | None, *, full: bool) -> tuple[bytes, str]:
    """The ONNX graph of a program, and a sentence about the sandbox that made it.

    Args:
        content: The file.
        name: Its name, for errors.
        kind: As :func:`kind_of_program` says.
        shape: (channels, height, width) of its images.
        full: Whether to refuse where a barrier of the sandbox is missing.

    Raises:
        UsageError: There is no shape.
        RefusedError: It holds compiled code; or a barrier is missing, and ``full``.
        ModelError: It cannot be opened or followed.
        TimeLimitError: That takes too long.
    """
    if shape is None:
        raise UsageError(f"{name} does not say what size of images it takes: give --input-shape CHANNELS,HEIGHT,WIDTH")
    if b"aotinductor" in content:
        raise RefusedError(f"{name} is refused: it holds compiled code, which is not opened even in a sandbox")
    if full:
        _require_all_barriers(name)
    settings = {"kind": kind, "shape": list(shape)}
    made = run_confined(
        f"{__name__}:to_onnx", content, settings, most=_GRAPH + 2 * len(content), what=f"translating {name}"
    )
    if full and made.missing:
        raise RefusedError(_lacking(name, made.missing))
    lacking = f" without these barriers: {', '.join(made.missing)}" if made.missing else ""
    return made.content, f"translated from {kind} in a sandbox{lacking}; what is scanned is its graph of operations"


def _require_all_barriers(name: str) -> None:
    """Try the sandbox on nothing before it is trusted with the file."""
    missing = run_confined(f"{__name__}:to_nothing", b"", {}, most=0, what="trying the sandbox").missing
    if missing:
        raise RefusedError(_lacking(name, missing))


def _lacking(name: str, missing: tuple[str, ...]) -> str:
    return (
        f"{name} is refused: of the sandbox's barriers ({', '.join(BARRIERS)}) this system lacks {', '.join(missing)} "
        "(--require-sandbox). Save the network's state_dict, or scan on Linux 5.13 or later"
    )


def to_nothing(content: bytes, settings: dict[str, Any]) -> bytes:  # noqa: ARG001 - as all that run confined
    """Run confined: nothing."""
    return b""


def to_onnx(content: bytes, settings: dict[str, Any]) -> bytes:
    """Run confined: open a program and follow two images through it.

    Args:
        content: The program.
        settings: ``kind`` and ``shape``.
    """
    images = torch.zeros(2, *settings["shape"])
    if settings["kind"] == TORCHSCRIPT:
        program = torch.jit.load(BytesIO(content), map_location="cpu").eval()
    else:
        program = torch.jit.trace(torch.export.load(BytesIO(content)).module(), images)
    graph = BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            program,
            (images,),
            graph,  # type: ignore[arg-type]  # a file will do, with this exporter
            dynamo=False,
            opset_version=_OPSET,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
            export_params=True,
            training=torch.onnx.TrainingMode.EVAL,
        )
    return graph.getvalue()
