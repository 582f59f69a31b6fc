"""Every error that serving raises on purpose; each class names the gRPC status it becomes on the wire.

ServingError
├── InvalidArgumentError     INVALID_ARGUMENT    the request is wrong and will stay wrong
├── NotFoundError            NOT_FOUND           no such model or version
├── UnavailableError         UNAVAILABLE         refused, loading or draining: may work later or elsewhere
│   └── ModelUnloadedError   UNAVAILABLE         the version was unloaded or replaced before the request ran
├── ResourceExhaustedError   RESOURCE_EXHAUSTED  a bounded queue is full
├── DeadlineExceededError    DEADLINE_EXCEEDED   expired before the model ran
├── CancelledError           CANCELLED           the caller has gone
├── UnimplementedError       UNIMPLEMENTED       the protocol has it, this server does not
├── PermissionDeniedError    PERMISSION_DENIED   this server was told not to do it
├── UnauthenticatedError     UNAUTHENTICATED     no token, or none that is known
├── InternalError            INTERNAL            ours; logged where it happened, the text says nothing
├── ListenError              UNAVAILABLE         the address cannot be listened on
├── TransportMissingError    UNAVAILABLE         the transport asked for is not installed
├── CredentialsError         UNAVAILABLE         a certificate, key or token file that cannot be used
└── SettingsError            UNAVAILABLE         a model's settings file that says what cannot be done
"""

from __future__ import annotations

from foldserve.errors import FoldserveError

INTERNAL_ERROR_TEXT = "internal error; the server's log has the details"


class ServingError(FoldserveError):
    """Base of the tree; a status is a name, so that only the transports import grpc."""


class InvalidArgumentError(ServingError):
    """The request is wrong; the message says what was given, what was expected and what to do."""

    status = "INVALID_ARGUMENT"


class NotFoundError(ServingError):
    """The model or version is not in the repository."""

    status = "NOT_FOUND"


class UnavailableError(ServingError):
    """The model is refused, loading or draining."""

    status = "UNAVAILABLE"


class ModelUnloadedError(UnavailableError):
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


class SettingsError(ServingError):
    """A model's settings file that cannot be followed; the message says file, line and key."""

    status = "UNAVAILABLE"
