"""The server's log: JSON for machines, lines for people, one line per request at debug only."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from foldserve.demo.children import ending_with_us
from foldserve.serving.client.sync_client import Client
from foldserve.serving.observability.logs import LineFormatter
from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.imaging.test_metadata import EXIF, HOLDERS
from tests.support.artifacts import TinyNetwork
from tests.support.fragile_network import BREAKS, FragileNetwork
from tests.support.repository_changes import eventually
from tests.support.server_process import DEVICE, PROVIDER, SOURCE, ServerProcess, infer_request, status_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from google.protobuf.message import Message

# Control characters, marks that turn the direction of writing, line separators, invisible and private ones.
UNPRINTABLE = (
    "\x00\x07\x1b\x7f\x85\x9b\xad\u061c\u200b\u200e\u2028\u2029\u202e\u2066\u2069\ufeff\ue000\U000e0041"
)
FORGED = "seven\n2026-01-01 00:00:00 INFO serving.server: drained"


def _wrong_requests(text: str) -> list[pb.ModelInferRequest]:
    """Return requests that are wrong, each with ``text`` at another place where it may be shown."""
    image = TinyNetwork(seed=2).random_images(1)
    shared = {text: {"string_param": text}, "shared_memory_region": {}}
    top_k = {"classification": {"string_param": text}}
    requests = [
        infer_request(image, text, id=text),
        infer_request(image, model_version=text),
        infer_request(image, outputs=[{"name": text}]),
        infer_request(image, outputs=[{"name": "logits", "parameters": top_k}]),
        infer_request(image, parameters={"timeout": {"string_param": text}}),
        infer_request(image, parameters={f"triton_{text}": {"bool_param": True}}),
    ]
    for changed in ({"name": text}, {"datatype": text}, {"parameters": shared}):
        request = infer_request(image)
        request.inputs[0].MergeFrom(pb.ModelInferRequest.InferInputTensor(**changed))
        requests.append(request)
    return requests


def failure_of(method: Callable[[Message], object], request: Message) -> str:
    """Return the message that a call fails with, if it does."""
    try:
        method(request)
    except grpc.RpcError as error:
        return error.details() or ""
    return ""


def lines_of(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_each_request_is_one_json_line_at_debug(tmp_path: Path, transport: str, repository: Path) -> None:
    image = TinyNetwork(seed=2).random_images(3)
    flags = ("--transport", transport, "--log-format", "json", "--log-level", "debug")
    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        server.infer(image, id=FORGED)
        status_of(lambda: server.infer(image, "nobody", id="eight"))
        classifier_pb2_grpc.ClassifierStub(server.channel).Classify(
            classifier_pb2.ClassifyRequest(model_name="tiny", images=[HOLDERS[1](b"")]), timeout=30
        )
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        lines = lines_of(server)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert not [line for line in lines if line["logger"].startswith("PIL")]
    messages = [line["message"] for line in lines if line["logger"] == "foldserve"]
    assert messages[0].startswith(f"listening on {server.address}")
    assert messages[1].startswith(f"serving on {server.address} ({PROVIDER}")
    answered, refused = (line for line in lines if "request_id" in line)
    assert answered["peer"].startswith("ipv4:127.0.0.1:") or transport == "grpcio"
    expected = {"level": "debug", "model": "tiny", "version": "2", "method": "ModelInfer", "code": "OK"}
    assert answered.items() >= (expected | {"request_id": FORGED, "rows": 3}).items()
    assert 0 < answered["queue_s"] + answered["compute_s"] < answered["total_s"]
    assert refused.items() >= {"model": "nobody", "request_id": "eight", "code": "NOT_FOUND"}.items()


def test_requests_are_not_logged_at_info(server: ServerProcess, network: TinyNetwork) -> None:
    server.infer(network.random_images(1), id="an-id-of-its-own")
    assert "an-id-of-its-own" not in server.log


def test_request_ids_cannot_forge_log_lines(tmp_path: Path, repository: Path) -> None:
    with ServerProcess(repository, tmp_path / "server", "--log-level", "debug") as server:
        server.infer(TinyNetwork(seed=2).random_images(1), id=FORGED)
        assert f"foldserve: serving on {server.address} ({PROVIDER}, " in server.log
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        lines = server.log.splitlines()
    assert [line for line in lines if "seven" in line and "ModelInfer 'tiny/2' OK id 'seven" in line]
    assert not [line for line in lines if line.startswith("2026-01-01 00:00:00 INFO")]


STRAY = """
import gc, logging, sys, threading, warnings
from foldserve.serving.observability.logs import announce, log_to_stderr

log_to_stderr("info", "json")
warnings.warn("a library's warning\\nof two lines", UserWarning)
warnings.warn("another", RuntimeWarning)
logging.getLogger("library").error("a library's error")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()


class Unraisable:
    def __del__(self) -> None:
        raise RuntimeError("in a destructor")


