"""`foldserve serve` that gives an HTTP client little time for the head and the body of a request."""

import sys

from foldserve.cli import main
from foldserve.serving.transport.http import body, server

if __name__ == "__main__":
    server._HEAD_LIMIT_S = body._BODY_LIMIT_S = 0.5
    sys.exit(main())
