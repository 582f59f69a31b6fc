"""Mixed images and their soft targets agree."""

from __future__ import annotations

import pytest
import torch

from foldserve.training.augmentation.mixing import Mixing, cutmix, mixup


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def constant_images(count: int = 64) -> torch.Tensor:
    """Return images with the value 3 n in all pixels of image n, so that pixels show what was mixed."""
    return (
        (3 * torch.arange(count, dtype=torch.uint8)).reshape(-1, 1, 1, 1).expand(-1, 2, 12, 10).contiguous()
    )


def test_mixup_blends_images_and_one_hot_targets_by_the_same_lam():
    images, one_hot = constant_images(), torch.eye(64)
    mixed, targets = mixup(images, one_hot, 0.4, seeded())
    # Each sample is of a class of its own, so its targets times its pixel values are its pixels.
    expected = targets @ (3.0 * torch.arange(64))
    # float32 on values up to 192.
    torch.testing.assert_close(mixed, expected.reshape(-1, 1, 1, 1).expand(-1, 2, 12, 10), rtol=0, atol=1e-4)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))
    partners = (targets - torch.diag(targets.diagonal())).argmax(dim=1)
    is_mixed = targets.diagonal() < 1
    assert len(partners[is_mixed].unique()) == is_mixed.sum(), "no sample is the partner of two"


def test_cutmix_takes_a_rectangle_of_the_partner_and_its_target_by_area():
    mixed, targets = cutmix(constant_images(), torch.eye(64), 1.0, seeded())
    assert mixed.dtype == torch.uint8
    for index, image in enumerate(mixed[:, 0]):
        classes = targets[index].nonzero().flatten().tolist()
        assert set(image.flatten().tolist()) == {3 * each for each in classes}
        replaced = image != 3 * index
        lam = targets[index, index].item()
        assert lam == pytest.approx(1 - replaced.float().mean().item(), abs=1e-6)
        rows, columns = replaced.any(dim=1).sum(), replaced.any(dim=0).sum()
        assert replaced.sum() == rows * columns
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    assert targets.diagonal().min() < 0.3
    assert targets.diagonal().max() == 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_lam_is_drawn_from_the_beta_distribution(alpha: float):
    draws = []
    for seed in range(100):
        _, targets = mixup(constant_images(), torch.eye(64), alpha, seeded(seed))
        draws.append(targets.diagonal()[targets.diagonal() < 1])  # 1: its own partner, or a draw next to 1
    lam = torch.cat(draws)
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); five standard errors of 6300 draws are within.
    assert lam.mean().item() == pytest.approx(0.5, abs=0.03)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixing_repeats_from_a_seed_and_takes_each_of_two_ways():
    images, labels = constant_images(), torch.arange(64)
    both = Mixing(mixup_alpha=0.4, cutmix_alpha=1.0, class_count=64)
    first, again, other = (both(images, labels, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    dtypes = {both(images, labels, seeded(seed))[0].dtype for seed in range(20)}
    assert dtypes == {torch.uint8, torch.float32}


def test_mixing_with_both_alphas_zero_returns_images_and_class_indices():
    images, labels, generator = constant_images(), torch.arange(64), seeded()
    before = generator.get_state()
    mixed, targets = Mixing(mixup_alpha=0.0, cutmix_alpha=0.0, class_count=64)(images, labels, generator)
    assert mixed is images
    assert targets is labels
    assert torch.equal(generator.get_state(), before)
