"""Reads from flags how an image becomes the network's input: size, colours, mean and std."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.export.errors import SourceError
from foldserve.export.graph.normalise import PIXEL_MAX
from foldserve.export.image_shape import show_shape
from foldserve.imaging import ImageSpec

if TYPE_CHECKING:
    from foldserve.artifact.schema import NetworkChannelOrder
    from foldserve.export.config import ExportConfig
    from foldserve.imaging import FitRule

_ORDERS = {1: "L", 3: "RGB"}
# Largest mean of pixels from 0 to 1 that is believed; one of pixels from 0 to 255 is some 100.
_MOST_MEAN = 2.0


def image_spec(shape: tuple[int, ...], resize: int | None, fit: FitRule | None) -> ImageSpec:
    """Return the preparation that brings encoded images to ``shape``, channels x height x width.

    ``resize`` is the length that the shorter side is scaled to; without, the images are fitted by ``fit``.

    Raises:
        SourceError: the channels are neither grey nor RGB, ``resize`` is less than the crop, or ``fit`` is
            given too.
    """
    if resize is not None and fit is not None:
        raise SourceError(
            f"--resize {resize} scales the shorter side and crops, and --fit {fit} is another way; give one"
        )
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
    rule: FitRule = (fit or "crop") if resize is None else "shorter-side"
    return ImageSpec(order, height, width, resize or longest, fit=rule)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Preprocessing:
    """Tells how pixels become the network's input: ``(pixel / 255 - mean) / std``, in BGR if reversed.

    ``mean`` and ``std`` are per channel of the image as clients send it, RGB or grey.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    reversed_channels: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def network_channel_order(self) -> NetworkChannelOrder | None:
        """The order that the network takes, for the metadata; None if it is the image's own."""
        return "BGR" if self.reversed_channels else None


def preprocessing(config: ExportConfig, channels: int) -> Preprocessing:
    """Read ``--mean``, ``--std``, ``--pixel-range`` and ``--channel-order``; warn of what was not given.

    Raises:
        SourceError: there is not one number per channel, the numbers are of another range of pixels, or an
            order is given for a single channel.
    """
    is_reversed = reverses_channels(config, channels)
    for flag, numbers in (("--mean", config.mean), ("--std", config.std)):
        if numbers is not None and len(numbers) != channels:
            raise SourceError(
                f"{flag} has {len(numbers)} numbers for {channels} channels; expected one per channel, such "
                f"as {flag} {','.join(['0.5'] * channels)}"
            )
    _check_range(config)
    mean, std = config.mean or (0.0,) * channels, config.std or (1.0,) * channels
    if config.pixel_range == "0-255":
        mean, std = (tuple(number / PIXEL_MAX for number in numbers) for numbers in (mean, std))
    if is_reversed:
        mean, std = mean[::-1], std[::-1]
    return Preprocessing(mean, std, is_reversed, _assumptions(config))


def reverses_channels(config: ExportConfig, channels: int) -> bool:
    """Tell whether ``--channel-order`` asks for BGR.

    Raises:
        SourceError: the image has a single channel.
    """
    if config.channel_order is not None and channels == 1:
        raise SourceError(
            f"--channel-order {config.channel_order}: the image has one channel, which has no order; leave "
            "the flag out"
        )
    return config.channel_order == "bgr"


def _check_range(config: ExportConfig) -> None:
    """Refuse a mean that no pixel of the range reaches."""
    most = max(map(abs, config.mean or (0.0,)))
    if config.pixel_range != "0-255" and most > _MOST_MEAN:
        raise SourceError(
            f"--mean {_listed(config.mean)}: pixels are divided by 255 before it is subtracted, so that they "
            "are from 0 to 1; if the network takes pixels from 0 to 255, give --pixel-range 0-255"
        )


def _assumptions(config: ExportConfig) -> tuple[str, ...]:
    formula = f"the network's input is {_formula(config)}"
    assumed = [
        f"{flag} {number}"
        for flag, numbers, number in (("--mean", config.mean, 0), ("--std", config.std, 1))
        if numbers is None
    ]
    said: list[str] = []
    if config.channel_order == "bgr":
        said.append("the network takes BGR: the graph reverses the RGB that clients send")
    if len(assumed) == 2:
        said.append(
            f"warning: {' and '.join(assumed)} are assumed: {formula}; give the values it was trained with"
        )
    elif assumed and config.pixel_range != "0-255":  # there, a mean alone is usual
        said.append(f"warning: {assumed[0]} is assumed; give the value that the network was trained with")
    if config.pixel_range == "0-255" and config.mean and 0 < max(map(abs, config.mean)) <= 1:
        said.append(
            f"warning: --mean {_listed(config.mean)} is next to nothing for pixels from 0 to 255; if it is "
            "meant for pixels from 0 to 1, leave out --pixel-range"
        )
    return tuple(said)


def _formula(config: ExportConfig) -> str:
    return "(pixel - mean) / std" if config.pixel_range == "0-255" else "(pixel / 255 - mean) / std"


def _listed(numbers: tuple[float, ...] | None) -> str:
    return ",".join(f"{number:g}" for number in numbers or ())
