"""`python -m serving` on a disk that hangs: reading the files of a model called "hung" never ends."""

import sys
import threading
from pathlib import Path

import serving.version_files
from serving.__main__ import main
from serving.artifact import Artifact, read_artifact


def _read(folder: Path, within: Path | None = None) -> Artifact:
    if folder.parent.name == "hung":
        threading.Event().wait()
    return read_artifact(folder, within)


if __name__ == "__main__":
    serving.version_files.read_artifact = _read
    sys.exit(main())
