"""`foldserve serve` without the garbage collector: what is held in circles stays, and can be measured."""

import gc
import sys

from foldserve.cli import main
from foldserve.serving import server

if __name__ == "__main__":
    server._settle_garbage = gc.disable  # which collects, and would make room
    gc.disable()
    sys.exit(main())
