"""Sends large requests from a process of its own, so that the small ones' client waits for none of its work.

Called with PORT BODY_FILE CALLERS REQUESTS. Prints "ready" once all callers are connected, and, when every
request is answered, the seconds since then.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.fairness.channels import LIMIT_S, Call, connected


def main() -> None:
    """Send the requests; grpc.RpcError ends the process if one fails."""
    port, body_file, callers, requests = sys.argv[1:]
    body = Path(body_file).read_bytes()
    with ExitStack() as stack, ThreadPoolExecutor(int(callers)) as pool:
        calls = [stack.enter_context(connected(int(port))) for _ in range(int(callers))]
        print("ready", flush=True)
        started_s = time.perf_counter()
        for each in [pool.submit(_send, call, body, int(requests)) for call in calls]:
            each.result()
        print(time.perf_counter() - started_s, flush=True)


def _send(call: Call, body: bytes, count: int) -> None:
    for _ in range(count):
        call(body, timeout=LIMIT_S)


if __name__ == "__main__":
    main()
