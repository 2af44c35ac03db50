"""The circuit tuner: its pure search, and one real search with ezkl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.errors import EncodingError, ProofError
from daifi_flows.proofs.circuits import (
    CircuitSettings,
    Limits,
    compile_circuit,
    fit,
    float_outputs,
    tune,
)
from daifi_flows.proofs.circuits import _tuner as tuner
from daifi_flows.proofs.circuits._search import (
    Analysis,
    best_sizes,
    decompositions,
    layouts,
    least,
    predict,
)

MLP = Analysis(assignments=27_000, constants=3_000, tables=(3, 1024), freivalds=0,
               module_rows=0, instances=400)  # fmt: skip


def mlp() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
        ],
        "mlp",
        [value("x", TensorProto.FLOAT, [1, 12])],
        [value("y", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array((rng.normal(size=(12, 6)) / 3).astype(np.float32), "w"),
            numpy_helper.from_array((rng.normal(size=6) / 3).astype(np.float32), "b"),
            numpy_helper.from_array((rng.normal(size=(6, 3)) / 2).astype(np.float32), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


SAMPLES = [{"x": np.random.default_rng(seed).uniform(-1, 1, (1, 12))} for seed in range(6)]
BOUND = 0.004


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuner")


@pytest.fixture(scope="module")
def tuned(workdir: Path) -> Any:
    return tune(mlp(), SAMPLES, BOUND, workdir)


def test_the_tuned_circuit_stays_within_the_bound(tuned: Any, workdir: Path) -> None:
    assert tuned.error <= BOUND
    circuit = compile_circuit(mlp(), tuned.settings, workdir)
    floats = float_outputs(mlp(), SAMPLES, Limits())
    for sample, exact in zip(SAMPLES, floats, strict=True):
        proven = circuit.evaluate([sample])[0]["y"]
        values = np.array(proven) * 2.0 ** -circuit.output_scales[0]
        assert np.abs(values - exact).max() <= BOUND
    snark = circuit.prove(SAMPLES[1])
    assert circuit.verify(snark) is None


def test_it_is_smaller_than_ezkls_own_choice(tuned: Any) -> None:
    """2^15 rows, scale 13 and a table of 2^14, whatever the model."""
    assert tuned.settings.logrows <= 12
    assert tuned.settings.decomp_base <= 1 << 10
    assert tuned.settings.input_scale + tuned.settings.param_scale < 26
    assert tuned.predicted > 20
    assert 1 <= tuned.measured <= 3
    assert tuned.key_bytes < 20 << 20


def test_one_bit_less_would_break_the_bound(tuned: Any, workdir: Path) -> None:
    from dataclasses import replace

    scales = tuned.settings.input_scale, tuned.settings.param_scale
    floats = float_outputs(mlp(), SAMPLES, Limits())
    coarse = replace(tuned.settings, input_scale=scales[0] - 1, param_scale=scales[1] - 1)
    circuit = compile_circuit(mlp(), coarse, workdir)
    worst = max(
        float(np.abs(np.array(out["y"]) * 2.0 ** -circuit.output_scales[0] - exact).max())
        for out, exact in zip(circuit.evaluate(SAMPLES), floats, strict=True)
    )
    assert worst > BOUND


def test_inputs_four_times_as_large_still_fit(tuned: Any, workdir: Path) -> None:
    circuit = compile_circuit(mlp(), tuned.settings, workdir)
    largest = max(SAMPLES, key=lambda sample: float(np.abs(sample["x"]).max()))
    snark = circuit.prove([largest["x"] * 3])
    assert circuit.verify(snark) is None


def test_results_are_cached_by_what_they_depend_on(
    tuned: Any, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(tuner, "_Search", refuse)
    assert tune(mlp(), SAMPLES, BOUND, workdir) == tuned
    for other in (
        {"max_error": BOUND * 2},
        {"calibration": SAMPLES[:3]},
        {"input_visibility": "private"},
        {"param_visibility": "hashed"},
    ):
        arguments: Any = {"onnx": mlp(), "calibration": SAMPLES, "max_error": BOUND} | other
        with pytest.raises(AssertionError, match="again"):
            tune(workdir=workdir, **arguments)
    for cached in (workdir / "zk" / "tuned").iterdir():
        cached.write_text('{"settings": 7}')
    with pytest.raises(AssertionError, match="again"):
        tune(mlp(), SAMPLES, BOUND, workdir)


def test_a_bound_that_nothing_meets_is_an_error(workdir: Path) -> None:
    with pytest.raises(ProofError, match="stays within"):
        tune(mlp(), SAMPLES[:2], 1e-12, workdir)


def test_an_open_visibility_is_chosen(tmp_path: Path) -> None:
    found = tune(mlp(), SAMPLES[:2], 0.05, tmp_path, input_visibility=None, measure=1)
    assert found.settings.input_visibility in ("public", "private")


@pytest.mark.parametrize(
    ("calibration", "max_error"),
    [
        ([], 0.1),
        (SAMPLES[:1] * 33, 0.1),
        (SAMPLES[:1], 0.0),
        (SAMPLES[:1], float("nan")),
        ([{"y": [0.0]}], 0.1),
        ([{"x": [0.0]}], 0.1),
        ([{"x": [float("nan")] * 12}], 0.1),
        ([{"x": ["text"] * 12}], 0.1),
    ],
    ids=str,
)
def test_unusable_calibration_is_refused(calibration: Any, max_error: Any, workdir: Path) -> None:
    with pytest.raises(EncodingError):
        tune(mlp(), calibration, max_error, workdir)


def test_a_fitted_layout_is_the_same_everywhere(workdir: Path, tmp_path: Path) -> None:
    base = CircuitSettings(input_scale=9, param_scale=9, rebase_multiplier=16)
    here, there = fit(mlp(), base, workdir), fit(mlp(), base, tmp_path)
    assert here == there == fit(mlp(), base, workdir)
    assert (here.input_scale, here.logrows) == (9, 10)
    circuit = compile_circuit(mlp(), here, workdir)
    assert circuit.verify(circuit.prove(SAMPLES[0])) is None


# the pure search


def test_more_rows_hold_more_and_cost_more() -> None:
    costs = {k: predict(MLP, 2, k) for k in range(6, 18)}
    assert costs[8] is None, "400 public integers do not fit 256 rows"
    assert costs[9] is not None
    large = [costs[k].seconds for k in range(14, 18)]
    assert large == sorted(large)


def test_a_table_larger_than_the_circuit_costs_several_columns() -> None:
    narrow = predict(MLP, 1, 9)
    wide = predict(MLP, 1, 13)
    assert narrow is not None and wide is not None
    assert narrow.columns > wide.columns


def test_poseidon_needs_its_rows() -> None:
    from dataclasses import replace

    hashed = replace(MLP, module_rows=15_744)
    assert predict(hashed, 1, 13) is None
    assert predict(hashed, 1, 14) is not None


@given(st.integers(1, 120))
def test_decompositions_hold_the_bits(bits: int) -> None:
    found = decompositions(bits)
    assert len({legs for _, legs in found}) == len(found)
    for base, legs in found:
        assert base**legs >= 1 << bits
        assert base <= 1 << 14


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 70))
def test_bisection_finds_the_least(low: int, span: int, threshold: int) -> None:
    high = low + span
    expected = max(low, threshold) if threshold <= high else None
    assert least(low, high, lambda value: value >= threshold) == expected


def test_layouts_keep_the_arithmetic() -> None:
    base = CircuitSettings(input_scale=5, param_scale=6, rebase_multiplier=3)
    found = layouts(base, 30, ("public", "private"))
    assert {(item.input_scale, item.param_scale, item.rebase_multiplier) for item in found} == {
        (5, 6, 3)
    }
    assert {item.input_visibility for item in found} == {"public", "private"}
    assert all(item.check() for item in found)
    assert len(set(found)) == len(found)
    sized = best_sizes(MLP, base, range(6, 18))
    assert len(sized) == 2
    assert sized[0][0].seconds <= sized[1][0].seconds


def test_sizes_beyond_the_shipped_are_used_only_when_none_fits() -> None:
    from daifi_flows.proofs.circuits._fit import sized_layouts

    def trial(instances: int) -> dict[str, Any]:
        return {
            "settings": {
                "run_args": {"lookup_range": [0, 0]},
                "required_range_checks": [],
                "required_lookups": [],
                "module_sizes": {"poseidon": [0, [0]]},
                "model_instance_shapes": [[instances]],
                "total_assignments": 100,
                "total_const_size": 10,
                "einsum_params": {"total_einsum_col_size": 0},
            }
        }

    options = [CircuitSettings()]
    small = sized_layouts(options, [trial(10)], (10, 11))
    assert {settings.logrows for _, settings in small} == {10, 11}
    large = sized_layouts(options, [trial(5000)], (10, 11))
    assert min(settings.logrows for _, settings in large) == 13
    assert sized_layouts(options, [trial(1 << 20)], (10, 11)) == []
    assert sized_layouts(options, [{"error": "no"}], (10, 11)) == []
