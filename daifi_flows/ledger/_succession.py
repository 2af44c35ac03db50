"""The chain of handovers in a ledger file: from genesis's committee to that of a certified block.

The state is believed because a committee certified its root, and the committee because the ones
before it signed it in: read from the same file, but checked with nothing except genesis's keys.
"""

from __future__ import annotations

from collections.abc import Iterable

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import Committees, Handover, Succession
from daifi_flows.errors import EncodingError, LedgerCorrupted
from daifi_flows.ledger._committees import CommitteeRecord, RollRecord, committee_key
from daifi_flows.ledger._params import Genesis
from daifi_flows.ledger._seal import quorum_signed
from daifi_flows.ledger._state import Base, decode_entry
from daifi_flows.ledger._store_reads import StoreReads

__all__ = ["certified_by", "handovers_in", "stored_handovers", "succession_in"]


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
        elected=tuple(entrant.public for entrant in roll.elected),
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
