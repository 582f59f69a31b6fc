"""Routes HTTP requests to RPCs; docs/http.md lists the paths, and `openapi` describes them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foldserve.serving.addresses import is_loopback
from foldserve.serving.errors import InvalidArgumentError, PermissionDeniedError, UnimplementedError
from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.unsupported import explain_path
from foldserve.serving.services.requests import ImageRequest, TensorRequest
from foldserve.serving.transport.http.infer_format import (
    JSON_LENGTH_HEADER,
    read_infer_request,
    read_pixels,
    write_infer_response,
)
from foldserve.serving.transport.http.json_messages import IndexRequest, LoadRequest, read_json
from foldserve.serving.transport.http.openapi import MOST_LABELS, openapi_document
from foldserve.serving.transport.http.plain import to_plain
from foldserve.serving.transport.http.statuses import NoPageError, WrongMethodError, to_response
from foldserve.text import quote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from foldserve.serving.repository.index import ModelIndex
    from foldserve.serving.transport.http.calls import Calls
    from foldserve.serving.transport.http.infer_format import ReadRequest

_PNG = b"\x89PNG\r\n\x1a\n"
_BINARY = "application/octet-stream"
_CALLER_GONE = 499


def make_app(calls: Calls, index: ModelIndex) -> Starlette:
    """Return the application; ``index`` finds the model that a body of pixels alone is for."""
    pages = _Pages(calls, index)
    route = partial(_route, calls)
    routes = [
        route("GET", "/openapi.json", pages.openapi),
        route("GET", "/v2", pages.server_metadata),
        route("GET", "/v2/health/live", pages.live),
        route("GET", "/v2/health/ready", pages.ready),
        route("GET", "/v2/models/stats", pages.statistics),
        route("POST", "/v2/repository/index", pages.index),
        route("POST", "/v2/repository/models/{name}/load", pages.load),
        route("POST", "/v2/repository/models/{name}/unload", pages.unload),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            route("GET", model, pages.model_metadata),
            route("GET", f"{model}/ready", pages.model_ready),
            route("GET", f"{model}/config", pages.model_config),
            route("GET", f"{model}/stats", pages.statistics),
            route("POST", f"{model}/infer", pages.infer),
            route("POST", f"{model}/classify", pages.classify),
        ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refuse_path})
    app.router.redirect_slashes = False
    return app


class _Pages:
    """Answers the paths."""

    def __init__(self, calls: Calls, index: ModelIndex) -> None:
        self._calls = calls
        self._index = index

    async def openapi(self, _: Request) -> Response:
        """Answer the OpenAPI document of all paths."""
        return JSONResponse(openapi_document())

    async def live(self, _: Request) -> Response:
        """Answer that the process is alive. Needs no token, like gRPC's health checks."""
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        """Answer whether the server is ready: 200 or 503, with the reasons. Needs no token."""
        reasons = self._calls.management.unready_reasons()
        plain = {"ready": not reasons} | ({"reasons": reasons} if reasons else {})
        return JSONResponse(plain, 503 if reasons else 200)

    async def server_metadata(self, request: Request) -> Response:
        """Answer the server's name, version and extensions."""
        return await self._manage(request, "ServerMetadata", lambda _: pb.ServerMetadataRequest())

    async def model_metadata(self, request: Request) -> Response:
        """Answer a model's inputs, outputs and properties."""
        return await self._manage(
            request, "ModelMetadata", lambda _: pb.ModelMetadataRequest(**_names(request))
        )

    async def model_ready(self, request: Request) -> Response:
        """Answer whether a model serves: 200 or 503, or 404 with the models that there are."""

        def read(_: bytes) -> pb.ModelReadyRequest:
            return pb.ModelReadyRequest(**_names(request))

        answer = await self._calls.manage(request, "ModelReady", read)
        is_ready = to_plain(answer)["ready"]
        if not is_ready:
            names = _names(request)
            self._index.is_ready(names["name"], names.get("version", ""))  # raises if it is not there
        return JSONResponse(
            {"name": request.path_params["name"], "ready": is_ready}, 200 if is_ready else 503
        )

    async def model_config(self, request: Request) -> Response:
        """Answer how a model is run, as Triton's model configuration."""

        def read(_: bytes) -> pb.ModelConfigRequest:
            return pb.ModelConfigRequest(**_names(request))

        return JSONResponse(to_plain(await self._calls.manage(request, "ModelConfig", read))["config"])

    async def statistics(self, request: Request) -> Response:
        """Answer the statistics of one version, of one model or of all."""
        return await self._manage(
            request, "ModelStatistics", lambda _: pb.ModelStatisticsRequest(**_names(request))
        )

    async def index(self, request: Request) -> Response:
        """List the versions in the repository."""

        def read(body: bytes) -> pb.RepositoryIndexRequest:
            return pb.RepositoryIndexRequest(ready=read_json(IndexRequest, body).ready)

        return JSONResponse(to_plain(await self._calls.manage(request, "RepositoryIndex", read))["models"])

    async def load(self, request: Request) -> Response:
        """Load a model from its folder."""

        def read(body: bytes) -> pb.RepositoryModelLoadRequest:
            message = pb.RepositoryModelLoadRequest(model_name=request.path_params["name"])
            for name in read_json(LoadRequest, body).parameters:
                message.parameters[name].SetInParent()
            return message

        return await self._manage(request, "RepositoryModelLoad", read)

    async def unload(self, request: Request) -> Response:
        """Stop serving a model."""

        def read(body: bytes) -> pb.RepositoryModelUnloadRequest:
            read_json(LoadRequest, body)
            return pb.RepositoryModelUnloadRequest(model_name=request.path_params["name"])

        return await self._manage(request, "RepositoryModelUnload", read)

    async def infer(self, request: Request) -> Response:
        """Run a model on tensors; see `infer_format`."""
        names = _names(request)
        name, version = names["name"], names.get("version", "")
        read: ReadRequest | None = None

        def read_message(body: bytes) -> pb.ModelInferRequest:
            nonlocal read
            length = request.headers.get(JSON_LENGTH_HEADER)
            if length == "0":
                read = read_pixels(body, self._index.find(name, version).input, name, version)
            else:
                read = read_infer_request(body, length, name, version)
            return read.message

        answer = await self._calls.infer(request, TensorRequest, read_message)
        assert read is not None
        content, json_length = write_infer_response(answer, read)
        if json_length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={JSON_LENGTH_HEADER: str(json_length)}, media_type=_BINARY)

    async def classify(self, request: Request) -> Response:
        """Classify the picture that the body is; the query takes ``top_k`` and ``min_confidence``."""
        names = _names(request)

        def read(body: bytes) -> classifier_pb2.ClassifyRequest:
            _check_picture(body)
            return classifier_pb2.ClassifyRequest(
                model_name=names["name"],
                model_version=names.get("version", ""),
                id=request.query_params.get("id", ""),
                images=[body] if body else [],
                top_k=_top_k(request.query_params.get("top_k", "1")),
                min_confidence=_min_confidence(request.query_params.get("min_confidence", "0")),
            )

        answer = await self._calls.infer(request, ImageRequest, read)
        plain = to_plain(classifier_pb2.ClassifyResponse.FromString(answer))
        (result,) = plain.pop("results")
        return JSONResponse(plain | result)

    async def _manage(self, request: Request, method: str, read: Callable[[bytes], Any]) -> Response:
        return JSONResponse(to_plain(await self._calls.manage(request, method, read)))


