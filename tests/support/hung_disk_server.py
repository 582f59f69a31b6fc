"""`foldserve serve` on a disk that hangs: reading the files of a model called "hung" never ends."""

import sys
import threading
from pathlib import Path

import foldserve.serving.repository.version_files
from foldserve.artifact.format import Artifact, read_artifact
from foldserve.cli import main


def _read(folder: Path, within: Path | None = None) -> Artifact:
    if folder.parent.name == "hung":
        threading.Event().wait()
    return read_artifact(folder, within)


if __name__ == "__main__":
    foldserve.serving.repository.version_files.read_artifact = _read
    sys.exit(main())
