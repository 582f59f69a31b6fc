"""Figures read from /proc: from a copy of its layout, and of this process."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from foldserve.serving.observability.process_figures import connection_count, thread_count
from tests.support.server_process import SOURCE

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def test_established_connections_to_the_port_alone_are_counted(tmp_path: Path) -> None:
    net = tmp_path / "self" / "net"
    net.mkdir(parents=True)
    (net / "tcp").write_text(
        HEADER
        + "   0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n"
        + "   1: 0100007F:1F41 0100007F:C350 01 00000000:00000000 00:00000000 00000000 0 0 2\n"
        + "   2: 0100007F:C350 0100007F:1F41 01 00000000:00000000 00:00000000 00000000 0 0 3\n"
        + "   3: 0100007F:1F41 0100007F:C351 06 00000000:00000000 00:00000000 00000000 0 0 4\n"
        + "   4: 0100007F:1F41 0100007F:C353 01 00000000:00000000 00:00000000 00000000 0 0 6\n"
    )  # one listens, one is established, one is a client's end, one has ended, one is another process's
    tail = "C352 01 00000000:00000000 00:00000000 00000000 0 0 5 1 0 20\n"
    address = "00000000000000000000000001000000"
    (net / "tcp6").write_text(f"{HEADER}   0: {address}:1F41 {address}:{tail}")
    descriptors = tmp_path / "self" / "fd"
    descriptors.mkdir()
    for descriptor, target in enumerate(["/dev/null", *(f"socket:[{inode}]" for inode in range(1, 6))]):
        (descriptors / str(descriptor)).symlink_to(target)
    assert connection_count(8001, tmp_path) == 2
    assert connection_count(8002, tmp_path) == 0
    assert connection_count(8001, tmp_path / "nowhere") is None


def test_connections_of_this_process_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connection_count(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            with accepted:
                assert connection_count(port) == 1


def test_threads_are_counted() -> None:
    """In a process of its own: gRPC's threads, of other tests, come and go in this one."""
    code = """
import threading
from foldserve.serving.observability.process_figures import thread_count
stop, before = threading.Event(), thread_count()
thread = threading.Thread(target=stop.wait)
thread.start()
print(thread_count() - before)
stop.set()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE
    )
    assert ended.stdout == "1\n"


def test_figures_are_none_without_proc(tmp_path: Path) -> None:
    assert thread_count(tmp_path) is None
