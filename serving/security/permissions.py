"""Decides who may call which method, from the method's path and the call's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.serving.errors import PermissionDeniedError, UnauthenticatedError
from foldserve.serving.protocol.names import INFERENCE_SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foldserve.serving.security.tokens import Caller, Tokens

# Methods that change the server; every token allows the others.
_ADMIN_PATHS = frozenset(
    {f"/{INFERENCE_SERVICE}/RepositoryModelLoad", f"/{INFERENCE_SERVICE}/RepositoryModelUnload"}
)
_SCHEME = "bearer "


class Permissions:
    """Checks callers' tokens; ``tokens`` None allows everything to everybody."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    @property
    def are_checked(self) -> bool:
        """Whether callers need a token."""
        return self._tokens is not None

    def check(self, path: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller | None:
        """Return the caller of ``path``, None if no tokens are needed.

        Raises:
            UnauthenticatedError: the call has no token, or an unknown one.
            PermissionDeniedError: the token does not allow this call.
        """
        if self._tokens is None:
            return None
        caller = self._tokens.find(_token(metadata))
        if caller is None:
            raise UnauthenticatedError("this server does not know the call's token; ask its operator for one")
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
        "the call carries no token; send the metadata 'authorization: Bearer TOKEN' (foldserve's commands "
        "read it from --token-file or FOLDSERVE_TOKEN)"
    )
