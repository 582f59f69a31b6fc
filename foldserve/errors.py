"""Every error that is raised on purpose has one base; its message is one line for the person at the terminal.

FoldserveError
├── ImageError               INVALID_ARGUMENT  bytes that are no picture, or one that cannot be prepared
├── ArtifactError            UNAVAILABLE       a version on disk that must not be served
├── DeviceError              UNAVAILABLE       the device asked for is not there, or cannot run the model
├── DeviceLostError          UNAVAILABLE       the device broke while it ran a model
├── ModelOutputError         INTERNAL          the model gave what is no answer
├── LoadTimeoutError         UNAVAILABLE       a load took longer than it may
├── LoadsHangError           UNAVAILABLE       too many loads go on that cannot be stopped
├── TrainingError            ...               `foldserve.training.errors`
├── ExportError              ...               `foldserve.export.errors`
└── ServingError             ...               `foldserve.serving.errors`
"""

from __future__ import annotations

from typing import ClassVar


class FoldserveError(Exception):
    """Base of all trees; ``status`` names the gRPC status that it becomes if it reaches a caller."""

    status: ClassVar[str] = "INTERNAL"


class ImageError(FoldserveError, ValueError):
    """The bytes are not an image that can be prepared; the message says why."""

    status = "INVALID_ARGUMENT"


class ArtifactError(FoldserveError):
    """A version on disk that must not be served; the message is the reason shown to callers."""

    status = "UNAVAILABLE"


class DeviceError(FoldserveError):
    """The device asked for is not there, or cannot run the model."""

    status = "UNAVAILABLE"


class DeviceLostError(FoldserveError):
    """The device broke while it ran a model: nothing on it will answer again in this process."""

    status = "UNAVAILABLE"


class ModelOutputError(FoldserveError):
    """The model gave NaN or infinity for somebody's image, or another shape, which is no answer."""

    status = "INTERNAL"


class LoadTimeoutError(FoldserveError):
    """A version whose loading did not end in time, or was stopped with the server."""

    status = "UNAVAILABLE"


class LoadsHangError(FoldserveError):
    """A version whose loading has not begun, since too many others go on that cannot be stopped."""

    status = "UNAVAILABLE"
