"""Blocks: their bytes, how one is built, re-executed and certified. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field

from daifi_flows.cnft import (
    BlockHeader,
    Committee,
    Noun,
    QuorumCertificate,
    Raw,
    Receipt,
    TxReceipt,
    Uint,
)
from daifi_flows.errors import LedgerError, TransactionRefused
from daifi_flows.ledger._auction import Slot
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._records import ZERO_ADDRESS
from daifi_flows.ledger._rules.sealed import place_in_block
from daifi_flows.ledger._seal import Seal, check_seal, open_slot, quorum_signed
from daifi_flows.ledger._state import Base, Layer, MemoryBase
from daifi_flows.ledger._trie import Trie
from daifi_flows.ledger._tx import parse_transaction
from daifi_flows.merkle import MerkleTree, MountainRange, leaf_hash, merkle_root, root_of_hashes

__all__ = [
    "MAX_BLOCK_BYTES",
    "MAX_BLOCK_TXS",
    "MAX_BODY_BYTES",
    "Block",
    "Candidate",
    "CertifiedBlock",
    "Inclusions",
    "build",
    "certificate_valid",
    "genesis_header",
    "reexecute",
]

MAX_BLOCK_TXS: Final = 2048
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""Most that a builder puts into one block: MAX_BLOCK_TXS usual transactions, or three of the
largest batches."""
MAX_BLOCK_BYTES: Final = 40 * 1024 * 1024
"""Largest block parsed from a stranger."""


class Block(Noun):
    """What the proposer sends to the seats.

    ``justify`` is the certificate of the parent (absent at height 1), by which a validator that
    signed the parent knows it is final. ``term`` is that of the writer who sends it: seats that
    know a newer one refuse. The hash is the header's; the body is bound by its roots, the
    certificate by itself, and the term by nothing (see :mod:`~daifi_flows.ledger._follower`).
    """

    header: BlockHeader
    transactions: Annotated[tuple[Raw, ...], Field(max_length=MAX_BLOCK_TXS)]
    seal: Seal
    justify: QuorumCertificate | None = None
    term: Uint = 0


class CertifiedBlock(Noun):
    """A final block: what a lagging validator needs to catch up."""

    block: Block
    certificate: QuorumCertificate


@dataclass(frozen=True)
class Candidate:
    """An executed block: its header, receipts, and the state after it."""

    header: BlockHeader
    receipts: tuple[TxReceipt, ...]
    leaves: Sequence[bytes] = field(repr=False)
    """The receipts, encoded."""
    layer: Layer
    """The state after the transactions."""
    paid: Layer
    """On top of it, the builder's payment to the proposer."""
    trie: Trie
    history: MountainRange
    """All receipts so far, this block's included."""
    nodes: Sequence[bytes] = field(repr=False)
    """What this block adds to the stored hashes of the history."""
    entries: dict[bytes, bytes | None] = field(repr=False)
    """State entries it changed, encoded; absent: removed."""

    def apply(self) -> None:
        """Move its changes into the state it was executed on."""
        self.paid.merge_down()
        self.layer.merge_down()


def genesis_header(machine: Machine) -> tuple[BlockHeader, MemoryBase, Trie]:
    """Block 0: no transactions and no certificate; the ledger id itself commits to it."""
    genesis = machine.genesis
    base = machine.genesis_state()
    trie = Trie().update(base.encoded())
    header = BlockHeader(
        ledger_id=machine.ledger_id,
        height=0,
        parent=bytes(32),
        tx_root=merkle_root([]),
        receipt_root=merkle_root([]),
        state_root=trie.root,
        timestamp_ms=genesis.timestamp_ms,
        proposer=ZERO_ADDRESS,
        builder=ZERO_ADDRESS,
        beacon=bytes(32),
        round=0,
        epoch=genesis.committee.epoch,
        committee=genesis.committee.digest,
        history_root=MountainRange().root,
        history_size=0,
    )
    return header, base, trie


