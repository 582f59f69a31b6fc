"""Limits the number of images per request."""

from __future__ import annotations

from foldserve.serving.errors import InvalidArgumentError

# Most images per request, except for a model with larger batches. A message of 32 MiB could otherwise hold
# half a million small ones and delay every other caller while they run.
MAX_IMAGES = 16_384
# Most encoded images per request: decoding even the smallest takes at least 100 us.
MAX_ENCODED_IMAGES = 4096


def check_image_count(count: int, max_images: int) -> None:
    """Raise InvalidArgumentError if a request has more than ``max_images`` images."""
    if count > max_images:
        raise InvalidArgumentError(
            f"the request has more than {max_images} images, the most per request: send them in several "
            "requests"
        )
