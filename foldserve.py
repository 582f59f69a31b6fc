"""The console script `foldserve`: flags become one validated settings object, which one function carries out.

Only the settings are imported here; what a command needs (torch, ONNX Runtime, gRPC) waits until it runs.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    SettingsConfigDict,
    SettingsError,
    get_subcommand,
)

from demo.config import DemoConfig
from export.config import ExportConfig
from export.errors import ExportError
from export.inspection.config import InspectConfig
from imaging import ImageError
from serving.config import (
    ClassifyConfig,
    ConnectionConfig,
    ListConfig,
    ServeConfig,
    TokenConfig,
    VerifyConfig,
)
from serving.errors import ServingError
from serving.terminal_output import takes_any_output
from training.config import TrainConfig
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable

_RUNS: dict[type[BaseModel], str] = {
    TrainConfig: "training.run:train",
    InspectConfig: "export.inspection.command:inspect",
    ExportConfig: "export.pipeline:export_model",
    ServeConfig: "serving.server:serve",
    ClassifyConfig: "serving.classify_command:classify",
    ListConfig: "serving.repository_commands:list_models",
    VerifyConfig: "serving.repository_commands:verify_models",
    TokenConfig: "serving.token_command:make_token",
    DemoConfig: "demo.pipeline:run_demo",
}

# Errors whose message is for the person at the terminal. Anything else is a bug and keeps its traceback.
_EXPECTED = (TrainingError, ExportError, ServingError, ImageError, OSError)

# Which extra brings a package that a command turned out to lack.
_EXTRAS = {
    "torch": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "safetensors": "export",
}


class Models(BaseModel, frozen=True):
    """Shows what is in a model repository, and whether each version still proves itself."""

    list: CliSubCommand[ListConfig] = Field(description="what is in a repository, or on a server")
    verify: CliSubCommand[VerifyConfig] = Field(description="check hashes, replay golden pairs")


class Foldserve(BaseSettings):
    """Train a convolutional network, export it with batch norm folded in, serve exactly what was trained."""

    model_config = SettingsConfigDict(
        cli_prog_name="foldserve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_enforce_required=False,  # left to pydantic, so that all messages are of one style
    )

    train: CliSubCommand[TrainConfig] = Field(description="train a network, with progress, curves and resume")
    inspect: CliSubCommand[InspectConfig] = Field(description="show a network's layers, with their figures")
    export: CliSubCommand[ExportConfig] = Field(description="checkpoint -> folded, verified model version")
    serve: CliSubCommand[ServeConfig] = Field(description="serve a repository over gRPC")
    classify: CliSubCommand[ClassifyConfig] = Field(description="ask a running server for labels of pictures")
    models: CliSubCommand[Models] = Field(description="list or verify the versions in a repository")
    token: CliSubCommand[TokenConfig] = Field(description="make a bearer token for a server's --tokens")
    demo: CliSubCommand[DemoConfig] = Field(description="all of it on Fashion-MNIST, ending in the proof")
    debug: bool = Field(default=False, description="show the traceback of an error; may stand anywhere")


@takes_any_output
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 worked, 1 failed, 2 misused."""
    # gRPC's core writes lines of its own to standard error; whatever matters in them reaches us as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    words = [word for word in given if word != "--debug"] or ["--help"]
    command = " ".join(["foldserve", *_command_names(words)])
    try:
        config = _parse(words)
    except (SettingsError, ValidationError) as error:
        print(f"{command}: {_one_line(error)} (see `{command} --help`)", file=sys.stderr)
        return 2
    try:
        return _load(_target(config))(_with_token(config))
    except KeyboardInterrupt:
        print(f"\n{command}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if debug or missing not in _EXTRAS:
            raise
        print(f"{command}: needs {missing}: pip install 'foldserve[{_EXTRAS[missing]}]'", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except _EXPECTED as error:
        if debug:
            raise
        print(f"{command}: {error}", file=sys.stderr)
        return 1


def _parse(words: list[str]) -> BaseModel:
    root = CliApp.run(Foldserve, cli_args=words)
    chosen = get_subcommand(root, cli_exit_on_error=False)
    assert isinstance(chosen, BaseModel)
    if isinstance(chosen, Models):
        chosen = get_subcommand(chosen, cli_exit_on_error=False)
        assert isinstance(chosen, BaseModel)
    return chosen


def _with_token(config: BaseModel) -> BaseModel:
    """Return the settings with the environment's token, where they can take one and name no file of one."""
    token = os.environ.get("FOLDSERVE_TOKEN")
    if token and isinstance(config, ConnectionConfig) and config.token_file is None:
        return config.with_token(token)
    return config


def _target(config: BaseModel) -> str:
    # Serving never imports export: what compares a version with its checkpoint is another function.
    if isinstance(config, VerifyConfig) and config.against is not None:
        return "export.verify_against:verify_against"
    return _RUNS[type(config)]


def _load(target: str) -> Callable[[BaseModel], int]:
    module, _, function = target.partition(":")
    loaded: Callable[[BaseModel], int] = getattr(import_module(module), function)
    return loaded


def _command_names(words: list[str]) -> list[str]:
    """Return the leading words that name a command, for messages: ["models", "list"]."""
    names: list[str] = []
    if words[0] in Foldserve.model_fields:
        names.append(words[0])
        if words[0] == "models" and len(words) > 1 and words[1] in Models.model_fields:
            names.append(words[1])
    return names


def _one_line(error: SettingsError | ValidationError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            _describe(detail["loc"], detail["msg"], detail["input"]) for detail in error.errors()
        )
    text = str(error).removeprefix("error parsing CLI: ")
    start = "unrecognized arguments: "
    if start in text:
        flag = text.partition(start)[2].split()[0]
        near = difflib.get_close_matches(flag, _all_flags(), n=1)
        return f"unknown argument {flag}" + (f"; did you mean {near[0]}?" if near else "")
    return " ".join(text.split())


def _describe(location: tuple[int | str, ...], message: str, given: object) -> str:
    # ("train", "lr") -> "--lr"; the message of a validator of ours arrives with a prefix of pydantic's.
    names = [
        str(part) for part in location if not isinstance(part, int) and part not in Foldserve.model_fields
    ]
    flag = "--" + names[-1].replace("_", "-") if names and names != ["list"] else ""
    text = message.removeprefix("Value error, ")
    if text == "Field required":
        return f"{flag} is required"
    shown = f" (given {given})" if isinstance(given, str | int | float) and str(given) not in text else ""
    return f"{flag}: {text}{shown}" if flag else f"{text}{shown}"


def _all_flags() -> list[str]:
    return sorted(
        {"--" + name.replace("_", "-") for config in _RUNS for name in config.model_fields}
        | {"--debug", "--help"}
    )


if __name__ == "__main__":
    sys.exit(main())
