"""Describes the files of a model version, from the schema that checks them."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from docsite.reference.json_schema import in_words
from docsite.reference.markdown import code, docstring, head, table
from foldserve.artifact import format as artifact
from foldserve.artifact.schema import SCHEMA_VERSION, ManifestSchema, MetadataSchema

if TYPE_CHECKING:
    from pydantic import BaseModel

_MIB = 2**20
_TEXT = f"""\
A version is a folder `REPOSITORY/NAME/VERSION/`; `foldserve export` writes it, and a server
checks all of it before it answers. Only the folders name model and version, so a version can
be copied or renamed. This is schema {SCHEMA_VERSION}."""
_TENSORS = (
    (code(artifact.IMAGE), "input", "UINT8 [N, C, H, W]", "pixels, 0 to 255"),
    (code(artifact.LOGITS), "output", "FP32 [N, K]", "one number per class"),
    (code(artifact.PROBABILITIES), "output", "FP32 [N, K]", "softmax(logits / temperature)"),
)


def page() -> str:
    """Return the page."""
    files = (
        (artifact.MODEL_FILE, artifact.MAX_MODEL_BYTES, "the network, normalisation and softmax included"),
        (artifact.GOLDEN_FILE, artifact.MAX_GOLDEN_BYTES, "images with the logits that they must give"),
        (artifact.README_FILE, artifact.MAX_README_BYTES, "the model card, for people; may be missing"),
        (artifact.MANIFEST_FILE, artifact.MAX_MANIFEST_BYTES, "hashes, and how all was made and checked"),
    )
    return "\n".join(
        [
            head("Files of a version", _TEXT),
            table(
                ("file", "at most", "holds"),
                [(code(name), f"{limit // _MIB:,} MiB", text) for name, limit, text in files],
            ),
            f"## Tensors of {artifact.MODEL_FILE}\n",
            table(("name", "", "type and shape", ""), _TENSORS),
            f"## Metadata in {artifact.MODEL_FILE}\n",
            docstring(artifact.ModelMetadata),
            "",
            _schema(MetadataSchema, "foldserve."),
            "`foldserve.schema` is the schema's number; `foldserve.provenance.*` is free text for people.\n",
            f"## {artifact.GOLDEN_FILE}\n",
            docstring(artifact.Golden),
            "",
            table(
                ("array", "type"),
                [(code(each.name), code(_plain(str(each.type)))) for each in fields(artifact.Golden)],
            ),
            f"## {artifact.MANIFEST_FILE}\n",
            "Servers read `schema_version` and these fields. All others (`parity`, `accuracy`,",
            "`calibration`, `precision_trials`, ...) tell people how the version was made and checked.\n",
            _schema(ManifestSchema, ""),
        ]
    )


def _schema(model: type[BaseModel], prefix: str) -> str:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    rows = [
        (
            code(prefix + name),
            in_words(facts, definitions),
            "yes" if name in schema.get("required", ()) else "no",
        )
        for name, facts in schema["properties"].items()
    ]
    return table(("field", "JSON", "required"), rows)


def _plain(text: str) -> str:
    return text.replace("NDArray[np.", "array of ").replace("]", "")
