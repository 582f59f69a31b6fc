"""The pictures of the journey: 500, unequal, and none of them among those that judge or teach the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.journey import pictures
from foldserve.imaging import ImageSpec
from foldserve.training.datasets import Dataset, fashion_mnist

if TYPE_CHECKING:
    from pathlib import Path


def garments() -> Dataset:
    """Return 500 training and 200 test images of each class, each image with a grey of its own split."""
    count = len(fashion_mnist.LABELS)
    train, test = (torch.arange(count).repeat_interleave(each) for each in (500, 200))
    return Dataset(
        name="fashion-mnist",
        labels=fashion_mnist.LABELS,
        image=ImageSpec("L", 28, 28, 28),
        train_images=torch.full((len(train), 1, 28, 28), 100, dtype=torch.uint8),
        train_labels=train,
        test_images=torch.full((len(test), 1, 28, 28), 200, dtype=torch.uint8),
        test_labels=test,
    )


def test_pictures_are_five_hundred_and_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "load_dataset", lambda _name: garments())
    folders = pictures.write_pictures(tmp_path)
    counts = {path.name: len(list(path.iterdir())) for path in folders["pictures"].iterdir()}
    assert sum(counts.values()) == 500
    assert len(counts) == 5
    assert max(counts.values()) == 12 * min(counts.values())
    judged = {path.name: len(list(path.iterdir())) for path in folders["judged"].iterdir()}
    assert judged == dict.fromkeys(counts, 200)
    assert not counts.keys() & {path.name for path in folders["others"].iterdir()}
    from PIL import Image

    greys, sizes = {}, set()
    for name in ("pictures", "judged"):
        with Image.open(next(folders[name].rglob("*.jpg"))) as image:
            greys[name] = image.getextrema()[1]
        for path in folders[name].rglob("*.jpg"):
            with Image.open(path) as image:
                sizes.add(image.size)
    assert greys["pictures"] < 150 < greys["judged"], "test images judge"
    assert len(sizes) > 100

    monkeypatch.setattr(pictures, "load_dataset", lambda _name: pytest.fail("they exist already"))
    assert pictures.write_pictures(tmp_path) == folders
