"""Run in a process of its own, like triton_script.py: parses a config.pbtxt by Triton's own definition.

Argument: the file. Prints the configuration as JSON; fails if a key is unknown.
"""

import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

config = text_format.Parse(Path(sys.argv[1]).read_text(), model_config_pb2.ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
