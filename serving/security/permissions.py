"""Who may call what. Knows no gRPC: a method's path and the call's metadata are enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.serving.errors import PermissionDeniedError, UnauthenticatedError
from foldserve.serving.protocol.names import INFERENCE_SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foldserve.serving.security.tokens import Caller, Tokens

# What changes the server; everything else is for whoever may infer.
_ADMIN_PATHS = frozenset(
    {f"/{INFERENCE_SERVICE}/RepositoryModelLoad", f"/{INFERENCE_SERVICE}/RepositoryModelUnload"}
)
_SCHEME = "bearer "


class Permissions:
    """The tokens that callers need, if any."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    @property
    def are_checked(self) -> bool:
        """Whether callers need a token."""
        return self._tokens is not None

    def check(self, path: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller | None:
        """Return who calls ``path``, None where nobody needs a token.

        Raises:
            UnauthenticatedError: there is no token, or none that is known.
            PermissionDeniedError: the token does not allow this call.
        """
        if self._tokens is None:
            return None
        caller = self._tokens.find(_token(metadata))
        if caller is None:
            raise UnauthenticatedError("the call's token is not one of this server's; ask whoever runs it")
        if path in _ADMIN_PATHS and caller.role != "admin":
            raise PermissionDeniedError(
                f"{path.rpartition('/')[2]} needs a token of role 'admin'; the call's is {caller.role!r}"
            )
        return caller


def _token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip()
    raise UnauthenticatedError(
        "the call carries no token; send the metadata 'authorization: Bearer TOKEN' (our commands take "
        "--token-file or FOLDSERVE_TOKEN)"
    )
