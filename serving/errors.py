"""Every error that serving raises on purpose; each class names the gRPC status it becomes on the wire.

ServingError
├── InvalidArgumentError     INVALID_ARGUMENT    the request is wrong and will stay wrong
├── NotFoundError            NOT_FOUND           no such model or version
├── UnavailableError         UNAVAILABLE         refused, loading or draining: may work later or elsewhere
│   └── RetiredError         UNAVAILABLE         the version was unloaded or replaced before the request ran
├── ResourceExhaustedError   RESOURCE_EXHAUSTED  a bounded queue is full
├── DeadlineExceededError    DEADLINE_EXCEEDED   expired before the model ran
├── CancelledError           CANCELLED           the caller has gone
├── UnimplementedError       UNIMPLEMENTED       the protocol has it, this server does not
├── PermissionDeniedError    PERMISSION_DENIED   this server was told not to do it
├── UnauthenticatedError     UNAUTHENTICATED     no token, or none that is known
├── ModelOutputError         INTERNAL            the model gave what is no answer
├── InternalError            INTERNAL            ours; logged where it happened, the text says nothing
├── ListenError              UNAVAILABLE         the address cannot be listened on
├── TransportMissingError    UNAVAILABLE         the transport asked for is not installed
├── CredentialsError         UNAVAILABLE         a certificate, key or token file that cannot be used
├── ArtifactError            UNAVAILABLE         a version on disk that must not be served
├── LoadTimeoutError         UNAVAILABLE         a version whose loading did not end in time
├── LoadsHangError           UNAVAILABLE         too many loads go on that cannot be stopped
├── SettingsError            UNAVAILABLE         a model's settings file that says what cannot be done
├── DeviceError              UNAVAILABLE         the device asked for cannot run the model
└── DeviceLostError          UNAVAILABLE         the device broke while it served
"""

from __future__ import annotations

from typing import ClassVar

INTERNAL_ERROR_TEXT = "internal error; the server's log has the details"


class ServingError(Exception):
    """Base of the tree; ``status`` is a gRPC status name, so that only the transports import grpc."""

    status: ClassVar[str] = "INTERNAL"


class InvalidArgumentError(ServingError):
    """The request is wrong; the message says what was given, what was expected and what to do."""

    status = "INVALID_ARGUMENT"


class NotFoundError(ServingError):
    """The model or version is not in the repository."""

    status = "NOT_FOUND"


class UnavailableError(ServingError):
    """The model is refused, loading or draining."""

    status = "UNAVAILABLE"


class RetiredError(UnavailableError):
    """The version stopped before the request ran; what has taken its place, if anything, may answer."""


class ResourceExhaustedError(ServingError):
    """A bounded queue is full."""

    status = "RESOURCE_EXHAUSTED"


class DeadlineExceededError(ServingError):
    """The deadline passed before the model ran."""

    status = "DEADLINE_EXCEEDED"


class CancelledError(ServingError):
    """The caller cancelled before the model ran."""

    status = "CANCELLED"


class UnimplementedError(ServingError):
    """The protocol has this, the server does not."""

    status = "UNIMPLEMENTED"


class PermissionDeniedError(ServingError):
    """This server was told not to do it."""

    status = "PERMISSION_DENIED"


class UnauthenticatedError(ServingError):
    """The caller has no token, or one that this server does not know."""

    status = "UNAUTHENTICATED"


class ModelOutputError(ServingError):
    """The model gave NaN or infinity for somebody's image, which is no answer."""

    status = "INTERNAL"


class InternalError(ServingError):
    """Something failed that nobody meant to; the log has it, and callers get a fixed text."""

    status = "INTERNAL"


class ListenError(ServingError):
    """The address cannot be listened on."""

    status = "UNAVAILABLE"


class TransportMissingError(ServingError):
    """The transport asked for is not installed."""

    status = "UNAVAILABLE"


class CredentialsError(ServingError):
    """A file of certificates, keys or tokens cannot be used; the message names it and says why."""

    status = "UNAVAILABLE"


class ArtifactError(ServingError):
    """A version on disk that must not be served; the message is the reason shown to callers."""

    status = "UNAVAILABLE"


class LoadTimeoutError(ServingError):
    """A version whose loading did not end in time, or was stopped with the server."""

    status = "UNAVAILABLE"


class LoadsHangError(ServingError):
    """A version whose loading has not begun, since too many others go on that cannot be stopped."""

    status = "UNAVAILABLE"


class DeviceError(ServingError):
    """The device asked for cannot run the model."""

    status = "UNAVAILABLE"


class SettingsError(ServingError):
    """A model's settings file that cannot be followed; the message says file, line and key."""

    status = "UNAVAILABLE"


class DeviceLostError(ServingError):
    """The device broke while it served: nothing that runs on it will answer again in this process."""

    status = "UNAVAILABLE"
