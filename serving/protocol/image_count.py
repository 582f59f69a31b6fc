"""Bounds how many images one request may have."""

from __future__ import annotations

from foldserve.serving.errors import InvalidArgumentError

# Most images of one request, except for a model whose batches are larger: as a message of 32 MiB would
# otherwise hold half a million small ones, and take everybody's turn for as long as they take.
MAX_IMAGES = 16_384
# Most encoded images of one request: decoding the smallest takes 100 us and more.
MAX_ENCODED_IMAGES = 4096


def check_image_count(count: int, max_images: int) -> None:
    """Raise InvalidArgumentError where one request has more images than are taken at once."""
    if count > max_images:
        raise InvalidArgumentError(
            f"the request has more than {max_images} images, the most that are taken at once: send them in "
            "several"
        )
