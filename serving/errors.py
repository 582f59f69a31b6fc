"""Defines the errors that serving raises; each class names the gRPC status it becomes.

ServingError
├── InvalidArgumentError     INVALID_ARGUMENT    the request is wrong and will stay wrong
├── NotFoundError            NOT_FOUND           no such model or version
├── UnavailableError         UNAVAILABLE         refused, loading or draining: may work later or elsewhere
│   └── ModelUnloadedError   UNAVAILABLE         the version was unloaded or replaced before the request ran
├── ResourceExhaustedError   RESOURCE_EXHAUSTED  a bounded queue is full
├── DeadlineExceededError    DEADLINE_EXCEEDED   expired before the model ran
├── CancelledError           CANCELLED           the caller has gone
├── UnimplementedError       UNIMPLEMENTED       in the protocol, but not supported by this server
├── PermissionDeniedError    PERMISSION_DENIED   the caller or this server's settings do not allow it
├── UnauthenticatedError     UNAUTHENTICATED     no token, or an unknown one
├── InternalError            INTERNAL            a fault of the server: the log has the details
├── ListenError              UNAVAILABLE         the server cannot listen on the address
├── TransportMissingError    UNAVAILABLE         the requested transport does not work here
├── CredentialsError         UNAVAILABLE         a certificate, key or token file cannot be used
└── SettingsError            UNAVAILABLE         a model's settings file is invalid
"""

from __future__ import annotations

from foldserve.errors import FoldserveError

INTERNAL_ERROR_TEXT = "internal error; the server's log has the details"


class ServingError(FoldserveError):
    """Base of the tree. Statuses are names, so that only the transports import grpc."""


class InvalidArgumentError(ServingError):
    """The request does not fit the model, or is malformed; the message says how to put it right.

    Names, datatype, shape, number of bytes, outputs, parameters; a picture that cannot be read; too many
    images or fields.
    """

    status = "INVALID_ARGUMENT"


class NotFoundError(ServingError):
    """The model or version is not in the repository; the message lists what there is."""

    status = "NOT_FOUND"


class UnavailableError(ServingError):
    """The version was refused, is loading or was unloaded, or the server is draining.

    The message has the reason; a lost GPU is one.
    """

    status = "UNAVAILABLE"


class ModelUnloadedError(UnavailableError):
    """The version was unloaded before the request ran; its successor, if any, may answer."""


class ResourceExhaustedError(ServingError):
    """The model's queue is full, encoded images would hold too much memory, or the message is too large."""

    status = "RESOURCE_EXHAUSTED"


class DeadlineExceededError(ServingError):
    """The call's deadline, or its parameter `timeout`, passed before the model ran."""

    status = "DEADLINE_EXCEEDED"


class CancelledError(ServingError):
    """The caller cancelled before the model ran."""

    status = "CANCELLED"


class UnimplementedError(ServingError):
    """This server does not have it: shared memory, tracing, loading with parameters, unknown methods."""

    status = "UNIMPLEMENTED"


class PermissionDeniedError(ServingError):
    """The caller's role or the server's settings do not allow this: loading or unloading models."""

    status = "PERMISSION_DENIED"


class UnauthenticatedError(ServingError):
    """The call has no token, or one that the server does not know."""

    status = "UNAUTHENTICATED"


class InternalError(ServingError):
    """The model gave NaN or infinity, decoding an image ended its process, or the server failed unexpectedly.

    In the last case the text is fixed, and the log has the traceback.
    """

    status = "INTERNAL"


class ListenError(ServingError):
    """The server cannot listen on the address."""

    status = "UNAVAILABLE"


class TransportMissingError(ServingError):
    """The requested transport is not installed, or does not work here."""

    status = "UNAVAILABLE"


class CredentialsError(ServingError):
    """A certificate, key or token file cannot be used; the message names it and says why."""

    status = "UNAVAILABLE"


class SettingsError(ServingError):
    """A model's settings file is invalid; the message names the file, line and key."""

    status = "UNAVAILABLE"
