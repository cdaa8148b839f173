from __future__ import annotations

import numpy as np
import pytest

from probekd.student.onnx.int8 import channel_maxima, constant_products, sharing, smooth

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
D = 6


@pytest.fixture
def model() -> onnx.ModelProto:
    """x @ a and x @ b share their activation; (x @ a) @ (x @ b)^T has no constant weights."""
    draw = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(draw.normal(size=(D, 4)).astype(np.float32), name) for name in "ab"]
    nodes = [
        onnx.helper.make_node("Identity", ["x"], ["h"]),
        onnx.helper.make_node("MatMul", ["h", "a"], ["left"]),
        onnx.helper.make_node("MatMul", ["h", "b"], ["right"]),
        onnx.helper.make_node("Transpose", ["right"], ["turned"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["left", "turned"], ["y"]),
    ]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", D]), ("y", ["n", "n"]))
    ]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def test_smoothing_changes_no_answer_and_evens_out_the_channels(model: onnx.ModelProto) -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(9, D)).astype(np.float32)
    x[:, 2] *= 50
    before = run(model, x)
    products = constant_products(model.graph)
    assert {name: [n.output[0] for n in nodes] for name, nodes in products.items()} == {"h": ["left", "right"]}
    maxima = channel_maxima(model, products, [{"x": x[:4]}, {"x": x[4:]}])
    np.testing.assert_array_equal(maxima["h"], np.abs(x).max(0))
    smooth(model.graph, products, maxima)
    onnx.checker.check_model(model)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-3, atol=1e-3)
    (scale,) = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(".scale")]
    evened = np.abs(x * scale).max(0)
    assert evened.max() / evened.min() < np.abs(x).max() / np.abs(x).max(0).min() / 4


def test_activations_that_meet_the_same_weights_share_their_scale(model: onnx.ModelProto) -> None:
    """As in a network whose blocks share their weights: multiplied in once for each of them, scales would compound."""
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.full(D, 3, dtype=np.float32), "three"))
    graph.node[2].input[0] = "g"
    graph.node[2].input[1] = "a"
    graph.node.insert(0, onnx.helper.make_node("Mul", ["x", "three"], ["g"]))
    x = np.random.default_rng(1).normal(size=(9, D)).astype(np.float32) * np.float32([1, 1, 50, 1, 1, 1])
    before = run(model, x)
    products = constant_products(graph)
    assert sharing(products) == [["h", "g"]]
    smooth(graph, products, channel_maxima(model, products, [{"x": x}]))
    onnx.checker.check_model(model)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-3)


def test_groups_that_a_later_activation_joins_are_one() -> None:
    meet = {"x": "a", "y": "b", "z": "c", "w": "ab"}
    products = {
        name: [onnx.helper.make_node("MatMul", [name, weight], [name + weight]) for weight in weights]
        for name, weights in meet.items()
    }
    assert sharing(products) == [["z"], ["y", "x", "w"]]
