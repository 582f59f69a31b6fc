"""Networks of other people's design, rebuilt from their papers at a size that a test can afford.

Written as such code is found: nested containers, functional calls, shared blocks, hand-made shuffles.
`NETWORKS` has them by name, each with what must become of its batch norms.
"""

from tests.support.architectures.registry import NETWORKS, Expected

__all__ = ["NETWORKS", "Expected"]
