"""Turns the command line into one validated settings object and runs the command's function with it.

Only settings are imported here; a command's heavy packages (torch, ONNX Runtime, gRPC) are loaded when it
runs.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import CliSettingsSource, CliSubCommand, SettingsError

from foldserve import __version__
from foldserve.completion_config import CompletionConfig
from foldserve.demo.config import DemoConfig
from foldserve.environment import flag_fields, help_text, read_environment, variable
from foldserve.errors import FoldserveError
from foldserve.export.config import ExportConfig
from foldserve.export.inspection.inspect_config import InspectConfig
from foldserve.extras import extras_with, how_to_install, missing_packages
from foldserve.local.config import DiffConfig, EvaluateConfig, PredictConfig
from foldserve.misuse import describe_misuse, near, one_line
from foldserve.serving.client.connection_config import ConnectionConfig
from foldserve.serving.commands.command_configs import (
    ClassifyConfig,
    DeleteConfig,
    ListConfig,
    PromoteConfig,
    RollbackConfig,
    TokenConfig,
)
from foldserve.serving.config import ServeConfig
from foldserve.terminal_output import takes_any_output
from foldserve.text import escaped
from foldserve.training.choosing.config import CompareRunsConfig, ListRunsConfig, TuneConfig
from foldserve.training.config import TrainConfig
from foldserve.ui.config import UiConfig
from foldserve.verify_config import VerifyConfig

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        config: its settings.
        target: the function that takes them, "module:function".
        extras: the extras that it needs.
        spares_cpu: whether PyTorch's threads sleep while they wait for each other and do not spin, and no
            collection of garbage looks at what was imported.
    """

    config: type[BaseModel]
    target: str
    extras: tuple[str, ...] = ()
    spares_cpu: bool = False


COMMANDS = {
    "train": Command(TrainConfig, "foldserve.training.run.train:train", ("train",)),
    "tune": Command(TuneConfig, "foldserve.training.choosing.tune:tune", ("train", "tune")),
    "runs list": Command(ListRunsConfig, "foldserve.training.choosing.runs:list_runs", ("train",)),
    "runs compare": Command(CompareRunsConfig, "foldserve.training.choosing.runs:compare_runs", ("train",)),
    "inspect": Command(InspectConfig, "foldserve.export.inspection.command:inspect", ("export",)),
    "export": Command(
        ExportConfig, "foldserve.export.pipeline:export_model", ("export", "runtime"), spares_cpu=True
    ),
    "serve": Command(ServeConfig, "foldserve.serving.server:serve", ("serve", "runtime")),
    "classify": Command(ClassifyConfig, "foldserve.serving.commands.classify:classify", ("client",)),
    "evaluate": Command(EvaluateConfig, "foldserve.local.evaluate:evaluate", ("runtime",)),
    "predict": Command(PredictConfig, "foldserve.local.predict:predict", ("runtime",)),
    "models list": Command(ListConfig, "foldserve.serving.commands.models:list_models", ("client",)),
    "models verify": Command(
        VerifyConfig, "foldserve.serving.commands.models:verify_models", ("client", "runtime")
    ),
    "models promote": Command(PromoteConfig, "foldserve.serving.commands.versions:promote_version"),
    "models rollback": Command(RollbackConfig, "foldserve.serving.commands.versions:roll_back"),
    "models delete": Command(DeleteConfig, "foldserve.serving.commands.versions:delete_version"),
    "models diff": Command(DiffConfig, "foldserve.local.diff:diff_versions", ("runtime",)),
    "ui": Command(UiConfig, "foldserve.ui.command:serve_page", ("ui",)),
    "token": Command(TokenConfig, "foldserve.serving.commands.make_token:make_token"),
    "completion": Command(CompletionConfig, "foldserve.completion:print_completion"),
    "demo": Command(DemoConfig, "foldserve.demo.pipeline:run_demo", ("train", "export", "serve", "runtime")),
}
# Serving never imports export, so comparing a version with its checkpoint is a separate function.
_VERIFY_AGAINST = Command(
    VerifyConfig, "foldserve.export.verify_checkpoint:verify_checkpoint", ("export", "runtime")
)

_HELP = ("--help", "-h")
_VERSION = "--version"

# Errors whose message is written for the user. Anything else is a bug and keeps its traceback.
_EXPECTED = (FoldserveError, OSError)


