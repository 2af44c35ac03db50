"""A verifiable slice of an LLM step: scores of a few tokens under one committed hidden state.

The node commits to the last hidden state of every output position, a beacon draws one, and a SNARK
shows what the output layer's rows of a few candidate tokens give on the committed vector:

* each vector, in fixed point and followed by a salt, becomes one KZG commitment on BN254 (Kate,
  Zaverucha and Goldberg, ASIACRYPT 2010) in the form in which ezkl's circuits show it; the
  positions' commitments become the leaves of a Merkle tree (RFC 9162);
* the circuit is one matrix product of the vector with the candidates' rows, fixed in its verifying
  key. Integers and no rescaling, so that scores are exact. Its proof begins with the commitment.

A KZG commitment costs the circuit nothing, where Poseidon takes 41 rows a value: for 576 values
2¹⁰ rows instead of 2¹⁵ (measured at 2¹⁶, the next size tried: proving took 13 s of processor time
instead of 0.7 s, a proving key of 530 MB instead of 12 MB, and 90 ms instead of 7 ms for each
position committed to).

What holds: the scores are those rows times the vector that the leaf of the root commits to. What
does not follow: that the vector came from the model, and that the candidates are the right ones.
Binding and soundness rest on nobody knowing the SRS's τ. The vector stays hidden but for its
products with the candidates' rows: the salt has more entropy than the commitment and the proof's
one opening of it show.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import EncodingError, ProofError
from daifi_flows.merkle import merkle_proof, merkle_root, verify_merkle
from daifi_flows.proofs.circuits import (
    FIELD,
    Circuit,
    CircuitSettings,
    Limits,
    Snark,
    check_proof,
    compile_circuit,
    find_srs,
    quantise,
)

__all__ = [
    "MAX_CANDIDATES",
    "MAX_WIDTH",
    "ROW_UNIT",
    "SCORE_UNIT",
    "Slice",
    "SliceCommitment",
    "commit",
    "draw",
    "prove_slice",
    "quantise_rows",
    "srs_digest",
    "verify_slice",
]

MAX_CANDIDATES: Final = 16
MAX_WIDTH: Final = 8_192
_BITS: Final = 16
"""Fixed-point bits of vectors and rows: bf16 values are nearly exact in it."""
ROW_UNIT: Final = 2.0**-_BITS
SCORE_UNIT: Final = ROW_UNIT * ROW_UNIT
_MAX_VALUE: Final = 1 << 12
_MAX_ROW: Final = 1 << 4
"""Largest component of a vector and of a row: scores stay below 2⁶¹ units."""
MAX_SCORE: Final = 1 << 61

_SALT: Final = 40
_SALT_BITS: Final = 24
"""Salt integers: 960 bits, where commitment and opening show at most two field elements of 254. 24
bits each, because ezkl reads inputs in single precision."""
_POINT_BYTES: Final = 64
_MAX_PROOF: Final = 16_384
_COLUMNS: Final = 4
_MIN_LOGROWS: Final = 10
_UNUSABLE: Final = 32
"""Rows that Halo2 keeps for blinding, rounded up: a vector must fit one column beside them."""
_LIMITS: Final = Limits(seconds=60.0, memory_bytes=4 << 30)


@dataclass(frozen=True)
class SliceCommitment:
    """One hidden state a position, committed to.

    Attributes:
        root: Merkle root over the leaves; binds their number.
        leaves: position and KZG commitment of each.
        secrets: for the node alone: quantised vectors and their salts, ``[positions, width +
            salt]``.
    """

    root: bytes
    leaves: tuple[bytes, ...]
    secrets: NDArray[np.int64] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Slice:
    """What the node shows of the drawn position.

    Attributes:
        path: sibling hashes from the position's leaf to the root.
        rows: the candidates' rows of the output layer in units of 2⁻¹⁶, ``[candidates, width]``.
        scores: one a candidate, in units of 2⁻³².
        proof: of the SNARK; its first 64 bytes are the position's commitment.
    """

    path: tuple[bytes, ...]
    rows: NDArray[np.int32]
    scores: tuple[int, ...]
    proof: bytes

    @staticmethod
    def check(path: object, scores: object, proof: object) -> None:
        """The bounds of every field but ``rows``, before anything is computed with them.

        Raises:
            EncodingError: which one is not what it should be.
        """
        if not isinstance(path, tuple | list) or len(path) > 32:
            raise EncodingError("path is not a list of at most 32 hashes")
        if any(not isinstance(item, bytes) or len(item) != 32 for item in path):
            raise EncodingError("path is not a list of hashes")
        if not isinstance(scores, tuple | list) or not 1 <= len(scores) <= MAX_CANDIDATES:
            raise EncodingError(f"scores are not 1 to {MAX_CANDIDATES}")
        if any(type(item) is not int or abs(item) > MAX_SCORE for item in scores):
            raise EncodingError("scores are not integers in range")
        check_proof(proof, _MAX_PROOF)


def commit(hidden: NDArray[np.float32], workdir: Path) -> SliceCommitment:
    """Commit to ``hidden`` ``[positions, width]``. 7 ms a position of width 576 (one core).

    Raises:
        EncodingError: another shape, too large, or a value that is not finite or beyond ±4,096.
        ProofError: ezkl failed.
    """
    if hidden.ndim != 2 or not len(hidden) or not 1 <= hidden.shape[1] <= MAX_WIDTH:
        raise EncodingError(f"hidden states are not [positions, width up to {MAX_WIDTH}]")
    values = _quantise(hidden, _MAX_VALUE, "a hidden state")
    salts = [[secrets.randbits(_SALT_BITS) for _ in range(_SALT)] for _ in hidden]
    vectors = np.concatenate([values, np.array(salts, np.int64)], axis=1)
    blank = np.zeros((1, hidden.shape[1]), np.int32)  # the commitment is the same for any rows
    circuit = compile_circuit(_onnx(blank), _settings(hidden.shape[1]), workdir, _LIMITS)
    limits = Limits(seconds=60.0 + len(hidden), memory_bytes=_LIMITS.memory_bytes)
    points = circuit.commit(vectors.tolist(), limits)
    leaves = tuple(_leaf(position, point) for position, point in enumerate(points))
    return SliceCommitment(merkle_root(leaves), leaves, vectors)


def draw(root: bytes, beacon: bytes, count: int) -> int:
    """The position to prove, of ``count``.

    Args:
        beacon: bytes nobody could predict when ``root`` was fixed. Where the node can, as with a
            hash of its own choices, it can also try commitments until the position suits it.

    >>> draw(bytes(32), b"beacon", 100)
    6
    """
    seed = tagged_hash("daifi/slice/1", {"root": root, "beacon": beacon})
    return int.from_bytes(seed, "big") % count


def quantise_rows(rows: NDArray[np.float32]) -> NDArray[np.int32]:
    """Rows of an output layer, ``[candidates, width]``, in units of 2⁻¹⁶.

    Raises:
        EncodingError: another shape, or a value that is not finite or beyond ±16.
    """
    if rows.ndim != 2 or not 1 <= len(rows) <= MAX_CANDIDATES or rows.shape[1] > MAX_WIDTH:
        raise EncodingError(f"rows are not [1 to {MAX_CANDIDATES}, width up to {MAX_WIDTH}]")
    return _quantise(rows, _MAX_ROW, "a row of the output layer").astype(np.int32)


def prove_slice(
    commitment: SliceCommitment, position: int, rows: NDArray[np.int32], workdir: Path
) -> Slice:
    """Prove what ``rows`` ``[candidates, width]`` give on the vector of ``position``.

    Raises:
        ProofError: ezkl failed.
    """
    vector = commitment.secrets[position]
    with _compiled(rows, workdir) as circuit:
        snark = circuit.prove([vector * ROW_UNIT])
        scores = circuit.read(snark.instances).outputs["scores"]
    if _leaf(position, snark.proof[:_POINT_BYTES]) != commitment.leaves[position]:
        raise ProofError("the prover read the vector as other integers than it was given")
    path = merkle_proof(commitment.leaves, position)
    return Slice(path, rows, tuple(int(score) for score in scores), snark.proof)


def verify_slice(root: bytes, position: int, count: int, shown: Slice, workdir: Path) -> str | None:
    """Why the slice does not hold for the ``position`` of ``count`` under ``root``; ``None`` when
    it does. Whether the rows are the model's is for the caller to compare.

    Raises:
        EncodingError: a field is out of bounds.
        ProofError: ezkl failed here.
    """
    shown.check(shown.path, shown.scores, shown.proof)
    if shown.rows.ndim != 2 or len(shown.rows) != len(shown.scores):
        raise EncodingError("there is not one row a score")
    if int(np.abs(shown.rows.astype(np.int64)).max(initial=0)) > _MAX_ROW << _BITS:
        raise EncodingError("a row of the output layer is out of range")
    leaf = _leaf(position, shown.proof[:_POINT_BYTES])
    if not verify_merkle(root, leaf, position, count, shown.path):
        return f"the proof's vector is not the one committed to for position {position}"
    with _compiled(shown.rows, workdir) as circuit:
        fault = circuit.verify(Snark(shown.proof, tuple(s % FIELD for s in shown.scores)))
    return None if fault is None else f"the SNARK does not hold: {fault}"


def srs_digest(width: int, workdir: Path) -> bytes:
    """SHA-256 of the SRS that slices of this width are proven with here.

    Raises:
        ProofError: see :func:`~daifi_flows.proofs.circuits.find_srs`.
    """
    return find_srs(_settings(width).logrows, workdir).digest


def _leaf(position: int, point: bytes) -> bytes:
    return position.to_bytes(8, "big") + point


def _quantise(values: NDArray[np.float32], largest: int, what: str) -> NDArray[np.int64]:
    if not bool(np.all(np.abs(values) <= largest)):  # also false for NaN
        raise EncodingError(f"{what} has a value that is not a number within ±{largest}")
    return quantise(values, _BITS)


def _settings(width: int) -> CircuitSettings:
    return CircuitSettings(
        input_visibility="committed",
        input_scale=_BITS,
        param_scale=_BITS,
        rebase_multiplier=10,
        num_inner_cols=_COLUMNS,
        logrows=max(_MIN_LOGROWS, (width + _SALT + _UNUSABLE - 1).bit_length()),
    )


@contextmanager
def _compiled(rows: NDArray[np.int32], workdir: Path) -> Generator[Circuit]:
    """The circuit of these rows while it is needed: its keys take 12 MB and fit no other step."""
    settings = _settings(rows.shape[1])
    srs = find_srs(settings.logrows, workdir)
    with tempfile.TemporaryDirectory(prefix="daifi-slice-") as name:
        here = Path(name)
        (here / "srs").symlink_to(srs.path.parent.absolute())
        yield compile_circuit(_onnx(rows), settings, here, _LIMITS)


def _onnx(rows: NDArray[np.int32]) -> bytes:
    """``scores = hidden @ rowsᵀ``, with zeros under the salt."""
    from onnx import TensorProto, helper, numpy_helper

    count, width = rows.shape
    weights = np.zeros((width + _SALT, count), np.float32)
    weights[:width] = rows.T.astype(np.float64) * ROW_UNIT  # exact: 21 bits
    given = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, width + _SALT])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["hidden", "rows"], ["scores"])],
        "slice",
        [given],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, count])],
        [numpy_helper.from_array(weights, "rows")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString(deterministic=True)
