"""The MLflow gate, against a real registry in a local file; where MLflow is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuralsanitizer.models import save_state_dict
from neuralsanitizer.models.architectures import build

mlflow = pytest.importorskip("mlflow", exc_type=ImportError)

GATE = Path(__file__).resolve().parents[1] / "examples" / "mlflow_gate.py"
SCAN = ["--", "--arch", "mnist-cnn-small", "--data", "mnist5k", "--limit", "60", "--method", "neural-cleanse"]


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry with a version that asks for a scan, one that does not, and one without a model."""
    monkeypatch.chdir(tmp_path)  # MLflow keeps artefacts beside the caller
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(address)
    client = mlflow.MlflowClient(registry_uri=address, tracking_uri=address)
    torch.manual_seed(0)
    save_state_dict(build("mnist-cnn-small"), tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("no model")
    client.create_registered_model("digits")
    for file, alias in (("model.safetensors", "candidate"), ("model.safetensors", "champion"), ("notes.txt", "")):
        with mlflow.start_run() as run:
            mlflow.log_artifact(str(tmp_path / file), "weights")
        version = client.create_model_version("digits", f"runs:/{run.info.run_id}/weights", run.info.run_id)
        if alias:
            client.set_registered_model_alias("digits", alias, version.version)
    return address, client


def gate(address, *options):
    return subprocess.run(
        [sys.executable, GATE, "--registry", address, *options, *SCAN],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_candidate_is_scanned_and_tagged_once(registry):
    address, client = registry
    done = gate(address)
    assert done.returncode == 4, done.stderr  # an untrained network cannot be judged
    tags = client.get_model_version("digits", "1").tags
    assert tags["neuralsanitizer.finding"] == "inconclusive"
    assert tags["neuralsanitizer.reason"]
    run = client.get_model_version("digits", "1").run_id
    assert [one.path for one in client.list_artifacts(run, "neuralsanitizer")] == ["neuralsanitizer/report.html"]
    assert not client.get_model_version("digits", "2").tags  # nobody asked
    again = gate(address)
    assert (again.returncode, again.stdout) == (4, "")  # the verdict is known: nothing is scanned


def test_a_version_that_cannot_be_scanned_says_why(registry):
    address, client = registry
    client.set_registered_model_alias("digits", "odd", "3")
    assert gate(address, "--alias", "odd").returncode == 3
    tags = client.get_model_version("digits", "3").tags
    assert tags["neuralsanitizer.finding"] == "error"
    assert "no model folder" in tags["neuralsanitizer.reason"]


def test_only_a_clean_version_is_promoted(registry):
    address, client = registry
    gate(address, "--promote", "champion")
    assert client.get_model_version_by_alias("digits", "champion").version == 2
