"""Engine ``onnx``: a user's ONNX model, by ONNX Runtime in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, TaskSpec, Usage
from daifi_flows.errors import EncodingError, EngineError, ModelError, ProofError
from daifi_flows.proofs._onnx_task import OnnxTask, onnx_output, read_opening, read_task
from daifi_flows.proofs.circuits import (
    MODEL_FILE,
    Limits,
    OnnxModel,
    float_outputs,
    onnx_digest,
    poseidon,
    quantise,
    read_onnx,
)
from daifi_flows.ray_mesh._models import LocalModel, inline_model
from daifi_flows.ray_mesh.engines._engine import Control

__all__ = ["OnnxEngine", "onnx_ref"]

_LIMITS: Final = Limits(seconds=60.0, memory_bytes=8 << 30)


def onnx_ref(data: bytes, name: str = "onnx") -> ModelRef:
    """The reference of a model that travels with its step: what ``TaskSpec.model`` says."""
    return ModelRef(
        name=name, digest=onnx_digest(data), engine=OnnxEngine.name, precision="float32"
    )


class OnnxEngine:
    """Runs a stranger's model: several inputs, batches, standard operators, up to 8 MiB.

    Input: what :func:`daifi_flows.proofs._onnx_task.onnx_input` makes. Inputs that the task's
    content leaves out (so that seats and auditors do not see them) come as ``materials.private``,
    made by ``onnx_opening``. The file travels in ``materials.blobs`` and must hash to
    ``spec.model.digest``. Output: ``{"outputs": {name: nested lists}}``. Evidence for the zk
    scheme: ``onnx`` (the file) and ``inputs``, float32 by name.

    The file is checked and run in a process with limits on time and memory (about half a second to
    start), as ONNX Runtime is not built for hostile files.
    """

    name: ClassVar[str] = "onnx"
    evidence: ClassVar[frozenset[str]] = frozenset({"onnx", "inputs"})

    def model(self, ref: ModelRef, materials: Materials) -> LocalModel:
        """Find the file that ``ref`` names among the blobs; see :meth:`Engine.model`.

        Raises:
            ModelError: no blob of the step hashes to ``ref.digest``.
        """
        return self._find(ref, materials)[0]

    def load(self, model: LocalModel) -> None:
        """Nothing to load: the model comes with each step."""
        del model

    def run(
        self, spec: TaskSpec, input: Content, materials: Materials, control: Control
    ) -> Execution:
        """Compute the model's outputs.

        Raises:
            EngineError: the input or the model is malformed, or they do not fit each other.
            ModelError: the model did not come with the step.
            StepCancelled: ``control`` asked to stop.
        """
        started = time.perf_counter_ns()
        _, data = self._find(spec.model, materials)
        try:
            task = read_task(input)
            model = read_onnx(data)
            inputs = _inputs(task, model, materials)
            control.check()
            (flat,) = float_outputs(data, [inputs], _LIMITS)
            control.check()
            output = onnx_output(model, _split(flat, model))
        except EncodingError as error:
            raise EngineError(f"this step cannot be run: {error}") from error
        except ProofError as error:
            raise EngineError(f"ONNX Runtime cannot run this step: {error}") from error
        return Execution(
            output=output,
            usage=Usage(
                flops=2 * model.parameters * model.inputs[0].shape[0]
                if model.inputs[0].shape
                else 2 * model.parameters,
                duration_ms=(time.perf_counter_ns() - started) // 1_000_000,
            ),
            evidence={"onnx": data, "inputs": inputs},
        )

    def close(self) -> None:
        """Nothing stays open."""

    def _find(self, ref: ModelRef, materials: Materials) -> tuple[LocalModel, bytes]:
        for data in materials.blobs.values():
            try:
                return inline_model(ref, MODEL_FILE, data), data
            except ModelError:
                continue  # another blob of the step
        raise ModelError(
            f"no file that came with the step is the model {ref.name!r} "
            f"(digest 0x{ref.digest.hex()}); send its ONNX file"
        )


def _inputs(
    task: OnnxTask, model: OnnxModel, materials: Materials
) -> dict[str, NDArray[np.float32]]:
    """Float32 arrays in the model's shapes, from the task or from what opens it.

    Raises:
        EncodingError: they are not at hand, are not the model's, or are not those the task hashed.
    """
    given: Mapping[str, Any] | None = task.inputs
    if given is None:
        if materials.private is None:
            raise EncodingError("its inputs are neither in the task nor in its private materials")
        given = read_opening(materials.private)
    if set(given) != {tensor.name for tensor in model.inputs}:
        names = ", ".join(tensor.name for tensor in model.inputs)
        raise EncodingError(f"the model's inputs are {names}")
    found: dict[str, NDArray[np.float32]] = {}
    for tensor in model.inputs:
        values = np.asarray(given[tensor.name], np.float32)
        if values.size != tensor.size:
            raise EncodingError(f"the input {tensor.name!r} is not {list(tensor.shape)}")
        found[tensor.name] = values.reshape(tensor.shape)
        if task.hashes is not None:
            integers = quantise(found[tensor.name], task.settings.input_scale).reshape(-1)
            if task.hashes.get(tensor.name) != poseidon(integers.tolist()):
                raise EncodingError(f"the input {tensor.name!r} is not the one the task hashed")
    return found


def _split(flat: NDArray[np.float64], model: OnnxModel) -> Sequence[NDArray[np.float64]]:
    parts: list[NDArray[np.float64]] = []
    start = 0
    for tensor in model.outputs:
        parts.append(flat[start : start + tensor.size])
        start += tensor.size
    if start != flat.size:
        raise EncodingError("the model gives outputs of another size than its file says")
    return parts
