"""Scan the model versions of an MLflow registry that ask for it, and tag them with the verdict.

A version asks by an alias (``candidate``), or by a stage (``Staging``) in registries that still have stages. A version
whose files were scanned before is left alone: the same files have the same verdict. Options after ``--`` are those of
``neuralsanitizer scan``::

    python mlflow_gate.py --registry sqlite:///mlflow.db -- --arch mnist-cnn-small --data clean.npz
    python mlflow_gate.py --registry http://localhost:5000 --every 60 -- --data images/

Each scanned version gets the tags ``neuralsanitizer.finding`` (``clean``, ``infected``, ``inconclusive`` or ``error``),
``neuralsanitizer.reason``, ``neuralsanitizer.sha256`` and ``neuralsanitizer.version``; its run gets the report. With
``--promote champion`` that alias moves to a version that is found clean. Without ``--every`` it looks once, and ends
with 1 if a version is infected, else with 3 if one cannot be scanned, else with 4 if one is inconclusive, else with 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
from mlflow.tracking import MlflowClient

PROGRAM = (sys.executable, "-m", "neuralsanitizer")
MODELS = ("*.safetensors", "*.onnx")  # of mlflow.pytorch's own pickles nothing is opened
CODES = {"infected": 1, "error": 3, "inconclusive": 4, "clean": 0}  # the first that occurs decides


def main() -> int:
    """Look once, or for ever."""
    options = parse()
    client = MlflowClient(registry_uri=options.registry, tracking_uri=options.registry)
    mlflow.set_tracking_uri(options.registry)
    while True:
        findings = {gate(client, version, options) for version in asking(client, options)}
        if options.every is None:
            return next((code for finding, code in CODES.items() if finding in findings), 0)
        time.sleep(options.every)


def parse() -> argparse.Namespace:
    """The options, and those of the scan."""
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True, help="Address of the registry, as MLflow takes it.")
    parser.add_argument("--alias", default="candidate", help="Of versions that ask for a scan.")
    parser.add_argument("--stage", default="Staging", help="Likewise, in registries that have stages.")
    parser.add_argument("--promote", metavar="ALIAS", help="Moves to a version that is found clean.")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="Look again and again.")
    options = parser.parse_args(given[:cut])
    options.scan = given[cut + 1 :]
    return options


def asking(client: MlflowClient, options: argparse.Namespace) -> list[Any]:
    """The versions that ask for a scan."""
    found = []
    for model in client.search_registered_models():
        for version in client.search_model_versions(f"name = '{model.name}'"):
            aliases = client.get_model_version(model.name, version.version).aliases
            if options.alias in aliases or version.current_stage == options.stage:
                found.append(version)
    return found


def gate(client: MlflowClient, version: Any, options: argparse.Namespace) -> str:
    """Scan a version unless its files were scanned before; returns the finding."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=version.source, dst_path=place))
        model = the_model(folder)
        sha256 = "" if model is None else digest(model)
        if sha256 and version.tags.get("neuralsanitizer.sha256") == sha256:
            return str(version.tags["neuralsanitizer.finding"])
        run = Path(place) / "run"
        finding, reason = scanned(model, run, options.scan)
        tags = {"finding": finding, "reason": reason[:5000], "sha256": sha256, "version": tool_version()}
        for name, value in tags.items():
            client.set_model_version_tag(version.name, version.version, f"neuralsanitizer.{name}", value)
        if version.run_id and (run / "report.html").exists():
            client.log_artifact(version.run_id, str(run / "report.html"), "neuralsanitizer")
        if finding == "clean" and options.promote:
            client.set_registered_model_alias(version.name, options.promote, version.version)
    print(f"{version.name} {version.version}: {finding}: {reason}")
    return finding


def the_model(folder: Path) -> Path | None:
    """What to scan in a version's files: a model folder, or the one file of weights."""
    if folder.is_file():
        return folder
    configured = sorted(path.parent for path in folder.rglob("config.json"))
    files = sorted(path for pattern in MODELS for path in folder.rglob(pattern))
    return next(iter([*configured, *(files if len(files) == 1 else [])]), None)


def digest(model: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names."""
    files = [model] if model.is_file() else sorted(path for path in model.rglob("*") if path.is_file())
    hashed = hashlib.sha256()
    for path in files:
        name = "" if path == model else path.relative_to(model).as_posix()
        hashed.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def scanned(model: Path | None, run: Path, of_scan: list[str]) -> tuple[str, str]:
    """Finding and reason of a fresh scan; ``error`` and the message where there is none."""
    if model is None:
        return "error", f"the version has no model folder and not exactly one of {', '.join(MODELS)}"
    done = subprocess.run(
        [*PROGRAM, "scan", str(model), *of_scan, "--output", str(run), "--format", "json", "--exit-zero"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout:
        return "error", done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    told = json.loads(done.stdout)
    return told["verdict"], told["reason"]


def tool_version() -> str:
    """The scanner's, as it says itself."""
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
