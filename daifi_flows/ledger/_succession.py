"""The chain of handovers in a ledger file: from genesis's committee to that of a certified block.

The state is believed because a committee certified its root, and the committee because the ones
before it signed it in: read from the same file, but checked with nothing except genesis's keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import CommitteeChain, Committees, Elected, Handover, Succession
from daifi_flows.errors import EncodingError, LedgerCorrupted
from daifi_flows.ledger._committees import (
    CommitteeRecord,
    OfficeRecord,
    RollRecord,
    committee_key,
)
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._seal import quorum_signed
from daifi_flows.ledger._state import Base, decode_entry
from daifi_flows.ledger._store import Store
from daifi_flows.ledger._store_reads import StoreReads
from daifi_flows.ledger._store_schema import damaged

__all__ = ["certified_by", "committees_in", "handovers_in", "stored_handovers", "succession_in"]


def handovers_in(state: Base, genesis: Genesis, after: int | None = None) -> tuple[Handover, ...]:
    """How the present committee of a state came into office, handover by handover.

    Args:
        after: the epoch that is known already; genesis's when absent.
    """
    first = genesis.committee.epoch if after is None else max(after, genesis.committee.epoch)
    found: list[Handover] = []
    for epoch in range(first + 1, state.committee().epoch + 1):
        record = state.seated_in(epoch)
        if record is None:
            raise LedgerCorrupted(f"the ledger's state has no committee of epoch {epoch}")
        found.append(record.handover(genesis.ledger_id))
    return tuple(found)


def succession_in(state: Base, genesis: Genesis) -> Succession:
    """Who was drawn to take over from the committee in office."""
    epoch = state.committee().epoch
    roll = state.find(RollRecord, RollRecord.prefix)
    if roll is None or roll.epoch != epoch + 1 or not roll.drawn:
        return Succession(ledger_id=genesis.ledger_id, in_office=epoch)
    return Succession(
        ledger_id=genesis.ledger_id,
        in_office=epoch,
        draw=roll.digest,
        elected=tuple(
            Elected(
                public=entrant.public,
                account=entrant.candidate.account,
                operator=entrant.candidate.operator,
                weight=entrant.candidate.weight,
            )
            for entrant in roll.elected
        ),
    )


def stored_handovers(store: StoreReads, genesis: Genesis, epoch: int) -> tuple[Handover, ...]:
    """The same from a ledger file whose state is not checked yet, up to an epoch.

    Raises:
        LedgerCorrupted: the file does not hold them.
    """
    found: list[Handover] = []
    for number in range(genesis.committee.epoch + 1, epoch + 1):
        key = committee_key(number)
        entry = store.entry(keccak256(key))
        record = decode_entry(key, entry.value) if entry is not None else None
        if not isinstance(record, CommitteeRecord):
            raise LedgerCorrupted(
                f"ledger file {store.path} does not hold the committee of epoch {number}: restore "
                "a backup"
            )
        found.append(record.handover(genesis.ledger_id))
    return tuple(found)


def committees_in(path: Path | str) -> tuple[Committee, CommitteeChain]:
    """A ledger file's first committee, and the handovers from it to the present one; verified. The
    ledger may be in use.

    Raises:
        LedgerCorrupted: a handover is missing or not signed.
        LedgerError: there is no such file, or it is of a format this version cannot read.
        LedgerUnavailable: the file cannot be opened.
    """
    store = Store(Path(path), None, writable=False)
    try:
        with store.pinned():
            genesis = store.genesis
            entry = store.entry(keccak256(OfficeRecord.prefix))
            office = decode_entry(OfficeRecord.prefix, entry.value) if entry is not None else None
            epoch = office.epoch if isinstance(office, OfficeRecord) else genesis.committee.epoch
            handovers = stored_handovers(store, genesis, epoch)
        Committees(genesis.committee, handovers)
    except EncodingError as error:
        raise damaged(store.path, str(error), 0) from error
    finally:
        store.close()
    return genesis.committee, CommitteeChain(handovers=handovers)


def certified_by(
    genesis: Genesis,
    handovers: Iterable[Handover],
    header: BlockHeader,
    certificate: QuorumCertificate,
) -> Committee | None:
    """The committee that certified a block, when handovers lead from genesis to it."""
    handovers = tuple(handovers)
    if any(each.ledger_id != genesis.ledger_id for each in handovers):
        return None
    try:
        committee = Committees(genesis.committee, handovers).certifying(header)
    except EncodingError:
        return None
    message = QuorumCertificate.message(header.digest)
    return committee if quorum_signed(committee, certificate, message) else None
