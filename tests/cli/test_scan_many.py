"""``scan-many``: a folder of models, one of them damaged, one index."""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

from neuralsanitizer.cli import many as many_module
from neuralsanitizer.models import architectures, save_state_dict
from neuralsanitizer.pipeline.many import folder_name
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


def written(output):
    """When each scan, and each label of it, was written."""
    return {path: path.stat().st_mtime_ns for name in ("label-*.npz", "run.json") for path in output.rglob(name)}


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
    before = written(output)
    again = scan_all(registry, files, output)
    assert again.code == 1
    assert written(output) == before
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


def test_a_finished_scan_is_found_again_wherever_the_file_lies_and_whatever_else_is_scanned(many, files, tmp_path):
    output = shutil.copytree(many[1], tmp_path / "out")
    before = written(output)
    moved = tmp_path / "elsewhere" / "bad.safetensors"
    moved.parent.mkdir()
    shutil.copy(files.attacked, moved)
    other = moved.parent / "sub" / "bad.safetensors"
    other.parent.mkdir()
    other.write_bytes(b"no weights")
    assert scan_all(moved.parent, files, output).code == 1
    assert written(output) == before


def test_folders_are_named_after_files_and_stay_where_they_belong():
    digits = "0123456789abcdef"
    assert folder_name(Path("/registry/a/m.pt"), digits) == folder_name(Path("b/m.pt"), digits) == "m-01234567"
    hostile = ("/backup/../m.pt", "/.pt", "..", "/", ".hidden.pt", "a\x1b[31m\n b.pt", "\udcff.pt", "x" * 300 + ".pt")
    for name in hostile:
        made = folder_name(Path(name), digits)
        assert Path(made).name == made
        assert not made.startswith((".", "-"))
        assert made.isprintable()
        assert len(made.encode()) < 250


def test_hostile_file_names_are_scanned_and_shown_harmless(files, tmp_path):
    (tmp_path / "models").mkdir()
    name = b"good\x1b[31m\x1b]0;owned\x07\xff [bold]x.safetensors"  # not UTF-8
    shutil.copy(files.honest, os.fsencode(tmp_path / "models") + b"/" + name)
    (tmp_path / "models" / "broken\x1b[31m.pt").write_bytes(b"no weights")
    outcome = scan_all(tmp_path / "models", files, tmp_path / "out", "--preset", "tiny")
    assert outcome.code == 3
    assert not set(outcome.stdout + outcome.stderr) & set("\x1b\x07")
    assert "[bold]x" in outcome.stderr
    (link,) = Page((tmp_path / "out" / "index.html").read_text()).all("a")
    assert (tmp_path / "out" / unquote(link["href"])).is_file()


def test_a_model_that_the_options_do_not_fit_stops_no_other(files, tmp_path):
    (tmp_path / "models").mkdir()
    save_state_dict(architectures.build(ARCH, labels=12), tmp_path / "models" / "a.safetensors")
    shutil.copy(files.honest, tmp_path / "models" / "b.safetensors")
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    options = ("--label-names", "names.txt", "--preset", "tiny", "--format", "json")
    first, second = scan_all(tmp_path / "models", files, tmp_path / "out", *options).json["models"]
    assert (first["finding"], first["folder"]) == (None, "")
    assert "12 labels, but 10 names" in first["reason"]
    assert second["finding"] is not None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--mean", "red"), "--mean takes numbers"),
        (("--arch", "alexnet"), "unknown architecture"),
        (("--label-names", "nowhere.txt"), "cannot be read"),
        (("--preset", "magic"), "unknown preset"),
    ],
)
def test_what_is_wrong_for_all_models_ends_the_command(options, reason, registry, files):
    outcome = scan_all(registry, files, "out", *options)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert reason in outcome.stderr


def test_an_interrupted_night_says_how_to_go_on(registry, files, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(many_module, "scan_many", interrupted)
    outcome = scan_all(registry, files, "out")
    assert outcome.code == 130
    assert "the same command goes on" in outcome.stderr
    assert "--resume" not in outcome.stderr
