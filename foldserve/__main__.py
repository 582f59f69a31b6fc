"""`python -m foldserve COMMAND`: the same as the console script `foldserve`; torchrun takes it too."""

import sys

from foldserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
