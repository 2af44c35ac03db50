"""The five circuits of the ``zk`` benchmark: ezkl's own calibration against the tuner.

Both sides are compiled by the same code and proven in turn, on the same inputs. The error bound
that the tuner is given is the error of ezkl's own choice, so it may not be faster by being less
exact.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks._report import Figure

if TYPE_CHECKING:
    from daifi_flows.proofs.circuits import Circuit, CircuitSettings, Limits, Snark

__all__ = ["CIRCUITS", "BenchCircuit", "Measured", "compare", "default_settings", "figures"]

_BATCH: Final = 16

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


def mlp(hidden: int, out: int, batch: int = 1) -> bytes:
    """384 → hidden → out with ReLU: a judge's head over embeddings."""
    return _model(
        [
            ("Gemm", ["input", "w1", "b1"], "h", {}),
            ("Relu", ["h"], "r", {}),
            ("Gemm", ["r", "w2", "b2"], "scores", {}),
        ],
        {"input": [batch, 384]},
        {"scores": [batch, out]},
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


def batched() -> BenchCircuit:
    """The larger MLP on a batch: one proof of as many inferences."""
    samples = tuple({"input": _units(at, _BATCH, 384)} for at in range(5000, 5008))
    return BenchCircuit("mlp-64-16 batch", mlp(64, 16, _BATCH), samples[:4], samples[4:])


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
    """One way to prove one circuit. Times in seconds, a sample a proof; sizes in bytes.

    Attributes:
        error: largest absolute difference from ONNX Runtime, over the calibration inputs.
        held_out_error: the same over inputs that no settings were chosen on.
        peak_bytes: memory that the proving process touched.
    """

    settings: Mapping[str, Any]
    prove_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    verify_seconds: tuple[float, ...]
    setup_seconds: float
    proof_bytes: int
    key_bytes: int
    peak_bytes: int
    error: float
    held_out_error: float


def figures(repeats: int = 3) -> list[Figure]:
    """All circuits, default and tuned, and a batch in one proof."""
    found: list[Figure] = []
    with TemporaryDirectory(prefix="daifi-bench-") as folder:
        workdir = Path(folder)
        for name in CIRCUITS:
            default, tuned = compare(CIRCUITS[name](), workdir, repeats)
            found += _figures(name, default, tuned)
            if name == "mlp-64-16":
                single = default
        batch = measure_tuned(batched(), single.error, workdir, repeats)
        found.append(
            Figure(
                f"zk mlp-64-16 batch of {_BATCH}: times faster per inference than ezkl's default",
                [median(single.prove_seconds) * _BATCH / each for each in batch.prove_seconds],
                "x",
                ">= 4",
                {"batch_prove_s": round(median(batch.prove_seconds), 3)},
            )
        )
    return found


def _figures(name: str, default: Measured, tuned: Measured) -> list[Figure]:
    pairs = zip(default.prove_seconds, tuned.prove_seconds, strict=True)
    sizes = [
        Figure(f"zk {name} {what}", [mine / 1e6], "MB", "", {"default": round(theirs / 1e6, 3)})
        for what, mine, theirs in (
            ("proof size", tuned.proof_bytes, default.proof_bytes),
            ("proving key", tuned.key_bytes, default.key_bytes),
            ("peak memory", tuned.peak_bytes, default.peak_bytes),
        )
    ]
    return [
        Figure(
            f"zk {name} times faster than ezkl's default",
            [theirs / mine for theirs, mine in pairs],
            "x",
            ">= 4",
            {
                "default_s": round(median(default.prove_seconds), 3),
                "default_cpu_s": round(median(default.cpu_seconds), 3),
                "tuned_cpu_s": round(median(tuned.cpu_seconds), 3),
            },
        ),
        Figure(
            f"zk {name} prove",
            list(tuned.prove_seconds),
            "s",
            "<= 1.5" if name == "policy" else "",
            {"default": round(median(default.prove_seconds), 3)},
        ),
        Figure(
            f"zk {name} verify",
            [1e3 * each for each in tuned.verify_seconds],
            "ms",
            "<= 50",
            {"default": round(1e3 * median(default.verify_seconds), 1)},
        ),
        Figure(
            f"zk {name} error",
            [tuned.held_out_error],
            "",
            "",
            {"default": default.held_out_error, "bound": default.error},
        ),
        *sizes,
    ]


def compare(circuit: BenchCircuit, workdir: Path, repeats: int = 3) -> tuple[Measured, Measured]:
    """ezkl's default and the tuned circuit at the default's error, proven in turn."""
    from daifi_flows.proofs.circuits import tune

    with ExitStack() as stack:
        default = stack.enter_context(_prepared(circuit, default_settings(circuit), workdir))
        bound = default.errors[0]
        settings = tune(circuit.onnx, circuit.calibration, bound, workdir).settings
        tuned = stack.enter_context(_prepared(circuit, settings, workdir))
        for sample in circuit.held_out[:repeats]:
            default.prove(sample)
            tuned.prove(sample)
        return default.measured(), tuned.measured()


def measure_tuned(
    circuit: BenchCircuit, max_error: float, workdir: Path, repeats: int = 3
) -> Measured:
    """What the tuner chooses for this error bound, proven."""
    from daifi_flows.proofs.circuits import tune

    settings = tune(circuit.onnx, circuit.calibration, max_error, workdir).settings
    with _prepared(circuit, settings, workdir) as tuned:
        for sample in circuit.held_out[:repeats]:
            tuned.prove(sample)
        return tuned.measured()


def default_settings(circuit: BenchCircuit) -> CircuitSettings:
    """What ``ezkl.calibrate_settings`` (target ``resources``) chooses."""
    from daifi_flows.proofs.circuits import CircuitSettings, read_onnx
    from daifi_flows.proofs.circuits._process import run_job

    model = read_onnx(circuit.onnx)
    samples = [
        [np.asarray(sample[tensor.name]).ravel().tolist() for tensor in model.inputs]
        for sample in circuit.calibration
    ]
    base = CircuitSettings(
        decomp_base=16384, decomp_legs=2, logrows=17, freivalds=True, check_ranges=True
    )
    with TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        onnx.write_bytes(circuit.onnx)
        request = {
            "do": "calibrate",
            "onnx": str(onnx),
            "inputs": samples,
            "target": "resources",
            "run_args": base.run_args(),
        }
        chosen = run_job(request, _limits())["settings"]["run_args"]
    return replace(
        base,
        input_scale=chosen["input_scale"],
        param_scale=chosen["param_scale"],
        rebase_multiplier=chosen["scale_rebase_multiplier"],
        decomp_base=chosen["decomp_base"],
        decomp_legs=chosen["decomp_legs"],
        num_inner_cols=chosen["num_inner_cols"],
        logrows=chosen["logrows"],
    )


@dataclass
class _Prepared:
    """A compiled circuit, and what its proofs took so far."""

    circuit: Circuit
    setup_seconds: float
    errors: tuple[float, float]
    snarks: list[Snark]
    verify_seconds: list[float]

    def prove(self, sample: Inputs) -> None:
        snark = self.circuit.prove(sample)
        for repeat in range(2):  # the first one starts the verifier's process
            started = perf_counter()
            fault = self.circuit.verify(snark)
            if repeat:
                self.verify_seconds.append(perf_counter() - started)
            if fault is not None:
                raise RuntimeError(f"an honest proof does not hold: {fault}")
        self.snarks.append(snark)

    def measured(self) -> Measured:
        spent = [snark.spent for snark in self.snarks if snark.spent is not None]
        return Measured(
            settings=self.circuit.settings.plain(),
            prove_seconds=tuple(item.seconds for item in spent),
            cpu_seconds=tuple(item.cpu_seconds for item in spent),
            verify_seconds=tuple(self.verify_seconds),
            setup_seconds=self.setup_seconds,
            proof_bytes=len(self.snarks[0].proof),
            key_bytes=(self.circuit.path / "pk").stat().st_size,
            peak_bytes=max(item.peak_bytes for item in spent),
            error=self.errors[0],
            held_out_error=self.errors[1],
        )


@contextmanager
def _prepared(
    circuit: BenchCircuit, settings: CircuitSettings, workdir: Path
) -> Generator[_Prepared]:
    from daifi_flows.proofs.circuits import compile_circuit, find_srs

    srs = find_srs(settings.logrows, workdir).path
    with TemporaryDirectory() as folder:  # a cache of its own, so that the setup is measured
        fresh = Path(folder)
        (fresh / "srs").symlink_to(srs.parent.absolute())
        started = perf_counter()
        compiled = compile_circuit(circuit.onnx, settings, fresh, _limits())
        setup_seconds = perf_counter() - started
        errors = (
            _error(circuit, compiled, circuit.calibration),
            _error(circuit, compiled, circuit.held_out),
        )
        yield _Prepared(compiled, setup_seconds, errors, [], [])


def _error(circuit: BenchCircuit, compiled: Circuit, samples: Sequence[Inputs]) -> float:
    from daifi_flows.proofs.circuits import float_outputs

    worst = 0.0
    exact = float_outputs(circuit.onnx, samples, _limits())
    for outputs, floats in zip(compiled.evaluate(samples), exact, strict=True):
        values = [
            np.array(outputs[tensor.name], np.float64) * 2.0**-scale
            for tensor, scale in zip(compiled.outputs, compiled.output_scales, strict=True)
        ]
        worst = max(worst, float(np.abs(np.concatenate(values) - floats).max()))
    return worst


def _limits() -> Limits:
    from daifi_flows.proofs.circuits import Limits

    return Limits(seconds=900.0, memory_bytes=16 << 30)
