"""Encoded image -> uint8 array, by one rule, for training, export and serving alike."""

from imaging.prepare import MAX_PIXELS, ImageError, ImageSpec, decode_image, prepare_image

__all__ = ["MAX_PIXELS", "ImageError", "ImageSpec", "decode_image", "prepare_image"]
