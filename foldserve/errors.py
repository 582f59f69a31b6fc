"""Defines the base of all errors raised on purpose; each message is one line for the user.

FoldserveError
├── ImageError               INVALID_ARGUMENT  bytes that are not a supported image, or a damaged one
├── ArtifactError            UNAVAILABLE       a version on disk that must not be served
├── DeviceError              UNAVAILABLE       the requested device is missing or cannot run the model
├── DeviceLostError          UNAVAILABLE       the device failed while it ran a model
├── ModelOutputError         INTERNAL          the model gave NaN, infinity or a wrong shape
├── LoadTimeoutError         UNAVAILABLE       a load exceeded its time limit
├── LoadsHangError           UNAVAILABLE       too many loads hang and cannot be stopped
├── TrainingError            ...               `foldserve.training.errors`
├── ExportError              ...               `foldserve.export.errors`
└── ServingError             ...               `foldserve.serving.errors`
"""

from __future__ import annotations

from typing import ClassVar


class FoldserveError(Exception):
    """Base of all error trees; ``status`` is the gRPC status that a caller sees."""

    status: ClassVar[str] = "INTERNAL"


class ImageError(FoldserveError, ValueError):
    """The bytes cannot be decoded to an image; the message says why."""

    status = "INVALID_ARGUMENT"


class ArtifactError(FoldserveError):
    """A version on disk that must not be served; the message is the reason shown to callers."""

    status = "UNAVAILABLE"


class DeviceError(FoldserveError):
    """The requested device is missing or cannot run the model."""

    status = "UNAVAILABLE"


class DeviceLostError(FoldserveError):
    """The device failed while it ran a model; nothing on it will work again in this process."""

    status = "UNAVAILABLE"


class ModelOutputError(FoldserveError):
    """The model gave NaN or infinity for somebody's image, or another shape, which is no answer."""

    status = "INTERNAL"


class LoadTimeoutError(FoldserveError):
    """Loading a version exceeded its time limit, or ended because the server stops."""

    status = "UNAVAILABLE"


class LoadsHangError(FoldserveError):
    """Loading a version was not started, as too many other loads hang and cannot be stopped."""

    status = "UNAVAILABLE"
