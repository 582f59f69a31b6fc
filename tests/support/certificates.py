"""Authorities made for a test, and the files that they sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class Pair(NamedTuple):
    """The files of a certificate and of its private key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority that nobody trusts but who is given its file ``ca``."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._authority = folder, trustme.CA()
        self.ca = folder / f"{name}-ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def sign(self, name: str, *identities: str, **validity: Any) -> Pair:
        """Write a new certificate with its chain, and its key; for this machine where nobody is named."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        signed = self._authority.issue_cert(*(identities or ("localhost", "127.0.0.1")), **validity)
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in signed.cert_chain_pems))
        pair.key.write_bytes(signed.private_key_pem.bytes())
        return pair
