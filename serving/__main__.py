"""`python -m serving`: serves as `foldserve serve` does, from this package alone."""

import sys

from pydantic_settings import CliApp

from serving.config import ServeConfig
from serving.errors import ServingError
from serving.terminal_output import takes_any_output


@takes_any_output
def main() -> int:
    """Serve with the flags given and return the exit status."""
    config = CliApp.run(ServeConfig, cli_args=sys.argv[1:])
    from serving.server import serve  # noqa: PLC0415  # --help should not wait for ONNX Runtime and gRPC

    try:
        return serve(config)
    except ServingError as error:
        print(f"python -m serving: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
