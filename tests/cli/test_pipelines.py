"""What pipelines are given: the steps of the action and of the hook do what their pages say, on real models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quick import TARGET

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
PROGRAMS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def step(**given):
    """Run the action's scan as its runner does: inputs become variables, outputs lines of a file."""
    (scan,) = [one for one in ACTION["runs"]["steps"] if one.get("id") == "scan"]
    inputs = {name: one.get("default", "") for name, one in ACTION["inputs"].items()} | given
    variables = {
        name: inputs[value.removeprefix("${{ inputs.").removesuffix(" }}")] for name, value in scan["env"].items()
    }
    outputs = Path("outputs")
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", scan["run"]],
        env={**os.environ, **variables, "PATH": PROGRAMS, "GITHUB_OUTPUT": str(outputs)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


def test_the_action_fails_on_a_backdoor_and_says_where_to_look(files):
    done, outputs = step(
        model=str(files.attacked), data=str(files.clean), arch="mnist-cnn-small",
        arguments="--method neural-cleanse --limit 400", output="run folder",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert (outputs["verdict"], outputs["exit-code"]) == ("infected", "1")
    assert Path(outputs["report"]).is_file()
    assert f'"label": {TARGET}' in Path(outputs["sarif"]).read_text()
    assert Path("run folder", "report.junit.xml").is_file()
    assert Path("run folder", "report.cdx.json").is_file()


@pytest.mark.parametrize("evil", ["$(touch pwned)", "`touch pwned`", "a; touch pwned", "--help"])
def test_inputs_of_the_action_are_no_script(evil, files):
    done, outputs = step(model=evil, data=str(files.clean), arch="mnist-cnn-small")
    assert not Path("pwned").exists()
    assert "verdict" not in outputs
    assert (done.returncode, outputs["exit-code"]) == (3, "3")


def test_every_output_of_the_action_is_one_of_its_steps():
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.scan.outputs.{name} }}}}"
        assert f"{name}=" in text


def test_the_hook_scans_the_files_that_it_is_given(files):
    name = Path("attacked.safetensors")
    name.write_bytes(files.attacked.read_bytes())
    arguments = ["--data", str(files.clean), "--arch", "mnist-cnn-small", "--output", ".scans", "--limit", "400"]
    command = [*HOOK["entry"].split(), *arguments, "--method", "neural-cleanse", str(name)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": PROGRAMS}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "infected" in done.stdout
