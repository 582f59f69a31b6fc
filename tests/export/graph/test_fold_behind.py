"""Batch norm behind a layer: each precondition has a graph that keeps it and a twin that breaks it.

A fold that should have been declined shows twice here: in the report, and in answers that differ.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from foldserve.export.graph.fold_pass import FoldPass
from foldserve.export.graph.simplify import simplify
from foldserve.export.graph.weights import Float64Initializers
from tests.support.foldable import batch_norm, check, model_of, node, statistics, weights


def conv_norm(*, constants, wires="x conv.weight conv.bias", channels=6, shape=(3, 8, 8), **attributes):
    nodes = [node("Conv", f"{wires} -> a", **attributes), batch_norm("a -> y", "norm")]
    return model_of(nodes, constants | statistics("norm", channels), shape=shape)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_of_any_dimension_are_folded_into(dimensions):
    constants = weights(conv_weight=(6, 3, *[3] * dimensions), conv_bias=(6,))
    check(conv_norm(constants=constants, shape=(3, *[7] * dimensions)), ["folded"])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions_of_any_dimension_are_folded_into(dimensions):
    """With output padding, where nothing but the bias stands."""
    nodes = [
        node(
            "ConvTranspose",
            "x up.weight up.bias -> a",
            group=3,
            strides=[2] * dimensions,
            output_padding=[1] * dimensions,
        ),
        batch_norm("a -> y", "norm"),
    ]
    constants = weights(up_weight=(3, 2, *[2] * dimensions), up_bias=(6,)) | statistics("norm", 6)
    check(model_of(nodes, constants, shape=(3, *[5] * dimensions)), ["folded"])


@pytest.mark.parametrize("bias", ["", "made.up"], ids=["missing", "of another name"])
def test_a_bias_is_called_after_its_layer(bias):
    constants = weights(conv_weight=(6, 3, 3, 3)) | (weights(made_up=(6,)) if bias else {})
    folded = check(conv_norm(constants=constants, wires=f"x conv.weight {bias}"), ["folded"])
    assert "conv.bias" in {tensor.name for tensor in folded.model_proto.graph.initializer}


def test_a_bias_that_another_layer_uses_too_is_left_to_it():
    nodes = [
        node("Conv", "x one.weight one.bias -> a"),
        batch_norm("a -> b", "norm"),
        node("Conv", "b two.weight one.bias -> y"),
    ]
    constants = weights(one_weight=(3, 3, 1, 1), one_bias=(3,), two_weight=(3, 3, 1, 1))
    check(model_of(nodes, constants | statistics("norm", 3)), ["folded"])


def test_bias_that_is_a_graph_output_is_not_changed():
    nodes = [node("Conv", "x one.weight one.bias -> a"), batch_norm("a -> y", "norm")]
    constants = weights(one_weight=(3, 3, 1, 1), one_bias=(3,)) | statistics("norm", 3)
    check(model_of(nodes, constants, outputs=("y", "one.bias")), ["folded"])


def test_a_bias_that_is_the_batch_norms_own_is_left_to_it():
    """Tied parameters: one constant is the convolution's bias and the next batch norm's beta."""
    nodes = [
        node("Conv", "x one.weight shared.bias -> a"),
        node("BatchNormalization", "a n.weight shared.bias n.running_mean n.running_var -> b"),
        node("Relu", "b -> c"),
        node("BatchNormalization", "c n.weight shared.bias n.running_mean n.running_var -> y"),
    ]
    constants = weights(one_weight=(3, 3, 1, 1), shared_bias=(3,)) | statistics("n", 3)
    check(model_of(nodes, constants), ["folded", "rewritten"])


def test_a_weight_used_twice_is_not_changed():
    nodes = [
        node("Conv", "x w.weight -> a", pads=[1, 1, 1, 1]),
        batch_norm("a -> b", "norm"),
        node("Conv", "b w.weight -> y", pads=[1, 1, 1, 1]),
    ]
    folded = check(model_of(nodes, weights(w_weight=(3, 3, 3, 3)) | statistics("norm", 3)), ["rewritten"])
    assert "the weight of w before it is used 2 times" in folded.reasons
    assert "the weight of w behind it is used 2 times" in folded.reasons


def test_weight_that_is_a_graph_output_is_not_changed():
    nodes = [node("Conv", "x w.weight -> a"), batch_norm("a -> y", "norm")]
    constants = weights(w_weight=(3, 3, 3, 3)) | statistics("norm", 3)
    folded = check(model_of(nodes, constants, outputs=("y", "w.weight")), ["rewritten"])
    assert "is used 2 times" in folded.reasons


def test_a_weight_that_is_computed_is_not_changed():
    nodes = [node("Relu", "v -> w"), node("Conv", "x w -> a"), batch_norm("a -> y", "norm")]
    folded = check(model_of(nodes, weights(v=(6, 3, 3, 3)) | statistics("norm", 6)), ["rewritten"])
    assert "is computed, not stored" in folded.reasons


def test_a_weight_that_a_caller_may_replace_is_not_changed():
    """An initializer that is a graph input too is only a default."""
    constants = weights(w_weight=(6, 3, 3, 3))
    overridable = helper.make_tensor_value_info("w.weight", TensorProto.FLOAT, [6, 3, 3, 3])
    nodes = [node("Conv", "x w.weight -> a"), batch_norm("a -> y", "norm")]
    model_proto = model_of(nodes, constants | statistics("norm", 6), more_inputs=(overridable,))
    other = {"w.weight": np.ascontiguousarray(constants["w.weight"][::-1])}
    check(model_proto, ["rewritten"], feeds=other)


def test_a_bias_that_is_computed_is_not_changed():
    nodes = [node("Relu", "v -> b"), node("Conv", "x w b -> a"), batch_norm("a -> y", "norm")]
    folded = check(model_of(nodes, weights(w=(6, 3, 3, 3), v=(6,)) | statistics("norm", 6)), ["rewritten"])
    assert "the bias of w before it is computed" in folded.reasons


def test_output_with_another_consumer_stops_folding():
    nodes = [
        node("Conv", "x w.weight -> a"),
        batch_norm("a -> b", "norm"),
        node("Add", "a b -> y"),
    ]
    folded = check(model_of(nodes, weights(w_weight=(6, 3, 3, 3)) | statistics("norm", 6)), ["rewritten"])
    assert "the output of w before it is used elsewhere too" in folded.reasons


def test_output_that_is_a_graph_output_stops_folding():
    nodes = [node("Conv", "x w.weight -> a"), batch_norm("a -> y", "norm")]
    constants = weights(w_weight=(6, 3, 3, 3)) | statistics("norm", 6)
    folded = check(model_of(nodes, constants, outputs=("a", "y")), ["rewritten"])
    assert "used elsewhere too" in folded.reasons


def test_conv_of_another_domain_is_not_folded_into():
    """It may compute anything; ONNX Runtime cannot run this one, so only the report is looked at."""
    model = ir.from_proto(conv_norm(constants=weights(conv_weight=(6, 3, 3, 3), conv_bias=(6,))))
    next(iter(model.graph)).domain = "somebody.else"
    (record,) = FoldPass(model.graph, Float64Initializers(model.graph)).fold_batch_norms()
    assert record.action == "rewritten"
    next(node for node in model.graph if node.op_type == "Mul").op_type = "BatchNormalization"
    next(node for node in model.graph if node.op_type == "BatchNormalization").domain = "somebody.else"
    assert FoldPass(model.graph, Float64Initializers(model.graph)).fold_batch_norms() == []


# What does nothing, between the two; `foldserve.export.graph.simplify` takes it out before the pass.


def simplified(*between, behind=(), outputs=("y",), domain=""):
    nodes = [node("Conv", "x w.weight -> a"), *between, batch_norm("b -> y", "norm"), *behind]
    constants = weights(w_weight=(6, 3, 3, 3)) | statistics("norm", 6)
    constants |= {"half": np.float32(0.5), "off": np.array(False), "on": np.array(True)}
    model = ir.from_proto(model_of(nodes, constants, outputs=outputs))
    list(model.graph)[1].domain = domain
    simplify(model)
    return ir.to_proto(model)


@pytest.mark.parametrize("wires", ["a -> b", "a half -> b", "a half off -> b", "a half off -> b mask"])
def test_inactive_dropout_does_not_stop_folding(wires):
    assert check(simplified(node("Dropout", wires)), ["folded"]).operations == ["Conv"]


def test_identity_does_not_stop_folding():
    between = [node("Identity", "a -> i"), node("Identity", "i -> b")]
    assert check(simplified(*between), ["folded"]).operations == ["Conv"]


@pytest.mark.parametrize("last", ["Identity", "Dropout"])
def test_removed_no_op_at_the_end_keeps_the_output_name(last):
    model_proto = simplified(node("Identity", "a -> b"), behind=[node(last, "y -> z")], outputs=("z",))
    assert check(model_proto, ["folded"]).operations == ["Conv"]


def test_identity_between_two_graph_outputs_is_kept():
    """One hands on the input, one another answer."""
    between = [node("Identity", "x -> z"), node("Identity", "a -> b")]
    folded = check(simplified(*between, outputs=("y", "z", "a", "b")), ["rewritten"])
    assert folded.operations.count("Identity") == 2


def test_active_dropout_is_not_removed():
    """Nor folded across; that nothing random is published is `foldserve.export.graph.serialize`'s to see."""
    model = ir.from_proto(simplified(node("Dropout", "a half on -> b")))
    (record,) = FoldPass(model.graph, Float64Initializers(model.graph)).fold_batch_norms()
    assert record.action == "rewritten"
    assert [entry.op_type for entry in model.graph] == ["Conv", "Dropout", "Mul", "Add"]


