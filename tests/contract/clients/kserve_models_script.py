"""In the environment of the KServe SDK: make its models of Kubernetes objects, and print what they keep.

`python kserve_models_script.py FILE` with a JSON list of objects prints another such list. Models take what
they know and refuse values that they do not allow, so a key that is missing in the answer is none of theirs.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client

# Types whose values are written as they are.
PLAIN = {"str", "int", "float", "bool", "object", "ResourceQuantity", "IntOrString"}
# "list[V1Container]", "dict(str, str)" in KServe's models; "List[str]", "Dict[str, str]" in Kubernetes'.
SEQUENCE, MAPPING = re.compile(r"[lL]ist\[(.*)\]"), re.compile(r"[dD]ict[\[(]str, (.*)[\])]")


def read(data: Any, type_name: str) -> Any:
    """Return ``data`` as the SDK's reader would, which stumbles over the newer spelling of types."""
    if sequence := SEQUENCE.fullmatch(type_name):
        return [read(item, sequence[1]) for item in data]
    if mapping := MAPPING.fullmatch(type_name):
        return {key: read(value, mapping[1]) for key, value in data.items()}
    if type_name in PLAIN:
        return data
    model = getattr(kserve.models, type_name, None) or getattr(kubernetes.client, type_name)
    fields = {
        attribute: read(data[key], model.openapi_types[attribute])
        for attribute, key in model.attribute_map.items()
        if key in data
    }
    return model(**fields)


def main() -> None:
    left = []
    for item in json.loads(Path(sys.argv[1]).read_text()):
        version = item["apiVersion"].rpartition("/")[2]
        model = read(item, version.capitalize() + item["kind"])
        left.append(kserve.ApiClient().sanitize_for_serialization(model))
    print(json.dumps(left))


main()
