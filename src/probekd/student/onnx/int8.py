"""A student's ONNX file with 8-bit weights, whose activations are quantised as they come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probekd.student.onnx import need
from probekd.student.onnx.quiet import quietly

# How much of the spread between the channels of an activation is moved into the weights. On MiniLM students of two
# tasks this halves the change of probabilities; the paper's 0.5 does less there, and 1 as little as none.
SMOOTHING = 0.75
SMALLEST = 1e-5


def write_int8(source: Path, batches: Iterable[Mapping[str, np.ndarray]], path: Path) -> None:
    """Write a graph with the weights of its matrix products in 8 bits (7 used) and activations quantised as they come.

    An activation is quantised with one scale for all of its channels, and encoders have a few channels many times larger
    than the rest, so channels are evened out first: x @ W = (x / s) @ (s * W) with s from what ``batches`` show
    (SmoothQuant, arXiv 2211.10438). Processors without VNNI overflow on the weights' eighth bit; the file is to be right
    on all of them.

    Args:
        source: The graph in float32.
        batches: Inputs like those to come.
        path: The file.
    """
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    model = onnx.load(source)
    products = constant_products(model.graph)
    smooth(model.graph, products, channel_maxima(model, products, batches))
    with quietly():
        quantization.quantize_dynamic(
            model, path, weight_type=quantization.QuantType.QInt8, per_channel=True, reduce_range=True
        )


def constant_products(graph: Any) -> dict[str, list[Any]]:
    """Matrix products with constant weights, by the activation that they share."""
    constant = {tensor.name for tensor in graph.initializer}
    found = defaultdict(list)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constant:
            found[node.input[0]].append(node)
    return dict(found)


def channel_maxima(
    model: Any, activations: Iterable[str], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Largest absolute value of each channel (d,) of some activations (..., d), over all batches."""
    onnx, onnxruntime = need("onnx"), need("onnxruntime")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = list(activations)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, values in zip(names, session.run(names, dict(batch)), strict=True):
            most = np.abs(values).reshape(-1, values.shape[-1]).max(0)
            found[name] = np.maximum(found[name], most) if name in found else most
    return found


def smooth(graph: Any, products: Mapping[str, list[Any]], maxima: Mapping[str, np.ndarray]) -> None:
    """Divide activations by a scale for each channel and multiply it into the weights they meet, in place.

    Activations that meet the same weights, as those of all blocks of an ALBERT do, are divided by the same scale.
    """
    onnx = need("onnx")
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for number, names in enumerate(sharing(products)):
        shared = dict.fromkeys(node.input[1] for name in names for node in products[name])
        weights = {weight: onnx.numpy_helper.to_array(initializers[weight]) for weight in shared}
        heaviest = np.max([np.abs(w).max(1) for w in weights.values()], axis=0)  # (d,)
        spread = np.maximum(np.max([maxima[name] for name in names], axis=0), SMALLEST) ** SMOOTHING
        scale = (spread / np.maximum(heaviest, SMALLEST) ** (1 - SMOOTHING)).astype(np.float32)
        for weight, values in weights.items():
            initializers[weight].CopyFrom(onnx.numpy_helper.from_array(values * scale[:, None], weight))
        divisor = f"smoothed.{number}.scale"
        graph.initializer.append(onnx.numpy_helper.from_array(1 / scale, divisor))
        for place, name in enumerate(names):
            evened = f"smoothed.{number}.{place}"
            division = onnx.helper.make_node("Mul", [name, divisor], [evened], name=evened)
            graph.node.insert(list(graph.node).index(products[name][0]), division)
            for node in products[name]:
                node.input[0] = evened


def sharing(products: Mapping[str, list[Any]]) -> list[list[str]]:
    """The activations in groups, of which no two meet the same weights."""
    groups: list[tuple[list[str], set[str]]] = []
    for name, nodes in products.items():
        names, weights = [name], {node.input[1] for node in nodes}
        apart = []
        for group in groups:
            if group[1] & weights:
                names, weights = group[0] + names, group[1] | weights
            else:
                apart.append(group)
        groups = [*apart, (names, weights)]
    return [names for names, _ in groups]
