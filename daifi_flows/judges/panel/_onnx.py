"""The head as an ONNX model, so that the ``zk`` scheme can prove a score."""

from __future__ import annotations

from daifi_flows.judges.panel._head import Head

__all__ = ["head_to_onnx"]


def head_to_onnx(head: Head) -> bytes:
    """A model of inputs ``claimed`` and ``expected`` ``[1, d]`` and output ``logit`` ``[1, 1]``.

    The score is :func:`score_of` the logit, which a verifier computes itself. Opset 13.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tensors = dict(head.tensors())
    tensors["second"] = head.second[:, None]
    tensors["first_bias"] = head.first_bias[None]
    tensors["second_bias"] = head.second_bias[None]
    nodes = [
        helper.make_node("MatMul", ["claimed", "project"], ["p"]),
        helper.make_node("MatMul", ["expected", "project"], ["q"]),
        helper.make_node("Sub", ["p", "q"], ["gap"]),
        helper.make_node("Abs", ["gap"], ["distance"]),
        helper.make_node("Mul", ["p", "q"], ["product"]),
        helper.make_node("Concat", ["distance", "product"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "first"], ["mixed"]),
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
