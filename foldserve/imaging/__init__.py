"""Decodes images to uint8 arrays, by one rule for training, export and serving."""

from foldserve.errors import ImageError
from foldserve.imaging.containers import open_picture, read_picture
from foldserve.imaging.picture import MAX_PIXELS, Picture, check_cost
from foldserve.imaging.prepare import (
    DecodeRule,
    FitRule,
    ImageSpec,
    decode_image,
    prepare_image,
    prepare_picture,
)

__all__ = [
    "MAX_PIXELS",
    "DecodeRule",
    "FitRule",
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
