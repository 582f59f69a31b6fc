"""`python -m serving`: serves as `foldserve serve` does, from this package alone."""

import sys

from pydantic_settings import CliSettingsSource

from serving.config import ServeConfig
from serving.errors import ServingError
from serving.terminal_output import takes_any_output


@takes_any_output
def main() -> int:
    """Serve with the flags given and return the exit status."""
    # Not CliApp, which would read the environment too, without a prefix.
    source: CliSettingsSource[ServeConfig] = CliSettingsSource(
        ServeConfig,  # type: ignore[arg-type]  # it takes any model
        cli_parse_args=sys.argv[1:],
        cli_prog_name="python -m serving",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    config = ServeConfig.model_validate(source())
    from serving.server import serve  # noqa: PLC0415  # --help should not wait for ONNX Runtime and gRPC

    try:
        return serve(config)
    except ServingError as error:
        print(f"python -m serving: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
