"""`python -m training`: trains as `foldserve train` does, from this package alone; what torchrun starts."""

import sys

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from training.config import TrainConfig
from training.errors import TrainingError


def main() -> int:
    """Train with the flags given and return the exit status: 0 worked, 1 failed, 2 misused."""
    # Not CliApp, which would read the environment too, without a prefix.
    source: CliSettingsSource[TrainConfig] = CliSettingsSource(
        TrainConfig,  # type: ignore[arg-type]  # it takes any model
        cli_parse_args=sys.argv[1:],
        cli_prog_name="python -m training",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    try:
        config = TrainConfig.model_validate(source())
    except ValidationError as error:
        flags = ("--" + "-".join(map(str, detail["loc"])).replace("_", "-") for detail in error.errors())
        reasons = (f"{flag}: {detail['msg']}" for flag, detail in zip(flags, error.errors(), strict=True))
        return _fail("; ".join(reasons), status=2)
    from training.run import train  # noqa: PLC0415  # --help should not wait for torch

    try:
        return train(config)
    except (TrainingError, OSError) as error:
        return _fail(str(error), status=1)


def _fail(reason: str, *, status: int) -> int:
    print(f"python -m training: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
