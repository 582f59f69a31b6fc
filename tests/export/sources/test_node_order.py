"""The order in which a graph's nodes run: constants late, everything after what it reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, helper

from foldserve.export.sources.onnx.graph_reads import names_read
from foldserve.export.sources.onnx.node_order import constants_when_read


@st.composite
def graphs(draw: st.DrawFn) -> list[NodeProto]:
    """Nodes that each read some of the values before them, of an image, of weights and of earlier nodes."""
    names, nodes = ["image", "weight", ""], []
    for index in range(draw(st.integers(0, 12))):
        outputs = [f"{index}.{part}" for part in range(draw(st.integers(1, 2)))]
        nodes.append(helper.make_node("Op", draw(st.lists(st.sampled_from(names), max_size=3)), outputs))
        names += outputs
    return nodes


@given(graphs())
def test_each_node_runs_once_and_after_what_it_reads(nodes: list[NodeProto]) -> None:
    ordered = constants_when_read(nodes, ["image"])
    assert sorted(node.output[0] for node in ordered) == sorted(node.output[0] for node in nodes)
    there = {"image", "weight"}
    for node in ordered:
        assert names_read(node) <= there
        there.update(node.output)


def test_constants_run_just_before_they_are_read() -> None:
    lines = ["a=", "b=", "c=a", "d=image,c", "e=d,b", "f="]
    parts = [line.split("=") for line in lines]
    nodes = [helper.make_node("Op", read.split(",") if read else [], [name]) for name, read in parts]
    ordered = [node.output[0] for node in constants_when_read(nodes, ["image"])]
    assert ordered == ["a", "c", "d", "b", "e", "f"]


def test_what_a_branch_reads_is_there_before_it() -> None:
    branch = helper.make_graph([helper.make_node("Neg", ["constant"], ["inner"])], "branch", [], [])
    branch.output.append(helper.make_empty_tensor_value_info("inner"))
    nodes = [
        helper.make_node("Constant", [], ["constant"]),
        helper.make_node("Neg", ["image"], ["first"]),
        helper.make_node("If", ["first"], ["chosen"], then_branch=branch, else_branch=branch),
    ]
    ordered = [node.output[0] for node in constants_when_read(nodes, ["image"])]
    assert ordered == ["first", "constant", "chosen"]
