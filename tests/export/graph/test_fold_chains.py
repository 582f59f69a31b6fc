"""Several batch norms that meet, batch norms inside branches, and statistics that cannot be used."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from foldserve.export.errors import FoldError
from foldserve.export.graph.simplify import simplify
from tests.support.foldable import TOLERANCE, batch_norm, check, fold, model_of, node, statistics, weights


def test_chain_that_cannot_be_folded_becomes_one_multiply_and_add():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "one"),
        batch_norm("a -> b", "two"),
        batch_norm("b -> y", "three"),
    ]
    constants = statistics("one", 3, 1) | statistics("two", 3, 2) | statistics("three", 3, 3)
    folded = check(model_of(nodes, constants), ["rewritten", "folded", "folded"])
    assert folded.operations == ["Relu", "Mul", "Add"]


def test_weights_are_rounded_once_however_many_folds_meet_in_them():
    """Three batch norms behind one convolution: bit for bit the float64 result, rounded to float32."""
    nodes = [node("Conv", "x w.weight -> a")]
    nodes += [batch_norm(f"{value} -> {answer}", answer) for value, answer in ("ab", "bc", "cy")]
    constants = weights(w_weight=(6, 3, 3, 3))
    for index, name in enumerate("bcy"):
        constants |= statistics(name, 6, index)
    folded = check(model_of(nodes, constants), ["folded"] * 3)
    expected = constants["w.weight"].astype(np.float64)
    for name in "bcy":
        gamma, variance = (
            constants[f"{name}.{part}"].astype(np.float64) for part in ("weight", "running_var")
        )
        expected *= (gamma / np.sqrt(variance + 1e-5)).reshape(-1, 1, 1, 1)
    (tensor,) = (entry for entry in folded.model_proto.graph.initializer if entry.name == "w.weight")
    assert np.array_equal(numpy_helper.to_array(tensor), expected.astype(np.float32))


def exact_map(constants, name):
    """Scale and shift of batch norm ``name`` in float64, by the textbook."""
    gamma, beta, mean, variance = (
        constants[f"{name}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + 1e-5)
    return scale, beta - mean * scale


def stored(folded, name):
    (tensor,) = (entry for entry in folded.model_proto.graph.initializer if entry.name == name)
    return numpy_helper.to_array(tensor)


@pytest.mark.parametrize("given", [True, False])
def test_a_bias_is_rounded_once_however_many_folds_meet_in_it(given):
    nodes = [node("Conv", "x w.weight w.bias -> a" if given else "x w.weight -> a")]
    nodes += [batch_norm(f"{value} -> {answer}", answer) for value, answer in ("ab", "bc", "cy")]
    constants = weights(w_weight=(32, 3, 3, 3)) | (weights(w_bias=(32,)) if given else {})
    for index, name in enumerate("bcy"):
        constants |= statistics(name, 32, index)
    folded = check(model_of(nodes, constants), ["folded"] * 3)
    expected = constants["w.bias"].astype(np.float64) if given else np.zeros(32)
    for name in "bcy":
        scale, shift = exact_map(constants, name)
        expected = scale * expected + shift
    assert np.array_equal(stored(folded, "w.bias"), expected.astype(np.float32))


def test_one_multiply_and_add_for_three_batch_norms_is_rounded_once():
    nodes = [node("Relu", "x -> a")]
    nodes += [batch_norm(f"{value} -> {answer}", answer) for value, answer in ("ab", "bc", "cy")]
    constants = {}
    for index, name in enumerate("bcy"):
        constants |= statistics(name, 32, index)
    folded = check(model_of(nodes, constants, shape=(32, 4, 4)), ["rewritten", "folded", "folded"])
    scale, shift = np.ones(32), np.zeros(32)
    for name in "bcy":
        own_scale, own_shift = exact_map(constants, name)
        scale, shift = own_scale * scale, own_scale * shift + own_shift
    assert np.array_equal(stored(folded, "b.scale").reshape(-1), scale.astype(np.float32))
    assert np.array_equal(stored(folded, "b.shift").reshape(-1), shift.astype(np.float32))


def test_rewritten_batch_norm_with_another_consumer_is_not_changed_by_the_next():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "one"),
        batch_norm("a -> b", "two"),
        node("Add", "a b -> y"),
    ]
    check(model_of(nodes, statistics("one", 3, 1) | statistics("two", 3, 2)), ["rewritten", "rewritten"])


def test_one_convolution_takes_batch_norms_from_both_sides():
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "one"),
        node("Conv", "a w.weight w.bias -> b"),
        batch_norm("b -> y", "two"),
    ]
    constants = weights(w_weight=(6, 3, 3, 3), w_bias=(6,))
    check(model_of(nodes, constants | statistics("one", 3, 1) | statistics("two", 6, 2)), ["folded"] * 2)


def test_one_batch_norm_applied_twice_where_neither_can_be_folded():
    """A shared module after two ReLUs: two multiplications, whose names must not be the same."""
    nodes = [
        node("Relu", "x -> r"),
        batch_norm("r -> a", "norm"),
        node("Relu", "a -> s"),
        batch_norm("s -> y", "norm"),
    ]
    check(model_of(nodes, statistics("norm", 3)), ["rewritten", "rewritten"])


def test_any_names_in_the_network_are_accepted():
    """ "norm.mul" and "norm.scale" are taken."""
    nodes = [
        node("Relu", "x -> norm.mul"),
        batch_norm("norm.mul -> b", "norm"),
        node("Mul", "b norm.scale -> y"),
    ]
    constants = weights(norm_scale=(3, 1, 1)) | statistics("norm", 3)
    check(model_of(nodes, constants), ["rewritten"])


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_rewritten_batch_norm_multiplies_along_channels_at_any_rank(rank):
    shape = (3, 3, 3, 3)[: rank - 1]  # equal sides: a factor along the wrong one would fit as well
    nodes = [node("Relu", "x -> r"), batch_norm("r -> y", "norm")]
    check(model_of(nodes, statistics("norm", 3), shape=shape), ["rewritten"])


def test_a_batch_norm_on_a_map_of_unknown_rank_is_refused():
    model_proto = model_of([node("Relu", "x -> r"), batch_norm("r -> y", "norm")], statistics("norm", 3))
    del model_proto.graph.value_info[:]
    with pytest.raises(FoldError, match="norm is applied to a tensor of unknown rank"):
        fold(model_proto)


def test_rewritten_batch_norm_keeps_its_data_type():
    """Half precision inside a network: a float32 factor would not be valid there."""
    nodes = [
        node("Cast", "x -> h", to=TensorProto.FLOAT16),
        node("Relu", "h -> r"),
        batch_norm("r -> n", "norm"),
        node("Cast", "n -> y", to=TensorProto.FLOAT),
    ]
    constants = {name: array.astype(np.float16) for name, array in statistics("norm", 3).items()}
    folded = fold(model_of(nodes, constants))
    assert folded.actions == ["rewritten"]
    assert folded.difference < 5e-3  # some units in the last place of float16, 1e-3 of a value


# Inside branches.


def branching(then, constants, *outside, channels=6):
    (answer,) = then[-1].output
    branch = helper.make_graph(
        then, "then", [], [helper.make_tensor_value_info(answer, TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Conv", "x other.weight -> o", pads=[1, 1, 1, 1])],
        "else",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    nodes = [*outside, node("If", "choice -> y", then_branch=branch, else_branch=other)]
    choice = helper.make_tensor_value_info("choice", TensorProto.BOOL, [])
    constants = constants | weights(other_weight=(6, 3, 3, 3))
    return model_of(nodes, constants | statistics("norm", channels), more_inputs=(choice,))


def left_over(model_proto):
    return [entry.op_type for entry in ir.from_proto(model_proto).graph.all_nodes()].count(
        "BatchNormalization"
    )


@pytest.mark.parametrize("choice", [True, False])
def test_a_batch_norm_in_a_branch_folds_into_the_convolution_beside_it(choice):
    then = [node("Conv", "x w.weight -> a", pads=[1, 1, 1, 1]), batch_norm("a -> b", "norm")]
    model_proto = branching(then, weights(w_weight=(6, 3, 3, 3)))
    folded = check(model_proto, ["folded"], feeds={"choice": np.array(choice)})
    assert not left_over(folded.model_proto)


@pytest.mark.parametrize("nothing", ["Identity", "Dropout"])
def test_no_ops_in_a_branch_do_not_stop_folding(nothing):
    then = [node("Conv", "x w.weight -> a", pads=[1, 1, 1, 1]), node(nothing, "a -> i")]
    model = ir.from_proto(branching([*then, batch_norm("i -> b", "norm")], weights(w_weight=(6, 3, 3, 3))))
    simplify(model)
    check(ir.to_proto(model), ["folded"], feeds={"choice": np.array(True)})


@pytest.mark.parametrize("choice", [True, False])
def test_a_batch_norm_in_a_branch_that_cannot_be_folded_is_rewritten_there(choice):
    then = [
        node("Conv", "x w.weight -> a", pads=[1, 1, 1, 1]),
        node("Relu", "a -> r"),
        batch_norm("r -> b", "norm"),
    ]
    model_proto = branching(then, weights(w_weight=(6, 3, 3, 3)))
    folded = check(model_proto, ["rewritten"], feeds={"choice": np.array(choice)})
    assert not left_over(folded.model_proto)


def test_a_batch_norm_in_a_branch_leaves_a_convolution_outside_alone():
    outside = node("Conv", "x w.weight -> a", pads=[1, 1, 1, 1])
    model_proto = branching([batch_norm("a -> b", "norm")], weights(w_weight=(6, 3, 3, 3)), outside)
    folded = check(model_proto, ["rewritten"], feeds={"choice": np.array(True)})
    assert "outside the branch" in folded.reasons


def test_a_convolution_in_a_branch_leaves_a_batch_norm_outside_alone():
    outside = [node("Relu", "x -> r"), batch_norm("r -> a", "norm")]
    then = [node("Conv", "a w.weight -> b", pads=[1, 1, 1, 1])]
    model_proto = branching(then, weights(w_weight=(6, 3, 3, 3)), *outside, channels=3)
    folded = check(model_proto, ["rewritten"], feeds={"choice": np.array(True)})
    assert "is inside a branch" in folded.reasons


def test_names_used_in_a_branch_are_not_reused():
    outside = [node("Relu", "x -> r"), batch_norm("r -> a", "norm"), node("ReduceMean", "a -> m")]
    then = [node("Conv", "x w.weight -> norm.mul", pads=[1, 1, 1, 1]), node("Add", "norm.mul m -> b")]
    model_proto = branching(then, weights(w_weight=(6, 3, 3, 3)), *outside, channels=3)
    check(model_proto, ["rewritten"], feeds={"choice": np.array(True)})


# Statistics.


def with_statistics(**changes):
    constants = statistics("norm", 3) | weights(w_weight=(3, 3, 3, 3))
    constants |= {f"norm.{name}": np.float32(array) for name, array in changes.items()}
    return model_of([node("Conv", "x w.weight -> a"), batch_norm("a -> y", "norm")], constants)


def test_a_batch_norm_in_training_mode_is_refused():
    model_proto = with_statistics()
    norm = model_proto.graph.node[1]
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["mean", "variance"])
    with pytest.raises(FoldError, match="norm normalises by the statistics of the current batch"):
        fold(model_proto)


@pytest.mark.parametrize("part", ["running_mean", "running_var", "weight", "bias"])
def test_statistics_that_are_computed_are_refused(part):
    """A computed mean may be of anything, this batch included."""
    model_proto = with_statistics()
    graph = model_proto.graph
    index = next(index for index, tensor in enumerate(graph.initializer) if tensor.name == f"norm.{part}")
    graph.initializer[index].name = "before"
    graph.node.insert(0, node("Abs", f"before -> norm.{part}"))
    with pytest.raises(FoldError, match=rf"norm has a {part} that is computed, not stored"):
        fold(model_proto)


@pytest.mark.parametrize(
    "changes",
    [
        {"running_var": [1.0, -1.0, 1.0]},
        {"running_mean": [np.nan, 0.0, 0.0]},
        {"weight": [1.0, np.inf, 1.0]},
    ],
    ids=str,
)
def test_folds_that_are_not_finite_are_refused(changes):
    with pytest.raises(FoldError, match="norm folds to numbers that are not finite"):
        fold(with_statistics(**changes))


def test_weights_that_fold_to_more_than_their_type_can_hold_are_refused():
    """Each number is finite in float64, and none of float32."""
    with pytest.raises(FoldError, match=r"w\.weight .* more than FLOAT can hold"):
        fold(with_statistics(weight=[1e38] * 3, running_var=[1e-30] * 3))


@pytest.mark.parametrize("epsilon", [None, 1e-3, 0.25])
def test_epsilon_is_the_nodes_own(epsilon):
    """Zero variance, where nothing but epsilon is left."""
    model_proto = with_statistics(running_var=[0.0, 1e-3, 1e10])
    if epsilon is not None:
        model_proto.graph.node[1].attribute.append(helper.make_attribute("epsilon", epsilon))
    check(model_proto, ["folded"])


# Everything at once.


@st.composite
def neighbourhoods(draw):
    """batch norm - [convolution] - batch norm, of any dimensions, groups, stride, dilation and padding."""
    dimensions = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 3]))
    before, behind = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    transposed = draw(st.booleans())
    kernel = [draw(st.integers(1, 3)) for _ in range(dimensions)]
    pads = [draw(st.integers(0, 1)) for _ in range(2 * dimensions)]
    attributes = {
        "group": groups,
        "strides": [draw(st.integers(1, 2)) for _ in range(dimensions)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(dimensions)],
        "pads": pads,
    }
    seed = draw(st.integers(0, 2**16))
    shape = (before, behind // groups) if transposed else (behind, before // groups)
    constants = weights(seed, w_weight=(*shape, *kernel), w_bias=(behind,))
    wires = "r w.weight w.bias -> b" if draw(st.booleans()) else "r w.weight -> b"
    nodes = [
        batch_norm("x -> r", "one"),
        node("ConvTranspose" if transposed else "Conv", wires, **attributes),
        batch_norm("b -> y", "two"),
    ]
    constants |= statistics("one", before, seed) | statistics("two", behind, seed + 1)
    constants["two.bias"] += 1  # a single kernel that meets nothing must not leave all answers near 0
    model_proto = model_of(nodes, constants, shape=(before, *[9 - 2 * dimensions + 2] * dimensions))
    return model_proto, "rewritten" if transposed or any(pads) else "folded"


@given(neighbourhoods())
@settings(max_examples=60, deadline=None)
def test_any_convolution_between_any_batch_norms(neighbourhood):
    model_proto, before = neighbourhood
    folded = fold(model_proto)
    assert folded.actions == [before, "folded"]
    assert folded.difference < TOLERANCE
