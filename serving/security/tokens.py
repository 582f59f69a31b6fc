"""Bearer tokens: a file of their hashes with what each may do. The tokens themselves are kept nowhere.

A line is ``ROLE NAME sha256:HEX``; empty lines and those that begin with # are skipped. A token is 32 random
bytes, so its plain SHA-256 tells nothing: there is no dictionary to try.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from foldserve.serving.errors import CredentialsError
from foldserve.text import quote

if TYPE_CHECKING:
    from pathlib import Path

Role: TypeAlias = Literal["infer", "admin"]

# So that whoever finds one, a scanner for leaked secrets for instance, sees what it is.
_PREFIX = "foldserve_"
_TOKEN_BYTES = 32
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
# A revoked token may be used for that much longer.
_LOOK_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who a token was made for, and what it allows: to infer, or everything."""

    name: str
    role: Role


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    caller: Caller


class Tokens:
    """The callers in a file, as it is now.

    Methods may be called from any thread: each change replaces what was there.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            CredentialsError: it cannot be read, has no tokens, or a line is none.
        """
        self._path = path
        self._seen = self._fingerprint()
        self._entries = _read(path)
        if not self._entries:
            raise CredentialsError(f"{path} has no tokens: nobody could call; `foldserve token` makes one")
        # Only of tokens that were right: it cannot grow beyond them.
        self._known: dict[str, Caller] = {}
        self._look_again_s = time.monotonic() + _LOOK_AGAIN_S

    def find(self, token: str) -> Caller | None:
        """Return whose ``token`` is, None where nobody's."""
        if time.monotonic() >= self._look_again_s:
            self._look_again()
        known, entries = self._known, self._entries
        caller = known.get(token)
        if caller is None:
            caller = _find(token, entries)
            if caller is not None:
                known[token] = caller
        return caller

    def _look_again(self) -> None:
        """Read the file where it has changed; one that cannot be read leaves in place what there was."""
        self._look_again_s = time.monotonic() + _LOOK_AGAIN_S
        fingerprint = self._fingerprint()
        if fingerprint == self._seen:
            return
        self._seen = fingerprint
        try:
            entries = _read(self._path)
        except CredentialsError as error:
            _log.error("the tokens stay as they were: %s", error)
            return
        # In this order, and read in the other one: what was known of the old file is never added to the new.
        self._entries = entries
        self._known = {}
        _log.info("%d tokens from %s", len(entries), self._path)
        if not entries:
            _log.warning("%s has no tokens left: nobody can call", self._path)

    def _fingerprint(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def create_token() -> str:
    """Return a token that nobody can guess."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def to_line(caller: Caller, token: str) -> str:
    """Return the line that lets ``token`` in."""
    return f"{caller.role} {caller.name} sha256:{_digest(token).hex()}"


def check_name(name: str) -> str:
    """Return ``name`` where it can stand in a line; raises ValueError where it cannot."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", name):
        raise ValueError(
            f"the name is {quote(name)}; use up to 64 letters, digits, '.', '_', '@' or '-', a letter or "
            "digit first"
        )
    return name


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _find(token: str, entries: tuple[_Entry, ...]) -> Caller | None:
    """Go through all entries, so that the time taken tells nothing of which one, or how nearly, matches."""
    digest = _digest(token)
    found = None
    for entry in entries:
        if hmac.compare_digest(entry.digest, digest):
            found = entry.caller
    return found


def _read(path: Path) -> tuple[_Entry, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CredentialsError(f"{path} is no text file: {error}") from error
    entries: dict[bytes, _Entry] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = _read_line(line.split(), f"{path}, line {number}")
        if entry.digest in entries:
            raise CredentialsError(f"{path}, line {number}: this token stands in an earlier line already")
        entries[entry.digest] = entry
    return tuple(entries.values())


def _read_line(words: list[str], where: str) -> _Entry:
    # The line itself is not shown: somebody may have put a token into it.
    if len(words) != 3:
        raise CredentialsError(f"{where} has {len(words)} words; expected ROLE NAME sha256:HEX")
    role, name, digest = words
    if role not in get_args(Role):
        raise CredentialsError(f"{where}: the role is neither 'infer' nor 'admin'")
    found = _HASH.fullmatch(digest)
    if found is None:
        raise CredentialsError(
            f"{where}: the third word is not 'sha256:' and 64 hexadecimal digits; `foldserve token` makes "
            "such lines, and the token itself belongs nowhere but to its caller"
        )
    try:
        caller = Caller(check_name(name), "admin" if role == "admin" else "infer")
    except ValueError as error:
        raise CredentialsError(f"{where}: {error}") from None
    return _Entry(bytes.fromhex(found[1]), caller)
