"""Defines and checks the fields of ``manifest.json`` and of a model's metadata.

The texts are untrusted: anybody who can write to the repository may have written them. Values that are passed
on must suit every reader: numbers are finite and of the exact type, texts are UTF-8 without control
characters. JSON is parsed by pydantic, which refuses deep nesting and endless numbers with one kind of error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, Json, ValidationError, model_validator
from pydantic_core import from_json

from foldserve.errors import ArtifactError
from foldserve.text import is_legible, quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

SCHEMA_VERSION = 1

# Range of the temperature by which logits are divided before the softmax. Beyond it all probabilities would
# be nearly equal, or nearly 0 and 1; no fit that ends there can be trusted.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0

# Most faults listed in a message.
_NAMED_FAULTS = 3
_SHOWN_CHARACTERS = 80


def _check_legible(text: str) -> str:
    if not is_legible(text):
        raise ValueError("text must not have control characters")
    return text


_Text = Annotated[str, AfterValidator(_check_legible)]
NetworkChannelOrder = Literal["L", "RGB", "BGR"]
_PerChannel = Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=3)]


class FileSchema(BaseModel, frozen=True, strict=True):
    """Describes a file's entry in the manifest."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)] | None = None


class ManifestSchema(BaseModel, frozen=True, strict=True):
    """Describes the fields of a manifest that are used; the others are for people."""

    files: dict[str, FileSchema]
    precision: Annotated[_Text, Field(max_length=32)] = ""


class _Resize(BaseModel, frozen=True, strict=True):
    crop: tuple[int, int]
    shorter_side: int | None = None
    interpolation: Literal["bilinear"] = "bilinear"
    decode: Literal["full", "scaled"] = "full"
    # Absent from files from before there were several rules.
    fit: Literal["crop", "pad", "stretch"] | None = None

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        if self.fit is None and self.shorter_side is None:
            raise ValueError("shorter_side: Field required")
        if self.fit is not None and self.shorter_side not in (None, max(self.crop)):
            raise ValueError(f"shorter_side is {self.shorter_side}, which contradicts fit {self.fit}")
        return self

    @property
    def longest_side(self) -> int:
        """The ``resize_shorter_side`` of `ImageSpec`."""
        return max(self.crop) if self.shorter_side is None else self.shorter_side


class MetadataSchema(BaseModel, frozen=True, strict=True):
    """Describes a model's metadata entries: each is JSON text, except the orders of channels."""

    labels: Json[Annotated[tuple[_Text, ...], Field(min_length=1)]]
    mean: Json[_PerChannel]
    std: Json[Annotated[tuple[Annotated[FiniteFloat, Field(gt=0)], ...], Field(min_length=1, max_length=3)]]
    resize: Json[_Resize]
    channel_order: Literal["L", "RGB"]
    network_channel_order: NetworkChannelOrder | None = None
    # Absent from files without calibration, and from those of earlier releases.
    temperature: Json[Annotated[FiniteFloat, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]] = 1.0

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> Self:
        count = len(self.channel_order)
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != count:
                raise ValueError(f"{name} has {len(numbers)} numbers for {count} channels")
        if self.network_channel_order is not None and len(self.network_channel_order) != count:
            raise ValueError(f"network_channel_order is {self.network_channel_order} for {count} channels")
        return self


def parse_manifest(content: bytes, where: str) -> tuple[dict[str, Any], ManifestSchema]:
    """Return a manifest as a dict, and its checked fields. ``where`` names it in messages.

    Raises:
        ArtifactError: it is malformed, or of an unknown schema version.
    """
    try:
        manifest = from_json(content)
        if not isinstance(manifest, dict):
            raise ArtifactError(f"{where} is malformed: it is not a JSON object")
        schema = manifest.get("schema_version")
        if type(schema) is not int:  # True would be one
            raise ArtifactError(f"{where} is malformed: schema_version is {_given(schema)}, not an integer")
        _check_schema(schema, where)
        return manifest, ManifestSchema.model_validate(manifest)
    except ValidationError as error:
        raise ArtifactError(f"{where} is malformed: {_describe(error)}") from None
    except ValueError as error:
        raise ArtifactError(f"{where} is malformed: {error}") from None


def parse_metadata(entries: Mapping[str, str], where: str) -> MetadataSchema:
    """Return the checked metadata ``entries``, given by their short names. ``where`` names the file.

    Raises:
        ArtifactError: an entry is missing, malformed or out of range, or the schema version is unknown.
    """
    required = [name for name, field in MetadataSchema.model_fields.items() if field.is_required()]
    for name in ("schema", *required):
        if name not in entries:
            raise ArtifactError(
                f"{where} has no metadata entry 'foldserve.{name}'; it was not written by `foldserve export`"
            )
    schema = entries["schema"]
    if not (schema.isascii() and schema.isdigit() and len(schema) <= 9):
        raise ArtifactError(f"{where} has malformed metadata: schema is {quote(schema)}, not an integer")
    _check_schema(int(schema), f"{where} metadata")
    try:
        return MetadataSchema.model_validate(dict(entries))
    except ValidationError as error:
        raise ArtifactError(f"{where} has malformed metadata: {_describe(error)}") from None


def _check_schema(schema: int, where: str) -> None:
    if schema != SCHEMA_VERSION:
        raise ArtifactError(
            f"{where} has schema {schema}; this foldserve reads schema {SCHEMA_VERSION}: "
            f"{'upgrade foldserve' if schema > SCHEMA_VERSION else 'export the model again'}"
        )


def _describe(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    texts = []
    for fault in faults[:_NAMED_FAULTS]:
        place = _cut(".".join(str(part) for part in fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        # Without a place, the value is the whole document: too long to show.
        texts.append(f"{place}: {message}, given {_given(fault['input'])}" if place else message)
    more = len(faults) - len(texts)
    return "; ".join(texts) + (f"; and {more} more" if more else "")


def _given(value: object) -> str:
    """Return a parsed JSON value as text; only its kind if it is an object or a list."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return quote(value) if isinstance(value, str) else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
