"""Watches a server or one of its models: `python examples/watch_health.py [MODEL]`, until Ctrl-C.

Uses the standard gRPC health service, as load balancers and Kubernetes do, and prints each change of the
status. A server that is told to stop reports NOT_SERVING first and then finishes what it has accepted.
"""

from __future__ import annotations

import argparse

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main() -> None:
    """Print each change of the status until the server ends or the user interrupts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="", help="default: the whole server")
    parser.add_argument("--server", default="127.0.0.1:8001")
    options = parser.parse_args()
    with grpc.insecure_channel(options.server) as channel:
        request = health_pb2.HealthCheckRequest(service=options.model)
        try:
            for response in health_pb2_grpc.HealthStub(channel).Watch(request):
                status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
                print(options.model or options.server, status, flush=True)
        except grpc.RpcError as error:
            print(f"{options.server}: {error.code().name}: {error.details()}", flush=True)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
