"""Circuits and their keys on disk, and what is done with them.

A circuit is compiled once per model, settings, ezkl version and SRS, into ``workdir/zk/<content
id>``, by one process of the machine at a time. When a file no longer matches the hashes written
with it, the circuit is built again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike, NDArray

from daifi_flows.encoding import canonical, cid_of, parse_json, sha256
from daifi_flows.errors import DaifiError, EncodingError, ProofError
from daifi_flows.proofs.circuits._field import FIELD, poseidon, quantise, signed, to_hex, unsigned
from daifi_flows.proofs.circuits._onnx import OnnxModel, Tensor, read_onnx, unshared
from daifi_flows.proofs.circuits._process import WorkerError, ask, run_job
from daifi_flows.proofs.circuits._settings import CircuitSettings, Limits
from daifi_flows.proofs.circuits._srs import Srs, find_srs

__all__ = ["MAX_PROOF_BYTES", "Circuit", "Public", "Snark", "Spent", "compile_circuit"]

MAX_PROOF_BYTES: Final = 256 * 1024
_FILES: Final = ("model.onnx", "settings.json", "circuit.ezkl", "vk", "pk")
_VERIFIER_FILES: Final = ("settings.json", "vk")


@dataclass(frozen=True)
class Spent:
    """What one proof took in its process: wall and processor seconds, and memory touched."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Snark:
    """A proof and the public integers it is about, as elements of BN254's scalar field.

    Attributes:
        proof: a Halo2 proof (KZG, SHPLONK), whole words of 32 bytes.
        instances: ``0 ≤ v < FIELD``, in :class:`Public`'s order.
        spent: what proving took; absent on a proof that came from elsewhere.
    """

    proof: bytes
    instances: tuple[int, ...]
    spent: Spent | None = None


@dataclass(frozen=True)
class Public:
    """What a circuit shows, by name. Integers are signed fixed point; hashes are 32 bytes.

    Attributes:
        input_hashes: one Poseidon hash an input tensor, when inputs are hashed.
        param_hash: Poseidon hash of all weights, when they are hashed.
        inputs: integers ``[size]`` of each input, when inputs are public.
        outputs: integers ``[size]`` of each output.
    """

    outputs: Mapping[str, Sequence[int]]
    inputs: Mapping[str, Sequence[int]] | None = None
    input_hashes: Mapping[str, bytes] | None = None
    param_hash: bytes | None = None


