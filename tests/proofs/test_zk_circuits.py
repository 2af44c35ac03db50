"""Circuits, their caches, their SRS and the processes that make them, with the real ezkl."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.encoding import sha256
from daifi_flows.errors import DaifiError, EncodingError, ProofError
from daifi_flows.proofs.circuits import (
    FIELD,
    CircuitSettings,
    Limits,
    Public,
    Snark,
    WorkerError,
    _circuit,
    _process,
    _srs,
    adopt_srs,
    compile_circuit,
    find_srs,
    poseidon,
    quantise,
    read_onnx,
    with_batch,
)
from daifi_flows.proofs.circuits._field import signed, unsigned
from daifi_flows.proofs.circuits._onnx import unshared
from daifi_flows.proofs.circuits._process import run_job

SETTINGS = CircuitSettings(
    input_scale=6,
    param_scale=6,
    rebase_multiplier=16,
    decomp_base=128,
    decomp_legs=4,
    num_inner_cols=1,
    logrows=10,
)
X = [np.linspace(-1, 1, 8, dtype=np.float32)]


def mlp(seed: int = 0, op: str = "Relu", shape: Any = (1, 8), **parts: Any) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node(op, ["h"], ["r"], domain=parts.get("domain", "")),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
        ],
        "mlp",
        [value("x", parts.get("kind", TensorProto.FLOAT), list(shape))],
        [value("y", TensorProto.FLOAT, [shape[0], 2])],
        [
            numpy_helper.from_array((rng.normal(size=(8, 4)) / 3).astype(np.float32), "w"),
            numpy_helper.from_array((rng.normal(size=(4, 2)) / 2).astype(np.float32), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("circuits")


@pytest.fixture(scope="module")
def circuit(workdir: Path) -> Any:
    return compile_circuit(mlp(), SETTINGS, workdir)


@pytest.fixture(scope="module")
def snark(circuit: Any) -> Snark:
    return circuit.prove(X)


def test_a_snark_holds_for_its_integers_alone(circuit: Any, snark: Snark) -> None:
    assert circuit.verify(snark) is None
    outputs = circuit.outputs_of(snark)["y"]
    assert outputs.shape == (1, 2)
    for index in range(len(snark.instances)):
        edited = list(snark.instances)
        edited[index] = unsigned(edited[index] + 1)
        assert circuit.verify(Snark(snark.proof, tuple(edited))) is not None


def test_public_integers_are_read_as_they_are_written(circuit: Any, snark: Snark) -> None:
    public = circuit.read(snark.instances)
    assert list(public.inputs["x"]) == quantise(X[0], 6).tolist()
    assert circuit.write(public) == snark.instances
    with pytest.raises(EncodingError):
        circuit.read(snark.instances[1:])
    with pytest.raises(EncodingError):
        circuit.write(Public(public.outputs))
    with pytest.raises(EncodingError):
        circuit.write(Public({}, public.inputs))


@pytest.mark.parametrize(
    ("proof", "instances"),
    [
        (lambda p: p + bytes(32), lambda v: v),
        (lambda p: p + p, lambda v: v),
        (lambda p: p[:-32], lambda v: v),
        (lambda p: p[:-1], lambda v: v),
        (lambda _: b"", lambda v: v),
        (lambda p: bytes(len(p)), lambda v: v),
        (lambda p: b"\xff" * len(p), lambda v: v),
        (lambda _: bytes(1 << 20), lambda v: v),
        (lambda p: p, lambda v: v[:-1]),
        (lambda p: p, lambda v: (*v, 0)),
        (lambda p: p, lambda _: ()),
        (lambda p: p, lambda v: (-1, *v[1:])),
        (lambda p: p, lambda v: (v[0] + FIELD, *v[1:])),
        (lambda p: p, lambda v: (1 << 300, *v[1:])),
    ],
)
def test_hostile_proofs_do_not_hold(circuit: Any, snark: Snark, proof: Any, instances: Any) -> None:
    assert circuit.verify(Snark(proof(snark.proof), instances(snark.instances))) is not None
    assert circuit.verify(snark) is None


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_flipped_bit_of_a_proof_holds(data: Any, circuit: Any, snark: Snark) -> None:
    proof = bytearray(snark.proof)
    proof[data.draw(st.integers(0, len(proof) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert circuit.verify(Snark(bytes(proof), snark.instances)) is not None


def test_two_machines_get_the_same_keys(circuit: Any, tmp_path: Path) -> None:
    """ezkl writes what it keeps in hash maps in any order, and keys depend on it."""
    vk = (circuit.path / "vk").read_bytes()
    for machine in range(3):
        other = compile_circuit(mlp(), SETTINGS, tmp_path / str(machine))
        assert other.id == circuit.id
        assert (other.path / "vk").read_bytes() == vk


def test_other_weights_or_settings_have_other_keys(circuit: Any, workdir: Path) -> None:
    for other in (
        compile_circuit(mlp(seed=1), SETTINGS, workdir),
        compile_circuit(mlp(), replace(SETTINGS, param_scale=7), workdir),
    ):
        assert other.id != circuit.id
        assert circuit.verify(other.prove(X)) is not None


def test_hashed_weights_have_the_same_keys_and_another_hash(workdir: Path) -> None:
    hashed = replace(SETTINGS, param_visibility="hashed", logrows=11)
    one, two = (compile_circuit(mlp(seed=seed), hashed, workdir) for seed in (1, 2))
    assert (one.path / "vk").read_bytes() == (two.path / "vk").read_bytes()
    assert one.weights_hash() != two.weights_hash()
    proof = one.prove(X)
    assert two.verify(proof) is None
    assert two.read(proof.instances).param_hash == one.weights_hash()


def test_hashes_of_inputs_are_poseidon_of_their_integers(workdir: Path) -> None:
    hashed = compile_circuit(mlp(), replace(SETTINGS, input_visibility="hashed"), workdir)
    proof = hashed.prove(X)
    (digest,) = hashed.read(proof.instances).input_hashes.values()
    assert digest == poseidon(quantise(X[0], 6).tolist())
    assert hashed.verify(proof) is None


def test_the_circuit_computes_what_it_proves(circuit: Any, snark: Snark) -> None:
    (outputs,) = circuit.evaluate([{"x": X[0]}])
    assert outputs == circuit.read(snark.instances).outputs


# processes


def processes() -> set[int]:
    """Workers on this machine that this process started."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if b"circuits/_worker.py" in command and parent == os.getpid():
            found.add(int(entry.name))
    return found


