"""Describes the HTTP API as an OpenAPI 3.1 document: https://spec.openapis.org/oas/v3.1.0."""

from __future__ import annotations

import functools
import re
from typing import Any

from foldserve.serving.services.management import own_version
from foldserve.serving.transport.http.infer_format import JSON_LENGTH_HEADER
from foldserve.serving.transport.http.json_messages import IndexRequest, InferRequest, LoadRequest

_TEXT, _NUMBER, _BOOL = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_INTEGERS = {"type": "array", "items": {"type": "integer"}}
_OBJECT = {"type": "object"}
_ERROR = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
_TENSOR_FACTS: dict[str, Any] = {"name": _TEXT, "datatype": _TEXT, "shape": _INTEGERS}
_TENSOR = {"type": "object", "properties": _TENSOR_FACTS, "required": list(_TENSOR_FACTS)}
_TENSORS = {"type": "array", "items": _TENSOR}
# Values in binary are behind the JSON.
_VALUES = {"type": "array", "items": {"type": ["number", "string"]}}
_OUTPUTS = {"type": "array", "items": _TENSOR | {"properties": _TENSOR_FACTS | {"data": _VALUES}}}
_STATISTICS = {"type": "array", "items": _OBJECT}
_ENTRY = {
    "type": "object",
    "properties": {"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT},
    "required": ["name", "version", "state", "reason"],
}
_LABEL = {
    "type": "object",
    "properties": {"name": _TEXT, "index": {"type": "integer"}, "probability": _NUMBER},
    "required": ["name", "index", "probability"],
}
_READY = {"type": "object", "properties": {"ready": _BOOL}, "required": ["ready"]}
_ANSWERED = {"model_name": _TEXT, "model_version": _TEXT}

# The most that a query may ask for, as gRPC's uint32.
MOST_LABELS = 2**32 - 1

# What each path answers: a sentence, and the properties of the JSON.
_MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")


@functools.cache
def openapi_document() -> dict[str, Any]:
    """Return the document, as what JSON can hold."""
    paths = {
        "/openapi.json": {"get": _operation("This document", _OBJECT)},
        "/v2": {
            "get": _operation(
                "Name, version and extensions of the server",
                _object({"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}}),
            )
        },
        "/v2/health/live": {"get": _operation("Whether the process is alive", _object({"live": _BOOL}))},
        "/v2/health/ready": {
            "get": _operation(
                "Whether the server is ready: 200 or 503", _object({"ready": _BOOL}), also=(503,)
            )
        },
        "/v2/models/stats": {
            "get": _operation("Statistics of all models", _object({"model_stats": _STATISTICS}))
        },
        "/v2/repository/index": {
            "post": _operation(
                "The versions in the repository",
                {"type": "array", "items": _ENTRY},
                body=_json("IndexRequest"),
            )
        },
        "/v2/repository/models/{name}/load": {
            "post": _operation("Load a model from its folder", _OBJECT, body=_json("LoadRequest"))
        },
        "/v2/repository/models/{name}/unload": {
            "post": _operation("Stop serving a model", _OBJECT, body=_json("LoadRequest"))
        },
    }
    for model in _MODEL_PATHS:
        paths |= _of_model(model)
    for path, operations in paths.items():
        for operation in operations.values():
            operation["parameters"] = [*_path_parameters(path), *operation.get("parameters", [])]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "foldserve",
            "version": own_version(),
            "description": "The Open Inference Protocol's REST API, and classification of pictures.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _of_model(model: str) -> dict[str, dict[str, dict[str, Any]]]:
    metadata = _object({"name": _TEXT, "inputs": _TENSORS, "outputs": _TENSORS, "properties": _OBJECT})
    top_k = {
        "name": "top_k",
        "in": "query",
        "description": "Number of labels wanted, the likeliest first.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MOST_LABELS, "default": 1},
    }
    min_confidence = {
        "name": "min_confidence",
        "in": "query",
        "description": "Probability below which the answer is unknown.",
        "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    }
    request_id = {
        "name": "id",
        "in": "query",
        "description": "Any text; the answer has the same.",
        "schema": _TEXT,
    }
    json_length = {
        "name": JSON_LENGTH_HEADER,
        "in": "header",
        "description": "Length of the JSON part in bytes, if tensors follow it; 0 for a body of pixels.",
        "schema": {"type": "integer", "minimum": 0},
    }
    # Any type is accepted; generators of clients know this one, and leave the method out if it is */*.
    picture = {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "required": True,
    }
    classified = _object(
        _ANSWERED | {"model_sha256": _TEXT, "labels": {"type": "array", "items": _LABEL}},
    )
    return {
        model: {"get": _operation("Inputs, outputs and properties of a model", metadata)},
        f"{model}/ready": {"get": _operation("Whether a model serves: 200 or 503", _READY, also=(503,))},
        f"{model}/config": {"get": _operation("How a model is run", _object({"name": _TEXT}))},
        f"{model}/stats": {"get": _operation("Statistics of a model", _object({"model_stats": _STATISTICS}))},
        f"{model}/infer": {
            "post": _operation(
                "Run a model on tensors",
                _object(_ANSWERED | {"outputs": _OUTPUTS}),
                body=_json("InferRequest"),
                parameters=[json_length],
            )
        },
        f"{model}/classify": {
            "post": _operation(
                "Classify the picture that the body is: JPEG, PNG, WebP, GIF or BMP",
                classified,
                body=picture,
                parameters=[top_k, min_confidence, request_id],
            )
        },
    }


def _operation(
    summary: str,
    answer: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    also: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Return an operation; the statuses in ``also`` have the same answer as 200."""
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {
            str(status): {"description": summary, "content": {"application/json": {"schema": answer}}}
            for status in (200, *also)
        },
    }
    operation["responses"]["default"] = {
        "description": "What was wrong, what was expected and what to do.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if body is not None:
        operation["requestBody"] = body
    return operation


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(schema: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {"Error": _ERROR}
    for message_type in (InferRequest, IndexRequest, LoadRequest):
        schema = message_type.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[message_type.__name__] = schema
    return schemas
