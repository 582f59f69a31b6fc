"""`foldserve serve` whose event loop stands still in ServerMetadata until there is a file named "go"."""

import sys
import time
from pathlib import Path

from foldserve.cli import main
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.services.management import ManagementService

_answer = ManagementService.server_metadata


def _wait_and_answer(
    control: ManagementService, request: pb.ServerMetadataRequest
) -> pb.ServerMetadataResponse:
    Path("waiting").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return _answer(control, request)


if __name__ == "__main__":
    ManagementService.server_metadata = _wait_and_answer  # type: ignore[method-assign]
    sys.exit(main())