def test_time_is_limited_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = processes()
    work = tmp_path / "work"
    with pytest.raises(WorkerError, match="took longer than"):
        compile_circuit(mlp(), SETTINGS, work, Limits(seconds=0.05))
    assert processes() == before
    assert not list(scratch.iterdir())
    assert not list((work / "zk").iterdir())
    circuit = compile_circuit(mlp(), SETTINGS, work)
    with pytest.raises(WorkerError, match="took longer than"):
        circuit.prove(X, Limits(seconds=0.05))
    assert processes() == before
    assert not list(scratch.iterdir())
    assert [path.name for path in (work / "zk").iterdir()] == [circuit.id]


def test_memory_is_limited(circuit: Any) -> None:
    with pytest.raises(WorkerError, match=r"died|aborted|memory"):
        circuit.prove(X, Limits(memory_bytes=72 << 20))
    assert circuit.verify(circuit.prove(X)) is None


def test_a_circuit_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    """Too few rows for the hash: ezkl panics or fails, in its own process."""
    hashed = replace(SETTINGS, input_visibility="hashed", logrows=6)
    with pytest.raises(ProofError, match="ezkl cannot setup"):
        compile_circuit(mlp(), hashed, tmp_path)
    assert not list((tmp_path / "zk").iterdir())


def test_a_private_input_never_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    private = replace(SETTINGS, input_visibility="private", logrows=11)
    circuit = compile_circuit(mlp(), private, tmp_path / "work")
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update(path.name for path in scratch.iterdir())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    snark = circuit.prove(X)
    done.set()
    watcher.join()
    assert not seen
    assert circuit.verify(snark) is None


def test_a_verifier_that_was_killed_is_replaced(circuit: Any, snark: Snark) -> None:
    assert circuit.verify(snark) is None
    before = processes()
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert circuit.verify(snark) is None
    assert circuit.verify(snark) is None
    assert not processes() & before


def test_a_verifier_that_dies_at_work_accuses_nobody(circuit: Any, snark: Snark) -> None:
    circuit.verify(snark)
    found: list[Any] = []

    def strike() -> None:
        while not done.is_set():
            for pid in processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    done = threading.Event()
    striker = threading.Thread(target=strike)
    striker.start()
    try:
        for _ in range(3):
            try:
                found.append(circuit.verify(snark))
            except WorkerError as error:
                found.append(error)
    finally:
        done.set()
        striker.join()
    assert all(item is None or isinstance(item, WorkerError) for item in found)
    assert any(isinstance(item, WorkerError) for item in found)
    assert circuit.verify(snark) is None


