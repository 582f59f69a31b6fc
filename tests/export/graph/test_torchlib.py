"""PyTorch's functions are listed as onnxscript lists them, without its parsing of their source."""

from torch import nn
from torch.onnx._internal._lazy_import import onnxscript_apis

from foldserve.export.graph import torchlib
from foldserve.export.graph.torchlib import list_functions, without_parsing
from foldserve.export.graph.trace import trace


def test_the_list_is_that_of_onnxscript():
    expected = [
        (each.qualified_name, each.function, each.is_complex) for each in onnxscript_apis.get_torchlib_ops()
    ]
    assert len(expected) > 500
    assert [(each.qualified_name, each.function, each.is_complex) for each in list_functions()] == expected


def test_an_export_uses_it_and_leaves_the_exporter_as_it_was(monkeypatch):
    before = onnxscript_apis.get_torchlib_ops
    calls: list[int] = []

    def counted():
        functions = list_functions()
        calls.append(len(functions))
        return functions

    monkeypatch.setattr(torchlib, "list_functions", counted)
    trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), (1, 2, 2))
    assert len(calls) == 2  # to see that it can be done, and by the exporter
    assert onnxscript_apis.get_torchlib_ops is before


def test_a_release_that_lists_them_otherwise_is_left_alone(monkeypatch):
    def moved():
        raise ImportError("no module named onnxscript.function_libs")

    monkeypatch.setattr(torchlib, "list_functions", moved)
    before = onnxscript_apis.get_torchlib_ops
    with without_parsing():
        assert onnxscript_apis.get_torchlib_ops is before
