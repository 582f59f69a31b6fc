"""`foldserve` with a queue that serves first come, first served, to compare with."""

from __future__ import annotations

import sys

from benchmarks.fairness.first_come import FirstComeQueue
from foldserve.cli import main
from foldserve.serving.batching import batcher

if __name__ == "__main__":
    batcher.__dict__["RequestQueue"] = FirstComeQueue
    sys.exit(main())
