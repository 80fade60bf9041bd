"""``scan-many``: a folder of models, one of them damaged, one index."""

import json
import shutil

import pytest

from neuralsanitizer.pipeline.many import folder_names
from pages import Page
from program import ARCH, run
from quick import TARGET


@pytest.fixture(scope="module")
def registry(files, tmp_path_factory):
    """A folder with an infected model, an honest one, a damaged one, and something else."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "sub").mkdir()
    shutil.copy(files.attacked, folder / "sub" / "bad.safetensors")
    shutil.copy(files.honest, folder / "good.safetensors")
    (folder / "broken.pt").write_bytes(b"no weights")
    (folder / "README.md").write_text("models")
    return folder


@pytest.fixture(scope="module")
def many(files, registry, _presets, tmp_path_factory):
    """Outcome and output folder; do not write to it."""
    output = tmp_path_factory.mktemp("many") / "out"
    return scan_all(registry, files, output, "--format", "json"), output


def scan_all(registry, files, output, *options):
    arguments = ("--arch", ARCH, "--data", files.clean, "--preset", "quick", "--output", output)
    return run("scan-many", registry, *arguments, *options)


def test_every_model_has_its_line_and_one_that_is_damaged_stops_no_other(many):
    outcome, output = many
    assert outcome.code == 1
    found = {entry["model"].rpartition("/")[2]: entry for entry in outcome.json["models"]}
    assert set(found) == {"bad.safetensors", "good.safetensors", "broken.pt"}
    assert (found["bad.safetensors"]["finding"], found["bad.safetensors"]["infected"]) == ("infected", [TARGET])
    assert found["good.safetensors"]["finding"] == "clean"
    assert found["broken.pt"]["finding"] is None
    assert found["broken.pt"]["reason"]
    assert json.loads((output / "index.json").read_text())["models"] == outcome.json["models"]


def test_the_index_leads_to_the_reports_the_infected_first(many):
    outcome, output = many
    page = Page((output / "index.html").read_text())
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) == 2
    assert links[0].startswith("bad-")
    assert all((output / link).is_file() for link in links)
    assert "3 models scanned" in " ".join(page.text)
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "link", "form"}
    assert outcome.stderr.count("make references ...") == 2


def test_what_is_done_is_not_done_again_and_references_are_shared(many, files, registry):
    output = many[1]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("label-*.npz")}
    again = scan_all(registry, files, output)
    assert again.code == 1
    assert {path: path.stat().st_mtime_ns for path in output.rglob("label-*.npz")} == before
    assert len(list((output / "cache").glob("scratch-*.npz"))) == 3  # for both models
    assert "not scanned" in again.stdout


def test_without_an_infected_model_the_damaged_one_decides(many, files, registry, tmp_path):
    shutil.copytree(many[1], tmp_path / "out")
    outcome = run("scan-many", registry / "good.safetensors", registry / "broken.pt", "--arch", ARCH,
                  "--data", files.clean, "--preset", "quick", "--output", "out")  # fmt: skip
    assert outcome.code == 3
    outcome = run("scan-many", registry / "good.safetensors", "--arch", ARCH,
                  "--data", files.clean, "--preset", "quick", "--output", "out")  # fmt: skip
    assert outcome.code == 0


def test_a_folder_without_models_is_told(files, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = scan_all(tmp_path / "empty", files, "out")
    assert outcome.code == 2
    assert "no weights file" in outcome.stderr


def test_folders_are_named_after_files_and_told_apart(tmp_path):
    paths = [tmp_path / "a" / "m.pt", tmp_path / "b" / "m.pt", tmp_path / "n.pt", tmp_path / "a" / "m.safetensors"]
    names = folder_names(paths)
    assert names[1:3] == ["b-m", "n"]
    assert len(set(names)) == 4
