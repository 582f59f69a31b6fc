"""The two ways the same servicer meets the wire."""
