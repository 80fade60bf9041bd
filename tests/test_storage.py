import numpy as np
import pytest

from neuralsanitizer import storage
from neuralsanitizer.errors import OutputError, RunError
from neuralsanitizer.execution.store import FolderStore, MemoryStore, Part, ReadThroughStore
from neuralsanitizer.storage import RunFolder, read_arrays, to_picture, write_arrays, write_atomically, write_json

INPUTS = {"model": "aa", "seed": 3, "settings": {"tune": {"cycles": [400]}, "alpha": 1}}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_way_is_an_output_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        write_atomically(tmp_path / "file" / "inner", b"x")


def test_json_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})


def test_arrays_round_trip_and_pickles_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    write_arrays(path, {"x": np.arange(3)})
    assert read_arrays(path)["x"].tolist() == [0, 1, 2]
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(RunError, match="cannot be read"):
        read_arrays(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RunError, match="cannot be read"):
        read_arrays(path)


def test_pictures_are_rounded_and_clipped():
    assert to_picture(np.array([-1, 0, 0.5, 1, 2], np.float32)).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("make", [lambda path: MemoryStore(), FolderStore])
def test_stores_keep_parts(tmp_path, make):
    store = make(tmp_path)
    assert store.get("a") is None
    store.put("a", Part({"x": np.ones(2)}, {"n": 1}))
    part = store.get("a")
    assert part.meta == {"n": 1}
    assert part.arrays["x"].tolist() == [1, 1]


def test_a_damaged_part_counts_as_missing(tmp_path):
    store = FolderStore(tmp_path)
    store.put("a", Part({"x": np.ones(2)}, {}))
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:-30])
    assert store.get("a") is None


def test_a_read_through_store_never_writes_to_its_source(tmp_path):
    source = FolderStore(tmp_path)
    source.put("reference-a", Part({}, 1))
    source.put("label-0", Part({}, 2))
    store = ReadThroughStore(source, "reference-")
    assert store.get("reference-a").meta == 1
    assert store.get("label-0") is None
    store.put("label-0", Part({}, 3))
    assert store.get("label-0").meta == 3
    assert source.get("label-0").meta == 2


def test_a_run_folder_is_claimed_once(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(INPUTS, resume=False)
    with pytest.raises(OutputError, match="not empty"):
        folder.claim(INPUTS, resume=False)
    folder.claim(INPUTS, resume=True)
    with pytest.raises(RunError, match="no interrupted scan"):
        RunFolder(tmp_path / "nothing").claim(INPUTS, resume=True)


def test_a_scan_cannot_go_on_with_other_inputs_and_hears_which_differ(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(INPUTS, resume=False)
    other = {"model": "aa", "seed": 4, "settings": {"tune": {"cycles": [150, 500]}, "alpha": 1}}
    with pytest.raises(RunError, match="another model") as error:
        folder.claim(other, resume=True)
    told = str(error.value).split("What differs: ")[1]
    assert told == "seed (3 there, 4 here), settings.tune.cycles ([400] there, [150, 500] here)"


@pytest.mark.parametrize(
    "damage", [b"", b"\xff", b"[1", b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"3", b"{}", b"1f5d01235e"]
)
def test_a_scan_does_not_go_on_where_its_inputs_were_damaged(tmp_path, damage):
    folder = RunFolder(tmp_path / "run")
    folder.claim(INPUTS, resume=False)
    (folder.state / "key").write_bytes(damage)
    with pytest.raises(RunError, match="another model"):
        folder.claim(INPUTS, resume=True)


def test_what_a_folder_says_of_its_scan_is_told_without_control_characters_and_in_short(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim({**INPUTS, "\x1b[2J": "\x1b" * 10_000}, resume=False)
    with pytest.raises(RunError) as error:
        folder.claim(INPUTS, resume=True)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_claim_that_was_interrupted_stands_in_nobody_s_way(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.state.mkdir(parents=True)
    (folder.state / ".key.a1b2c3").write_bytes(b"ha")  # as a kill leaves it before the key has its name
    folder.claim(INPUTS, resume=False)
    folder.claim(INPUTS, resume=True)
    (folder.state / "key").unlink()
    (folder.state / "label-0.npz").write_bytes(b"")
    with pytest.raises(OutputError, match="not empty"):
        folder.claim(INPUTS, resume=False)


def test_a_run_folder_knows_its_own_files(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.keeps(tmp_path / "run" / ".." / "run" / "run.json")
    assert folder.keeps(tmp_path / "run" / "input-filter.json")
    assert not folder.keeps(tmp_path / "run.json")
    assert not folder.keeps(tmp_path / "run" / "filter.json")


def test_a_folder_without_a_finished_scan_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"no run\.json"):
        RunFolder(tmp_path).read()
