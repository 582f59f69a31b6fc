"""`foldserve serve` with 64 file descriptors, as after `ulimit -n 64`."""

import resource
import sys

from foldserve.cli import main

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    sys.exit(main())
