"""Runs the command line: `python -m foldserve COMMAND`, `torchrun -m foldserve train`."""

import sys

from foldserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
