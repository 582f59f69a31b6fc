"""Names both versions of server reflection: v1alpha, for old clients, and v1, the only one of some new ones.

grpcio-reflection has v1alpha. The messages of both are the same on the wire
(github.com/grpc/grpc-proto, grpc/reflection/v1/reflection.proto), so that one servicer answers both.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

_V1_SERVICE = reflection.SERVICE_NAME.replace(".v1alpha.", ".v1.")

REFLECTION_SERVICES = (reflection.SERVICE_NAME, _V1_SERVICE)


def describe_v1() -> None:
    """Make v1 known to protobuf, so that it can be described too."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(_V1_SERVICE)
    except KeyError:
        file = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        renamed = text_format.MessageToString(file).replace("v1alpha", "v1")
        pool.AddSerializedFile(text_format.Parse(renamed, FileDescriptorProto()).SerializeToString())
