"""Puts JSON schemas, as pydantic writes them, into words: "array of 1 to 3 numbers", "one of L, RGB"."""

from __future__ import annotations

from typing import Any, cast

from docsite.reference.markdown import code

_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "from",
    "maximum": "to",
    "maxLength": "of at most",
    "pattern": "matching",
}


def in_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return ``schema`` in words; ``definitions`` are those that it refers to."""
    if reference := schema.get("$ref"):
        return in_words(definitions[reference.rpartition("/")[2]], definitions)
    if content := schema.get("contentSchema"):  # JSON inside a text
        return in_words(content, definitions)
    if either := schema.get("anyOf"):
        return " or ".join(in_words(each, definitions) for each in either)
    if values := schema.get("enum"):
        return f"one of {', '.join(map(code, values))}"
    kind = schema.get("type", "any")
    if kind in ("array", "object"):
        return _array(schema, definitions) if kind == "array" else _object(schema, definitions)
    bounds = [f" {words} {schema[key]}" for key, words in _BOUNDS.items() if key in schema]
    return cast("str", kind) + "".join(bounds)


def _object(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "properties" not in schema:
        return f"object by file name, each an {in_words(schema['additionalProperties'], definitions)}"
    parts = (f"{code(name)}: {in_words(each, definitions)}" for name, each in schema["properties"].items())
    return f"object with {'; '.join(parts)}"


def _array(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if least == most:
        count = f"{most} "
    else:
        count = f"{least} to {most} " if most else (f"at least {least} " if least else "")
    kind = schema["prefixItems"][0] if "prefixItems" in schema else schema["items"]
    word, space, rest = in_words(kind, definitions).partition(" ")
    return f"array of {count}{word}{'' if count == 'at least 1 ' else 's'}{space}{rest}"
