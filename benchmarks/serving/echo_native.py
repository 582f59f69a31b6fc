"""The native transport's library alone: sends the right answer to the first request to every request.

Nothing is parsed and no model is run after the first one: all that this costs is the library's and the
kernel's.
"""

from __future__ import annotations

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from benchmarks.serving.bare_model import MAX_BATCH_REQUESTS, METHOD, BareModel


def main() -> None:
    """Serve until the process is ended."""
    model = BareModel()
    front = NativeGrpcFront("127.0.0.1:0", [(METHOD, False)], io_threads=1)  # as in bare_native
    front.start()
    model.announce(front.bound_port)
    answer = b""
    while (events := front.recv_batch(MAX_BATCH_REQUESTS)) is not None:
        for kind, call_id, _, payload, _ in events:
            if kind == EVENT_CALL:
                answer = answer or model.answer(payload or b"")
                front.respond(call_id, answer)


if __name__ == "__main__":
    main()