@dataclass(frozen=True)
class Circuit:
    """A compiled model with its keys.

    Attributes:
        path: the directory of its files.
        inputs, outputs: the model's tensors, in ezkl's order (the file's).
        input_scales, output_scales: fixed-point bits of each.
    """

    path: Path
    srs: Srs
    settings: CircuitSettings
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_scales: tuple[int, ...]
    output_scales: tuple[int, ...]
    limits: Limits

    @property
    def id(self) -> str:
        """Content id of model, settings, ezkl version and SRS."""
        return self.path.name

    def quantise(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.int64]]:
        """Flat integers of each input, ``[size]``, as the circuit will see them.

        Raises:
            EncodingError: other names or sizes than the model's, or values that are not finite.
        """
        names = {tensor.name for tensor in self.inputs}
        if set(inputs) != names:
            raise EncodingError(f"the inputs are not {', '.join(sorted(names))}")
        found: dict[str, NDArray[np.int64]] = {}
        for tensor, scale in zip(self.inputs, self.input_scales, strict=True):
            flat = quantise(inputs[tensor.name], scale).reshape(-1)
            if flat.size != tensor.size:
                raise EncodingError(
                    f"the input {tensor.name!r} has {flat.size} values, not {tensor.size}"
                )
            found[tensor.name] = flat
        return found

    def prove(
        self, inputs: Mapping[str, ArrayLike] | Sequence[ArrayLike], limits: Limits | None = None
    ) -> Snark:
        """A SNARK that the quantised model gives, on these inputs, the outputs that come with it.

        Args:
            inputs: float arrays by name, or in the model's order; reshaped as needed.

        Raises:
            EncodingError: see :meth:`quantise`.
            ProofError: ezkl refuses (a value outside ±base^legs), dies or takes too long.
        """
        named = inputs if isinstance(inputs, Mapping) else self._named(inputs)
        integers = self.quantise(named)
        exact = [
            (integers[tensor.name] * 2.0**-scale).tolist()
            for tensor, scale in zip(self.inputs, self.input_scales, strict=True)
        ]
        self._check(_FILES)
        limits = limits or self.limits
        request = {
            "do": "prove",
            "home": str(self.path.absolute()),
            "srs": str(self.srs.path.absolute()),
            "inputs": exact,
            "commit": self.settings.input_visibility == "committed",
        }
        answer = run_job(request, limits)
        elements = tuple(int.from_bytes(bytes.fromhex(v), "little") for v in answer["instances"])
        spent = Spent(answer["seconds"], answer["cpu_seconds"], answer["peak_bytes"])
        snark = Snark(bytes.fromhex(answer["proof"]), elements, spent)
        public = self.read(snark.instances)
        if public.inputs is not None and any(
            list(public.inputs[name]) != flat.tolist() for name, flat in integers.items()
        ):
            raise ProofError("the prover quantised its input to other integers than it was given")
        if public.input_hashes is not None and any(
            public.input_hashes[name] != poseidon(flat.tolist()) for name, flat in integers.items()
        ):
            raise ProofError("the prover hashed other integers than it was given")
        return snark

    def commit(self, vectors: Sequence[Sequence[int]], limits: Limits | None = None) -> list[bytes]:
        """The KZG commitment of each input, as a proof with ``committed`` input shows it first.

        It depends on the integers, the SRS and the number of rows, not on the model. It is binding
        as long as nobody knows τ, and hides nothing that can be guessed: salt the input.

        Args:
            vectors: integers of the circuit's one input, as :meth:`quantise` gives them.

        Returns:
            Points of BN254's G1, x and y, 64 bytes big-endian each.

        Raises:
            ProofError: see :meth:`prove`; or this circuit's input is not committed to.
        """
        if self.settings.input_visibility != "committed" or len(self.inputs) != 1:
            raise ProofError("this circuit does not commit to one input")
        if any(len(vector) != self.inputs[0].size for vector in vectors):
            raise EncodingError(f"a vector to commit to has not {self.inputs[0].size} values")
        self._check(_VERIFIER_FILES)
        request = {
            "do": "commit",
            "settings": str((self.path / "settings.json").absolute()),
            "vk": str((self.path / "vk").absolute()),
            "srs": str(self.srs.path.absolute()),
            "vectors": [[int(value) for value in vector] for vector in vectors],
        }
        answer = run_job(request, limits or self.limits)
        return [bytes.fromhex(point) for point in answer["points"]]

    def verify(self, snark: Snark) -> str | None:
        """Why the SNARK does not hold under this circuit's keys; ``None`` when it does.

        Raises:
            WorkerError: the verifier crashed or ran out of time: nothing is known.
        """
        if len(snark.instances) != self.size:
            return f"it has {len(snark.instances)} public integers, not {self.size}"
        if any(not 0 <= value < FIELD for value in snark.instances):
            return "a public integer is not a field element"
        proof = snark.proof
        if not 64 <= len(proof) <= MAX_PROOF_BYTES or len(proof) % 32:
            return f"the proof is not whole words of 32 bytes, up to {MAX_PROOF_BYTES}"
        self._check(_VERIFIER_FILES)
        request = {
            "do": "verify",
            "settings": str((self.path / "settings.json").absolute()),
            "vk": str((self.path / "vk").absolute()),
            "id": self.id,
            "srs": self.srs.verifier.hex(),
            "proof": proof.hex(),
            "instances": [to_hex(value) for value in snark.instances],
        }
        try:
            ask(request)
        except WorkerError:
            raise
        except ProofError as error:
            return str(error)
        return None

    @property
    def size(self) -> int:
        """Number of public integers of one proof."""
        shown = sum(tensor.size for tensor in self.outputs)
        if self.settings.input_visibility == "public":
            shown += sum(tensor.size for tensor in self.inputs)
        if self.settings.input_visibility == "hashed":
            shown += len(self.inputs)
        return shown + (self.settings.param_visibility == "hashed")

    def read(self, instances: Sequence[int]) -> Public:
        """A proof's public integers by name. In the proof: hashes of inputs, hash of weights,
        inputs, outputs.

        Raises:
            EncodingError: another number of them than the circuit shows.
        """
        if len(instances) != self.size:
            raise EncodingError(f"{len(instances)} public integers, not {self.size}")
        rest = list(instances)

        def take(count: int) -> list[int]:
            taken, rest[:] = rest[:count], rest[count:]
            return taken

        hashes = param_hash = inputs = None
        if self.settings.input_visibility == "hashed":
            hashes = {t.name: take(1)[0].to_bytes(32, "little") for t in self.inputs}
        if self.settings.param_visibility == "hashed":
            param_hash = take(1)[0].to_bytes(32, "little")
        if self.settings.input_visibility == "public":
            inputs = {t.name: [signed(v) for v in take(t.size)] for t in self.inputs}
        outputs = {t.name: [signed(v) for v in take(t.size)] for t in self.outputs}
        return Public(outputs, inputs, hashes, param_hash)

    def write(self, public: Public) -> tuple[int, ...]:
        """The field elements of ``public``, in a proof's order: what :meth:`read` reads.

        Raises:
            EncodingError: it does not show what this circuit shows.
        """
        given = {
            "input_hashes": public.input_hashes is not None,
            "param_hash": public.param_hash is not None,
            "inputs": public.inputs is not None,
        }
        wanted = {
            "input_hashes": self.settings.input_visibility == "hashed",
            "param_hash": self.settings.param_visibility == "hashed",
            "inputs": self.settings.input_visibility == "public",
        }
        if given != wanted:
            raise EncodingError("these are not the integers that this circuit shows")
        elements: list[int] = []
        try:
            if public.input_hashes is not None:
                hashes = [public.input_hashes[tensor.name] for tensor in self.inputs]
                elements += [int.from_bytes(item, "little") for item in hashes]
            if public.param_hash is not None:
                elements.append(int.from_bytes(public.param_hash, "little"))
            if public.inputs is not None:
                for tensor in self.inputs:
                    elements += [unsigned(int(v)) for v in public.inputs[tensor.name]]
            for tensor in self.outputs:
                elements += [unsigned(int(v)) for v in public.outputs[tensor.name]]
        except KeyError as error:
            raise EncodingError(f"nothing is given for {error}") from error
        if len(elements) != self.size:
            raise EncodingError(f"{len(elements)} public integers, not {self.size}")
        return tuple(elements)

    def outputs_of(self, snark: Snark) -> dict[str, NDArray[np.float64]]:
        """Output tensors in the model's units, in their shapes.

        Raises:
            EncodingError: see :meth:`read`.
        """
        public = self.read(snark.instances)
        return {
            tensor.name: (np.array(public.outputs[tensor.name], np.float64) * 2.0**-scale).reshape(
                tensor.shape
            )
            for tensor, scale in zip(self.outputs, self.output_scales, strict=True)
        }

    def evaluate(self, inputs: Sequence[Mapping[str, ArrayLike]]) -> list[dict[str, list[int]]]:
        """The circuit's output integers on each of several inputs, without proving.

        Raises:
            EncodingError: see :meth:`quantise`.
            ProofError: see :meth:`prove`.
        """
        self._check(_FILES)
        exact: list[Any] = []
        for sample in inputs:
            integers = self.quantise(sample)
            exact.append(
                [
                    (integers[tensor.name] * 2.0**-scale).tolist()
                    for tensor, scale in zip(self.inputs, self.input_scales, strict=True)
                ]
            )
        circuit = str((self.path / "circuit.ezkl").absolute())
        answer = run_job({"do": "witness", "circuit": circuit, "inputs": exact}, self.limits)
        return [
            {
                tensor.name: [signed(int.from_bytes(bytes.fromhex(v), "little")) for v in values]
                for tensor, values in zip(self.outputs, outputs, strict=True)
            }
            for outputs in answer["outputs"]
        ]

    def weights_hash(self) -> bytes:
        """Poseidon hash of all weights as this circuit quantises them: 32 bytes.

        Raises:
            ProofError: the weights of this circuit are not hashed, or see :meth:`prove`.
        """
        if self.settings.param_visibility != "hashed":
            raise ProofError("the weights of this circuit are fixed, not hashed")
        self._check(_FILES)
        zeros = [[0.0] * tensor.size for tensor in self.inputs]
        circuit = str((self.path / "circuit.ezkl").absolute())
        answer = run_job({"do": "witness", "circuit": circuit, "inputs": [zeros]}, self.limits)
        (element,) = answer["params"]
        return bytes.fromhex(element)

    def _named(self, inputs: Sequence[ArrayLike]) -> dict[str, ArrayLike]:
        if len(inputs) != len(self.inputs):
            raise EncodingError(f"{len(inputs)} inputs are given; the model has {len(self.inputs)}")
        return {tensor.name: item for tensor, item in zip(self.inputs, inputs, strict=True)}

    def _check(self, names: tuple[str, ...]) -> None:
        """Raises WorkerError when a file is not what was built: nobody is to blame for it."""
        if not _intact(self.path, names):
            raise WorkerError(
                f"files of the circuit {self.path} were damaged; they are built again next time"
            )


