"""Reads bearer tokens from a file of their hashes and roles. The tokens themselves are not stored.

A line is ``ROLE NAME sha256:HEX``; empty lines and lines that begin with # are skipped. A token is 32 random
bytes, so a plain SHA-256 is enough: no dictionary can contain it.
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

from foldserve.files import file_fingerprint
from foldserve.serving.errors import CredentialsError
from foldserve.text import quote

if TYPE_CHECKING:
    from pathlib import Path

Role: TypeAlias = Literal["infer", "admin"]

# Lets scanners for leaked secrets recognise a token.
_PREFIX = "foldserve_"
_TOKEN_BYTES = 32
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
# A revoked token may still be used for this time.
_CHECK_EVERY_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """The holder of a token, and its role: "infer" allows inference, "admin" everything."""

    name: str
    role: Role


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    caller: Caller


class Tokens:
    """Finds callers by their tokens in a file, which is read again when it changes.

    Methods may be called from any thread: changes replace the tables, which are never modified.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            CredentialsError: it cannot be read, has no tokens, or has an invalid line.
        """
        self._path = path
        self._seen = file_fingerprint(path)
        self._entries = _read(path)
        if not self._entries:
            raise CredentialsError(
                f"{path} has no tokens, so nobody could call; create one with `foldserve token`"
            )
        # Holds valid tokens only, so that callers cannot make it grow.
        self._known: dict[str, Caller] = {}
        self._next_check_s = time.monotonic() + _CHECK_EVERY_S

    def find(self, token: str) -> Caller | None:
        """Return the holder of ``token``, None if it is unknown."""
        if time.monotonic() >= self._next_check_s:
            self._reload_if_changed()
        known, entries = self._known, self._entries
        caller = known.get(token)
        if caller is None:
            caller = _find(token, entries)
            if caller is not None:
                known[token] = caller
        return caller

    def _reload_if_changed(self) -> None:
        """Read the file if it has changed. If it cannot be read, the old tokens stay in force."""
        self._next_check_s = time.monotonic() + _CHECK_EVERY_S
        fingerprint = file_fingerprint(self._path)
        if fingerprint == self._seen:
            return
        self._seen = fingerprint
        try:
            entries = _read(self._path)
        except CredentialsError as error:
            _log.error("the tokens stay as they were, because the file cannot be used: %s", error)
            return
        # `find` reads these in reverse order, so that it never remembers a token of the old file for the new.
        self._entries = entries
        self._known = {}
        _log.info("%d tokens from %s", len(entries), self._path)
        if not entries:
            _log.warning("%s has no tokens left, so nobody can call", self._path)


def create_token() -> str:
    """Return a new random token."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def to_line(caller: Caller, token: str) -> str:
    """Return the line of the file that permits ``token``."""
    return f"{caller.role} {caller.name} sha256:{_digest(token).hex()}"


def check_name(name: str) -> str:
    """Return ``name`` if it is valid in a line; raises ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", name):
        raise ValueError(
            f"the name is {quote(name)}; use up to 64 letters, digits, '.', '_', '@' or '-', and begin with "
            "a letter or digit"
        )
    return name


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _find(token: str, entries: tuple[_Entry, ...]) -> Caller | None:
    """Compare with all entries, so that the time taken does not reveal which one matches, or how nearly."""
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
        raise CredentialsError(f"{path} is not a text file: {error}") from error
    entries: dict[bytes, _Entry] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = _read_line(line.split(), f"{path}, line {number}")
        if entry.digest in entries:
            raise CredentialsError(f"{path}, line {number}: this token is already in an earlier line")
        entries[entry.digest] = entry
    return tuple(entries.values())


def _read_line(words: list[str], where: str) -> _Entry:
    # The line itself is not shown: somebody may have put a token in it.
    if len(words) != 3:
        raise CredentialsError(f"{where} has {len(words)} words; expected ROLE NAME sha256:HEX")
    role, name, digest = words
    if role not in get_args(Role):
        raise CredentialsError(f"{where}: the role is neither 'infer' nor 'admin'")
    found = _HASH.fullmatch(digest)
    if found is None:
        raise CredentialsError(
            f"{where}: the third word is not 'sha256:' and 64 hexadecimal digits; create such lines with "
            "`foldserve token`, and give the token itself only to its caller"
        )
    try:
        caller = Caller(check_name(name), "admin" if role == "admin" else "infer")
    except ValueError as error:
        raise CredentialsError(f"{where}: {error}") from None
    return _Entry(bytes.fromhex(found[1]), caller)
