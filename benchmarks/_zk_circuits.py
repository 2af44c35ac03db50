"""The five circuits of the ``zk`` benchmark: ezkl's own calibration against the tuner.

Both sides are compiled and proven by the same code in the same processes, on the same inputs. The
error bound that the tuner is given is the error of ezkl's own choice, so it may not be faster by
being less exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CIRCUITS", "BenchCircuit", "Measured", "compare", "measure_default", "measure_tuned"]

Inputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class BenchCircuit:
    """A model, and inputs like those it will see."""

    name: str
    onnx: bytes
    calibration: tuple[Inputs, ...]
    held_out: tuple[Inputs, ...]


def _model(
    nodes: Sequence[tuple[str, Sequence[str], str, Mapping[str, Any]]],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    weights: Mapping[str, NDArray[Any]],
) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(op, list(given), [out], **kw) for op, given, out, kw in nodes],
        "circuit",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _normal(seed: int, *shape: int, fan_in: int) -> NDArray[np.float32]:
    """He initialisation: what keeps activations near their input's size."""
    values = np.random.default_rng(seed).normal(size=shape) * np.sqrt(2.0 / fan_in)
    return values.astype(np.float32)


def _units(seed: int, *shape: int) -> NDArray[np.float32]:
    """Unit rows, as an embedding model gives."""
    values = np.random.default_rng(seed).normal(size=shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def policy() -> bytes:
    """The demo's policy: cosine similarity of a text with four tools."""
    return _model(
        [("MatMul", ["input", "tools"], "scores", {})],
        {"input": [1, 384]},
        {"scores": [1, 4]},
        {"tools": _units(1, 4, 384).T},
    )


def mlp(hidden: int, out: int) -> bytes:
    """384 → hidden → out with ReLU: a judge's head over embeddings."""
    return _model(
        [
            ("Gemm", ["input", "w1", "b1"], "h", {}),
            ("Relu", ["h"], "r", {}),
            ("Gemm", ["r", "w2", "b2"], "scores", {}),
        ],
        {"input": [1, 384]},
        {"scores": [1, out]},
        {
            # an embedding has unit norm, not unit entries
            "w1": _normal(2, 384, hidden, fan_in=1),
            "b1": _normal(3, hidden, fan_in=200),
            "w2": _normal(4, hidden, out, fan_in=hidden),
            "b2": _normal(5, out, fan_in=200),
        },
    )


def ranker() -> bytes:
    """Two towers (384 → 16, ReLU, shared) and their products: eight candidates for one query."""
    return _model(
        [
            ("MatMul", ["query", "w"], "q0", {}),
            ("Relu", ["q0"], "q", {}),
            ("MatMul", ["candidates", "w"], "c0", {}),
            ("Relu", ["c0"], "c", {}),
            ("Transpose", ["q"], "qt", {"perm": [1, 0]}),
            ("MatMul", ["c", "qt"], "scores", {}),
        ],
        {"query": [1, 384], "candidates": [8, 384]},
        {"scores": [8, 1]},
        {"w": _normal(6, 384, 16, fan_in=16)},
    )


def cnn() -> bytes:
    """16×16 image, two strided 3×3 convolutions, ten classes."""
    conv = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    return _model(
        [
            ("Conv", ["image", "k1", "b1"], "c1", conv),
            ("Relu", ["c1"], "r1", {}),
            ("Conv", ["r1", "k2", "b2"], "c2", conv),
            ("Relu", ["c2"], "r2", {}),
            ("Flatten", ["r2"], "f", {}),
            ("Gemm", ["f", "w", "b"], "classes", {}),
        ],
        {"image": [1, 1, 16, 16]},
        {"classes": [1, 10]},
        {
            "k1": _normal(7, 8, 1, 3, 3, fan_in=9),
            "b1": _normal(8, 8, fan_in=200),
            "k2": _normal(9, 8, 8, 3, 3, fan_in=72),
            "b2": _normal(10, 8, fan_in=200),
            "w": _normal(11, 128, 10, fan_in=128),
            "b": _normal(12, 10, fan_in=200),
        },
    )


def _samples(kind: str, seed: int, count: int) -> tuple[Inputs, ...]:
    found: list[Inputs] = []
    for index in range(count):
        at = 1000 * seed + 10 * index
        match kind:
            case "ranker":
                found.append({"query": _units(at, 1, 384), "candidates": _units(at + 1, 8, 384)})
            case "cnn":
                image = np.random.default_rng(at).uniform(0, 1, (1, 1, 16, 16))
                found.append({"image": image.astype(np.float32)})
            case _:
                found.append({"input": _units(at, 1, 384)})
    return tuple(found)


def _circuit(name: str, onnx: bytes) -> BenchCircuit:
    return BenchCircuit(name, onnx, _samples(name, 1, 8), _samples(name, 2, 8))


CIRCUITS: Final = {
    "policy": lambda: _circuit("policy", policy()),
    "mlp-16-8": lambda: _circuit("mlp-16-8", mlp(16, 8)),
    "mlp-64-16": lambda: _circuit("mlp-64-16", mlp(64, 16)),
    "ranker": lambda: _circuit("ranker", ranker()),
    "cnn": lambda: _circuit("cnn", cnn()),
}


@dataclass(frozen=True)
class Measured:
    """One way to prove one circuit. Times are medians, in seconds; sizes in bytes.

    Attributes:
        error: largest absolute difference from ONNX Runtime, over the calibration inputs.
        held_out_error: the same over inputs that no settings were chosen on.
        peak_bytes: memory that the proving process touched.
    """

    settings: Mapping[str, Any]
    prove_seconds: float
    cpu_seconds: float
    verify_seconds: float
    setup_seconds: float
    proof_bytes: int
    key_bytes: int
    peak_bytes: int
    error: float
    held_out_error: float


def compare(name: str, workdir: Path, repeats: int = 3) -> tuple[Measured, Measured]:
    """ezkl's default and the tuned circuit, at the default's error."""
    circuit = CIRCUITS[name]()
    default = measure_default(circuit, workdir, repeats)
    return default, measure_tuned(circuit, default.error, workdir, repeats)


def measure_default(circuit: BenchCircuit, workdir: Path, repeats: int = 3) -> Measured:
    """What ``ezkl.calibrate_settings`` (target ``resources``) chooses, proven."""
    from daifi_flows.proofs.circuits import CircuitSettings, Limits, read_onnx
    from daifi_flows.proofs.circuits._process import run_job

    limits = Limits(seconds=900.0, memory_bytes=16 << 30)
    model = read_onnx(circuit.onnx)
    samples = [
        [np.asarray(sample[tensor.name]).ravel().tolist() for tensor in model.inputs]
        for sample in circuit.calibration
    ]
    with TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        onnx.write_bytes(circuit.onnx)
        chosen = run_job(
            {
                "do": "calibrate",
                "onnx": str(onnx),
                "inputs": samples,
                "target": "resources",
                "run_args": CircuitSettings(freivalds=True, check_ranges=True).run_args()
                | {"decomp_base": 16384, "decomp_legs": 2, "logrows": 17},
            },
            limits,
        )["settings"]["run_args"]
    settings = CircuitSettings(
        input_scale=chosen["input_scale"],
        param_scale=chosen["param_scale"],
        rebase_multiplier=chosen["scale_rebase_multiplier"],
        decomp_base=chosen["decomp_base"],
        decomp_legs=chosen["decomp_legs"],
        num_inner_cols=chosen["num_inner_cols"],
        logrows=chosen["logrows"],
        check_ranges=True,
        freivalds=True,
    )
    return _measure(circuit, settings, workdir, repeats)


def measure_tuned(
    circuit: BenchCircuit, max_error: float, workdir: Path, repeats: int = 3
) -> Measured:
    """What the tuner chooses for this error bound, proven."""
    from daifi_flows.proofs.circuits import tune

    tuned = tune(circuit.onnx, circuit.calibration, max_error, workdir)
    return _measure(circuit, tuned.settings, workdir, repeats)


def _measure(circuit: BenchCircuit, settings: Any, workdir: Path, repeats: int) -> Measured:
    from daifi_flows.proofs.circuits import Limits, compile_circuit, float_outputs

    limits = Limits(seconds=900.0, memory_bytes=16 << 30)
    started = perf_counter()
    with TemporaryDirectory() as fresh:  # a cache of its own, so that the setup is measured
        (Path(fresh) / "srs").mkdir()
        compile_circuit(circuit.onnx, settings, workdir, limits)  # makes the SRS when it must
        for file in (workdir / "srs").iterdir():
            (Path(fresh) / "srs" / file.name).symlink_to(file.absolute())
        started = perf_counter()
        compiled = compile_circuit(circuit.onnx, settings, Path(fresh), limits)
        setup_seconds = perf_counter() - started
        snarks = [compiled.prove(sample) for sample in circuit.held_out[:repeats]]
        times: list[float] = []
        for snark in (snarks[0], *snarks):  # the first one starts the verifier's process
            started = perf_counter()
            fault = compiled.verify(snark)
            times.append(perf_counter() - started)
            if fault is not None:
                raise RuntimeError(f"{circuit.name}: an honest proof does not hold: {fault}")
        errors: list[float] = []
        for samples in (circuit.calibration, circuit.held_out):
            exact = float_outputs(circuit.onnx, samples, limits)
            worst = 0.0
            for outputs, floats in zip(compiled.evaluate(samples), exact, strict=True):
                values = [
                    np.array(outputs[tensor.name], np.float64) * 2.0**-scale
                    for tensor, scale in zip(compiled.outputs, compiled.output_scales, strict=True)
                ]
                worst = max(worst, float(np.abs(np.concatenate(values) - floats).max()))
            errors.append(worst)
        spent = [snark.spent for snark in snarks if snark.spent is not None]
        return Measured(
            settings=settings.plain(),
            prove_seconds=float(np.median([item.seconds for item in spent])),
            cpu_seconds=float(np.median([item.cpu_seconds for item in spent])),
            verify_seconds=float(np.median(times[1:])),
            setup_seconds=setup_seconds,
            proof_bytes=len(snarks[0].proof),
            key_bytes=(compiled.path / "pk").stat().st_size,
            peak_bytes=max(item.peak_bytes for item in spent),
            error=errors[0],
            held_out_error=errors[1],
        )
