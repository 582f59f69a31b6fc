"""`foldserve serve` with a fault injected: decoding never ends where an image is 77 pixels wide.

With a number as its only argument it is the process that forks decoders, with the same fault.
"""

import sys
import time
from typing import Any

from foldserve.imaging import Picture
from foldserve.serving.decoding import own_process, process_main, turn

_prepare = turn.prepare_picture


def _prepare_or_hang(picture: Picture, *arguments: Any, **options: Any) -> Any:
    if picture.width == 77:
        time.sleep(3600)
    return _prepare(picture, *arguments, **options)


if __name__ == "__main__":
    turn.prepare_picture = _prepare_or_hang
    if len(sys.argv) == 2:
        process_main.main(int(sys.argv[1]))
        sys.exit()
    own_process.MAIN_MODULE = __spec__.name

    from foldserve.cli import main

    sys.exit(main())
