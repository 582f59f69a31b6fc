"""Mixed images hold what their shares say."""

from __future__ import annotations

import pytest
import torch

from foldserve.training.augmentation.mixing import NO_MIXING, Mixing, cutmix, mixup


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def constant_images(count: int = 64) -> torch.Tensor:
    """Image n has the value 3 n in every pixel, so that what is mixed can be told from the pixels."""
    return (
        (3 * torch.arange(count, dtype=torch.uint8)).reshape(-1, 1, 1, 1).expand(-1, 2, 12, 10).contiguous()
    )


def test_mixup_blends_each_image_with_its_partner_by_its_share():
    images = constant_images()
    mixed = mixup(images, 0.4, seeded())
    values = 3.0 * torch.arange(64)
    expected = mixed.shares * values + (1 - mixed.shares) * values[mixed.partners]
    # float32 on values up to 192.
    torch.testing.assert_close(
        mixed.images, expected.reshape(-1, 1, 1, 1).expand(-1, 2, 12, 10), rtol=0, atol=1e-4
    )
    assert sorted(mixed.partners.tolist()) == list(range(64))


def test_cutmix_takes_a_rectangle_of_the_partner_and_counts_what_is_left():
    images = constant_images()
    mixed = cutmix(images, 1.0, seeded())
    assert mixed.images.dtype == torch.uint8
    for index, image in enumerate(mixed.images[:, 0]):
        own, partner = 3 * index, 3 * int(mixed.partners[index])
        assert set(image.flatten().tolist()) <= {own, partner}
        if own != partner:
            replaced = image == partner
            assert mixed.shares[index].item() == pytest.approx(1 - replaced.float().mean().item(), abs=1e-6)
            rows, columns = replaced.any(dim=1).sum(), replaced.any(dim=0).sum()
            assert replaced.sum() == rows * columns
    assert torch.equal(mixed.images[:, 0], mixed.images[:, 1])
    assert mixed.shares.min() < 0.3
    assert mixed.shares.max() == 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float):
    shares = mixup(constant_images(64).repeat(100, 1, 1, 1), alpha, seeded()).shares
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); five standard errors of 6400 draws are within.
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_draws_repeat_from_a_seed_and_with_both_each_way_is_taken():
    images, both = constant_images(), Mixing(mixup_alpha=0.4, cutmix_alpha=1.0)
    first, again, other = (both(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.shares, again.shares)
    assert not torch.equal(first.partners, other.partners)
    assert {both(images, seeded(seed)).images.dtype for seed in range(20)} == {torch.uint8, torch.float32}
    assert not NO_MIXING
