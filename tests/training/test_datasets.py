"""The split and the statistics of a data set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foldserve.training.datasets import Dataset, Examples, channel_statistics, split_train
from foldserve.training.errors import DatasetError


def test_the_split_is_repeatable_and_assigns_each_image_once(tiny: Dataset):
    training, validation = split_train(tiny, 40)
    again = split_train(tiny, 40)[1]
    assert (len(training), len(validation)) == (160, 40)
    assert torch.equal(validation.images, again.images)
    both = torch.cat([training.images, validation.images]).flatten(1)
    assert torch.equal(both.unique(dim=0), tiny.train_images.flatten(1).unique(dim=0))
    assert not torch.equal(validation.images, split_train(tiny, 40, seed=1)[1].images)


def test_images_keep_their_labels_in_the_split(tiny: Dataset):
    number = {
        image.numpy().tobytes(): label
        for image, label in zip(tiny.train_images, tiny.train_labels, strict=True)
    }
    for part in split_train(tiny, 40):
        assert all(number[i.numpy().tobytes()] == n for i, n in zip(part.images, part.labels, strict=True))


@pytest.mark.parametrize("count", [-1, 0, 200, 201])
def test_validation_counts_that_leave_a_part_empty_are_refused(tiny: Dataset, count: int):
    with pytest.raises(DatasetError, match="expected --validation-count 1 to 196"):
        split_train(tiny, count)


def test_each_class_keeps_an_image_for_training(tiny: Dataset):
    """For any draw: also the rarest class, and also if nearly all images are held out."""
    labels = torch.zeros(200, dtype=torch.int64)
    labels[:3] = torch.tensor([1, 2, 3])
    rare = replace(tiny, train_labels=labels)
    for seed in range(40):
        training, validation = split_train(rare, 196, seed)
        assert sorted(training.labels.tolist()) == [0, 1, 2, 3]
        assert len(validation) == 196


def test_validation_images_of_the_data_set_are_used(tiny: Dataset):
    own = Examples(tiny.test_images[:8], tiny.test_labels[:8])
    training, validation = split_train(replace(tiny, validation=own))
    assert len(training) == 200
    assert validation is own
    with pytest.raises(DatasetError, match="brings its own validation images; leave it out"):
        split_train(replace(tiny, validation=own), 20)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([0, 0, 1, 1], "expected 10 or more: add images, or give --validation-count 1", id="few"),
        pytest.param([0, 1, 2, 3], "too few .* expected 10 or more: add images$", id="one each"),
    ],
)
def test_too_few_training_images_are_refused_with_a_hint(tiny: Dataset, labels: list[int], message: str):
    few = replace(tiny, train_images=tiny.train_images[:4], train_labels=torch.tensor(labels))
    with pytest.raises(DatasetError, match=message):
        split_train(few)


def test_one_image_per_class_leaves_none_for_validation(tiny: Dataset):
    few = replace(tiny, train_images=tiny.train_images[:4], train_labels=torch.arange(4))
    with pytest.raises(DatasetError, match="a single training image per class"):
        split_train(few, 1)


def test_channel_statistics_are_those_of_the_scaled_pixels():
    images = torch.randint(256, (50, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 9  # constant: its deviation is held above 0
    scaled = images.double() / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)  # rounded to 6 digits
    assert std[:2] == pytest.approx(scaled.std(dim=(0, 2, 3), unbiased=False).tolist()[:2], abs=1e-6)
    assert std[2] == pytest.approx(1 / 255, abs=1e-6)
