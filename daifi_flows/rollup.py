"""Batches of inferences that settle together: leaves, their tree, and what the committee signs.

An operator collects finished inferences, each as a leaf of 160 bytes; the leaves go to the ledger
in one transaction with their Merkle root and one attestation (white paper 2.6: zk-rollups, 10k+
inferences a batch). Afterwards each leaf can prove itself against the root.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Final, NamedTuple

import numpy as np
from eth_utils.address import to_checksum_address
from pydantic import Field

from daifi_flows._noun import Address, Bytes32, Bytes96, Noun, Raw, Uint, Wei
from daifi_flows.encoding import canonical
from daifi_flows.errors import EncodingError
from daifi_flows.merkle import MerkleTree, leaf_hash, verify_merkle

__all__ = [
    "LEAF_BYTES",
    "MAX_BATCH_LEAVES",
    "Batch",
    "BatchAttestation",
    "BatchStatement",
    "Leaf",
    "LeafProof",
]

LEAF_BYTES: Final = 160
MAX_BATCH_LEAVES: Final = 1 << 16
"""Most leaves in one batch: 10 MiB, and paths of at most 16 hashes."""

_LEAF: Final = struct.Struct(">32s20s20s32s32s16sQ")
_WORDS: Final = LEAF_BYTES // 4
_AMOUNT: Final = slice(136 // 4, 152 // 4)
assert _LEAF.size == LEAF_BYTES


class Leaf(NamedTuple):
    """One settled inference.

    Attributes:
        task_id: 32 bytes, distinct within a batch and from every task settled before.
        node: who is paid.
        owner: who gets the task's token; the zero address: none is minted.
        model: digest of the model, 32 bytes.
        output: sha2-256 of the output's content id, 32 bytes.
        amount_wei: price of the inference, below 2^128.
        flops: floating-point operations, below 2^64.
    """

    task_id: bytes
    node: str
    owner: str
    model: bytes
    output: bytes
    amount_wei: int
    flops: int

    def encode(self) -> bytes:
        """The 160 bytes: task id 32, node 20, owner 20, model 32, output 32, amount 16 and flops
        8, both big-endian.

        Raises:
            EncodingError: a field does not have its size.
        """
        if not len(self.task_id) == len(self.model) == len(self.output) == 32:
            raise EncodingError("a leaf's task id, model and output are 32 bytes each")
        try:
            return _LEAF.pack(
                self.task_id,
                _address(self.node),
                _address(self.owner),
                self.model,
                self.output,
                self.amount_wei.to_bytes(16, "big"),
                self.flops,
            )
        except (struct.error, OverflowError) as error:
            raise EncodingError(f"a leaf's number is out of range: {error}") from error

    @classmethod
    def decode(cls, raw: bytes) -> Leaf:
        """Read what :meth:`encode` wrote: any 160 bytes are a leaf.

        Raises:
            EncodingError: it has another length.
        """
        if len(raw) != LEAF_BYTES:
            raise EncodingError(f"a leaf has {LEAF_BYTES} bytes, not {len(raw)}")
        task_id, node, owner, model, output, amount, flops = _LEAF.unpack(raw)
        return cls(
            task_id=task_id,
            node=to_checksum_address(node),
            owner=to_checksum_address(owner),
            model=model,
            output=output,
            amount_wei=int.from_bytes(amount, "big"),
            flops=flops,
        )


def _address(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise EncodingError(f"{text[:60]!r} is not an address") from error
    if len(raw) != 20:
        raise EncodingError(f"{text[:60]!r} is not an address")
    return raw


class LeafProof(Noun):
    """A leaf and its path to a batch's root: at most 16 hashes, under 800 bytes in all."""

    leaf: Annotated[Raw, Field(min_length=LEAF_BYTES, max_length=LEAF_BYTES)]
    index: Uint
    path: Annotated[tuple[Bytes32, ...], Field(max_length=16)]

    def verify(self, root: bytes, count: int) -> bool:
        """Whether this is leaf ``index`` of the batch of ``count`` leaves with this root."""
        return verify_merkle(root, self.leaf, self.index, count, self.path)


