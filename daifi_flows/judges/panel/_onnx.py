"""The head as an ONNX model, so that the ``zk`` scheme can prove a score."""

from __future__ import annotations

from typing import Final

from daifi_flows.judges.panel._head import Head

__all__ = ["HEAD_CIRCUIT", "HEAD_ERROR", "head_to_onnx"]

HEAD_CIRCUIT: Final = {"input_scale": 8, "param_scale": 8, "rebase_multiplier": 2}
"""For ``zk``: four products in a row at its default of 12 bits leave the range of its tables. The
layout is fitted; the shipped head takes 2^11 rows, and two seconds to prove."""

HEAD_ERROR: Final = 0.25
"""How far a proven logit may lie from the reported one: weights and inputs of 8 bits."""


def head_to_onnx(head: Head) -> bytes:
    """A model of inputs ``claimed`` and ``expected`` ``[1, d]`` and output ``logit`` ``[1, 1]``.

    The score is :func:`score_of` the logit, which a verifier computes itself. Opset 13.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tensors = dict(head.tensors())
    first, rank = tensors.pop("first"), head.project.shape[1]
    tensors["of_distance"], tensors["of_product"] = first[:rank], first[rank:]
    tensors["second"] = head.second[:, None]
    tensors["first_bias"] = head.first_bias[None]
    tensors["second_bias"] = head.second_bias[None]
    nodes = [
        helper.make_node("MatMul", ["claimed", "project"], ["p"]),
        helper.make_node("MatMul", ["expected", "project"], ["q"]),
        helper.make_node("Sub", ["p", "q"], ["over"]),
        helper.make_node("Sub", ["q", "p"], ["under"]),
        helper.make_node("Relu", ["over"], ["above"]),  # ezkl 23 cannot lay out Abs
        helper.make_node("Relu", ["under"], ["below"]),
        helper.make_node("Add", ["above", "below"], ["distance"]),
        helper.make_node("Mul", ["p", "q"], ["product"]),
        helper.make_node("MatMul", ["distance", "of_distance"], ["far"]),
        helper.make_node("MatMul", ["product", "of_product"], ["near"]),
        helper.make_node("Add", ["far", "near"], ["mixed"]),
        helper.make_node("Add", ["mixed", "first_bias"], ["biased"]),
        helper.make_node("Relu", ["biased"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["raw"]),
        helper.make_node("Add", ["raw", "second_bias"], ["logit"]),
    ]
    width = head.width
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
            for name in ("claimed", "expected")
        ],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
