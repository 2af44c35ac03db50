"""What is done with a compiled circuit: prove, verify, and read what a proof shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daifi_flows.errors import EncodingError, ProofError
from daifi_flows.proofs.circuits._cache import FILES, VERIFIER_FILES, intact
from daifi_flows.proofs.circuits._field import FIELD, poseidon, quantise, signed, to_hex, unsigned
from daifi_flows.proofs.circuits._onnx import Tensor
from daifi_flows.proofs.circuits._process import WorkerError, ask, run_job
from daifi_flows.proofs.circuits._settings import CircuitSettings, Limits
from daifi_flows.proofs.circuits._srs import Srs

__all__ = ["MAX_PROOF_BYTES", "Circuit", "Public", "Snark", "Spent", "check_proof"]

MAX_PROOF_BYTES: Final = 256 * 1024


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


def check_proof(proof: object, limit: int = MAX_PROOF_BYTES) -> None:
    """Whether ``proof`` can be a Halo2 proof of up to ``limit`` bytes.

    Raises:
        EncodingError: not bytes, too short or long, or not whole words of 32 bytes.
    """
    if not isinstance(proof, bytes) or not 64 < len(proof) <= limit or len(proof) % 32:
        raise EncodingError(f"proof is not whole words of 32 bytes, more than 64 and up to {limit}")


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
        self._check(FILES)
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
        self._check(VERIFIER_FILES)
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
        try:
            check_proof(proof)
        except EncodingError as error:
            return str(error)
        self._check(VERIFIER_FILES)
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
        self._check(FILES)
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
        self._check(FILES)
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
        if not intact(self.path, names):
            raise WorkerError(
                f"files of the circuit {self.path} were damaged; they are built again next time"
            )
