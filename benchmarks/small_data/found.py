"""Finds data sets: subsets of those that `foldserve train` knows, scikit-learn's digits, Debian's icons."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.small_data.image_folder import TEST_COUNT, DataUnavailableError
from foldserve.demo.children import ending_with_us
from foldserve.terminal import Terminal
from foldserve.training.datasets import load_dataset
from foldserve.training.datasets.debian import unpacked_package
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    _Images = Iterator[tuple[str, str, str, Image.Image]]

_SKLEARN = "scikit-learn"
_DIGITS = "sklearn/datasets/data/digits.csv.gz"
_DIGITS_TRAINED = 1200
_DOWNLOAD_S = 300
_ICON_PACKAGE = "oxygen-icon-theme"
_ICON_FOLDER = "usr/share/icons/oxygen/base/128x128"
# Folders with more than a hundred pictures of their own.
_ICON_KINDS = ("actions", "apps", "categories", "devices", "mimetypes", "places", "status")
_MOST_OF_A_KIND = 300


def subset(name: str, count: int) -> _Images:
    """Yield the first ``count`` training images of the data set ``name``, and the first of its test images.

    Raises:
        DataUnavailableError: it cannot be had.
    """
    try:
        dataset = load_dataset(name, terminal=Terminal.silent())
    except DatasetError as error:
        raise DataUnavailableError(str(error)) from error
    parts = (
        ("train", dataset.train_images[:count], dataset.train_labels),
        ("test", dataset.test_images[:TEST_COUNT], dataset.test_labels),
    )
    for split, images, labels in parts:
        for index, pixels in enumerate(images):
            label = dataset.labels[int(labels[index])].replace("/", "-")
            channels_last = pixels.permute(1, 2, 0).numpy()
            grey_or_rgb = channels_last[:, :, 0] if channels_last.shape[2] == 1 else channels_last
            yield split, label, f"{index:05}.png", Image.fromarray(grey_or_rgb)


def digits(_count: int) -> _Images:
    """Yield scikit-learn's 1,797 handwritten digits, grey, 8x8 pixels of 17 shades.

    Raises:
        DataUnavailableError: scikit-learn is neither installed nor to be had.
    """
    rows = np.loadtxt(gzip.decompress(_digits_file()).decode().splitlines(), delimiter=",")
    for index, row in enumerate(rows):
        pixels = (row[:64].reshape(8, 8) * 255 / 16).round().astype(np.uint8)
        split = "train" if index < _DIGITS_TRAINED else "test"
        yield split, str(int(row[64])), f"{index:05}.png", Image.fromarray(pixels)


def _digits_file() -> bytes:
    if (spec := find_spec("sklearn")) is not None and spec.origin is not None:
        return (Path(spec.origin).parents[1] / _DIGITS).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        try:
            subprocess.run(
                ending_with_us([*command, "--dest", folder, _SKLEARN]),
                check=True,
                timeout=_DOWNLOAD_S,
                capture_output=True,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise DataUnavailableError(
                f"{_SKLEARN} is not installed and pip cannot fetch it: {error}"
            ) from error
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(_DIGITS)


def icons(_count: int) -> _Images:
    """Yield the icons of Debian's oxygen-icon-theme by their folder, in colour over grey; 128 pixels.

    A quarter of each kind is for the test. Pictures that several names link to are taken once.

    Raises:
        DataUnavailableError: the package cannot be fetched.
    """
    try:
        with unpacked_package(_ICON_PACKAGE) as root:
            for kind in _ICON_KINDS:
                files = sorted((root / _ICON_FOLDER / kind).glob("*.png"))
                own = [path for path in files if not path.is_symlink()][:_MOST_OF_A_KIND]
                for index, path in enumerate(own):
                    with Image.open(path) as image:
                        icon = image.convert("RGBA")
                    over = Image.alpha_composite(Image.new("RGBA", icon.size, "#b0b0b0"), icon)
                    split = "test" if index % 4 == 3 else "train"
                    yield split, kind, path.name, over.convert("RGB")
    except DatasetError as error:
        raise DataUnavailableError(f"{_ICON_PACKAGE}: {error}") from error
