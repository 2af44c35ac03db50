"""A validator's own copy of the chain: re-executes each block before a seat signs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import Succession
from daifi_flows.errors import EncodingError, LedgerError, OutOfSync
from daifi_flows.ledger._auction import Bid, best_bid, bid_fault
from daifi_flows.ledger._blocks import (
    MAX_BLOCK_BYTES,
    Block,
    Candidate,
    CertifiedBlock,
    certificate_valid,
    genesis_header,
    reexecute,
)
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._seal import MAX_BIDS, Offer, check_turn, open_slot
from daifi_flows.ledger._snapshot import load_newest
from daifi_flows.ledger._state import MemoryBase, decode_entry
from daifi_flows.ledger._succession import succession_in
from daifi_flows.ledger._trie import Trie
from daifi_flows.merkle import MountainRange

__all__ = ["Replica"]

MAX_CLOCK_DRIFT_MS: Final = 60_000
"""How far ahead of a validator's clock a block may be dated: else a proposer could expire
tasks at will."""
_MAX_OFFER_BYTES: Final = 4096 * (MAX_BIDS + 1)


_RECENT_BLOCKS: Final = 64
"""Final blocks whose hashes are kept: a slow writer may ask about one again."""


class Replica:
    """What a seat host holds to decide which block hash to sign.

    Args:
        clock: Unix milliseconds; blocks dated more than a minute ahead of it are refused.
            Without one, any date not before the parent's is taken.
        snapshots: folder of the ledger's snapshots; the newest sound one is started from, else
            genesis. A snapshot is taken only with a quorum's certificate of its state.

    It signs one block a height and round, and never one of an earlier round than it signed, for as
    long as it lives. After a restart it catches up from certified blocks. Of writers it obeys the
    one with the highest term it has heard of. Not thread-safe.
    """

    def __init__(
        self,
        genesis: Genesis,
        clock: Callable[[], int] | None = None,
        *,
        snapshots: Path | None = None,
    ) -> None:
        self._machine = Machine(genesis)
        self._head, self._base, self._trie = genesis_header(self._machine)
        self._history = MountainRange()
        self._clock = clock
        self._term = 0
        self._signed: Candidate | None = None
        self._signed_bytes = b""
        self._answered = b""
        if snapshots is not None and (found := load_newest(snapshots, genesis)) is not None:
            snapshot, entries = found
            self._base = MemoryBase({k: decode_entry(k, v) for k, v in entries.items()})
            self._trie = Trie().update(entries)
            self._head, self._history = snapshot.header, snapshot.history
        self._trie = self._trie.merge()
        self._recent = {self._head.height: self._head.digest}

    @property
    def height(self) -> int:
        """Height of the last block known to be final."""
        return self._head.height

    def check(self, block: bytes) -> bytes:
        """The block hash to sign, after re-executing the block; the same for the same bytes.

        Raises:
            OutOfSync: earlier blocks are missing, ``details["from_height"]`` on.
            LedgerError: the block breaks a rule, or another block was signed at its height in
                this round or a later one.
        """
        if self._signed is not None and block == self._answered:
            return self._signed.header.digest
        parsed = _parse(block)
        header = parsed.header
        self._refuse_term(parsed.term)
        if header.height <= self.height:
            if header.height >= 1 and self._recent.get(header.height) == header.digest:
                return header.digest
            raise LedgerError(f"block {header.height} conflicts with the final one; refused")
        self._reach(header.height, parsed.justify)
        if self._signed is not None:
            if self._signed.header.digest == header.digest:
                # The bytes that were executed are kept to be shown: these were not.
                self._term, self._answered = parsed.term, block
                return header.digest
            # A later round shows that a quorum passed over the earlier: what was signed is dead.
            if self._signed.header.round >= header.round:
                raise LedgerError(f"another block {header.height} was signed already; refused")
        self._check_date(header)
        self._signed = self._execute(parsed)
        self._signed_bytes = self._answered = block
        self._term = parsed.term  # only a right block brings a new term
        return header.digest

    def choose(self, offer: bytes, account: str) -> BlockHeader:
        """The best of the headers on offer, for the drawn proposer ``account`` to sign blind.

        Raises:
            OutOfSync: earlier blocks are missing, ``details["from_height"]`` on.
            LedgerError: it is not this account's turn, or no bid can win.
        """
        try:
            parsed = Offer.from_canonical(offer, max_bytes=_MAX_OFFER_BYTES)
        except EncodingError as error:
            raise LedgerError(f"the offer cannot be read: {error}") from error
        self._refuse_old(parsed.term)
        first = parsed.bids[0].header
        if first.height <= self.height:
            raise LedgerError(f"block {first.height} is final already; offer the next")
        self._reach(first.height, parsed.justify)
        slot = open_slot(self._head, self._base, parsed.beacon, first.round)
        check_turn(self._base.committee(), self._head, parsed.beacon, first.round, parsed.skip)
        if slot.proposer != account:
            raise LedgerError(f"{slot.proposer} is drawn for block {first.height}, not {account}")
        faults: list[str] = []
        good: list[Bid] = []
        for bid in parsed.bids:
            balance_wei = self._base.account(bid.header.builder).balance_wei
            why = bid_fault(slot, bid, balance_wei)
            if why is None and self._is_ahead(bid.header):
                why = "its header is dated in the future"
            if why is not None:
                faults.append(why)
            else:
                good.append(bid)
        best = best_bid(slot, good)
        if best is None:
            raise LedgerError(f"no bid for block {first.height} can win: {faults[0]}")
        return best.header

    def confirm(self, header: BlockHeader, term: int) -> None:
        """Check that a block is the newest that is final here, or was signed here on top of it, and
        from now on refuse writers of older terms: what one is told here stays so.

        Raises:
            OutOfSync: it is newer, or another than the one signed here.
            LedgerError: it is older, or conflicts with the final one; or the writer's term is over
                (``details["fenced_by"]``), or in the future.
        """
        self._refuse_term(term)
        self._term = term
        newest = self._signed.header if self._signed is not None else self._head
        if header.digest in (newest.digest, self._head.digest):
            return
        if header.height <= self.height:
            raise LedgerError(f"block {header.height} is not the newest here; refused")
        raise OutOfSync(f"block {header.height} is not known here", from_height=self.height + 1)

    def signed_after(self, parent: bytes) -> bytes:
        """The block on top of this one (its hash) that :meth:`check` last gave out, with the body
        that it executed, not final; or nothing."""
        signed = self._signed
        if signed is None or signed.header.parent != parent:
            return b""
        return self._signed_bytes

    def _reach(self, height: int, justify: QuorumCertificate | None) -> None:
        """Come to the parent of ``height``, by its certificate."""
        if height == self.height + 2 and self._signed is not None:
            self._advance(justify)
        if height > self.height + 1:
            raise OutOfSync(
                f"blocks {self.height + 1} to {height - 1} are needed before {height} can be "
                "checked",
                from_height=self.height + 1,
            )

    def _is_ahead(self, header: BlockHeader) -> bool:
        if self._clock is None:
            return False
        return header.timestamp_ms > self._clock() + MAX_CLOCK_DRIFT_MS

    def _check_date(self, header: BlockHeader) -> None:
        if self._is_ahead(header):
            raise LedgerError(f"block {header.height} is dated in the future; refused")

    def _execute(self, block: Block) -> Candidate:
        return reexecute(self._machine, self._head, self._trie, self._history, self._base, block)

    def _refuse_term(self, term: int) -> None:
        self._refuse_old(term)
        # Terms are times: without this bound one message could fence every writer for ever.
        if self._clock is not None and term > self._clock() + MAX_CLOCK_DRIFT_MS:
            raise LedgerError(f"the writer's term {term} is in the future; check its clock")

    def _refuse_old(self, term: int) -> None:
        if term < self._term:
            raise LedgerError(
                f"the writer's term {term} is over: term {self._term} leads; start it again as a "
                "follower",
                fenced_by=self._term,
            )

    def _advance(self, certificate: QuorumCertificate | None) -> None:
        signed = self._signed
        assert signed is not None
        if certificate is None or not certificate_valid(
            self._base.committee(), signed.header.digest, certificate
        ):
            # The parent that became final may be another than the one signed here.
            raise OutOfSync(
                f"block {signed.header.height} is not shown to be final",
                from_height=signed.header.height,
            )
        self._adopt(signed)

    def _adopt(self, candidate: Candidate) -> None:
        candidate.apply()
        self._head, self._trie = candidate.header, candidate.trie.merge()
        self._history = candidate.history
        self._signed, self._signed_bytes, self._answered = None, b"", b""
        self._recent[self._head.height] = self._head.digest
        self._recent.pop(self._head.height - _RECENT_BLOCKS, None)

    def catch_up(self, blocks: Sequence[bytes]) -> None:
        """Apply certified blocks in order; those already final here are skipped.

        Raises:
            OutOfSync: there is a gap before one of them.
            LedgerError: one is malformed, breaks a rule, or has no valid certificate.
        """
        for raw in blocks:
            try:
                certified = CertifiedBlock.from_canonical(raw, max_bytes=MAX_BLOCK_BYTES)
            except EncodingError as error:
                raise LedgerError(f"a certified block cannot be read: {error}") from error
            header = certified.block.header
            if header.height <= self.height:
                continue
            if header.height != self.height + 1:
                raise OutOfSync(f"block {self.height + 1} is missing", from_height=self.height + 1)
            if not certificate_valid(self._base.committee(), header.digest, certified.certificate):
                raise LedgerError(f"block {header.height} has no valid certificate")
            signed = self._signed
            if signed is None or signed.header.digest != header.digest:
                signed = self._execute(certified.block)
            self._adopt(signed)

    def succession(self) -> Succession:
        """Who was drawn to take over from the committee, as of the last final block here."""
        return succession_in(self._base, self._machine.genesis)

    def certifier_of(self, header: BlockHeader) -> Committee | None:
        """The committee that was to certify a block of this height, as of the last final block
        here; ``None`` where the header names another."""
        found = self._base.seated_in(header.epoch)
        if found is None or found.digest != header.committee:
            return None
        left = found.left_height or header.height
        return found.committee if found.since_height < header.height <= left else None

    @property
    def fingerprint(self) -> bytes:
        """Hash over the final head and state root, to compare replicas, 32 bytes."""
        return keccak256(self._head.digest + self._trie.root)


def _parse(block: bytes) -> Block:
    try:
        return Block.from_canonical(block, max_bytes=MAX_BLOCK_BYTES)
    except EncodingError as error:
        raise LedgerError(f"the block cannot be read: {error}") from error