@pytest.mark.parametrize("operation", ["Identity", "Dropout"])
def test_an_operation_of_another_domain_may_do_anything_and_stays(operation):
    model_proto = simplified(node(operation, "a -> b"), domain="somebody.else")
    assert [entry.op_type for entry in model_proto.graph.node] == ["Conv", operation, "BatchNormalization"]


def test_mask_of_a_dropout_that_is_off_stays():
    """Its mask is made of the shape alone, so that nothing stands between convolution and batch norm."""
    between = [node("Dropout", "a half off -> b mask"), node("Cast", "mask -> z", to=TensorProto.FLOAT)]
    check(simplified(*between, outputs=("y", "z")), ["folded"])


# Linear layers.


def gemm_norm(constants, **attributes):
    nodes = [node("Gemm", "x fc.weight fc.bias -> a", **attributes), batch_norm("a -> y", "norm")]
    return model_of(nodes, constants | statistics("norm", 5), shape=(4,))


@pytest.mark.parametrize("bias", [(), (1,), (5,), (1, 1), (1, 5)], ids=str)
@pytest.mark.parametrize("transposed", [0, 1])
def test_linear_layers_with_any_bias_per_feature_are_folded_into(bias, transposed):
    constants = weights(fc_weight=(5, 4) if transposed else (4, 5), fc_bias=bias)
    folded = check(gemm_norm(constants, transB=transposed), ["folded"])
    (tensor,) = (entry for entry in folded.model_proto.graph.initializer if entry.name == "fc.bias")
    assert tuple(tensor.dims) == bias  # as the file declares it; one of five is another constant


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 0.5}], ids=str)
def test_a_linear_layer_with_factors_of_its_own_is_left_alone(attributes):
    check(gemm_norm(weights(fc_weight=(4, 5), fc_bias=(5,)), **attributes), ["rewritten"])


def test_a_bias_that_is_one_per_image_is_not_taken_for_one_per_feature():
    """[5, 1] added to 5 images of 5 features: as many numbers as features, and along the other axis."""
    nodes = [node("Gemm", "x fc.weight fc.bias -> a"), batch_norm("a -> y", "norm")]
    constants = weights(fc_weight=(4, 5), fc_bias=(5, 1)) | statistics("norm", 5)
    model_proto = model_of(nodes, constants, shape=(4,))
    model_proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    check(onnx.shape_inference.infer_shapes(model_proto), ["rewritten"])


def test_a_shape_between_layer_and_batch_norm_is_no_consumer():
    nodes = [
        node("Conv", "x w.weight -> a"),
        node("Shape", "a -> shape"),
        node("Cast", "shape -> sides", to=TensorProto.FLOAT),
        batch_norm("a -> y", "norm"),
    ]
    constants = weights(w_weight=(6, 3, 3, 3)) | statistics("norm", 6)
    check(model_of(nodes, constants, outputs=("y", "sides")), ["folded"])
