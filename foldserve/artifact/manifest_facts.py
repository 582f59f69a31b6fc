"""Reads facts of a manifest that anybody may have written: what is malformed counts as missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def entry(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the facts under ``name``; empty if there are none."""
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}


def accuracy_of(manifest: Mapping[str, Any]) -> float | None:
    """Return the accuracy that the export measured on the file, 0 to 1."""
    after = entry(manifest, "accuracy").get("after")
    return after if isinstance(after, float | int) and 0 <= after <= 1 else None


def origin_of(manifest: Mapping[str, Any]) -> str:
    """Return the run, the file or the network that the version was made from; "" if it does not say."""
    source = entry(manifest, "source")
    origin = source.get("run") or source.get("onnx_file") or source.get("architecture")
    return origin if isinstance(origin, str) else ""
