"""What a host's seats say about the ledger's blocks: approvals, proposals, beacon shares, skips.

Everything a seat signs here is in the journal first: it never says two different things.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from daifi_flows.cnft import (
    BlockHeader,
    Committee,
    QuorumCertificate,
    beacon_message,
    proposal_digest,
    skip_message,
)
from daifi_flows.epochs import Succession
from daifi_flows.errors import CommitteeError, DaifiError
from daifi_flows.judges._byzantine import Traitor
from daifi_flows.judges._journal import Journal
from daifi_flows.judges._messages import CertifyReply, ProposeReply
from daifi_flows.judges._seat import SeatKeys

__all__ = ["ROUND_S", "BlockOffice", "BlockValidator"]

ROUND_S: Final = 1.0
"""How long a drawn proposer has, from when a seat first hears that it is silent. A healthy one
answers in milliseconds; whoever carries the messages gains nothing by hurrying this."""
_MAX_HEADER_BYTES: Final = 4096
_ASKED: Final = 64
"""Rounds remembered, of the few blocks that may be asked about."""


class BlockValidator(Protocol):
    """What checks blocks for the seats; the ledger's replica is one.

    Methods raise a DaifiError: with ``details["from_height"]`` when earlier blocks are missing,
    else for good.
    """

    def check(self, block: bytes) -> bytes:
        """Hash to sign, after re-executing the block."""
        ...

    def choose(self, offer: bytes, account: str) -> BlockHeader:
        """The best of the headers on offer that the drawn proposer ``account`` may sign."""
        ...

    def confirm(self, header: BlockHeader, term: int) -> None:
        """Check that this is the newest block that is final, or that was signed, here; and from
        now on refuse writers of older terms."""
        ...

    def signed_after(self, parent: bytes) -> bytes:
        """The block on top of this one (its hash) that was last given out to sign, as it was
        checked, not final; or nothing."""
        ...

    def catch_up(self, blocks: Sequence[bytes]) -> Any:
        """Apply certified blocks, each with its certificate."""
        ...

    def succession(self) -> Succession:
        """Who was drawn to take over from the committee, as of the last final block here."""
        ...

    def certifier_of(self, header: BlockHeader) -> Committee | None:
        """The committee that was to certify a block of this height, if the header names it."""
        ...


class BlockOffice:
    """The part of a seat host that deals with blocks. Thread-safe; every method blocks."""

    def __init__(
        self,
        committee: Committee,
        keys: Mapping[int, SeatKeys],
        byzantine: Mapping[int, Traitor],
        journal: Journal,
        validator_factory: Callable[[], BlockValidator] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._committee = committee
        self._keys = keys
        self._traitors = byzantine
        self._honest = tuple(index for index in keys if index not in byzantine)
        self._journal = journal
        self._validator_factory = validator_factory
        self._validator: BlockValidator | None = None
        self._lock = threading.Lock()
        self._clock = clock
        self._asked: dict[tuple[bytes, int], float] = {}
        """When these seats first heard that a round's proposer is silent."""

    def certify(self, header_bytes: bytes, block: bytes) -> CertifyReply:
        """Check a block on this machine's replica and sign its hash, one a height and round.

        Each signature comes with the seat's share of the next block's beacon.
        """
        header = BlockHeader.from_canonical(header_bytes, max_bytes=_MAX_HEADER_BYTES)
        try:
            with self._lock:
                validator = self._get_validator()
                digest = validator.check(block)
                # Not the bytes that came: of a hash that was given out before, they are unchecked.
                checked = validator.signed_after(header.parent)
        except DaifiError as error:
            return _trouble(error)
        if digest != header.digest:
            return CertifyReply(refused="the block's hash is not its header's")
        able = self._journal.may_sign_block(
            self._honest,
            header.ledger_id,
            header.height,
            header.round,
            digest,
            parent=header.parent,
            block=checked,
        )
        message = QuorumCertificate.message(digest)
        partials = [(index, self._keys[index].bls.sign(message)) for index in able]
        shares = self._shares(able, digest)
        for index, traitor in self._traitors.items():
            if traitor.behaviour != "silent":  # a wrong signature, dropped by the ledger
                wrong = self._keys[index].bls.sign(b"byzantine" + digest)
                partials.append((index, wrong))
                shares.append((index, wrong))
        refused = None if partials else f"another block of height {header.height} was signed here"
        return CertifyReply(tuple(partials), tuple(shares), refused=refused)

    def propose(self, seat: int, offer: bytes) -> ProposeReply:
        """Have a drawn seat choose among the headers on offer and sign one a height and round."""
        keys = self._keys.get(seat)
        if keys is None:
            return ProposeReply(absent=True)
        if seat in self._traitors and self._traitors[seat].behaviour == "silent":
            return ProposeReply(refused="this seat is silent")
        try:
            with self._lock:
                header = self._get_validator().choose(offer, keys.account.address)
        except DaifiError as error:
            trouble = _trouble(error)
            return ProposeReply(
                needs_from=trouble.needs_from,
                refused=trouble.refused,
                fenced_by=trouble.fenced_by,
            )
        digest = header.digest
        if not self._journal.may_propose(
            seat, header.ledger_id, header.height, header.round, digest
        ):
            return ProposeReply(
                refused=f"seat {seat} proposed another block of height {header.height} in round "
                f"{header.round}"
            )
        return ProposeReply(digest, keys.account.sign(proposal_digest(digest)))

    def resume(self, header_bytes: bytes, term: int) -> CertifyReply:
        """For whoever begins to propose on top of a final block: shares of the next beacon, and
        what these seats already said about the next block."""
        header = BlockHeader.from_canonical(header_bytes, max_bytes=_MAX_HEADER_BYTES)
        try:
            with self._lock:
                validator = self._get_validator()
                validator.confirm(header, term)
                checked = validator.signed_after(header.digest)
        except DaifiError as error:
            return _trouble(error)
        # What the seats signed comes first: after a restart the validator may know another block.
        signed = self._journal.signed_after(self._honest, header.ledger_id, header.digest)
        return CertifyReply(
            shares=tuple(self._shares(self._honest, header.digest)),
            passed=self._journal.passed(self._honest, header.ledger_id, header.height + 1),
            block=signed or checked,
        )

    def skip(self, parent_bytes: bytes, round: int, term: int) -> CertifyReply:
        """Pass over the proposers of the block after ``parent`` up to ``round``, once they were
        silent for :data:`ROUND_S` since this was first asked."""
        parent = BlockHeader.from_canonical(parent_bytes, max_bytes=_MAX_HEADER_BYTES)
        digest = parent.digest
        try:
            with self._lock:
                self._get_validator().confirm(parent, term)
                if not 0 <= round < 2**32:
                    return CertifyReply(refused="there is no such round")
                while len(self._asked) >= _ASKED and (digest, round) not in self._asked:
                    del self._asked[next(iter(self._asked))]
                since = self._asked.setdefault((digest, round), self._clock())
        except DaifiError as error:
            return _trouble(error)
        if (left := since + ROUND_S - self._clock()) > 0:
            return CertifyReply(wait_s=left)
        able = self._journal.may_skip(self._honest, parent.ledger_id, parent.height + 1, round)
        message = skip_message(digest, round)
        partials = tuple((index, self._keys[index].bls.sign(message)) for index in able)
        refused = None if partials else "these seats stay with the block they signed"
        return CertifyReply(partials, refused=refused)

    def succession(self) -> Succession:
        """See :meth:`BlockValidator.succession`.

        Raises:
            DaifiError: no replica runs here, or it cannot be read.
        """
        with self._lock:
            return self._get_validator().succession()

    def certifier_of(self, header: BlockHeader) -> Committee | None:
        """See :meth:`BlockValidator.certifier_of`.

        Raises:
            DaifiError: no replica runs here, or it cannot be read.
        """
        with self._lock:
            return self._get_validator().certifier_of(header)

    def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        """Bring the replica up to date with certified blocks.

        Raises:
            DaifiError: a block or its certificate is wrong.
        """
        with self._lock:
            self._get_validator().catch_up(blocks)
        return len(blocks)

    def warm(self) -> None:
        """Make the block validator, where there is one."""
        if self._validator_factory is not None:
            with self._lock:
                self._get_validator()

    def _shares(self, seats: Sequence[int], digest: bytes) -> list[tuple[int, bytes]]:
        message = beacon_message(digest)
        shares: list[tuple[int, bytes]] = []
        for index in seats:
            if (key := self._keys[index].share) is not None:
                shares.append((index, key.sign(message)))
        return shares

    def _get_validator(self) -> BlockValidator:
        if self._validator is None:
            if self._validator_factory is None:
                raise CommitteeError("this seat host was started without a block validator")
            self._validator = self._validator_factory()
        return self._validator


def _trouble(error: DaifiError) -> CertifyReply:
    needed = error.details.get("from_height")
    if isinstance(needed, int):
        return CertifyReply(needs_from=needed)
    fenced_by = error.details.get("fenced_by")
    return CertifyReply(
        refused=str(error), fenced_by=fenced_by if isinstance(fenced_by, int) else None
    )
