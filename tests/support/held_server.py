"""`foldserve serve` whose model can be held: an execution waits for as long as the file `hold` is there.

A test that needs a busy model holds it, and need not guess how long the machine takes for how many rows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.runtime.runner import ModelRunner
from foldserve.serving.model.served_model import ServedModel
from tests.support.repository_changes import eventually
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.serving.batching.request import OnDone
    from foldserve.serving.services.requests import InferenceRequest

# In the server's working folder.
HOLD, HELD, EXECUTED = Path("hold"), Path("held"), Path("executed")

_run, _submit = ModelRunner.__call__, ServedModel.submit


class HeldServer(ServerProcess):
    """A server process whose model waits between `hold` and `release`."""

    def __init__(self, repository: Path, folder: Path, *flags: str) -> None:
        self._folder = folder
        super().__init__(repository, folder, *flags, module="tests.support.held_server")

    def hold(self) -> None:
        """Let the executions that begin from now on wait."""
        (self._folder / HELD).unlink(missing_ok=True)
        (self._folder / HOLD).touch()

    def wait_until_held(self) -> None:
        """Wait until an execution has begun, and waits."""
        eventually((self._folder / HELD).exists, "the model is asked")

    def release(self) -> None:
        """Let everything run."""
        (self._folder / HOLD).unlink()

    def executions(self) -> list[list[int]]:
        """Return the first pixel of every image, by execution, in the order in which they began."""
        return [json.loads(line) for line in (self._folder / EXECUTED).read_text().splitlines()]


def _wait_and_run(runner: ModelRunner, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
    with EXECUTED.open("a") as log:
        log.write(f"{images[:, 0, 0, 0].tolist()}\n")
    while HOLD.exists():
        HELD.touch()
        time.sleep(0.01)
    return _run(runner, images)


def _submit_without_lending(
    model: ServedModel,
    calls: list[InferenceRequest],
    on_done: OnDone[InferenceRequest],
    *,
    run_inline: bool = False,
) -> None:
    # The transport's own thread, lent to a quick model, would be held too, and take nothing more.
    _submit(model, calls, on_done)


if __name__ == "__main__":
    from foldserve.cli import main

    ModelRunner.__call__ = _wait_and_run  # type: ignore[method-assign]
    ServedModel.submit = _submit_without_lending  # type: ignore[method-assign]
    sys.exit(main())
