"""Describes the statuses of calls over gRPC and HTTP, from the errors that become them."""

from __future__ import annotations

import inspect

from docsite.reference.markdown import head, table
from foldserve.serving import errors
from foldserve.serving.transport.http import statuses as http

_TEXT = """\
Every error that a caller gets has a gRPC status and a text that says what was given, what was
expected and what to do. HTTP has the same text as `{"error": "..."}`. What to do about each
text: [Errors](../errors.md)."""

# Of the client's and the operator's side: no call is answered with them.
_LOCAL = (errors.ListenError, errors.TransportMissingError, errors.CredentialsError, errors.SettingsError)


def page() -> str:
    """Return the page."""
    answered = [
        error
        for error in vars(errors).values()
        if inspect.isclass(error) and issubclass(error, errors.ServingError) and "status" in vars(error)
    ]
    rows = [
        (f"`{error.status}`", str(_http_status(error.status)), inspect.cleandoc(error.__doc__ or ""))
        for error in answered
        if error not in _LOCAL
    ]
    refused = [
        (str(int(error.http_status)), inspect.cleandoc(error.__doc__ or ""))
        for error in http.HttpError.__subclasses__()
    ]
    return "\n".join(
        [
            head("Statuses", _TEXT),
            table(("gRPC", "HTTP", "when"), rows),
            "503 and 429 carry `Retry-After`. HTTP has its own statuses for requests that no service sees:\n",
            table(("HTTP", "when"), refused),
        ]
    )


def _http_status(status: str) -> int:
    return int(http._HTTP_STATUSES.get(status, 500))  # the one table that the server uses
