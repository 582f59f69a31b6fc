"""Derives the seed of each purpose and step from the seed of a run."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """Return a seed for one purpose, hashed because torch's CPU generator uses only the low 32 bits."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