Unraisable()
gc.collect()
announce("something is loading", "json")
raise KeyError("nobody catches this")
"""


def test_every_line_of_a_json_log_is_json() -> None:
    """Warnings and exceptions that nobody catches, of libraries as well; no warning tells a path."""
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", STRAY], capture_output=True, check=False, cwd=SOURCE
    )
    lines = [json.loads(line) for line in (ended.stderr + ended.stdout).decode().splitlines()]
    messages = [line["message"] for line in lines]
    assert messages[:3] == [
        "UserWarning: a library's warning\nof two lines",
        "RuntimeWarning: another",
        "a library's error",
    ]
    assert "ended by an exception" in messages[3]
    assert "ZeroDivisionError" in lines[3]["traceback"]
    assert "in a destructor" in lines[4]["traceback"]
    assert "nobody catches this" in lines[5]["traceback"]
    assert lines[6]["message"].endswith("is loading")
    assert len(lines) == 7
    assert ended.returncode == 1


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_no_library_writes_past_the_json_log(tmp_path: Path, transport: str) -> None:
    """A run that fails, pictures with odd metadata, bytes that are no HTTP/2: each has made one write."""
    network = FragileNetwork(seed=5)
    network.publish(tmp_path / "models" / "tiny")
    flags = ("--transport", transport, "--log-format", "json")
    with ServerProcess(tmp_path / "models", tmp_path / "server", *flags) as server:
        status_of(lambda: server.infer(network.image_that(BREAKS)))
        images = [holder(exif) for holder in HOLDERS for exif, _ in EXIF.values()]
        classifier_pb2_grpc.ClassifierStub(server.channel).Classify(
            classifier_pb2.ClassifyRequest(model_name="tiny", images=images), timeout=60
        )
        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"garbage" * 100)
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        assert all("message" in line for line in lines_of(server))


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_repository_whose_path_is_not_utf8_is_served(tmp_path: Path, log_format: str) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    TinyNetwork(seed=2).publish(folder / "tiny")
    with ServerProcess(folder, tmp_path / "server", "--log-format", log_format) as server:
        server.infer(TinyNetwork(seed=2).random_images(1))
        assert "xe9" in server.log or "udce9" in server.log, "and all of it is UTF-8"
        if log_format == "json":
            assert lines_of(server)


def test_server_runs_on_if_nobody_reads_its_output(tmp_path: Path, repository: Path) -> None:
    """`foldserve serve | head -1`: the server runs on although nobody reads the other lines."""
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "foldserve", "serve", "--repository", str(repository), "--no-metrics"]
    command += ["--port", "0", "--port-file", str(port_file), "--device", DEVICE]
    pipe = subprocess.PIPE
    with subprocess.Popen(ending_with_us(command), stdout=pipe, stderr=pipe, cwd=SOURCE) as process:
        assert process.stdout is not None
        assert b"listening" in process.stdout.readline()
        process.stdout.close()
        with Client(f"127.0.0.1:{port_file.read_text().strip()}", connect_timeout_s=30) as client:
            eventually(lambda: any(entry.state == "READY" for entry in client.index()), "serve")
        assert process.poll() is None
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log.decode()
    assert b"Traceback" not in log


@pytest.mark.parametrize("transport", ["grpcio", "native"])
@pytest.mark.parametrize("log_format", ["human", "json"])
def test_callers_texts_are_escaped_in_logs_and_messages(
    tmp_path: Path, transport: str, log_format: str, repository: Path
) -> None:
    """Wherever it stands in a request: no character reaches a terminal that would move what stands after."""
    text = f"before{UNPRINTABLE}after"
    image = TinyNetwork(seed=2).random_images(1)
    flags = ("--transport", transport, "--log-format", log_format, "--log-level", "debug")
    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        server.infer(image, id=text)
        calls = [(server.stub.ModelInfer, request) for request in _wrong_requests(text)]
        calls += [
            (server.stub.ModelMetadata, pb.ModelMetadataRequest(name=text)),
            (server.stub.ModelReady, pb.ModelReadyRequest(name=text)),
            (server.stub.ModelConfig, pb.ModelConfigRequest(name=text)),
            (server.stub.ModelStatistics, pb.ModelStatisticsRequest(name=text)),
            (server.stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=text)),
            (server.stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=text)),
        ]
        answers = [failure_of(method, request) for method, request in calls]
        requests = iter([infer_request(image, text, id=text)])
        (streamed,) = server.stub.ModelStreamInfer(requests)
        answers.append(streamed.error_message)
        request = classifier_pb2.ClassifyRequest(model_name="tiny", id=text, images=[text.encode()])
        stub = classifier_pb2_grpc.ClassifierStub(server.channel)
        answers.append(failure_of(stub.Classify, request))
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        log = server.log
    for written in (*answers, *log.split("\n")):
        assert written.isprintable(), ascii(written)
    assert all("before" in answer for answer in answers[:8]), answers
    if log_format == "json":
        assert text in {json.loads(line).get("request_id") for line in log.splitlines()}


def test_tracebacks_cannot_forge_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("tests.forged")
    log.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    log.addHandler(handler)
    log.error("failed: %s", FORGED, exc_info=ValueError(FORGED + UNPRINTABLE))
    first, *others = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert first.endswith("drained")
    assert others
    assert all(line.startswith("  ") and line.isprintable() for line in others)
