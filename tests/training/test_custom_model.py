"""Custom networks: `package.module:factory` from the current folder, if the user names it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from foldserve.training.errors import ModelError
from foldserve.training.models import MODELS, create_model, register_custom_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

SHAPE = {"in_channels": 3, "class_count": 5, "height": 8, "width": 9}

NETWORKS = """
from torch import nn

def flat(in_channels, class_count, height, width, bias=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, class_count, bias=bias))

def no_size(*, in_channels, class_count):
    return nn.Conv2d(in_channels, class_count, 1)

def everything(**arguments):
    return nn.Linear(len(arguments), 1)

def a_number(in_channels):
    return 3

def broken(in_channels):
    raise ZeroDivisionError("by hand")

constant = 3
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a user's project the current folder; remove all traces of it afterwards."""
    (tmp_path / "my_project").mkdir()
    (tmp_path / "my_project" / "networks.py").write_text(NETWORKS)
    (tmp_path / "my_project" / "faulty.py").write_text("import not_installed_anywhere")
    (tmp_path / "my_project" / "typo.py").write_text("def broken(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(MODELS)
    yield
    for name in set(MODELS) - before:
        del MODELS[name]
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
        del sys.modules[name]


def build(arch: str, **arguments) -> nn.Module:
    register_custom_model(arch)
    return create_model(arch, **SHAPE, **arguments)


def test_a_factory_of_the_current_folder_gets_shape_and_its_own_arguments():
    network = build("my_project.networks:flat", bias=False)
    assert network[1].in_features == 3 * 8 * 9
    assert network[1].out_features == 5
    assert network[1].bias is None


def test_a_factory_gets_only_what_it_declares_about_the_shape():
    assert build("my_project.networks:no_size").in_channels == 3


def test_a_factory_that_takes_any_keyword_gets_all_of_them():
    assert build("my_project.networks:everything", extra=1).in_features == 5


def test_a_custom_network_that_the_user_did_not_name_runs_no_code():
    """A checkpoint may name `os:system`; only a name on the command line is imported."""
    with pytest.raises(ModelError, match="if you trust its code, name it: --arch my_project"):
        create_model("my_project.networks:flat", **SHAPE)
    assert "my_project.networks" not in sys.modules


def test_registering_a_built_in_name_changes_nothing():
    before = dict(MODELS)
    register_custom_model("lenet")
    register_custom_model("no-such-network")
    assert before == MODELS


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        pytest.param("my_project.nothing:flat", "no module 'my_project.nothing'", id="no such module"),
        pytest.param("nowhere.at.all:flat", "no module 'nowhere'", id="no such package"),
        pytest.param("my_project.networks:flatt", r"networks.py has no 'flatt'", id="no such function"),
        pytest.param("my_project.networks:constant", "is a int; expected a function", id="not a function"),
        pytest.param(
            "my_project.networks:a_number", "returned a int; expected a torch.nn.Module", id="no network"
        ),
        pytest.param("my_project.networks:broken", "failed: ZeroDivisionError: by hand", id="factory fails"),
        pytest.param(
            "my_project.faulty:flat",
            "importing my_project.faulty failed.*not_installed",
            id="module's import",
        ),
        pytest.param("my_project.typo:flat", "importing my_project.typo failed: SyntaxError", id="syntax"),
        pytest.param(":flat", "expected package.module:factory", id="no module name"),
        pytest.param("my_project.networks:", "expected package.module:factory", id="no function name"),
    ],
)
def test_objects_that_are_not_networks_are_refused_by_name(arch: str, message: str):
    with pytest.raises(ModelError, match=message):
        build(arch)


def test_an_argument_that_the_factory_lacks_is_named():
    with pytest.raises(ModelError, match="depth"):
        build("my_project.networks:no_size", depth=3)