def compile_circuit(
    onnx: bytes | OnnxModel,
    settings: CircuitSettings,
    workdir: Path,
    limits: Limits | None = None,
) -> Circuit:
    """The circuit of a model, from ``workdir``'s cache or built now (in a process of its own).

    Both sides of a proof call this, each in its own ``workdir``: a verifier never uses keys that a
    prover made.

    Args:
        onnx: a stranger's file; see :func:`read_onnx` for what is accepted.
        limits: for compiling, and the circuit's default for proving.

    Raises:
        EncodingError: the file or a setting is out of bounds.
        ProofError: ezkl cannot compile it so (too few rows, an operator it lacks), or took too
            much time or memory.
    """
    model = onnx if isinstance(onnx, OnnxModel) else read_onnx(onnx)
    limits = limits or Limits()
    srs = find_srs(settings.check().logrows, workdir)
    home = workdir / "zk" / _name(model.data, settings, srs)
    if not _intact(home, _FILES):
        locks = workdir / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / f"{home.name}.lock", timeout=2 * limits.seconds):
                if not _intact(home, _FILES):
                    _build(home, model.data, settings, srs, limits)
        except Timeout as error:
            raise WorkerError(
                f"another process has been building this circuit for {2 * limits.seconds:g} s"
            ) from error
    return _open(home, model, settings, srs, limits)


