"""The one error of this package."""


class ImageError(ValueError):
    """The bytes are not an image that can be prepared; the message says why."""
