"""Reads from flags how an image becomes the network's input: size, colours, mean and std."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.export.errors import SourceError
from foldserve.export.image_shape import show_shape
from foldserve.imaging import ImageSpec

if TYPE_CHECKING:
    from foldserve.export.config import ExportConfig

_ORDERS = {1: "L", 3: "RGB"}


def image_spec(shape: tuple[int, ...], resize: int | None) -> ImageSpec:
    """Return the preparation that brings encoded images to ``shape``, channels x height x width.

    Raises:
        SourceError: the channels are neither grey nor RGB, or ``resize`` is less than the crop.
    """
    channels, height, width = shape
    if channels not in _ORDERS:
        hint = "; the order is channels x height x width" if width in _ORDERS else ""
        raise SourceError(
            f"images of {show_shape(shape)} have {channels} channels; expected 1 (grey) or 3 (RGB){hint}"
        )
    longest = max(height, width)
    if resize is not None and resize < longest:
        raise SourceError(
            f"--resize {resize} is less than {longest}, the longer side of the crop; give {longest} or more"
        )
    order = _ORDERS[channels]
    return ImageSpec(order, height, width, resize_shorter_side=resize or longest)  # type: ignore[arg-type]


def mean_and_std(
    config: ExportConfig, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Return the mean and std of each channel, and a warning if they were not given.

    Raises:
        SourceError: there is not one number per channel.
    """
    for flag, numbers in (("--mean", config.mean), ("--std", config.std)):
        if numbers is not None and len(numbers) != channels:
            raise SourceError(
                f"{flag} has {len(numbers)} numbers for {channels} channels; expected one per channel, such "
                f"as {flag} {','.join(['0.5'] * channels)}"
            )
    assumed = [
        f"{flag} {number}"
        for flag, numbers, number in (("--mean", config.mean, 0), ("--std", config.std, 1))
        if numbers is None
    ]
    remarks: tuple[str, ...] = ()
    if assumed:
        remarks = (
            f"warning: {' and '.join(assumed)} are assumed: the network's input is (pixel / 255 - mean) / std"
            "; give the values it was trained with"
            if len(assumed) == 2
            else f"warning: {assumed[0]} is assumed; give the value that the network was trained with",
        )
    return config.mean or (0.0,) * channels, config.std or (1.0,) * channels, remarks