def build(
    slot: Slot,
    trie: Trie,
    history: MountainRange,
    layer: Layer,
    *,
    builder: str,
    bid_wei: int,
    transactions: Sequence[bytes],
    receipts: Sequence[TxReceipt],
    timestamp_ms: int,
) -> Candidate:
    """Close a block whose transactions were executed on ``layer`` over the parent's state.

    The bid is paid after them, out of what the builder then has.

    Raises:
        LedgerError: the builder has less than that.
    """
    parent, paid = slot.parent, Layer(layer)
    _pay(paid, builder, slot.proposer, bid_wei)
    entries = layer.encoded_changes() | paid.encoded_changes()
    after = trie.update(entries)
    leaves = [receipt.canonical() for receipt in receipts]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    history, nodes = history.append(hashes)
    header = BlockHeader(
        ledger_id=parent.ledger_id,
        height=parent.height + 1,
        parent=parent.digest,
        tx_root=merkle_root(transactions),
        receipt_root=root_of_hashes(hashes),
        state_root=after.root,
        timestamp_ms=timestamp_ms,
        proposer=slot.proposer,
        builder=builder,
        beacon=slot.beacon,
        round=slot.round,
        epoch=slot.epoch,
        committee=slot.committee,
        history_root=history.root,
        history_size=history.size,
    )
    return Candidate(header, tuple(receipts), leaves, layer, paid, after, history, nodes, entries)


def _pay(layer: Layer, builder: str, proposer: str, bid_wei: int) -> None:
    payer = layer.account(builder)
    if payer.balance_wei < bid_wei:
        raise LedgerError(
            f"builder {builder} bid {bid_wei} wei and holds {payer.balance_wei} after its block"
        )
    if bid_wei and builder != proposer:
        payee = layer.account(proposer)
        for account, moved_wei in ((payer, -bid_wei), (payee, bid_wei)):
            balance_wei = account.balance_wei + moved_wei
            layer.put(account.model_copy(update={"balance_wei": balance_wei}))


def reexecute(
    machine: Machine,
    parent: BlockHeader,
    trie: Trie,
    history: MountainRange,
    base: Base,
    block: Block,
) -> Candidate:
    """Execute a stranger's block on its parent's state and compare every commitment.

    Raises:
        LedgerError: the block does not follow from its parent by the rules.
    """
    header = block.header
    if header.timestamp_ms < parent.timestamp_ms:
        raise LedgerError(f"block {header.height} is dated before its parent: do not sign it")
    if not block.transactions:
        raise LedgerError(f"block {header.height} is empty: do not sign it")
    seal = block.seal
    slot = open_slot(parent, base, seal.beacon, header.round)
    check_seal(base.committee(), slot, header, seal)
    layer = Layer(base)
    env = BlockEnv(header.timestamp_ms, parent.height + 1)
    machine.begin(layer, env)
    receipts: list[TxReceipt] = []
    reached = 0
    for index, raw in enumerate(block.transactions):
        try:
            tx = parse_transaction(raw)
            place = place_in_block(layer, tx)
            if place < reached:
                raise LedgerError(
                    f"transaction {index} of block {header.height} is revealed behind what it "
                    "comes before: do not sign it"
                )
            reached = place
            receipts.append(machine.execute(layer, tx, env, size=len(raw)))
        except TransactionRefused as error:
            raise LedgerError(
                f"transaction {index} of block {header.height} breaks a rule: {error}"
            ) from error
    candidate = build(
        slot,
        trie,
        history,
        layer,
        builder=header.builder,
        bid_wei=seal.bid_wei,
        transactions=block.transactions,
        receipts=receipts,
        timestamp_ms=header.timestamp_ms,
    )
    if candidate.header != header:
        wrong = [
            name
            for name in BlockHeader.model_fields
            if getattr(candidate.header, name) != getattr(header, name)
        ]
        raise LedgerError(
            f"block {header.height} claims a wrong {', '.join(wrong)}: do not sign it"
        )
    return candidate


def certificate_valid(
    committee: Committee, block_hash: bytes, certificate: QuorumCertificate
) -> bool:
    """Whether a quorum of the committee signed this block hash."""
    return quorum_signed(committee, certificate, QuorumCertificate.message(block_hash))


class Inclusions:
    """The receipts of a certified block, each with its path to the header."""

    def __init__(
        self,
        header: BlockHeader,
        certificate: QuorumCertificate,
        receipts: Sequence[TxReceipt],
        leaves: Iterable[bytes],
    ) -> None:
        self._header = header
        self._certificate = certificate
        self._receipts = receipts
        self._tree = MerkleTree(map(leaf_hash, leaves))

    def __len__(self) -> int:
        return len(self._receipts)

    def __getitem__(self, index: int) -> Receipt:
        return Receipt(
            header=self._header,
            certificate=self._certificate,
            leaf=self._receipts[index],
            index=index,
            size=len(self._receipts),
            path=self._tree.proof(index),
        )