class Models(BaseModel, frozen=True):
    """Lists the versions in a model repository, verifies and compares them, and says which one answers."""

    list: CliSubCommand[ListConfig] = Field(description="list the versions in a repository or on a server")
    verify: CliSubCommand[VerifyConfig] = Field(description="check hashes and replay golden pairs")
    promote: CliSubCommand[PromoteConfig] = Field(description="let a version answer by default")
    rollback: CliSubCommand[RollbackConfig] = Field(description="go back to what was promoted before")
    delete: CliSubCommand[DeleteConfig] = Field(description="delete a version")
    diff: CliSubCommand[DiffConfig] = Field(description="compare two versions")


class Runs(BaseModel, frozen=True):
    """Lists training runs, or compares some of them."""

    list: CliSubCommand[ListRunsConfig] = Field(description="list the runs in a folder")
    compare: CliSubCommand[CompareRunsConfig] = Field(description="compare runs, with their curves")


class Foldserve(BaseModel):
    """Trains a convolutional network, exports it with batch norm folded in, and serves it unchanged."""

    train: CliSubCommand[TrainConfig] = Field(description="train a network; resumes an interrupted run")
    tune: CliSubCommand[TuneConfig] = Field(description="search for good settings by training many times")
    runs: CliSubCommand[Runs] = Field(description="list or compare training runs")
    inspect: CliSubCommand[InspectConfig] = Field(description="show the layers of a network")
    export: CliSubCommand[ExportConfig] = Field(description="turn a checkpoint into a verified model version")
    serve: CliSubCommand[ServeConfig] = Field(description="serve a model repository over gRPC")
    classify: CliSubCommand[ClassifyConfig] = Field(description="label pictures with a running server")
    evaluate: CliSubCommand[EvaluateConfig] = Field(
        description="judge a version on labelled images, no server"
    )
    predict: CliSubCommand[PredictConfig] = Field(description="label a folder or table of images, no server")
    models: CliSubCommand[Models] = Field(description="list, verify, promote or compare versions")
    ui: CliSubCommand[UiConfig] = Field(description="try a server's models on a page in the browser")
    token: CliSubCommand[TokenConfig] = Field(description="make a bearer token for a server's --tokens")
    completion: CliSubCommand[CompletionConfig] = Field(description="print a shell's completion script")
    demo: CliSubCommand[DemoConfig] = Field(description="train, export, serve, and compare all three")
    debug: bool = Field(default=False, description="show the traceback of an error; allowed anywhere")


@takes_any_output
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 success, 1 failure, 2 wrong usage."""
    # gRPC's core logs to standard error; everything that matters there also reaches us as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if os.getpid() == 1:
        # To the first process of a container the kernel sends only signals that it handles: without this, a
        # container that is stopped while the command starts would run until it is killed.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    words = [word for word in given if word != "--debug"] or ["--help"]
    program = " ".join(["foldserve", *_leading_names(words)])
    try:
        config = parse(words, os.environ)
    except SettingsError as error:
        print(f"{program}: {error} (see `{program} --help`)", file=sys.stderr)
        return 2
    command = _command_of(config)
    try:
        if missing := missing_packages(command.extras):
            return _fail(program, how_to_install(missing))
        if command.spares_cpu:
            # Read as PyTorch is loaded. An export computes few, large operations: spinning between them takes
            # a fifth of its processor time on a busy machine, waking up next to none.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        run = _load_without_collections(command.target) if command.spares_cpu else _load(command.target)
        return run(_with_token(config))
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        missing = extras_with((error.name or "").partition(".")[0])
        if debug or not missing:
            raise
        return _fail(program, how_to_install(missing))
    except BrokenPipeError:
        raise
    except _EXPECTED as error:
        if debug:
            raise
        return _fail(program, _reason(error))


def parse(words: list[str], environ: Mapping[str, str]) -> BaseModel:
    """Return the settings of the command in ``words``; flags take precedence over ``environ``.

    Raises:
        SettingsError: the command or a setting is invalid; the message is one line.
    """
    name = _command_name(words)
    flags = _parse_flags(words, name)
    config = COMMANDS[name].config
    environment = read_environment(name, config, environ)
    try:
        return config.model_validate(environment | flags)
    except ValidationError as error:
        by_environment = {field: variable(name, field) for field in environment.keys() - flags.keys()}
        raise SettingsError(one_line(error, by_environment)) from error


def _reason(error: Exception) -> str:
    """Return the message of an expected error; one of the system without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{escaped(str(error.filename))}: {error.strerror}"
    return str(error)


