"""Evidence bundles: whole, the same each time, and no change of them goes unseen."""

import hashlib
import io
import json
import zipfile

import pytest

from neuralsanitizer.errors import RunError
from neuralsanitizer.report import bundle_of, check_bundle
from neuralsanitizer.storage import RunFolder


@pytest.fixture(scope="module")
def bundle(quick_repair):
    folder = quick_repair[0] / "run"
    return bundle_of(RunFolder(folder).read(), folder)


def rewritten(content, change):
    """The bundle after a change of its files, by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, file in files.items():
            archive.writestr(name, file)
    return whole.getvalue()


def test_a_bundle_holds_the_run_and_its_hashes(bundle, repaired, tmp_path):
    (tmp_path / "b.zip").write_bytes(bundle)
    manifest = check_bundle(tmp_path / "b.zip")
    assert manifest["verdict"] == repaired.run.verdict.finding.value
    assert manifest["model"]["sha256"] == repaired.run.model.sha256
    assert manifest["repaired_model"]["sha256"] == repaired.repair.repaired_sha256
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert {"run.json", "arrays.npz", "repair.json", "report.html", "report.sarif"} <= set(archive.namelist())
        for name, digest in manifest["files"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest


def test_the_same_run_gives_the_same_bytes(bundle, quick_repair):
    folder = quick_repair[0] / "run"
    assert bundle_of(RunFolder(folder).read(), folder) == bundle


def edited(files):
    files["run.json"] = files["run.json"].replace(b'"infected"', b'"clean"')


def dropped(files):
    del files["repair.json"]


def added(files):
    files["extra.txt"] = b"x"


def without_manifest(files):
    del files["manifest.json"]


def other_format(files):
    files["manifest.json"] = json.dumps({**json.loads(files["manifest.json"]), "format": "else"}).encode()


def no_json(files):
    files["manifest.json"] = b"["


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edited, r"run\.json was changed"),
        (dropped, r"repair\.json was left out"),
        (added, r"extra\.txt was added"),
        (without_manifest, "is no bundle"),
        (other_format, "known format"),
        (no_json, "damaged"),
    ],
)
def test_a_change_is_named(change, reason, bundle, tmp_path):
    (tmp_path / "b.zip").write_bytes(rewritten(bundle, change))
    with pytest.raises(RunError, match=reason):
        check_bundle(tmp_path / "b.zip")


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", None])
def test_what_is_no_bundle_is_said_to_be_none(content, tmp_path):
    if content is not None:
        (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(RunError):
        check_bundle(tmp_path / "b.zip")


def test_no_byte_of_a_bundle_can_be_flipped_unseen(bundle, tmp_path):
    """Of the files' contents; what stands between them in a zip carries no meaning."""
    path = tmp_path / "b.zip"
    original = None
    for at in range(40, len(bundle) - 40, max(1, len(bundle) // 60)):
        path.write_bytes(bundle[:at] + bytes([bundle[at] ^ 0x10]) + bundle[at + 1 :])
        try:
            manifest = check_bundle(path)
        except RunError:
            continue
        original = original or json.loads(zipfile.ZipFile(io.BytesIO(bundle)).read("manifest.json"))
        assert manifest == original
