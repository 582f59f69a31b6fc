"""What strangers may do to the REST API: sizes, slowness, tokens, TLS, web pages, the end of the server."""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from foldserve.serving.security.tokens import Caller, create_token, to_line
from foldserve.serving.transport.http.openapi import openapi_document
from tests.support.artifacts import TinyNetwork
from tests.support.certificates import Authority
from tests.support.encoded_images import encode
from tests.support.held_server import HeldServer
from tests.support.http_calls import binary_body, call, json_body
from tests.support.repository_changes import eventually
from tests.support.scrape import scrape
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INFER = "/v2/models/tiny/infer"
IMAGES = TinyNetwork(seed=2).random_images(2)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def strict_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that accepts 1 MiB and little delay."""
    folder = tmp_path_factory.mktemp("http-limits")
    module = "tests.support.impatient_http_server"
    with ServerProcess(repository, folder, "--http", "--max-message-mib", "1", module=module) as process:
        yield process


def assert_serves(server: ServerProcess) -> None:
    assert call(server.api_address, INFER, json_body(IMAGES)).status == 200
    assert "Traceback" not in server.log


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionError:  # closed while we had more to send
        pass
    return received


def connect(server: ServerProcess) -> socket.socket:
    host, _, port = server.api_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_body_over_the_limit_is_refused_before_it_is_read(strict_server: ServerProcess) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {100 * MIB}\r\n\r\n"
    with connect(strict_server) as connection:
        connection.sendall(head.encode())
        answer = receive_all(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"the server accepts at most 1048576: send fewer images per request" in answer
    assert_serves(strict_server)


def test_client_that_sends_all_of_a_body_over_the_limit_is_told(strict_server: ServerProcess) -> None:
    """As most clients do: they read the answer only then."""
    answer = call(strict_server.api_address, INFER, bytes(16 * MIB))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert "the server accepts at most 1048576" in answer.error


def test_chunks_over_the_limit_are_refused(strict_server: ServerProcess) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(strict_server) as connection:
        connection.sendall(head.encode())
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(64):
            connection.sendall(chunk)
        answer = receive_all(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert_serves(strict_server)


def test_compressed_body_is_unpacked_no_further_than_the_limit(strict_server: ServerProcess) -> None:
    headers = {"Content-Encoding": "gzip"}
    packed = gzip.compress(json_body(IMAGES).encode())
    for name in ("gzip", "GZip", "x-gzip"):
        named = {"Content-Encoding": name}
        assert call(strict_server.api_address, INFER, packed, headers=named).status == 200
    bomb = call(strict_server.api_address, INFER, gzip.compress(bytes(50 * MIB)), headers=headers)
    assert bomb.status == 413
    assert "decompress to more than 1048576" in bomb.error
    for encoding, body in (("br", packed), ("gzip", b"hello")):
        wrong = call(strict_server.api_address, INFER, body, headers={"Content-Encoding": encoding})
        assert wrong.status == 400
    pixels = gzip.compress(IMAGES.tobytes() * 64)
    alone = headers | {"Inference-Header-Content-Length": "0"}
    assert call(strict_server.api_address, INFER, pixels, headers=alone).status == 200
    for damaged, how in (
        (packed[: len(packed) // 2] + b"\xff" * 20, headers),
        (pixels[:-1], alone),
        (pixels + pixels, alone),
    ):
        answer = call(strict_server.api_address, INFER, damaged, headers=how)
        assert answer.status == 400
        assert answer.error == "the body's gzip is damaged, or part of it is missing; send it again"
    assert_serves(strict_server)


def test_slow_body_is_refused_and_others_are_answered(strict_server: ServerProcess) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with connect(strict_server) as slow:
        slow.sendall(head.encode() + b'{"in')
        assert_serves(strict_server)
        answer = receive_all(slow)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"4 bytes of the body arrived within" in answer


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HT", b"GET /v2 HTTP/1.1\r\nHost: x\r\n"])
def test_slow_head_is_closed(strict_server: ServerProcess, sent: bytes) -> None:
    with connect(strict_server) as slow:
        slow.sendall(sent)
        assert receive_all(slow) == b""
    assert_serves(strict_server)


def test_large_head_is_closed(strict_server: ServerProcess) -> None:
    with connect(strict_server) as connection:
        try:
            connection.sendall(b"GET /v2 HTTP/1.1\r\n")
            for index in range(64):
                connection.sendall(b"X-%d: " % index + b"y" * 16_000 + b"\r\n")
        except ConnectionError:  # the server has closed it
            pass
        assert not receive_all(connection).startswith(b"HTTP/1.1 200")
    assert_serves(strict_server)


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 5000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"",
    ],
    ids=["zeros", "HTTP/2", "TLS", "nothing"],
)
def test_server_survives_bytes_that_are_not_http(strict_server: ServerProcess, content: bytes) -> None:
    connections = [connect(strict_server) for _ in range(20)]
    for connection in connections:
        connection.sendall(content)
    assert_serves(strict_server)
    for connection in connections:
        connection.close()
    assert_serves(strict_server)
    assert "uvicorn" not in strict_server.log


@pytest.mark.parametrize(
    "path", ["/", "/v2/", "/v2/models", "/v2/models/tiny/", "/v3", "/v2/models/tiny/x/y"]
)
def test_unknown_paths_are_refused_with_what_to_do(strict_server: ServerProcess, path: str) -> None:
    answer = call(strict_server.api_address, path)
    assert answer.status == 404
    assert "/openapi.json describes all of it" in answer.error


def test_wrong_method_is_refused_with_the_right_one(strict_server: ServerProcess) -> None:
    answer = call(strict_server.api_address, INFER, method="DELETE")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error == f"'{INFER}' takes POST, not 'DELETE'"
    answer = call(strict_server.api_address, "/v2", "", method="PUT")
    assert answer.error == "'/v2' takes GET, HEAD, not 'PUT'"


def test_web_pages_of_other_sites_are_refused(strict_server: ServerProcess) -> None:
    """A page that somebody visits must not unload the models of the server on his machine."""
    path = "/v2/repository/models/tiny/unload"
    answer = call(strict_server.api_address, path, "", headers={"Origin": "https://example.org"})
    assert answer.status == 403
    assert "calls from web pages of 'https://example.org' are not accepted" in answer.error
    port = strict_server.api_address.rpartition(":")[2]
    for name, status in (
        (f"127.0.0.1:{port}", 200),
        ("localhost", 200),
        (f"[::1]:{port}", 200),
        # The site's own name, which it lets resolve to 127.0.0.1.
        (f"example.org:{port}", 403),
        (f"localhost.example.org:{port}", 403),
        ("10.0.0.1", 403),
        ("[", 403),
    ):
        headers = {"Origin": f"http://{name}", "Host": name}
        answer = call(strict_server.api_address, "/v2/repository/index", "", headers=headers)
        assert answer.status == status, name
        without = call(strict_server.api_address, "/v2", headers={"Host": f"example.org:{port}"})
        assert without.status == 200, "a proxy may pass on the name that it was called by"
    assert_serves(strict_server)


def test_a_server_for_others_may_have_any_name(repository: Path, tmp_path: Path) -> None:
    headers = {"Origin": "http://example.org", "Host": "example.org"}
    with ServerProcess(repository, tmp_path / "server", "--http", "--host", "0.0.0.0") as server:
        assert call(server.api_address, "/v2/repository/index", "", headers=headers).status == 200


def test_document_describes_every_path_and_every_answer(strict_server: ServerProcess) -> None:
    document = call(strict_server.api_address, "/openapi.json").plain
    assert document == json.loads(json.dumps(openapi_document()))
    calls = {
        "/v2": None,
        "/v2/health/live": None,
        "/v2/health/ready": None,
        "/v2/models/stats": None,
        "/v2/repository/index": "",
        "/v2/models/{name}": None,
        "/v2/models/{name}/ready": None,
        "/v2/models/{name}/config": None,
        "/v2/models/{name}/stats": None,
        "/v2/models/{name}/infer": json_body(IMAGES),
        "/v2/models/{name}/classify": encode(IMAGES[0, 0]),
    }
    described = set(document["paths"])
    for path, body in calls.items():
        for form in {path, path.replace("{name}", "{name}/versions/{version}")}:
            answer = call(
                strict_server.api_address, form.replace("{name}", "tiny").replace("{version}", "1"), body
            )
            (operation,) = document["paths"][form].values()
            schema = operation["responses"][str(answer.status)]["content"]["application/json"]["schema"]
            Draft202012Validator(schema).validate(answer.plain)
            described.discard(form)
    assert described == {
        "/openapi.json",
        "/v2/repository/models/{name}/load",
        "/v2/repository/models/{name}/unload",
    }
    classify = document["paths"]["/v2/models/{name}/classify"]["post"]["parameters"]
    assert {each["name"] for each in classify if each["in"] == "query"} == {"top_k", "min_confidence", "id"}
    answer = call(strict_server.api_address, "/v2/models/tiny/classify?id=7", encode(IMAGES[0, 0]))
    assert answer.plain["id"] == "7"


def test_document_can_be_read_by_generators_of_clients() -> None:
    """openapi-python-client leaves out bodies of any type, and answers with arrays of anything."""

    def nodes(part: Any) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            yield part
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from nodes(inner)

    document = openapi_document()
    arrays = [node for node in nodes(document) if node.get("type") == "array"]
    assert len(arrays) > 5
    assert all("items" in node for node in arrays)
    bodies = [node["requestBody"]["content"] for node in nodes(document["paths"]) if "requestBody" in node]
    assert {tuple(content) for content in bodies} == {("application/json",), ("application/octet-stream",)}


def test_request_schema_accepts_what_the_server_accepts(strict_server: ServerProcess) -> None:
    document = call(strict_server.api_address, "/openapi.json").plain
    schema = {"$ref": "#/components/schemas/InferRequest", "components": document["components"]}
    validator = Draft202012Validator(schema)
    assert validator.is_valid(json.loads(json_body(IMAGES, id="1", parameters={"timeout": 10_000_000})))
    assert not validator.is_valid({"inputs": [{"name": 1, "datatype": "UINT8", "shape": []}]})


def test_readiness_is_told_by_the_status(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with ServerProcess(tmp_path / "models", tmp_path / "server", "--http") as server:
        assert call(server.api_address, "/v2/health/live").status == 200
        ready = call(server.api_address, "/v2/health/ready")
        assert (ready.status, ready.plain) == (503, {"ready": False, "reasons": ["no model serves"]})
        answer = call(server.api_address, INFER, json_body(IMAGES))
        assert answer.status == 404


def test_tokens_are_asked_for_as_over_grpc(repository: Path, tmp_path: Path) -> None:
    infer, admin = create_token(), create_token()
    lines = [to_line(Caller("ci", "infer"), infer), to_line(Caller("ops", "admin"), admin)]
    (tmp_path / "tokens").write_text("\n".join(lines))
    flags = ("--http", "--tokens", str(tmp_path / "tokens"))
    unload = "/v2/repository/models/nope/unload"
    with ServerProcess(repository, tmp_path / "server", *flags) as server:

        def status(path: str, body: str | None, token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return call(server.api_address, path, body, headers=headers).status

        for path, body in ((INFER, json_body(IMAGES)), ("/v2", None), ("/v2/models/tiny", None)):
            found = [status(path, body, token) for token in (None, "wrong", infer, admin)]
            assert found == [401, 401, 200, 200], path
        assert [status(unload, "", token) for token in (None, infer, admin)] == [401, 403, 404]
        assert status("/v2/health/ready", None, None) == 200
        assert "RepositoryModelUnload by ops" in server.log


def test_tls_is_that_of_grpc_and_follows_new_certificates(repository: Path, tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    pair = first.sign("server")
    flags = ("--http", "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        address = server.api_address
        trusting = ssl.create_default_context(cafile=str(first.ca))
        assert call(address, INFER, json_body(IMAGES), tls=trusting).status == 200
        for path, body in (("/v2", None), (INFER, json_body(IMAGES))):
            plain = call(address, path, body)
            assert (plain.status, plain.error) == (400, "this port speaks TLS; call it with https://")
        with pytest.raises(ssl.SSLCertVerificationError):
            call(address, "/v2", tls=ssl.create_default_context(cafile=str(second.ca)))
        assert re.search(r"the REST API on https://", server.log)
        second.sign("server")  # writes the same files

        def is_new() -> bool:
            try:
                call(address, "/v2", tls=ssl.create_default_context(cafile=str(second.ca)))
            except ssl.SSLError:
                return False
            return True

        eventually(is_new, "the new certificate is used")


def test_mutual_tls_wants_a_client_certificate(repository: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "own")
    pair, client = authority.sign("server"), authority.sign("client", "client@example.org")
    flags = ["--http", "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    flags += ["--tls-client-ca", str(authority.ca)]
    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        known = ssl.create_default_context(cafile=str(authority.ca))
        with pytest.raises(OSError):  # noqa: PT011  # by the TLS version: an alert, or a reset
            call(server.api_address, "/v2", tls=known)
        known.load_cert_chain(client.certificate, client.key)
        assert call(server.api_address, "/v2", tls=known).status == 200


def test_running_call_is_answered_when_the_server_ends(tmp_path: Path) -> None:
    network = TinyNetwork()
    network.publish(tmp_path / "models" / "tiny")
    images = network.random_images(2)
    with HeldServer(tmp_path / "models", tmp_path / "server", "--http") as server:
        server.hold()
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(call(server.api_address, INFER, json_body(images)))
        )
        asking.start()
        server.wait_until_held()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in server.log, "the server drains")
        refused = call(server.api_address, INFER, json_body(images))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.error == "the server is draining; try again, or use another server"
        server.release()
        asking.join(timeout=60)
        assert server.process.wait(timeout=60) == 0
    (answer,) = answers
    outputs = {output["name"]: output["data"] for output in answer.plain["outputs"]}
    assert np.abs(np.reshape(outputs["logits"], (2, 3)) - network.logits(images)).max() < 1e-5


def test_caller_who_hangs_up_cancels_his_request(tmp_path: Path) -> None:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    with HeldServer(tmp_path / "models", tmp_path / "server", "--http") as server:
        server.hold()
        body = json_body(IMAGES)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with connect(server) as first:
            first.sendall((head + body).encode())
            server.wait_until_held()
            with connect(server) as second:  # waits behind the first
                second.sendall((head + body).encode())
                eventually(lambda: scrape(server).total("foldserve_pending_requests") >= 1, "it waits")
            server.release()
            assert first.recv(20).startswith(b"HTTP/1.1 200")

        def cancelled() -> bool:
            stats = call(server.api_address, "/v2/models/tiny/stats").plain["model_stats"][0]
            return int(stats["inference_stats"]["fail"]["count"]) == 1

        eventually(cancelled, "the second request is counted as failed")
        assert "Traceback" not in server.log


def test_caller_who_hangs_up_while_he_sends_is_no_fault_of_the_server(strict_server: ServerProcess) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with connect(strict_server) as connection:
        connection.sendall(head.encode() + b'{"in')

    def counts(code: str) -> float:
        return scrape(strict_server).total("foldserve_requests_total", code=code)

    eventually(lambda: counts("CANCELLED") == 1, "the call is counted as cancelled")
    assert counts("INTERNAL") == 0
    assert_serves(strict_server)


def test_port_in_use_is_explained(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ("--http", "--http-port", str(taken.getsockname()[1]))
        with pytest.raises(AssertionError, match=r"for HTTP: another server uses the port[^\n]*--http-port"):
            ServerProcess(repository, tmp_path / "server", *flags)


def test_binary_answers_are_bounded_by_what_was_asked(strict_server: ServerProcess) -> None:
    body, headers = binary_body(IMAGES)
    wrong = headers | {"Inference-Header-Content-Length": str(len(body) + 1)}
    answer = call(strict_server.api_address, INFER, body, headers=wrong)
    assert answer.status == 400
    assert f"at most the body's {len(body)}" in answer.error