def test_a_slow_verification_ends_its_process_only(
    circuit: Any, snark: Snark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_process, "_VERIFYING", Limits(seconds=0.0))
    with pytest.raises(WorkerError, match="longer"):
        circuit.verify(snark)
    monkeypatch.undo()
    assert circuit.verify(snark) is None


def test_a_python_that_cannot_start_accuses_nobody(
    circuit: Any, snark: Snark, monkeypatch: pytest.MonkeyPatch
) -> None:
    _process._end_all()
    monkeypatch.setattr(_process.sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="died"):
        circuit.verify(snark)


def test_many_threads_verify_at_once(circuit: Any, snark: Snark) -> None:
    bad = Snark(snark.proof, (unsigned(signed(snark.instances[0]) + 1), *snark.instances[1:]))
    found: dict[int, Any] = {}

    def check(index: int) -> None:
        found[index] = circuit.verify(bad if index % 2 else snark)

    threads = [threading.Thread(target=check, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {index for index, fault in found.items() if fault is None} == {0, 2, 4, 6, 8, 10}
    assert len(processes()) <= _process._KEPT


def _child(queue: Any, workdir: Path) -> None:
    circuit = compile_circuit(mlp(), SETTINGS, workdir)
    queue.put((circuit.id, circuit.verify(circuit.prove(X)), (circuit.path / "vk").stat().st_ino))


def test_processes_and_threads_build_a_circuit_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    children = [context.Process(target=_child, args=(queue, tmp_path)) for _ in range(2)]
    for child in children:
        child.start()
    threads = [threading.Thread(target=_child, args=(queue, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    found = [queue.get(timeout=120) for _ in range(4)]
    for each in (*children, *threads):
        each.join()
    assert {fault for _, fault, _ in found} == {None}
    assert len({(name, inode) for name, _, inode in found}) == 1
    assert [path.name for path in (tmp_path / "zk").iterdir()] == [found[0][0]]


def test_what_a_killed_builder_left_is_cleared(tmp_path: Path) -> None:
    circuit = compile_circuit(mlp(), SETTINGS, tmp_path)
    circuit.path.rename(circuit.path.with_name(f".{circuit.id}"))
    (circuit.path.with_name(f".{circuit.id}") / "vk").write_bytes(b"half")
    again = compile_circuit(mlp(), SETTINGS, tmp_path)
    assert [path.name for path in (tmp_path / "zk").iterdir()] == [again.id]
    assert again.verify(again.prove(X)) is None


def test_a_circuit_damaged_while_in_use_accuses_nobody(tmp_path: Path) -> None:
    circuit = compile_circuit(mlp(), SETTINGS, tmp_path)
    snark = circuit.prove(X)
    (circuit.path / "vk").write_bytes(b"\0" * 100)
    with pytest.raises(WorkerError, match="damaged"):
        circuit.verify(snark)
    assert compile_circuit(mlp(), SETTINGS, tmp_path).verify(snark) is None


def test_requests_of_another_kind_are_refused(workdir: Path) -> None:
    with pytest.raises(ProofError):
        run_job({"do": "nothing"}, Limits(seconds=10))


# structured reference strings


@pytest.mark.parametrize("logrows", _srs.SHIPPED_LOGROWS)
def test_a_shipped_srs_is_what_its_record_says(tmp_path: Path, logrows: int) -> None:
    srs = find_srs(logrows, tmp_path)
    record = json.loads(srs.path.with_suffix(".json").read_text())
    assert record["sha256"] == srs.digest.hex() == sha256(srs.path.read_bytes()).hex()
    assert srs.origin == record["origin"]
    assert "untrusted" in srs.origin
    assert len(srs.verifier) == 4 + 4 * 64 + 256


def test_other_sizes_are_generated_and_say_so(tmp_path: Path) -> None:
    one, two = find_srs(7, tmp_path / "a"), find_srs(7, tmp_path / "b")
    assert one.origin == two.origin == _srs.LOCAL
    assert one.digest != two.digest
    assert find_srs(7, tmp_path / "a").digest == one.digest
    for size in (0, 5, 21, 1 << 40):
        with pytest.raises(ProofError):
            find_srs(size, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_suffix(".json").write_text("{}"),
        lambda path: path.with_suffix(".json").write_text("not JSON"),
        lambda path: path.with_suffix(".json").write_text(
            path.with_suffix(".json").read_text().replace('"logrows": 10', '"logrows": 11')
        ),
    ],
)
def test_an_srs_that_is_not_its_record_is_refused(tmp_path: Path, damage: Any) -> None:
    path = find_srs(10, tmp_path).path
    damage(path)
    with pytest.raises(ProofError, match=r"SRS|record"):
        find_srs(10, tmp_path)


def test_an_srs_of_unknown_origin_is_refused_until_somebody_vouches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_srs(7, tmp_path / "elsewhere").path
    path = tmp_path / "work" / "srs" / source.name
    path.parent.mkdir(parents=True)
    path.write_bytes(source.read_bytes())
    with pytest.raises(ProofError, match="unknown origin"):
        find_srs(7, tmp_path / "work")
    adopted = adopt_srs(source, 7, "made by our own ceremony", tmp_path / "work")
    assert adopted.origin == "made by our own ceremony"
    assert find_srs(7, tmp_path / "work").digest == adopted.digest
    with pytest.raises(ProofError, match="not an SRS"):
        adopt_srs(source, 8, "the wrong size", tmp_path / "work")
    monkeypatch.setitem(_srs._CEREMONY_SHA256, 7, adopted.digest.hex())
    path.with_suffix(".json").unlink()
    assert find_srs(7, tmp_path / "work").origin == _srs.CEREMONY


# ONNX files


def changed(**parts: Any) -> bytes:
    import onnx

    model = onnx.ModelProto.FromString(mlp(**parts.pop("base", {})))
    parts["change"](model)
    return model.SerializeToString()


def _external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def _subgraph(model: Any) -> None:
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type = "body", 5
    attribute.g.CopyFrom(type(model).FromString(mlp()).graph)


def _huge(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def _many(model: Any) -> None:
    node = type(model).FromString(mlp()).graph.node[1]
    for _ in range(300):
        model.graph.node.add().CopyFrom(node)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"\xff" * 100,
        bytes(9 << 20),
        mlp(op="NonZero"),
        mlp(op="Loop"),
        mlp(domain="com.microsoft"),
        mlp(shape=("batch", 8)),
        mlp(shape=(0, 8)),
        mlp(shape=(1 << 20, 1 << 20)),
        mlp(kind=7),
        changed(change=_external),
        changed(change=_subgraph),
        changed(change=_huge),
        changed(change=_many),
        changed(change=lambda model: model.functions.add()),
        changed(change=lambda model: model.graph.ClearField("output")),
        changed(change=lambda model: model.graph.ClearField("input")),
    ],
    ids=range(18),
)
def test_a_strangers_file_is_refused_before_anything_runs_it(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(EncodingError):
        compile_circuit(data, SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


def _wrong_shape(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3


def _unknown_name(model: Any) -> None:
    model.graph.node[2].input[0] = "nowhere"


@pytest.mark.parametrize("change", [_wrong_shape, _unknown_name])
def test_a_file_that_lies_is_an_error_of_its_worker(change: Any, tmp_path: Path) -> None:
    with pytest.raises(ProofError):
        compile_circuit(changed(change=change), SETTINGS, tmp_path)
    assert not list((tmp_path / "zk").iterdir())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_file_is_a_model_or_refused(data: Any) -> None:
    onnx = bytearray(mlp())
    for _ in range(data.draw(st.integers(1, 4))):
        onnx[data.draw(st.integers(0, len(onnx) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_onnx, lambda value: with_batch(value, 2)):
        try:
            read(bytes(onnx))
        except EncodingError:
            continue


@pytest.mark.parametrize("batch", [0, -1, True, 1 << 30, "3"])
def test_a_batch_is_a_number_of_inferences(batch: Any) -> None:
    with pytest.raises(EncodingError):
        with_batch(mlp(shape=("n", 8)), batch)
    with pytest.raises(EncodingError, match="no symbolic"):
        with_batch(mlp(), 4)


def test_unshared_weights_change_nothing_but_the_last_bit() -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto.FromString(mlp())
    model.graph.node[2].input[1] = "w"
    model.graph.node[0].input[1] = "w"
    copies = onnx.ModelProto.FromString(unshared(model.SerializeToString())).graph.initializer
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in copies}
    (fresh,) = values.keys() - {"w", "v"}
    assert np.abs(values[fresh] - values["w"]).max() < 1e-6
    assert (values[fresh] != values["w"]).sum() == 1


def _field(number: int, data: bytes) -> bytes:
    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    return varint(number << 3 | 2) + varint(len(data)) + data


@pytest.mark.parametrize(
    ("fields", "part", "words"),
    [
        ([7], b"\x0a\0", "parts"),  # nodes
        ([7], b"\x2a\0", "parts"),  # weights
        ([7, 1], b"\x2a\0", "parts"),  # attributes of a node
        ([7, 1, 5], b"\x52\0", "parts"),  # tensors of an attribute
        ([7, 11, 2, 1, 2], b"\x0a\0", "parts"),  # sizes of a shape
        ([], b"\x42\0", "parts"),  # operator sets
        ([25], b"\x3a\0", "unused messages"),  # nodes of a function
        ([7, 1, 5, 6], b"\x0a\0", "unused messages"),  # nodes of a graph in a node
    ],
    ids=str,
)
def test_empty_parts_without_end_are_refused_before_they_are_objects(
    fields: list[int], part: bytes, words: str
) -> None:
    """8 MB of empty nodes once took 800 MB."""
    data = part * 3_900_000
    for number in reversed(fields):
        data = _field(number, data)
    for read in (read_onnx, lambda value: with_batch(value, 2)):
        with pytest.raises(EncodingError, match=words):
            read(data)


def test_a_table_of_onnx_messages_is_complete() -> None:
    import onnx

    from daifi_flows.proofs.circuits._wire import _MESSAGES

    todo, seen = [("model", onnx.ModelProto.DESCRIPTOR)], set[str]()
    while todo:
        kind, message = todo.pop()
        seen.add(kind)
        held = {each.number: each.message_type for each in message.fields if each.message_type}
        assert held.keys() == _MESSAGES[kind].keys(), kind
        for number, inner in held.items():
            name = _MESSAGES[kind][number]
            if name != "other" and name not in seen:
                todo.append((name, inner))
    assert seen == _MESSAGES.keys()


@pytest.mark.parametrize(("rows", "uses"), [(1 << 18, 30), (2, 5_000)])
def test_weights_used_without_end_are_refused(rows: int, uses: int) -> None:
    """A use is three bytes of the file: 4 MB would become gigabytes of copies, or hours."""
    import tracemalloc

    from onnx import TensorProto, helper, numpy_helper

    value, weight = helper.make_tensor_value_info, np.ones((rows, 4), np.float32)
    nodes = [
        helper.make_node("Concat", ["w"] * uses, ["c"], axis=0),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    ends = [[value(name, TensorProto.FLOAT, [1])] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    data = read_onnx(model.SerializeToString()).data
    tracemalloc.start()
    try:
        with pytest.raises(EncodingError, match="too often"):
            unshared(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# settings and numbers


@given(
    st.dictionaries(
        st.sampled_from([*CircuitSettings.__dataclass_fields__, "other"]),
        st.one_of(st.integers(), st.text(max_size=8), st.booleans(), st.none(), st.floats()),
    )
)
def test_any_settings_are_in_range_or_refused(fields: dict[str, Any]) -> None:
    try:
        parsed = CircuitSettings.parse(CircuitSettings().plain() | fields)
    except EncodingError:
        return
    assert CircuitSettings.parse(parsed.plain()) == parsed


def test_unhashable_settings_are_refused() -> None:
    for value in (None, [], {}, "x", CircuitSettings().plain() | {"input_visibility": ["public"]}):
        with pytest.raises(EncodingError):
            CircuitSettings.parse(value)


@given(st.floats(-1e6, 1e6), st.integers(0, 16))
def test_quantising_rounds_to_the_nearest_half_away_from_zero(value: float, scale: int) -> None:
    (integer,) = quantise([value], scale)
    assert abs(integer - value * 2.0**scale) <= 0.5
    assert quantise([-value], scale)[0] == -integer


@given(st.integers(-(1 << 200), 1 << 200))
def test_field_elements_are_signed(value: int) -> None:
    assert signed(unsigned(value)) == value


@pytest.mark.parametrize("values", [[float("nan")], [float("inf")], [1e300], ["x"], [None]])
def test_what_is_no_number_is_not_quantised(values: Any) -> None:
    with pytest.raises(EncodingError):
        quantise(values, 8)


def test_errors_are_the_packages_own() -> None:
    assert issubclass(WorkerError, ProofError)
    assert issubclass(ProofError, DaifiError)
    assert _circuit.MAX_PROOF_BYTES == 256 * 1024
