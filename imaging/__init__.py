"""Encoded image -> uint8 array, by one rule, for training, export and serving alike."""

from imaging.containers import open_picture, read_picture
from imaging.errors import ImageError
from imaging.picture import MAX_PIXELS, Picture, check_cost
from imaging.prepare import ImageSpec, decode_image, prepare_image, prepare_picture

__all__ = [
    "MAX_PIXELS",
    "ImageError",
    "ImageSpec",
    "Picture",
    "check_cost",
    "decode_image",
    "open_picture",
    "prepare_image",
    "prepare_picture",
    "read_picture",
]