def _name(onnx: bytes, settings: CircuitSettings, srs: Srs) -> str:
    key = {
        "onnx": sha256(onnx),
        "settings": settings.plain(),
        "ezkl": version("ezkl"),
        "srs": srs.digest,
    }
    return cid_of(canonical(key), "dag-cbor")


def _build(home: Path, onnx: bytes, settings: CircuitSettings, srs: Srs, limits: Limits) -> None:
    building = home.with_name(f".{home.name}")
    shutil.rmtree(building, ignore_errors=True)  # of a builder that was killed
    building.mkdir(parents=True)
    try:
        (building / "model.onnx").write_bytes(
            unshared(onnx) if settings.param_visibility == "fixed" else onnx
        )
        request = {
            "do": "setup",
            "home": str(building.absolute()),
            "srs": str(srs.path.absolute()),
            "run_args": settings.run_args(),
        }
        run_job(request, limits)
        hashes = {name: sha256((building / name).read_bytes()).hex() for name in _FILES}
        (building / "sha256.json").write_text(json.dumps(hashes))
        shutil.rmtree(home, ignore_errors=True)
        building.rename(home)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _open(
    home: Path, model: OnnxModel, settings: CircuitSettings, srs: Srs, limits: Limits
) -> Circuit:
    ezkl = cast("dict[str, Any]", json.loads((home / "settings.json").read_bytes()))
    circuit = Circuit(
        path=home,
        srs=srs,
        settings=settings,
        inputs=model.inputs,
        outputs=model.outputs,
        input_scales=tuple(ezkl["model_input_scales"]),
        output_scales=tuple(ezkl["model_output_scales"]),
        limits=limits,
    )
    counted = sum(int(np.prod(shape)) for shape in ezkl["model_instance_shapes"])
    hashes = sum(ezkl["module_sizes"]["poseidon"][1])
    if (
        counted + hashes != circuit.size
        or len(circuit.input_scales) != len(model.inputs)
        or len(circuit.output_scales) != len(model.outputs)
    ):
        raise ProofError("ezkl reads other inputs or outputs from this model than its file names")
    return circuit


def _intact(home: Path, names: Sequence[str]) -> bool:
    """Whether these files are those that were built."""
    try:
        stamps = tuple(
            (name, item.st_ino, item.st_size, item.st_mtime_ns)
            for name in (*names, "sha256.json")
            for item in ((home / name).stat(),)
        )
        return _hashes_match(home, stamps)
    except OSError:
        return False


@lru_cache(maxsize=512)
def _hashes_match(home: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> bool:
    """Hash the files; the stamps stand for their content in the cache's key."""
    try:
        written = cast("dict[str, Any]", parse_json((home / "sha256.json").read_bytes()))
        return all(
            written[name] == sha256((home / name).read_bytes()).hex() for name, *_ in stamps[:-1]
        )
    except (OSError, KeyError, TypeError, DaifiError):
        return False