def _names(request: Request) -> dict[str, str]:
    return {key: request.path_params[key] for key in ("name", "version") if key in request.path_params}


def _check_picture(body: bytes) -> None:
    """Refuse what is commonly sent in place of a picture; no format of pictures begins like it."""
    begin = body[:64].lstrip()
    if begin.startswith(b"--"):
        what = "a form (multipart/form-data)"
    elif begin.startswith((b"{", b"[")):
        what = "JSON"
    elif begin.startswith(b"data:"):
        what = "a data URL"
    elif begin.startswith(b"\x89PNG") and not begin.startswith(_PNG):
        what = "a PNG that lost its line ends on the way, as curl --data takes them out"
    else:
        return
    raise InvalidArgumentError(
        f"the body is {what}; send the picture itself as the body (curl --data-binary @picture.png), or send "
        "tensors or encoded images to /infer"
    )


def _top_k(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= MOST_LABELS):
        raise InvalidArgumentError(
            f"top_k is {quote(text)}; send the number of labels wanted, from 1 to {MOST_LABELS}"
        )
    return int(text)


def _min_confidence(text: str) -> float:
    try:
        return float(text)  # its range is checked where gRPC's is
    except ValueError:
        raise InvalidArgumentError(
            f"min_confidence is {quote(text)}; send a probability from 0 to 1, or leave it out"
        ) from None


def _route(calls: Calls, method: str, path: str, answer: Callable[[Request], Awaitable[Response]]) -> Route:
    async def guarded(request: Request) -> Response:
        try:
            _check_origin(request, is_for_this_machine=calls.is_for_this_machine)
            return await answer(request)
        except ClientDisconnect:
            return Response(status_code=_CALLER_GONE)  # which nobody receives
        except Exception as error:  # becomes a status, and is logged if unexpected
            return to_response(error)

    return Route(path, guarded, methods=[method], name=f"{method} {path}")


def _check_origin(request: Request, *, is_for_this_machine: bool) -> None:
    """Refuse calls that a web page of another site makes through its visitor's browser.

    Such calls reach a server on loopback that nobody else can reach. Browsers name the page in Origin; other
    clients send no such header. A page whose own name its site lets resolve to 127.0.0.1 has an origin that
    is the server's: it is told by the name.

    Raises:
        PermissionDeniedError: the call comes from a page of another origin.
    """
    origin = request.headers.get("origin")
    if origin is None:
        return
    host = request.headers.get("host", "")
    if origin.partition("://")[2] != host or (is_for_this_machine and not is_loopback(_name_in(host))):
        raise PermissionDeniedError(
            f"calls from web pages of {quote(origin)} are not accepted; call from a program, or through a "
            "proxy of that origin"
        )


def _name_in(host: str) -> str:
    """Return the name or address in a header Host, without the port; "" if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = quote(request.url.path)
    if error.status_code == 405:
        # Starlette has them in the order of a set.
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "another method").split(", ")))
        response = to_response(WrongMethodError(f"{path} takes {allowed}, not {quote(request.method)}"))
        response.headers["Allow"] = allowed
        return response
    if (why := explain_path(request.url.path)) is not None:
        return to_response(UnimplementedError(why))
    return to_response(
        NoPageError(f"no page {path}; the API is under /v2, and /openapi.json describes all of it")
    )