class Batch:
    """Checked leaves, their root, and every leaf's proof.

    Args:
        raw: the leaves, one after another, 160 bytes each.

    Raises:
        EncodingError: no leaves, more than :data:`MAX_BATCH_LEAVES`, a broken one at the end, or
            two with one task id.
    """

    def __init__(self, raw: bytes) -> None:
        count, rest = divmod(len(raw), LEAF_BYTES)
        if rest or not 0 < count <= MAX_BATCH_LEAVES:
            raise EncodingError(
                f"a batch has 1 to {MAX_BATCH_LEAVES} leaves of {LEAF_BYTES} bytes each; these are "
                f"{len(raw)} bytes"
            )
        starts = range(0, len(raw), LEAF_BYTES)
        if len({raw[at : at + 32] for at in starts}) != count:
            raise EncodingError("two leaves of the batch have the same task id")
        self.raw: Final = raw
        self.count: Final = count

    @classmethod
    def of(cls, leaves: Iterable[Leaf]) -> Batch:
        """A batch of these leaves, in order."""
        return cls(b"".join(leaf.encode() for leaf in leaves))

    @cached_property
    def tree(self) -> MerkleTree:
        """The tree over the leaves."""
        raw = self.raw
        return MerkleTree(
            leaf_hash(raw[at : at + LEAF_BYTES]) for at in range(0, len(raw), LEAF_BYTES)
        )

    @property
    def root(self) -> bytes:
        """Merkle root over the leaves, 32 bytes: the batch's name."""
        return self.tree.root

    @cached_property
    def total_wei(self) -> int:
        """Sum of all amounts."""
        words = np.frombuffer(self.raw, dtype=">u4").reshape(-1, _WORDS)[:, _AMOUNT]
        # Fewer than 2^32 leaves: the sums of 32-bit words cannot overflow.
        sums = words.sum(axis=0, dtype=np.uint64).tolist()
        return sum(word << 32 * (3 - place) for place, word in enumerate(sums))

    @property
    def models(self) -> tuple[bytes, ...]:
        """Digests of the models in it, each once, 32 bytes each."""
        raw, place = self.raw, 32 + 20 + 20
        starts = range(place, len(raw), LEAF_BYTES)
        return tuple(dict.fromkeys(raw[at : at + 32] for at in starts))

    def leaf(self, index: int) -> bytes:
        """The bytes of one leaf.

        Raises:
            EncodingError: there is no such leaf.
        """
        if not 0 <= index < self.count:
            raise EncodingError(f"there is no leaf {index} in a batch of {self.count}")
        return self.raw[index * LEAF_BYTES : (index + 1) * LEAF_BYTES]

    def proof(self, index: int) -> LeafProof:
        """What claims leaf ``index``, or shows it to be wrong.

        Raises:
            EncodingError: there is no such leaf.
        """
        return LeafProof(leaf=self.leaf(index), index=index, path=self.tree.proof(index))


class BatchStatement(Noun):
    """What the committee signs about a batch: that it was reviewed and may be settled.

    Attributes:
        operator: the only account that can submit it.
        submit_by_ms: the ledger takes the batch in blocks dated before this, Unix milliseconds,
            and remembers it at least until then: no batch is submitted twice.
    """

    ledger_id: Bytes32
    epoch: Uint
    operator: Address
    root: Bytes32
    count: Uint
    total_wei: Wei
    submit_by_ms: Uint

    def message(self) -> bytes:
        """What every signing seat's BLS key signs: ``"daifi/rollup/1" ‖ dag-cbor(statement)``."""
        return b"daifi/rollup/1" + canonical(self.plain())


class BatchAttestation(Noun):
    """A quorum's signature over :meth:`BatchStatement.message`."""

    epoch: Uint
    signers: Uint
    signature: Bytes96
