"""Write the JSON Schema of what ``--format json`` prints, from the records themselves.

Run it after a change to the records: ``python docs/reference/make_schema.py``. A test compares.
"""

from __future__ import annotations

import json
import sys
import types
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from neuralsanitizer.records import SCHEMA_VERSION, FilterRecord, Repair, Run, Verification

HERE = Path(__file__).parent
OUTPUT = HERE / "scan.schema.json"
_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema() -> dict[str, Any]:
    """The schema, JSON Schema 2020-12."""
    known: dict[str, Any] = {}
    for record in (Run, Repair, Verification, FilterRecord):
        _of(record, known)
    scan = _flattened(known["Run"], known["Verdict"])
    known["Scan"] = scan
    proof = known["Verification"]
    own = {name: kind for name, kind in proof["properties"].items() if name != "finding"}
    known["Proof"] = {
        **proof,
        "properties": {"verdict": proof["properties"]["finding"], **own, "scan": {"$ref": "#/$defs/Scan"}},
        "required": ["verdict", *(name for name in proof["required"] if name != "finding")],
    }
    del known["Verification"], known["Run"], known["Verdict"]
    extras = {
        "repair": {"$ref": "#/$defs/Repair"},
        "verification": {"$ref": "#/$defs/Proof"},
        "filter": {"$ref": "#/$defs/FilterRecord"},
        "run_folder": {"type": "string"},
        "report": {"type": "string"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"NeuralSanitizer scan, schema version {SCHEMA_VERSION}",
        "description": "What scan --format json and report --format json print.",
        **scan,
        "properties": {**scan["properties"], **extras},
        "$defs": dict(sorted(known.items())),
    }


def _flattened(run: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    """A run with the verdict's fields at the top, as the command line prints it."""
    moved = {"verdict" if name == "finding" else name: kind for name, kind in verdict["properties"].items()}
    left = {name: kind for name, kind in run["properties"].items() if name != "verdict"}
    required = [*moved, *(name for name in run["required"] if name != "verdict")]
    return {"type": "object", "properties": {**moved, **left}, "required": required}


def _of(kind: Any, known: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401, PLR0911 - one line a kind of type
    if kind in _SIMPLE:
        return {"type": _SIMPLE[kind]}
    if kind is Any:
        return {}
    if is_dataclass(kind):
        name = kind.__name__
        if name not in known:
            known[name] = {}  # named before it is made: records may hold each other
            hints = get_type_hints(kind)
            known[name] = {
                "type": "object",
                "properties": {f.name: _of(hints[f.name], known) for f in fields(kind)},
                "required": [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING],
            }
        return {"$ref": f"#/$defs/{name}"}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [one.value for one in kind]}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": _of(arguments[0], known)}
        parts = [_of(one, known) for one in arguments]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], known)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in {Union, types.UnionType}:
        return {"anyOf": [_of(one, known) for one in arguments]}
    raise TypeError(f"no schema for {kind}")


def text() -> str:
    """The file's text."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if OUTPUT.read_text(encoding="utf-8") == text() else "scan.schema.json is old: run make_schema.py")
    OUTPUT.write_text(text(), encoding="utf-8")