def _fail(program: str, reason: str) -> int:
    print(f"{program}: {reason}", file=sys.stderr)
    return 1


def _command_name(words: list[str]) -> str:
    """Return the command that the leading words name.

    Raises:
        SettingsError: there is no such command; the message lists the commands and suggests the nearest.
        SystemExit: the help or the version was requested and has been printed.
    """
    names = _leading_names(words)
    name = " ".join(names)
    if name in COMMANDS:
        return name
    following = [known.split()[len(names)] for known in COMMANDS if known.split()[: len(names)] == names]
    known = list(dict.fromkeys(following))
    rest = words[len(names) :]
    printing = _HELP if names else (*_HELP, _VERSION)
    if not rest or (rest[0].startswith("-") and rest[0] not in printing):
        found = (near(rest[0], printing) or f"; put {rest[0]} after it") if rest else ""
        raise SettingsError(f"expected a command ({', '.join(known)}){found}")
    if rest[0] not in printing:
        found = near(rest[0], known)
        raise SettingsError(f"unknown command '{rest[0]}'; the commands are {', '.join(known)}{found}")
    _parse_flags(words, name)  # prints the help or the version and ends the program
    raise AssertionError(words)


def _leading_names(words: list[str]) -> list[str]:
    """Return the leading words that name a command or a group of commands: ["models", "list"]."""
    names: list[str] = []
    for word in words:
        if not any(known.split()[: len(names) + 1] == [*names, word] for known in COMMANDS):
            break
        names.append(word)
    return names


def _parse_flags(words: list[str], name: str) -> dict[str, Any]:
    """Return the values given on the command line, not yet validated, by field of the command ``name``."""
    try:
        flags: dict[str, Any] = _flag_source()(args=words)()
    except SettingsError as error:
        config = COMMANDS[name].config if name in COMMANDS else Foldserve
        raise SettingsError(describe_misuse(str(error), config)) from error
    for part in name.split():
        flags = flags[part]
    return flags


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line, for what describes it."""
    return cast("argparse.ArgumentParser", _flag_source().root_parser)


def _flag_source() -> CliSettingsSource[Any]:
    # Not a BaseSettings, which would also read environment variables that have no prefix.
    source: CliSettingsSource[Any] = CliSettingsSource(
        Foldserve,  # type: ignore[arg-type]  # any model works
        cli_prog_name="foldserve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_enforce_required=False,  # left to pydantic, so that all messages have one style
        add_parser_method=_add_parser,
    )
    source.root_parser.add_argument(
        _VERSION, action="version", version=f"foldserve {__version__}", help="show the version and exit"
    )
    source.root_parser.epilog = (
        "Flags can also be set in the environment as FOLDSERVE_<COMMAND>_<FLAG>; other variables and\n"
        ".env files are not read. See `foldserve COMMAND --help`."
    )
    return source


def _add_parser(commands: Any, name: str, **settings: Any) -> argparse.ArgumentParser:
    """Add the parser of a command; its help explains the environment variables."""
    parser = cast("argparse.ArgumentParser", commands.add_parser(name, **settings))
    command = parser.prog.partition(" ")[2]  # of "foldserve models list"
    if command in COMMANDS and flag_fields(COMMANDS[command].config):
        parser.epilog = help_text(command, COMMANDS[command].config)
    return parser


def _with_token(config: BaseModel) -> BaseModel:
    """Return the settings with FOLDSERVE_TOKEN, if the command takes a token and no token file is given."""
    token = os.environ.get("FOLDSERVE_TOKEN")
    if token and isinstance(config, ConnectionConfig) and config.token_file is None:
        return config.with_token(token)
    return config


def _command_of(config: BaseModel) -> Command:
    if isinstance(config, VerifyConfig) and config.against is not None:
        return _VERIFY_AGAINST
    return next(command for command in COMMANDS.values() if type(config) is command.config)


def _load_without_collections(target: str) -> Callable[[BaseModel], int]:
    """Load a command in a new process, where all that was made so far stays until the end."""
    if target.partition(":")[0] in sys.modules or not gc.isenabled():
        return _load(target)
    gc.disable()
    try:
        run = _load(target)
        gc.freeze()
    finally:
        gc.enable()
    return run


def _load(target: str) -> Callable[[BaseModel], int]:
    module, _, function = target.partition(":")
    loaded: Callable[[BaseModel], int] = getattr(import_module(module), function)
    return loaded
